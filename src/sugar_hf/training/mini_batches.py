"""Batches of samples of similar length, and batches larger than memory, which are cut into mini-batches."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.data import Sampler
from tqdm.auto import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

PROBED_ROWS = 32
# Columns that hold what is said in a row, in the sample schema and in the forms of other tools.
TURNS = ("messages", "prompt", "completion", "conversations", "text", "caption")


class LengthEstimate:
    """Estimate the tokens of a row without opening its images, linearly from its characters and images.

    It is fitted to rows whose tokens are counted. It need not be exact to put samples of similar length together.

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
    ) -> "LengthEstimate":
        """Fit the estimate to evenly spaced rows.

        Args:
            rows: Rows of the sample schema, one or more.
            count_tokens: Gives the tokens of a row, None for one that cannot be used.

        Raises:
            ValueError: None of the probed rows can be used.
        """
        places = np.unique(np.linspace(0, len(rows) - 1, min(PROBED_ROWS, len(rows))).astype(int))
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
        """Estimate the tokens of a row of the sample schema."""
        return max(1, round(float(self.weights @ _size(row))))

    def of_dataset(self, rows: Dataset | Sequence[Mapping[str, Any]]) -> list[int]:
        """Estimate the tokens of every row."""
        if isinstance(rows, Dataset):
            rows = rows.select_columns([name for name in TURNS if name in rows.column_names])
        return [self(row) for row in tqdm(rows, desc="Estimating lengths", unit="row", disable=len(rows) < 10_000)]


class LengthSampler(Sampler[int]):
    """Order rows so that those of similar length stand together, anew in each epoch.

    The order depends on the seed and the epoch alone, so that a resumed run keeps it.

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
    """Count the messages, characters and images of a row of whatever form; a broken one is found elsewhere."""
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


class MiniBatches:
    """Hold the mini-batches of a batch; no list, so that they stay on the CPU until the trainer asks for one.

    Args:
        batches: What the collator made of each.
    """

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def pin_memory(self) -> "MiniBatches":
        """Pin the memory of all tensors; the data loader calls this for faster transfers."""
        return MiniBatches([_pinned(batch) for batch in self.batches])


def each_batch(batches: Sequence[Any]) -> Iterator[Any]:
    """Yield all batches, those of mini-batches one by one."""
    for batch in batches:
        yield from batch if isinstance(batch, MiniBatches) else [batch]


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    return {key: _pinned(item) for key, item in value.items()} if isinstance(value, Mapping) else value


class MiniBatchCollator:
    """Collate the rows of a batch as mini-batches of similar length, the longest first.

    Args:
        collate: Collator of a mini-batch.
        length: Estimates the tokens of a row.
        size: The most samples of a mini-batch; None for no limit.
        tokens: The most tokens of a mini-batch, padding included; None for no limit. A sample that is longer by
            itself is a mini-batch of its own.
    """

    def __init__(
        self,
        collate: Callable[[list[Mapping[str, Any]]], dict[str, Any]],
        length: LengthEstimate,
        size: int | None = None,
        tokens: int | None = None,
    ) -> None:
        self.collate, self.length, self.size, self.tokens = collate, length, size, tokens

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> MiniBatches:
        """Collate rows; see [`SugarCollator`] for what each mini-batch holds and for the errors."""
        lengths = [self.length(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: -lengths[row])  # what does not fit fails at once
        groups: list[list[int]] = []
        for row in order:
            if groups and self._fits(len(groups[-1]) + 1, lengths[groups[-1][0]]):
                groups[-1].append(row)
            else:
                groups.append([row])
        batches = []
        for group in groups:
            batches += self._collated([rows[row] for row in group])
        return MiniBatches(_without_empty(batches))

    def _fits(self, samples: int, longest: int) -> bool:
        return (self.size is None or samples <= self.size) and (
            self.tokens is None or samples * longest <= self.tokens
        )

    def _collated(self, rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return one mini-batch, or more where the estimate was too low."""
        batch = self.collate(rows)
        if len(rows) == 1 or self.tokens is None or batch["input_ids"].numel() <= self.tokens:
            return [batch]
        middle = len(rows) // 2
        return self._collated(rows[:middle]) + self._collated(rows[middle:])


def _without_empty(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mini-batches that have a sample left, or one if none has; the first lists what was left out."""
    kept = [batch for batch in batches if batch.get("sample_ids", True)] or batches[:1]
    if len(kept) < len(batches):
        kept[0]["bad_samples"] = [text for batch in batches for text in batch["bad_samples"]]
        for batch in kept[1:]:
            batch["bad_samples"] = []
    return kept


class RandomState:
    """Keep the state of the random generators before a forward pass, so that a second one draws the same dropout.

    Args:
        inputs: A tensor on the device in use.
    """

    def __init__(self, inputs: Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(inputs)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Return to that state within a block; afterwards to the one before it."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield


@dataclass
class MiniBatch:
    """Tell which part of a batch is being computed, and what a first pass has found.

    Args:
        count: Number of mini-batches of the batch.
        random_state: State of the random generators in the first pass; None if there was none.
        gradient: (n, d) gradient of L_d with respect to the embeddings of its n slice ends; None without L_d.
        value: () L_d of the whole batch; None without L_d.
    """

    count: int = 1
    random_state: RandomState | None = None
    gradient: Tensor | None = None
    value: Tensor | None = None
