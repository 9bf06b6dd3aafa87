"""Opens a backend by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..codecs import Codec
from .base import VectorBackend
from .faiss_backend import FaissBackend
from .milvus_backend import MilvusBackend

BACKENDS: dict[str, type[VectorBackend]] = {"faiss": FaissBackend, "milvus": MilvusBackend}


def open_backend(
    name: str, *, dim: int, codec: Codec, options: Mapping[str, Any] | None = None, folder: Path | None = None
) -> VectorBackend:
    """Open a place where vectors are searched.

    Args:
        name: `"faiss"` or `"milvus"`.
        dim: Width of the vectors.
        codec: How the index stores vectors.
        options: See `FaissOptions` and `MilvusOptions`.
        folder: FAISS: what `save` wrote, or None. Milvus without a `uri`: where its local files are.

    Raises:
        ValueError: An unknown name or option, or a codec that the backend does not take.
        ImportError: The backend needs a package that is not installed.
    """
    if dim != codec.dim:
        raise ValueError(f"The vectors have {dim} dimensions, the codec was fitted to {codec.dim}.")
    if name == "faiss":
        return FaissBackend(codec, options, folder)
    if name == "milvus":
        return MilvusBackend(codec, options, folder)
    raise ValueError(f"backend={name!r}: give one of {', '.join(map(repr, BACKENDS))}.")
