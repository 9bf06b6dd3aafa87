"""Indexes on disk, search, retrieval-augmented generation and explanations."""

from .chat import SugarChat, chat_to_json, route_by_words
from .embedder import SugarEmbedder
from .explain import Alignment, Explanation, explain
from .index import Hit, Reranker, SugarIndex
from .mining import MiningReport, MiningRules, mine_negatives
from .pipelines import SugarChatPipeline, SugarRagPipeline
from .plotting import plot_alignment
from .rag import CITING, KNOWLEDGE_VQA, QUESTION_FIRST, RagAnswer, RagHit, RagTemplate, SugarRag
from .reranker import RELEVANCE, SugarReranker
from .store import DamagedIndexError, DuplicateIdError, IndexMismatchError, LockedIndexError

__all__ = [
    "CITING",
    "KNOWLEDGE_VQA",
    "QUESTION_FIRST",
    "RELEVANCE",
    "Alignment",
    "DamagedIndexError",
    "DuplicateIdError",
    "Explanation",
    "Hit",
    "IndexMismatchError",
    "LockedIndexError",
    "MiningReport",
    "MiningRules",
    "RagAnswer",
    "RagHit",
    "RagTemplate",
    "Reranker",
    "SugarChat",
    "SugarChatPipeline",
    "SugarEmbedder",
    "SugarIndex",
    "SugarRag",
    "SugarRagPipeline",
    "SugarReranker",
    "chat_to_json",
    "explain",
    "mine_negatives",
    "plot_alignment",
    "route_by_words",
]
