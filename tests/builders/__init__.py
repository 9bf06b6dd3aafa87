"""Tiny random models of many families, built without any download, and pictures to feed them.

Each `build_tiny_x(seed)` returns a vision-language model and its processor; `build_sugar` wraps them.
"""

import functools

import torch

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

from .llavas import build_tiny_llava, build_tiny_llava_next, build_tiny_llava_onevision
from .others import (
    build_tiny_gemma3,
    build_tiny_idefics3,
    build_tiny_internvl,
    build_tiny_paligemma,
    build_tiny_paligemma2,
    build_tiny_smolvlm,
)
from .parts import QWEN_TEMPLATE, VICUNA_TEMPLATE, build_tokenizer, picture
from .qwens import build_tiny_qwen2_5_vl, build_tiny_qwen2_vl, build_tiny_qwen3_vl

BUILDERS = {
    "llava": build_tiny_llava,
    "llava_next": build_tiny_llava_next,
    "llava_onevision": build_tiny_llava_onevision,
    "qwen2_vl": build_tiny_qwen2_vl,
    "qwen2_5_vl": build_tiny_qwen2_5_vl,
    "qwen3_vl": build_tiny_qwen3_vl,
    "idefics3": build_tiny_idefics3,
    "smolvlm": build_tiny_smolvlm,
    "gemma3": build_tiny_gemma3,
    "internvl": build_tiny_internvl,
    "paligemma": build_tiny_paligemma,
}


def build_sugar(family: str, seed: int = 0) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """Build a tiny Sugar model, in evaluation mode, and its processor."""
    vlm, processor = BUILDERS[family](seed)
    torch.manual_seed(seed)
    return SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16).eval(), SugarProcessor(processor)


@functools.cache
def cached_sugar(family: str) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """Return the one tiny Sugar model of a family that all tests share and none may change."""
    return build_sugar(family)


__all__ = [
    "BUILDERS",
    "QWEN_TEMPLATE",
    "VICUNA_TEMPLATE",
    "build_sugar",
    "build_tiny_gemma3",
    "build_tiny_idefics3",
    "build_tiny_internvl",
    "build_tiny_llava",
    "build_tiny_llava_next",
    "build_tiny_llava_onevision",
    "build_tiny_paligemma",
    "build_tiny_paligemma2",
    "build_tiny_qwen2_5_vl",
    "build_tiny_qwen2_vl",
    "build_tiny_qwen3_vl",
    "build_tiny_smolvlm",
    "build_tokenizer",
    "cached_sugar",
    "picture",
]
