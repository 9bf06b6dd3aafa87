"""A running server over loopback, on the mini model and an index of stories."""

import io

import pytest
from PIL import Image
from serving_tools import MODEL, running

from sugar_hf import SugarEmbedder, SugarIndex, picturebook
from sugar_hf.serving import Engine


@pytest.fixture(scope="session")
def mini():
    """The mini model, in an embedder."""
    return SugarEmbedder.from_pretrained(picturebook.checkpoint(MODEL))


@pytest.fixture(scope="session")
def rows():
    return list(picturebook.load("test", kind="story", size=24))


@pytest.fixture(scope="session")
def pictures(rows):
    return [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in rows[0]["images"]]


@pytest.fixture(scope="session")
def stories(mini, rows, tmp_path_factory):
    """The folder of an index, which no test may change."""
    folder = tmp_path_factory.mktemp("serving") / "stories.index"
    SugarIndex.build(folder, rows, mini, show_progress=False)
    return folder


@pytest.fixture(scope="session")
def served(mini, stories):
    with running(Engine(mini, SugarIndex.load(stories))) as server:
        yield server
