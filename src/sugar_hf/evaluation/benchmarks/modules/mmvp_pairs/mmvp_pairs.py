"""The accuracy of MMVP-VLM."""

from typing import Any

import datasets
import evaluate
import numpy as np

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.benchmarks.scorers import ab_choice
from sugar_hf.evaluation.metrics import pair_accuracy, pair_hits


class MmvpPairs(evaluate.Metric):
    """See `sugar_hf.evaluation.metrics` for what it follows and where others differ.

    The configuration `scores` (taken if none is named) takes similarities, `replies` takes the letters of replies.
    """

    def _info(self) -> evaluate.MetricInfo:
        form = self.config_name
        if form == "replies":
            texts = datasets.Sequence(datasets.Value("string"))
            columns = {"predictions": texts, "references": texts}
        elif form in ("scores", "default"):
            columns = {"predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float64")))}
        else:
            raise ValueError(f"config_name: {form!r} is neither scores nor replies")
        return metric_info(
            description="MMVP-VLM: pairs of images and statements, by scores as CLIP gives or by replies A or B.",
            inputs=(
                "With the configuration `scores`, predictions: for each pair [[statement 1 with image 1, with "
                "image 2], [statement 2 with image 1, with image 2]]. With `replies`, predictions: the replies for "
                "image 1 and image 2; references: the right letters of both. With both, types: the type of each "
                "pair. Gives `accuracy`, the mean over types, and `accuracy, {type}` in percent."
            ),
            citation="Tong et al., Eyes Wide Shut? Exploring the Visual Shortcomings of Multimodal LLMs, CVPR 2024",
            features=datasets.Features({**columns, "types": datasets.Value("string")}),
            reference="https://github.com/tsb0601/MMVP",
        )

    def _compute(
        self, predictions: list[Any], types: list[str], references: list[list[str]] | None = None
    ) -> dict[str, float]:
        if references is None:
            return pair_accuracy(np.array(predictions), types)
        hits = [
            [ab_choice(reply) == letter for reply, letter in zip(replies, letters, strict=True)]
            for replies, letters in zip(predictions, references, strict=True)
        ]
        return pair_hits(np.array(hits), types)
