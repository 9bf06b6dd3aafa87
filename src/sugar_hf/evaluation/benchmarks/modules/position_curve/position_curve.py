"""Accuracy by the position of the relevant pair."""

import datasets
import evaluate
import numpy as np

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import first_yes_no, position_curve


class PositionCurve(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Accuracy of yes/no questions by the position of the relevant pair among others.",
            inputs=(
                "predictions: for each item the replies with the relevant pair at position 1 to K; references: "
                "yes or no. Gives `position 1` to `position K`, their `mean` in percent and `depth`, ends minus "
                "middle."
            ),
            citation="Liu et al., Lost in the Middle: How Language Models Use Long Contexts, TACL 2024",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
            reference="https://arxiv.org/abs/2411.00304",
        )

    def _compute(self, predictions: list[list[str]], references: list[str]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return position_curve(np.array([[first_yes_no(text) == answer for text in texts] for texts, answer in pairs]))
