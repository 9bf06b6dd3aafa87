"""What outcomes say of claims, from numbers made to be clear."""

import math

import numpy as np
import pytest
from lab_tools import entry, write

from sugar_lab.claims import CLAIMS, QUESTIONS, Question
from sugar_lab.evidence import TWINS, evidence_rows
from sugar_lab.intervals import UNTRAINED
from sugar_lab.measurements import Survey, read_results
from sugar_lab.outcomes import Outcome, write_outcomes
from sugar_lab.verdicts import CONFIRMED, OPEN, REFUTED, all_verdicts, effect_of, read_studies, verdict_section

PLACES = (("t", "hit"),)


def studies(tmp_path, shares, study="lab", seeds=(0, 1, 2), items=400):
    """Outcomes of rows that hit a share of the items; rows share what is hard, and seeds differ a little."""
    found = []
    for number, (row, share) in enumerate(shares.items()):
        rng = np.random.default_rng(number + 1)
        hard = np.linspace(0, 1, items, endpoint=False)
        for seed in [UNTRAINED] if row.startswith("fixed") else seeds:
            noisy = share + rng.normal(0, 0.002)
            found += [Outcome(study, row, seed, "t", f"{i:03}", "hit", float(hard[i] < noisy)) for i in range(items)]
    return read_studies([write_outcomes(tmp_path / f"{study}.parquet", found)])


def only(found, *questions):
    return all_verdicts(found, questions, ["The claim."])[0]


def ask(row="a", rival="b", worth=2.0, **more):
    return Question(1, "hits", row, rival, PLACES, worth, **more)


def test_a_difference_is_confirmed_refuted_or_open(tmp_path):
    found = studies(tmp_path, {"a": 0.6, "b": 0.4, "c": 0.598})
    assert only(found, ask()).outcome == CONFIRMED
    assert only(found, ask("b", "a")).outcome == REFUTED
    same = only(found, ask("a", "c", worth=5.0))  # far less than what is worth telling
    assert same.outcome == REFUTED
    assert "below 5" in same.why
    unsure = only(found, ask("a", "c", worth=0.1))
    assert unsure.outcome == OPEN
    assert "both 0 and 0.1" in unsure.why
    assert unsure.findings[0].effect.seeds == 3


def test_what_may_be_lost_is_the_bar_of_a_claim_that_nothing_is_lost(tmp_path):
    found = studies(tmp_path, {"a": 0.45, "b": 0.5})
    assert only(found, ask(allowed=10.0)).outcome == CONFIRMED
    assert only(found, ask(allowed=0.1)).outcome == REFUTED


def test_where_less_is_better_the_difference_is_turned(tmp_path):
    found = studies(tmp_path, {"a": 0.4, "b": 0.6})
    assert only(found, ask(less=True)).outcome == CONFIRMED
    assert effect_of(found, ask(less=True)).value == pytest.approx(20, abs=1)


def test_factors_and_gains_are_compared(tmp_path):
    found = studies(tmp_path, {"a": 0.6, "b": 0.4, "a without": 0.1, "b without": 0.1})
    assert only(found, ask(factor=1.5)).outcome != CONFIRMED
    assert effect_of(found, ask(factor=1.4)).value == pytest.approx(4, abs=1)
    gains = ask(without=("a without", "b without"))
    assert effect_of(found, gains).value == pytest.approx(20, abs=1)


def test_one_seed_tells_nothing_but_rows_that_no_training_changes_need_none(tmp_path):
    found = studies(tmp_path, {"a": 0.6, "b": 0.4}, seeds=(0,))
    assert only(found, ask()).outcome == OPEN
    assert "one seed" in only(found, ask()).why
    fixed = studies(tmp_path, {"a": 0.6, "fixed": 0.4}, "other")
    assert only(fixed, ask(rival="fixed", study="other")).outcome == CONFIRMED


def test_a_claim_of_several_is_refuted_by_one_and_open_if_one_is(tmp_path):
    found = studies(tmp_path, {"a": 0.6, "b": 0.4, "c": 0.8})
    yes, no, unknown = ask(), ask(rival="c"), ask(rival="nobody")
    assert only(found, yes, yes).outcome == CONFIRMED
    assert only(found, yes, unknown, no).outcome == REFUTED
    assert only(found, yes, unknown).outcome == OPEN
    aim = ask(rival="c", is_aim=True)
    assert only(found, aim, yes).outcome == CONFIRMED
    assert only(found, aim, yes).findings[-1].question.is_aim


def test_p_values_are_corrected_for_the_number_of_questions(tmp_path):
    found = studies(tmp_path, {"a": 0.6, "b": 0.4})
    alone, among = only(found, ask()), only(found, *[ask()] * 10)
    assert among.findings[0].p == pytest.approx(10 * alone.findings[0].p)


def test_what_is_not_measured_says_so():
    verdicts = all_verdicts({})
    assert [verdict.claim for verdict in verdicts] == list(CLAIMS)
    assert {verdict.outcome for verdict in verdicts} == {OPEN}
    assert verdicts[2].why == "Because it was not measured."
    text = "\n".join(verdict_section(verdicts))
    assert "| 3. It flattens the curve of positions. | **cannot be told here** |" in text
    assert "not measured" in text


def test_the_section_has_effects_with_intervals(tmp_path):
    found = studies(tmp_path, {"a": 0.6, "b": 0.4})
    text = "\n".join(verdict_section(all_verdicts(found, [ask()], ["The claim."])))
    assert "1. The claim. **confirmed**." in text
    assert "hits: `a` against `b`: +20" in text
    assert "p below 0.001 (3 seeds, 400 items)" in text


def test_questions_ask_for_rows_and_tasks_that_there_are():
    known = set(evidence_rows())
    for question in QUESTIONS:
        assert 1 <= question.claim <= len(CLAIMS)
        if question.study != "lab":
            continue
        for row in (question.row, question.rival, *(question.without or ())):
            assert row in known or row.partition(" + ")[0].partition(",")[0] in known, row
        assert {task.partition(" ")[0] for task, _ in question.places} <= set(TWINS)
        assert question.worth >= 0
        assert math.isfinite(question.factor)


def test_rows_of_one_model_asked_in_several_ways_need_no_seeds(tmp_path):
    found = studies(tmp_path, {"own": 0.6, "minilm": 0.4}, "real-answers", seeds=(0,))
    verdict = only(found, ask("own", "minilm", study="real-answers"))
    assert verdict.outcome == CONFIRMED
    trained = studies(tmp_path, {"a": 0.6, "tf-idf": 0.4}, "real-test", seeds=(0,))
    assert trained["real-test"].grid("tf-idf", "t", "hit").seeds == (UNTRAINED,)
    assert trained["real-test"].grid("a", "t", "hit").seeds == (0,)


def test_the_survey_is_a_study_of_one_number_a_seed(tmp_path):
    entries = [
        entry("table3a", "a", "T2I R@5", 50.0, 52.0, 54.0),
        entry("table3a", "b", "T2I R@5", 40.0, 41.0, 42.0),
        entry("table3a", "c", "T2I R@5", 40.0, seeds=[5]),
    ]
    survey = {"survey": Survey(read_results(write(tmp_path, entries)))}
    places = (("table4b/COCO", ""),)
    found = effect_of(survey, Question(1, "", "a", "b", places, 1.0, study="survey"))
    assert (found.value, found.seeds, found.items, found.freedom) == (11, 3, 300, 2)
    assert found.error == pytest.approx(1 / 3**0.5)
    assert effect_of(survey, Question(1, "", "a", "c", places, 1.0, study="survey")) is None
    assert effect_of(survey, Question(1, "", "a", "d", places, 1.0, study="survey")) is None
