"""Exercises of the picturebook: questions of many kinds about its scenes, for training and for tests."""

from importlib import import_module
from importlib.util import find_spec

from .exercise import Draw, Exercise, draw_many

_MODULES = ("comprehension", "interleaved", "pairs", "knowledge")


def all_exercises() -> dict[str, Draw]:
    """What draws exercises of each kind, by the kind's name.

    Raises:
        ValueError: if two modules have a kind of the same name.
    """
    found: dict[str, Draw] = {}
    for name in _MODULES:
        if find_spec(f".{name}", __name__) is None:
            continue
        exercises = import_module(f".{name}", __name__).EXERCISES
        if twice := sorted(found.keys() & exercises.keys()):
            raise ValueError(f"{name} has exercises whose names are taken: {', '.join(twice)}")
        found |= exercises
    return found


__all__ = ["Draw", "Exercise", "all_exercises", "draw_many"]
