"""The words around a question, as the benchmarks' authors or LLaVA's evaluation have them."""

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
LETTERS = "ABCDEFGHIJ"


def options(choices: list[str]) -> str:
    """Lettered options, each on a line.

    >>> options(["red", "blue"])
    'A. red\\nB. blue'
    """
    return "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
