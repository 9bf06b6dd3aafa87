"""Filters that take all of the time, or that cannot find anything for the kind of their values."""

import time
import warnings

import numpy as np
import pytest
from index_tools import DIM, FakeEmbedder, make, unit

from sugar_hf.data import Document
from sugar_hf.retrieval import SugarIndex
from sugar_hf.retrieval.filters import Filter, typed_metadata
from sugar_hf.retrieval.store.backends import MilvusBackend, Rows
from sugar_hf.retrieval.store.codecs import Codec

METADATA = [{"n": i, "t": f"t{i}", "tags": [f"t{i}"]} for i in range(1000)]


def test_many_values_take_no_more_time_than_one(subtests):
    for operator in ["$in", "$nin"]:
        for values in [range(100_000), [f"t{i}" for i in range(100_000)], [i + 0.0 for i in range(100_000)]]:
            with subtests.test(values=f"{values!r:.60}", operator=operator):
                start = time.process_time()
                where = Filter.parse({"t" if isinstance(values[0], str) else "n": {operator: list(values)}})
                found = where.mask(METADATA).sum()
                assert found == (1000 if operator == "$in" else 0)
                assert time.process_time() - start < 5  # a chain of comparisons takes a minute


def test_values_of_all_kinds_among_many():
    metadata = [{"k": value} for value in (1, True, "1", 1.0, 0, False, None, ["1"])] + [{}]
    for among, wanted in (
        ([1], [1, 0, 0, 1, 0, 0, 0, 0, 0]),
        ([True, "1"], [0, 1, 1, 0, 0, 0, 0, 0, 0]),
        ([None, 0.0], [0, 0, 0, 0, 1, 0, 1, 0, 1]),
        ([False], [0, 0, 0, 0, 0, 1, 0, 0, 0]),
    ):
        assert Filter.parse({"k": {"$in": among}}).mask(metadata).tolist() == [bool(x) for x in wanted]
        assert Filter.parse({"k": {"$nin": set(among)}}).mask(metadata).tolist() == [not x for x in wanted]


def test_more_conditions_than_somebody_writes_are_refused():
    for where in (
        {"$or": [{"n": i} for i in range(5000)]},
        {"$and": [{"$not": {"n": {"$gt": i, "$lt": i + 1}}} for i in range(600)]},
        {str(i): 1 for i in range(2000)},
    ):
        with pytest.raises(ValueError, match=r"at most 1024 are tried.*use \$in"):
            Filter.parse(where)
    assert Filter.parse({"$or": [{"n": i} for i in range(1000)]}).mask(METADATA).all()


def nested(depth, make_one=lambda inner: [inner]):
    value = "x"
    for _ in range(depth):
        value = make_one(value)
    return value


def test_whatever_is_no_filter_is_a_short_valueerror(subtests):
    for number, where in enumerate(
        [
            {"n": 10**400},
            {"n": -(10**400)},
            {"n": {"$gt": 2**63}},
            {"n": {"$in": [10**5000]}},
            {"n": float("inf")},
            {"n": nested(10_000)},
            {"n": {"$in": [nested(10_000)]}},
            {"n": {"$exists": nested(10_000)}},
            {"n": {nested(0) + "y" * 10**6: 1}},
            {"$and": nested(10_000)},
            nested(10_000, lambda inner: {"$not": inner}),
            nested(10_000),
            {("a",): 1},
            [],
            "",
            0,
            False,
            (),
        ]
    ):
        with subtests.test(number=number):
            with pytest.raises(ValueError, match="where") as error:
                Filter.parse(where)
            assert len(str(error.value)) < 1000


def test_the_least_number_that_can_be_stored_can_be_found(tmp_path):
    least = -(2**63)
    metadata = [{"n": least}, {"n": least + 1}, {"n": 2**63 - 1}]
    assert Filter.parse({"n": least}).mask(metadata).tolist() == [True, False, False]
    assert Filter.parse({"n": {"$gte": least}}).mask(metadata).all()
    assert typed_metadata(metadata[0]) == {"number": {"n": least}}
    vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (3, 1))
    codec = Codec.fit("float32", [vectors])
    backend = MilvusBackend(codec, options={"kind": "flat"}, folder=tmp_path)
    backend.add(iter([Rows(0, vectors, vectors, ["a", "b", "c"], np.zeros(3, np.int32), metadata)]))
    for where, count in (({"n": {"$gte": least}}, 3), ({"n": {"$in": [least, 5]}}, 1), ({"n": {"$gt": 0}}, 1)):
        _, rows = backend.search(vectors[:1], 3, row_count=3, where=Filter.parse(where))
        assert (rows >= 0).sum() == count, where
    backend.close()


# ---- Values of another kind


@pytest.fixture
def index(tmp_path):
    documents = [Document(f"d{i}", f"t{i}", {"year": str(1990 + i), "tags": ["sea"], "n": i}) for i in range(20)]
    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    index.add(documents, unit(20))
    return index


def test_a_comparison_with_a_column_of_another_kind_says_so(index, subtests):
    for where, word in [
        ({"year": {"$gte": 2000}}, "'year' is compared with a number, but has texts"),
        ({"year": 2000}, "'year' is compared with a number"),
        ({"year": {"$in": [2000, True]}}, "'year' is compared with a flag or a number"),
        ({"$or": [{"n": 3}, {"$not": {"year": {"$lt": 2000}}}]}, "'year' is compared with a number"),
        ({"n": "3"}, "'n' is compared with a text, but has numbers"),
        ({"tags": "sea"}, r"'tags' is compared with a text, but has lists.*\$contains"),
        ({"year": {"$contains": "1990"}}, "'year' is compared with a list, but has texts"),
    ]:
        with subtests.test(where=f"{where!r:.60}", word=word):
            with pytest.warns(UserWarning, match=word):
                index.search_embeddings(unit(1), 3, where=where)
            with pytest.warns(UserWarning, match=word):
                index.store.snapshot.matching(Filter.parse(where))


def test_other_comparisons_say_nothing(index, subtests):
    for where in [
        {"year": {"$gte": "2000"}},
        {"n": {"$in": [3, "x"]}},
        {"nothing": 3},
        {"year": {"$exists": True}},
        {"tags": {"$contains": "sea"}},
        {"year": {"$ne": None}},
    ]:
        with subtests.test(where=f"{where!r:.60}"), warnings.catch_warnings():
            warnings.simplefilter("error")
            index.search_embeddings(unit(1), 3, where=where)


def test_a_column_of_both_kinds_is_no_fault(index):
    index.add([Document("new", "t", {"year": 2001})], unit(21)[20:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, places = index.search_embeddings(unit(1), 3, where={"year": {"$gte": 2000}})
    assert places[0].tolist() == [20, -1, -1]


def test_milvus_says_so_when_nothing_is_found(tmp_path):
    options = {"backend": "milvus", "backend_options": {"kind": "flat"}}
    index = SugarIndex.build(tmp_path / "m", [make(1, year="1999")], FakeEmbedder(), **options, show_progress=False)
    with pytest.warns(UserWarning, match="'year' is compared with a number, but has texts"):
        assert index.search("x", where={"year": {"$gte": 1990}}) == []
    index.close()


# ---- How many


def test_top_k_is_a_whole_number_of_at_least_one(index, subtests):
    for top_k in [2.5, "3", True, None, [3], 0, -1, np.float32(2)]:
        with subtests.test(top_k=f"{top_k!r:.60}"):
            with pytest.raises(ValueError, match=r"top_k=.*(whole number of 1 or more|at least one)"):
                index.search_embeddings(unit(1), top_k)
            with pytest.raises(ValueError, match="top_k="):
                index.store.snapshot.search(unit(1), top_k)
            with pytest.raises(ValueError, match="top_k="):
                index.store.snapshot.backend.search(unit(1), top_k, row_count=20)
            assert index.search_embeddings(unit(1), np.int64(3))[1].shape == (1, 3)


@pytest.mark.parametrize("top_k", [10**9, 10**18, 2**70])
def test_no_array_is_made_for_more_results_than_there_are(index, top_k):
    for scores, places in (
        index.search_embeddings(unit(3), top_k),
        index.search_embeddings(unit(3), top_k, where={"n": {"$lt": 10}}),
        index.store.snapshot.search(unit(3), top_k)[:2],
        index.store.snapshot.backend.search(unit(3), top_k, row_count=20),
    ):
        assert scores.shape == places.shape == (3, 128)
        assert len(set(places[0].tolist()) - {-1}) in (10, 20)
    assert len(index.search_vectors(unit(1), top_k)[0]) == 20


@pytest.mark.parametrize(("vectors", "options"), [("binary", {}), ("int8", {"kind": "hnsw", "m": 2, "ef_search": 1})])
def test_all_results_of_other_backends(tmp_path, vectors, options):
    index = SugarIndex.create(tmp_path / "i", dim=DIM, vectors=vectors, backend_options=options)
    index.add([make(i) for i in range(200)], unit(200))
    assert sorted(index.search_embeddings(unit(1), 10**12)[1][0].tolist()) == list(range(200))
