"""Recall@k of interleaved retrieval."""

from collections.abc import Sequence
from typing import Any

from ..model import SugarForConditionalGeneration, SugarProcessor, SugarRetrievalPipeline
from .metrics import recall_at_k, target_ranks


class RetrievalEvaluator:
    """Holds a retrieval task and measures models on it.

    Args:
        queries: interleaved samples, as `SugarProcessor` takes them.
        candidates: interleaved samples. A candidate is embedded at its last slice, and so is a query.
        targets: for each query the index of its candidate, or the indices of all right ones.
        name: prefix of the results' names.
        excluded: for each query the indices of candidates that may not be retrieved.
        ks: the cut-offs.
        batch_size: samples in one forward pass.

    Raises:
        ValueError: if the numbers of queries and targets differ.
    """

    def __init__(
        self,
        queries: Sequence[Any],
        candidates: Sequence[Any],
        targets: Sequence[int] | Sequence[Sequence[int]],
        name: str = "retrieval",
        excluded: Sequence[Sequence[int]] | None = None,
        ks: Sequence[int] = (1, 5, 10),
        batch_size: int = 32,
    ) -> None:
        if len(queries) != len(targets):
            raise ValueError(f"{name}: {len(queries)} queries, but {len(targets)} targets")
        self.queries, self.candidates, self.name = queries, candidates, name
        self.targets = [[target] if isinstance(target, int) else list(target) for target in targets]
        self.excluded, self.ks, self.batch_size = excluded, ks, batch_size
        self.primary_metric = f"{name} recall@{ks[0]}"

    def __call__(self, model: SugarForConditionalGeneration, processor: SugarProcessor) -> dict[str, float]:
        """Measure a model.

        Returns:
            `{name} recall@k` in percent for each k, with the numbers of queries and candidates.
        """
        pipe = SugarRetrievalPipeline(model=model, processor=processor, task="sugar-retrieval")
        queries = pipe.encode(self.queries, batch_size=self.batch_size, name="query")
        candidates = pipe.encode(self.candidates, batch_size=self.batch_size, name="candidate")
        ranks = target_ranks(queries @ candidates.T, self.targets, self.excluded)
        recalls = {f"{self.name} {name}": value for name, value in recall_at_k(ranks, self.ks).items()}
        return {**recalls, f"{self.name} queries": len(queries), f"{self.name} candidates": len(candidates)}
