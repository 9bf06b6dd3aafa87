"""The accuracy of WebQA's answers (QA-Acc), without its fluency, which needs a BARTScore model."""

import re
import string
from collections import Counter
from collections.abc import Callable

_PUNCTUATION = str.maketrans("", "", string.punctuation.replace(".", ""))
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_LOOSE_PERIOD = re.compile(r"\.(?!\d)")

#: The words that count in the answers of a category, as the official script lists them (its misspellings, and the
#: `yes` among the colours, included).
_COLORS = """
aqua beige black blonde blue bluere bluewhite bronze brown chrome gold golden gray green grey ivory maroon orange
orangebrown orangepurple pink purple rainbow red redorange rust silver spot tan teal transparent turquoise violet white
yellow yes
"""
_SHAPES = """
arch ball bell bellshaped bow circle circular concave cone conical convex corkscrew crescent crest cross crosse cube
cuboid curl curve cylinder cylindrical diamond dome domeshape dot flat flower fold fork globe globular h heart hexagon
hook hoop keyhole obelisk octagon octagonal octogon oval pentagon point pyramid pyramidal rectangle rectangular ring
round rounded semicircle shamrock slope sphere spherical spiral square star step straight teardrop torus triangle
triangular tube wavy xs
"""
_DOMAINS = {"color": set(_COLORS.split()), "shape": set(_SHAPES.split()), "YesNo": {"yes", "no"}}
_CATEGORIES = (*_DOMAINS, "number", "choose", "Others", "text")


def webqa_accuracy(
    prediction: str,
    answer: str,
    category: str,
    keywords: str | None = None,
    lemmatize: Callable[[str], str] | None = None,
) -> float:
    """QA-Acc of WebQA's `eval.py` for one question.

    For color, shape, YesNo and number the F1 of the bags of those words that belong to the category (a set of each,
    numbers as often as they occur), 2PR / (P + R + 1e-5), so that a perfect answer gets .999995; for choose, Others
    and text the recall of the reference's words. Words are compared in lower case, without punctuation and articles,
    with number words as digits.

    The official script then lemmatises with spaCy (`en_core_web_sm`), so that `dogs` meets `dog` and `was` meets `is`.
    Without `lemmatize` nothing does: scores of open answers come out lower than the official ones, and words of a
    category in another form (`squares`) are missed.

    Args:
        prediction: the model's answer.
        answer: the reference, used where there are no keywords.
        category: `Qcate`: color, shape, YesNo, number, choose, Others or text.
        keywords: `Keywords_A`, which the official script takes as the reference.
        lemmatize: from a normalised text to the text of its lemmas, separated by spaces; for instance
            `lambda text: " ".join(token.lemma_ for token in nlp(text))` with the official pipeline.

    Returns:
        From 0 to 1.

    Raises:
        ValueError: for an unknown category.
        ImportError: without word2number.

    >>> webqa_accuracy("There are three of them", "Three birds", "number") > 0.99
    True
    >>> webqa_accuracy("A red barn.", "The barn is red", "Others", keywords="red barn")
    1.0
    """
    if category not in _CATEGORIES:
        raise ValueError(f"category: {category!r} is none of {', '.join(_CATEGORIES)}")
    given = _words(prediction, lemmatize)
    wanted = _words(answer if keywords is None else keywords, lemmatize)
    if category in _DOMAINS:
        given, wanted = list(_DOMAINS[category] & set(given)), list(_DOMAINS[category] & set(wanted))
    elif category == "number":
        given, wanted = _numbers(given), _numbers(wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    if category in _DOMAINS or category == "number":
        return 2 * precision * recall / (precision + recall + 1e-5)
    return recall


def _words(text: str, lemmatize: Callable[[str], str] | None) -> list[str]:
    text = text.strip().lower()
    if len(text) == 1:  # a single letter may be the answer, article or not
        return [_as_digits(text)]
    is_one_word = len(text.split()) == 1
    text = _LOOSE_PERIOD.sub("", text.translate(_PUNCTUATION))
    if not is_one_word:
        text = _ARTICLE.sub(" ", text)
    text = " ".join(_as_digits(word) for word in text.split())
    return (lemmatize(text) if lemmatize is not None else text).split()


def _as_digits(word: str) -> str:
    try:
        from word2number import w2n
    except ImportError as error:
        raise ImportError('the accuracy of WebQA needs word2number: pip install "sugar-hf[eval]"') from error
    if word == "point":  # a decimal point to word2number, a shape to WebQA
        return word
    try:
        return str(w2n.word_to_num(word))
    except ValueError:  # not a number
        return word


def _numbers(words: list[str]) -> list[str]:
    return [str(int(word)) for word in words if word.isdecimal()]
