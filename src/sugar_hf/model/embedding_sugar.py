"""Whether the embedding at a slice end inside a longer sample is that of the sample which ends there."""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from .backbone_sugar import evaluation_mode
from .modeling_sugar import SugarForConditionalGeneration
from .processing_sugar import SugarProcessor

# Distances of unit vectors that rounding alone may make, after dozens of layers.
TOLERANCE = 1e-3
HALF_TOLERANCE = 0.1


@dataclass(frozen=True)
class PrefixCheck:
    """What [`check_prefix_embeddings`] found.

    Args:
        deviation: The largest distance between the embedding of a slice inside the sample and that of the same slice
            in the sample's beginning alone. Between unit vectors: 0 to 2.
        reasons: Why they differ; empty if they do not.
    """

    deviation: float
    reasons: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether embeddings of beginnings are the same inside a longer sample."""
        return not self.reasons

    def __str__(self) -> str:
        if self.is_exact:
            return "Embeddings at slice ends inside a sample are those of its beginnings alone."
        return (
            "With this model, the embedding of a slice end inside a longer sample is not that of the sample which "
            f"ends there: {'; '.join(self.reasons)} (distance up to {self.deviation:.2g}, of at most 2). For the "
            "embedding of a beginning, pass it as a sample of its own: [sample[:1], sample[:2], ...]."
        )


@torch.no_grad()
def check_prefix_embeddings(model: SugarForConditionalGeneration, processor: SugarProcessor) -> PrefixCheck:
    """Find out whether one forward pass gives the embeddings of all beginnings of a sample.

    That holds if the model sees nothing of what follows a slice and the processor writes a sample's beginning the
    same whatever follows. No list of models is consulted: a drawn sample of three images and two texts, without
    roles, is embedded whole and at each beginning, in five forward passes, and the inputs are compared too.

    Args:
        model: A Sugar model, on any device and in any dtype; left as it is.
        processor: Its processor.

    Returns:
        The largest deviation and its reasons.
    """
    wide, tall = drawn_picture(96, 48), drawn_picture(48, 64)
    sample = [wide, tall, "A drawn picture.", wide, "Another text."]
    with evaluation_mode(model):
        whole = processor([sample])
        embeds = _embed(model, whole)
        found: dict[str, None] = {}  # in order, each once
        largest = 0.0
        tolerance = TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE
        for end in range(1, len(sample)):
            prefix = processor([sample[:end]])
            deviation = float((_embed(model, prefix) - embeds[:end]).norm(dim=-1).max())
            largest = max(largest, deviation)
            written = _written_otherwise(prefix, whole, end)
            if written:
                found[written] = None
            elif deviation > tolerance:
                found["tokens see what comes after them"] = None
    return PrefixCheck(largest, tuple(found))


def _embed(model: SugarForConditionalGeneration, features: BatchFeature) -> Tensor:
    """Embed the slices of one sample. (S, d)."""
    inputs = BatchFeature(dict(features)).to(model.device, dtype=model.dtype)
    return model.get_retrieval_embeddings(**inputs)[0][0]


def _written_otherwise(prefix: BatchFeature, whole: BatchFeature, end: int) -> str | None:
    """Say how the tokens of a beginning, up to its last slice, differ from those it has in the whole sample."""
    ours, theirs = (_tokens(features, end) for features in (prefix, whole))
    if np.array_equal(ours, theirs):
        return None
    counts = [[int((row[1] == number).sum()) for number in range(1, end + 1)] for row in (ours, theirs)]
    for alone, inside in zip(*counts, strict=True):
        if alone != inside:
            return f"the processor gives an image {alone} tokens in one sample and {inside} in a longer one"
    return "the processor writes a sample's beginning otherwise when more follows"


def _tokens(features: BatchFeature, end: int) -> np.ndarray:
    """Return ids and slice numbers of one sample up to the end of a slice. (2, L)."""
    real = features["attention_mask"][0].bool()
    rows = torch.stack([features["input_ids"][0][real], features["slice_map"][0][real]]).numpy()
    return rows[:, : np.flatnonzero(rows[1] == end)[-1] + 1]


def drawn_picture(width: int, height: int) -> Image.Image:
    """Draw a picture: two colour ramps."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, 255 - columns], axis=-1).astype(np.uint8))
