import re
import string

import numpy as np
import pytest
from lmms_eval.api.metrics import exact_match_hf_evaluate
from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from lmms_eval.tasks.textvqa.utils import textvqa_process_results
from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val
from metric_tools import WORDS, random_texts

from sugar_hf.evaluation.benchmarks.scorers import (
    evalai_accuracy,
    process_digits_articles,
    process_punctuation,
    vqa_accuracy,
)
from sugar_hf.evaluation.benchmarks.scorers.vqa_scorers import CONTRACTIONS, _evalai
from sugar_hf.evaluation.metrics import gqa_match, gqa_match_lmms


def test_punctuation(subtests):
    for text, expected in [
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red ,blue,green", "red bluegreen"),
        ("1,000 t-shirt", "1000 tshirt"),
        ("1,,2", "1  2"),
        ("3.5 cm.", "3.5 cm"),
        ("a.m.", "am"),
        (".5", ".5"),
        ("dog's: 5", "dog's: 5"),
        ("x.y" * 40, "xy" * 32 + "x.y" * 8),
        ("(b)", " b "),
        ("", ""),
        ("été?", "été "),
    ]:
        with subtests.test(text=text, expected=expected):
            assert process_punctuation(text) == expected


def test_digits_and_articles(subtests):
    for text, expected in [
        ("The Two dogs", "2 dogs"),
        ("none of an apple", "0 of apple"),
        ("dont  shed've\tyall'd've", "don't she'd've y'all'd've"),
        ("somebody'd let's she's Im", "somebodyd let's she's im"),
        ("eleven", "eleven"),
        ("a", ""),
    ]:
        with subtests.test(text=text, expected=expected):
            assert process_digits_articles(text) == expected


def test_the_contractions_are_the_published_ones():
    published = {key: form for key, form in EvalAIAnswerProcessor.CONTRACTIONS.items() if key.islower()}
    assert published == CONTRACTIONS
    assert len(published) == 116


def test_vqa_accuracy_by_the_number_of_matches(subtests):
    for matches, score in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]:
        with subtests.test(matches=matches, score=score):
            answers = ["cat"] * matches + ["dog"] * (10 - matches)
            assert vqa_accuracy("The cat.", answers) == pytest.approx(score)
            assert evalai_accuracy("The cat.", answers) == pytest.approx(score)


def test_equal_answers_are_compared_raw():
    assert vqa_accuracy("Cat", ["cat"] * 10) == 0
    assert vqa_accuracy(" cat\n", ["cat"] * 10) == 1
    assert vqa_accuracy("Cat", ["cat"] * 9 + ["Cat"]) == 1
    assert evalai_accuracy("Cat", ["cat"] * 10) == 1


def test_the_evalai_processor_differs_in_commas_and_genitives():
    assert vqa_accuracy("red blue", ["red,blue"] * 9 + ["x"]) == 1
    assert evalai_accuracy("red blue", ["red,blue"] * 9 + ["x"]) == 0
    assert evalai_accuracy("redblue", ["red,blue"] * 9 + ["x"]) == 1
    assert _evalai("dog's") == "dog 's"


def test_fewer_annotators_leave_one_out_as_well():
    assert vqa_accuracy("a cat", ["cat", "dog"]) == pytest.approx((0 + 1 / 3) / 2)
    assert vqa_accuracy("cat", ["cat"]) == 0


@pytest.mark.parametrize("answers", [[], "cat"])
def test_answers_are_a_list(answers):
    for score in (vqa_accuracy, evalai_accuracy):
        with pytest.raises(ValueError, match="list with at least one string"):
            score("cat", answers)


def test_punctuation_and_digits_are_those_of_lmms_eval_but_for_repeated_commas():
    lmms, official, affected = EvalAIAnswerProcessor(), EvalAIAnswerProcessor(), 0
    official.COMMA_STRIP = re.compile(r"\d,\d")
    for text in random_texts(1500, seed=0):
        assert process_digits_articles(text) == lmms.process_digit_article(text)
        assert process_punctuation(text) == official.process_punctuation(text)
        if process_punctuation(text) != lmms.process_punctuation(text):
            affected += 1
            assert re.search(r"\d,,+\d", text)
            assert not re.search(r"\d,\d", text)
    assert affected > 5


def test_the_evalai_processor_is_that_of_lmms_eval():
    reference = EvalAIAnswerProcessor()
    for text in random_texts(1500, seed=1):
        assert _evalai(text) == reference(text)


def answer_lists(seed):
    """500 answers with ten annotations each, drawn so that matches occur; every fifth has ten times the same."""
    rng = np.random.default_rng(seed)
    pools = [random_texts(3, seed=1000 * seed + row, longest=2) for row in range(500)]
    for row, pool in enumerate(pools):
        answers = [pool[0]] * 10 if row % 5 == 0 else [str(text) for text in rng.choice(pool, size=10)]
        yield str(rng.choice(pool)).swapcase() if row % 2 else str(rng.choice(pool)), answers


def test_evalai_accuracy_is_that_of_lmms_eval():
    scores = []
    for prediction, answers in answer_lists(2):
        expected = textvqa_process_results({"answers": list(answers), "question_id": 0}, [prediction])["exact_match"]
        scores.append(evalai_accuracy(prediction, answers))
        assert scores[-1] == pytest.approx(expected)
    assert len({round(score, 2) for score in scores}) >= 4


def test_vqa_accuracy_is_that_of_lmms_eval_where_answers_differ():
    raw = repeated = compared = 0
    for prediction, answers in answer_lists(3):
        rows = [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]
        expected = vqav2_process_results_val({"answers": rows, "question_id": 0}, [prediction])["exact_match"]
        stripped = {re.sub(r"[\n\t]", " ", answer).strip() for answer in answers}
        if len(stripped) == 1:  # lmms-eval normalises, the official script does not
            exact = re.sub(r"[\n\t]", " ", prediction).strip() in stripped
            assert vqa_accuracy(prediction, answers) == float(exact)
            raw += expected != float(exact)
        elif any(re.search(r"\d,,+\d", text) for text in (prediction, *answers)):
            repeated += 1
        else:
            compared += 1
            assert vqa_accuracy(prediction, answers) == pytest.approx(expected)
    assert raw > 5
    assert compared > 300 > repeated


def test_gqa_matches(subtests):
    for prediction, answer, ours, lmms in [
        (" Yes. ", "yes", True, False),
        ("yes", "yes", True, True),
        ("Yes...", "yes", True, True),
        ("t-shirt", "tshirt", False, True),
        ("left, right", "left right", False, True),
        ("yes.\n", "yes", True, False),
        ("", "yes", False, False),
        ("a dog", "dog", False, False),
    ]:
        with subtests.test(prediction=prediction, answer=answer, ours=ours, lmms=lmms):
            assert gqa_match(prediction, answer) is ours
            assert gqa_match_lmms(prediction, answer) is lmms


def test_gqa_differs_from_lmms_eval_by_punctuation_and_white_space_alone():
    words, differing = [word for word in WORDS if word != "İ"], 0  # numpy cuts its two-letter lower case short
    for text in random_texts(500, seed=4, words=words, longest=2):
        for answer in (text.strip().strip(".").lower(), "dog", "red blue"):
            options = {"ignore_case": True, "ignore_punctuation": True}
            expected = bool(exact_match_hf_evaluate([text], [answer], **options)["exact_match"])
            assert gqa_match_lmms(text, answer) == expected
            plain = text == text.strip() and not set(text + answer) & set(string.punctuation)
            differing += gqa_match(text, answer) != expected
            if plain:
                assert gqa_match(text, answer) == expected
    assert differing > 50
