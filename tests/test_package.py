import subprocess
import sys

import pytest

import sugar_hf


def test_everything_public_is_there():
    for name in sugar_hf.__all__:
        assert getattr(sugar_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SugarRush'"):
        _ = sugar_hf.SugarRush


def test_importing_does_not_load_the_trainers():
    code = "import sys, sugar_hf; print([n for n in sys.modules if n.startswith(('trl', 'sugar_hf.training'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
