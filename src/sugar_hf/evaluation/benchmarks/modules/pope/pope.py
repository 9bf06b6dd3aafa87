"""The scores of POPE."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import binary_scores, pope_answer


class Pope(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Accuracy, precision, recall, F1 and share of yes, for objects that may not be in the image.",
            inputs=(
                "predictions: replies (None for a failed sample); references: yes or no; one call for each split. "
                "Gives `accuracy`, `precision`, `recall`, `f1` and `yes_ratio` in percent, and the number of "
                "`failed` samples."
            ),
            citation="Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
            reference="https://github.com/RUCAIBox/POPE",
        )

    def _compute(self, predictions: list[str | None], references: list[str]) -> dict[str, float]:
        answers = [None if text is None else pope_answer(text) for text in predictions]
        return binary_scores(answers, references)
