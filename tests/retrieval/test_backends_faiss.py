"""The FAISS backend against sorting all inner products with NumPy."""

import numpy as np
import pytest

from sugar_hf.retrieval.filters import Filter
from sugar_hf.retrieval.store.backends import FaissBackend, Rows
from sugar_hf.retrieval.store.codecs import CODECS, Codec

DIM, COUNT = 24, 1500
#: A small graph. It compares about 2 * 8 * 32 = 512 rows.
GRAPH = {"kind": "hnsw", "m": 8, "ef_construction": 60, "ef_search": 32}
#: 24 signs tell little of a random vector: many are scored.
KINDS = [(name, {"rescore": 80}) for name in CODECS] + [(name, GRAPH) for name in CODECS[:3]]


def unit(count, seed=0, dim=DIM):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS, QUERIES = unit(COUNT), unit(40, seed=1)


def rows_of(codec, vectors=VECTORS, first=0, step=400):
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        names = [str(first + start + number) for number in range(len(part))]
        yield Rows(first + start, codec.encode(part), part, names, np.zeros(len(part), np.int32), [{}] * len(part))


def make(name="float32", options=None, vectors=VECTORS, folder=None):
    codec = Codec.fit(name, [VECTORS])
    backend = FaissBackend(codec, options=options, folder=folder)
    backend.add(rows_of(codec, vectors))
    return backend, codec


def brute_force(codec, top_k, allowed=None, vectors=VECTORS, queries=QUERIES):
    """Scores and rows of the best, by the vectors as they are stored."""
    scores = queries.astype(np.float64) @ codec.decode(codec.encode(vectors)).astype(np.float64).T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, best, 1), best


def recall(found, truth):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)])


def test_flat_search_is_exact_over_the_codes(subtests):
    for queries in [QUERIES, QUERIES[:1]]:
        for name in CODECS[:3]:
            with subtests.test(name=name, queries=f"{queries!r:.60}"):
                backend, codec = make(name)
                scores, rows = backend.search(queries, 10, row_count=COUNT)
                expected, best = brute_force(codec, 10, queries=queries)
                assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
                assert np.array_equal(rows, best)
                np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_stored_vectors_find_what_the_vectors_themselves_do(subtests):
    for name, least in [("float32", 1.0), ("float16", 0.99), ("int8", 0.97), ("binary", 0.95)]:
        with subtests.test(name=name, least=least):
            backend, _ = make(name, {"rescore": 80} if name == "binary" else None)
            truth = brute_force(Codec.fit("float32", [VECTORS]), 10)[1]
            assert recall(backend.search(QUERIES, 10, row_count=COUNT)[1], truth) >= least


def test_the_graph_finds_most_and_scores_it_right(subtests):
    for name in CODECS[:3]:
        with subtests.test(name=name):
            backend, codec = make(name, GRAPH)
            scores, rows = backend.search(QUERIES, 10, row_count=COUNT)
            exact, best = brute_force(codec, 10)
            assert recall(rows, best) >= 0.85
            assert recall(rows, best) < 1  # it is the graph that was searched
            everything = QUERIES @ codec.decode(codec.encode(VECTORS)).T
            np.testing.assert_allclose(scores, np.take_along_axis(everything, rows, 1), atol=1e-6)
            assert (np.diff(scores, axis=1) <= 0).all()
            np.testing.assert_allclose(scores[:, 0].mean(), exact[:, 0].mean(), atol=0.02)


def test_a_graph_that_would_compare_all_rows_is_not_made():
    backend, codec = make("float32", {"kind": "hnsw"})  # 2 * 32 * 128 = 8192
    assert np.array_equal(backend.search(QUERIES, 10, row_count=COUNT)[1], brute_force(codec, 10)[1])


def test_binary_scores_by_int8_codes_or_by_equal_signs():
    backend, codec = make("binary", {"rescore": COUNT})
    scores, rows = backend.search(QUERIES, 5, row_count=COUNT)
    expected, best = brute_force(codec, 5)
    assert np.array_equal(rows, best)  # all rows were scored
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    signs, _ = make("binary", {"rescore": 0})
    scores, rows = signs.search(QUERIES, 5, row_count=COUNT)
    differing = ((QUERIES > 0)[:, None] != (VECTORS > 0)[rows]).mean(2)
    np.testing.assert_allclose(scores, 1 - 2 * differing, atol=1e-6)
    truth = brute_force(Codec.fit("float32", [VECTORS]), 5)[1]
    few, _ = make("binary", {"rescore": 10})
    assert recall(few.search(QUERIES, 5, row_count=COUNT)[1], truth) > recall(rows, truth) + 0.2


def test_allowed_rows(subtests):
    """Recall does not fall with the share of the rows that are allowed; at 0.9 the graph is searched, then no more."""
    for share in [0.9, 0.5, 0.1, 0.004]:
        for name, options in KINDS:
            with subtests.test(name=name, options=f"{options!r:.60}", share=share):
                backend, codec = make(name, options)
                allowed = np.random.default_rng(2).random(COUNT) < share
                _, rows = backend.search(QUERIES, 5, row_count=COUNT, allowed=allowed)
                assert allowed[rows[rows >= 0]].all()
                assert rows.shape == (len(QUERIES), 5)
                exact = brute_force(codec, min(5, allowed.sum()), allowed)[1]
                if name == "binary":
                    assert recall(rows, exact) >= 0.9
                elif options is GRAPH and share == 0.9:
                    assert 0.85 <= recall(rows, exact) < 1
                else:
                    assert np.array_equal(rows[:, : exact.shape[1]], exact)


def test_fewer_rows_than_asked_for(subtests):
    for name, options in KINDS:
        with subtests.test(name=name, options=f"{options!r:.60}"):
            backend, codec = make(name, options)
            allowed = np.zeros(COUNT, dtype=bool)
            allowed[[3, 700, 1499]] = True
            scores, rows = backend.search(QUERIES, 6, row_count=COUNT, allowed=allowed)
            assert np.array_equal(rows[:, :3], brute_force(codec, 3, allowed)[1])
            assert (rows[:, 3:] == -1).all()
            assert np.isneginf(scores[:, 3:]).all()
            for nothing in (
                backend.search(QUERIES, 2, row_count=COUNT, allowed=np.zeros(COUNT, dtype=bool)),
                backend.search(QUERIES, 2, row_count=0),
                make(name, options, vectors=VECTORS[:0])[0].search(QUERIES, 2, row_count=0),
            ):
                assert (nothing[1] == -1).all()
                assert nothing[1].shape == (len(QUERIES), 2)
            assert backend.search(QUERIES[:0], 2, row_count=COUNT)[1].shape == (0, 2)


def test_rows_of_an_unfinished_write_do_not_exist(subtests):
    for name, options in KINDS:
        with subtests.test(name=name, options=f"{options!r:.60}"):
            backend, codec = make(name, options)
            _, rows = backend.search(QUERIES, 5, row_count=1001)
            assert rows.max() <= 1000
            excluded = np.array([0, 5, 6, 1000])
            _, rows = backend.search(QUERIES, 5, row_count=1001, excluded=excluded)
            assert not np.isin(rows, excluded).any()
            # the rest of them dropped, other rows take their numbers
            backend.trim(1001)
            assert len(backend) == 1001
            backend.trim(2000)
            other = unit(300, seed=9)
            backend.add(rows_of(codec, other, first=1001))
            _, rows = backend.search(QUERIES, 5, row_count=1301)
            truth = brute_force(codec, 5, vectors=np.concatenate([VECTORS[:1001], other]))[1]
            assert recall(rows, truth) >= (0.85 if options is GRAPH else 0.9 if name == "binary" else 1.0)


@pytest.mark.parametrize("name", CODECS[:3])
def test_a_saved_graph_goes_on(name, tmp_path):
    backend, codec = make(name, GRAPH, vectors=VECTORS[:1100])
    assert backend.save(tmp_path) == ["graph.faiss"]
    size = (tmp_path / "graph.faiss").stat().st_size
    assert size < 1100 * (2 * 2 * 8 * 4 + 40)  # links alone, no vectors
    loaded = FaissBackend(codec, options=GRAPH, folder=tmp_path)
    with pytest.raises(ValueError, match="saved graph is of 1100 rows, but 0 are there"):
        loaded.search(QUERIES, 5, row_count=0)
    loaded.add(rows_of(codec, VECTORS, step=300))  # the graph ends in the middle of a block
    assert len(loaded) == COUNT
    before, same = backend.search(QUERIES, 5, row_count=1100), loaded.search(QUERIES, 5, row_count=1100)
    assert recall(same[1], before[1]) > 0.85
    assert recall(loaded.search(QUERIES, 5, row_count=COUNT)[1], brute_force(codec, 5)[1]) >= 0.85
    reloaded = FaissBackend(codec, options=GRAPH, folder=tmp_path)
    reloaded.add(rows_of(codec, VECTORS[:1100]))
    again = reloaded.search(QUERIES, 5, row_count=1100)
    assert np.array_equal(again[1], before[1])
    assert np.array_equal(again[0], before[0])


def test_flat_and_small_indexes_save_nothing(tmp_path):
    assert make()[0].save(tmp_path) == []
    assert make("float32", GRAPH, vectors=VECTORS[:100])[0].save(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_graph_of_other_vectors(tmp_path):
    make("float32", GRAPH)[0].save(tmp_path)
    codec = Codec.fit("float32", [unit(2, dim=8)])
    with pytest.raises(ValueError, match="not a graph of vectors of 8 dimensions"):
        FaissBackend(codec, options=GRAPH, folder=tmp_path)


def test_added_bit_by_bit_is_added_at_once():
    at_once, codec = make("int8", GRAPH)
    backend = FaissBackend(codec, options=GRAPH)
    for first in range(0, COUNT, 250):
        backend.add(rows_of(codec, VECTORS[first : first + 250], first=first, step=70))
    assert recall(backend.search(QUERIES, 5, row_count=COUNT)[1], brute_force(codec, 5)[1]) >= 0.85
    assert len(backend) == len(at_once) == COUNT
    backend.remove(np.array([1, 2]))
    assert len(backend) == COUNT


@pytest.mark.parametrize("noise", [0, 1e-6, 1e-4, 1e-3])
@pytest.mark.parametrize("groups", [1, 12])
def test_rows_that_are_nearly_equal_are_found(noise, groups):
    """As those of documents that begin with the same few sentences; exact search is what decides between them."""
    draw = np.random.default_rng(3)
    vectors = np.concatenate([VECTORS, np.tile(unit(groups, seed=4), (900 // groups, 1))])
    vectors[COUNT:] += noise * draw.normal(size=vectors[COUNT:].shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[draw.permutation(len(vectors))[:100]] + 0.02 * draw.normal(size=(100, DIM)).astype(np.float32)
    found = {}
    for kind in ("flat", "hnsw"):
        options = {"kind": kind, "m": 16, "ef_search": 64}
        backend, _ = make("float32", options, vectors=vectors)
        found[kind] = backend.search(queries, 10, row_count=len(vectors))[1]
    scores = {kind: (queries[:, None] * vectors[rows]).sum(2) for kind, rows in found.items()}
    # which of equal rows is found is chance, in exact search as well
    assert (scores["hnsw"] >= scores["flat"].min(1, keepdims=True) - 1e-6).mean() > 0.97


def test_wrong_calls():
    backend, codec = make()
    for call, message in (
        (lambda: backend.search(unit(2, dim=25), 3, row_count=COUNT), r"shape \(q, 24\).* got \(2, 25\)"),
        (lambda: backend.search(QUERIES[0], 3, row_count=COUNT), r"got \(24,\)"),
        (lambda: backend.search(QUERIES, 0, row_count=COUNT), "top_k=0: give 1 or more"),
        (lambda: backend.search(QUERIES, 3, row_count=COUNT + 1), "1501 rows are asked for, 1500 are there"),
        (lambda: backend.search(QUERIES * np.nan, 3, row_count=COUNT), "Query 0 has NaN"),
        (lambda: backend.search(QUERIES, 3, row_count=9, allowed=np.ones(8, bool)), r"allowed must .* \(9,\)"),
        (lambda: backend.search(QUERIES, 3, row_count=9, where=Filter.parse({"a": 1})), "knows no metadata"),
        (lambda: backend.add(rows_of(codec, first=7)), "Row 7 does not follow: 1500 rows are there"),
        (lambda: backend.add(rows_of(Codec.fit("int8", [VECTORS]), first=COUNT)), r"type float32; got .* uint8"),
        (lambda: make(options={"kind": "ivf"}), "kind='ivf'"),
        (lambda: make(options={"nprobe": 3}), "Unknown option 'nprobe'"),
        (lambda: make(options={"m": 1}), "m=1: give a whole number of 2"),
        (lambda: make("binary", {"kind": "hnsw"}), "binary is searched flat"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert len(backend) == COUNT
