"""The twin of DEMON: its figures for known answers, and a run of the shipped model."""

import json
from dataclasses import replace

import pytest

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.tasks.demon_tasks import CATEGORIES, IMAGE_CHOICE, question_type
from sugar_hf.picturebook import checkpoint
from sugar_lab.budget import QUICK
from sugar_lab.twins import all_twins

TWIN = all_twins()["demon"]


@pytest.fixture(scope="module")
def examples():
    return list(TWIN.build(QUICK).examples)


class Answering:
    """A generator that says what a function makes of the reference of whichever example has this prompt."""

    name = "answering"

    def __init__(self, examples, answer):
        self.known = {self.key(example.document.load()): example.reference for example in examples}
        self.answer = answer

    @staticmethod
    def key(sample):
        return tuple(part if isinstance(part, str) else part.tobytes() for part in sample)

    def generate(self, samples, max_new_tokens):
        return [self.answer(self.known[self.key(sample)]) for sample in samples]

    def settings(self):
        return {"model": self.name}


def other(reference):
    """A choice that is wrong."""
    choices = reference.get("choices") or ["image a", "image b"]
    return next(choice for choice in choices if choice != reference["answer"])


def test_it_has_a_budgets_questions_of_each_category(examples):
    assert len(examples) == 7 * QUICK.questions
    categories = [example.id.split("/")[0] for example in examples]
    assert {name: categories.count(name) for name in CATEGORIES} == dict.fromkeys(CATEGORIES, QUICK.questions)


def test_each_exercise_is_scored_as_a_task_of_its_category(examples):
    for example in examples:
        category, task = example.id.split("/")[0], example.reference["task"]
        assert task in CATEGORIES[category]
        has_choices = question_type(task) == "multi-choice" and task not in IMAGE_CHOICE
        assert ("choices" in example.reference) == has_choices


def test_the_right_answers_give_the_full_score(examples):
    result = TWIN.build(QUICK)(Answering(examples, lambda reference: reference["answer"]))
    assert {name: result[name] for name in (*CATEGORIES, "mean")} == pytest.approx(
        dict.fromkeys((*CATEGORIES, "mean"), 100.0), abs=1e-3
    )
    assert not any("partial" in name for name in result)


def test_wrong_choices_and_words_that_fit_nothing_give_nothing(examples):
    wrong = Answering(examples, lambda known: "zzz" if question_type(known["task"]) == "open-ended" else other(known))
    result = TWIN.build(QUICK)(wrong)
    assert {name: result[name] for name in (*CATEGORIES, "mean")} == dict.fromkeys((*CATEGORIES, "mean"), 0.0)


def test_saying_what_fits_most_often_gives_about_what_chance_does():
    fixed = {
        "MMCoQA": "at the bottom left",
        "VIST": "a large guitar appears at the bottom left.",
        "CLEVR-Change": "the leopard goes to the left.",
        "RecipeQA_VisualCloze": "image a",
    }
    evaluator = TWIN.build(replace(QUICK, questions=120))
    blind = Answering(evaluator.examples, lambda known: fixed.get(known["task"]) or known["choices"][0])
    result = evaluator(blind)
    assert {name: result[name] for name in TWIN.chance} == pytest.approx(dict(TWIN.chance), abs=9)
    assert set(TWIN.chance) == {*CATEGORIES, "mean"}


def test_the_paper_has_a_cell_for_each_category():
    assert dict(TWIN.paper) == {name: f"table2/{name}" for name in CATEGORIES}
    assert list(TABLES["table2"].columns) == list(CATEGORIES)


def test_the_shipped_model_runs_and_its_predictions_are_kept(tmp_path):
    model, processor = open_model(checkpoint("mini-sugar"), device="cpu")
    path = tmp_path / "demon.jsonl"
    result = TWIN.build(replace(QUICK, questions=8))(model, processor, output=path, batch_size=28)
    assert result["n"] == 7 * 8
    assert result["failed"] == []
    assert all(0 <= result[name] <= 100 for name in (*CATEGORIES, "mean"))
    predicted = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum("prediction" in line for line in predicted) == 7 * 8
