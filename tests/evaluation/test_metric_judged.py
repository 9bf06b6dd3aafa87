import importlib.util
from pathlib import Path

import lmms_eval.tasks
import numpy as np
import pytest

from sugar_hf.evaluation.benchmarks.scorers import (
    llava_bench_prompt,
    llava_bench_scores,
    mm_vet_prompt,
    mm_vet_scores,
    parse_mm_vet_score,
    parse_two_scores,
)


@pytest.fixture(scope="module")
def lmms_llava():
    """lmms-eval's scorer of LLaVA-Bench; its folder has a name that cannot be imported."""
    path = Path(lmms_eval.tasks.__file__).parent / "llava-in-the-wild" / "utils.py"
    spec = importlib.util.spec_from_file_location("lmms_llava_bench", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_scores(subtests):
    for text, scores in [
        ("8 7\nAssistant 1 ..", (8, 7)),
        ("8, 7", (8, 7)),
        ("8.5,7", (8.5, 7)),
        ("\n 9  10 \n", (9, 10)),
        ("Assistant 1: 8 Assistant 2: 7", None),
        ("8", None),
        ("8 7 6", None),
        ("8/10 7/10", None),
        ("nan 7", None),
        ("I cannot judge.", None),
        ("", None),
    ]:
        with subtests.test(text=text, scores=scores):
            assert parse_two_scores(text) == scores


def test_lmms_eval_reads_the_number_of_the_assistant_as_a_score(lmms_llava):
    read = lmms_llava._parse_comparative_scores
    for text in ("8 7\nx", "8, 7", "8.5,7", "I cannot judge."):
        assert tuple(read(text).metadata["scores"]) == (parse_two_scores(text) or (-1, -1))
    assert read("Assistant 1: 8 Assistant 2: 7").metadata["scores"] == [1, 8]


def test_llava_bench_by_hand():
    scores = llava_bench_scores([(8, 6), (9, 9), (10, 4)], ["conv", "conv", "detail"])
    assert scores == {"score": 70.4, "score, conv": 88.2, "score, detail": 40.0, "unparsed": 0}


def test_means_are_rounded_before_they_are_compared():
    # 1.667 / 1.333; without rounding 5 / 4, which is 125.0.
    assert llava_bench_scores([(1, 1), (1, 2), (2, 2)], ["conv"] * 3)["score"] == 125.1


def test_unparsed_replies_are_averaged_in():
    scores = llava_bench_scores([(8, 4), None], ["conv", "conv"])
    assert scores == {"score": 42.9, "score, conv": 42.9, "unparsed": 1}  # (4 - 1) / (8 - 1)


def test_llava_bench_is_that_of_lmms_eval(lmms_llava):
    rng = np.random.default_rng(0)
    categories = [("conv", "detail", "complex")[row % 3] for row in range(500)]
    pairs = [None if rng.random() < 0.05 else tuple(float(s) for s in rng.integers(1, 11, 2)) for _ in categories]
    ours = llava_bench_scores(pairs, categories)
    rows = [{"scores": list(pair) if pair else [-1, -1]} for pair in pairs]
    assert ours["score"] == lmms_llava.llava_aggregation(rows, "all")
    for category in ("conv", "detail", "complex"):
        own = [row for row, name in zip(rows, categories, strict=True) if name == category]
        assert ours[f"score, {category}"] == lmms_llava.llava_aggregation(own, category)


def test_a_reference_without_score_is_an_error():
    with pytest.raises(ValueError, match=r"all: the reference's mean score is -1\.0"):
        llava_bench_scores([None], ["conv"])
    with pytest.raises(ValueError, match="as many categories"):
        llava_bench_scores([(1, 2)], [])


def test_the_prompt_of_llava_bench_has_the_official_sections():
    prompt = llava_bench_prompt("What?", ["a cat", "a mat"], "A cat.", "A dog.", rule="Judge.")
    assert prompt == (
        "[Context]\na cat\na mat\n\n[Question]\nWhat?\n\n[Assistant 1]\nA cat.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nA dog.\n\n[End of Assistant 2]\n\n[System]\nJudge.\n\n"
    )
    assert llava_bench_prompt("What?", "a cat\na mat", "A cat.", "A dog.", rule="Judge.") == prompt
    assert "from 1 to 10" in llava_bench_prompt("What?", "", "A cat.", "A dog.")


def test_grades_of_mm_vet(subtests):
    for text, score in [
        ("0.5", 0.5),
        (" 1.0\n", 1.0),
        ("0.3 | next row", 0.3),
        ("0", 0.0),
        ("1.5", None),
        ("-0.1", None),
        ("nan", None),
        ("Correctness: 0.5", None),
        ("", None),
    ]:
        with subtests.test(text=text, score=score):
            assert parse_mm_vet_score(text) == score


def test_mm_vet_by_hand():
    scores = mm_vet_scores([1.0, 0.5, None, 0.0], ["ocr,math", "ocr", "rec", "rec, math"])
    assert scores == {"score": 37.5, "score, math": 50, "score, ocr": 75, "score, rec": 0, "unparsed": 1}
    assert scores == mm_vet_scores([1.0, 0.5, None, 0.0], [["ocr", "math"], ["ocr"], ["rec"], ["rec", "math"]])


def test_faulty_grades_are_named():
    with pytest.raises(ValueError, match="question 1: a grade of MM-Vet"):
        mm_vet_scores([0.5, 5], ["ocr", "ocr"])
    with pytest.raises(ValueError, match="as many capabilities"):
        mm_vet_scores([], [])


def test_the_prompt_of_mm_vet_ends_with_an_open_row():
    prompt = mm_vet_prompt(
        "Which?", "red<AND>blue<OR>pink", "red", instruction="Grade.", examples=[("q", "a", "p", "1.0")]
    )
    assert prompt == (
        "Grade.\nQuestion | Ground truth | Prediction | Correctness\n--- | --- | --- | ---\nq | a | p | 1.0\n"
        "Which? | red <AND> blue <OR> pink | red | "
    )
    rows = mm_vet_prompt("Which?", "red", "red").splitlines()
    assert {row.count(" | ") for row in rows[1:]} == {3}
    assert "<AND>" in rows[0]
