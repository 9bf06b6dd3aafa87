"""Exercises of the picturebook: questions of many kinds about its scenes, for training and for tests."""

from . import comprehension, interleaved, knowledge_exercises, pair_exercises
from .exercise import Draw, Exercise, draw_many


def all_exercises() -> dict[str, Draw]:
    """What draws exercises of each kind, by the kind's name.

    Raises:
        ValueError: if two modules have a kind of the same name.
    """
    found: dict[str, Draw] = {}
    for module in (comprehension, interleaved, pair_exercises, knowledge_exercises):
        if twice := sorted(found.keys() & module.EXERCISES.keys()):
            raise ValueError(f"{module.__name__} has exercises whose names are taken: {', '.join(twice)}")
        found |= module.EXERCISES
    return found


__all__ = ["Draw", "Exercise", "all_exercises", "draw_many"]
