"""The structure loss of a step: which slice ends it ranges over, its value and its gradient, over all processes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..structure import PairLabels, SliceFeatures, StructureLossConfig, label_matrix, label_statistics, structure_loss

# Rows of the matrix of pairs whose graph is held at once.
ROWS = 512
WITHOUT_VECTORS = (
    "A part of the batch has teacher vectors, and another has none. Cache the whole data set with "
    "TripleTeacher.cache, or no part of it."
)


def draw_slice_ends(
    lengths: Sequence[int],
    keys: Sequence[int],
    positions_per_sample: int | None = None,
    seed: int = 0,
    step: int = 0,
    keep_last: Sequence[bool] | None = None,
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
        keep_last: Whether the last end of each sample is among those that are drawn, as it has to be in pairs.

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
            last = int(keep_last is not None and keep_last[sample])
            size = positions_per_sample - last
            drawn = sorted(generator.choice(length - last, size=size, replace=False).tolist())
            drawn += [length - 1] * last
        rows += [(sample, end) for end in drawn]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 2)  # (n, 2)


@dataclass
class StructureTerm:
    """Hold L_d of the slice ends of a step.

    Args:
        value: () L_d, the same on all processes.
        gradient: (n, d) gradient of L_d with respect to this process's embeddings, multiplied by the number of
            processes: data-parallel training takes the mean of their gradients. None if it was not asked for.
        scale_gradient: () gradient of L_d with respect to the logit scale, the same on all processes, if there is one.
        statistics: Label statistics of this process's ends, if they were asked for.
        ends: Number of the ends that pairs were formed of.
        samples: Number of their samples.
    """

    value: Tensor
    gradient: Tensor | None
    statistics: dict[str, float]
    ends: int = 0
    samples: int = 0
    scale_gradient: Tensor | None = None


def structure_term(
    embeddings: Tensor,
    features: SliceFeatures | None,
    ends: Tensor,
    config: StructureLossConfig,
    *,
    known: PairLabels | None = None,
    accelerator: Accelerator | None = None,
    with_gradient: bool = True,
    with_statistics: bool = False,
    logit_scale: Tensor | None = None,
) -> StructureTerm:
    """Compute L_d (eq. 5) and dL_d/dr at once, so that the model's own graph never holds the pairs.

    Over several processes embeddings, teacher vectors and ends are gathered; each process makes the rows of the label
    matrix that belong to its own ends, and the gradients of all rows are summed. Value and gradient are those of one
    process with the whole batch.

    What is known of pairs overrides the labels of the alignment; see [`PairLabels.compose`]. The alignment has none
    without teacher vectors.

    Args:
        embeddings: Embeddings r of this process's slice ends; their graph is not used.
        features: Teacher vectors of its B samples; None for none.
        ends: Sample index in `features` and slice index of each end.
        config: The structure loss.
        known: What is known of pairs of its samples; needed without teacher vectors.
        accelerator: Gathers over its processes; None takes this process's pairs alone.
        with_gradient: Whether the gradient is computed.
        with_statistics: Whether label statistics are computed.
        logit_scale: Log of 1 / temperature, for `learn_temperature`; the same on all processes.

    Shape:
        embeddings `(n, d)` float, ends `(n, 2)` int64, logit_scale `()`; n may differ between processes.
    """
    embeddings = embeddings.detach()
    rows = slice(0, len(ends))
    processes = 1 if accelerator is None else accelerator.num_processes
    if accelerator is not None and processes > 1:
        embeddings, features, known, ends, rows = _gather(accelerator, embeddings, features, known, ends)
    if not len(ends):  # no sample is left in any process
        nothing = torch.zeros((), device=embeddings.device)
        none = StructureTerm(nothing, None, {})
        if with_gradient:
            none.gradient = torch.zeros_like(embeddings)
            none.scale_gradient = None if logit_scale is None else torch.zeros_like(logit_scale)
        return none
    leaf = embeddings.requires_grad_(with_gradient)
    learnt = [leaf]
    if logit_scale is not None:
        logit_scale = logit_scale.detach().requires_grad_(with_gradient)
        learnt.append(logit_scale)
    labels = None
    # with all rows, only half of the symmetric matrix is computed
    if processes > 1 and rows.start == rows.stop:
        labels = embeddings.new_zeros(0, len(ends))
    elif features is not None:
        labels = label_matrix(features, ends, config, row_ends=ends[rows] if processes > 1 else None)  # (n, N)
    groups, anchors = ends[:, 0], None
    positives = left_out = None
    if known is not None:
        whole = known.compose(labels if features is not None else None, ends, config, rows)
        labels, groups, anchors = whole.labels, whole.groups, whole.anchors
        positives, left_out = whole.positives, whole.left_out
    assert labels is not None
    indices = torch.arange(len(ends), device=ends.device)[rows]
    value = torch.zeros((), device=embeddings.device)
    gradients = [torch.zeros_like(each) for each in learnt] if with_gradient else []  # (N, d), ()
    for start in range(0, len(indices), ROWS):
        part = slice(start, start + ROWS)
        with torch.enable_grad():
            share = structure_loss(
                leaf,
                labels[part],
                config,
                sample_ids=groups,
                rows=indices[part],
                positives=None if positives is None else positives[part],
                left_out=None if left_out is None else left_out[part],
                anchors=anchors,
                logit_scale=logit_scale,
            )
        if with_gradient:
            parts = torch.autograd.grad(share, learnt)
            gradients = [total + part_of for total, part_of in zip(gradients, parts, strict=True)]
        value = value + share.detach()
    if accelerator is not None and processes > 1:
        value = accelerator.reduce(value, reduction="sum")
        gradients = [accelerator.reduce(each, reduction="sum") for each in gradients]
    statistics: dict[str, float] = {}
    if with_statistics and len(indices) > 1:
        measured = label_statistics(labels[:, rows], leaf.detach()[rows])
        # a batch whose labels are all equal has no rank correlation
        statistics = {f"label_{name}": number for name, number in measured.items() if not math.isnan(number)}
    samples = len(known) if features is None and known is not None else len(features or ())
    return StructureTerm(
        value,
        gradients[0][rows] * processes if with_gradient else None,
        statistics,
        len(ends),
        samples,
        gradients[1] if len(gradients) > 1 else None,
    )


def structure_parts(batch: dict[str, Any], needed: bool = True) -> tuple[SliceFeatures | None, PairLabels | None]:
    """Take teacher vectors, and what is known of pairs, out of a batch.

    Raises:
        ValueError: It has neither, though it is needed.
    """
    features, known = batch.pop("structure_features", None), batch.pop("pair_labels", None)
    if needed and features is None and known is None:
        raise ValueError(
            "The batch has no teacher vectors to make labels from, and no pairs. Store vectors with "
            "TripleTeacher.cache, give the collator a teacher, train on pairs, or set alpha=0 to train the "
            "language-model loss alone."
        )
    return None if features is None else SliceFeatures(**features), None if known is None else PairLabels(**known)


def joined_parts(
    features: Sequence[SliceFeatures | None], known: Sequence[PairLabels | None]
) -> tuple[SliceFeatures | None, PairLabels | None]:
    """Put the teacher vectors of mini-batches, and what is known of pairs, into one.

    Raises:
        ValueError: Some of the mini-batches have teacher vectors, and some have none.
    """
    vectors = [each for each in features if each is not None]
    if 0 < len(vectors) < len(features):
        raise ValueError(WITHOUT_VECTORS)
    pairs = [each for each in known if each is not None]
    if 0 < len(pairs) < len(known):  # those without are of rows that know nothing of pairs
        start, pairs = -1, []
        for each, own in zip(known, vectors, strict=True):
            numbers = start - torch.arange(len(own), device=own.lengths.device)
            pairs.append(PairLabels.unknown(numbers, own.lengths) if each is None else each)
            start -= len(own)
    return SliceFeatures.cat(vectors) if vectors else None, PairLabels.cat(pairs) if pairs else None


class KnownGradient(torch.autograd.Function):
    """Join a known value and gradient to the graph: `KnownGradient.apply(embeddings, value, gradient)`.

    A logit scale and its gradient may follow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        value: Tensor,
        gradient: Tensor,
        logit_scale: Tensor | None = None,
        scale_gradient: Tensor | None = None,
    ) -> Tensor:
        """Return the value."""
        ctx.save_for_backward(gradient.to(embeddings.dtype), scale_gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the embeddings and the scale, times that of what the loss is part of."""
        gradient, scale_gradient = ctx.saved_tensors
        return outer[0] * gradient, None, None, None if scale_gradient is None else outer[0] * scale_gradient, None


def _gather(
    accelerator: Accelerator,
    embeddings: Tensor,
    features: SliceFeatures | None,
    known: PairLabels | None,
    ends: Tensor,
) -> tuple[Tensor, SliceFeatures | None, PairLabels | None, Tensor, slice]:
    """Return what all processes have of each, and which of the ends are this one's.

    Raises:
        ValueError: Some of the processes have teacher vectors, and some have none.
    """
    device = embeddings.device
    count = len(features) if features is not None else 0 if known is None else len(known)
    own_sizes = [
        count,
        -1 if features is None else features.is_image.shape[1],
        len(ends),
        -1 if known is None else len(known.pairs),
    ]
    sizes = accelerator.gather(torch.tensor([own_sizes], device=device))  # (processes, 4)
    samples, slices, counts, pairs = sizes.unbind(1)
    own = accelerator.process_index
    counts_before, samples_before = int(counts[:own].sum()), int(samples[:own].sum())

    def gathered(tensor: Tensor, number: Tensor) -> Tensor:
        """Return the rows of all processes, which have `number` of them each: (sum of numbers, ...)."""
        most = int(number.max())
        padded = tensor.new_zeros(most, *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = accelerator.gather(padded).split(most) if most else [padded] * len(number)
        return torch.cat([part[: int(size)] for part, size in zip(parts, number, strict=True)])

    if int(pairs.max()) >= 0 and known is None and features is not None:  # other processes have some
        numbers = -1 - samples_before - torch.arange(count, device=device)
        known = PairLabels.unknown(numbers, features.lengths)
    if features is not None:
        if int(slices.min()) < 0:
            raise ValueError(WITHOUT_VECTORS)
        features = features.padded(int(slices.max()))
        features = replace(features, **{name: gathered(tensor, samples) for name, tensor in vars(features).items()})
    elif int(slices.max()) >= 0:
        raise ValueError(WITHOUT_VECTORS)
    if known is not None:
        rows = pairs.clamp(min=0)
        known = PairLabels(
            samples=gathered(known.samples, samples),
            lengths=gathered(known.lengths, samples),
            pairs=gathered(known.pairs, rows),
            labels=gathered(known.labels, rows),
        )
    numbered = ends + torch.tensor([samples_before, 0], device=ends.device)
    return (
        gathered(embeddings, counts),
        features,
        known,
        gathered(numbered.to(device), counts),
        slice(counts_before, counts_before + len(ends)),
    )
