import builtins

import pytest
from metric_tools import random_texts

from sugar_hf.evaluation.benchmarks.scorers import webqa_accuracy

FULL = 2 / (2 + 1e-5)  # the official F1 has 1e-5 in its divisor


def test_accuracy_of_webqa(subtests):
    for prediction, answer, category, score in [
        ("The barn is red.", "Red", "color", FULL),
        ("red and blue", "red", "color", 2 * 0.5 / (1.5 + 1e-5)),
        ("red red red", "red", "color", FULL),  # a set
        ("reddish", "red", "color", 0),
        ("It is a round dome", "dome", "shape", 2 * 0.5 / (1.5 + 1e-5)),
        ("squares", "square", "shape", 0),  # no lemmas here
        ("Yes, they do.", '"Yes"', "YesNo", FULL),
        ("yes and no", "no", "YesNo", 2 * 0.5 / (1.5 + 1e-5)),
        ("There are three.", "3", "number", FULL),
        ("3 or 4", "three", "number", 2 * 0.5 / (1.5 + 1e-5)),
        ("3 3", "3", "number", 2 * 0.5 / (1.5 + 1e-5)),  # not a set
        ("2.5", "2", "number", 0),
        ("07", "7", "number", FULL),
        ("The old wooden bridge", "an old bridge over it", "Others", 2 / 4),
        ("seven bridges", "7 bridges", "text", 1),
        ("a point", "point", "shape", FULL),
        ("A", "a", "choose", 1),  # a single letter, article or not
        ("the", "The", "choose", 1),  # a single word as well
        ("the cat", "the", "choose", 0),
        ("", "x", "text", 0),
        ("猫", "猫", "text", 1),
    ]:
        with subtests.test(prediction=prediction, answer=answer, category=category, score=score):
            assert webqa_accuracy(prediction, answer, category) == pytest.approx(score, abs=1e-9)


def test_keywords_are_the_reference_where_there_are_some():
    assert webqa_accuracy("red", "The barn is painted red", "Others", keywords="red") == 1
    assert webqa_accuracy("red", "The barn is painted red", "Others") == 1 / 4


def test_lemmas_can_be_given():
    def lemmatize(text):
        return " ".join("be" if word == "was" else word.removesuffix("s") for word in text.split())

    assert webqa_accuracy("squares", "a square", "shape", lemmatize=lemmatize) == pytest.approx(FULL)
    assert webqa_accuracy("It was dogs", "dog", "Others", lemmatize=lemmatize) == 1
    assert webqa_accuracy("s", "s", "Others", lemmatize=lemmatize) == 1  # single letters are not lemmatised


def test_an_unknown_category_is_named():
    with pytest.raises(ValueError, match="category: 'colour' is none of color, shape"):
        webqa_accuracy("red", "red", "colour")


def test_any_text_gets_a_score():
    for prediction, answer in zip(random_texts(500, 0), random_texts(500, 1), strict=True):
        for category in ("color", "number", "YesNo", "text"):
            assert 0 <= webqa_accuracy(prediction, answer, category) <= 1
        assert webqa_accuracy(answer, answer, "text") in (0, 1)


def test_a_missing_word2number_is_named(monkeypatch):
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "word2number":
            raise ImportError(name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'pip install "sugar-hf\[eval\]"'):
        webqa_accuracy("red", "red", "text")
