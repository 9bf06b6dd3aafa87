"""How an index is searched, with embeddings of its own or from elsewhere."""

import numpy as np
import pytest
from index_tools import DIM, FakeEmbedder, make, texts, unit, vector

from sugar_hf.retrieval import IndexMismatchError, SugarIndex


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def index(tmp_path, embedder):
    return SugarIndex.build(tmp_path / "index", map(make, range(30)), embedder, part_documents=8, show_progress=False)


def ids(hits):
    return [hit.id for hit in hits]


# --- search


def test_filters(index):
    found = index.search("document 7, third", 30, where={"number": {"$in": [7, 9, 40]}})
    assert ids(found)[0] == "d7"
    assert set(ids(found)) == {"d7", "d9"}
    _, places = index.search_embeddings(vector("x")[None], 3, where={"number": 8})
    assert places.tolist() == [[8, -1, -1]]
    assert index.search("a", where={"nothing": 1}) == []
    with pytest.raises(ValueError, match="unknown operator"):
        index.search("a", where={"number": {"$near": 3}})


def test_places_are_those_of_the_documents(index):
    index.delete(["d0", "d5"])
    documents = index.documents
    assert len(documents) == 28
    assert documents[0] == texts(make(1))
    assert documents[-1] == texts(make(29))
    _, places = index.search_embeddings(np.stack([vector(f"document {i}, third") for i in (1, 6, 29)]), 1)
    assert [documents[place] for place in places[:, 0]] == [texts(make(i)) for i in (1, 6, 29)]
    with pytest.raises(IndexError):
        documents[28]


def test_every_slice_is_found_and_a_document_once(tmp_path):
    embedder = FakeEmbedder(positions="all")
    index = SugarIndex.build(tmp_path / "i", map(make, range(25)), embedder, part_documents=10, show_progress=False)
    assert (len(index), index.info()["rows"]) == (25, 75)
    for slice_, text in enumerate(texts(make(7))):
        hits = index.search(text, 25)
        assert (hits[0].id, hits[0].slice) == ("d7", slice_)
        assert len(set(ids(hits))) == 25
        query = vector(text)
        best = {f"d{i}": max(float(vector(other) @ query) for other in texts(make(i))) for i in range(25)}
        assert ids(hits) == sorted(best, key=best.get, reverse=True)
        np.testing.assert_allclose([hit.score for hit in hits], [best[name] for name in ids(hits)], atol=1e-5)
        assert ids(index.search(text, 3)) == ids(hits)[:3]
    index.delete("d7")
    index.compact()
    hits = index.search("document 8, second", 40)
    assert (hits[0].id, hits[0].slice, len(hits)) == ("d8", 1, 24)


def test_a_long_document_does_not_hide_the_others(tmp_path):
    index = SugarIndex.create(tmp_path / "i", dim=DIM, positions="all")
    near = np.stack([vector("q") + 0.001 * vector(str(i)) for i in range(300)])
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    others = [vector(f"o{i}")[None] for i in range(5)]
    index.add([{"id": name, "text": "t"} for name in ("long", *"abcde")], [near, *others])
    scores, places = index.search_embeddings(vector("q")[None], 6)
    assert sorted(places[0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert places[0, 0] == 0
    assert (np.diff(scores[0]) <= 0).all()


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_has_to_ask_for_something(index, top_k):
    with pytest.raises(ValueError, match="at least one"):
        index.search("a", top_k)


def test_bad_embeddings_are_refused(index):
    with pytest.raises(IndexMismatchError, match=r"\(q, 16\), got \(1, 8\)"):
        index.search_embeddings(np.ones((1, 8), np.float32), 1)
    with pytest.raises(ValueError, match="NaN"):
        index.search_embeddings(np.full((1, DIM), np.nan, np.float32), 1)


# --- vectors of one's own


def test_vectors_of_ones_own(tmp_path):
    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    assert index.add(map(make, range(5)), unit(5)).added == 5
    report = index.add(map(make, (3, 5)), [unit(9)[8], unit(8)[7]], on_duplicate="skip")
    assert (report.added, report.duplicates) == (1, 1)
    _, places = index.search_embeddings(unit(8)[7:], 1)
    assert places.tolist() == [[5]]
    with pytest.raises(ValueError, match="without a model"):
        index.search("a")
    with pytest.raises(ValueError, match="without a model"):
        index.add([make(9)])


def test_bad_vectors_are_refused(tmp_path, subtests):
    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    for vectors, error, message in [
        (np.ones((2, 8), np.float32), IndexMismatchError, "'d0': expected vectors of 16 dimensions"),
        (2 * unit(2), ValueError, "'d0': its vector has the length 2"),
        (np.zeros((2, DIM), np.float32), ValueError, "length 0"),
        (np.full((2, DIM), np.nan, np.float32), ValueError, "'d0'.*NaN"),
        (np.full((2, DIM), np.inf, np.float32), ValueError, "infinite"),
        ([unit(1), unit(2)], IndexMismatchError, "'d1': got 2 vectors"),
        (unit(1), ValueError, "'d1' has no vector"),
        (unit(3), ValueError, "more vectors than documents"),
    ]:
        with subtests.test(message=message):
            with pytest.raises(error, match=message):
                index.add([make(0), make(1)], vectors)
            assert len(index) == 0


@pytest.mark.parametrize("vectors", ["float16", "int8", "binary"])
def test_smaller_vectors(tmp_path, vectors, embedder):
    index = SugarIndex.build(tmp_path / "i", map(make, range(200)), embedder, vectors=vectors, show_progress=False)
    index = SugarIndex.load(tmp_path / "i", embedder)
    found = [index.search(f"document {i}, third", 1)[0] for i in range(0, 200, 20)]
    assert ids(found) == [f"d{i}" for i in range(0, 200, 20)]
    assert all(hit.score == pytest.approx(1, abs=0.05) for hit in found)
    assert index.info()["bytes_per_vector"] == {"float16": 32, "int8": 16, "binary": 18}[vectors]
    index.delete("d0")
    index.compact()
    assert index.search("document 20, third", 1)[0].id == "d20"


def test_numbers_outside_of_the_first_ones_ranges_are_counted(tmp_path):
    index = SugarIndex.create(tmp_path / "i", dim=DIM, vectors="int8")
    narrow = np.abs(unit(50))
    index.add(map(make, range(50)), narrow)
    codec = index.store.snapshot.codec.to_dict()
    with pytest.warns(UserWarning, match="3 of 3 new vectors lie outside"):
        index.add(map(make, range(50, 53)), -narrow[:3])
    assert index.info()["clipped"] == 3
    assert SugarIndex.load(tmp_path / "i").store.snapshot.codec.to_dict() == codec


def test_a_graph_is_kept_and_grows(tmp_path):
    options = {"kind": "hnsw", "m": 4, "ef_search": 8}
    index = SugarIndex.create(tmp_path / "i", dim=DIM, backend_options=options)
    vectors = unit(600)
    index.add(map(make, range(500)), vectors[:500])
    graph = index.store.snapshot.manifest.graph
    assert graph.rows == 500
    index.add(map(make, range(500, 510)), vectors[500:510])
    assert index.store.snapshot.manifest.graph == graph  # ten rows are no reason to write it again
    index.add(map(make, range(510, 600)), vectors[510:])
    assert index.store.snapshot.manifest.graph.rows == 600
    for opened in (index, SugarIndex.load(tmp_path / "i")):
        _, places = opened.search_embeddings(vectors, 1)
        assert (places[:, 0] == np.arange(600)).mean() > 0.95
