"""Indexes on disk, search, retrieval-augmented generation and explanations."""

from .documents import Document, as_document
from .embedder import SugarEmbedder
from .errors import DamagedIndexError, DuplicateIdError, IndexMismatchError, LockedIndexError
from .explain import Alignment, Explanation, explain
from .filters import Filter
from .index import SugarIndex
from .plotting import plot_alignment
from .reading import read_documents
from .results import Hit
from .staging import Staging
from .writing import AddReport, IndexWriter

__all__ = [
    "AddReport",
    "Alignment",
    "DamagedIndexError",
    "Document",
    "DuplicateIdError",
    "Explanation",
    "Filter",
    "Hit",
    "IndexMismatchError",
    "IndexWriter",
    "LockedIndexError",
    "Staging",
    "SugarEmbedder",
    "SugarIndex",
    "as_document",
    "explain",
    "plot_alignment",
    "read_documents",
]
