"""The accuracy of TextVQA and VizWiz."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.benchmarks.scorers import evalai_accuracy


class EvalaiAccuracy(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="VQA accuracy with the EvalAI processor, as used for TextVQA and VizWiz.",
            inputs=(
                "predictions: answers; references: the list of annotators' answers of each. Gives `accuracy` in "
                "percent."
            ),
            citation="Singh et al., Towards VQA Models That Can Read, CVPR 2019",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference="https://github.com/haotian-liu/LLaVA/blob/main/llava/eval/m4c_evaluator.py",
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"accuracy": percent([evalai_accuracy(text, answers) for text, answers in pairs])}
