"""Teacher embeddings of a batch of samples, and the triple kernel's distances between their slices (eq. 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from .config import TEACHERS, check_block_means

VECTOR_COLUMNS = ("teacher_clip", "teacher_dino", "teacher_text")
TEACHER_COLUMNS = (*VECTOR_COLUMNS, "teacher_is_image", "teacher_fingerprint")


@dataclass
class SliceFeatures:
    """Teacher side of a batch: one vector per slice and teacher, padded to the longest sample.

    Attributes:
        clip: unit vectors, the image or the text embedding by the slice's modality.
        dino: unit vectors of image slices, zeros for text slices.
        text: unit vectors of text slices, zeros for image slices.
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
                        "the samples come from different teachers: cache them again with one TripleTeacher."
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
            "`TripleTeacher.cache(dataset, slices=...)`, or give what `TripleTeacher.embed` returns."
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

    Zeros where a teacher does not see a slice make the choice of the block: ``left = [dino, text, clip if image,
    clip if text]`` against ``right = [dino, text, clip if text, clip if image]``. Centring, ``(s - mu) / (1 - mu)``,
    scales those parts and adds one constant per block, so that all distances of a batch are one matrix product.

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
    if teachers == "triple":
        image, text = normalize(features.dino.to(dtype), dim=-1) * is_image, normalize(features.text.to(dtype), dim=-1)
        text = text * is_text
    else:
        image, text = clip * is_image, clip * is_text
    across, across_swapped = [clip * is_image, clip * is_text], [clip * is_text, clip * is_image]
    if block_means is None:
        if teachers == "clip":
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
