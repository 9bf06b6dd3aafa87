"""How two things of a scene lie to each other, and what questions need of it."""

from collections.abc import Iterator
from itertools import permutations
from random import Random

from sugar_hf.picturebook.scenes import Item, Scene

from .crowds import POPULAR_SHARE, absent

WORDS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "bigger": "bigger than",
    "smaller": "smaller than",
}
OPPOSITE = {
    "left": "right",
    "right": "left",
    "above": "below",
    "below": "above",
    "bigger": "smaller",
    "smaller": "bigger",
}
SPATIAL = ("left", "right", "above", "below")


def holds(relation: str, first: Item, second: Item) -> bool:
    """Whether the first thing lies so to the second, or is bigger or smaller.

    Columns and rows of the grid decide: a thing is to the left of all that are in a column further right, whatever
    their rows are.

    Raises:
        ValueError: for another relation.

    >>> holds("above", Item("cat", "small", 0), Item("dog", "small", 8))
    True
    """
    if relation not in OPPOSITE:
        raise ValueError(f"no relation {relation!r}; there are {', '.join(OPPOSITE)}")
    if relation in ("right", "below", "smaller"):
        return holds(OPPOSITE[relation], second, first)
    if relation == "left":
        return first.place % 3 < second.place % 3
    if relation == "above":
        return first.place // 3 < second.place // 3
    return (first.size, second.size) == ("large", "small")


def related(items: list[Item]) -> Iterator[tuple[Item, str, Item]]:
    """All relations that hold between two of the things, in a fixed order."""
    for first, second in permutations(items, 2):
        for relation in OPPOSITE:
            if holds(relation, first, second):
                yield first, relation, second


def unique(items: list[Item]) -> list[tuple[Item, str, Item]]:
    """The relations in which the first thing is the only one that stands so to the second."""
    found = list(related(items))
    times = [(relation, second) for _, relation, second in found]
    return [row for row in found if times.count(row[1:]) == 1]


def decoy(scene: Scene, rng: Random) -> str:
    """Draw a concept that is not there, but might be.

    It is of the group of a thing that is there, and as often a popular one, so that the name alone tells nothing.
    """
    return absent(scene, rng, "popular" if rng.random() < POPULAR_SHARE else "adversarial")


def decoys(scene: Scene, rng: Random, size: int) -> list[str]:
    """Draw several different ones."""
    found: list[str] = []
    while len(found) < size:
        name = decoy(scene, rng)
        if name not in found:
            found.append(name)
    return found


def article(name: str) -> str:
    """The name with its article.

    >>> article("ox")
    'an ox'
    """
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def counted(items: list[Item], rng: Random) -> tuple[str, int]:
    """Draw a concept to be counted, and how often it is there.

    One in four times it is there once, if any is, so that all numbers up to four are about as frequent.
    """
    names = [item.concept for item in items]
    once = [name for name in names if names.count(name) == 1]
    concept = rng.choice(once) if once and rng.random() < 0.25 else max(names, key=names.count)
    return concept, names.count(concept)
