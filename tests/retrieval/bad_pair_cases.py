"""Bad pairs, and pairs for which there are no negatives: more cases for test_bad_input.py."""

import copy
import json

import pytest
from bad_input_cases import refused, used

from sugar_hf.data import BadSampleError
from sugar_hf.retrieval import IndexMismatchError, SugarEmbedder, SugarIndex
from sugar_hf.retrieval.mining import mine_negatives

PAIR = {"id": "bad", "query": "a bird", "positives": ["a cat"]}


def mine(place, *rows, index=None, **options):
    """Mine in the index of "one" and "two". Returns the rows that are written, and the report."""
    pairs = place.file("pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    output = place.folder / "mined.jsonl"
    options = {"ranks": (1, 9), "count": 1, "show_progress": False} | options
    failed = True
    try:
        report = mine_negatives(pairs, index or place.index(), output, **options)
        failed = False
    finally:
        assert failed != output.exists() or output.read_bytes() == b"precious"
    return [json.loads(line) for line in output.read_text().splitlines()], report


for _what, _change, _says in (
    ("A pair without positives", {"positives": []}, "the query has no positive"),
    ("A pair without a query", {"query": None}, "the row has no query"),
    ("A pair whose positive is empty", {"positives": [" "]}, "the query has no positive"),
    ("A pair whose positive is its query", {"positives": ["a bird"]}, "it is the query itself"),
    ("A pair whose negative is a positive", {"negatives": ["a cat"]}, "it is also positives[0]"),
    (
        "A pair with fewer scores than samples",
        {"negatives": ["a dog"], "scores": [1.0]},
        "1 scores for 2 positives",
    ),
    ("A pair with a score that is no number", {"scores": [float("nan")]}, "expected a finite number"),
    (
        "A column `hard_negatives`",
        {"hard_negatives": ["a dog"]},
        "looks like a part of the pair",
    ),
    (
        "A pair that is a chat, too",
        {"messages": [{"role": "user", "content": "a"}]},
        "is a pair by 'query', and",
    ),
    (
        "A positive that the index does not have, by id",
        {"positive_ids": ["three"]},
        "the index has no document 'three'",
    ),
    ("`positive_ids` that is no list", {"positive_ids": "one"}, "expected a list of ids"),
    ("A picture of a pair that is not there", {"query": [{"image": "a.png"}]}, "a.png"),
):

    @refused("Pairs", _what, BadSampleError, _says)
    def _(place, change=_change):
        mine(place, {**PAIR, "id": "good"}, {**PAIR, **change})


def short(place):
    """An embedder that takes eight tokens."""
    return place.index(SugarEmbedder(place.embedder.model, place.embedder.processor, max_length=8))


@refused("Pairs", "A query that is too long, in mining", BadSampleError, "more than max_length=8")
def _(place):
    mine(place, PAIR, PAIR | {"query": "a bird sings. " * 9}, index=short(place))


@refused("Pairs", "A positive that is too long, where a margin needs it", BadSampleError, "more than max_length=8")
def _(place):
    mine(place, PAIR, PAIR | {"positives": ["a bird sings. " * 9]}, index=short(place), margin=0.1)


@refused("Pairs", "Mining in an index of another model", IndexMismatchError, "was made with another model")
def _(place):
    model = copy.deepcopy(place.embedder.model)
    for parameter in model.retrieval_head.parameters():
        parameter.data.mul_(-1.5)
    mine(place, PAIR, index=place.index(SugarEmbedder(model, place.embedder.processor)))


@refused("Pairs", "Mining in an index without a model", ValueError, "was opened without a model")
def _(place):
    mine(place, PAIR, index=SugarIndex.load(place.index_folder))


@refused("Pairs", "More negatives than ranks", ValueError, "ranks 2 to 3 have 2 documents")
def _(place):
    mine(place, PAIR, ranks=(2, 3), count=4)


@refused("Pairs", "No pairs", ValueError, "there are no pairs to mine negatives for")
def _(place):
    mine(place)


@refused("Pairs", "Pairs all of which are left out", ValueError, "2 were left out. The first: ")
def _(place):
    mine(place, {**PAIR, "positives": []}, {**PAIR, "positive_ids": ["three"]}, on_error="skip")


@refused("Pairs", "An output of mining that is there", FileExistsError, "is there. Remove it, or overwrite it")
def _(place):
    place.file("mined.jsonl", b"precious")
    try:
        mine(place, PAIR)
    finally:
        assert (place.folder / "mined.jsonl").read_bytes() == b"precious"


@used(
    "Pairs",
    'Bad pairs among others, with `on_error="skip"`',
    "left out, counted and named; the others are written",
)
def _(place):
    bad = [{**PAIR, "positives": []}, {**PAIR, "query": "a bird sings. " * 9}, {**PAIR, "positive_ids": ["three"]}]
    rows, report = mine(place, *bad, {**PAIR, "id": "good"}, index=short(place), on_error="skip")
    assert [row["id"] for row in rows] == ["good"]
    assert sorted(error.line for error in report.skipped) == [1, 2, 3]
    assert all("bad" in error.sample for error in report.skipped)


@used("Pairs", "A query for which nothing is found within the ranks", "written without negatives, and counted")
def _(place):
    rows, report = mine(place, PAIR, ranks=(5, 9))
    assert (rows[0]["negatives"], report.rows, report.empty) == ([], 1, 1)


@used("Pairs", "A margin that no document keeps", "written without negatives, and counted")
def _(place):
    rows, report = mine(place, PAIR, margin=2.0)
    assert (rows[0]["negatives"], report.empty, report.left_out["within margin"]) == ([], 1, 1)


@used("Pairs", "Mining in an index of nothing but the positive", "written without negatives, and counted")
def _(place):
    with pytest.warns(UserWarning, match="deleted and still take space"):
        place.index().delete(["two"])
    rows, report = mine(place, PAIR)
    assert (rows[0]["negatives"], report.empty, report.left_out["positive"]) == ([], 1, 1)


@used("Pairs", "A positive that the index does not have, by its content", "used: only copies of it are no negatives")
def _(place):
    rows, report = mine(place, {**PAIR, "positives": ["a fish"]})
    assert (len(rows[0]["negatives"]), report.left_out) == (1, {})


@used("Pairs", "Two pairs of one id", "both are written, each with negatives of its own")
def _(place):
    rows, _ = mine(place, PAIR, {**PAIR, "positives": [[{"text": "a fish"}]]}, count=2, ranks=(1, 2))
    assert [row["id"] for row in rows] == ["bad", "bad"]
    assert [len(row["negatives"]) for row in rows] == [1, 2]
