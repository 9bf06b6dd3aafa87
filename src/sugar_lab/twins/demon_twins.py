"""The twin of DEMON (table 2): several pictures between texts, in seven categories."""

from collections.abc import Sequence

from sugar_hf.evaluation import Example, GenerationEvaluator, Lazy, Record
from sugar_hf.evaluation.benchmarks.tasks.demon_tasks import CATEGORIES, score_demon
from sugar_hf.picturebook import Scene, render

from ..budget import Budget
from ..exercises import Exercise, draw_many
from ..exercises.interleaved import EXERCISES
from .twin import Twin

#: The exercises of each category.
KINDS = {
    "MMD": "dialogue",
    "VST": "storytelling",
    "VRI": "relation",
    "MMC": "cloze",
    "KGQA": "knowledge",
    "TRQA": "text_rich",
    "MMR": "reasoning",
}
#: What needs no look at a picture. In the first three it is measured, by always saying the one answer that is nearest
#: to all: "at the bottom left", "a large guitar appears at the bottom left.", "the leopard goes to the left." Whoever
#: sees what happens, but cannot know in which of the story's words it is told, reaches 85 in VST and in VRI. Reasoning
#: is, in equal parts, a choice among three, four and two.
CHANCE = {
    "MMD": 21.6,
    "VST": 30.3,
    "VRI": 32.8,
    "MMC": 100 / 4,
    "KGQA": 100 / 4,
    "TRQA": 100 / 4,
    "MMR": 100 * (1 / 3 + 1 / 4 + 1 / 2) / 3,
}


def build_demon(budget: Budget) -> GenerationEvaluator:
    """`budget.questions` test exercises of each category; pictures are drawn when they are needed."""
    drawn: list[tuple[str, Exercise]] = []
    for category, kind in KINDS.items():
        found = draw_many(EXERCISES[kind], kind, "test", budget.questions)
        drawn += [(f"{category}/{number}", exercise) for number, exercise in enumerate(found)]
    return GenerationEvaluator(
        "demon",
        Lazy(len(drawn), lambda i: _example(*drawn[i])),
        score_twin,
        primary_metric="mean",
        max_new_tokens=48,
        settings={"data": "picturebook", "split": "test", "questions of each category": budget.questions},
    )


def score_twin(records: Sequence[Record]) -> dict[str, float]:
    """The scores of `score_demon`, in percent: ROUGE-L for MMD, VST and VRI, accuracy for the others.

    Each exercise counts as one of the task of DEMON that it is the twin of. Here a category is whole without the
    tasks that have no twin, so that no figure is called partial.
    """
    return {name.removesuffix(", partial"): value for name, value in score_demon(records).items()}


def _example(id: str, exercise: Exercise) -> Example:
    prompt = [render(part) if isinstance(part, Scene) else part for part in exercise.parts]
    return Example.of(id, prompt, {**exercise.info, "answer": exercise.answer})


TWINS = {
    "demon": Twin(
        "demon",
        "DEMON",
        "generate",
        build_demon,
        "mean",
        paper={category: f"table2/{category}" for category in CATEGORIES},
        chance={**CHANCE, "mean": sum(CHANCE.values()) / len(CHANCE)},
        card="Dialogues, stories, differences, gaps in stories, invented facts, signs, and questions over several "
        "pictures: two to five between the texts of a prompt (facts may have a single one). Answers are sentences or "
        "short, scored by ROUGE-L, or one of two to four choices, scored by accuracy.",
    )
}
