"""Metrics as pure functions of arrays and strings."""

from collections.abc import Sequence

import numpy as np


def target_ranks(
    scores: np.ndarray, targets: Sequence[Sequence[int]], excluded: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """Rank of the best target of each query, 0 for first.

    Ties are ranked in the order of the candidates, as a stable descending sort would. A target that is excluded
    itself is always missed: its rank is the number of candidates.

    Args:
        scores: similarities, shape (queries, candidates).
        targets: for each query the indices of the right candidates, one or several.
        excluded: for each query the indices of candidates that may not be retrieved (the images already in the
            story, for instance).

    Returns:
        int64 of shape (queries,).

    Raises:
        ValueError: if the lengths do not agree, a query has no target or a score is not a number.
    """
    scores = np.array(scores, dtype=np.float64)  # a copy: it is written to
    if scores.ndim != 2 or len(targets) != len(scores) or (excluded is not None and len(excluded) != len(scores)):
        raise ValueError(f"scores of shape {scores.shape} need as many targets (and exclusions) as rows")
    if np.isnan(scores).any():
        raise ValueError(f"the scores of query {int(np.isnan(scores).any(axis=1).argmax())} are not numbers")
    for query, indices in enumerate(excluded or ()):
        scores[query, list(indices)] = -np.inf
    ranks = np.empty(len(scores), dtype=np.int64)
    for query, indices in enumerate(targets):
        if not len(indices):
            raise ValueError(f"query {query} has no target")
        row = scores[query]
        places = [
            len(row) if row[target] == -np.inf else (row > row[target]).sum() + (row[:target] == row[target]).sum()
            for target in indices
        ]
        ranks[query] = min(places)
    return ranks


def recall_at_k(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries, in percent, with a target among the first k.

    >>> recall_at_k(np.array([0, 3, 7, 40]), ks=(1, 5))
    {'recall@1': 25.0, 'recall@5': 50.0}
    """
    return {f"recall@{k}": 100.0 * float((ranks < k).mean()) for k in ks}


def normalize_answer(text: str) -> str:
    """Lower case, without the white space around and the full stop at the end.

    >>> normalize_answer(" A Dog. ")
    'a dog'
    """
    return " ".join(text.lower().split()).removesuffix(".").strip()


def exact_match(prediction: str, answer: str) -> bool:
    """True if both are the same after `normalize_answer`."""
    return normalize_answer(prediction) == normalize_answer(answer)
