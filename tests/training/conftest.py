"""The training script as a module."""

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "train_sugar.py"


@pytest.fixture(scope="session")
def train_sugar():
    spec = importlib.util.spec_from_file_location("train_sugar", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_sugar"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["train_sugar"]
