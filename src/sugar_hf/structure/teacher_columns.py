"""Checks and statistics of the teacher columns stored with a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from .config import BLOCKS, TEACHERS
from .labels import TEACHER_COLUMNS, VECTOR_COLUMNS

if TYPE_CHECKING:
    from .slice_teacher import Teacher

REMEDY = "Add the teacher columns with `dataset = teacher.cache(dataset, slices=...)`."


def check_cache(dataset: Dataset, teacher: Teacher | str | None = None) -> str:
    """Refuse teacher columns that are missing, incomplete or made by other teachers.

    Args:
        dataset: the data set with the teacher columns.
        teacher: the teachers that the columns must come from, or their fingerprint. With None it is only checked that
            all rows come from the same teachers.

    Returns:
        The fingerprint of the cached columns.

    Raises:
        ValueError: naming what is missing or differs, and the remedy.
    """
    missing = [column for column in TEACHER_COLUMNS if column not in dataset.column_names]
    if missing:
        raise ValueError(f"The data set has no column {', '.join(missing)}. {REMEDY}")
    if len(dataset) == 0:
        raise ValueError("The data set has no rows, so there are no teacher columns to check.")
    cached = dataset.unique("teacher_fingerprint")
    if len(cached) > 1:
        raise ValueError(
            f"The rows were embedded by {len(cached)} different sets of teachers ({' and '.join(map(repr, cached))}). "
            f"{REMEDY}"
        )
    expected = cached[0] if teacher is None else teacher if isinstance(teacher, str) else teacher.fingerprint
    if cached[0] != expected:
        before, now = _parts(cached[0]), _parts(expected)
        differing = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
        changes = "; ".join(f"{name}: cached {before.get(name)}, expected {now.get(name)}" for name in differing)
        raise ValueError(
            f"The cached teacher columns are stale: they come from another {' and '.join(differing)} teacher "
            f"({changes}). Weights, settings, precision and preprocessing all count. {REMEDY}"
        )
    return expected


def _parts(fingerprint: str) -> dict[str, str]:
    """The teachers' own fingerprints in "clip=...,dino=...,text=..."."""
    return {name: digest for name, _, digest in (part.partition("=") for part in fingerprint.split(","))}


def block_means(dataset: Dataset | Iterable[Mapping[str, Any]], teachers: str = "triple") -> dict[str, float]:
    """Mean teacher cosine of unrelated slices for each modality block, for ``StructureLossConfig(block_means=...)``.

    The mean over all pairs of slices of different samples, exactly and in one pass: the product of the sums of all
    vectors, less the pairs within a sample.

    Args:
        dataset: data set or rows with the teacher columns.
        teachers: ``"triple"`` or ``"clip"``, as in the config that will use the means.

    Returns:
        {"image-image", "text-text", "image-text"}: mean cosine; 0 (no centring) for a block without any pair.
    """
    if teachers not in TEACHERS:
        raise ValueError(f"teachers must be one of {', '.join(map(repr, TEACHERS))}; got {teachers!r}.")
    rows = dataset
    if isinstance(dataset, Dataset):
        missing = [column for column in TEACHER_COLUMNS[:-1] if column not in dataset.column_names]
        if missing:
            raise ValueError(f"The data set has no column {', '.join(missing)}. {REMEDY}")
        rows = dataset.select_columns(list(TEACHER_COLUMNS[:-1])).with_format("numpy")
    same_modality = {"image": "teacher_dino", "text": "teacher_text"}
    if teachers == "clip":
        same_modality = dict.fromkeys(same_modality, "teacher_clip")

    sums: dict[tuple[str, str], np.ndarray] = {}  # (column, modality): sum of all unit vectors
    totals = dict.fromkeys(("image", "text"), 0)
    within = dict.fromkeys(BLOCKS, 0.0)  # summed cosines of pairs inside a sample, to be left out
    pairs_within = dict.fromkeys(BLOCKS, 0)
    for row in rows:
        is_image = np.asarray(row["teacher_is_image"], dtype=bool)
        here: dict[tuple[str, str], np.ndarray] = {}
        counts = {"image": int(is_image.sum()), "text": int((~is_image).sum())}
        for column in VECTOR_COLUMNS:
            vectors = np.asarray(row[column], dtype=np.float64).reshape(len(is_image), -1)
            if not vectors.shape[1]:  # this modality is compared in the shared space
                vectors = np.asarray(row["teacher_clip"], dtype=np.float64).reshape(len(is_image), -1)
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            here[column, "image"] = vectors[is_image].sum(0)
            here[column, "text"] = vectors[~is_image].sum(0)
        for key, total in here.items():
            sums[key] = sums.get(key, 0) + total
        for modality, count in counts.items():
            totals[modality] += count
        for block in BLOCKS:
            one, other, column_one, column_other = _block_sides(block, same_modality)
            within[block] += float(here[column_one, one] @ here[column_other, other])
            pairs_within[block] += counts[one] * counts[other]

    means = {}
    for block in BLOCKS:
        one, other, column_one, column_other = _block_sides(block, same_modality)
        pairs = totals[one] * totals[other] - pairs_within[block]
        across = float(sums[column_one, one] @ sums[column_other, other]) - within[block] if pairs else 0.0
        means[block] = across / max(pairs, 1)
    return means


def _block_sides(block: str, same_modality: dict[str, str]) -> tuple[str, str, str, str]:
    """Modalities of a block's two sides and the columns that compare them."""
    one, other = block.split("-")
    if one == other:
        return one, other, same_modality[one], same_modality[one]
    return one, other, "teacher_clip", "teacher_clip"
