"""What `sugar-hf train` and `examples/train_sugar.py` run."""

import pytest

from sugar_hf.cli import train


@pytest.fixture(scope="session")
def train_sugar():
    return train
