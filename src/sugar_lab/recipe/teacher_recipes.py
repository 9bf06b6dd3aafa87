"""Training of the three mini teachers.

CLIP learns from picture-caption pairs, DINOv2 from two pictures of one scene, and a BERT sentence encoder from two
wordings of one scene. Only training scenes are used.
"""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    Dinov2Config,
    Dinov2Model,
    PreTrainedTokenizerBase,
)

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import BACKGROUNDS, SCENE_PIXELS, Item, Scene, caption, random_scene, render_array
from sugar_hf.picturebook.stories import draw_process, draw_story

from .loop import MEAN, STD, image_processor, pixel_values, save_half, train
from .mini_tokenizer import build_tokenizer

TEXT_LENGTH = 77  # CLIP's, so that the mini CLIP has the same limit as the real one
VISION = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "patch_size": 32, "image_size": 96}
DETAILS = ("full", "full", "some", "brief")


def draw_pair(rng: random.Random) -> tuple[Scene, str]:
    """A scene and words for it: mostly captions, some sentences of stories and processes."""
    if rng.random() < 0.75:
        scene = random_scene(rng, "train")
        return scene, caption(scene, rng, rng.choice(DETAILS), shuffle=True)
    story = rng.choice((draw_story, draw_process))(rng, "train")
    index = rng.randrange(len(story.frames))
    return story.frames[index], story.sentences[index]


def draw_wordings(rng: random.Random) -> tuple[str, str]:
    """Two wordings of one scene."""
    scene, words = draw_pair(rng)
    return words, caption(scene, rng, rng.choice(DETAILS), shuffle=True)


def draw_views(rng: random.Random) -> tuple[Scene, Scene]:
    """A scene and one that is much like it: a thing may have moved, grown or been swapped, the background changed."""
    scene = random_scene(rng, "train")
    free = rng.sample([place for place in range(9) if all(item.place != place for item in scene.items)], 3)
    items = []
    for index, item in enumerate(scene.items):
        items.append(
            Item(
                rng.choice(CONCEPTS) if index and rng.random() < 0.25 else item.concept,
                rng.choice(("small", "large")) if rng.random() < 0.4 else item.size,
                free[index] if rng.random() < 0.4 else item.place,
            )
        )
    background = rng.choice(tuple(BACKGROUNDS)) if rng.random() < 0.3 else scene.background
    return scene, replace(scene, items=tuple(items), background=background, look=rng.getrandbits(31))


class PairEncoder(nn.Module):
    """In-batch InfoNCE between the CLS embeddings of two views, for training DINOv2 and BERT alike."""

    def __init__(self, encoder: nn.Module, temperature: float = 0.07) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature

    def forward(self, first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        a, b = (normalize(self.encoder(**view).last_hidden_state[:, 0], dim=-1) for view in (first, second))
        scores = a @ b.T / self.temperature
        target = torch.arange(len(scores), device=scores.device)
        return {"loss": (cross_entropy(scores, target) + cross_entropy(scores.T, target)) / 2}


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> dict[str, torch.Tensor]:
    """Tokenize texts into one padded batch."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt")
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}


def train_clip(work: Path, out: Path, steps: int, batch_size: int = 256) -> None:
    """Train mini CLIP and save it."""
    tokenizer = build_tokenizer(add_eos=True)
    tokenizer.model_max_length = TEXT_LENGTH
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": TEXT_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config={**VISION, "intermediate_size": 256}, projection_dim=128)
    torch.manual_seed(0)
    model = CLIPModel(config)

    def collate(pairs: list[tuple[Scene, str]]) -> dict[str, Any]:
        pictures = pixel_values([render_array(scene) for scene, _ in pairs])
        return {**tokenize(tokenizer, [words for _, words in pairs]), "pixel_values": pictures, "return_loss": True}

    train(model, [draw_pair], collate, work / "mini-clip", steps=steps, batch_size=batch_size, learning_rate=1e-3)
    save_half(model, out / "mini-clip")
    CLIPProcessor(image_processor=image_processor(), tokenizer=tokenizer).save_pretrained(out / "mini-clip")


def train_dino(work: Path, out: Path, steps: int, batch_size: int = 256) -> None:
    """Train mini DINOv2 and save it."""
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**VISION, mlp_ratio=2))

    def collate(views: list[tuple[Scene, Scene]]) -> dict[str, Any]:
        first, second = zip(*views, strict=True)
        return {
            "first": {"pixel_values": pixel_values([render_array(scene) for scene in first])},
            "second": {"pixel_values": pixel_values([render_array(scene) for scene in second])},
        }

    trained = PairEncoder(model)
    train(trained, [draw_views], collate, work / "mini-dino", steps=steps, batch_size=batch_size, learning_rate=1e-3)
    save_half(model, out / "mini-dino")
    BitImageProcessorPil(
        size={"shortest_edge": SCENE_PIXELS},
        crop_size={"height": SCENE_PIXELS, "width": SCENE_PIXELS},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    ).save_pretrained(out / "mini-dino")


def train_bert(work: Path, out: Path, steps: int, batch_size: int = 256) -> None:
    """Train mini BERT and save it."""
    tokenizer = build_tokenizer(add_eos=True)
    tokenizer.model_max_length = 128
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = BertModel(config)

    def collate(wordings: list[tuple[str, str]]) -> dict[str, Any]:
        first, second = zip(*wordings, strict=True)
        return {"first": tokenize(tokenizer, list(first)), "second": tokenize(tokenizer, list(second))}

    trained = PairEncoder(model)
    train(
        trained, [draw_wordings], collate, work / "mini-bert", steps=steps, batch_size=batch_size, learning_rate=1e-3
    )
    save_half(model, out / "mini-bert")
    tokenizer.save_pretrained(out / "mini-bert")
