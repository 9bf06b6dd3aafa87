"""The labels of the structure loss (eq. 2 to 5): the teachers' vectors of a batch, and the matrix made from them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import normalize

from .alignment import (
    TWO_LOG_2,
    calibrated_cosine,
    default_cells,
    log_gak,
    log_kernel_at,
    mirrored,
    precise,
    row_chunks,
    soft_alignment,
)
from .config import TEACHERS, StructureLossConfig, check_block_means

VECTOR_COLUMNS = ("teacher_clip", "teacher_dino", "teacher_text")
TEACHER_COLUMNS = (*VECTOR_COLUMNS, "teacher_is_image", "teacher_fingerprint")


@dataclass
class SliceFeatures:
    """Teacher side of a batch: one vector per slice and teacher, padded to the longest sample.

    Attributes:
        clip: unit vectors in the space of images and texts, that of CLIP or of an `EncoderTeacher`'s encoder.
        dino: unit vectors of image slices, zeros for text slices. Of width 0 if `clip` compares images, too.
        text: unit vectors of text slices, zeros for image slices. Of width 0 if `clip` compares texts, too.
        is_image: modality of each slice; False on padding.
        lengths: number of real slices of each sample.

    Shape:
        clip (B, S, d_clip), dino (B, S, d_dino), text (B, S, d_text), is_image (B, S) bool, lengths (B,) int64.
        Padding holds zeros.
    """

    clip: Tensor
    dino: Tensor
    text: Tensor
    is_image: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        shape = self.is_image.shape
        if len(shape) != 2:
            raise ValueError(f"is_image must have shape (samples, slices); got {tuple(shape)}.")
        for name, vectors in (("clip", self.clip), ("dino", self.dino), ("text", self.text)):
            if vectors.dim() != 3 or vectors.shape[:2] != shape:
                raise ValueError(f"{name} must have shape {(*shape, 'd')} like is_image; got {tuple(vectors.shape)}.")
        if self.lengths.shape != shape[:1]:
            raise ValueError(f"lengths must have shape ({shape[0]},); got {tuple(self.lengths.shape)}.")

    def __len__(self) -> int:
        return self.is_image.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SliceFeatures:
        """Move all tensors to ``device``; cast the vectors, and only them, to ``dtype``."""
        return SliceFeatures(
            clip=self.clip.to(device=device, dtype=dtype),
            dino=self.dino.to(device=device, dtype=dtype),
            text=self.text.to(device=device, dtype=dtype),
            is_image=self.is_image.to(device=device),
            lengths=self.lengths.to(device=device),
        )

    @classmethod
    def cat(cls, parts: Sequence[SliceFeatures]) -> SliceFeatures:
        """Put the samples of several batches into one, padded to the longest of them.

        Shape:
            parts of B_k samples and S_k slices; returns sum B_k samples and max S_k slices.
        """
        longest = max(part.is_image.shape[1] for part in parts)
        padded = [vars(part.padded(longest)) for part in parts]
        return cls(**{name: torch.cat([fields[name] for fields in padded]) for name in padded[0]})

    def padded(self, slices: int) -> SliceFeatures:
        """The same with room for ``slices`` slices, as many as there are or more."""

        def longer(tensor: Tensor) -> Tensor:
            room = tensor.new_zeros(len(tensor), slices, *tensor.shape[2:])
            room[:, : tensor.shape[1]] = tensor
            return room

        fields = {name: longer(tensor) for name, tensor in vars(self).items() if name != "lengths"}
        return SliceFeatures(**fields, lengths=self.lengths)

    @classmethod
    def pad(cls, samples: Sequence[Mapping[str, Any]]) -> SliceFeatures:
        """Collate samples that hold the teacher columns (arrays, tensors or nested lists).

        Args:
            samples: rows with "teacher_clip" (S, d_clip), "teacher_dino" (S, d_dino), "teacher_text" (S, d_text) and
                "teacher_is_image" (S,).

        Returns:
            Features in float32 on the CPU. Vectors are scaled back to unit length, which float16 columns lose a
            little of; zeros stay zeros.

        Raises:
            ValueError: naming the sample and the column, when one is missing or the columns disagree in length.
        """
        if not samples:
            raise ValueError("SliceFeatures.pad needs at least one sample.")
        rows = [_checked_row(number, sample) for number, sample in enumerate(samples)]
        lengths = torch.tensor([len(row["teacher_is_image"]) for row in rows])
        longest = int(lengths.max())
        padded: dict[str, Tensor] = {}
        for column in VECTOR_COLUMNS:
            width = rows[0][column].shape[1]
            padded[column] = torch.zeros(len(rows), longest, width)
            for number, row in enumerate(rows):
                if row[column].shape[1] != width:
                    raise ValueError(
                        f"Sample {number}: {column} has width {row[column].shape[1]}, in sample 0 {width}: "
                        "the samples come from different teachers: cache them again with one teacher."
                    )
                padded[column][number, : lengths[number]] = torch.from_numpy(row[column])
        is_image = torch.zeros(len(rows), longest, dtype=torch.bool)
        for number, row in enumerate(rows):
            is_image[number, : lengths[number]] = torch.from_numpy(row["teacher_is_image"])
        clip, dino, text = (normalize(padded[column], dim=-1) for column in VECTOR_COLUMNS)
        return cls(clip, dino, text, is_image, lengths)


def _checked_row(number: int, sample: Mapping[str, Any]) -> dict[str, np.ndarray]:
    missing = [column for column in (*VECTOR_COLUMNS, "teacher_is_image") if column not in sample]
    if missing:
        raise ValueError(
            f"Sample {number} has no {', '.join(missing)}. Add the teacher columns with "
            "`teacher.cache(dataset, slices=...)`, or give what `teacher.embed` returns."
        )
    is_image = np.asarray(sample["teacher_is_image"], dtype=bool)
    if is_image.ndim != 1 or is_image.size == 0:
        raise ValueError(f"Sample {number}: teacher_is_image must be a list with one entry per slice, and not empty.")
    row = {"teacher_is_image": is_image}
    for column in VECTOR_COLUMNS:
        vectors = np.asarray(sample[column], dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(is_image):
            raise ValueError(
                f"Sample {number}: {column} has shape {vectors.shape}, but teacher_is_image says "
                f"{len(is_image)} slices. Cache the teacher columns again."
            )
        row[column] = vectors
    return row


def features_from_columns(rows: Sequence[Mapping[str, Any]]) -> SliceFeatures:
    """Padded features of data set rows that hold the teacher columns; see :meth:`SliceFeatures.pad`."""
    return SliceFeatures.pad(rows)


def cosine_factors(
    features: SliceFeatures, teachers: str = "triple", block_means: Mapping[str, float] | None = None
) -> tuple[Tensor, Tensor]:
    """Two vectors per slice whose inner product is the (centred) cosine of a pair by its modalities (eq. 4).

    A teacher without an encoder of its own for two images or two texts has columns of width 0 for them: there the
    shared space of "clip" takes its place. Zeros where a teacher does not see a slice make the choice of the block:
    ``left = [dino, text, clip if image, clip if text]`` against ``right = [dino, text, clip if text, clip if image]``.
    Centring, ``(s - mu) / (1 - mu)``, scales those parts and adds one constant per block, so that all distances of a
    batch are one matrix product.

    Shape:
        returns left (B, S, D) and right (B, S, D), float32 or the wider type of the features.

    Raises:
        ValueError: for unknown teachers or block means that do not fit.
    """
    if teachers not in TEACHERS:
        raise ValueError(f"teachers must be one of {', '.join(map(repr, TEACHERS))}; got {teachers!r}.")
    dtype = torch.promote_types(features.clip.dtype, torch.float32)
    is_image = features.is_image.to(dtype)[..., None]  # (B, S, 1)
    is_text = 1 - is_image
    clip = normalize(features.clip.to(dtype), dim=-1)
    is_shared = [teachers == "clip" or not own.shape[-1] for own in (features.dino, features.text)]
    image = (clip if is_shared[0] else normalize(features.dino.to(dtype), dim=-1)) * is_image
    text = (clip if is_shared[1] else normalize(features.text.to(dtype), dim=-1)) * is_text
    across, across_swapped = [clip * is_image, clip * is_text], [clip * is_text, clip * is_image]
    if block_means is None:
        if all(is_shared):
            return clip, clip
        return torch.cat([image, text, *across], -1), torch.cat([image, text, *across_swapped], -1)

    check_block_means(block_means)
    scale = {block: 1 / (1 - mean) for block, mean in block_means.items()}
    shift = {block: -mean / (1 - mean) for block, mean in block_means.items()}
    constants = [  # against a right-hand slice that is an image, and one that is text
        is_image * shift["image-image"] + is_text * shift["image-text"],
        is_image * shift["image-text"] + is_text * shift["text-text"],
    ]
    left = [
        image * scale["image-image"],
        text * scale["text-text"],
        *(part * scale["image-text"] for part in across),
        *constants,
    ]
    return torch.cat(left, -1), torch.cat([image, text, *across_swapped, is_image, is_text], -1)


@torch.no_grad()
def triple_distance(
    x: SliceFeatures,
    y: SliceFeatures,
    teachers: str = "triple",
    block_means: Mapping[str, float] | None = None,
) -> Tensor:
    """Squared distances of all slices of all sample pairs by the pair's modalities (eq. 4): ``2 (1 - cos)``.

    Image pairs are compared by DINOv2, text pairs by BGE, mixed ones by CLIP; with ``teachers="clip"`` all by CLIP.
    With ``block_means`` the cosines are centred by block, which is no part of the paper; a centred cosine below -1,
    which no model could reach, counts as -1.

    Shape:
        x of Bx samples and Sx slices, y of By and Sy; returns (Bx, By, Sx, Sy) in [0, 4]. Padding has no meaning.
    """
    left, _ = cosine_factors(x, teachers, block_means)
    _, right = cosine_factors(y, teachers, block_means)
    cosine = torch.einsum("xid,yjd->xyij", left, right)
    return (2 - 2 * cosine).clamp_(0, 4)


# ---- The label matrix ----


@dataclass
class _Ends:
    """Prefix ends sorted by sample."""

    order: Tensor  # (n,) positions in the caller's order
    samples: Tensor  # (documents,) sample indices in use
    sample: Tensor  # (n,)
    document: Tensor  # (n,) position in ``samples``
    last: Tensor  # (n,) index of the last slice, from 0
    offsets: list[int]  # (documents + 1,) first end of each document


def _sorted_ends(ends: Tensor, features: SliceFeatures, name: str) -> _Ends:
    ends = torch.as_tensor(ends, device=features.lengths.device)
    if ends.dim() != 2 or ends.shape[1] != 2 or ends.is_floating_point():
        raise ValueError(
            f"{name} must be integers of shape (n, 2), rows [sample, slice]; got {tuple(ends.shape)} {ends.dtype}."
        )
    if len(ends) == 0:
        raise ValueError(f"{name} is empty: a label matrix needs at least one prefix end.")
    sample, last = ends.long().unbind(1)
    count = len(features.lengths)
    in_batch = (sample >= 0) & (sample < count)
    wrong = ~in_batch | (last < 0) | (last >= features.lengths[sample.clamp(0, count - 1)])
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}[{row}] is slice {int(last[row])} of sample {int(sample[row])}, which does not exist: the batch "
            f"has {count} samples with {features.lengths.tolist()} slices (both count from 0)."
        )
    order = torch.argsort(sample, stable=True)
    samples, document, counts = torch.unique_consecutive(sample[order], return_inverse=True, return_counts=True)
    offsets = [0, *counts.cumsum(0).tolist()]
    return _Ends(order, samples, sample[order], document, last[order], offsets)


@torch.no_grad()
def label_matrix(
    features: SliceFeatures,
    ends: Tensor,
    config: StructureLossConfig | None = None,
    *,
    row_ends: Tensor | None = None,
    max_cells: int | None = None,
) -> Tensor:
    """Labels M^l of all pairs of prefixes of a batch (section "label matrix" of the method; eq. 2 to 4).

    A prefix is a sample up to and with one of its slices. Its labels do not depend on what comes after, nor on
    padding. All pairs of a block of samples are computed at once; blocks bound the memory, and without ``row_ends``
    only the pairs on and above the diagonal are computed.

    Args:
        features: teacher vectors of the samples.
        ends: prefix ends, rows [sample index in the batch, index of the last slice], both from 0; in any order.
        config: label kernel and its options; the defaults when None.
        row_ends: prefix ends of the rows, where they are not the same as those of the columns.
        max_cells: alignment cells held at once; the default suits the device.

    Shape:
        ends (n, 2) int64, row_ends (r, 2) int64; returns (n, n) or (r, n), float32 or the wider type of the features.
        Carries no gradient.

    Raises:
        ValueError: for an end that does not exist, or for centring without block means.
    """
    config = config or StructureLossConfig()
    if config.centring and config.block_means is None:
        raise ValueError(
            "centring=True needs block_means: measure them on the training set with "
            "sugar_hf.structure.block_means(dataset) and put them into the StructureLossConfig."
        )
    columns = _sorted_ends(ends, features, "ends")
    symmetric = row_ends is None
    rows = columns if row_ends is None else _sorted_ends(row_ends, features, "row_ends")

    slices = int(torch.maximum(rows.last.max(), columns.last.max())) + 1
    left, right = cosine_factors(features, config.teachers, config.block_means if config.centring else None)
    left, right = left[:, :slices], right[:, :slices]
    row_vectors = left[rows.samples].transpose(0, 1)  # (S, documents, D)
    column_vectors = right[columns.samples].transpose(0, 1)

    row_norms = column_norms = None
    if config.label_kernel == "gak":
        column_norms = _self_kernels(left, right, columns, config.delta)
        row_norms = column_norms if symmetric else _self_kernels(left, right, rows, config.delta)

    most_ends = max(stop - start for start, stop in pairwise(rows.offsets))
    pairs = most_ends * math.ceil(len(columns.last) / len(columns.samples))  # prefix pairs of a pair of samples
    shared = config.label_kernel in ("calibrated", "mean")  # one table for all of them
    per_pair = slices * (slices + pairs) if shared else slices * slices * pairs
    budget = max_cells or default_cells(left, slices)
    labels = left.new_empty(len(rows.last), len(columns.last))
    for start, stop in row_chunks(len(rows.samples), len(columns.samples), per_pair, budget, symmetric):
        first = start if symmetric else 0
        block_rows = slice(rows.offsets[start], rows.offsets[stop])
        block_columns = slice(columns.offsets[first], columns.offsets[-1])
        here, there = row_vectors[:, start:stop], column_vectors[:, first:]
        cosine = (here.flatten(0, 1) @ there.flatten(0, 1).T).clamp_(-1, 1)
        cosine = cosine.view(slices, stop - start, slices, -1)
        index = (
            rows.last[block_rows, None],
            rows.document[block_rows, None] - start,
            columns.last[None, block_columns],
            columns.document[None, block_columns] - first,
        )
        block = _kernel_labels(cosine, index, config)
        if row_norms is not None and column_norms is not None:
            norm = (row_norms[block_rows, None] + column_norms[None, block_columns]) / 2
            block = torch.exp(block - norm).clamp(max=1)
            if config.single_slice == "cosine":
                single = (index[0] == 0) & (index[2] == 0)
                block = torch.where(single, cosine[index].to(block.dtype), block)
        same = rows.sample[block_rows, None] == columns.sample[None, block_columns]
        if config.same_sample == "kernel":
            same &= index[0] == index[2]  # a prefix with itself
        labels[block_rows, block_columns] = block.masked_fill(same, 1).to(labels.dtype)
    if symmetric:
        labels = mirrored(labels)
    return _restored(_restored(labels, rows.order).T, columns.order).T


def _restored(sorted_rows: Tensor, order: Tensor) -> Tensor:
    """Rows in the caller's order; a trainer's are in it already, and large."""
    in_order = bool((order.diff() == 1).all())
    return sorted_rows if in_order else sorted_rows[torch.argsort(order)]


def _kernel_labels(
    cosine: Tensor, index: tuple[Tensor, Tensor, Tensor, Tensor], config: StructureLossConfig
) -> Tensor:
    """Labels of one block; for ``gak`` the log of the kernel before it is normalised.

    Args:
        cosine: (S, documents, S, documents) cosines of all slices of the block's samples.
        index: (last slice, document, last slice, document) of the prefix pairs, broadcasting to (rows, columns).
        config: The label kernel and its bandwidth.

    Returns:
        (rows, columns).
    """
    last_x, document_x, last_y, document_y = index
    length_x, length_y = last_x + 1, last_y + 1
    if config.label_kernel == "mean":
        totals = precise(cosine).cumsum(0).cumsum(2)
        return totals[index] / (length_x * length_y)
    if config.label_kernel == "calibrated":
        # One bandwidth for all: a table of two whole samples holds the kernels of all pairs of their prefixes.
        log_k = log_kernel_at(lambda: precise(2 - 2 * cosine).div_(TWO_LOG_2 * config.delta**2), index)
        return calibrated_cosine(log_k, length_x, length_y, config.delta)

    # The bandwidth depends on both lengths: each pair of prefixes has its own table.
    cosine = precise(cosine[:, document_x[:, 0]][:, :, :, document_y[0]])  # (S, rows, S, columns)
    sigma = config.delta * ((length_x + length_y).to(cosine.dtype) / 2).sqrt()  # (rows, columns)
    if config.label_kernel == "gak":
        row = torch.arange(len(last_x), device=cosine.device)[:, None]
        column = torch.arange(last_y.shape[1], device=cosine.device)[None]
        return log_kernel_at(
            lambda: (2 - 2 * cosine).div_((TWO_LOG_2 * sigma.square())[None, :, None]), (last_x, row, last_y, column)
        )
    cosine = cosine.permute(1, 3, 0, 2)  # (rows, columns, S, S)
    visits = soft_alignment(2 - 2 * cosine, sigma, length_x, length_y)
    return (visits * cosine).sum((-1, -2)) / visits.sum((-1, -2))


def _self_kernels(left: Tensor, right: Tensor, ends: _Ends, delta: float) -> Tensor:
    """Return log K of each prefix with itself, at its own bandwidth: (n,)."""
    parts = []
    slices = left.shape[1]
    for chunk in torch.arange(len(ends.last), device=left.device).split(max(1, 2**24 // slices**2)):
        sample, length = ends.sample[chunk], ends.last[chunk] + 1
        cosine = precise((left[sample] @ right[sample].mT).clamp_(-1, 1))  # (chunk, S, S)
        parts.append(log_gak(2 - 2 * cosine, delta * length.to(cosine.dtype).sqrt(), length, length))
    return torch.cat(parts)


@torch.no_grad()
def label_statistics(labels: Tensor, embeddings: Tensor | None = None) -> dict[str, float]:
    """What to watch of a label matrix while training. All but the eigenvalue leave out the diagonal.

    Args:
        labels: symmetric label matrix M^l.
        embeddings: the model's embeddings of the same prefixes.

    Shape:
        labels (n, n) with n >= 2; embeddings (n, d).

    Returns:
        ``mean``, ``share_below_0.01`` and ``smallest_eigenvalue`` (the mixed-modality kernel need not be positive
        semidefinite; NaN if a label is not finite) and, with embeddings, ``spearman``: the rank correlation of the
        model's cosines with the labels (NaN where either is constant).
    """
    if labels.dim() != 2 or labels.shape[0] != labels.shape[1] or len(labels) < 2:
        raise ValueError(f"label_statistics needs a square matrix of two or more ends; got {tuple(labels.shape)}.")
    labels = precise(labels)
    count = len(labels)
    upper = tuple(torch.triu_indices(count, count, offset=1, device=labels.device))
    pairs = labels[upper]
    statistics = {
        "mean": float(pairs.mean()),
        "share_below_0.01": float((pairs < 0.01).to(labels.dtype).mean()),
        "smallest_eigenvalue": float(torch.linalg.eigvalsh(labels.cpu())[0]) if labels.isfinite().all() else math.nan,
    }
    if embeddings is not None:
        unit = normalize(embeddings.to(labels.dtype), dim=-1)
        cosines = (unit @ unit.T)[upper]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant input: the NaN says it
            statistics["spearman"] = float(spearmanr(cosines.cpu().numpy(), pairs.cpu().numpy()).statistic)
    return statistics
