"""The accuracy of WebQA."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.benchmarks.scorers import webqa_accuracy


class Webqa(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="QA-Acc of WebQA without its lemmas: by the words of the category, or by the keywords.",
            inputs=(
                "predictions: answers; references: Keywords_A, or the right answers where there are none; "
                "categories: Qcate. Gives `accuracy` in percent."
            ),
            citation="Chang et al., WebQA: Multihop and Multimodal QA, CVPR 2022",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "categories": datasets.Value("string"),
                }
            ),
            reference="https://github.com/WebQnA/WebQA/blob/main/eval.py",
        )

    def _compute(self, predictions: list[str], references: list[str], categories: list[str]) -> dict[str, float]:
        rows = zip(predictions, references, categories, strict=True)
        return {"accuracy": percent([webqa_accuracy(*row) for row in rows])}
