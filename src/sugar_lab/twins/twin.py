"""What a twin is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sugar_hf.evaluation.benchmarks.tasks import Evaluator

from ..budget import Budget
from ..loss_evaluator import LossEvaluator


@dataclass(frozen=True)
class Twin:
    """An experiment of the paper on the picturebook.

    Args:
        name: What it is called, such as `vqav2`: the name of the benchmark that it is the twin of.
        title: What tables call it.
        kind: What it needs of a model: `generate`, `loss` (a Sugar model that generates), `embed`, or `both`.
        build: Makes the evaluator, on test data of the budget's size.
        primary_metric: The figure to look at.
        paper: From figures of the result to cells of the paper's tables, as `table1/VQAv2`.
        chance: What guessing gives, by figure.
        card: What the data is, in one or two sentences, for the document.
    """

    name: str
    title: str
    kind: str
    build: Callable[[Budget], Evaluator | LossEvaluator]
    primary_metric: str
    paper: Mapping[str, str] = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    card: str = ""
