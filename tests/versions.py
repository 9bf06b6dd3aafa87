"""What some versions of the libraries cannot do together; strict, so that it is noticed when they can."""

import peft
import pytest
from packaging.version import Version
from transformers.integrations.peft import MIN_PEFT_VERSION

needs_the_switches_of_transformers = pytest.mark.xfail(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION),
    raises=ValueError,
    strict=True,
    reason="transformers 5.24 asks for PEFT 0.22 where it adds, switches or saves adapters itself",
)
