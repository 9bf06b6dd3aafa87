"""Metrics of rankings, pairs and exact answers, as pure functions of arrays and strings.

Functions of one item give a bool, or a float from 0 to 1; those of many give a dictionary in percent.
"""

from .exact_match import exact_match, gqa_match, gqa_match_lmms, normalize_answer
from .pair_metrics import pair_accuracy, pair_hits, winoground_scores
from .ranking import MISSED, recall_at_k, target_ranks

__all__ = [
    "MISSED",
    "exact_match",
    "gqa_match",
    "gqa_match_lmms",
    "normalize_answer",
    "pair_accuracy",
    "pair_hits",
    "recall_at_k",
    "target_ranks",
    "winoground_scores",
]
