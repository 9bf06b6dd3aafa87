"""Questions with two choices, as MMVP is asked in the paper: which of two statements fits the picture."""

import random

from .contrasts import draw_contrast
from .exercise import Draw, Exercise

#: The words of the paper's appendix, as `sugar_hf.evaluation.benchmarks.tasks.image_pairs.mmvp_prompt` has them.
TWO_CHOICES = "which choice meets the first image:\nA.{}\nB.{}\n.please answer in A or B"


def draw_two_choice(rng: random.Random, split: str) -> Exercise:
    """Draw a question of any kind of difference; the other statement is true of a picture that is nearly the same."""
    contrast = draw_contrast(rng, split)
    shown, first = rng.randrange(2), rng.randrange(2)  # of the two scenes, and of the two texts
    question = TWO_CHOICES.format(contrast.texts[first], contrast.texts[1 - first])
    answer = "A" if shown == first else "B"
    return Exercise("two_choice", (contrast.scenes[shown], question), answer, {"type": contrast.kind})


EXERCISES: dict[str, Draw] = {"two_choice": draw_two_choice}
