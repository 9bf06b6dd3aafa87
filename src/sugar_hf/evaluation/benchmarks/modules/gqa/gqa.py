"""The accuracy of GQA."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.metrics import gqa_match, gqa_match_lmms


class Gqa(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Exact match on GQA, in the form of LLaVA or, with `lmms=True`, of lmms-eval.",
            inputs="predictions: answers; references: the right ones; lmms: the form. Gives `accuracy` in percent.",
            citation="Hudson and Manning, GQA: A New Dataset for Real-World Visual Reasoning, CVPR 2019",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
            reference="https://github.com/haotian-liu/LLaVA/blob/main/scripts/convert_gqa_for_eval.py",
        )

    def _compute(self, predictions: list[str], references: list[str], lmms: bool = False) -> dict[str, float]:
        match = gqa_match_lmms if lmms else gqa_match
        return {"accuracy": percent([match(*pair) for pair in zip(predictions, references, strict=True)])}
