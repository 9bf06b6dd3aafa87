"""An order of rows in which no batch has a sample twice."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from tqdm.auto import tqdm
from transformers.trainer_utils import has_length

from ..data.readers import stored_rows
from .arguments import StructureArguments
from .collator import LengthSampler
from .pair_batches import row_keys

logger = logging.getLogger(__name__)


def keys_of_rows(rows: Dataset | Sequence[Mapping[str, Any]]) -> list[set[int]]:
    """Return the keys of the samples of every row; no image is decoded, and no file opened.

    Raises:
        BadSampleError: A row of the data set cannot be read at all.
    """
    found = []
    for row in tqdm(stored_rows(rows), desc="Looking for equal samples", unit="row", delay=2.0, total=len(rows)):
        if isinstance(row, Exception):
            raise row
        found.append(row_keys(row))
    return found


class ShuffledSampler(Sampler[int]):
    """Order rows at random. The order depends on the seed and the epoch alone, so that a resumed run keeps it.

    Args:
        count: Number of rows.
        seed: Seed of the order.
        epoch: Tells the epoch when the sampler is iterated over.
    """

    def __init__(self, count: int, seed: int, epoch: Callable[[], int]) -> None:
        self.count, self.seed, self.epoch = count, seed, epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(torch.randperm(self.count, generator=generator).tolist())


class NoDuplicatesSampler(Sampler[int]):
    """Order rows so that no batch has two rows with a sample in common, in another order in each epoch.

    Rows keep the order that they are given, but one that has a sample in common with another of its batch waits for
    the next. At the end of an epoch there may be no batch left that could take it: then it stands beside an equal
    sample, which counts as a positive, and the log says how many such rows there are. The order depends on that of the
    rows alone, so that a resumed run keeps it.

    Args:
        keys: Keys of the samples of each row.
        batch_size: Number of rows of a batch, over all processes.
        order: Gives the order of the rows, another one in each epoch.

    >>> list(NoDuplicatesSampler([{1}, {1}, {2}, {3}], 2, [0, 1, 2, 3]))
    [0, 2, 1, 3]
    """

    def __init__(self, keys: Sequence[set[int]], batch_size: int, order: Iterable[int]) -> None:
        self.keys, self.batch_size, self.order = keys, batch_size, order

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[int]:
        arriving = iter(self.order)
        waiting: dict[int, deque[int]] = {}  # rows, by a key that another row of their batch had
        left = len(self.keys)
        crowded = 0
        while left:
            batch: list[int] = []
            seen: set[int] = set()

            def take(row: int, batch: list[int] = batch, seen: set[int] = seen) -> None:
                if common := self.keys[row] & seen:
                    waiting.setdefault(min(common), deque()).append(row)
                else:
                    seen |= self.keys[row]
                    batch.append(row)

            # of the rows that wait for one key only one can be in a batch
            for key in sorted(waiting, key=lambda key: -len(waiting[key])):
                if len(batch) == self.batch_size:
                    break
                if key in waiting and key not in seen:
                    row = waiting[key].popleft()
                    if not waiting[key]:
                        del waiting[key]
                    take(row)
            while len(batch) < self.batch_size and (row := next(arriving, -1)) >= 0:
                take(row)
            size = min(self.batch_size, left)
            while len(batch) < size:  # nothing else is left
                key = max(waiting, key=lambda key: len(waiting[key]))
                batch.append(waiting[key].popleft())
                crowded += 1
                if not waiting[key]:
                    del waiting[key]
            left -= len(batch)
            yield from batch
        if crowded:
            logger.warning(
                f"{crowded} of {len(self.keys)} rows stand beside an equal sample in a batch at the end of the epoch, "
                "as no other batch was left for them. Equal samples count as positives."
            )


def is_own_order(dataset: Any, args: StructureArguments) -> bool:
    """Tell whether the arguments ask for an order that the base trainer may not know.

    Raises:
        ValueError: Equal samples are to be kept apart in a data set that has no length.
    """
    values: Any = args
    if args.batch_sampler == "no_duplicates" and not has_length(dataset):
        raise ValueError("batch_sampler='no_duplicates' looks at all rows first: give a data set with a length.")
    is_ordered = args.batch_sampler == "no_duplicates" or values.train_sampling_strategy == "group_by_length"
    return is_ordered and has_length(dataset)


def train_sampler(
    dataset: Any, args: StructureArguments, epoch: Callable[[], int], lengths: Callable[[], list[int]]
) -> Sampler | None:
    """Return the sampler of the training rows that the arguments ask for; None if it is the base trainer's.

    Args:
        dataset: The training set.
        args: `batch_sampler`, and of the base `train_sampling_strategy`, `length_column_name`, seeds and batch sizes.
        epoch: Tells the epoch when the sampler is iterated over.
        lengths: Estimates the length of each row.
    """
    values: Any = args
    is_apart, is_by_length = args.batch_sampler == "no_duplicates", values.train_sampling_strategy == "group_by_length"
    has_column = isinstance(dataset, Dataset) and values.length_column_name in dataset.column_names
    if not is_apart and (not is_by_length or has_column or not has_length(dataset)):
        return None
    seed = values.seed if values.data_seed is None else values.data_seed
    sampler: Sampler[int] = ShuffledSampler(len(dataset), seed, epoch)
    if is_by_length:
        of_rows = list(dataset[values.length_column_name]) if has_column else lengths()
        together = values.train_batch_size * values.gradient_accumulation_steps
        sampler = LengthSampler(of_rows, together, seed, epoch)
    elif values.train_sampling_strategy == "sequential":
        sampler = SequentialSampler(dataset)
    if is_apart:
        sampler = NoDuplicatesSampler(keys_of_rows(dataset), values.train_batch_size * values.world_size, sampler)
    return sampler
