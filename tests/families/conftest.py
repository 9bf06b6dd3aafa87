"""More families every day than elsewhere: those that differ in what a batch, an image or a sample changes."""

import pytest
from builders import BUILDERS

# One square image, tiles, as many tokens as the size asks for, attention both ways within images or within prompts,
# tiles that depend on the rest of a sample.
EVERY_DAY = {"gemma3", "idefics3", "llava", "llava_onevision", "paligemma", "qwen3_vl"}
RARELY = [pytest.mark.slow, pytest.mark.families]


@pytest.fixture(params=[pytest.param(name, marks=[] if name in EVERY_DAY else RARELY) for name in sorted(BUILDERS)])
def family(request):
    return request.param
