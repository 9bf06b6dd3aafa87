import doctest
import importlib
import pkgutil

import numpy as np
import pytest

from sugar_hf.evaluation import metrics
from sugar_hf.evaluation.benchmarks import scorers

MODULES = [f"{p.__name__}.{found.name}" for p in (metrics, scorers) for found in pkgutil.iter_modules(p.__path__)]


def test_the_examples_in_docstrings_hold(subtests):
    for name in MODULES:
        with subtests.test(name=name):
            module = importlib.import_module(name)
            result = doctest.testmod(module, extraglobs={"np": np})
            assert result.failed == 0
            assert result.attempted > 0


@pytest.mark.parametrize("package", [metrics, scorers])
def test_everything_listed_is_there(package):
    assert sorted(package.__all__) == package.__all__
    functions = [name for name in package.__all__ if not name.isupper()]
    assert all(callable(vars(package)[name]) and vars(package)[name].__doc__ for name in functions)
    assert metrics.MISSED > 10**9
