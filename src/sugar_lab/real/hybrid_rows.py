"""Whether heads find what words do not: their rankings fused with that of TF-IDF, as hybrid search fuses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sugar_hf.retrieval.hits import RANK_CONSTANT

from ..outcomes import Outcome
from .head_rows import row_named
from .head_study import scores_of
from .real_tasks import item_ranks
from .text_baselines import baseline_scores, tfidf

if TYPE_CHECKING:
    from torch import nn

    from .study import Study

#: Rows of heads that are fused, with their seeds.
FUSED = {"kl-0.15-late": 3, "kl-0.15-whitened-late": 3, "kl-0.15-whitened-titles-128-wide-late": 1}


def fused(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the sum of reciprocal ranks of two scores (queries, candidates); of equal scores the first is better.

    >>> fused(np.array([[3.0, 2.0, 1.0]]), np.array([[1.0, 2.0, 3.0]])).round(4).tolist()
    [[0.0323, 0.0323, 0.0323]]
    """
    ranks = [(-each).argsort(axis=1, kind="stable").argsort(axis=1) for each in (one, other)]  # from 0
    return np.sum([1 / (RANK_CONSTANT + 1 + each) for each in ranks], axis=0)


def hybrid_outcomes(study: Study, heads: dict[tuple[str, int], nn.Module]) -> list[Outcome]:
    """Return the ranks of the queries of test by each head's ranking and that of words together.

    Args:
        study: The study.
        heads: By row and seed.
    """
    tasks = study.tasks("test")
    words = tfidf(study.manuals, tasks.values())
    outcomes = []
    for name, task in tasks.items():
        known = baseline_scores(task.data, words)
        for (row, seed), head in heads.items():
            scores = fused(known, scores_of(study.states, task.data, row_named(row), head, {}))
            ranks = item_ranks(task.data, scores)
            outcomes += [
                Outcome("real-test", f"tf-idf + {row}", seed, name, item, "rank", float(rank))
                for item, rank in ranks.items()
            ]
    return outcomes
