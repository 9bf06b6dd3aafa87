"""Exercises as the pieces that the mini VLM's recipe trains on."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

from sugar_hf.picturebook.scenes import Scene, render_array

from ..exercises import Draw, Exercise
from .vlm_recipe import IMAGE_TOKENS, Picture, Piece


def pieces(exercise: Exercise) -> list[Piece]:
    """An exercise in the form of the mini models' chat template, its answer to be learnt.

    Each picture is followed by a newline, and so is a text that another text follows. Spaces around the texts are
    dropped but for those before a picture, as `SugarProcessor` does.
    """
    found: list[Piece] = []
    text = "USER: "
    for index, part in enumerate(exercise.parts):
        before = exercise.parts[index - 1] if index else None
        following = exercise.parts[index + 1] if index + 1 < len(exercise.parts) else None
        if isinstance(part, Scene):
            found += [(text, False)] if text else []
            found.append(Picture(render_array(part)))
            text = "\n"
        else:
            text += "\n" if isinstance(before, str) else ""
            text += part.lstrip() if isinstance(following, Scene) else part.strip()
    return [*found, (f"{text} ASSISTANT:", False), (f" {exercise.answer}</s>", True)]


class Mixed:
    """Draws one exercise of some kinds, each as often as the others, as pieces."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.draws = tuple(draws)

    def __call__(self, rng: random.Random) -> list[Piece]:
        return pieces(rng.choice(self.draws)(rng, "train"))


def by_length(exercises: Mapping[str, Draw], groups: int, probes: int = 8) -> list[Mixed]:
    """Sort kinds of exercises into groups of similar length, so that a batch of one group holds little padding.

    Args:
        exercises: what draws each kind.
        groups: how many groups; they hold equally many kinds, but for one.
        probes: exercises of each kind whose lengths are looked at.
    """

    def length(kind: str) -> float:
        drawn = [exercises[kind](random.Random(f"length/{kind}/{i}"), "train") for i in range(probes)]
        return sum(
            IMAGE_TOKENS if isinstance(part, Scene) else len(part.split())
            for exercise in drawn
            for part in (*exercise.parts, exercise.answer)
        )

    kinds = sorted(exercises, key=lambda kind: (length(kind), kind))
    cuts = [round(i * len(kinds) / groups) for i in range(groups + 1)]
    chunks = [kinds[a:b] for a, b in pairwise(cuts) if a < b]
    return [Mixed([exercises[kind] for kind in chunk]) for chunk in chunks]
