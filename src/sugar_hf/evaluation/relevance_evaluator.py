"""Retrieval with graded relevance: nDCG, recall, hits and the reciprocal rank over a corpus, as trec_eval has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data import RetrievalSet
from ..data.relevance import ranking_metrics, ranks_of
from .embedding_store import EmbeddingStore
from .jsonl_file import ResultLines
from .metrics.ranking import recall_at_k
from .ranking_evaluator import as_encoder, best_candidates, score_blocks

CUT = 10  # where the reciprocal rank is cut off


class RelevanceEvaluator:
    """Holds queries, a corpus and which documents answer which query, and measures models on them.

    Args:
        name: The task's name.
        task: Queries, corpus, relevance, and where rankings are cut off.
        primary_metric: The figure to look at; one of the result.
        groups: By the id of a query what it is counted under beside the whole, such as its discipline.
        among: By the id of a query the ids of the documents that it is ranked among; all if it is not there.
        seed: What whoever made the set drew with; it is written into the result.
        settings: What else the result should say; JSON values.
        counts: Further numbers of the result, such as how many queries the protocol leaves out.

    Raises:
        ValueError: A query is to be ranked among documents without its relevant ones, or among unknown ones; it is
            unknown itself; or there is no such figure.
    """

    def __init__(
        self,
        name: str,
        task: RetrievalSet,
        *,
        primary_metric: str,
        groups: Mapping[str, str] | None = None,
        among: Mapping[str, Sequence[str]] | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        self.name, self.task = name, task
        self.primary_metric: str | None = primary_metric
        self.groups, self.among = dict(groups or {}), dict(among or {})
        self.seed, self.settings, self.counts = seed, dict(settings or {}), dict(counts or {})
        self._queries = [query.id for query in task.queries]
        known = _figures([np.zeros(1)], [np.ones(1)], task.ks)
        if primary_metric not in known:
            raise ValueError(f"{name}: primary_metric={primary_metric!r} is none of {', '.join(known)}.")
        corpus = [document.id for document in task.corpus]
        self._order = task.order(corpus)
        self._names = [corpus[i] for i in self._order]
        self._place = {name: place for place, name in enumerate(self._names)}
        for query, allowed in self.among.items():
            if query not in task.relevance:
                raise ValueError(f"{name}: among names the query {query!r}, which is not among the queries.")
            if unknown := [each for each in allowed if each not in self._place]:
                raise ValueError(
                    f"{name}: the query {query!r} is to be ranked among {unknown[0]!r}, which is unknown."
                )
            if missing := [each for each in task.relevant(query) if each not in set(allowed)]:
                raise ValueError(f"{name}: {missing[0]!r} is relevant to the query {query!r}, but not among its own.")

    def __call__(
        self, model: Any, processor: Any = None, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model.

        Args:
            model: A Sugar model, or an `Encoder`.
            processor: The model's; not needed with an encoder.
            output: File of JSON lines that is written anew: first what was run, then for each query its id, the rank
                of its best relevant document (1 for first, null if none is found), the first 10 documents with their
                scores, and its relevant ones with their grades. The embeddings are kept beside it.
            batch_size: Documents in one forward pass.

        Returns:
            In percent, means over the queries: `ndcg@k`, `recall@k` (the share of the relevant documents that is
            among the first k) and `hit@k` (whether any is) for each k; `mrr`, and `mrr@10`, which is 0 for a query
            without a relevant document among the first 10. `{group} {primary metric}` and `{group} queries` for each
            group. Then `queries`, `corpus`, `n`, `seed`, `failed` (a list of `{"set", "id", "error"}`) and
            `settings`. A query that cannot be embedded finds nothing. A document that cannot be is never found.

        Raises:
            ValueError: The output is of another run, or the model does not embed.
        """
        encoder = as_encoder(model, processor)
        settings = {"task": self.name, **self.settings, "seed": self.seed, **encoder.describe()}
        with ResultLines(output, settings) as lines:
            store = EmbeddingStore(encoder, lines.folder, batch_size)
            queries = store.encode("queries", self.task.queries)
            corpus = store.encode("corpus", self.task.corpus)
            ranks = self._ranks(queries, [corpus[i] for i in self._order], lines)
        grades = [np.array([*self.task.relevant(query).values()], np.float64) for query in self._queries]
        figures: dict[str, Any] = _figures(ranks, grades, self.task.ks)
        for group in sorted(set(self.groups.values())):
            numbers = [i for i, query in enumerate(self._queries) if self.groups.get(query) == group]
            if numbers:
                part = _figures([ranks[i] for i in numbers], [grades[i] for i in numbers], self.task.ks)
                figures[f"{group} {self.primary_metric}"] = part[str(self.primary_metric)]
                figures[f"{group} queries"] = len(numbers)
        figures |= {"queries": len(queries), "corpus": len(corpus), **self.counts}
        settings |= {"notes": notes} if (notes := store.notes()) else {}
        return {**figures, "n": len(queries), "seed": self.seed, "failed": store.failed, "settings": settings}

    def _ranks(
        self, queries: Sequence[np.ndarray | None], corpus: Sequence[np.ndarray | None], lines: ResultLines
    ) -> list[np.ndarray]:
        """For each query the ranks of its relevant documents, 0 for first, inf for what is not found."""
        ranks = []
        for start, block in score_blocks(queries, corpus):
            for query, scores in zip(self._queries[start : start + len(block)], block, strict=True):
                if query in self.among:
                    allowed = [self._place[name] for name in self.among[query]]
                    scores[np.setdiff1d(np.arange(len(scores)), allowed)] = -np.inf
                relevant = self.task.relevant(query)
                places = [self._place[name] for name in relevant]
                found = np.where(scores[places] > -np.inf, ranks_of(scores, places), np.inf)
                ranks.append(found)
                lines.write(
                    {
                        "id": query,
                        "rank": int(found.min()) + 1 if found.min() < np.inf else None,
                        "candidates": [[self._names[i], round(float(scores[i]), 6)] for i in best_candidates(scores)],
                        "relevant": relevant,
                    }
                )
        return ranks


def _figures(ranks: Sequence[np.ndarray], grades: Sequence[np.ndarray], ks: Sequence[int]) -> dict[str, float]:
    parts = [ranking_metrics(ranks, grades, (k,)) for k in ks]
    found = {f"ndcg@{k}": part[f"ndcg@{k}"] for k, part in zip(ks, parts, strict=True)}
    found |= {f"recall@{k}": part[f"recall@{k}"] for k, part in zip(ks, parts, strict=True)}
    cut = [np.where(each < CUT, each, np.inf) for each in ranks]
    found |= {"mrr": parts[0]["mrr"], f"mrr@{CUT}": ranking_metrics(cut, grades, (1,))["mrr"]}
    hits = recall_at_k(np.array([each.min() for each in ranks]), ks)
    return {name: 100 * value for name, value in found.items()} | {f"hit@{k}": hits[f"recall@{k}"] for k in ks}
