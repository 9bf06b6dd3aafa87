"""The outcome of each item, from what an evaluator writes beside its figures."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sugar_hf.evaluation.examples import Record
from sugar_hf.evaluation.generation_evaluator import GenerationEvaluator
from sugar_hf.evaluation.ranking_evaluator import PairsEvaluator, RankingEvaluator

from .exercises.described_facts import facts_in
from .loss_evaluator import FIGURE, LossEvaluator
from .twins import Twin

DESCRIPTIONS, FALSE = "llava-w", "false"
#: Task, item, metric and value.
ItemOutcome = tuple[str, str, str, float]


def item_outcomes(twin: Twin, evaluator: Any, path: Path) -> Iterator[ItemOutcome]:
    """Read the lines that an evaluator wrote, and yield what each item came out as.

    - A ranking is a task, such as `coco t2i`, with a rank for each query.
    - A figure of pairs that a table of the paper has is a task, such as `winoground group`, with a hit for each item.
    - A question has the primary figure of its own answer as a score. This asks for a figure that is a mean over
      questions. A description has `share_of_false`, too.
    - A held-out answer has its loss.

    Args:
        twin: what was measured.
        evaluator: the twin's, of the same budget.
        path: the file of JSON lines.

    Raises:
        ValueError: for an evaluator whose items have no outcome of their own.
    """
    with path.open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file][1:]
    if isinstance(evaluator, RankingEvaluator):
        for line in lines:
            rank = math.inf if line["rank"] is None else float(line["rank"])
            yield f"{twin.name} {line['ranking']}", line["id"], "rank", rank
    elif isinstance(evaluator, PairsEvaluator):
        for line in lines:
            scores = np.zeros((1, 2, 2)) if line["scores"] is None else np.array([line["scores"]])
            figures = evaluator.score(scores, [line["group"]])
            for figure in twin.paper:
                yield f"{twin.name} {figure}", line["id"], "hit", figures[figure] / 100
    elif isinstance(evaluator, GenerationEvaluator) and evaluator.score is not None:
        last = {line["id"]: line for line in lines}  # a sample that failed was asked again
        for id, line in last.items():
            record = Record(id, line["prediction"], line.get("reference"), line.get("error"), line.get("info", {}))
            yield twin.name, id, "score", float(evaluator.score([record])[twin.primary_metric])
            if twin.name == DESCRIPTIONS:
                yield f"{twin.name} {FALSE}", id, "score", share_of_false(record)
    elif isinstance(evaluator, LossEvaluator):
        for line in lines:
            yield twin.name, line["id"], "loss", line[FIGURE]
    else:
        raise ValueError(f"{twin.name}: a {type(evaluator).__name__} has no outcome of each item.")


def share_of_false(record: Record) -> float:
    """How much of what a description states of a scene is not so, in percent; 0 if it states nothing."""
    said = facts_in(record.text)
    return 100 * len(said - set(record.reference["facts"])) / len(said) if said else 0.0
