"""The scores of Winoground."""

import datasets
import evaluate
import numpy as np

from sugar_hf.evaluation.benchmarks.modules.info import metric_info
from sugar_hf.evaluation.metrics import winoground_scores


class Winoground(evaluate.Metric):
    """See `sugar_hf.evaluation.metrics` for what it follows and where others differ."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info(
            description="Text, image and group score of Winoground.",
            inputs=(
                "predictions: for each item [[caption 0 with image 0, with image 1], [caption 1 with image 0, "
                "with image 1]]. Gives `text`, `image` and `group` in percent."
            ),
            citation="Thrush et al., Winoground: Probing Visio-Linguistic Compositionality, CVPR 2022",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("float64"))),
                }
            ),
            reference="https://huggingface.co/datasets/facebook/winoground",
        )

    def _compute(self, predictions: list[list[list[float]]]) -> dict[str, float]:
        return winoground_scores(np.array(predictions))
