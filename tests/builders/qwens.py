"""Qwen's vision-language models: as many image tokens as the image's size asks for, three-dimensional positions."""

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from sugar_hf.model.processing_sugar import without_video

from .parts import QWEN_TEMPLATE, build_tokenizer, finish, text_config

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
VISION = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _tokenizer() -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """Return a tokenizer without bos, and the configuration's ids of its vision tokens."""
    tokenizer = build_tokenizer((*VISION_TOKENS, "<|im_start|>", "<|im_end|>"), bos=False, eos_token="<|im_end|>")
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return tokenizer, dict(zip(names, tokenizer.convert_tokens_to_ids(list(VISION_TOKENS)), strict=True))


def _text(tokenizer: PreTrainedTokenizerFast, **rope: object) -> dict:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2], **rope}
    return {**text_config(tokenizer), "rope_parameters": rope}


def _processor(processor_class: type[ProcessorMixin], tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    return without_video(processor_class)(image_processor, tokenizer, chat_template=QWEN_TEMPLATE)


def build_tiny_qwen2_vl(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2-VL."""
    torch.manual_seed(seed)
    tokenizer, ids = _tokenizer()
    vision = {**VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
    config = Qwen2VLConfig(text_config=_text(tokenizer), vision_config=vision, **ids)
    return finish(Qwen2VLForConditionalGeneration(config), tokenizer), _processor(Qwen2VLProcessor, tokenizer)


def build_tiny_qwen2_5_vl(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen2.5-VL: the vision tower attends within windows in all but some layers."""
    torch.manual_seed(seed)
    tokenizer, ids = _tokenizer()
    vision = {
        **VISION,
        "hidden_size": 16,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "window_size": 32,
        "fullatt_block_indexes": [1],
    }
    config = Qwen2_5_VLConfig(text_config=_text(tokenizer), vision_config=vision, **ids)
    return finish(Qwen2_5_VLForConditionalGeneration(config), tokenizer), _processor(Qwen2_5_VLProcessor, tokenizer)


def build_tiny_qwen3_vl(seed: int = 0) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Qwen3-VL: image features enter the first layers of the language model too."""
    torch.manual_seed(seed)
    tokenizer, ids = _tokenizer()
    vision = {
        **VISION,
        "hidden_size": 16,
        "intermediate_size": 32,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    text = {**_text(tokenizer, mrope_interleaved=True), "head_dim": 8}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **ids)
    return finish(Qwen3VLForConditionalGeneration(config), tokenizer), _processor(Qwen3VLProcessor, tokenizer)
