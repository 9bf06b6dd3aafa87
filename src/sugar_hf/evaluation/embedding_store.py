"""Embeddings of a task's documents, computed part by part and kept, so that a run that was stopped goes on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from .._files import atomic_path
from ..data import BadSampleError, Document
from .baselines import BatchEncoder
from .encoders import Encoder
from .examples import digest_of

PART = 1024  # documents in a file


class EmbeddingStore:
    """Embeds sets of documents, and keeps what was embedded.

    Args:
        encoder: Embeds them.
        folder: Where the embeddings are kept; `None` keeps nothing.
        batch_size: Documents in one forward pass.
    """

    def __init__(self, encoder: Encoder, folder: str | Path | None = None, batch_size: int = 8) -> None:
        self.encoder, self.batch_size = encoder, batch_size
        self.folder = None if folder is None else Path(folder)
        self.settings = encoder.describe()
        #: Documents that could not be embedded: set, id and reason.
        self.failed: list[dict[str, str]] = []
        #: How many had their text cut; kept with the embeddings.
        self.truncated = 0

    def notes(self) -> dict[str, Any]:
        """The encoder's notes. Texts that were cut are those of this store, also where a run goes on."""
        cut = {"truncated": self.truncated} if isinstance(self.encoder, BatchEncoder) else {}
        return {**self.encoder.notes(), **cut}

    def encode(self, name: str, documents: Sequence[Document]) -> list[np.ndarray | None]:
        """Embed a set of documents.

        Args:
            name: What the set is called, in the bar and in file names.
            documents: Its documents.

        Returns:
            For each document (V, dim) float32 unit vectors; `None` for one that could not be embedded, which is
            added to `failed`.
        """
        found: list[np.ndarray | None] = []
        with tqdm(total=len(documents), desc=f"Embedding {name}", unit="documents", delay=2) as bar:
            for number, start in enumerate(range(0, len(documents), PART)):
                part = documents[start : start + PART]
                path = None if self.folder is None else self.folder / f"{name}-{number:05d}.safetensors"
                vectors, failed = self._part(path, part, bar)
                found += vectors
                self.failed += [{"set": name, **failure} for failure in failed]
        return found

    def _part(
        self, path: Path | None, documents: Sequence[Document], bar: tqdm
    ) -> tuple[list[np.ndarray | None], list[dict[str, str]]]:
        key = _key(self.settings, documents)
        if path is not None and (kept := _read(path, key)) is not None:
            bar.update(len(documents))
            vectors, truncated = kept
            self.truncated += truncated
            return vectors, []
        skipped: list[BadSampleError] = []
        before = _truncated(self.encoder)
        vectors = self.encoder.embed_documents(documents, batch_size=self.batch_size, skipped=skipped, progress=bar)
        truncated = _truncated(self.encoder) - before
        self.truncated += truncated
        if path is not None and not skipped:  # what failed is tried again by the next run
            _write(path, key, [rows for rows in vectors if rows is not None], truncated)
        return vectors, [{"id": str(error.sample), "error": str(error)} for error in skipped]


def _truncated(encoder: Encoder) -> int:
    """How many documents had their text cut since the encoder was made."""
    return encoder.truncated if isinstance(encoder, BatchEncoder) else 0


def _key(settings: Mapping[str, Any], documents: Sequence[Document]) -> str:
    """Digest of what the vectors depend on: encoder and documents."""
    written = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for document in documents:
        try:
            written.update(digest_of(document).encode())
        except BadSampleError:
            written.update(f"broken {document.id}".encode())
    return written.hexdigest()


def _read(path: Path, key: str) -> tuple[list[np.ndarray | None], int] | None:
    """The vectors of a file and how many texts were cut, if it is of these documents; others are written anew."""
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        if metadata.get("key") != key:
            return None
        rows, counts = file.get_tensor("vectors"), file.get_tensor("counts")
    return list(np.split(rows, np.cumsum(counts)[:-1])), int(metadata["truncated"])


def _write(path: Path, key: str, vectors: list[np.ndarray], truncated: int) -> None:
    counts = np.array([len(rows) for rows in vectors], np.int64)
    metadata = {"key": key, "truncated": str(truncated)}
    with atomic_path(path) as temporary:
        save_file({"vectors": np.concatenate(vectors), "counts": counts}, temporary, metadata=metadata)
