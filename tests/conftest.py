"""Tiny models, built once; tests must not change them (`fresh_llava` is for those that do)."""

import gc

import pytest
import torch
from builders import BUILDERS, build_sugar, cached_sugar
from xdist.scheduler import LoadScopeScheduling


def pytest_addoption(parser):
    parser.addoption(
        "--update-backbones",
        action="store_true",
        help="write the rows of docs/backbones.md from what tests/families gives, instead of comparing",
    )
    parser.addoption(
        "--update-bad-input",
        action="store_true",
        help="write the table of docs/bad_input.md from the cases of tests/retrieval, instead of comparing",
    )
    parser.addoption(
        "--update-notebooks",
        action="store_true",
        help="store in the notebooks of examples/notebooks what their cells show",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "families: every type of backbone, run by make test-families")


def pytest_collection_finish():
    """Let the garbage collector, which each training calls, pass by the million objects of imported modules."""
    gc.collect()
    gc.freeze()


class ByFile(LoadScopeScheduling):
    """With several processes, a file's tests share one, as they share fixtures; types of backbones share nothing."""

    def _split_scope(self, nodeid):
        file = nodeid.split("::")[0]
        return nodeid if file.endswith("test_every_type.py") else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


# Families whose processors differ in form: one square image, as many tokens as the size asks for, a prompt that sees
# all of itself. `tests/families` takes more of them every day, and `make test-families` runs all of them everywhere.
EVERY_DAY = {"llava", "paligemma", "qwen3_vl"}
RARELY = [pytest.mark.slow, pytest.mark.families]


@pytest.fixture(params=[pytest.param(name, marks=[] if name in EVERY_DAY else RARELY) for name in sorted(BUILDERS)])
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


@pytest.fixture(scope="module")
def one_thread():
    """As processes that tests start have it: with another number of threads, sums are rounded otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
