"""What `sugar-hf train` and `examples/train_sugar.py` run."""

import pytest

from sugar_cli import train_command as train


@pytest.fixture(scope="session")
def train_sugar():
    return train
