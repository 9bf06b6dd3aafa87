import random

import pytest
from metric_tools import WORDS, random_texts
from pycocoevalcap.rouge.rouge import Rouge as CocoRouge
from rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer

from sugar_hf.evaluation.benchmarks.scorers import (
    demon_clean,
    rouge_l_coco,
    rouge_l_demon,
    rouge_l_google,
    rouge_l_summary,
)

FEW_WORDS = ["a", "b", "c", "d", "e.", "f", ".", "é"]


def pairs(seed, words, longest=12):
    return zip(random_texts(500, seed, words, longest), random_texts(500, seed + 1, words, longest), strict=True)


def test_the_three_scores_differ():
    prediction, reference = "the cat sat", "the cat sat on the mat"
    assert rouge_l_demon(prediction, reference) == pytest.approx(0.75, abs=1e-6)  # 3/3 and 3/5 different tokens
    assert rouge_l_google(prediction, reference) == pytest.approx(2 / 3)  # 3/3 and 3/6 tokens
    assert rouge_l_coco(prediction, [reference]) == pytest.approx(0.629, abs=5e-4)


def test_demon_cleans_both_sides():
    assert rouge_l_demon('"The Cat-sat."', "the cat sat") == pytest.approx(1)
    assert rouge_l_summary("The cat", "the cat") == pytest.approx(0.5)


def test_sentences_share_their_tokens():
    # Of the reference's sentence [w1 w2 w3 w4 w5] the two of the prediction hold w1 w2 and w1 w3 w5: four of five.
    score = rouge_l_summary("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")
    precision, recall = 4 / 8, 4 / 5
    assert score == pytest.approx(2 * precision * recall / (precision + recall))


def test_nothing_in_common_is_zero(subtests):
    for score in [rouge_l_demon, rouge_l_summary, rouge_l_google, lambda p, r: rouge_l_coco(p, [r])]:
        with subtests.test(score=score.__name__):
            for prediction, reference in [
                ("", "a b"),
                ("a b", ""),
                ("", ""),
                ("...", "dog"),
                ("cat", "dog"),
                (" \n", "dog"),
            ]:
                assert score(prediction, reference) == 0


def test_coco_takes_the_largest_precision_and_recall_of_all_references():
    both = rouge_l_coco("a b c d", ["a b c d e f g h", "x a b"])
    precision, recall = 4 / 4, 2 / 3
    assert both == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))
    assert rouge_l_coco("a", ["", "a"]) == 1
    for references in ([], "a b"):
        with pytest.raises(ValueError, match="list with at least one"):
            rouge_l_coco("a", references)


@pytest.mark.parametrize("words", [FEW_WORDS, WORDS], ids=["ties", "traps"])
def test_the_summary_form_is_exactly_that_of_the_package(words):
    reference, compared = Rouge(metrics=["rouge-l"]), 0
    for prediction, target in pairs(10, words):
        if not prediction.strip(".") or not target.strip("."):
            assert rouge_l_summary(prediction, target) == 0  # the package raises an error
            continue
        compared += 1
        expected = reference.get_scores(prediction, target)[0]["rouge-l"]["f"]
        assert rouge_l_summary(prediction, target) == pytest.approx(expected, abs=1e-12)
    assert compared > 350


def test_demon_is_the_package_after_cleaning():
    reference = Rouge(metrics=["rouge-l"])
    for prediction, target in pairs(20, WORDS):
        cleaned = demon_clean(prediction), demon_clean(target)
        empty = any(not text.strip(".") for text in cleaned)
        expected = 0 if empty else reference.get_scores(*cleaned)[0]["rouge-l"]["f"]
        assert rouge_l_demon(prediction, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("words", [FEW_WORDS, WORDS], ids=["ties", "traps"])
def test_google_is_exactly_the_package(words):
    reference = RougeScorer(["rougeL"], use_stemmer=False)
    for prediction, target in pairs(30, words):
        expected = reference.score(target, prediction)["rougeL"].fmeasure
        assert rouge_l_google(prediction, target) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("words", [FEW_WORDS, WORDS], ids=["ties", "traps"])
def test_coco_is_exactly_the_package_on_texts_with_single_spaces(words):
    draw, reference, empty = random.Random(0), CocoRouge(), 0
    for prediction, target in pairs(40, words):
        references = [" ".join(target.split()), *(" ".join(draw.choices(words, k=4)).strip() for _ in range(2))]
        references = [" ".join(text.split()) for text in references]
        prediction = " ".join(prediction.split())
        expected = reference.calc_score([prediction], references)
        if prediction and all(references):
            assert rouge_l_coco(prediction, references) == pytest.approx(expected, abs=1e-12)
        elif not prediction:
            empty += 1
            assert rouge_l_coco(prediction, references) == 0
            assert (expected > 0) == ("" in references)  # to the package, an empty text is a token that can match
    assert empty > 10


def test_coco_counts_no_token_between_two_spaces():
    assert rouge_l_coco("a  b", ["a b"]) == 1
    assert CocoRouge().calc_score(["a  b"], ["a b"]) < 1
