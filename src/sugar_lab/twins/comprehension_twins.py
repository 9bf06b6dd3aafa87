"""Twins of the eleven benchmarks of comprehension: questions about one picture (table 1).

What the benchmarks' own functions score is scored by them. Two benchmarks have a language model as judge; as all that
a picture shows is known here, rules take its place: see `score_detail` and `score_mixed`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Any

from sugar_hf.evaluation import Example, GenerationEvaluator, Lazy, Record, exact_match
from sugar_hf.evaluation.benchmarks.scorers import evalai_accuracy, vqa_accuracy
from sugar_hf.evaluation.benchmarks.tasks.judged_tasks import score_mm_vet
from sugar_hf.evaluation.benchmarks.tasks.multiple_choice import score_mmbench, score_science_qa
from sugar_hf.evaluation.benchmarks.tasks.vqa import mean, score_answers, score_gqa
from sugar_hf.evaluation.benchmarks.tasks.yes_no import score_mme, score_pope
from sugar_hf.evaluation.generation_evaluator import Score
from sugar_hf.picturebook.scenes import Scene, render

from ..budget import Budget
from ..exercises import Exercise, draw_many
from ..exercises.closed_questions import (
    ABSENT,
    COGNITION,
    LETTERS,
    PERCEPTION,
    draw_object,
    draw_yes_no_pair,
    rotations,
)
from ..exercises.comprehension import EXERCISES
from ..exercises.described_facts import fact_f1, facts_in
from .twin import Twin

SHORT_ANSWER, SENTENCE = 12, 48  # tokens; the longest short answers take nine by the tokenizer of the mini models
#: What evaluators of MMBench add to the index of a question for each of its rotations.
ROTATION = 10**6
#: An exercise with its id and what its answer is scored with.
Asked = tuple[str, Exercise, dict[str, Any]]


def evaluator(
    name: str, asked: Sequence[Asked], score: Score, primary_metric: str, budget: Budget, tokens: int = SHORT_ANSWER
) -> GenerationEvaluator:
    """Make an evaluator, whose pictures are drawn when they are needed.

    Args:
        name: the twin's.
        asked: the exercises, with ids that differ.
        score: makes figures of the records.
        primary_metric: the figure to look at.
        budget: named in the result.
        tokens: the longest answer.
    """

    def build(number: int) -> Example:
        id, exercise, reference = asked[number]
        prompt = [render(part) if isinstance(part, Scene) else part for part in exercise.parts]
        return Example.of(id, prompt, reference)

    return GenerationEvaluator(
        name,
        Lazy(len(asked), build),
        score,
        primary_metric=primary_metric,
        max_new_tokens=tokens,
        settings={"world": "picturebook", "split": "test", "budget": budget.name},
    )


def _drawn(kind: str, size: int) -> list[Exercise]:
    return draw_many(EXERCISES[kind], kind, "test", size)


def _plain(
    name: str,
    kind: str,
    reference: Callable[[Exercise], dict[str, Any]],
    score: Score,
    primary_metric: str,
    tokens: int = SHORT_ANSWER,
) -> Callable[[Budget], GenerationEvaluator]:
    """Makes an evaluator of as many exercises of a kind as the budget has questions."""

    def build(budget: Budget) -> GenerationEvaluator:
        drawn = _drawn(kind, budget.questions)
        asked = [(str(number), exercise, reference(exercise)) for number, exercise in enumerate(drawn)]
        return evaluator(name, asked, score, primary_metric, budget, tokens)

    return build


def _info(exercise: Exercise) -> dict[str, Any]:
    return dict(exercise.info)


def _with_answer(exercise: Exercise) -> dict[str, Any]:
    return {"answer": exercise.answer, **exercise.info}


def _science_qa(exercise: Exercise) -> dict[str, Any]:
    return {"answer": exercise.answer, "subject": exercise.info["category"], "grade": None}


# ---- yes and no ----


def _pope(budget: Budget) -> GenerationEvaluator:
    """A third of the questions for each kind of absent things."""
    asked: list[Asked] = []
    for category in ABSENT:
        draw = partial(draw_object, category=category)
        for number, exercise in enumerate(draw_many(draw, f"object, {category}", "test", budget.questions // 3)):
            asked.append((f"{category}/{number}", exercise, {"label": exercise.answer, "category": category}))
    return evaluator("pope", asked, score_pope, "f1", budget)


def _mme(budget: Budget) -> GenerationEvaluator:
    """Two questions for each picture, and as many pictures for each subtask."""
    subtasks = PERCEPTION + COGNITION
    asked: list[Asked] = []
    for subtask in subtasks:
        for number in range(max(1, budget.questions // (2 * len(subtasks)))):
            image = f"{subtask}/{number}"
            rng = Random(f"exercise/yes_no_pair/test/{image}")
            for exercise in draw_yes_no_pair(rng, "test", subtask):
                reference = {"category": subtask, "image": image, "answer": exercise.answer}
                asked.append((f"{image} {exercise.answer}", exercise, reference))
    return evaluator("mme", asked, score_mme, "perception", budget)


# ---- options ----


def _mmbench(budget: Budget) -> GenerationEvaluator:
    """A quarter as many questions, each with its four rotations."""
    asked: list[Asked] = []
    for number, base in enumerate(_drawn("circular", budget.questions // 4)):
        for turn, exercise in enumerate(rotations(base)):
            index = number + turn * ROTATION
            reference = {
                "index": index,
                "question": exercise.info["question"],
                "options": dict(zip(LETTERS, exercise.info["options"], strict=False)),
                "answer": exercise.answer,
                "category": exercise.info["category"],
                "l2-category": None,
            }
            asked.append((str(index), exercise, reference))
    return evaluator("mmbench", asked, _circular, "accuracy", budget)


def _circular(records: Sequence[Record]) -> dict[str, float]:
    """CircularEval without a judge."""
    return score_mmbench(records, [None] * len(records))


# ---- rules in place of a judge ----


def score_detail(records: Sequence[Record]) -> dict[str, float]:
    """How much of a scene descriptions tell, and how truly.

    In place of LLaVA-Bench's judge: a description's score is F1 of the facts that it states (`facts_in`) against
    those of the scene: each thing, its size and its place, and the background. A thing that is not there costs
    precision, one that is left out recall. A sample that failed has stated nothing.

    Returns:
        In percent `detail`, the mean over descriptions, and that over one kind of facts: `detail, thing`, `detail,
        size`, `detail, place` and `detail, background`.
    """
    said = [facts_in(record.text) for record in records]
    true = [set(record.reference["facts"]) for record in records]
    result = {"detail": mean([fact_f1(*facts) for facts in zip(said, true, strict=True)])}
    for kind in ("thing", "size", "place", "background"):
        of_kind = [
            [{fact for fact in facts if fact.startswith(f"{kind}:")} for facts in side] for side in (said, true)
        ]
        result[f"detail, {kind}"] = mean([fact_f1(*facts) for facts in zip(*of_kind, strict=True)])
    return result


def share_of_parts(text: str, parts: Sequence[Sequence[str]]) -> float:
    """The share of parts of an answer, between commas, that are right at their place, 0..1.

    Case, white space and a full stop at the end do not matter. If there are more parts than there should be, the
    share is that of all that are there.

    Args:
        text: the answer.
        parts: for each part what is right.

    >>> share_of_parts("K7, blue", [["K7"], ["red"]]), share_of_parts("blue", [["K7"], ["blue"]])
    (0.5, 0.0)
    """
    said = text.split(",")
    hits = [any(exact_match(own, one) for one in right) for own, right in zip(said, parts, strict=False)]
    return sum(hits) / max(len(said), len(parts))


def score_mixed(records: Sequence[Record]) -> dict[str, float]:
    """The scores of MM-Vet, with `share_of_parts` for the judge's grade."""
    return score_mm_vet(records, [share_of_parts(record.text, record.reference["parts"]) for record in records])


TWINS = {
    twin.name: twin
    for twin in (
        Twin(
            "vqav2",
            "VQAv2",
            "generate",
            _plain("vqav2", "open", _info, score_answers(vqa_accuracy), "accuracy"),
            "accuracy",
            {"accuracy": "table1/VQAv2"},
            {"accuracy, yes/no": 50.0},
            "What, where, how many, how large, which background, and is there: two to five things. Of ten answers, "
            "three have a thing's other name if it has one, and four a place's other name.",
        ),
        Twin(
            "gqa",
            "GQA",
            "generate",
            _plain("gqa", "compositional", _with_answer, score_gqa, "accuracy"),
            "accuracy",
            {"accuracy": "table1/GQA"},
            {"accuracy, binary": 50.0},
            "Relations between things (left, right, above, below, bigger, smaller) in one step or two, and, or, not.",
        ),
        Twin(
            "vizwiz",
            "VizWiz",
            "generate",
            _plain("vizwiz", "unanswerable", _info, score_answers(evalai_accuracy), "accuracy"),
            "accuracy",
            {"accuracy": "table1/VizWiz"},
            {"accuracy": 50.0},
            "Half of the questions cannot be answered: the thing or the sign is not there, or the place is empty. "
            "The prompt says that the answer to them is unanswerable; who always says so has 50.",
        ),
        Twin(
            "scienceqa",
            "ScienceQA-IMG",
            "generate",
            _plain("scienceqa", "choice", _science_qa, score_science_qa, "accuracy"),
            "accuracy",
            {"accuracy": "table1/SQA-I"},
            {"accuracy": 100 * (1 / 3 + 1 / 4 + 1 / 5) / 3},
            "Three to five options with letters: what is there, what is not, what is where, what is an animal or "
            "something to eat. Wrong options are things of the same picture or of the same group.",
        ),
        Twin(
            "textvqa",
            "TextVQA",
            "generate",
            _plain("textvqa", "reading", _info, score_answers(evalai_accuracy), "accuracy"),
            "accuracy",
            {"accuracy": "table1/VQA-T"},
            {},
            "What a sign of two characters says; where there are two signs, what one of them says.",
        ),
        Twin(
            "pope",
            "POPE",
            "generate",
            _pope,
            "f1",
            {"f1": "table1/POPE"},
            {"f1": 50.0, "accuracy": 50.0},
            "Whether a thing is in the picture; absent things are random, popular or of the group of a thing that is "
            "there. Half of the answers are yes. Who always says yes has an f1 of 66.7.",
        ),
        Twin(
            "mme",
            "MME",
            "generate",
            _mme,
            "perception",
            {"perception": "table1/MME-P", "cognition": "table1/MME-C"},
            {"perception": 75.0 * len(PERCEPTION), "cognition": 75.0 * len(COGNITION)},
            "Two questions for each picture, one of which is answered by yes. Sums are over the subtasks that are "
            f"there: {', '.join(PERCEPTION)} (at most {200 * len(PERCEPTION)}; officially 2000), and "
            f"{', '.join(COGNITION)} (at most {200 * len(COGNITION)}; officially 800).",
        ),
        Twin(
            "mmbench",
            "MMBench",
            "generate",
            _mmbench,
            "accuracy",
            {"accuracy": "table1/MMB"},
            {"accuracy": 100 / 4**4, "vanilla_accuracy": 25.0},
            "Four options: what is where, which sizes two things have, relations, numbers, backgrounds. A question is "
            "right if it is with its options in all four rotations. A reply without a letter is wrong: there is no "
            "judge.",
        ),
        Twin(
            "llava-w",
            "LLaVA-Bench (in the wild)",
            "generate",
            _plain("llava-w", "detail", _info, score_detail, "detail", SENTENCE),
            "detail",
            {"detail": "table1/LLaVA-W"},
            {},
            "Descriptions in detail. A rule takes the judge's place: F1 of the facts that the text states, of things, "
            "their sizes and places and the background.",
        ),
        Twin(
            "mm-vet",
            "MM-Vet",
            "generate",
            _plain("mm-vet", "mixed", _info, score_mixed, "total"),
            "total",
            {"total": "table1/MM-Vet"},
            {},
            "Questions of two parts that need two or three of recognition, reading, places and numbers. A rule takes "
            "the judge's place: the share of parts that are right.",
        ),
    )
}
