"""`sugar-hf explain` on an index of stories."""

import json

import pytest

from sugar_hf import picturebook
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.retrieval.index import SugarIndex

QUERY = "a dog is in the garden."
MODEL = picturebook.checkpoint("mini-sugar")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    embedder = SugarEmbedder.from_pretrained(MODEL, positions="all")
    stories = picturebook.load("test", "story", 20)
    folder = tmp_path_factory.mktemp("explain") / "stories.index"
    return SugarIndex.build(folder, stories, embedder, show_progress=False)


def test_the_best_document_and_the_next(cli, index):
    for rank, hit in enumerate(index.search(QUERY, 2), start=1):
        found = cli("explain", index.folder, QUERY, "--rank", rank, "--json")
        assert found.code == 0, found.err
        values = json.loads(found.out)
        assert values["id"] == hit.id
        assert values["score"] == pytest.approx(hit.score, abs=1e-4)
        assert len(values["document"]) == hit.slice + 1
        assert values["query"] == [{"type": "text", "text": QUERY}]
        assert values["teacher"] is None


def test_for_people_with_pictures_and_teachers(cli, index, tmp_path):
    files = tmp_path / "model.png", tmp_path / "teachers.svg"
    command = ["explain", index.folder, "a dog.", "A cat.", "--id", "test-story-0-4", "--embeddings", "prefix"]
    found = cli(*command, "--teachers", "mini", "--plot", files[0], "--plot-teachers", files[1])
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0] == "document test-story-0-4"
    assert any(line.startswith("model, prefix embeddings; score ") for line in lines)
    assert any(line.startswith("teachers; label ") for line in lines)
    assert files[0].read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in files[1].read_text()
    assert [f"drawn: {file}" in found.err for file in files] == [True, True]
    found = cli(*command, "--teachers", picturebook.checkpoint("mini-sugar"))  # one encoder for all slices
    assert any(line.startswith("teachers; label ") for line in found.out.splitlines()), found.err


def test_what_is_refused(cli, index, subtests):
    for options, code, message in [
        (["--id", "nobody"], 1, "no document of id 'nobody'"),
        (["--rank", "99"], 1, "the search found 20 documents, there is none of rank 99"),
        (["--plot", "a.jpg"], 2, "a picture is written as .png or .svg"),
        (["--teachers", "a,b"], 2, "give mini, paper, or three names"),
        (["--plot-teachers", "a.png"], 2, "say which teachers with --teachers"),
        (["--embeddings", "word"], 2, "'word' is not one of"),
    ]:
        with subtests.test(code=code, message=message):
            found = cli("explain", index.folder, QUERY, *options)
            assert (found.code, found.out) == (code, "")
            assert message in " ".join(found.err.replace("│", " ").split())
