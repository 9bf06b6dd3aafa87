"""The models of the study: a small real language model that sees by ImageNet features, and its teachers' files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sugar_hf._files import replace

from .vision_tower import EfficientNetLite, EfficientNetLiteConfig, convert, register

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TOWER = "efficientnet-lite0-57934424.pth"
SYNSETS, LEMMAS = "imagenet_synsets.txt", "imagenet_synset_to_lemma.txt"
IMAGE_TOKEN = "<image>"
IMAGE_SIZE = 160  # pixels: 25 tokens an image


def class_names(files: Path) -> list[str]:
    """Return the names of the classes of ImageNet, in the order of its classifiers, from the files of timm."""
    lemmas = dict(line.split("\t", 1) for line in (files / LEMMAS).read_text(encoding="utf-8").splitlines())
    return [lemmas[synset] for synset in (files / SYNSETS).read_text(encoding="utf-8").split()]


def load_tower(weights: Path) -> EfficientNetLite:
    """Return the vision tower with its published weights, which lie in a folder."""
    return convert(weights / TOWER, EfficientNetLiteConfig(image_size=IMAGE_SIZE, num_labels=1000))


def image_processor(size: int = IMAGE_SIZE) -> CLIPImageProcessorPil:
    """Return what makes the tower's input: the whole image at one size, numbers from -1 to 1."""
    sides = {"height": size, "width": size}
    return CLIPImageProcessorPil(
        size=sides,
        do_center_crop=False,  # a manual's pictures are wide: their sides are not to be cut off
        crop_size=sides,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


def build_backbone(language_files: Path, tower_files: Path, folder: Path, seed: int = 0) -> Path:
    """Make a LLaVA of SmolLM2-135M-Instruct and EfficientNet-lite0, with a projector that is not trained yet.

    Args:
        language_files: The folder of the language model's GGUF file.
        tower_files: The folder of the tower's weights.
        folder: Where the model goes; one that is there already stays.
        seed: Of the projector's weights.
    """
    register()
    if (folder / "config.json").is_file():
        return folder
    language: Any = AutoModelForCausalLM.from_pretrained(language_files, gguf_file=GGUF, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(language_files, gguf_file=GGUF)
    vision = load_tower(tower_files)
    assemble(language, tokenizer, vision, folder, seed)
    return folder


def assemble(
    language: Any, tokenizer: PreTrainedTokenizerFast, vision: EfficientNetLite, folder: Path, seed: int
) -> None:
    """Put a causal language model and a vision tower together as a LLaVA, and save it with its processor."""
    register()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    vars(language.config).pop("quantization_config", None)  # the weights are not quantised any more
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=language.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(vision.config.image_size // vision.config.patch_size) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=language.config.tie_word_embeddings,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.base_model.state_dict())
    model.lm_head.load_state_dict(language.get_output_embeddings().state_dict())
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.tie_weights()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = LlavaProcessor(
        image_processor=image_processor(vision.config.image_size),
        tokenizer=tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        chat_template=tokenizer.chat_template,
    )
    staged = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(staged, ignore_errors=True)
    model.save_pretrained(staged)
    processor.save_pretrained(staged)
    replace(staged, folder)
