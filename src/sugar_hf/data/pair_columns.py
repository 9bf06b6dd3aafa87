"""Which columns of a row hold a query and what answers it, in the names that other tools give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import BadSampleError
from .schema import filled, is_empty

#: Columns of stored pairs beside `id` and `source`.
PAIR_COLUMNS = ("query", "positives", "negatives", "scores", "instruction")
#: MMEB's names: a text and an image on each side.
MMEB_COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path", "neg_text", "neg_image_path")
#: Columns of CSV files that are texts, whatever they look like.
TEXT_COLUMNS = frozenset(
    {"query", "anchor", "sentence1", "sentence2", "question", "answer", "positive", "positives", "pos"}
    | {"negative", "negatives", "neg", "scores", "pos_scores", "neg_scores", *MMEB_COLUMNS}
    | {f"negative_{number}" for number in range(1000)}
)
NUMBERED_NEGATIVE = re.compile(r"negative_(\d+)")

_QUERIES = ("query", "anchor")
_CANDIDATES = ("positives", "positive", "pos", "negatives", "negative", "neg")
_SCORES = ("scores", "score", "labels", "label")
# Pairs only where the format is asked for: else a conversation, or nothing that is known.
_ASKED = (("prompt", "completion"), ("query", "response"), ("question", "answer"))
# Columns that say something of their own; beside a pair nobody knows which is meant.
_OTHERS = ("messages", "conversations", "completion", "response", "output", "text_list", "texts", "chosen", "rejected")
_LIKE_A_CANDIDATE = re.compile(r"(?:hard_?)?(?:neg|pos)(?:ative|itive)?s?(?:_\w+|\d+)?")


@dataclass(frozen=True)
class PairColumns:
    """The columns of a row that say what a pair is.

    Attributes:
        query: That of the query.
        positive: Those with one positive each.
        positives: One with a list of them.
        negative: Those with one negative each.
        negatives: One with a list of them.
        scores: Those of scores: one for all, or one for the positives and one for the negatives.
        instruction: That of the instruction.
    """

    query: str
    positive: tuple[str, ...]
    positives: str | None
    negative: tuple[str, ...]
    negatives: str | None
    scores: tuple[str, ...]
    instruction: str | None

    @property
    def used(self) -> set[str]:
        """All of them."""
        names = (self.query, *self.positive, self.positives, *self.negative, self.negatives, *self.scores)
        return {name for name in (*names, self.instruction) if name is not None}


def has_pair_columns(row: Mapping[str, Any]) -> bool:
    """Whether a row comes from a table with pairs, be it one itself or empty there (a chat in a mix of data sets)."""
    if any(key in row for key in _QUERIES):
        return any(key in row for key in _CANDIDATES) or any(map(_is_numbered, row))
    if "sentence1" in row and "sentence2" in row:
        return True
    return any(key in row for key in MMEB_COLUMNS[:2]) and any(key in row for key in MMEB_COLUMNS[2:])


def is_mmeb(row: Mapping[str, Any]) -> bool:
    """Whether a row has MMEB's names."""
    return any(key in row for key in MMEB_COLUMNS[:2])


def is_pair_row(row: Any) -> bool:
    """Whether a row is a query with what answers it, whole or broken, by its columns.

    >>> is_pair_row({"anchor": "a", "positive": "b"}), is_pair_row({"query": "a", "response": "b"})
    (True, False)
    """
    if not isinstance(row, Mapping) or not has_pair_columns(row):
        return False
    told = (*_QUERIES, *_CANDIDATES, "sentence1", "sentence2", *MMEB_COLUMNS)
    return any(not is_empty(row.get(key)) for key in told) or any(
        _is_numbered(key) and not is_empty(row[key]) for key in row
    )


def find_columns(row: Mapping[str, Any], asked: bool = False) -> PairColumns:
    """Find the columns of a pair.

    Args:
        row: The row, in other names than MMEB's.
        asked: Whether pairs were asked for, so that `prompt` and `completion` are one, too.

    Raises:
        BadSampleError: Two columns say the same thing, or one may say something else. It names the column.
    """
    full = filled(row)
    query = _one(full, (*_QUERIES, "sentence1"), "query")
    positive: tuple[str, ...] = tuple(key for key in ("positive",) if key in full)
    if query == "sentence1":
        positive = ("sentence2",)
    pair = next((names for names in _ASKED if full.issuperset(names)), None) if asked else None
    if pair is not None and not full.intersection(_CANDIDATES):
        query, positive = pair[0], (pair[1],)
    if query is None:
        present = next((key for key in (*_QUERIES, "sentence1") if key in row), "query")
        raise BadSampleError("the row has no query", field=present, mend="Fill it in or leave the row out")
    negative = tuple(key for key in ("negative",) if key in full)
    numbered = sorted((key for key in full if _is_numbered(key)), key=lambda key: int(key.partition("_")[2]))
    columns = PairColumns(
        query=query,
        positive=positive,
        positives=_one(full, ("positives", "pos"), "positives"),
        negative=(*negative, *numbered),
        negatives=_one(full, ("negatives", "neg"), "negatives"),
        scores=_scores(row, full),
        instruction=_one(full, ("instruction", *(() if query == "prompt" else ("prompt",))), "instruction"),
    )
    for several, single in ((columns.positives, columns.positive), (columns.negatives, columns.negative)):
        if several and single:
            mend = "Keep the list, or the columns of one each"
            raise BadSampleError(f"{single[0]} and {several} both say it", field=several, mend=mend)
    for key in sorted(full - columns.used):
        if key in _OTHERS:
            mend = "Leave it out with drop_columns, or pass the format to read the row by"
            raise BadSampleError(f"the row is a pair by {query!r}, and something else by it", field=key, mend=mend)
        if _LIKE_A_CANDIDATE.fullmatch(key):
            mend = "Call it positives, negatives, negative_1, ..., or leave it out with drop_columns"
            raise BadSampleError("it looks like a part of the pair, but is not known", field=key, mend=mend)
    return columns


def _scores(row: Mapping[str, Any], full: set[str]) -> tuple[str, ...]:
    # a score that is no number is no missing one
    given = {key for key in row if row[key] is not None and not (isinstance(row[key], str) and is_empty(row[key]))}
    split = tuple(key for key in ("pos_scores", "neg_scores") if key in given)
    whole = _one(given, _SCORES, "scores")
    if split and whole:
        raise BadSampleError(f"{split[0]} and {whole} both give scores", field=whole, mend="Keep one of them")
    return split or ((whole,) if whole else ())


def _one(full: set[str], names: tuple[str, ...], what: str) -> str | None:
    found = [name for name in names if name in full]
    if len(found) > 1:
        mend = "Keep one, or leave the other out with drop_columns"
        raise BadSampleError(f"{found[0]} and {found[1]} both say what the {what} is", field=found[1], mend=mend)
    return found[0] if found else None


def _is_numbered(key: Any) -> bool:
    return isinstance(key, str) and NUMBERED_NEGATIVE.fullmatch(key) is not None
