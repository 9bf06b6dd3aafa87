"""What some versions of the libraries do otherwise, or cannot do together."""

import peft
import pytest
import transformers
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

#: Gemma 3's token types are misplaced after a cache, and PaliGemma 2 leaves out the cap of Gemma 2's logits.
IS_BEFORE_5_23 = Version(transformers.__version__) < Version("5.23")


def since_5_23(*values: object, reason: str) -> object:
    """Values of a test's parameters that ask for what transformers has from 5.23 on."""
    return pytest.param(*values, marks=pytest.mark.skipif(IS_BEFORE_5_23, reason=f"before 5.23, {reason}"))


needs_the_switches_of_transformers = pytest.mark.xfail(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    raises=ValueError,
    strict=True,
    reason="transformers 5.24 asks for PEFT 0.22 where it adds, switches or saves adapters itself",
)
