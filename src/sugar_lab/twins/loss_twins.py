"""How well answers are foreseen: the language-model loss of each held-out answer. The paper has no such figure."""

import random
from typing import Any

from sugar_hf.evaluation.examples import Lazy

from ..budget import Budget
from ..exercises import all_exercises
from ..loss_evaluator import FIGURE, LossEvaluator
from .twin import Twin

NAME = "answer-loss"


def build_loss(budget: Budget) -> LossEvaluator:
    """Exercises of all kinds in turn, twice as many as other twins have questions."""
    draws = list(all_exercises().items())

    def row(i: int) -> dict[str, Any]:
        kind, draw = draws[i % len(draws)]
        name = f"{kind} {i // len(draws)}"
        return {"id": name, "source": "picturebook", **draw(random.Random(f"answer-loss/{name}"), "test").row()}

    return LossEvaluator(NAME, Lazy(2 * budget.questions, row))


TWINS = {
    NAME: Twin(
        NAME,
        "Loss of answers",
        "loss",
        build_loss,
        FIGURE,
        card="Held-out exercises of all kinds: the language-model loss of their answers, in nats for each token.",
    )
}
