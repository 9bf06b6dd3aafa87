"""Tiny models, built once; tests must not change them (`fresh_llava` is for those that do)."""

import pytest
from builders import BUILDERS, build_sugar, cached_sugar


def pytest_addoption(parser):
    parser.addoption(
        "--update-backbones",
        action="store_true",
        help="write the table of docs/backbones.md from what tests/families gives, instead of comparing",
    )
    parser.addoption(
        "--update-bad-input",
        action="store_true",
        help="write the table of docs/bad_input.md from the cases of tests/retrieval, instead of comparing",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "column(name): the column of docs/backbones.md that a test decides on")


def pytest_itemcollected(item):
    """Keep what shares fixtures in one process when there are several; a table is made of all tests of families."""
    group = "families" if "families" in item.path.parts else item.path.name
    item.add_marker(pytest.mark.xdist_group(group))


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
