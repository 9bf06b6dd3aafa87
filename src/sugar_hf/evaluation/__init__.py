"""Evaluators hold their data and are called on a model; metrics are pure functions."""

from .baselines import Blip2Encoder, DualEncoder
from .encoders import Encoder, open_encoder, similarity
from .examples import Example, Lazy, Record
from .gallery import Block, Card, Section, write_gallery
from .generation_evaluator import GenerationEvaluator
from .generators import Generator, SugarGenerator
from .knowledge_evaluator import KnowledgeEvaluator, Pool, View
from .metrics import exact_match, normalize_answer, recall_at_k, target_ranks
from .ranking_evaluator import Pair, PairsEvaluator, Ranking, RankingEvaluator
from .relevance_evaluator import RelevanceEvaluator

__all__ = [
    "Blip2Encoder",
    "Block",
    "Card",
    "DualEncoder",
    "Encoder",
    "Example",
    "GenerationEvaluator",
    "Generator",
    "KnowledgeEvaluator",
    "Lazy",
    "Pair",
    "PairsEvaluator",
    "Pool",
    "Ranking",
    "RankingEvaluator",
    "Record",
    "RelevanceEvaluator",
    "Section",
    "SugarGenerator",
    "View",
    "exact_match",
    "normalize_answer",
    "open_encoder",
    "recall_at_k",
    "similarity",
    "target_ranks",
    "write_gallery",
]
