"""Tiny random baselines on disk: dual encoders of many families, and BLIP-2 for image-text retrieval."""

from pathlib import Path

import torch
from builders import build_tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizer,
    Blip2Config,
    Blip2ForImageTextRetrieval,
    Blip2Processor,
    BlipImageProcessorPil,
    CLIPImageProcessorPil,
    EfficientNetImageProcessorPil,
    Siglip2ImageProcessorPil,
    Siglip2Tokenizer,
    SiglipImageProcessorPil,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PICTURE = {"image_size": 24, "patch_size": 8}
SQUARE = {"size": {"height": 24, "width": 24}}
CROP = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
LONGEST = 16
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["a", "red", "green", "blue", "cat", "dog", "house", "runs", "sleeps", "under", "the"]

#: Of each family: settings of the text tower, the image tower and the whole, and the image processor.
FAMILIES = {
    "clip": ({}, PICTURE, {"projection_dim": 12}, CLIPImageProcessorPil(**CROP)),
    "metaclip_2": ({}, PICTURE, {"projection_dim": 12}, CLIPImageProcessorPil(**CROP)),
    "altclip": ({"project_dim": 12}, PICTURE, {"projection_dim": 12}, CLIPImageProcessorPil(**CROP)),
    "chinese_clip": ({}, PICTURE, {"projection_dim": 12}, CLIPImageProcessorPil(**CROP)),
    "clipseg": ({}, PICTURE, {"projection_dim": 12}, CLIPImageProcessorPil(**CROP)),
    "align": (
        {},
        {
            "image_size": 24,
            "hidden_dim": 8,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.25,
            "num_block_repeats": [1, 1],
            "kernel_sizes": [3, 3],
            "in_channels": [8, 8],
            "out_channels": [8, 8],
            "strides": [1, 2],
            "expand_ratios": [1, 2],
            "depthwise_padding": [],
        },
        {"projection_dim": 8},
        EfficientNetImageProcessorPil(**SQUARE),
    ),
    "siglip": ({}, PICTURE, {}, SiglipImageProcessorPil(**SQUARE)),
    "siglip2": (
        {},
        {"num_patches": 9, "patch_size": 8},
        {},
        Siglip2ImageProcessorPil(patch_size=8, max_num_patches=9),
    ),
}


def strengthen(model):
    """Random weights of 0.02 make nearly equal states: nothing would depend on anything."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model.eval()


def siglip2_tokenizer() -> Siglip2Tokenizer:
    """By letters; its class is the only one that its family loads."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefghijklmnopqrstuvwxyz."]
    return Siglip2Tokenizer(vocab={token: i for i, token in enumerate(tokens)})


def save_dual(folder: Path, family: str, seed: int = 0) -> str:
    """Save a dual encoder of a family, its tokenizer and its image processor."""
    torch.manual_seed(seed)
    text, vision, whole, image_processor = FAMILIES[family]
    tokenizer = siglip2_tokenizer() if family == "siglip2" else build_tokenizer(())
    tokenizer.padding_side = "right"
    tokenizer.model_max_length = LONGEST
    room = LONGEST + (1 if family == "altclip" else 0)  # RoBERTa's positions begin after that of the padding
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": room, **SMALL, **text}
    text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, text_config=text, vision_config={**SMALL, **vision}, **whole)
    strengthen(AutoModel.from_config(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    image_processor.save_pretrained(folder)
    return str(folder)


def save_blip2(folder: Path, seed: int = 0, model_class: type = Blip2ForImageTextRetrieval) -> str:
    """Save a BLIP-2 with four queries and a tokenizer of whole words; with another class, for another task."""
    torch.manual_seed(seed)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=512)
    size = {"height": 24, "width": 24}
    processor = Blip2Processor(BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=4)
    config = Blip2Config(
        vision_config={**SMALL, **PICTURE},
        qformer_config={
            **SMALL,
            "vocab_size": len(processor.tokenizer),
            "max_position_embeddings": 12,
            "encoder_hidden_size": 16,
            "use_qformer_text_input": True,
        },
        text_config={
            "model_type": "opt",
            "hidden_size": 16,
            "ffn_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "word_embed_proj_dim": 16,
            "vocab_size": 64,
            "max_position_embeddings": 32,
        },
        num_query_tokens=4,
        image_text_hidden_size=8,
    )
    strengthen(model_class(config)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)
