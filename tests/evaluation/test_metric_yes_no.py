import random

import numpy as np
import pytest
from lmms_eval.tasks.mme.utils import mme_aggregate_results, parse_pred_ans
from lmms_eval.tasks.pope import utils as pope
from metric_tools import WORDS, random_texts
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from sugar_hf.evaluation.benchmarks.scorers import (
    binary_scores,
    first_yes_no,
    mme_answer,
    mme_scores,
    pope_answer,
    position_curve,
)
from sugar_hf.evaluation.benchmarks.scorers.yes_no_scorers import MME_COGNITION, MME_PERCEPTION

REPLY_WORDS = [*WORDS, "yes", "no", "Yes.", "no,", "NO", "Nope", "isn't", "y", "n", "not sure", "I know"]


def test_answers(subtests):
    for text, pope_says, mme_says, first in [
        ("yes", "yes", "yes", "yes"),
        ("No", "no", "no", "no"),
        ("no, it is", "no", "no", "no"),
        ("There is not. Yes", "no", "other", "yes"),
        ("Yes. No", "yes", "yes", "yes"),
        ("NO", "yes", "no", "no"),
        ("Nope", "yes", "no", None),
        ("It isn't", "yes", "other", None),
        ("Not sure", "yes", "no", None),
        ("know", "yes", "no", None),
        ("The answer is yes", "yes", "other", "yes"),
        ("y", "yes", "other", None),
        ("\n yes\n", "yes", "yes", "yes"),
        ("No\n", "yes", "no", "no"),
        ("yes-no", "yes", "yes", "yes"),
        ("yesterday", "yes", "yes", None),
        ("", "yes", "other", None),
        ("猫 no", "no", "no", "no"),
        ("noé", "yes", "no", None),
    ]:
        with subtests.test(text=text, pope_says=pope_says, mme_says=mme_says, first=first):
            assert pope_answer(text) == pope_says
            assert mme_answer(text) == mme_says
            assert first_yes_no(text) == first


def test_binary_scores_by_hand():
    scores = binary_scores(["yes", "yes", "no", "no", "yes"], ["yes", "no", "no", "yes", "yes"])
    assert scores == pytest.approx(
        {"accuracy": 60, "precision": 200 / 3, "recall": 200 / 3, "f1": 200 / 3, "yes_ratio": 60, "failed": 0}
    )


def test_a_failed_sample_is_wrong_in_every_score():
    scores = binary_scores([None, None, "yes", "no"], ["yes", "no", "yes", "no"])
    assert scores == binary_scores(["no", "yes", "yes", "no"], ["yes", "no", "yes", "no"]) | {"failed": 2}
    assert (scores["accuracy"], scores["precision"], scores["recall"]) == (50, 50, 50)


def test_nothing_to_divide_by_is_zero():
    none = binary_scores(["no", "no"], ["no", "no"])
    assert (none["accuracy"], none["precision"], none["recall"], none["f1"], none["yes_ratio"]) == (100, 0, 0, 0, 0)


def test_faulty_answers_are_named():
    with pytest.raises(ValueError, match="row 1: label 'maybe' is neither yes nor no"):
        binary_scores(["yes", "no"], ["yes", "maybe"])
    with pytest.raises(ValueError, match="row 0: prediction 'sure' is neither"):
        binary_scores(["sure"], ["yes"])
    with pytest.raises(ValueError, match="1 predictions, but 2 labels"):
        binary_scores(["yes"], ["yes", "no"])
    with pytest.raises(ValueError, match="nothing to score"):
        binary_scores([], [])


def test_binary_scores_are_those_of_scikit_learn():
    draw = random.Random(0)
    answers = [pope_answer(text) for text in random_texts(500, seed=0, words=REPLY_WORDS)]
    labels = [draw.choice(["yes", "no"]) for _ in answers]
    precision, recall, f1, _ = precision_recall_fscore_support(labels, answers, pos_label="yes", average="binary")
    ours = binary_scores(answers, labels)
    assert ours["accuracy"] == pytest.approx(100 * accuracy_score(labels, answers))
    assert (ours["precision"], ours["recall"], ours["f1"]) == pytest.approx((100 * precision, 100 * recall, 100 * f1))
    assert 0 < answers.count("no") < 250


def test_pope_differs_from_lmms_eval_by_the_reading_of_replies_and_the_yes_ratio():
    draw, plain, others = random.Random(1), [], 0
    for text in random_texts(500, seed=1, words=["yes", "no", "Yes", "No", "a"], longest=2):
        label = draw.choice(["yes", "no"])
        text = text.strip()
        row = pope.pope_process_results({"question_id": 0, "answer": label}, [text])["pope_accuracy"]
        if text in ("yes", "no", "Yes", "No"):
            plain.append((pope_answer(text), label, row))
        elif row["prediction"] not in ("yes", "no"):
            others += 1
            assert row["score"] == 0  # always wrong there; here it is read as a yes or a no
    predictions, labels, rows = zip(*plain, strict=True)
    ours = binary_scores(predictions, labels)
    assert ours["accuracy"] == pytest.approx(100 * pope.pope_aggregate_accuracy(rows))
    assert ours["precision"] == pytest.approx(100 * pope.pope_aggregate_precision(rows))
    assert ours["recall"] == pytest.approx(100 * pope.pope_aggregate_recall(rows))
    assert ours["f1"] == pytest.approx(100 * pope.pope_aggregate_f1_score(rows))
    assert 100 * pope.pope_aggregate_yes_ratio(rows) == pytest.approx(100 * labels.count("yes") / len(labels))
    assert ours["yes_ratio"] == pytest.approx(100 * predictions.count("yes") / len(labels))
    assert others > 100
    assert len(plain) > 30


def test_mme_answers_are_those_of_lmms_eval_but_for_full_stops_and_single_letters():
    affected = 0
    for text in random_texts(1000, seed=2, words=REPLY_WORDS, longest=3):
        if mme_answer(text) != parse_pred_ans(text):
            affected += 1
            assert "." in text.strip()[:6] or text.strip().lower() in ("y", "n")
        without = text.replace(".", "").strip()
        if len(without) > 1:
            assert mme_answer(without) == parse_pred_ans(text)
    assert (mme_answer("y"), parse_pred_ans("y")) == ("other", "yes")
    assert (mme_answer("a.b yes"), parse_pred_ans("a. yes")) == ("other", "other")
    assert affected > 5


def test_mme_by_hand():
    scores = mme_scores(
        ["OCR"] * 4 + ["code_reasoning"] * 2,
        ["1", "1", "2", "2", "1", "1"],
        ["Yes", "no", "yes", "Yes", None, "No."],
        ["Yes", "No", "Yes", "No", "Yes", "No"],
    )
    assert (scores["OCR acc"], scores["OCR acc+"], scores["OCR score"]) == (75, 50, 125)
    assert (scores["code_reasoning acc"], scores["code_reasoning acc+"]) == (50, 0)
    assert (scores["perception"], scores["cognition"]) == (125, 50)
    missing = {name.removesuffix(" missing") for name in scores if name.endswith(" missing")}
    assert missing == {*MME_PERCEPTION, *MME_COGNITION} - {"OCR", "code_reasoning"}


def test_the_sums_of_mme_are_those_of_lmms_eval():
    draw, rows, results = random.Random(3), [], {MME_PERCEPTION: [], MME_COGNITION: []}
    for group, found in results.items():
        for category in group:
            for image in range(20):
                for label in ("yes", "no"):
                    answer = draw.choice(["yes", "no", "other"])
                    rows.append((category, f"{image}.png", answer, label))
                    found.append(
                        {"category": category, "question_id": f"{image}.png", "score": float(answer == label)}
                    )
    draw.shuffle(rows)
    ours = mme_scores(*zip(*rows, strict=True))
    assert ours["perception"] == pytest.approx(mme_aggregate_results(results[MME_PERCEPTION]))
    assert ours["cognition"] == pytest.approx(mme_aggregate_results(results[MME_COGNITION]))
    assert not [name for name in ours if name.endswith("missing")]


def test_all_right_is_the_full_score():
    rows = [(category, "1", label, label) for category in MME_PERCEPTION + MME_COGNITION for label in ("yes", "no")]
    scores = mme_scores(*zip(*rows, strict=True))
    assert (scores["perception"], scores["cognition"]) == (2000, 800)


def test_faulty_rows_of_mme_are_named():
    with pytest.raises(ValueError, match="OCR: '1' has 1 questions"):
        mme_scores(["OCR"], ["1"], ["yes"], ["yes"])
    with pytest.raises(ValueError, match="row 0: 'ocr' is no subtask"):
        mme_scores(["ocr"], ["1"], ["yes"], ["yes"])
    with pytest.raises(ValueError, match="1 predictions, but 2 question_ids"):
        mme_scores(["OCR"], ["1", "1"], ["yes"], ["yes"])


def test_position_curve_by_hand():
    hits = np.array([[1, 0, 0, 1], [1, 1, 0, 1]], dtype=bool)
    assert position_curve(hits) == {
        "position 1": 100,
        "position 2": 50,
        "position 3": 0,
        "position 4": 100,
        "mean": 62.5,
        "depth": 75,
    }
    assert position_curve(np.ones((3, 6)))["depth"] == 0


def test_faulty_hits_have_no_curve(subtests):
    for hits in [np.ones((2, 2)), np.ones((0, 5)), np.ones(5), np.full((2, 3), 0.5)]:
        with subtests.test(hits=str(hits)), pytest.raises(ValueError, match="hits: need"):
            position_curve(hits)
