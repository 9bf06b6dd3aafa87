"""Lengths of samples in tokens, estimated from their characters and images, to sort and cut batches by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

PROBED_ROWS = 32
# Columns that hold what is said in a row, in the sample schema and in the forms of other tools.
TURNS = ("messages", "prompt", "completion", "conversations", "text", "caption")


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
        count_tokens: Callable[[Mapping[str, Any]], int | None],
        probes: int = PROBED_ROWS,
    ) -> LengthEstimate:
        """Fits the estimate to evenly spaced rows.

        Args:
            rows: Rows of the sample schema, one or more.
            count_tokens: Gives the tokens of a row, None for one that cannot be used.
            probes: How many rows are counted at the most.

        Raises:
            ValueError: None of the probed rows can be used.
        """
        places = np.unique(np.linspace(0, len(rows) - 1, min(probes, len(rows))).astype(int))
        counted = [(row, count_tokens(row)) for row in (rows[int(place)] for place in places)]
        probed = [(row, count) for row, count in counted if count is not None]
        if not probed:
            raise ValueError(f"None of {len(counted)} rows spread over the training set can be used.")
        sizes = np.array([_size(row) for row, _ in probed], dtype=float)
        tokens = np.array([count for _, count in probed], dtype=float)
        # a little ridge: rows that are all alike say nothing about one of the three
        gram = sizes.T @ sizes + 1e-3 * np.eye(3)
        return cls(*np.maximum(np.linalg.solve(gram, sizes.T @ tokens), 0.0).tolist())

    def __call__(self, row: Mapping[str, Any]) -> int:
        """Estimates the tokens of a row of the sample schema."""
        return max(1, round(float(self.weights @ _size(row))))

    def of_dataset(self, rows: Dataset | Sequence[Mapping[str, Any]]) -> list[int]:
        """Estimates the tokens of every row, images left alone."""
        if isinstance(rows, Dataset):
            rows = rows.select_columns([name for name in TURNS if name in rows.column_names])
        return [self(row) for row in tqdm(rows, desc="Estimating lengths", unit="row", disable=len(rows) < 10_000)]


class LengthSampler(Sampler[int]):
    """Rows in an order that puts those of like length together, drawn anew for each epoch.

    The order depends on the seed and the epoch alone, so that a resumed run goes on in it.

    Args:
        lengths: Length of each row.
        batch_size: Number of rows that should be alike.
        seed: Seed of the order.
        epoch: Tells the epoch when the sampler is iterated over.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def _size(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Messages, characters and images of a row, of whatever form; a broken one has less, and is found elsewhere."""
    turns: list[Any] = []
    for name in TURNS:
        value = row.get(name)
        turns += value if isinstance(value, list) else [] if value is None else [{"content": value}]
    characters = images = 0
    for turn in turns:
        content = (turn.get("content") or turn.get("value")) if isinstance(turn, Mapping) else turn
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, Mapping):
                images += part.get("type") == "image"
                part = part.get("text")
            characters += len(part) if isinstance(part, str) else 0
    listed = row.get("images")
    return len(turns), characters, max(images, len(listed) if isinstance(listed, list) else 0)
