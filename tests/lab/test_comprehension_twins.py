"""Twins of the benchmarks of comprehension: who knows the answers has full marks, who guesses has chance."""

import re
from dataclasses import replace

import pytest

from sugar_hf import picturebook
from sugar_hf.evaluation import Record
from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.tasks import all_tasks
from sugar_lab.budget import FULL, QUICK
from sugar_lab.twins import all_twins
from sugar_lab.twins import comprehension_twins as comprehension
from sugar_lab.twins.comprehension_twins import TWINS, score_detail, score_mixed

FULL_MARKS = {"mme": {"perception": 1000.0, "cognition": 400.0}}


class Saying:
    """Answers with what a function makes of a sample."""

    name = "saying"

    def __init__(self, say):
        self.say, self.asked = say, []

    def generate(self, samples, max_new_tokens):
        self.asked += samples
        return [self.say(sample) for sample in samples]

    def settings(self):
        return {"model": self.name}


@pytest.fixture
def known(monkeypatch):
    """The answers that the exercises of evaluators have, by id."""
    answers = {}
    made = comprehension.evaluator

    def remember(name, asked, *args, **kwargs):
        answers[name] = {id: exercise.answer for id, exercise, _ in asked}
        return made(name, asked, *args, **kwargs)

    monkeypatch.setattr(comprehension, "evaluator", remember)
    return answers


def scored(evaluator, say):
    """The figures of what is said of each example."""
    records = [Record(example.id, say(example), example.reference) for example in evaluator.examples]
    return evaluator.score(records)


def test_twins_have_the_names_of_the_benchmarks_in_the_order_of_the_table():
    tasks = all_tasks()
    assert set(TWINS) <= set(tasks)
    assert set(TWINS) <= set(all_twins())
    cells = [cell for twin in TWINS.values() for cell in twin.paper.values()]
    assert sorted(cells) == sorted(f"table1/{column}" for column in TABLES["table1"].columns)
    for name, twin in TWINS.items():
        assert (twin.name, twin.title, twin.paper) == (name, tasks[name].title, tasks[name].paper)
        assert twin.primary_metric == tasks[name].primary_metric
        assert twin.card


@pytest.mark.parametrize("name", TWINS)
def test_who_knows_the_answers_has_full_marks_and_who_is_silent_none(name, known):
    twin = TWINS[name]
    evaluator = twin.build(QUICK)
    result = scored(evaluator, lambda example: known[name][example.id])
    marks = FULL_MARKS.get(name, {twin.primary_metric: 100.0})
    assert {key: result[key] for key in marks} == pytest.approx(marks)
    assert set(twin.paper) | set(twin.chance) | {twin.primary_metric} <= set(result)
    failed = evaluator.score([Record(example.id, None, example.reference) for example in evaluator.examples])
    assert {key: failed[key] for key in marks} == dict.fromkeys(marks, 0.0)


@pytest.mark.parametrize("name", TWINS)
def test_another_pictures_answer_is_hardly_ever_right(name, known):
    """The answers, each given to the next question, have no more than guessing, with room for the small set."""
    budget = replace(FULL, questions=300)
    twin = TWINS[name]
    evaluator = twin.build(budget)
    given = dict(zip(known[name], [*list(known[name].values())[7:], *list(known[name].values())[:7]], strict=True))
    result = scored(evaluator, lambda example: given[example.id])
    bound = {"mme": 500.0, "llava-w": 40.0, "pope": 62.0, "vizwiz": 50.0, "vqav2": 35.0, "gqa": 45.0, "mm-vet": 35.0}
    assert result[twin.primary_metric] < bound.get(name, 40.0)


@pytest.mark.parametrize("name", TWINS)
def test_the_budget_sizes_the_set_and_pictures_are_drawn_when_needed(name):
    evaluator = TWINS[name].build(FULL)
    assert 0.9 * FULL.questions <= len(evaluator.examples) <= FULL.questions
    picture, text = evaluator.examples[3].document.load()
    assert picture.size == (96, 96)
    assert isinstance(text, str)
    assert evaluator.examples[3].document.load()[0].tobytes() == picture.tobytes()
    assert evaluator.settings == {"world": "picturebook", "split": "test", "budget": "full"}


@pytest.mark.parametrize(("name", "say"), [("vizwiz", "unanswerable"), ("pope", "yes"), ("mme", "no")])
def test_one_answer_to_all_has_chance(name, say):
    result = scored(TWINS[name].build(FULL), lambda example: say)
    if name == "mme":  # one of each two questions is right, and never both
        assert (result["perception"], result["cognition"]) == (250.0, 100.0)
    else:
        assert result["accuracy"] == pytest.approx(50.0, abs=7.0)
    if name == "pope":
        assert result["yes_ratio"] == 100.0
        assert result["f1"] == pytest.approx(66.7, abs=6.0)


def test_one_letter_to_all_is_never_right_in_all_rotations():
    result = scored(TWINS["mmbench"].build(FULL), lambda example: "A")
    assert result["accuracy"] == 0.0
    assert result["is_circular"] == 1.0
    assert result["questions"] == FULL.questions // 4
    assert result["vanilla_accuracy"] == pytest.approx(25.0, abs=15.0)


def test_other_names_are_right_as_well():
    """That of a thing for nine tenths, as three of ten people say it; that of a place wholly, as four do."""
    evaluator = TWINS["vqav2"].build(FULL)
    others = [e for e in evaluator.examples if len(set(e.reference["answers"])) == 2]
    assert others
    for example in others:
        answers = example.reference["answers"]
        result = evaluator.score([Record(example.id, answers[-1], example.reference)])
        assert result["accuracy"] == pytest.approx(90.0 if answers.count(answers[-1]) == 3 else 100.0)


def test_descriptions_are_scored_by_their_facts():
    facts = ["background: red", "place: cat at the top", "size: cat small", "thing: cat"]
    true, half = "a small cat at the top on a red background.", "a cat and a dog on a red background."
    result = score_detail([Record("1", true, {"facts": facts}), Record("2", half, {"facts": facts})])
    assert result["detail"] == pytest.approx(100 * (1 + 2 * 2 / 7) / 2)
    assert result["detail, background"] == 100.0
    assert result["detail, thing"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert result["detail, size"] == result["detail, place"] == 50.0


def test_mixed_answers_are_graded_by_their_parts_and_by_ability():
    def record(id, text, *needed):
        return Record(id, text, {"parts": [["K7"], ["on the left", "at the left edge"]], "capability": list(needed)})

    records = [
        record("1", "k7, at the left edge.", "ocr", "spat"),
        record("2", "K7", "ocr"),
        record("3", "on the left, K7", "spat"),
        record("4", "K7, on the left, K7, K7", "math"),
        record("5", None, "rec"),
    ]
    result = score_mixed(records)
    assert result["total"] == pytest.approx(100 * (1 + 0.5 + 0 + 0.5 + 0) / 5)
    assert (result["ocr"], result["spat"], result["math"], result["rec"]) == (75.0, 50.0, 50.0, 0.0)


def test_not_is_asked_for():
    asked = [e.document.load()[1] for name in ("gqa", "mme", "scienceqa") for e in TWINS[name].build(FULL).examples]
    for pattern in (
        r"which thing is not \w+\?",
        r"is the .+ not .+\?",
        r"is there no \w+\?",
        "which of these is not .+",
    ):
        assert any(re.match(pattern, text) for text in asked), pattern


@pytest.mark.parametrize("name", ["vqav2", "mme", "mmbench", "llava-w"])
def test_a_model_answers_and_what_it_said_is_kept(name, tmp_path, mini_sugar):
    tiny = replace(QUICK, questions=8)
    evaluator = TWINS[name].build(tiny)
    result = evaluator(*mini_sugar, output=tmp_path / "said.jsonl")
    assert result["failed"] == []
    assert result["n"] == len(evaluator.examples)
    assert set(TWINS[name].paper) <= set(result)
    say = Saying(lambda sample: "yes")
    with pytest.raises(ValueError, match=r"said\.jsonl"):
        evaluator(say, output=tmp_path / "said.jsonl")
    assert say.asked == []


@pytest.fixture(scope="module")
def mini_sugar():
    return open_model(str(picturebook.checkpoint("mini-sugar")), device="cpu")
