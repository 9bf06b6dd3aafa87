"""Pairs in batches: a row becomes its samples, which say where they belong, and what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from ..data import BadSampleError, read_pair, to_row
from ..data.documents import sample_digest
from ..data.pair_columns import has_pair_columns, is_pair_row
from ..model.samples_sugar import INSTRUCTION_ROLES, parse_sample
from ..structure import TEACHER_COLUMNS
from .arguments import StructureArguments

#: Where a row of one sample keeps what is known of it.
MEMBERSHIP = "pair_membership"
# Columns of rows that are no pairs, in a mix of data sets.
CONVERSATIONS = {"messages", "conversations", "completion", "response", "output", "text", "caption"}
#: Labels of candidates without scores.
POSITIVE_LABEL, NEGATIVE_LABEL = 1.0, 0.0
#: Rows of a stream that are looked at where it does not name its columns.
FIRST_ROWS = 64


@dataclass(frozen=True)
class ScoreScale:
    """How scores become labels.

    Args:
        mapping: `"label"`: scores are labels, -1 to 1. `"logit"`: a label is the logistic function of a score.
        score_range: Scores that stand for the labels 0 and 1, with a straight line between them; None for none.
    """

    mapping: str = "label"
    score_range: Sequence[float] | None = None

    def label(self, score: float, field: str) -> float:
        """Return the label of a score.

        Raises:
            BadSampleError: It is no label, or lies outside the range.

        >>> ScoreScale("logit").label(0.0, "scores[0]"), ScoreScale(score_range=[0, 5]).label(4.0, "scores[0]")
        (0.5, 0.8)
        """
        if self.score_range is not None:
            low, high = self.score_range
            if not low <= score <= high:
                mend = "Give score_range=[lowest, highest] of all scores"
                raise BadSampleError(f"{score:g} lies outside score_range=[{low:g}, {high:g}]", field=field, mend=mend)
            return (score - low) / (high - low)
        if self.mapping == "logit":
            return 1 / (1 + math.exp(-score)) if score > -700 else 0.0
        if not -1 <= score <= 1:
            mend = 'Give score_mapping="logit" for the logits of a reranker, or score_range=[lowest, highest]'
            raise BadSampleError(f"{score:g} is no label, which lies between -1 and 1", field=field, mend=mend)
        return score


@dataclass(frozen=True)
class Membership:
    """What a sample of a batch says of pairs.

    Attributes:
        row: Id of the row it comes from.
        key: A number that equal samples share.
        field: Its place in the row; None for a row of one sample.
        known: The keys of two samples of the row and their label. Queries alone have them.
    """

    row: str
    key: int
    field: str | None = None
    known: tuple[tuple[int, int, float], ...] = ()


def content_key(sample: Mapping[str, Any]) -> int:
    """Return a 63-bit number that equal samples in the common schema share."""
    return int(sample_digest(sample)[:16], 16) >> 1


def row_keys(row: Mapping[str, Any]) -> set[int]:
    """Return the keys of the samples of a row; none of a broken row, which is found elsewhere."""
    try:
        if is_pair_row(row):
            return {content_key(sample) for _, sample in read_pair(row).samples()}
        return {content_key(to_row(row))}
    except BadSampleError:
        return set()


def with_members(
    rows: Sequence[Mapping[str, Any]], scale: ScoreScale, split_sentences: bool = False, keep_bad: bool = False
) -> tuple[list[Mapping[str, Any]], list[BadSampleError]]:
    """Put the samples of pairs in the place of their rows.

    Args:
        rows: Rows of a batch; some may be samples of pairs already.
        scale: How scores become labels.
        split_sentences: Whether each sentence is a slice.
        keep_bad: Whether broken rows stay as they are in their places.

    Returns:
        Rows of one sample each, and what is wrong with others. If any row comes from a table with pairs, all have
        `MEMBERSHIP`.
    """
    found: list[Mapping[str, Any]] = []
    bad: list[BadSampleError] = []
    has_pairs = any(MEMBERSHIP in row or has_pair_columns(row) for row in rows)
    for row in rows if has_pairs else ():
        try:
            if MEMBERSHIP in row:
                found.append(row)
            elif is_pair_row(row):
                found += _members(row, scale, split_sentences)
            else:
                plain = to_row(row)
                found.append({**plain, MEMBERSHIP: Membership(plain["id"], content_key(plain))})
        except BadSampleError as error:
            bad.append(error)
            found += [row] if keep_bad else []
    return (found, bad) if has_pairs else (list(rows), bad)


def _members(row: Mapping[str, Any], scale: ScoreScale, split_sentences: bool) -> list[Mapping[str, Any]]:
    pair = read_pair(row)
    try:
        labels = [POSITIVE_LABEL] * len(pair.positives) + [NEGATIVE_LABEL] * len(pair.negatives)
        if pair.scores is not None:
            labels = [scale.label(score, f"scores[{i}]") for i, score in enumerate(pair.scores)]
        fields, samples = zip(*pair.samples(), strict=True)
        keys = [content_key(sample) for sample in samples]
        columns = _teacher_columns(row, samples, split_sentences)
    except BadSampleError as error:
        raise error.at(file=pair.source, sample=pair.id) from error.__cause__
    known = tuple((keys[0], key, label) for key, label in zip(keys[1:], labels, strict=True))
    return [
        {
            "id": f"{pair.id}#{field}",
            "source": pair.source,
            **sample,
            **teachers,
            MEMBERSHIP: Membership(pair.id, key, field, () if number else known),
        }
        for number, (field, sample, key, teachers) in enumerate(zip(fields, samples, keys, columns, strict=True))
    ]


def _teacher_columns(
    row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], split_sentences: bool
) -> list[dict[str, Any]]:
    """Cut the teachers' columns of a row into those of its samples."""
    if any(row.get(name) is None for name in TEACHER_COLUMNS):
        return [{} for _ in samples]
    counts = [_slice_count(sample, split_sentences) for sample in samples]
    stored = len(row["teacher_is_image"])
    if sum(counts) != stored:
        raise BadSampleError(
            f"its samples have {sum(counts)} slices together, but teacher vectors of {stored}",
            field="teacher_is_image",
            mend="The cache is stale: make it again, with the slices of all of sugar_hf.data.to_samples(row)",
        )
    found, start = [], 0
    for count in counts:
        columns = {name: row[name][start : start + count] for name in TEACHER_COLUMNS if name != "teacher_fingerprint"}
        found.append({**columns, "teacher_fingerprint": row["teacher_fingerprint"]})
        start += count
    return found


def _slice_count(sample: Mapping[str, Any], split_sentences: bool) -> int:
    texts = [
        part["text"]
        for message in sample["messages"]
        if message["role"] not in INSTRUCTION_ROLES
        for part in message["content"]
        if part["type"] == "text"
    ]
    parsed = parse_sample(texts, "", split_sentences)[0].parts if texts else ()
    return len(sample["images"]) + sum(part.slice_count for part in parsed)


def _has_pairs(dataset: Any) -> bool:
    """Whether a data set has the columns of pairs, or one of the first rows of a stream does that names none."""
    if not isinstance(dataset, Dataset | IterableDataset):
        return True
    if dataset.column_names is not None:
        return has_pair_columns(dict.fromkeys(dataset.column_names))
    return any(map(has_pair_columns, dataset.take(FIRST_ROWS)))


def check_pairs(dataset: Any, args: StructureArguments) -> None:
    """Refuse a data set of pairs alone from which neither loss learns anything, and one without the pairs asked for.

    Raises:
        ValueError: There is no structure loss, and the language-model loss leaves pairs out; or the positives of pairs
            are to be lifted, and there are no pairs.
    """
    if args.alpha and args.lifted_positives == "pairs" and not _has_pairs(dataset):
        raise ValueError(
            "lifted_positives='pairs' lifts the positives of pairs, but the training set has none. Train on pairs, or "
            "set lifted_positives='all' for the ends of one sample."
        )
    if args.alpha or args.pairs_lm_loss or not isinstance(dataset, Dataset):
        return
    columns = dict.fromkeys(dataset.column_names)
    if has_pair_columns(columns) and not columns.keys() & CONVERSATIONS:
        raise ValueError(
            "alpha=0 leaves the language-model loss alone, which learns nothing of pairs. Set alpha, or "
            "pairs_lm_loss=True to learn their texts."
        )


def pair_fields(
    rows: Sequence[Mapping[str, Any]], lengths: Tensor, number_of: Callable[[str], int]
) -> dict[str, Tensor]:
    """Return the fields of the `PairLabels` of a batch as a dict, which workers and pinned memory can handle.

    Args:
        rows: Rows that have `MEMBERSHIP`.
        lengths: (B,) number of slices of each.
        number_of: Makes a number of a row's id.
    """
    members = [row[MEMBERSHIP] for row in rows]
    samples = [[member.key, number_of(member.row), member.field is not None] for member in members]
    known = [each for member in members for each in member.known]
    return {
        "samples": torch.tensor(samples, dtype=torch.int64).view(-1, 3),
        "lengths": lengths.to(torch.int64),
        "pairs": torch.tensor([each[:2] for each in known], dtype=torch.int64).view(-1, 2),
        "labels": torch.tensor([each[2] for each in known], dtype=torch.float32),
    }
