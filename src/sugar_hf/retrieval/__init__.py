"""Indexes on disk, search, retrieval-augmented generation and explanations."""

from .chat import SugarChat, chat_to_json, route_by_words
from .documents import Document, as_document
from .embedder import SugarEmbedder
from .explain import Alignment, Explanation, explain
from .filters import Filter
from .index import SugarIndex
from .pipelines import SugarChatPipeline, SugarRagPipeline
from .plotting import plot_alignment
from .prompts import KNOWLEDGE_VQA, QUESTION_FIRST, RagHit, RagTemplate
from .rag import RagAnswer, SugarRag
from .reading import read_documents
from .results import Hit
from .store.index_errors import DamagedIndexError, DuplicateIdError, IndexMismatchError, LockedIndexError
from .store.index_writer import AddReport, IndexWriter
from .store.staging import Staging

__all__ = [
    "KNOWLEDGE_VQA",
    "QUESTION_FIRST",
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
    "RagAnswer",
    "RagHit",
    "RagTemplate",
    "Staging",
    "SugarChat",
    "SugarChatPipeline",
    "SugarEmbedder",
    "SugarIndex",
    "SugarRag",
    "SugarRagPipeline",
    "as_document",
    "chat_to_json",
    "explain",
    "plot_alignment",
    "read_documents",
    "route_by_words",
]
