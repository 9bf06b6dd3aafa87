"""An exercise: a prompt of texts and scenes, and what should be said."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sugar_hf.data import image_part, text_part
from sugar_hf.picturebook.scenes import Scene
from sugar_hf.picturebook.world import encode

Part = str | Scene
#: Draws an exercise of a split.
Draw = Callable[[random.Random, str], "Exercise"]


@dataclass(frozen=True)
class Exercise:
    """A question.

    Args:
        kind: which kind of exercise.
        parts: the prompt: texts, and scenes to be drawn as pictures, in reading order.
        answer: what should be said.
        info: what a metric needs beside the answer: choices, type, and so on; JSON values.
    """

    kind: str
    parts: tuple[Part, ...]
    answer: str
    info: Mapping[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """The exercise as a row of training: one turn of the user, one of the assistant.

        Returns:
            `messages` and `images` in the common schema of `sugar_hf.data`.
        """
        content = [text_part(part) if isinstance(part, str) else image_part() for part in self.parts]
        answer = {"role": "assistant", "content": [text_part(self.answer)]}
        return {
            "messages": [{"role": "user", "content": content}, answer],
            "images": [encode(part) for part in self.parts if isinstance(part, Scene)],
        }


def draw_many(draw: Draw, kind: str, split: str, size: int, seed: int = 0) -> list[Exercise]:
    """Draw exercises; the same ones on every machine.

    Args:
        draw: draws one.
        kind: names the generator: each exercise has its own, so that the first ones do not depend on `size`.
        split: `train`, `validation` or `test`.
        size: how many.
        seed: another seed gives other ones.
    """
    return [draw(random.Random(f"exercise/{kind}/{split}/{seed}/{number}"), split) for number in range(size)]
