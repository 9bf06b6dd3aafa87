"""Which slice ends of each sample are trained in a step."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def sample_key(sample_id: str) -> int:
    """A stable 63-bit number for a sample's id, so that it fits into a tensor.

    >>> sample_key("story-1") == sample_key("story-1")
    True
    """
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def draw_slice_ends(
    lengths: Sequence[int],
    keys: Sequence[int],
    positions_per_sample: int | None = None,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Draws up to K slice ends from each sample, uniformly and without replacement (method: K ends per sample).

    The draw of a sample depends on the seed, the step and the sample alone: not on its place in the batch, on how the
    batch is cut into micro-batches, on worker processes or on draws before. A resumed run therefore draws what the
    uninterrupted one would have drawn.

    Args:
        lengths: Number of slices of each sample.
        keys: A non-negative number that stands for each sample, see [`sample_key`].
        positions_per_sample: K. A sample with fewer slices gives all of them; None takes all slices of all samples.
        seed: Seed of the run.
        step: Number of the optimizer step.

    Returns:
        Rows of sample index and 0-based slice index, in ascending order.

    Shape:
        - Output: `(n, 2)`, int64.

    >>> draw_slice_ends([2, 3], [7, 8]).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    >>> draw_slice_ends([9, 9], [7, 8], positions_per_sample=2).shape
    torch.Size([4, 2])
    """
    rows = []
    for sample, (length, key) in enumerate(zip(lengths, keys, strict=True)):
        if positions_per_sample is None or length <= positions_per_sample:
            drawn = list(range(length))
        else:
            generator = np.random.default_rng((seed, step, key))
            drawn = sorted(generator.choice(length, size=positions_per_sample, replace=False).tolist())
        rows += [(sample, end) for end in drawn]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 2)  # (n, 2)
