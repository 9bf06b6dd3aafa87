"""What an index gives back: documents that were found, and what it says of itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .documents import Document
from .settings import EmbeddingSettings
from .store.snapshot import Generation

#: From this share of deleted documents on, compaction is advised.
MUCH_DELETED = 1 / 3


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Args:
        id: Its id.
        score: The cosine of query and document.
        slice: The 0-based slice of the document at whose end the embedding was taken that matched; -1, the last, in
            an index with one embedding for each document.
        document: The document.
        vector: (dim,) float32, the embedding that matched, if it was asked for.
    """

    id: str
    score: float
    slice: int
    document: Document
    vector: np.ndarray | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """What is known about the document."""
        return self.document.metadata


class Samples(Sequence[Any]):
    """The documents of an index as samples, read and decoded when they are asked for."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __len__(self) -> int:
        return len(self._generation.places)

    def __getitem__(self, place: Any) -> Any:
        """The sample at a place that `search_embeddings` gave."""
        return self._generation.document(int(self._generation.places[place])).load()


def describe(generation: Generation) -> dict[str, Any]:
    """Say what an index holds and how it was made, in a form for JSON."""
    manifest, head = generation.manifest, generation.manifest.head
    deleted = len(generation.deleted) / max(1, manifest.documents)
    files = [file for entry in manifest.segments for file in (entry.texts, entry.vectors)]
    return {
        "documents": len(generation.places),
        "rows": manifest.rows,
        "deleted_share": round(deleted, 4),
        "positions": head.positions,
        "dim": head.dim,
        "vectors": head.vectors,
        "bytes_per_vector": None if generation.codec is None else generation.codec.bytes_per_vector,
        "bytes_on_disk": sum(file.size for file in files),
        "clipped": manifest.clipped,
        "backend": head.backend,
        "backend_options": head.backend_options,
        "generation": manifest.generation,
        "segments": len(manifest.segments),
        "model": None if head.settings is None else EmbeddingSettings.from_dict(head.settings).model,
        "settings": head.settings,
        "advice": "compact() gives back the space of deleted documents" if deleted > MUCH_DELETED else None,
    }
