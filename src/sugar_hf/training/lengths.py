"""Lengths of samples in tokens, estimated from their characters and images, to sort and cut batches by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm

PROBED_ROWS = 32


class LengthEstimate:
    """Estimates the tokens of a row without opening its images: a linear function of characters and images.

    The function is fitted to rows whose tokens are counted. It serves to put samples of like length together, for
    which it need not be exact.

    Args:
        per_message: Tokens of a message beside its text (roles, ends of turns).
        per_character: Tokens of a character of text.
        per_image: Tokens of an image.
    """

    def __init__(self, per_message: float, per_character: float, per_image: float) -> None:
        self.weights = np.array([per_message, per_character, per_image])

    @classmethod
    def fit(
        cls,
        rows: Dataset | Sequence[Mapping[str, Any]],
        count_tokens: Callable[[Mapping[str, Any]], int],
        probes: int = PROBED_ROWS,
    ) -> LengthEstimate:
        """Fits the estimate to evenly spaced rows.

        Args:
            rows: Rows of the sample schema, one or more.
            count_tokens: Gives the tokens of a row.
            probes: How many rows are counted at the most.
        """
        places = np.unique(np.linspace(0, len(rows) - 1, min(probes, len(rows))).astype(int))
        probed = [rows[int(place)] for place in places]
        sizes = np.array([_size(row) for row in probed], dtype=float)
        tokens = np.array([count_tokens(row) for row in probed], dtype=float)
        # a little ridge: rows that are all alike say nothing about one of the three
        gram = sizes.T @ sizes + 1e-3 * np.eye(3)
        return cls(*np.maximum(np.linalg.solve(gram, sizes.T @ tokens), 0.0).tolist())

    def __call__(self, row: Mapping[str, Any]) -> int:
        """Estimates the tokens of a row of the sample schema."""
        return max(1, round(float(self.weights @ _size(row))))

    def of_dataset(self, rows: Dataset | Sequence[Mapping[str, Any]]) -> list[int]:
        """Estimates the tokens of every row, images left alone."""
        if isinstance(rows, Dataset):
            rows = rows.select_columns(["messages"])
        return [self(row) for row in tqdm(rows, desc="Estimating lengths", unit="row", disable=len(rows) < 10_000)]


def _size(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Messages, characters and images of a row."""
    parts = [part for message in row["messages"] for part in message["content"]]
    images = sum(part["type"] == "image" for part in parts)
    return len(row["messages"]), sum(len(part["text"] or "") for part in parts if part["type"] == "text"), images
