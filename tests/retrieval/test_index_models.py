"""Indexes of a real model: the checkpoint that ships with the package."""

import numpy as np
import pytest
import torch
from PIL import ImageChops
from transformers import pipeline

from sugar_hf import picturebook
from sugar_hf.data import to_sample
from sugar_hf.retrieval import IndexMismatchError, SugarEmbedder, SugarIndex
from sugar_hf.retrieval.store.codecs import CODECS

QUIET = {"show_progress": False}
CHECKPOINT = picturebook.checkpoint("mini-sugar")


@pytest.fixture(scope="module")
def embedder():
    return SugarEmbedder.from_pretrained(CHECKPOINT, device="cpu")


@pytest.fixture(scope="module")
def rows():
    return list(picturebook.load("test", "story", 24))


@pytest.fixture(scope="module")
def vectors(embedder, rows):
    return embedder.encode([to_sample(row) for row in rows], show_progress=False)


@pytest.fixture(scope="module")
def index(tmp_path_factory, embedder, rows):
    return SugarIndex.build(tmp_path_factory.mktemp("i") / "index", rows, embedder, part_documents=10, **QUIET)


def test_documents_find_themselves(index, rows):
    assert len(index) == len(rows)
    found = index.search([to_sample(row) for row in rows], 1)
    assert [hits[0].id for hits in found] == [row["id"] for row in rows]
    assert min(hits[0].score for hits in found) > 0.999


def test_what_comes_back_is_what_went_in(index, rows):
    for row in rows[:3]:
        given, found = to_sample(row), index.get(row["id"]).load()
        assert [type(part) for part in found] == [type(part) for part in given]
        for ours, theirs in zip(found, given, strict=True):
            if isinstance(ours, str):
                assert ours == theirs
            else:
                assert ImageChops.difference(ours, theirs).getbbox() is None


def test_scores_are_cosines(index, rows, vectors):
    query = vectors[:5]
    scores, places = index.search_embeddings(query, len(rows))
    cosines = query @ vectors.T
    np.testing.assert_allclose(scores, np.take_along_axis(cosines, places, axis=1), atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_the_pipeline_searches_an_index(index, rows, embedder):
    retrieve = pipeline("sugar-retrieval", model=embedder.model, processor=embedder.processor, device="cpu")
    beginning = to_sample(rows[4])[:-1]
    results = retrieve({"query": beginning}, candidates=index, top_k=4)
    samples = [to_sample(row) for row in rows]
    in_memory = retrieve({"query": beginning}, candidates=samples, top_k=4)
    assert [result["index"] for result in results] == [result["index"] for result in in_memory]
    for ours, theirs in zip(results, in_memory, strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
        assert ours["candidate"][0] == theirs["candidate"][0]
    hits = index.search({"query": beginning}, 4)
    assert [hit.id for hit in hits] == [rows[result["index"]]["id"] for result in results]


def test_every_slice_end_is_found(tmp_path, rows):
    embedder = SugarEmbedder.from_pretrained(CHECKPOINT, device="cpu", positions="all")
    index = SugarIndex.build(tmp_path / "i", rows[:6], embedder, vectors="float16", **QUIET)
    sample = to_sample(rows[2])
    assert index.info()["rows"] == sum(len(to_sample(row)) for row in rows[:6])
    for slice_ in (0, 2, len(sample) - 1):
        hit = index.search({"query": sample[: slice_ + 1]}, 1)[0]
        assert (hit.id, hit.slice) == (rows[2]["id"], slice_)


def test_all_ways_to_keep_vectors_find_the_same(tmp_path, rows, vectors, embedder):
    for codec in CODECS:
        index = SugarIndex.create(tmp_path / codec, embedder, vectors=codec)
        index.add(rows, vectors)
        found = [hits[0].id for hits in index.search([to_sample(row) for row in rows[:6]], 1)]
        assert found == [row["id"] for row in rows[:6]], codec


def test_another_model_is_refused(index):
    changed = SugarEmbedder.from_pretrained(CHECKPOINT, device="cpu")
    opened = SugarIndex.load(index.folder, changed)
    with torch.no_grad():
        changed.model.retrieval_head.get_parameter(next(iter(dict(changed.model.retrieval_head.named_parameters()))))[
            :
        ] += 0.5
    for refused in (lambda: opened.search("a dog"), lambda: SugarIndex.load(index.folder, changed)):
        with pytest.raises(IndexMismatchError, match=r"the weights of retrieval head differ .*mini-sugar|mini-sugar"):
            refused()
    with pytest.raises(IndexMismatchError, match=r"split_sentences is False and True"):
        SugarIndex.load(index.folder, SugarEmbedder.from_pretrained(CHECKPOINT, device="cpu", split_sentences=True))
    half = index.embedder.dim // 2
    with pytest.raises(IndexMismatchError, match=f"the embedder gives {half}"):
        SugarIndex.load(index.folder, SugarEmbedder.from_pretrained(CHECKPOINT, device="cpu", truncate_dim=half))


def test_another_precision_is_not_another_model(index, rows):
    opened = SugarIndex.load(index.folder, SugarEmbedder.from_pretrained(CHECKPOINT, device="cpu", dtype="bfloat16"))
    assert opened.search({"query": to_sample(rows[3])}, 1)[0].id == rows[3]["id"]


def test_filters_on_what_the_rows_say(index, rows):
    source = rows[0]["source"]
    assert len(index.search("a dog", 50, where={"source": source})) == len(rows)
    assert index.search("a dog", 50, where={"source": "nowhere"}) == []
