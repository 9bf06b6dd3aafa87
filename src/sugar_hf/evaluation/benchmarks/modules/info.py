"""What the metric modules say of themselves."""

from collections.abc import Sequence

import datasets
import evaluate

_SUGAR = "https://arxiv.org/abs/2411.00304"


def metric_info(
    description: str,
    inputs: str,
    citation: str,
    features: datasets.Features | list[datasets.Features],
    reference: str,
) -> evaluate.MetricInfo:
    """The information of a module.

    Args:
        description: what it measures.
        inputs: what `compute` takes and gives.
        citation: the work that defines the metric.
        features: the columns it takes, or the alternatives.
        reference: the address of the script it follows.
    """
    return evaluate.MetricInfo(
        description=description,
        inputs_description=inputs,
        citation=citation,
        features=features,
        homepage=_SUGAR,
        license="Apache-2.0",
        reference_urls=[reference],
    )


def percent(values: Sequence[float]) -> float:
    """The mean in percent.

    Raises:
        ValueError: if there are no values.
    """
    if not values:
        raise ValueError("nothing to score")
    return 100.0 * sum(values) / len(values)
