"""How much is trained and measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Sizes of everything.

    Args:
        name: `full`, `small`, `evidence` or `quick`; results of different budgets are never mixed.
        questions: questions of each set of questions.
        scenes: candidates of the retrieval of scenes.
        stories: stories of the retrieval of stories.
        pairs: items of each set of pairs, and of each kind of difference.
        facts: concepts that the knowledge of a world tells of.
        batch_size: samples in a step.
        rows: rows of training data, each of which is seen once.
        seeds: seeds of rows, of which each takes as many as it asks for.
    """

    name: str
    questions: int = 300
    scenes: int = 1000
    stories: int = 500
    pairs: int = 200
    facts: int = 150
    batch_size: int = 48
    rows: int = 72000
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Budget("full")
#: What two cores do in a few hours.
SMALL = Budget("small", questions=100, scenes=1000, stories=200, pairs=72, facts=40, rows=12000)
#: Larger sets, and shorter trainings, so that more of them can be compared: see `evidence.py`.
EVIDENCE = Budget(
    "evidence", questions=500, scenes=1000, stories=1000, pairs=400, facts=40, rows=6000, seeds=tuple(range(8))
)
QUICK = Budget(
    "quick",
    questions=24,
    scenes=60,
    stories=40,
    pairs=12,
    facts=30,
    batch_size=12,
    rows=96,
    seeds=(0,),
)
BUDGETS = {budget.name: budget for budget in (FULL, SMALL, EVIDENCE, QUICK)}
