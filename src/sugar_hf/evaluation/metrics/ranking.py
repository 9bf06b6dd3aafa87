"""Ranks of the right candidates, and recall from them."""

from collections.abc import Sequence
from itertools import chain

import numpy as np

#: Scores looked at together; their comparisons take a few times as many bytes.
BLOCK = 1 << 23
#: The rank of what cannot be found. The number of candidates would be none: cut-offs may lie above it.
MISSED = np.iinfo(np.int64).max


def target_ranks(
    scores: np.ndarray, targets: Sequence[Sequence[int]], excluded: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """Rank of the best target of each query, 0 for first.

    Ties are ranked in the order of the candidates, as a stable descending sort would. A target that is excluded
    itself, or that scores minus infinity, is always missed: its rank is `MISSED`, larger than any cut-off. With all
    captions of an image as targets this is the usual image-to-text rule of MSCOCO (vsepp, CLIP_benchmark): a hit if
    any of the captions is among the first k, not the share of them that is (which is what the recall of mteb's
    retrieval tasks means).

    Args:
        scores: similarities, shape (queries, candidates). They are read in blocks and never copied as a whole.
        targets: for each query the indices of the right candidates, one or several.
        excluded: for each query the indices of candidates that may not be retrieved (the images already in the
            story, for instance). FROMAGe subtracts 10000 from their scores, which is the same.

    Returns:
        int64 of shape (queries,).

    Raises:
        ValueError: if the lengths do not agree, a query has no target, an index lies outside the candidates or a
            score is not a number.
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or len(targets) != len(scores) or (excluded is not None and len(excluded) != len(scores)):
        raise ValueError(f"scores of shape {scores.shape} need as many targets (and exclusions) as rows")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    candidates = scores.shape[1]
    places = np.arange(candidates)
    ranks = np.empty(len(scores), dtype=np.int64)
    step = max(1, BLOCK // max(1, candidates))
    for start in range(0, len(scores), step):
        block = scores[start : start + step]
        if np.isnan(block).any():
            raise ValueError(
                f"the scores of query {start + int(np.isnan(block).any(axis=1).argmax())} are not numbers"
            )
        if excluded is not None:
            rows, columns = _flat(excluded[start : start + step], candidates, start, "exclusion")
            block = block.copy()
            block[rows, columns] = -np.inf
        rows, columns = _flat(targets[start : start + step], candidates, start, "target")
        counts = np.bincount(rows, minlength=len(block))
        if not counts.all():
            raise ValueError(f"query {start + int(counts.argmin())} has no target")
        # Of a query's targets the one with the highest score, and of equal ones the first, ranks best.
        order = np.lexsort((columns, -block[rows, columns], rows))
        best = columns[order[np.cumsum(counts) - counts]]
        score = block[np.arange(len(block)), best][:, None]
        before = (block > score).sum(axis=1) + ((block == score) & (places < best[:, None])).sum(axis=1)
        ranks[start : start + step] = np.where(score[:, 0] == -np.inf, MISSED, before)
    return ranks


def _flat(lists: Sequence[Sequence[int]], candidates: int, start: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Lists of candidates as pairs of row and column; `start` is the query of the first list."""
    rows = np.repeat(np.arange(len(lists)), [len(indices) for indices in lists])
    columns = np.fromiter(chain.from_iterable(lists), dtype=np.int64, count=len(rows))
    outside = (columns < 0) | (columns >= candidates)
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(
            f"query {start + int(rows[first])}: {what} {int(columns[first])} is not among {candidates} candidates"
        )
    return rows, columns


def recall_at_k(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Share of queries, in percent, with a target among the first k.

    >>> recall_at_k(np.array([0, 3, 7, 40]), ks=(1, 5))
    {'recall@1': 25.0, 'recall@5': 50.0}

    Raises:
        ValueError: if there are no queries.
    """
    ranks = np.asarray(ranks)
    if not len(ranks):
        raise ValueError("recall needs at least one query")
    return {f"recall@{k}": 100.0 * float((ranks < k).mean()) for k in ks}
