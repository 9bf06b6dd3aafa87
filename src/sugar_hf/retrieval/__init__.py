"""Indexes on disk, search, retrieval-augmented generation and explanations."""

from .documents import Document, as_document
from .embedder import SugarEmbedder
from .errors import DamagedIndexError, DuplicateIdError, IndexMismatchError, LockedIndexError
from .filters import Filter
from .index import SugarIndex
from .reading import read_documents
from .results import Hit
from .staging import Staging
from .writing import AddReport, IndexWriter

__all__ = [
    "AddReport",
    "DamagedIndexError",
    "Document",
    "DuplicateIdError",
    "Filter",
    "Hit",
    "IndexMismatchError",
    "IndexWriter",
    "LockedIndexError",
    "Staging",
    "SugarEmbedder",
    "SugarIndex",
    "as_document",
    "read_documents",
]
