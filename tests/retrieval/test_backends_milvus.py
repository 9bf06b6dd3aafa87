"""The Milvus backend on milvus-lite, against sorting all inner products with NumPy."""

import builtins

import numpy as np
import pytest

from sugar_hf.retrieval.filters import Filter
from sugar_hf.retrieval.store.backends import MilvusBackend, Rows
from sugar_hf.retrieval.store.codecs import CODECS, Codec

DIM, COUNT = 16, 1200


def unit(count, seed=0, dim=DIM):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS, QUERIES = unit(COUNT), unit(9, seed=1)
CODEC = Codec.fit("float32", [VECTORS])
METADATA = [{"year": 1900 + number % 100, "kind": "story" if number % 3 else "map"} for number in range(COUNT)]


def rows_of(first=0, last=COUNT, vectors=VECTORS, step=500, names=None):
    for start in range(first, last, step):
        end = min(start + step, last)
        part = vectors[start - first : end - first] if vectors is not VECTORS else vectors[start:end]
        ids = [f"document-{number}" for number in range(start, end)] if names is None else names[start:end]
        yield Rows(start, part, part, ids, np.full(end - start, 2, np.int32), METADATA[start:end])


def brute_force(top_k, allowed=None):
    scores = QUERIES @ VECTORS.T
    if allowed is not None:
        scores[:, ~allowed] = -np.inf
    best = np.argsort(-scores, axis=1)[:, :top_k]
    return np.take_along_axis(scores, best, 1), best


@pytest.fixture(scope="module", params=["flat", "hnsw"])
def filled(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    backend = MilvusBackend(CODEC, options={"kind": request.param}, folder=folder)
    backend.add(rows_of())
    yield backend
    backend.close()


@pytest.fixture
def empty(tmp_path):
    backend = MilvusBackend(CODEC, folder=tmp_path)
    yield backend
    backend.close()


def recall(found, truth):
    return np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)])


def test_search(filled):
    assert filled.holds_vectors
    assert filled.filters_metadata
    scores, rows = filled.search(QUERIES, 10, row_count=COUNT)
    expected, best = brute_force(10)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert recall(rows, best) >= (1.0 if filled.options.kind == "flat" else 0.95)
    if filled.options.kind == "flat":
        assert np.array_equal(rows, best)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert np.array_equal(filled.search(QUERIES[:1], 10, row_count=COUNT)[1], rows[:1])


def test_filters_and_excluded_rows(filled, subtests):
    for where in [{"kind": "map"}, {"year": {"$gte": 1995}}, {"$not": {"year": {"$lt": 1999}}}]:
        with subtests.test(where=f"{where!r:.60}"):
            where = Filter.parse(where)
            excluded = np.arange(0, 600, 7)
            allowed = where.mask(METADATA) & ~np.isin(np.arange(COUNT), excluded) & (np.arange(COUNT) < 1000)
            _, rows = filled.search(QUERIES, 8, row_count=1000, excluded=excluded, where=where)
            assert allowed[rows].all()
            assert recall(rows, brute_force(8, allowed)[1]) >= (1.0 if filled.options.kind == "flat" else 0.95)


def test_fewer_rows_than_asked_for(filled):
    excluded = np.arange(4, COUNT)
    scores, rows = filled.search(QUERIES, 6, row_count=COUNT, excluded=excluded)
    assert np.array_equal(rows[:, :4], brute_force(4, np.arange(COUNT) < 4)[1])
    assert (rows[:, 4:] == -1).all()
    assert np.isneginf(scores[:, 4:]).all()
    for nothing in (
        filled.search(QUERIES, 2, row_count=COUNT, where=Filter.parse({"kind": "none"})),
        filled.search(QUERIES, 2, row_count=0),
        filled.search(QUERIES, 2, row_count=COUNT, excluded=np.arange(COUNT)),
    ):
        assert (nothing[1] == -1).all()
        assert nothing[1].shape == (len(QUERIES), 2)
    assert filled.search(QUERIES[:0], 2, row_count=COUNT)[1].shape == (0, 2)


def test_an_empty_collection(empty):
    scores, rows = empty.search(QUERIES, 3, row_count=5)
    assert (rows == -1).all()
    assert np.isneginf(scores).all()


def test_removed_and_trimmed_rows_are_gone_after_reopening(tmp_path):
    backend = MilvusBackend(CODEC, folder=tmp_path)
    backend.add(rows_of())
    backend.trim(1000)
    backend.remove(np.arange(0, 1100, 2))
    backend.remove(np.array([], dtype=np.int64))
    left = (np.arange(COUNT) < 1000) & (np.arange(COUNT) % 2 == 1)
    for _ in range(2):
        _, rows = backend.search(QUERIES, 5, row_count=COUNT)
        assert left[rows].all()
        assert recall(rows, brute_force(5, left)[1]) >= 0.95
        backend.close()
        backend = MilvusBackend(CODEC, folder=tmp_path)
    other = unit(100, seed=4)
    backend.add(rows_of(1000, 1100, vectors=other))  # their numbers are given to other rows
    _, rows = backend.search(other[:3], 1, row_count=1100)
    assert rows[:, 0].tolist() == [1000, 1001, 1002]
    backend.close()


def test_rows_written_twice_are_there_once(empty):
    empty.add(rows_of(0, 20))
    empty.add(rows_of(10, 30))
    _, rows = empty.search(QUERIES[:1], 60, row_count=COUNT)
    assert sorted(rows[0][rows[0] >= 0].tolist()) == list(range(30))


def test_a_row_has_its_document_and_slice(empty):
    names = ['"; drop', "back\\slash", "é 雪\n", "x" * 512]
    empty.add(rows_of(0, 4, names=names))
    found = empty._client.query("sugar", filter="row >= 0", output_fields=["row", "document", "slice", "metadata"])
    found.sort(key=lambda row: row["row"])
    assert [row["document"] for row in found] == names
    assert [row["slice"] for row in found] == [2] * 4
    assert found[1]["metadata"] == {"number": {"year": 1901}, "text": {"kind": "story"}}


def test_collections_of_one_folder_are_apart_and_can_be_dropped(tmp_path):
    first, second = (
        MilvusBackend(CODEC, options={"collection": name}, folder=tmp_path) for name in ("first", "second")
    )
    first.add(rows_of(0, 10))
    assert (second.search(QUERIES, 2, row_count=COUNT)[1] == -1).all()
    second.add(rows_of(0, 5))
    first.drop()
    assert (second.search(QUERIES, 2, row_count=COUNT)[1] >= 0).all()
    first.close()
    again = MilvusBackend(CODEC, options={"collection": "first"}, folder=tmp_path)
    assert (again.search(QUERIES, 2, row_count=COUNT)[1] == -1).all()
    again.close()


def test_a_collection_of_other_vectors(tmp_path):
    MilvusBackend(CODEC, folder=tmp_path).close()
    with pytest.raises(ValueError, match=r"vectors of 16 dimensions instead of 17. Give another `collection`"):
        MilvusBackend(Codec.fit("float32", [unit(2, dim=17)]), folder=tmp_path)


def test_the_token_is_never_written_or_shown(tmp_path, monkeypatch):
    secret = "s3cret-token"
    monkeypatch.setenv("MILVUS_TOKEN", "s3cret-token-of-the-environment")
    options = {"token": secret, "collection": "quiet"}
    backend = MilvusBackend(CODEC, options=options, folder=tmp_path)
    backend.add(rows_of(0, 3))
    assert "s3cret" not in repr(backend.options)
    assert backend.save(tmp_path) == []
    backend.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]


def test_wrong_calls(empty, tmp_path):
    for call, message in (
        (lambda: empty.search(unit(2, dim=17), 3, row_count=5), r"shape \(q, 16\).* got \(2, 17\)"),
        (lambda: empty.search(QUERIES, 0, row_count=5), "top_k=0"),
        (lambda: empty.search(QUERIES, 1, row_count=5, allowed=np.ones(5, bool)), "`where` and `excluded`"),
        (lambda: empty.add(rows_of(0, 2, vectors=unit(2, dim=17))), r"\(n, 16\); got \(2, 17\)"),
        (lambda: MilvusBackend(CODEC), "a uri, or a folder"),
        (lambda: MilvusBackend.check_options({"host": "x"}, "float32"), "Unknown option 'host' of the Milvus backend"),
        (lambda: MilvusBackend.check_options({"kind": "ivf"}, "float32"), "kind='ivf'"),
        *(
            (
                lambda name=name: MilvusBackend(Codec.fit(name, [VECTORS]), folder=tmp_path),
                name,
            )
            for name in CODECS[1:]
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("missing", ["pymilvus", "milvus_lite"])
def test_without_the_packages(missing, monkeypatch, tmp_path):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=rf'needs {missing}: pip install "sugar-hf\[milvus\]"'):
        MilvusBackend(CODEC, folder=tmp_path)
