"""Exercises as the pieces that the mini VLM's recipe trains on."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise

from ..picturebook.exercises import Draw, Exercise
from ..picturebook.glyphs import CONCEPTS
from ..picturebook.recipe.vlm import IMAGE_TOKENS, Picture, Piece
from ..picturebook.scenes import BACKGROUNDS, PLACES, SIZES, Item, Scene, render_array, split_of
from ..picturebook.signs import SIGN, draw_text

BOARD_THINGS, BOARD_SIGNS = 3, 4


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
    """Sort kinds of exercises into groups of like length, so that a batch of one group holds little padding.

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


def draw_signs(rng: random.Random) -> list[Piece]:
    """A scene of several signs and things, all of them asked for: what is written needs many examples to be read."""
    background = rng.choice(tuple(BACKGROUNDS))
    names: list[str] = []
    for name in rng.sample(CONCEPTS, 60):
        if len(names) < BOARD_THINGS and all(split_of(name, other) == "train" for other in (*names, background)):
            names.append(name)
    places = rng.sample(range(9), BOARD_SIGNS + len(names))
    signs = [Item(SIGN, "large", place, draw_text(rng)) for place in places[:BOARD_SIGNS]]
    things = [
        Item(name, rng.choice(tuple(SIZES)), place) for name, place in zip(names, places[BOARD_SIGNS:], strict=True)
    ]
    scene = Scene((*signs, *things), background, rng.getrandbits(31))
    told: list[Piece] = [("USER: ", False), Picture(render_array(scene))]
    opening = "\n"
    for item in rng.sample(scene.items, len(scene.items)):
        where = rng.choice(PLACES[item.place])
        question = f"what does the sign {where} say?" if item.text else f"what is {where}?"
        told += [(f"{opening}{question} ASSISTANT:", False), (f" {item.text or item.concept}</s>", True)]
        opening = "USER: "
    return told
