"""What a search finds: documents by their vectors, by their words, by both, and by the vectors of all slices."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.documents import Document
from .store import DocumentNumber, Matches, RowId, Snapshot

MODES = ("vector", "text", "hybrid")
#: Of reciprocal rank fusion, as its paper has it.
RANK_CONSTANT = 60
#: Documents of each ranking that are fused, at least.
FUSED = 100


@dataclass(frozen=True)
class Hit:
    """A document that a search found.

    Args:
        id: Its id.
        score: What hits are ordered by. By mode: `"vector"`: the cosine; `"text"`: BM25; `"hybrid"`: the sum of
            reciprocal ranks, at most 2/61. With late interaction: the mean of the best cosines.
        slice: The 0-based slice of the document at whose end the embedding was taken that matched; -1, the last, in
            an index with one embedding for each document, and if no vectors were searched.
        document: The document.
        vector: (dim,) float32, the embedding that matched, if it was asked for; the last one if none were searched.
        vector_score: The cosine of query and document; `None` if no vectors were searched.
        text_score: BM25 of the query's words; `None` if they were not among the best, or not searched for.
    """

    id: str
    score: float
    slice: int
    document: Document
    vector: np.ndarray | None = None
    vector_score: float | None = None
    text_score: float | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata of the document."""
        return self.document.metadata


def check_mode(mode: str) -> None:
    """Refuse a mode that there is not."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r:.40}: give one of {', '.join(map(repr, MODES))}.")


def vector_hits(snapshot: Snapshot, matches: Matches, return_vectors: bool) -> list[list[Hit]]:
    """Return what vectors found, for each query.

    Args:
        snapshot: What was searched.
        matches: What was found.
        return_vectors: Whether hits have the embedding that matched.
    """
    found: list[list[Hit]] = []
    for scores, numbers, rows in zip(*matches, strict=True):
        count = int((numbers >= 0).sum())
        documents = snapshot.documents(numbers[:count].tolist())
        embeddings = snapshot.vectors(rows[:count].tolist()) if return_vectors and count else [None] * count
        slices = snapshot.row_slice[rows[:count]].tolist()
        columns = zip(documents, scores[:count].tolist(), slices, embeddings, strict=True)
        found.append([Hit(each.id, score, at, each, vector, score) for each, score, at, vector in columns])
    return found


def text_hits(
    snapshot: Snapshot, found: Iterable[tuple[np.ndarray, np.ndarray]], return_vectors: bool
) -> list[list[Hit]]:
    """Return what words found, for each query; arguments as for [`vector_hits`]."""
    hits: list[list[Hit]] = []
    for numbers, scores in found:
        documents = snapshot.documents(numbers.tolist())
        embeddings = [snapshot.rows_of(number)[1][-1] if return_vectors else None for number in numbers.tolist()]
        columns = zip(documents, scores.tolist(), embeddings, strict=True)
        hits.append([Hit(each.id, score, -1, each, vector, None, score) for each, score, vector in columns])
    return hits


def hybrid_hits(
    snapshot: Snapshot,
    queries: np.ndarray,
    matches: Matches,
    found: Iterable[tuple[np.ndarray, np.ndarray]],
    top_k: int,
    return_vectors: bool,
) -> list[list[Hit]]:
    """Return what vectors and words found, fused by [`fuse_ranks`], for each query.

    Args:
        snapshot: What was searched.
        queries: (q, dim) float32, the embeddings of the queries.
        matches: What vectors found.
        found: What words found, for each query.
        top_k: How many are returned.
        return_vectors: Whether hits have the embedding that matched.
    """
    hits: list[list[Hit]] = []
    for query, cosines, numbers, rows, by_text in zip(queries, *matches, found, strict=True):
        count = int((numbers >= 0).sum())
        columns = (cosines[:count].tolist(), rows[:count].tolist())
        by_vector = dict(zip(numbers[:count].tolist(), zip(*columns, strict=True), strict=True))
        texts = dict(zip(*(column.tolist() for column in by_text), strict=True))
        line = []
        for number, score in fuse_ranks([list(by_vector), list(texts)])[:top_k]:
            cosine, row = by_vector.get(number) or _best_row(snapshot, number, query)
            document, at = snapshot.document(number), int(snapshot.row_slice[row])
            vector = snapshot.vectors([row])[0] if return_vectors else None
            line.append(Hit(document.id, score, at, document, vector, cosine, texts.get(number)))
        hits.append(line)
    return hits


def _best_row(snapshot: Snapshot, number: DocumentNumber, query: np.ndarray) -> tuple[float, RowId]:
    """Return the best cosine of a document, and its row."""
    first, vectors = snapshot.rows_of(number)
    scores = vectors @ query
    best = int(scores.argmax())
    return float(scores[best]), RowId(first + best)


def fuse_ranks(
    rankings: Iterable[Sequence[DocumentNumber]], constant: int = RANK_CONSTANT
) -> list[tuple[DocumentNumber, float]]:
    """Fuse rankings by reciprocal rank (Cormack, Clarke and Büttcher 2009).

    The score of a document is the sum of `1 / (constant + rank)` over the rankings that have it; ranks count from 1.

    ```python
    >>> fuse_ranks([[7, 3, 5], [3, 9]], constant=0)
    [(3, 1.5), (7, 1.0), (9, 0.5), (5, 0.3333333333333333)]

    ```

    Args:
        rankings: Numbers of documents, best first.
        constant: How little the first ranks count more than the others.

    Returns:
        Numbers and scores, best first. Of equal scores the one of the earlier ranking comes first, then of its rank.
    """
    scores: dict[DocumentNumber, float] = {}
    for ranking in rankings:
        for rank, number in enumerate(ranking, start=1):
            scores[number] = scores.get(number, 0.0) + 1 / (constant + rank)
    return sorted(scores.items(), key=lambda item: -item[1])


def score_slices(snapshot: Snapshot, queries: Sequence[np.ndarray], hits: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
    """Order hits by late interaction (MaxSim): each slice of the query finds the nearest slice of the document.

    The score is the mean over the query's slices of the cosine to the nearest of the document's, so in [-1, 1]:

        1/m sum_i max_j cos(q_i, d_j)

    Args:
        snapshot: What was searched.
        queries: For each query (m, dim) float32, the embeddings at its slices.
        hits: The hits of each query.

    Returns:
        The hits of each query with that score, best first; of equal ones the one that came first.
    """
    scored = []
    for query, line in zip(queries, hits, strict=True):
        new = []
        for hit in line:
            number = snapshot.number(hit.id)
            assert number is not None
            score = float((query @ snapshot.rows_of(number)[1].T).max(1).mean())
            new.append(replace(hit, score=score))
        scored.append(sorted(new, key=lambda hit: -hit.score))
    return scored
