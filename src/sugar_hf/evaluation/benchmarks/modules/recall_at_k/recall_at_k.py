"""Recall among the first k."""

import datasets
import evaluate
import numpy as np

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.metrics import recall_at_k, target_ranks


class RecallAtK(evaluate.Metric):
    """See `sugar_hf.evaluation.metrics` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Share of queries with a right candidate among the first k.",
            inputs=(
                "predictions: the scores of all candidates for each query; references: the indices of the right "
                "candidates of each; ks: the cut-offs; excluded: for each query the indices of candidates that "
                "may not be retrieved. Gives `recall@k` in percent."
            ),
            citation="Karpathy and Fei-Fei, Deep Visual-Semantic Alignments, CVPR 2015",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
            reference="https://github.com/fartashf/vsepp",
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[int]],
        ks: tuple[int, ...] = (1, 5, 10),
        excluded: list[list[int]] | None = None,
    ) -> dict[str, float]:
        return recall_at_k(target_ranks(np.array(predictions), references, excluded), ks)
