"""Three scores called ROUGE-L, which differ: DEMON's, Google's and that of MSCOCO captions.

`the cat sat` against `the cat sat on the mat` gets .750, .667 and .629.
"""

import re
from collections.abc import Sequence

from .choice_scorers import demon_clean

_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")


def rouge_l_demon(prediction: str, reference: str) -> float:
    """ROUGE-L as DEMON scores it: `rouge_l_summary` of both sides after `demon_clean`; 0 if nothing is left of one.

    >>> round(rouge_l_demon("The cat sat.", "the cat sat on the mat"), 3)
    0.75
    """
    return rouge_l_summary(demon_clean(prediction), demon_clean(reference))


def rouge_l_summary(prediction: str, reference: str) -> float:
    """The F of the package `rouge` 1.0.1 for `rouge-l`, over sets of different tokens.

    Sentences end at full stops, tokens at white space. For every pair of sentences the tokens of one longest common
    subsequence are taken; L is the number of different tokens in all of them, m and n those of reference and
    prediction: r = L/m, p = L/n, F = 2pr / (p + r + 1e-8). Where several subsequences are longest, it is the one the
    package finds (walking back, it drops the prediction's token), so the scores are equal to the package's. It raises
    an error for an empty text; here the score is 0.
    """
    predicted, referred = _sentences(prediction), _sentences(reference)
    if not predicted or not referred:
        return 0.0
    common: set[str] = set()
    for reference_words in referred:
        for words in predicted:
            common |= _common_tokens(reference_words, words)
    recall = len(common) / len({word for words in referred for word in words})
    precision = len(common) / len({word for words in predicted for word in words})
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l_google(prediction: str, reference: str) -> float:
    """ROUGE-L of Google's package `rouge_score`, without stemming.

    Tokens are runs of a-z and 0-9 after lower case. P = LCS / prediction, R = LCS / reference, F = 2PR / (P + R).

    >>> round(rouge_l_google("The cat sat.", "the cat sat on the mat"), 3)
    0.667
    """
    predicted, referred = (_NOT_ALPHANUMERIC.sub(" ", text.lower()).split() for text in (prediction, reference))
    length = _lcs_table(referred, predicted)[-1][-1]
    if not length:
        return 0.0
    precision, recall = length / len(predicted), length / len(referred)
    return 2 * precision * recall / (precision + recall)


def rouge_l_coco(prediction: str, references: Sequence[str]) -> float:
    """ROUGE-L of MSCOCO captions (pycocoevalcap), with the largest P and the largest R over the references.

    F = (1 + b^2) PR / (R + b^2 P) with b = 1.2. Tokens end at white space: the official pipeline runs the texts
    through the tokeniser of the Penn Treebank before, which lowers them and drops punctuation. pycocoevalcap counts
    an empty text, and the place between two spaces, as a token; here they are none.

    Raises:
        ValueError: if there are no references, or a single string is given for them.

    >>> round(rouge_l_coco("the cat sat", ["the cat sat on the mat"]), 3)
    0.629
    """
    if isinstance(references, str) or not len(references):
        raise ValueError(f"references: need a list with at least one string, got {references!r}")
    predicted = prediction.split()
    tokens = [reference.split() for reference in references]
    lengths = [_lcs_table(words, predicted)[-1][-1] for words in tokens]
    if not any(lengths):
        return 0.0
    precision = max(lengths) / len(predicted)
    recall = max(length / len(words) for length, words in zip(lengths, tokens, strict=True) if words)
    square = 1.2**2
    return (1 + square) * precision * recall / (recall + square * precision)


def _sentences(text: str) -> list[list[str]]:
    """The package keeps a sentence of white space, and counts an empty token in it."""
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def _lcs_table(first: Sequence[str], second: Sequence[str]) -> list[list[int]]:
    """Lengths of the longest common subsequences of all prefixes; shape (len(first) + 1, len(second) + 1)."""
    table = [[0] * (len(second) + 1)]
    for word in first:
        above, row = table[-1], [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if word == other else max(above[column + 1], row[column]))
        table.append(row)
    return table


def _common_tokens(reference: Sequence[str], words: Sequence[str]) -> set[str]:
    """The different tokens of one longest common subsequence, of several the one that `rouge` 1.0.1 finds."""
    table, tokens = _lcs_table(reference, words), set()
    row, column = len(reference), len(words)
    while row and column:
        if reference[row - 1] == words[column - 1]:
            row, column = row - 1, column - 1
            tokens.add(reference[row])
        elif table[row - 1][column] > table[row][column - 1]:
            row -= 1
        else:
            column -= 1
    return tokens
