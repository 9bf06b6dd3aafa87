"""Tiny models, built once; tests must not change them (`fresh_llava` is for those that do)."""

import functools

import pytest
from builders import BUILDERS, build_tiny_llava

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor


@functools.cache
def _build(family: str) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    vlm, processor = BUILDERS[family]()
    return SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16).eval(), SugarProcessor(processor)


@pytest.fixture(params=sorted(BUILDERS))
def family(request):
    return request.param


@pytest.fixture
def sugar(family):
    """Model and processor of every family in turn."""
    return _build(family)


@pytest.fixture
def llava():
    return _build("llava")


@pytest.fixture
def fresh_llava():
    vlm, processor = build_tiny_llava()
    return SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16).eval(), SugarProcessor(processor)
