"""Yes and no: POPE, MME and the probe of positions."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

MME_PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def pope_answer(text: str) -> Literal["yes", "no"]:
    """The answer a reply to POPE gives, by the official script, which LLaVA uses too.

    Of the text before the first full stop, without commas and split at spaces, a part that is exactly `No`, `no` or
    `not` means no; anything else means yes, so `NO`, `Nope`, `isn't` and an empty reply do. lmms-eval differs: the
    whole reply has to be yes or no in any case, everything else is wrong.

    >>> pope_answer("No, there is none."), pope_answer("There is not."), pope_answer("NO")
    ('no', 'no', 'yes')
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def binary_scores(predictions: Sequence[str | None], labels: Sequence[str]) -> dict[str, float]:
    """The scores of POPE, with yes as the positive class.

    Where a division has nothing to divide by, the score is 0; the official script fails. lmms-eval leaves replies
    that are neither out of precision and recall, and its `yes_ratio` is the share of yes among the labels.

    Args:
        predictions: `yes` or `no`, as `pope_answer` gives. None stands for a sample that failed: it counts as the
            opposite of its label, so as wrong in every score (and as a yes of the model where the label is no).
        labels: `yes` or `no`.

    Returns:
        `accuracy`, `precision`, `recall`, `f1` and `yes_ratio` (the share of yes among the predictions) in percent,
        and the number of samples that `failed`.

    Raises:
        ValueError: if lengths differ, there is nothing to score, or a value is another one.
    """
    _check_lengths("predictions", predictions, labels=labels)
    truth = [_label(label, row) for row, label in enumerate(labels)]
    guesses = [
        not right if guess is None else _label(guess, row, "prediction")
        for row, (guess, right) in enumerate(zip(predictions, truth, strict=True))
    ]
    truth_array, guess_array = np.array(truth), np.array(guesses)
    positives = int((truth_array & guess_array).sum())
    precision = _ratio(positives, int(guess_array.sum()))
    recall = _ratio(positives, int(truth_array.sum()))
    return {
        "accuracy": 100.0 * float((truth_array == guess_array).mean()),
        "precision": 100.0 * precision,
        "recall": 100.0 * recall,
        "f1": 100.0 * _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": 100.0 * float(guess_array.mean()),
        "failed": float(sum(guess is None for guess in predictions)),
    }


def mme_answer(text: str) -> Literal["yes", "no", "other"]:
    """The answer a reply to MME gives, by the official script.

    In lower case and without white space around (which LLaVA removes where it writes its replies): exactly yes or no,
    else `yes` and then `no` are looked for in the first four characters, else it is `other`, which is wrong. So `Not
    sure` and `know` are no, and `The answer is yes` is other. lmms-eval also deletes full stops first and reads a
    single `y` or `n`.

    >>> mme_answer("Yes, it is"), mme_answer("Not sure"), mme_answer("The answer is yes")
    ('yes', 'no', 'other')
    """
    start = text.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def mme_scores(
    categories: Sequence[str],
    question_ids: Sequence[str],
    predictions: Sequence[str | None],
    labels: Sequence[str],
) -> dict[str, float]:
    """The scores of MME, whose images have two questions each.

    acc is the share of right questions, acc+ that of images with both questions right, the score of a subtask
    100 (acc + acc+), at most 200.

    Args:
        categories: the subtask of each question.
        question_ids: its image; the two questions of an image share subtask and id.
        predictions: replies, or what `mme_answer` makes of them; None stands for a sample that failed, and is wrong.
        labels: yes or no, in any case.

    Returns:
        For each subtask that is there `{subtask} acc` and `{subtask} acc+` in percent and `{subtask} score`;
        `perception` and `cognition`, the sums of the scores of the subtasks that are there (at most 2000 and 800 with
        all), and `{subtask} missing` with 1.0 for each that is not: with any, a sum is not comparable.

    Raises:
        ValueError: if lengths differ, a subtask is unknown, a label is neither yes nor no, or an image has not
            exactly two questions.
    """
    _check_lengths("predictions", predictions, categories=categories, question_ids=question_ids, labels=labels)
    pairs: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row, (category, question_id, prediction, label) in enumerate(
        zip(categories, question_ids, predictions, labels, strict=True)
    ):
        if category not in MME_PERCEPTION + MME_COGNITION:
            raise ValueError(f"row {row}: {category!r} is no subtask of MME")
        right = "yes" if _label(label, row) else "no"
        pairs[category, question_id].append(prediction is not None and mme_answer(prediction) == right)
    by_category: dict[str, list[list[bool]]] = defaultdict(list)
    for (category, question_id), hits in pairs.items():
        if len(hits) != 2:
            raise ValueError(f"{category}: {question_id!r} has {len(hits)} questions, MME asks two about each image")
        by_category[category].append(hits)
    results: dict[str, float] = {}
    sums = {"perception": 0.0, "cognition": 0.0}
    for group, subtasks in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        for category in subtasks:
            if category not in by_category:
                results[f"{category} missing"] = 1.0
                continue
            hits_array = np.array(by_category[category])  # (images, 2)
            acc, acc_plus = 100.0 * float(hits_array.mean()), 100.0 * float(hits_array.all(axis=1).mean())
            results |= {f"{category} acc": acc, f"{category} acc+": acc_plus, f"{category} score": acc + acc_plus}
            sums[group] += acc + acc_plus
    return {**sums, **results}


def first_yes_no(text: str) -> Literal["yes", "no"] | None:
    """The first word of a reply that is yes or no, in any case; None if there is none, which counts as wrong.

    >>> first_yes_no("I know: yes, not no"), first_yes_no("It isn't.")
    ('yes', None)
    """
    for word in re.findall(r"\w+", text.lower()):
        if word == "yes":
            return "yes"
        if word == "no":
            return "no"
    return None


def position_curve(hits: np.ndarray) -> dict[str, float]:
    """Accuracy by the position of the relevant pair, over the same items at each position.

    Args:
        hits: right or wrong, shape (items, positions), with at least three positions.

    Returns:
        `position 1` to `position K` and their `mean` in percent, and `depth`: the mean of the two ends minus the mean
        of the positions between them, in points; above 0 if the curve is U-shaped.

    Raises:
        ValueError: for another shape, or values other than right and wrong.

    >>> position_curve(np.array([[1, 0, 1], [1, 1, 0]]))["depth"]
    25.0
    """
    hits = np.asarray(hits)
    if hits.ndim != 2 or not len(hits) or hits.shape[1] < 3:
        raise ValueError(f"hits: need a shape of (items, positions) with at least 3 positions, got {hits.shape}")
    if not np.isin(hits, (0, 1)).all():
        raise ValueError("hits: need true and false, or 1 and 0")
    curve = 100.0 * hits.mean(axis=0)
    return {
        **{f"position {place + 1}": float(value) for place, value in enumerate(curve)},
        "mean": float(curve.mean()),
        "depth": float(curve[[0, -1]].mean() - curve[1:-1].mean()),
    }


def _label(text: str, row: int, what: str = "label") -> bool:
    """Whether a label is yes; anything but yes and no is an error."""
    label = text.strip().lower()
    if label not in ("yes", "no"):
        raise ValueError(f"row {row}: {what} {text!r} is neither yes nor no")
    return label == "yes"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _check_lengths(name: str, first: Sequence[object], **others: Sequence[object]) -> None:
    for other, values in others.items():
        if len(values) != len(first):
            raise ValueError(f"{len(first)} {name}, but {len(values)} {other}")
    if not len(first):
        raise ValueError(f"{name}: nothing to score")
