"""The accuracy of DEMON's choices."""

import datasets
import evaluate

from sugar_hf.evaluation.benchmarks.modules.info import metric_info, percent
from sugar_hf.evaluation.benchmarks.scorers import demon_image_choice, demon_text_choice


class DemonChoice(evaluate.Metric):
    """See `sugar_hf.evaluation.benchmarks.scorers` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Accuracy on the tasks of DEMON with choices: of texts or, with `images=True`, of images.",
            inputs=(
                "predictions: replies; references: the right choices; choices: the texts to choose from (empty "
                "for images); images: whether images are chosen. Gives `accuracy` in percent."
            ),
            citation="Li et al., Fine-tuning MLLMs to Follow Zero-shot Demonstrative Instructions, ICLR 2024",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Value("string"),
                    "choices": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference="https://github.com/DCDmllm/Cheetah",
        )

    def _compute(
        self, predictions: list[str], references: list[str], choices: list[list[str]], images: bool = False
    ) -> dict[str, float]:
        if images:
            hits = [demon_image_choice(*pair) for pair in zip(predictions, references, strict=True)]
        else:
            hits = [demon_text_choice(*row) for row in zip(predictions, choices, references, strict=True)]
        return {"accuracy": percent(hits)}
