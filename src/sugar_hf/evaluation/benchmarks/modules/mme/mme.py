"""The scores of MME."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import mme_scores


class Mme(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Perception (at most 2000), cognition (at most 800), and acc and acc+ of each subtask.",
            inputs=(
                "predictions: replies (None for a failed sample); references: yes or no; categories: subtasks; "
                "question_ids: the image of each question. Gives what `mme_scores` in "
                "`sugar_hf.evaluation.benchmarks.scorers` gives."
            ),
            citation="Fu et al., MME: A Comprehensive Evaluation Benchmark for Multimodal Large Language Models, 2023",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "categories": datasets.Value("string"),
                    "question_ids": datasets.Value("string"),
                }
            ),
            reference="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation",
        )

    def _compute(
        self, predictions: list[str | None], references: list[str], categories: list[str], question_ids: list[str]
    ) -> dict[str, float]:
        return mme_scores(categories, question_ids, predictions, references)
