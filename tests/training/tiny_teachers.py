"""Tiny random teachers on disk: CLIP, DINOv2 and a BERT, all with the byte-level tokenizer of the tiny models."""

from pathlib import Path

import torch
from builders import build_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)


def save_tiny_teachers(folder: Path, seed: int = 0) -> dict[str, str]:
    """Save them to the subfolders clip, dino and text, and return these by role."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(())
    tokenizer.padding_side = "right"
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 128, "pad_token_id": 0}
    clip = CLIPConfig(
        text_config=CLIPTextConfig(**small, **text, bos_token_id=1, eos_token_id=2).to_dict(),
        vision_config=CLIPVisionConfig(**small, image_size=24, patch_size=8).to_dict(),
        projection_dim=12,
    )
    dino = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8)
    size = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
    parts = {
        "clip": (CLIPModel(clip), CLIPImageProcessorPil(**size), tokenizer),
        "dino": (Dinov2Model(dino), BitImageProcessorPil(**size)),
        "text": (BertModel(BertConfig(**small, **text)), tokenizer),
    }
    for role, items in parts.items():
        for item in items:
            item.save_pretrained(folder / role)
    return {role: str(folder / role) for role in parts}
