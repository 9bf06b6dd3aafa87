"""Puts shared modules on the path, and gives tiny models; tests must not change those that are built once."""

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "training")]

from builders import BUILDERS, build_sugar, cached_sugar


def pytest_addoption(parser):
    parser.addoption(
        "--update-backbones",
        action="store_true",
        help="write the table of docs/backbones.md from what tests/families gives, instead of comparing",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "column(name): the column of docs/backbones.md that a test decides on")


@pytest.fixture(params=sorted(BUILDERS))
def family(request):
    return request.param


@pytest.fixture
def sugar(family):
    """Model and processor of every family in turn."""
    return cached_sugar(family)


@pytest.fixture
def llava():
    return cached_sugar("llava")


@pytest.fixture
def fresh_llava():
    return build_sugar("llava")
