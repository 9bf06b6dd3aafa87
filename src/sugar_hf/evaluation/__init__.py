"""Evaluators hold their data and are called on a model; metrics are pure functions."""

from .answers import AnswerEvaluator
from .baselines import Blip2Encoder, DualEncoder
from .encoders import Encoder, SugarEncoder, open_encoder, similarity
from .gallery import Block, Card, Section, write_gallery
from .metrics import exact_match, normalize_answer, recall_at_k, target_ranks
from .retrieval import RetrievalEvaluator

__all__ = [
    "AnswerEvaluator",
    "Blip2Encoder",
    "Block",
    "Card",
    "DualEncoder",
    "Encoder",
    "RetrievalEvaluator",
    "Section",
    "SugarEncoder",
    "exact_match",
    "normalize_answer",
    "open_encoder",
    "recall_at_k",
    "similarity",
    "target_ranks",
    "write_gallery",
]
