"""The accuracy of MMBench."""

from string import ascii_uppercase

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import circular_accuracy, mmbench_choice


class Mmbench(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="CircularEval on MMBench without a language model: a reply that names no option is wrong.",
            inputs=(
                "predictions: replies; references: letters; options: the texts of the options of each row, in the "
                "order A, B, ..; indices: the index of each row; categories: a category of each row, if wanted. "
                "Gives what `circular_accuracy` in `sugar_hf.evaluation.benchmarks.scorers` gives, and the number of "
                "replies that are `uninferable`."
            ),
            citation="Liu et al., MMBench: Is Your Multi-modal Model an All-around Player?, ECCV 2024",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "options": datasets.Sequence(datasets.Value("string")),
                    "indices": datasets.Value("int64"),
                }
            ),
            reference="https://github.com/open-compass/MMBench",
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[str],
        options: list[list[str]],
        indices: list[int],
        categories: list[str] | None = None,
    ) -> dict[str, float]:
        pairs = zip(predictions, options, strict=True)
        letters = [mmbench_choice(text, dict(zip(ascii_uppercase, texts, strict=False))) for text, texts in pairs]
        hits = [letter == right for letter, right in zip(letters, references, strict=True)]
        return {**circular_accuracy(indices, hits, categories), "uninferable": float(letters.count(None))}
