"""The structure loss of a step: which slice ends it ranges over, its value and its gradient, over all processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..structure import SliceFeatures, StructureLossConfig, label_matrix, label_statistics, structure_loss

# Rows of the matrix of pairs whose graph is held at once.
ROWS = 512


def draw_slice_ends(
    lengths: Sequence[int],
    keys: Sequence[int],
    positions_per_sample: int | None = None,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    """Draw up to K slice ends from each sample, uniformly and without replacement.

    The draw of a sample depends on the seed, the step and the sample alone: not on its place in the batch, on how the
    batch is cut into micro-batches, on worker processes or on draws before. A resumed run therefore draws what the
    uninterrupted one would have drawn.

    Args:
        lengths: Number of slices of each sample.
        keys: A non-negative number that stands for each sample, see `sample_keys` of [`SugarCollator`].
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


@dataclass
class StructureTerm:
    """Hold L_d of the slice ends of a step.

    Args:
        value: () L_d, the same on all processes.
        gradient: (n, d) gradient of L_d with respect to this process's embeddings, multiplied by the number of
            processes: data-parallel training takes the mean of their gradients. None if it was not asked for.
        statistics: Label statistics of this process's ends, if they were asked for.
        ends: Number of the ends that pairs were formed of.
        samples: Number of their samples.
    """

    value: Tensor
    gradient: Tensor | None
    statistics: dict[str, float]
    ends: int = 0
    samples: int = 0


def structure_term(
    embeddings: Tensor,
    features: SliceFeatures,
    ends: Tensor,
    config: StructureLossConfig,
    *,
    accelerator: Accelerator | None = None,
    with_gradient: bool = True,
    with_statistics: bool = False,
) -> StructureTerm:
    """Compute L_d (eq. 5) and dL_d/dr at once, so that the model's own graph never holds the pairs.

    Over several processes embeddings, teacher vectors and ends are gathered; each process makes the rows of the label
    matrix that belong to its own ends, and the gradients of all rows are summed. Value and gradient are those of one
    process with the whole batch.

    Args:
        embeddings: Embeddings r of this process's slice ends; their graph is not used.
        features: Teacher vectors of its B samples.
        ends: Sample index in `features` and slice index of each end.
        config: The structure loss.
        accelerator: Gathers over its processes; None takes this process's pairs alone.
        with_gradient: Whether the gradient is computed.
        with_statistics: Whether label statistics are computed.

    Shape:
        embeddings `(n, d)` float, ends `(n, 2)` int64; n may differ between processes.
    """
    embeddings = embeddings.detach()
    rows = slice(0, len(ends))
    processes = 1 if accelerator is None else accelerator.num_processes
    if accelerator is not None and processes > 1:
        embeddings, features, ends, rows = _gather(accelerator, embeddings, features, ends)
    if not len(ends):  # no sample is left in any process
        nothing = torch.zeros((), device=embeddings.device)
        return StructureTerm(nothing, torch.zeros_like(embeddings) if with_gradient else None, {})
    leaf = embeddings.requires_grad_(with_gradient)
    # with all rows, only half of the symmetric matrix is computed
    if processes > 1 and rows.start == rows.stop:
        labels = embeddings.new_zeros(0, len(ends))
    else:
        labels = label_matrix(features, ends, config, row_ends=ends[rows] if processes > 1 else None)  # (n, N)
    indices = torch.arange(len(ends), device=ends.device)[rows]
    value = torch.zeros((), device=embeddings.device)
    gradient = torch.zeros_like(embeddings) if with_gradient else None  # (N, d)
    for some, their_labels in zip(indices.split(ROWS), labels.split(ROWS), strict=True):
        with torch.enable_grad():
            share = structure_loss(leaf, their_labels, config, sample_ids=ends[:, 0], rows=some)
        if gradient is not None:
            gradient += torch.autograd.grad(share, leaf)[0]
        value = value + share.detach()
    if accelerator is not None and processes > 1:
        value = accelerator.reduce(value, reduction="sum")
        gradient = None if gradient is None else accelerator.reduce(gradient, reduction="sum") * processes
    statistics: dict[str, float] = {}
    if with_statistics and len(indices) > 1:
        measured = label_statistics(labels[:, rows], leaf.detach()[rows])
        # a batch whose labels are all equal has no rank correlation
        statistics = {f"label_{name}": number for name, number in measured.items() if not math.isnan(number)}
    return StructureTerm(value, None if gradient is None else gradient[rows], statistics, len(ends), len(features))


class KnownGradient(torch.autograd.Function):
    """Join a known value and gradient to the graph: `KnownGradient.apply(embeddings, value, gradient)`."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Return the value."""
        ctx.save_for_backward(gradient.to(embeddings.dtype))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the embeddings, times that of what the loss is part of."""
        (gradient,) = ctx.saved_tensors
        return outer[0] * gradient, None, None


def _gather(
    accelerator: Accelerator, embeddings: Tensor, features: SliceFeatures, ends: Tensor
) -> tuple[Tensor, SliceFeatures, Tensor, slice]:
    """Return the embeddings, teacher vectors and ends of all processes, and which of the ends are this one's."""
    device = embeddings.device
    sizes = torch.tensor([[len(features), features.is_image.shape[1], len(ends)]], device=device)
    sizes = accelerator.gather(sizes)  # (processes, 3)
    samples, slices, counts = sizes.unbind(1)
    own = accelerator.process_index
    counts_before, samples_before = int(counts[:own].sum()), int(samples[:own].sum())

    def gathered(tensor: Tensor, number: Tensor) -> Tensor:
        """Return the rows of all processes, which have `number` of them each: (sum of numbers, ...)."""
        most = int(number.max())
        padded = tensor.new_zeros(most, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = accelerator.gather(padded).split(most)
        return torch.cat([part[: int(size)] for part, size in zip(parts, number, strict=True)])

    features = features.padded(int(slices.max()))
    fields = {name: gathered(tensor, samples) for name, tensor in vars(features).items()}
    numbered = ends + torch.tensor([samples_before, 0], device=ends.device)
    return (
        gathered(embeddings, counts),
        replace(features, **fields),
        gathered(numbered.to(device), counts),
        slice(counts_before, counts_before + len(ends)),
    )
