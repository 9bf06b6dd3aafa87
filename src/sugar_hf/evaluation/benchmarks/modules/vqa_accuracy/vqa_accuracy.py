"""The official accuracy of VQAv2."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.benchmarks.scorers import vqa_accuracy


class VqaAccuracy(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="VQA accuracy against ten annotators, as the official VQAv2 script computes it.",
            inputs=(
                "predictions: answers; references: the list of annotators' answers of each. Gives `accuracy` in "
                "percent."
            ),
            citation="Goyal et al., Making the V in VQA Matter, CVPR 2017",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference="https://github.com/GT-Vision-Lab/VQA",
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        pairs = zip(predictions, references, strict=True)
        return {"accuracy": percent([vqa_accuracy(text, answers) for text, answers in pairs])}
