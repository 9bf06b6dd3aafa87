"""Rows that are nearly equal, as those of documents that begin alike: a graph finds its way among them."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_backends_faiss import DIM, recall, rows_of, unit

from sugar_hf.retrieval import DamagedIndexError
from sugar_hf.retrieval.store.backends import FaissBackend
from sugar_hf.retrieval.store.backends.equal_rows import NEAR_SQUARE, EqualRows, first_equal
from sugar_hf.retrieval.store.codecs import CODECS, Codec

GRAPH = {"kind": "hnsw", "m": 8, "ef_construction": 60, "ef_search": 32}
COUNT = 4000


def draw(noise=1e-6):
    """Vectors, the later half of which are five, over and over; they come in any order. And queries near others."""
    generator = np.random.default_rng(5)
    centres = unit(30, seed=6)
    some = centres[generator.integers(0, 30, COUNT + 200)] + 0.5 * unit(COUNT + 200, seed=7)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    vectors, queries = some[:COUNT], some[COUNT:]
    equal = generator.permutation(COUNT)[: COUNT // 2]
    vectors[equal] = vectors[equal[:5]][np.arange(len(equal)) % 5]
    vectors[equal] += noise * generator.standard_normal((len(equal), DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors, queries


def make(name="float32", vectors=None, options=GRAPH, folder=None, step=700):
    codec = Codec.fit(name, [draw()[0]])
    backend = FaissBackend(codec, options=options, folder=folder)
    if vectors is not None:
        backend.add(rows_of(codec, vectors, step=step))
    return backend, codec


def exact(codec, vectors, queries, top_k=10, allowed=None):
    scores = queries @ codec.decode(codec.encode(vectors)).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    return scores, -np.sort(-scores, axis=1)[:, top_k - 1]


def share(found, truth):
    """The share of rows that are among the best, whichever of equal ones they are."""
    scores, least = truth
    rows = found[1]
    return np.mean([(scores[i, row[row >= 0]] >= least[i] - 1e-5).sum() / len(row) for i, row in enumerate(rows)])


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-5])
@pytest.mark.parametrize("name", CODECS[:3])
def test_a_graph_finds_its_way_among_equal_rows(name, noise, monkeypatch):
    vectors, queries = draw(noise)
    backend, codec = make(name, vectors)
    asked, compare = [], backend._compare_all
    monkeypatch.setattr(backend, "_compare_all", lambda some, *rest: asked.append(len(some)) or compare(some, *rest))
    assert share(backend.search(queries, 10, row_count=COUNT), exact(codec, vectors, queries)) > 0.995
    assert sum(asked) < len(queries) / 4  # it is the graph that was searched


def test_scores_are_exact_and_equal_rows_in_order():
    vectors, queries = draw(0)
    backend, _ = make("float32", vectors)
    flat, _ = make("float32", vectors, {"kind": "flat"})
    near = vectors[:50] + 0.01 * unit(50, seed=8)
    for some in (queries, near, vectors[:50]):
        scores, rows = backend.search(some, 20, row_count=COUNT)
        expected = flat.search(some, 20, row_count=COUNT)[0]
        assert (np.abs(scores - expected) < 1e-5).mean() > 0.99
        np.testing.assert_allclose(scores, np.take_along_axis(some @ vectors.T, rows, 1), atol=1e-6)
        assert all(len(set(line)) == 20 for line in rows.tolist())


def test_allowed_and_uncommitted_rows():
    vectors, queries = draw()
    backend, codec = make("float32", vectors)
    for seed, part in enumerate((0.95, 0.8)):
        allowed = np.random.default_rng(seed).random(COUNT) < part
        found = backend.search(queries, 5, row_count=COUNT, allowed=allowed)
        assert allowed[found[1]].all()
        assert share(found, exact(codec, vectors, queries, 5, allowed)) > 0.99
    found = backend.search(queries, 5, row_count=3500)
    assert found[1].max() < 3500
    assert share(found, exact(codec, vectors[:3500], queries, 5)) > 0.99


@pytest.mark.parametrize("name", ["float32", "int8"])
def test_a_saved_graph_with_lists_goes_on(name, tmp_path):
    vectors, queries = draw()
    backend, codec = make(name, vectors[:3000])
    assert backend.save(tmp_path) == ["distinct.faiss", "equal.safetensors"]
    loaded, _ = make(name, vectors, folder=tmp_path)
    assert len(loaded) == COUNT
    for count in (3000, COUNT):
        found = loaded.search(queries, 10, row_count=count)
        assert share(found, exact(codec, vectors[:count], queries)) > 0.99
    again, _ = make(name, vectors[:3000], folder=tmp_path)
    for one, other in zip(
        backend.search(queries, 10, row_count=3000), again.search(queries, 10, row_count=3000), strict=True
    ):
        assert np.array_equal(one, other)
    with pytest.raises(ValueError, match="saved graph is of 3000 rows, but 0 are there"):
        make(name, folder=tmp_path)[0].search(queries, 5, row_count=0)


def test_rows_are_dropped_and_come_again():
    vectors, queries = draw()
    backend, codec = make("float32", vectors)
    for count in (3999, 3500, 300):
        backend.trim(count)
        assert len(backend) == count
        found = backend.search(queries, 5, row_count=count)
        assert share(found, exact(codec, vectors[:count], queries, 5)) > 0.99
    backend.add(rows_of(codec, vectors[300:], first=300))
    assert share(backend.search(queries, 5, row_count=COUNT), exact(codec, vectors, queries, 5)) > 0.99


def test_a_graph_of_all_rows_is_read_as_before(tmp_path, monkeypatch):
    """As an older sugar-hf wrote it."""
    vectors, queries = draw()
    with monkeypatch.context() as patch:
        patch.setattr("sugar_hf.retrieval.store.backends.faiss_backend.NEAR_SQUARE", -1)
        patch.setattr("sugar_hf.retrieval.store.backends.faiss_backend.first_equal", lambda some: np.arange(len(some)))
        old, codec = make("float32", vectors[:3000])
        assert old.save(tmp_path) == ["graph.faiss"]
    loaded, _ = make("float32", vectors, folder=tmp_path)
    found = loaded.search(queries, 10, row_count=COUNT)
    assert share(found, exact(codec, vectors, queries)) > 0.8
    assert recall(found[1], loaded.search(queries, 10, row_count=COUNT)[1]) == 1


def test_lists_that_lead_nowhere(tmp_path, subtests):
    vectors, _ = draw()
    make("float32", vectors)[0].save(tmp_path)
    path = tmp_path / "equal.safetensors"
    whole = load_file(path)
    for kind, change in {
        "a row that there is not": lambda rows, nodes: (np.append(rows[:-1], COUNT), nodes),
        "a row below 0": lambda rows, nodes: (np.append(-1, rows[1:]), nodes),
        "rows twice": lambda rows, nodes: (np.append(rows[0], rows[:-1]), nodes),
        "a node that there is not": lambda rows, nodes: (rows, np.append(nodes[:-1], COUNT)),
        "a node below 0": lambda rows, nodes: (rows, np.append(nodes[:-1], -1)),
        "fewer nodes": lambda rows, nodes: (rows, nodes[:-1]),
        "no rows": lambda rows, nodes: (rows[:0], nodes[:0]),
        "another type": lambda rows, nodes: (rows.astype(np.int32), nodes),
    }.items():
        with subtests.test(kind=kind):
            save_file(dict(zip(("rows", "nodes"), change(**whole), strict=True)), path)
            with pytest.raises(DamagedIndexError, match=r"equal\.safetensors"):
                make("float32", folder=tmp_path)
    path.unlink()
    with pytest.raises(DamagedIndexError, match=r"equal\.safetensors is missing"):
        make("float32", folder=tmp_path)


def test_nearly_equal_vectors_are_grouped():
    vectors = unit(500)
    assert np.array_equal(first_equal(vectors), np.arange(500))
    twice = np.concatenate([vectors, vectors[::-1]])
    assert np.array_equal(first_equal(twice), np.concatenate([np.arange(500), np.arange(500)[::-1]]))
    chain = np.zeros((40, DIM), np.float32)
    chain[:, 0] = np.arange(40) * 0.9 * NEAR_SQUARE**0.5  # each is near to the next, and the first far from the last
    first = first_equal(chain)
    assert (np.square(chain - chain[first]).sum(1) <= NEAR_SQUARE).all()
    assert (first[first] == first).all()
    assert first_equal(vectors[:0]).shape == (0,)


def test_lists_of_nodes():
    rows = EqualRows(None, np.array([3, 5, 8, 9]), np.array([1, 0, 1, 4]))
    found, at = rows.of(np.array([4, 2, 1]))
    assert (found.tolist(), at.tolist()) == ([3, 0, 2], [0, 2, 2])
    assert rows.of(np.zeros(0, np.int64))[0].shape == (0,)
