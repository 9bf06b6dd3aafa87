"""The structure loss of a step: its value and its gradient with respect to the embeddings, over all processes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix, label_statistics, structure_loss

# Rows of the matrix of pairs whose graph is held at once.
ROWS = 512


@dataclass
class StructureTerm:
    """L_d of the slice ends of a step.

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
    """Computes L_d (eq. 5) and dL_d/dr at once, so that the model's own graph never holds the pairs.

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
        found = label_statistics(labels[:, rows], leaf.detach()[rows])
        # a batch whose labels are all equal has no rank correlation
        statistics = {f"label_{name}": number for name, number in found.items() if not math.isnan(number)}
    return StructureTerm(value, None if gradient is None else gradient[rows], statistics, len(ends), len(features))


class KnownGradient(torch.autograd.Function):
    """A loss of known value and gradient: `KnownGradient.apply(embeddings, value, gradient)`."""

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
    """Embeddings, teacher vectors and ends of all processes, and which of the ends are this one's."""
    device = embeddings.device
    sizes = torch.tensor([[len(features), features.is_image.shape[1], len(ends)]], device=device)
    sizes = accelerator.gather(sizes)  # (processes, 3)
    samples, slices, counts = sizes.unbind(1)
    own = accelerator.process_index
    counts_before, samples_before = int(counts[:own].sum()), int(samples[:own].sum())

    def gathered(tensor: Tensor, number: Tensor) -> Tensor:
        """Rows of all processes, which have `number` of them each: (sum of numbers, ...)."""
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
