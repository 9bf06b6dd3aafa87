"""Scores that a language model gives as judge: LLaVA-Bench (in the wild) and MM-Vet.

The functions here write the judge's prompt, read its reply and aggregate; asking it is left to the caller. Report the
judge's name with every figure: scores by different judges are not comparable.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

#: What the judge of LLaVA-Bench is told; see `llava_bench_prompt`.
LLAVA_BENCH_RULE = (
    "Two assistants have answered the question above, which a user asked about an image. You cannot see the image; "
    "the context describes it. Judge how helpful, relevant, accurate and detailed each answer is, and give each a "
    "score from 1 to 10, higher for the better answer.\n"
    "Write the score of Assistant 1 and the score of Assistant 2 in the first line, as two numbers with a space "
    "between them and nothing else. From the second line on, explain the scores. Do not let the order of the answers "
    "influence you."
)

#: What the judge of MM-Vet is told, and graded examples; see `mm_vet_prompt`.
MM_VET_INSTRUCTION = (
    "Grade how correct a model's prediction is, given the true answer. Where <AND> stands in the true answer, only a "
    "prediction with all the elements it joins is fully right; where <OR> stands, any one of them is enough. Grades "
    "are 0.0 (wrong in everything), 0.1, 0.2 and so on up to 1.0 (right in everything). Complete the table by the "
    "grade that its last row lacks, and write nothing else."
)
MM_VET_EXAMPLES = (
    ("Which fruits lie on the table?", "apple <AND> pear", "There is a banana.", "0.0"),
    ("Which fruits lie on the table?", "apple <AND> pear", "An apple.", "0.5"),
    ("Which fruits lie on the table?", "apple <AND> pear", "An apple and a banana.", "0.5"),
    ("Which fruits lie on the table?", "apple <AND> pear", "A pear beside an apple.", "1.0"),
    ("What is the driver waiting for?", "the green light <OR> the signal", "For the light to turn green.", "1.0"),
    (
        "Why is the drawing funny?",
        "A snail carries a house for sale on its back, so the joke is that it sells its own shell.",
        "A snail is drawn with a house.",
        "0.3",
    ),
)


def llava_bench_prompt(
    question: str,
    context: str | Sequence[str],
    reference: str,
    prediction: str,
    rule: str = LLAVA_BENCH_RULE,
) -> str:
    """The judge's prompt of LLaVA-Bench.

    The sections are those of LLaVA's `eval_gpt_review_bench.py`. The rule says the same as the official one in other
    words: for figures that stand beside published ones, give the official wording (`llava_bench_conv`, `_detail` or
    `_complex` in LLaVA's `rule.json`) and the official system message as well.

    Args:
        question: the question.
        context: the captions of its image.
        reference: the answer of Assistant 1, by GPT-4 in the data.
        prediction: the answer of Assistant 2, the model measured.
        rule: what the judge is told.
    """
    context = context if isinstance(context, str) else "\n".join(context)
    answers = "".join(
        f"[Assistant {number}]\n{answer}\n\n[End of Assistant {number}]\n\n"
        for number, answer in enumerate((reference, prediction), start=1)
    )
    return f"[Context]\n{context}\n\n[Question]\n{question}\n\n{answers}[System]\n{rule}\n\n"


def parse_two_scores(text: str) -> tuple[float, float] | None:
    """The two scores in the first line of a judge's reply, or None if it has not exactly two numbers.

    LLaVA splits at single spaces and so fails on `8, 7`, which is read here; lmms-eval takes any two numbers of the
    line, and so reads `Assistant 1: 8` as 1 and 8, which is not read here. White space around the reply is dropped.

    >>> parse_two_scores("8, 7\\nThe first"), parse_two_scores("Assistant 1: 8 Assistant 2: 7")
    ((8.0, 7.0), None)
    """
    numbers = text.strip().split("\n")[0].replace(",", " ").split()
    try:
        first, second = (float(number) for number in numbers)
    except ValueError:  # not numbers, or not two
        return None
    return (first, second) if math.isfinite(first) and math.isfinite(second) else None


def llava_bench_scores(pairs: Sequence[tuple[float, float] | None], categories: Sequence[str]) -> dict[str, float]:
    """The relative score of LLaVA-Bench: the model's mean score in percent of the reference's.

    As in LLaVA's `summarize_gpt_review.py`, both means are rounded to three decimals and the percentage to one, and
    a reply that could not be read counts as (-1, -1) and is averaged in, which lowers both means. Watch `unparsed`:
    if it is not 0, have the judge repeat those.

    Args:
        pairs: the scores of reference and model for each question, as `parse_two_scores` gives.
        categories: conv, detail or complex, of each question.

    Returns:
        `score` over all questions and `score, {category}` in percent, and the number of `unparsed` replies.

    Raises:
        ValueError: if lengths differ, there is nothing to score, or a mean score of the reference is not above 0, so
            that nothing can be compared with it.
    """
    if len(pairs) != len(categories) or not len(pairs):
        raise ValueError(f"{len(pairs)} pairs of scores need as many categories, and at least one: {len(categories)}")
    groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for pair, category in zip(pairs, categories, strict=True):
        groups[category].append(pair if pair is not None else (-1.0, -1.0))
    everything = [pair for own in groups.values() for pair in own]
    return {
        "score": _relative(everything, "all"),
        **{f"score, {category}": _relative(own, category) for category, own in groups.items()},
        "unparsed": float(sum(pair is None for pair in pairs)),
    }


def _relative(pairs: Sequence[tuple[float, float]], category: str) -> float:
    reference, model = (round(sum(scores) / len(scores), 3) for scores in zip(*pairs, strict=True))
    if reference <= 0:
        raise ValueError(f"{category}: the reference's mean score is {reference}; can the judge's replies be read?")
    return round(100 * (model / reference), 1)


def mm_vet_prompt(
    question: str,
    answer: str,
    prediction: str,
    instruction: str = MM_VET_INSTRUCTION,
    examples: Sequence[tuple[str, str, str, str]] = MM_VET_EXAMPLES,
) -> str:
    """The judge's prompt of MM-Vet: an instruction, a table of graded examples and a row without its grade.

    The form is that of MM-Vet's evaluator; its wording and its examples (an equation with two solutions, a meme about
    two islands) are not repeated here. For figures that stand beside published ones, give those.

    Args:
        question: the question.
        answer: the true answer, with `<AND>` and `<OR>` between its elements; spaces are put around them.
        prediction: the model's answer.
        instruction: what the judge is told.
        examples: question, true answer, prediction and grade of each example.
    """
    answer = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    table = [("Question", "Ground truth", "Prediction", "Correctness"), ("---", "---", "---", "---"), *examples]
    rows = "\n".join(" | ".join(row) for row in table)
    return f"{instruction}\n{rows}\n{question} | {answer} | {prediction} | "


def parse_mm_vet_score(text: str) -> float | None:
    """The grade a judge's reply starts with, from 0 to 1; None if it starts otherwise.

    The official script asks again at a higher temperature then, up to five times, and counts 0 after that.

    >>> parse_mm_vet_score("0.5 | next"), parse_mm_vet_score("Correctness: 0.5")
    (0.5, None)
    """
    words = text.split(maxsplit=1)
    try:
        score = float(words[0]) if words else math.nan
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


def mm_vet_scores(
    scores: Sequence[float | None], capabilities: Sequence[str] | Sequence[Sequence[str]]
) -> dict[str, float]:
    """The scores of MM-Vet: means in percent, over all questions and over those that need each capability.

    The paper averages five runs of the judge; call this for each.

    Args:
        scores: the grade of each question, from 0 to 1; None if it could not be read, which counts as 0.
        capabilities: what each question needs (rec, ocr, know, gen, spat, math), as a list or joined by commas.

    Returns:
        `score` and `score, {capability}` in percent, and the number of `unparsed` grades.

    Raises:
        ValueError: if lengths differ, there is nothing to score, or a grade lies outside 0 to 1.
    """
    if len(scores) != len(capabilities) or not len(scores):
        raise ValueError(f"{len(scores)} scores need as many capabilities, and at least one: {len(capabilities)}")
    groups: dict[str, list[float]] = defaultdict(list)
    grades = [0.0 if score is None else float(score) for score in scores]
    for row, (grade, needed) in enumerate(zip(grades, capabilities, strict=True)):
        if not 0 <= grade <= 1:
            raise ValueError(f"question {row}: a grade of MM-Vet lies between 0 and 1, got {grade}")
        names = needed.split(",") if isinstance(needed, str) else needed
        for name in {name.strip() for name in names} - {""}:
            groups[name].append(grade)
    return {
        "score": 100.0 * sum(grades) / len(grades),
        **{f"score, {name}": 100.0 * sum(own) / len(own) for name, own in sorted(groups.items())},
        "unparsed": float(sum(score is None for score in scores)),
    }
