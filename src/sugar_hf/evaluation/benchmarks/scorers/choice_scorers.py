"""Which choice a reply names: ScienceQA, MMBench, MMVP and the choices of DEMON."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .vqa_scorers import process_punctuation

_SCIENCE_QA_SENTENCE = re.compile(r"The answer is ([A-Z]).")
_AB = re.compile(r"^\(?([AB])\)?\b")
_MMBENCH_LETTERS = "ABCDE"
#: What may stand before and after a letter, in the order in which it is tried.
_MMBENCH_DECORATIONS = (
    ("", "."),
    ("", ","),
    ("", ":"),
    ("", ")"),
    ("", ")."),
    ("(", ")"),
    ("(", ")."),
    (":", ""),
    (":", ","),
    (":", "."),
    (":", ")"),
    (":", ")."),
)
#: Rotations of a question of MMBench have its index plus a multiple of this.
_ROTATION = 10**6
_IMAGES = ("image a", "image b", "image c", "image d")


def science_qa_choice(text: str) -> str | None:
    """The letter a reply to ScienceQA gives, by the rules of LLaVA's `eval_science_qa.py`.

    A reply that is a letter A to E; else one that starts with such a letter, a full stop and a space; else one with
    exactly one match of `The answer is ([A-Z]).`, in which the last dot is any character but a line break, so that
    one has to follow. White space around is dropped first, as LLaVA does where it writes its replies. A letter beyond
    the choices is returned: it is no right answer. lmms-eval differs: see `science_qa_choice_lmms`.

    Returns:
        A capital letter, or None if the reply gives none, which counts as wrong.

    >>> science_qa_choice("B. the moon"), science_qa_choice("The answer is C."), science_qa_choice("b")
    ('B', 'C', None)
    """
    text = text.strip()
    if len(text) == 1 and text in "ABCDE":
        return text
    if len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        return text[0]
    found = _SCIENCE_QA_SENTENCE.findall(text)
    return found[0] if len(found) == 1 else None


def science_qa_choice_lmms(text: str) -> str | None:
    """The letter a reply to ScienceQA gives, by the rules of lmms-eval.

    A single letter of either case, or a capital letter followed by a full stop; no rule for `The answer is`.

    >>> science_qa_choice_lmms("b"), science_qa_choice_lmms("B.moon"), science_qa_choice_lmms("The answer is C.")
    ('B', 'B', None)
    """
    text = text.strip()
    if len(text) == 1 and text.isascii() and text.isalpha():
        return text.upper()
    return text[0] if re.match(r"[A-Z]\.", text) else None


def mmbench_choice(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter a reply to MMBench gives, by the steps of the official script that need no language model.

    1. Exactly one of the letters A to E is a word of the reply. If it is `A` in a reply of more than three words, the
       step is abandoned: it may be the article.
    2. The same with punctuation at the letter, one form after the other: `X.` `X,` `X:` `X)` `X).` `(X)` `(X).` `:X`
       `:X,` `:X.` `:X)` `:X).`
    3. The text of exactly one option occurs in the reply, in lower case.

    The official script asks a language model about the rest; lmms-eval can guess by patterns instead, or at random.
    Here the rest is None: count it as wrong, and say so. Options that are empty, NaN or `nan` (as a table reads where
    a question has fewer) are left out; the scripts take an option `nan` for a text.

    Args:
        prediction: the reply.
        options: letter to text of the options.

    Returns:
        A letter, which need not be among the options, or None if none can be inferred.

    >>> mmbench_choice("(B)", {"A": "cat", "B": "dog"}), mmbench_choice("It is a cat", {"A": "cat", "B": "dog"})
    ('B', 'A')
    """
    words = prediction.split()
    bare = [letter for letter in _MMBENCH_LETTERS if letter in words]
    if len(bare) == 1 and not (bare == ["A"] and len(words) > 3):
        return bare[0]
    for before, after in _MMBENCH_DECORATIONS:
        found = [letter for letter in _MMBENCH_LETTERS if f"{before}{letter}{after}" in words]
        if len(found) == 1:
            return found[0]
    texts = {letter: str(text).lower() for letter, text in options.items() if text is not None}
    named = [letter for letter, text in texts.items() if text.strip() and text != "nan" and text in prediction.lower()]
    return named[0] if len(named) == 1 else None


def circular_accuracy(
    indices: Sequence[int], hits: Sequence[bool], categories: Sequence[str] | None = None
) -> dict[str, float]:
    """MMBench's CircularEval: a question is a hit only if all its rotations are.

    Rows with the same index modulo 10^6 are the rotations of one question, and the row with an index below 10^6 is
    its base. The mean is over questions, as in the official script, where a category is that of the base row.

    Args:
        indices: the index of each row.
        hits: whether each row was answered right.
        categories: the category (or L2 category) of each row; none if not given.

    Returns:
        In percent `accuracy`, `accuracy, {category}` for each, and `vanilla_accuracy`, that of the base rows alone;
        with the counts `questions` and `rows`, and `is_circular`: 1.0, or 0.0 if a question came without rotations.
        In that case `accuracy` is not comparable with published figures.

    Raises:
        ValueError: if lengths differ, there are no rows, an index occurs twice or a question's base row is missing.
    """
    if len(indices) != len(hits) or (categories is not None and len(categories) != len(indices)):
        raise ValueError(f"{len(indices)} indices need as many hits (and categories)")
    if not len(indices):
        raise ValueError("CircularEval needs at least one row")
    rows: dict[int, list[int]] = defaultdict(list)
    for row, index in enumerate(indices):
        rows[int(index) % _ROTATION].append(row)
    questions: list[bool] = []
    base_hits: list[bool] = []
    by_category: dict[str, list[bool]] = defaultdict(list)
    for question, members in rows.items():
        own = [int(indices[row]) for row in members]
        if len(set(own)) < len(own):
            raise ValueError(f"question {question}: an index occurs twice among {sorted(own)}")
        if question not in own:
            raise ValueError(f"question {question}: its base row is missing, there are only {sorted(own)}")
        base = members[own.index(question)]
        questions.append(all(bool(hits[row]) for row in members))
        base_hits.append(bool(hits[base]))
        if categories is not None:
            by_category[categories[base]].append(questions[-1])
    return {
        "accuracy": 100.0 * float(np.mean(questions)),
        **{f"accuracy, {name}": 100.0 * float(np.mean(own_hits)) for name, own_hits in by_category.items()},
        "vanilla_accuracy": 100.0 * float(np.mean(base_hits)),
        "questions": float(len(questions)),
        "rows": float(len(indices)),
        "is_circular": float(all(len(members) > 1 for members in rows.values())),
    }


def ab_choice(text: str) -> str | None:
    """The choice of a reply to a question with two statements: `A` or `B` at its start, bare or in brackets.

    Lower case is not accepted: `a` is more often the article (lmms-eval's parser for MMVP reads it as A). A reply
    that starts with the article in a capital, `A dog`, cannot be told from the letter and is read as A.

    >>> ab_choice(" (B) the left one"), ab_choice("a dog"), ab_choice("Both")
    ('B', None, None)
    """
    found = _AB.match(text.strip())
    return found.group(1) if found else None


def demon_clean(text: str) -> str:
    """A text as DEMON's scorer compares it: on one line, without punctuation (as VQA removes it), in lower case.

    Articles, numbers and contractions stay, unlike in VQA.

    >>> demon_clean(" 'The Red-ball.' ")
    'the red ball'
    """
    text = process_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    return text.strip("'").strip('"').strip().lower()


def demon_text_choice(prediction: str, choices: Sequence[Any], answer: Any) -> bool:
    """Whether the choice nearest to the prediction is the answer, as DEMON's scorer decides.

    Prediction and choices, cleaned, become TF-IDF vectors (scikit-learn's defaults, fitted on exactly these texts),
    and the choice of the largest cosine is taken, the first one of equals: of choices that share no word with the
    prediction that is the first. If no text has a word of two letters, only an exact match counts.

    Args:
        prediction: the reply.
        choices: the texts to choose from; numbers are cast, as some of DEMON's files need.
        answer: the text of the right choice.

    Raises:
        ValueError: if there are no choices.
        ImportError: without scikit-learn.

    >>> demon_text_choice("it is a red ball", ["blue box", "red ball"], "red ball")
    True
    """
    if isinstance(choices, str) or not len(choices):
        raise ValueError(f"choices: need a list with at least one text, got {choices!r}")
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError('text choices need scikit-learn: pip install "sugar-hf[eval]"') from error
    texts, right = [demon_clean(str(text)) for text in (prediction, *choices)], demon_clean(str(answer))
    try:
        vectors = TfidfVectorizer().fit_transform(texts)
    except ValueError:  # an empty vocabulary
        return texts[0] == right
    cosines = (vectors[1:] @ vectors[0].T).toarray()[:, 0]  # (choices,), the vectors have length 1
    return texts[1 + int(cosines.argmax())] == right


def demon_image_choice(prediction: str, answer: str) -> bool:
    """Whether a reply names the right one of `Image A` to `Image D`, as DEMON's scorer decides.

    The first seven characters of both, cleaned, have to agree, and at most one of the four names may occur in the
    reply. RecipeQA_VisualCloze belongs here: the published script misses its name and compares it as text, in which
    the four names are all alike.

    >>> demon_image_choice("Image B.", "Image B"), demon_image_choice("Image B or image C", "Image B")
    (True, False)
    """
    text, right = demon_clean(prediction), demon_clean(answer)
    return text[:7] == right[:7] and sum(name in text for name in _IMAGES) <= 1
