"""Which documents of a corpus answer which query, and the metrics of a ranking by that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .documents import Document, as_document, from_schema
from .pair_rows import prompted

KS = (1, 5, 10)
BLOCK = 1 << 24  # scores in memory at once, 64 MiB


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, a corpus, and which documents answer which query.

    ```python
    RetrievalSet.of(
        queries={"q1": "a boat at sea", "q2": [Path("cat.jpg"), "the same cat, asleep"]},
        corpus={"d1": [Path("boat.jpg"), "A boat."], "d2": "A cat sleeps."},
        relevance={"q1": ["d1"], "q2": {"d2": 2}},
    )
    ```

    Args:
        queries: The queries, with ids that differ.
        corpus: The documents, with ids that differ.
        relevance: By the id of each query, how relevant documents are, by their ids. Above 0 is relevant.
        ks: Where rankings are cut off.

    Raises:
        ValueError: An id stands twice, a query has no relevant document, an id in `relevance` is unknown, a grade is
            negative or not finite, or there are no queries.
    """

    queries: Sequence[Document]
    corpus: Sequence[Document]
    relevance: Mapping[str, Mapping[str, float]]
    ks: tuple[int, ...] = KS

    def __post_init__(self) -> None:
        queries, corpus = _ids(self.queries, "queries"), _ids(self.corpus, "corpus")
        if not queries or not corpus:
            raise ValueError(f"{'queries' if not queries else 'corpus'} is empty: give at least one.")
        if not self.ks or any(type(k) is not int or k < 1 for k in self.ks):
            raise ValueError(f"ks={self.ks!r}: give whole numbers of 1 or more.")
        if unknown := [name for name in self.relevance if name not in queries]:
            raise ValueError(f"relevance names the query {unknown[0]!r}, which is not among the queries.")
        for name in queries:
            grades = self.relevance.get(name, {})
            if unknown := [each for each in grades if each not in corpus]:
                raise ValueError(f"relevance of the query {name!r} names {unknown[0]!r}, which is not in the corpus.")
            for each, grade in grades.items():
                if not (math.isfinite(grade) and grade >= 0):
                    raise ValueError(f"relevance of {each!r} for the query {name!r} is {grade}: give 0 or more.")
            if not any(grade > 0 for grade in grades.values()):
                raise ValueError(
                    f"query {name!r} has no relevant document, so that no ranking is good or bad. Name one in "
                    "relevance, or leave the query out."
                )

    @classmethod
    def of(
        cls,
        queries: Any,
        corpus: Any,
        relevance: Mapping[str, Any],
        ks: Sequence[int] = KS,
        instruction: str | None = None,
    ) -> RetrievalSet:
        """Make one of whatever a user has.

        Args:
            queries: Samples by id; or documents, or rows with an id, see [`as_document`].
            corpus: The same.
            relevance: By the id of each query, the ids of its relevant documents, or their grades by id.
            ks: Where rankings are cut off.
            instruction: What to look for, in the prompt of each query, as pairs have it in training.

        Raises:
            BadSampleError: A query or document is malformed.
            ValueError: See the class.
        """
        grades = {
            str(name): dict(found) if isinstance(found, Mapping) else dict.fromkeys(_listed(name, found), 1.0)
            for name, found in relevance.items()
        }
        asked = [with_instruction(each, instruction) for each in _documents(queries, "query ")]
        return cls(asked, _documents(corpus, "document "), grades, tuple(ks))

    def relevant(self, query: str) -> dict[str, float]:
        """Return the grades of what is relevant to the query of an id, by the ids of documents."""
        return {name: grade for name, grade in self.relevance[query].items() if grade > 0}

    @staticmethod
    def order(ids: Sequence[str]) -> list[int]:
        """Return the numbers of documents, given by their ids, in the order in which equal scores rank.

        It is that of trec_eval, by id from the last to the first, and not that of the corpus, which may well begin
        with what is relevant.
        """
        return sorted(range(len(ids)), key=ids.__getitem__, reverse=True)

    def metrics(self, queries: np.ndarray, corpus: np.ndarray) -> dict[str, float]:
        """Measure the ranking of all documents for each query by the inner products of their vectors.

        Args:
            queries: Vectors of the queries, in their order.
            corpus: Vectors of the documents, in their order.

        Returns:
            See [`ranking_metrics`].

        Shape:
            queries (q, d), corpus (n, d).
        """
        ids = [document.id for document in self.corpus]
        order = self.order(ids)
        place = {ids[i]: number for number, i in enumerate(order)}
        ranks, grades = [], []
        step = max(1, BLOCK // len(order))
        for start in range(0, len(self.queries), step):
            scores = queries[start : start + step] @ corpus[order].T  # (b, n)
            for row, query in zip(scores, self.queries[start : start + step], strict=True):
                relevant = self.relevant(query.id)
                ranks.append(ranks_of(row, [place[name] for name in relevant]))
                grades.append(np.array([*relevant.values()], dtype=np.float64))
        return ranking_metrics(ranks, grades, self.ks)


def ranks_of(scores: np.ndarray, candidates: Sequence[int]) -> np.ndarray:
    """Ranks of some candidates, 0 for first; of equal scores the first ranks better.

    >>> ranks_of(np.array([0.1, 0.9, 0.9, 0.4]), [2, 0])
    array([1, 3])

    Raises:
        ValueError: A score is not a number.
    """
    if np.isnan(scores).any():
        raise ValueError("a score is not a number: a vector of the query or of a document is broken.")
    places = np.asarray(candidates, dtype=np.int64)
    own = scores[places][:, None]
    before = (scores > own) | ((scores == own) & (np.arange(len(scores)) < places[:, None]))
    return before.sum(axis=1)


def ranking_metrics(
    ranks: Sequence[np.ndarray], grades: Sequence[np.ndarray], ks: Sequence[int] = KS
) -> dict[str, float]:
    """Recall, mean reciprocal rank and nDCG, as trec_eval has them, in 0 to 1.

    Args:
        ranks: For each query the ranks of all its relevant documents, 0 for first.
        grades: For each query how relevant these are, above 0.
        ks: Where rankings are cut off.

    Returns:
        `recall@k`: the share of the relevant documents that is among the first k. `mrr`: the mean of 1 / (rank of
        the first relevant one, from 1). `ndcg@k` at the largest k: the sum of grade / log2(rank + 1), divided by that
        of the best possible ranking. Each is a mean over queries.

    >>> ranking_metrics([np.array([0, 2])], [np.array([1.0, 1.0])], ks=(1, 3))
    {'recall@1': 0.5, 'recall@3': 1.0, 'mrr': 1.0, 'ndcg@3': 0.9197207891481877}
    """
    last = max(ks)
    found = {f"recall@{k}": float(np.mean([np.mean(each < k) for each in ranks])) for k in ks}
    found["mrr"] = float(np.mean([1 / (each.min() + 1) for each in ranks]))
    shares = []
    for each, worth in zip(ranks, grades, strict=True):
        gained = (worth / np.log2(each + 2))[each < last].sum()
        best = np.sort(worth)[::-1][:last]
        shares.append(gained / (best / np.log2(np.arange(len(best)) + 2)).sum())
    found[f"ndcg@{last}"] = float(np.mean(shares))
    return found


def _documents(given: Any, prefix: str) -> list[Document]:
    if isinstance(given, Mapping):
        given = [Document(str(name), sample) for name, sample in given.items()]
    return [as_document(item, number, prefix) for number, item in enumerate(given)]


def with_instruction(query: Document, instruction: str | None) -> Document:
    """Put an instruction in front of a query, as pairs have it in training."""
    if not instruction:
        return query
    content = query.content
    sample = prompted({"messages": content.messages, "images": content.images}, instruction)
    return Document(query.id, from_schema(sample["messages"], sample["images"]), query.metadata)


def _listed(name: Any, found: Any) -> Iterable[str]:
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise ValueError(f"relevance of the query {name!r} is {found!r:.80}: give a list of ids, or grades by id.")
    return [str(each) for each in found]


def _ids(documents: Sequence[Document], which: str) -> set[str]:
    found: set[str] = set()
    for document in documents:
        if document.id in found:
            raise ValueError(f"two of the {which} have the id {document.id!r}.")
        found.add(document.id)
    return found
