"""A batch cut into mini-batches that fit into memory, and what one needs to run each of them twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from .lengths import LengthEstimate


class MiniBatches:
    """The mini-batches of a batch. Not a list, so that they stay on the CPU until the trainer asks for one.

    Args:
        batches: What the collator made of each.
    """

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def pin_memory(self) -> MiniBatches:
        """Called by the data loader for faster transfers."""
        return MiniBatches([_pinned(batch) for batch in self.batches])


def each_batch(batches: Sequence[Any]) -> Iterator[Any]:
    """All batches, those of mini-batches one by one."""
    for batch in batches:
        if isinstance(batch, MiniBatches):
            yield from batch
        else:
            yield batch


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    return {key: _pinned(item) for key, item in value.items()} if isinstance(value, Mapping) else value


class MiniBatchCollator:
    """Collates the rows of a batch as mini-batches of like length, the longest first.

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
        """Collates rows; see [`SugarCollator`] for what each mini-batch holds and for the errors."""
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
        """One mini-batch, or more where the estimate was too low."""
        batch = self.collate(rows)
        if len(rows) == 1 or self.tokens is None or batch["input_ids"].numel() <= self.tokens:
            return [batch]
        middle = len(rows) // 2
        return self._collated(rows[:middle]) + self._collated(rows[middle:])


def _without_empty(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The mini-batches that have a sample left, or one if none has; what was left out is told with the first."""
    kept = [batch for batch in batches if batch.get("sample_ids", True)] or batches[:1]
    if len(kept) < len(batches):
        kept[0]["bad_samples"] = [text for batch in batches for text in batch["bad_samples"]]
        for batch in kept[1:]:
            batch["bad_samples"] = []
    return kept


class RandomState:
    """The state of the random generators before a forward pass, so that a second one draws the same dropout.

    Args:
        inputs: A tensor on the device in use.
    """

    def __init__(self, inputs: Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(inputs)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Within it the generators go on from that state; afterwards from where they were."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield
