"""The language of filters: against a reference written out here, and against what milvus-lite makes of it."""

import doctest
import importlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sugar_hf.retrieval.filters import Filter, milvus_string, typed_metadata
from sugar_hf.retrieval.store.backends import MilvusBackend, Rows
from sugar_hf.retrieval.store.codecs import Codec

NASTY = [
    '"',
    "\\",
    '\\"',
    "' or 1 == 1 or '",
    '" or exists m["text"]["a"] or "',
    "a\nb\rc\td",
    "été 雪 🦊",
    "%_*",
    "",
    "{0}",
]
TEXTS = st.sampled_from(["a", "b", "ab", "1", "true", '["a"]', *NASTY])
NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.5, -1.5, 1e300, 2**53, 2**63 - 1, -(2**63) + 1, -0.0, 1e-7])
)
SCALARS = st.one_of(TEXTS, NUMBERS, st.booleans())
KEYS = st.sampled_from(["k", "l", "m", 'k"]', "a.b", "été", "in\\", "row"])
METADATA = st.dictionaries(KEYS, st.one_of(SCALARS, st.none(), st.lists(SCALARS, max_size=3)), max_size=5)
ORDERED = st.one_of(TEXTS, NUMBERS)
CONDITIONS = st.one_of(
    SCALARS,
    st.none(),
    st.dictionaries(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ORDERED, min_size=1, max_size=2),
    st.dictionaries(st.sampled_from(["$eq", "$ne"]), st.one_of(SCALARS, st.none()), min_size=1),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(st.one_of(SCALARS, st.none()), max_size=3), min_size=1),
    st.builds(lambda value: {"$contains": value}, SCALARS),
    st.builds(lambda value: {"$exists": value}, st.booleans()),
)
FILTERS = st.recursive(
    st.dictionaries(KEYS, CONDITIONS, min_size=1, max_size=2),
    lambda inner: st.one_of(
        st.builds(lambda some: {"$and": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda some: {"$or": some}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(lambda one: {"$not": one}, inner),
        st.builds(lambda one, other: {"$not": one, **other}, inner, st.dictionaries(KEYS, CONDITIONS, min_size=1)),
    ),
    max_leaves=5,
)


def same(a, b):
    """Equal values of one kind: True is not 1."""
    return isinstance(a, bool) == isinstance(b, bool) and type(a) not in (list, tuple) and a == b


def holds(where, metadata):
    """The language once more, as its table reads."""
    for key, wanted in where.items():
        if key == "$and":
            good = all(holds(each, metadata) for each in wanted)
        elif key == "$or":
            good = any(holds(each, metadata) for each in wanted)
        elif key == "$not":
            good = not holds(wanted, metadata)
        else:
            good = all(holds_for(metadata.get(key), wanted if isinstance(wanted, dict) else {"$eq": wanted}))
        if not good:
            return False
    return True


def holds_for(value, conditions):
    for operator, wanted in conditions.items():
        if operator in ("$eq", "$ne"):
            yield (value is None if wanted is None else same(value, wanted)) == (operator == "$eq")
        elif operator in ("$in", "$nin"):
            among = any(value is None if each is None else same(value, each) for each in wanted)
            yield among == (operator == "$in")
        elif operator == "$exists":
            yield (value is not None) == wanted
        elif operator == "$contains":
            yield isinstance(value, list) and any(same(each, wanted) for each in value)
        elif isinstance(value, (bool, list)) or isinstance(value, str) != isinstance(wanted, str) or value is None:
            yield False
        else:
            yield {"$gt": value > wanted, "$gte": value >= wanted, "$lt": value < wanted, "$lte": value <= wanted}[
                operator
            ]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(where=FILTERS, metadata=st.lists(METADATA, max_size=6))
def test_the_mask_is_what_the_table_says(where, metadata):
    mask = Filter.parse(where).mask(metadata)
    assert mask.dtype == bool
    assert mask.tolist() == [holds(where, each) for each in metadata]


@pytest.fixture(scope="module")
def milvus(tmp_path_factory):
    """A function that asks milvus-lite which of some metadata a filter lets through."""
    codec = Codec.fit("float32", [np.eye(2)])
    backend = MilvusBackend(codec, {"kind": "flat"}, tmp_path_factory.mktemp("filters"))

    def mask(where, metadata):
        backend.trim(0)
        vectors = np.tile(np.array([[1.0, 0.0]], np.float32), (len(metadata), 1))
        names = [f"document-{number}" for number in range(len(metadata))]
        backend.add(iter([Rows(0, vectors, vectors, names, np.zeros(len(metadata), np.int32), metadata)]))
        _, rows = backend.search(vectors[:1], len(metadata), row_count=len(metadata), where=Filter.parse(where))
        return np.isin(np.arange(len(metadata)), rows[0]).tolist()

    yield mask
    backend.close()


@settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(wheres=st.lists(FILTERS, min_size=1, max_size=3), metadata=st.lists(METADATA, min_size=1, max_size=8))
def test_milvus_lets_the_same_documents_through(milvus, wheres, metadata):
    for where in wheres:
        assert milvus(where, metadata) == [holds(where, each) for each in metadata]


def test_a_text_in_a_filter_stays_a_text(milvus, subtests):
    for text in NASTY:
        with subtests.test(text=f"{text!r:.60}"):
            metadata = [{"a": text, "k": "x"}, {"a": "other", "k": text}, {text or "empty": "x"}]
            assert milvus({"a": text}, metadata) == [True, False, False]
            assert milvus({"a": {"$ne": text}}, metadata) == [False, True, True]
            assert milvus({text or "empty": "x"}, metadata) == [False, False, True]
            literal = milvus_string(text)
            assert "\n" not in literal
            assert literal[0] == literal[-1] == '"'


def test_kinds_are_never_equal(milvus):
    metadata = [
        {"a": 1},
        {"a": True},
        {"a": "1"},
        {"a": 1.0},
        {"a": [1]},
        {"a": ["1"]},
        {"a": [True]},
        {"a": "[1]"},
        {},
    ]
    for where, expected in (
        ({"a": 1}, [0, 3]),
        ({"a": True}, [1]),
        ({"a": "1"}, [2]),
        ({"a": {"$contains": 1}}, [4]),
        ({"a": {"$contains": "1"}}, [5]),
        ({"a": {"$contains": True}}, [6]),
        ({"a": {"$gte": 0}}, [0, 3]),
        ({"a": None}, [8]),
        ({"a": {"$in": []}}, []),
        ({"a": {"$nin": []}}, list(range(9))),
    ):
        assert np.flatnonzero(Filter.parse(where).mask(metadata)).tolist() == expected, where
        assert np.flatnonzero(milvus(where, metadata)).tolist() == expected, where


def test_what_is_no_filter(subtests):
    for where, message in [
        ({"year": {"$above": 3}}, r"where\['year'\]\['\$above'\]: unknown operator; give one of \$eq, \$ne"),
        ({"$xor": []}, r"where\['\$xor'\]: unknown operator"),
        ({"$or": []}, "at least one filter"),
        ({"$or": {"a": 1}}, "at least one filter"),
        ({"$and": [{"a": 1}, {"b": {}}]}, r"where\['\$and'\]\[1\]\['b'\]: no condition"),
        ({"$not": []}, "a filter is a dict"),
        ({"a": {"b": 1}}, "never nested"),
        ({"a": [1, 2]}, r"there are \$contains and \$in"),
        ({"a": {"$in": "abc"}}, "a list of values"),
        ({"a": {"$in": [[1]]}}, r"there are \$contains"),
        ({"a": {"$gt": True}}, "no order"),
        ({"a": {"$gt": None}}, "compare with a text"),
        ({"a": float("nan")}, "finite number"),
        ({"a": 2**63}, "64 bits"),
        ({"a": {"$exists": 1}}, "True or False"),
        ({"a": "\ud800"}, "surrogate"),
        ({"": 1}, "unknown operator"),
        ({1: 1}, "unknown operator"),
        ("kind == 'story'", "a filter is a dict"),
    ]:
        with subtests.test(where=repr(where), message=message), pytest.raises(ValueError, match=message):
            Filter.parse(where)


def test_filters_that_nest_too_deep():
    where = {"a": 1}
    for _ in range(40):
        where = {"$not": where}
    with pytest.raises(ValueError, match="nest more than 32"):
        Filter.parse(where)


def test_no_filter_and_a_filter_already_read():
    assert Filter.parse(None) is None
    assert Filter.parse({}) is None
    read = Filter.parse({"a": np.int64(3)})
    assert Filter.parse(read) is read
    assert read.mask([{"a": 3}, {"a": 4}, {}]).tolist() == [True, False, False]
    assert read.mask([]).shape == (0,)


def test_metadata_that_milvus_cannot_hold():
    with pytest.raises(ValueError, match=r"'year': .* 64 bits"):
        typed_metadata({"year": 2**64})
    with pytest.raises(ValueError, match=r"'place': .* neither text"):
        typed_metadata({"place": {"city": "Ulm"}})


def test_examples():
    module = importlib.import_module("sugar_hf.retrieval.filters")
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted >= 3
