"""Evaluators hold their data and are called on a model; metrics are pure functions."""

from .answers import AnswerEvaluator
from .examples import Example, Lazy, Record
from .gallery import Block, Card, Section, write_gallery
from .generation import GenerationEvaluator
from .generators import Generator, SugarGenerator
from .knowledge import KnowledgeEvaluator, Pool, View
from .metrics import exact_match, normalize_answer, recall_at_k, target_ranks
from .retrieval import RetrievalEvaluator

__all__ = [
    "AnswerEvaluator",
    "Block",
    "Card",
    "Example",
    "GenerationEvaluator",
    "Generator",
    "KnowledgeEvaluator",
    "Lazy",
    "Pool",
    "Record",
    "RetrievalEvaluator",
    "Section",
    "SugarGenerator",
    "View",
    "exact_match",
    "normalize_answer",
    "recall_at_k",
    "target_ranks",
    "write_gallery",
]
