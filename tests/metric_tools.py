"""Random texts from words that hit the traps of answer normalisation."""

import random
from collections.abc import Sequence

TRAPS = (
    "the a an A The no No yes Yes not know none zero two Ten 10 3.5 1,000 1,,2 7. .5 ... red,blue red-ball t-shirt "
    "dog dogs dog's dont don't Im ive shed've she'dve yall'd've somebody'd 'ow's'at ' \" '' it's? what! (b) [x] a/b "
    "\\ _ : :3 ; , . ? ! @home été naïve 猫 ＡＢ İ ß \u00a0 B. C: (A) :D :E. D). answer image b a"
)
WORDS = TRAPS.split(" ")  # not at the no-break space


def random_texts(count: int, seed: int, words: Sequence[str] = WORDS, longest: int = 6) -> list[str]:
    """Texts of up to `longest` words, some of them empty, with single and double spaces, tabs and line breaks."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        text = ""
        for word in draw.choices(words, k=draw.randint(0, longest)):
            text += word + draw.choice([" ", " ", " ", " ", "  ", "\t", "\n", ""])
        texts.append(text)
    return texts
