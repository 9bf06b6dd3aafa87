"""What evaluators embed documents with: Sugar, and by `open_encoder` whatever it is compared with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    Blip2Config,
)

from ..data import BadSampleError, Document
from ..model import SugarConfig
from ..model.checkpoint_sugar import read_config
from ..retrieval.embedder import SugarEmbedder
from .baselines import Blip2Encoder, DualEncoder

__all__ = ["Encoder", "open_encoder", "similarity"]

CHUNK = 2**26  # similarities of vectors in memory at once, 256 MiB


@runtime_checkable
class Encoder(Protocol):
    """Embeds documents for retrieval, as [`~sugar_hf.SugarEmbedder`] does. `similarity` compares what it gives."""

    @property
    def name(self) -> str:
        """Checkpoint and mode, for results."""

    def embed_documents(
        self,
        documents: Sequence[Document],
        *,
        batch_size: int | None = None,
        skipped: list[BadSampleError] | None = None,
        progress: tqdm | None = None,
    ) -> list[np.ndarray | None]:
        """Embed documents.

        Args:
            documents: Some documents.
            batch_size: Documents in one forward pass; the encoder's own choice when `None`.
            skipped: A list to which the errors of documents that cannot be embedded are appended.
            progress: A bar that is moved by the number of documents.

        Returns:
            For each document (V, dim) float32 unit vectors, one or several; `None` for one that cannot be embedded.

        Raises:
            BadSampleError: A document cannot be embedded and `skipped` is `None`.
        """

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on, in a form for JSON."""

    def notes(self) -> dict[str, Any]:
        """What a reader of results should know of what was embedded so far, in a form for JSON."""


@runtime_checkable
class _DualModel(Protocol):
    def get_image_features(self, **inputs: Tensor) -> Any: ...

    def get_text_features(self, **inputs: Tensor) -> Any: ...


def open_encoder(
    name_or_path: str | Path,
    mode: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Encoder:
    """Open a checkpoint as the encoder that it is for: Sugar, BLIP-2, or a dual encoder such as CLIP or SigLIP.

    Args:
        name_or_path: Hub name or folder of a checkpoint, or of adapters on one.
        mode: `"average"` (the default), `"image"` or `"text"` of a dual encoder, `"itc"` (the default) or
            `"multimodal"` of BLIP-2; Sugar has none.
        device: Where it runs; the accelerator if there is one.
        dtype: Data type of the weights; the checkpoint's when `None`.

    Raises:
        ValueError: The checkpoint is none of these, lacks weights, or has no such mode.
    """
    config = read_config(name_or_path)
    if isinstance(config, SugarConfig):
        if mode is not None:
            raise ValueError(f"mode={mode!r}: {name_or_path} is a Sugar model, which has no modes. Leave it out.")
        return SugarEmbedder.from_pretrained(name_or_path, device=device, dtype=dtype)
    if isinstance(config, Blip2Config):
        return Blip2Encoder.from_pretrained(name_or_path, mode or "itc", device, dtype)
    if type(config) in MODEL_MAPPING and issubclass(MODEL_MAPPING[type(config)], _DualModel):
        return DualEncoder.from_pretrained(name_or_path, mode or "average", device, dtype)
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(
            f"{name_or_path} is a vision-language model without a trained retrieval head, and its embeddings would be "
            "random. Put a head on it with SugarForConditionalGeneration.from_backbone, train it, and evaluate that."
        )
    raise ValueError(
        f"{name_or_path} is a model of type {config.model_type!r}, which does not embed images and texts. Give a "
        "Sugar checkpoint, a dual encoder such as CLIP or SigLIP, or BLIP-2 for image-text retrieval."
    )


def similarity(queries: Sequence[np.ndarray], candidates: Sequence[np.ndarray]) -> np.ndarray:
    """The largest dot product of a vector of the query and a vector of the candidate, as BLIP-2 scores pairs.

    >>> one, two = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [0.0, 1.0]])
    >>> similarity([one, two], [two]).tolist()
    [[0.6000000238418579], [1.0]]

    Args:
        queries: (V, d) vectors of each query, V 1 or more.
        candidates: (W, d) vectors of each candidate, W 1 or more.

    Returns:
        (queries, candidates) float32.

    Raises:
        ValueError: A query or candidate has no vectors, or widths differ; the error names the first.
    """
    left, lefts = _stack(queries, "query")
    right, rights = _stack(candidates, "candidate")
    if not len(lefts) or not len(rights):
        return np.zeros((len(lefts), len(rights)), np.float32)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"queries have {left.shape[1]} dimensions, candidates {right.shape[1]}: embed both with one encoder"
        )
    if len(left) == len(lefts) and len(right) == len(rights):
        return left @ right.T
    scores = np.empty((len(lefts), len(rights)), np.float32)
    ends = np.append(lefts[1:], len(left))
    start = 0
    while start < len(lefts):
        room = lefts[start] + max(CHUNK // len(right), 1)
        stop = max(int(np.searchsorted(ends, room, side="right")), start + 1)  # at least one query
        products = left[lefts[start] : ends[stop - 1]] @ right.T
        of_candidates = np.maximum.reduceat(products, rights, axis=1)
        scores[start:stop] = np.maximum.reduceat(of_candidates, lefts[start:stop] - lefts[start], axis=0)
        start = stop
    return scores


def _stack(items: Sequence[np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray]:
    """All vectors below each other, (sum of V, d) float32, and where those of each item start, (items,)."""
    for i, item in enumerate(items):
        if item is None:
            raise ValueError(f"{what} {i} was not embedded: leave it out of the comparison")
        if item.ndim != 2 or not len(item) or item.shape[1] != items[0].shape[1]:
            wanted = f"(1 or more, {items[0].shape[-1]})"
            raise ValueError(f"{what} {i} has vectors of shape {item.shape}, where {wanted} is expected")
    starts = np.cumsum([0, *(len(item) for item in items)])[:-1]
    stacked = np.concatenate(items).astype(np.float32, copy=False) if len(items) else np.zeros((0, 0), np.float32)
    return stacked, starts
