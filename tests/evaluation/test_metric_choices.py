import random

import numpy as np
import pytest
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
from lmms_eval.tasks.mmvp.utils import _extract_answer_letter
from lmms_eval.tasks.scienceqa.utils import sqa_process_results
from metric_tools import WORDS, random_texts
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from sugar_hf.evaluation.benchmarks.scorers import (
    ab_choice,
    circular_accuracy,
    demon_clean,
    demon_image_choice,
    demon_text_choice,
    mmbench_choice,
    science_qa_choice,
    science_qa_choice_lmms,
)

LETTERS = "A B C D E b a A. B. C: D) (A) (B). :C :D. B.moon The The answer is"
CHOICE_WORDS = [*LETTERS.split(), "The answer is C.", "cat"]
OPTIONS = {"A": "cat", "B": "a dog", "C": "answer", "D": "red ball"}


def test_letters_of_science_qa(subtests):
    for text, llava, lmms in [
        ("B", "B", "B"),
        (" B\n", "B", "B"),
        ("b", None, "B"),
        ("B. the moon", "B", "B"),
        ("B.", None, "B"),
        ("B.moon", None, "B"),
        ("B) moon", None, None),
        ("The answer is C.", "C", None),
        ("So. The answer is C, I think", "C", None),
        ("The answer is C", None, None),
        ("The answer is C. The answer is D.", None, None),
        ("F", None, "F"),
        ("The answer is F.", "F", None),
        ("", None, None),
        ("é", None, None),
    ]:
        with subtests.test(text=text, llava=llava, lmms=lmms):
            assert science_qa_choice(text) == llava
            assert science_qa_choice_lmms(text) == lmms


def test_the_lmms_form_of_science_qa_is_that_of_lmms_eval():
    right = both = 0
    for row, text in enumerate(random_texts(2000, seed=0, words=CHOICE_WORDS, longest=2)):
        answer = row % 4
        doc = {"choices": list("wxyz"), "answer": answer}
        expected = bool(sqa_process_results(doc, [text])["exact_match"])
        assert (science_qa_choice_lmms(text) == "ABCD"[answer]) == expected
        right += expected
        both += expected and science_qa_choice(text) == "ABCD"[answer]
    assert right > both > 10


def test_letters_of_mmbench(subtests):
    for text, expected in [
        ("B", "B"),
        ("A", "A"),
        ("A dog", "A"),  # three words or fewer: taken for the letter
        ("A cow in water", None),  # more: may be the article
        ("B dog in water", "B"),
        ("A or B", None),
        ("A in the B. row", "B"),  # step 1 is abandoned, step 2 finds one
        ("B. because", "B"),
        ("(B)", "B"),
        ("(B).", "B"),
        (":B)", "B"),
        ("A. or B.", None),
        ("A. or (B)", "A"),  # the form X. comes first
        ("E", "E"),
        ("it is a dog", "B"),
        ("It is a CAT", "A"),
        ("a dog and a cat", None),
        ("", None),
        ("猫", None),
    ]:
        with subtests.test(text=text, expected=expected):
            assert mmbench_choice(text, OPTIONS) == expected


def test_mmbench_is_inferred_as_in_lmms_eval():
    evaluator, inferred = MMBench_Evaluator(), []
    for text in random_texts(1000, seed=1, words=[*CHOICE_WORDS, "dog", "red ball", "in", "x"], longest=5):
        expected = evaluator.can_infer(text, dict(OPTIONS)) or None
        assert mmbench_choice(text, OPTIONS) == expected
        inferred.append(expected)
    assert len(set(inferred)) == 6


def test_options_that_are_not_there_match_nothing():
    for absent in (None, "nan", "", " ", float("nan")):
        assert mmbench_choice("a banana", {"A": "banana", "B": "apple", "C": absent}) == "A"
    # A text "nan", which tables of the data hold, is an option to the scripts, and occurs in banana.
    assert not MMBench_Evaluator().can_infer("a banana", {"A": "banana", "B": "apple", "C": "nan"})


def test_circular_accuracy_by_hand():
    rows = {7: 1, 1_000_007: 1, 2_000_007: 1, 8: 1, 1_000_008: 0, 9: 0, 1_000_009: 1}
    indices, hits = list(rows), [bool(hit) for hit in rows.values()]
    categories = ["x" if index % 10**6 == 7 else "y" for index in indices]
    assert circular_accuracy(indices, hits, categories) == {
        "accuracy": pytest.approx(100 / 3),
        "accuracy, x": 100,
        "accuracy, y": 0,
        "vanilla_accuracy": pytest.approx(200 / 3),
        "questions": 3,
        "rows": 7,
        "is_circular": 1,
    }
    order = np.random.default_rng(0).permutation(7)
    shuffled = circular_accuracy([indices[i] for i in order], [hits[i] for i in order], [categories[i] for i in order])
    assert shuffled == circular_accuracy(indices, hits, categories)


def test_without_rotations_it_is_not_circular():
    scores = circular_accuracy([7, 8, 1_000_008], [True, True, False])
    assert (scores["is_circular"], scores["accuracy"], scores["vanilla_accuracy"]) == (0, 50, 100)


def circular_rows(replies):
    """500 questions with two or three rotations, 85 in 100 replies right."""
    draw = random.Random(2)
    for question in range(500):
        for rotation in range(draw.choice([2, 3])):
            right = draw.choice("ABC")
            reply = right if draw.random() < 0.85 else draw.choice(replies)
            kind = f"kind {question % 3}"
            row = {"index": question + rotation * 10**6, "prediction": reply, "answer": right, **OPTIONS}
            yield row | {"category": kind, "l2-category": kind}


def test_circular_accuracy_is_that_of_lmms_eval_unless_it_guesses():
    for replies, guesses in ((["A", "B.", "(C)", "cat", "red ball"], False), (["A or B", "dunno"], True)):
        rows = list(circular_rows(replies))
        letters = [mmbench_choice(row["prediction"], OPTIONS) for row in rows]
        assert (None in letters) == guesses
        hits = [letter == row["answer"] for letter, row in zip(letters, rows, strict=True)]
        ours = circular_accuracy([row["index"] for row in rows], hits, [row["category"] for row in rows])
        overall, by_kind, _ = MMBench_Evaluator().eval_result(rows, "static")
        kinds = {f"accuracy, {kind}": 100 * share for kind, share in by_kind.items()}
        theirs = {"accuracy": 100 * overall, **kinds}
        if guesses:
            assert theirs["accuracy"] > ours["accuracy"] > 50
        else:
            assert {name: ours[name] for name in theirs} == pytest.approx(theirs)


def test_faulty_rows_of_mmbench_are_named(subtests):
    for indices, message in [
        ([], "at least one row"),
        ([7, 1_000_008], "question 8: its base row is missing"),
        ([7, 7], "question 7: an index occurs twice"),
    ]:
        with subtests.test(message=message):
            with pytest.raises(ValueError, match=message):
                circular_accuracy(indices, [True] * len(indices))
            with pytest.raises(ValueError, match="as many hits"):
                circular_accuracy([1, 2], [True])


def test_letters_of_mmvp(subtests):
    for text, expected in [
        ("A", "A"),
        (" (B)", "B"),
        ("A. the left one", "A"),
        ("(A", "A"),
        ("B)", "B"),
        ("A dog", "A"),
        ("a", None),
        ("a dog", None),
        ("Both", None),
        ("AB", None),
        ("The answer is A", None),
        ("C", None),
        ("", None),
    ]:
        with subtests.test(text=text, expected=expected):
            assert ab_choice(text) == expected


def test_lmms_eval_reads_the_article_as_a_letter():
    assert (_extract_answer_letter("a dog").upper(), ab_choice("a dog")) == ("A", None)
    for start in ("A", "B", "(A)", "(B)", "A.", "B.", "A)"):
        for rest in ("", " B", " the left one"):
            assert _extract_answer_letter(start + rest).upper() == ab_choice(start + rest)


def test_demon_cleans(subtests):
    for text, expected in [
        ("'The Red-ball.'", "the red ball"),
        ('"two\tdogs"\n', "two dogs"),
        ("a, b", "a b"),
        ("it's 3.5", "it's 3.5"),
        ("...", ""),
        ("", ""),
        ("ÉTÉ", "été"),
    ]:
        with subtests.test(text=text, expected=expected):
            assert demon_clean(text) == expected


def test_text_choices_by_hand():
    # "ball" occurs in both choices and weighs less than "red", which decides.
    assert demon_text_choice("a red thing, maybe a ball", ["blue ball", "red ball"], "red ball")
    assert not demon_text_choice("a red thing, maybe a ball", ["blue ball", "red ball"], "blue ball")
    assert demon_text_choice("something else", ["blue ball", "red ball"], "Blue ball.")  # the first of equals
    assert not demon_text_choice("something else", ["blue ball", "red ball"], "red ball")
    assert demon_text_choice("12", [11, 12], 12)  # Fashion200K has numbers
    assert demon_text_choice("b", ["a", "b"], "B")  # no word of two letters: exact match
    assert not demon_text_choice("c", ["a", "b"], "b")
    assert not demon_text_choice("Image B", ["Image A", "Image B"], "Image B")  # a letter is no word: all alike
    for choices in ([], "red ball"):
        with pytest.raises(ValueError, match="list with at least one"):
            demon_text_choice("x", choices, "x")


def test_text_choices_take_the_cosine_of_tf_idf():
    exact = 0
    for row in range(500):
        prediction, *choices = random_texts(5, seed=100 + row, longest=4)
        answer = choices[row % 4]
        texts = [demon_clean(text) for text in (prediction, *choices)]
        try:
            vectors = TfidfVectorizer().fit(texts).transform(texts)
        except ValueError:
            exact += 1
            assert demon_text_choice(prediction, choices, answer) == (texts[0] == demon_clean(answer))
            continue
        cosines = cosine_similarity(vectors[:1], vectors[1:])[0]
        # Where rounding decides between equals, either is right.
        best = {text for text, cosine in zip(texts[1:], cosines, strict=True) if cosine > cosines.max() - 1e-12}
        if len(best) == 1 or cosines.max() == 0:
            expected = texts[1] if cosines.max() == 0 else best.pop()
            assert demon_text_choice(prediction, choices, answer) == (expected == demon_clean(answer))
    assert exact < 50


def test_image_choices(subtests):
    for prediction, hit in [
        ("Image B", True),
        ("image b.", True),
        ("Image B, as it shows a pan", True),
        ("Image B or Image C", False),
        ("The answer is Image B", False),
        ("B", False),
        ("", False),
    ]:
        with subtests.test(prediction=prediction, hit=hit):
            assert demon_image_choice(prediction, "Image B") is hit


def test_any_text_gets_an_answer():
    for text in random_texts(500, seed=5, words=WORDS):
        assert science_qa_choice(text) is None or science_qa_choice(text) in "ABCDE"
        assert demon_image_choice(text, "Image B") in (True, False)
