import doctest
import importlib
import pkgutil

import numpy as np
import pytest

from sugar_hf.evaluation import metrics


@pytest.mark.parametrize("name", sorted(found.name for found in pkgutil.iter_modules(metrics.__path__)))
def test_the_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"{metrics.__name__}.{name}")
    result = doctest.testmod(module, extraglobs={"np": np})
    assert result.failed == 0
    assert result.attempted > 0


def test_everything_listed_is_there():
    assert sorted(metrics.__all__) == metrics.__all__
    functions = [name for name in metrics.__all__ if not name.isupper()]
    assert all(callable(vars(metrics)[name]) and vars(metrics)[name].__doc__ for name in functions)
    assert metrics.MISSED > 10**9
