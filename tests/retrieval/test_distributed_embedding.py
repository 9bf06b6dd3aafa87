"""Several processes embed one stream of documents into one index: the result is that of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sugar_hf import picturebook
from sugar_hf.data import SkippedRowsWarning, read_documents
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.retrieval.index import SugarIndex

WORKER = Path(__file__).with_name("embedding_worker.py")
MODEL = picturebook.checkpoint("mini-sugar")


def content(opened):
    """Everything an index holds, in order."""
    documents = [(document.id, document.digest) for document in opened]
    embeddings = np.random.default_rng(0).normal(size=(5, opened.info()["dim"])).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return documents, *opened.search_embeddings(embeddings, len(opened))


def assert_same(one, other):
    for ours, theirs in zip(content(one), content(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


BUILD = ["picturebook:test/words?size=21", "picturebook:test/story?size=12"]
OPTIONS = ["--model", MODEL, "--part-documents", "4", "--batch-size", "3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What two processes made and said, and the files that they were given."""
    folder = tmp_path_factory.mktemp("distributed")
    more = [{"id": f"more-{i}", "text": f"a dog number {i}."} for i in range(14)]
    more[6] = {"id": "broken", "image": "broken.png"}
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in more))
    target = str(folder / "two.index")
    commands = [
        ["index", "build", target, *BUILD, "--json", *OPTIONS],
        ["index", "add", target, str(folder / "more.jsonl"), "--on-error", "skip", "--json", *OPTIONS],
        ["index", "add", target, str(folder / "more.jsonl"), *OPTIONS],
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(WORKER), str(folder / "commands.json"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(runs, one_thread):
    """The same, by one process."""
    folder, _ = runs
    embedder = SugarEmbedder.from_pretrained(MODEL, batch_size=3)
    built = [*picturebook.load("test", "words", 21), *picturebook.load("test", "story", 12)]
    made = SugarIndex.build(folder / "one.index", built, embedder, part_documents=4, show_progress=False)
    with pytest.warns(SkippedRowsWarning, match="sample 'broken'"):
        report = made.add(read_documents(folder / "more.jsonl"), on_error="skip", part_documents=4)
    assert report.added == 13
    return made


def test_the_result_is_that_of_one_process(runs, alone):
    folder, _ = runs
    assert_same(SugarIndex.load(folder / "two.index"), alone)


def test_each_process_embeds_its_parts_and_nothing_twice(runs):
    _, (first, second) = runs
    for command in (0, 1):
        shares = [set(ends[command]["embedded"]) for ends in (first, second)]
        assert abs(len(shares[0]) - len(shares[1])) <= 4
        assert not shares[0] & shares[1]
    assert len(first[0]["embedded"]) + len(second[0]["embedded"]) == 33
    assert first[1]["embedded"][:4] == ["more-0", "more-1", "more-2", "more-3"]


def test_one_process_speaks_for_all(runs):
    _, (first, second) = runs
    assert [ends["code"] for ends in first] == [0, 0, 1]
    assert [ends["code"] for ends in second] == [0, 0, 1]
    assert json.loads(first[0]["out"])["documents"] == 33
    assert json.loads(first[1]["out"])["added"] == 13
    assert json.loads(first[1]["out"])["skipped"] == 1
    assert "broken" in first[1]["err"]
    assert [ends["out"] for ends in second] == ["", "", ""]


def test_an_error_in_one_process_ends_all_and_changes_nothing(runs, alone):
    folder, (first, second) = runs
    for ends in (first, second):
        assert "more-0" in ends[2]["err"]
        assert "Traceback" not in ends[2]["err"]
    assert len(SugarIndex.load(folder / "two.index")) == len(alone) == 46
