"""The accuracy of ScienceQA."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.benchmarks.scorers import science_qa_choice, science_qa_choice_lmms


class ScienceQa(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Accuracy on ScienceQA by the rules of LLaVA or, with `lmms=True`, of lmms-eval.",
            inputs="predictions: replies; references: letters; lmms: the rules. Gives `accuracy` in percent.",
            citation="Lu et al., Learn to Explain: Reasoning via Thought Chains for Science QA, NeurIPS 2022",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                }
            ),
            reference="https://github.com/haotian-liu/LLaVA/blob/main/llava/eval/eval_science_qa.py",
        )

    def _compute(self, predictions: list[str], references: list[str], lmms: bool = False) -> dict[str, float]:
        choice = science_qa_choice_lmms if lmms else science_qa_choice
        pairs = zip(predictions, references, strict=True)
        return {"accuracy": percent([choice(text) == letter for text, letter in pairs])}
