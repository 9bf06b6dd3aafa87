"""The relative score of LLaVA-Bench."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import llava_bench_scores, parse_two_scores


class LlavaBench(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="The score relative to GPT-4 on LLaVA-Bench (in the wild), from the replies of a judge.",
            inputs=(
                "predictions: the judge's replies; categories: conv, detail or complex. Gives `score` and `score, "
                "{category}` in percent, and the number of `unparsed` replies."
            ),
            citation="Liu et al., Visual Instruction Tuning, NeurIPS 2023",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "categories": datasets.Value("string"),
                }
            ),
            reference="https://github.com/haotian-liu/LLaVA/blob/main/llava/eval/summarize_gpt_review.py",
        )

    def _compute(self, predictions: list[str], categories: list[str]) -> dict[str, float]:
        return llava_bench_scores([parse_two_scores(text) for text in predictions], categories)
