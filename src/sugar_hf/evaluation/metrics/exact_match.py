"""Exact match of short answers."""

import string

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without the white space around and the full stop at the end.

    >>> normalize_answer(" A Dog. ")
    'a dog'
    """
    return " ".join(text.lower().split()).removesuffix(".").strip()


def exact_match(prediction: str, answer: str) -> bool:
    """True if both are the same after `normalize_answer`."""
    return normalize_answer(prediction) == normalize_answer(answer)


def gqa_match(prediction: str, answer: str) -> bool:
    """GQA as LLaVA scores it: white space around and full stops at the end go, lower case, equality.

    The official script compares for equality alone; LLaVA's `convert_gqa_for_eval.py` prepares the prediction for it,
    and here both sides are prepared alike (GQA's answers are in lower case, without full stops). lmms-eval differs:
    see `gqa_match_lmms`.

    >>> gqa_match(" Yes. ", "yes"), gqa_match("t-shirt", "tshirt")
    (True, False)
    """
    return _gqa(prediction) == _gqa(answer)


def gqa_match_lmms(prediction: str, answer: str) -> bool:
    """GQA as lmms-eval scores it: lower case, all ASCII punctuation deleted, white space kept.

    >>> gqa_match_lmms("T-shirt.", "tshirt"), gqa_match_lmms(" yes", "yes")
    (True, False)
    """
    return prediction.lower().translate(_NO_PUNCTUATION) == answer.lower().translate(_NO_PUNCTUATION)


def _gqa(text: str) -> str:
    return text.strip().rstrip(".").lower()
