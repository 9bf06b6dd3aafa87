"""The scores of MM-Vet."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import mm_vet_scores, parse_mm_vet_score


class MmVet(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="MM-Vet, in all and by capability, from the replies of a judge.",
            inputs=(
                "predictions: the judge's replies; capabilities: what each question needs, joined by commas. "
                "Gives `score` and `score, {capability}` in percent, and the number of `unparsed` replies."
            ),
            citation="Yu et al., MM-Vet: Evaluating Large Multimodal Models for Integrated Capabilities, ICML 2024",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "capabilities": datasets.Value("string"),
                }
            ),
            reference="https://github.com/yuweihao/MM-Vet",
        )

    def _compute(self, predictions: list[str], capabilities: list[str]) -> dict[str, float]:
        return mm_vet_scores([parse_mm_vet_score(text) for text in predictions], capabilities)
