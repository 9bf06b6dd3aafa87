"""What a text says of a scene: things, sizes, places and the background."""

import re

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.names import SYNONYMS
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, SIZES, Scene

NAMES = {name: name for name in CONCEPTS} | {other: name for name, other in SYNONYMS.items()}
PLACE_OF = {phrase: place for place, phrases in enumerate(PLACES) for phrase in phrases}


def _any_of(phrases: list[str]) -> str:
    """A pattern for one of the phrases, the longest that fits."""
    return "|".join(re.escape(phrase) for phrase in sorted(phrases, key=len, reverse=True))


_THING = re.compile(rf"\b(?:({'|'.join(SIZES)}) )?({_any_of(list(NAMES))})\b")
_PLACE = re.compile(rf"\b(?:{_any_of(list(PLACE_OF))})\b")
_COLOUR = "|".join(BACKGROUNDS)
_BACKGROUND = re.compile(rf"\b(?:({_COLOUR}) background|background is ({_COLOUR}))\b")


def facts_of(scene: Scene) -> set[str]:
    """All facts of a scene without signs, each as `kind: words`.

    >>> from .scenes import Item
    >>> sorted(facts_of(Scene((Item("cat", "small", 0),), "red")))
    ['background: red', 'place: cat at the top left', 'size: cat small', 'thing: cat']
    """
    facts = {f"background: {scene.background}"}
    for item in scene.items:
        facts |= {
            f"thing: {item.concept}",
            f"size: {item.concept} {item.size}",
            f"place: {item.concept} {PLACES[item.place][0]}",
        }
    return facts


def facts_in(text: str) -> set[str]:
    """The facts that a text states, right or wrong ones.

    A thing is any name of a concept, or its synonym; its size is the word before it, its place the first place that
    is named before the next thing. The background is a colour in `a red background` or `the background is red`.

    >>> sorted(facts_in("a small plane in the centre and a cat."))
    ['place: airplane in the middle', 'size: airplane small', 'thing: airplane', 'thing: cat']
    """
    text = " ".join(text.lower().split())
    facts = {f"background: {found[1] or found[2]}" for found in _BACKGROUND.finditer(text)}
    mentions = list(_THING.finditer(text))
    for number, mention in enumerate(mentions):
        end = mentions[number + 1].start() if number + 1 < len(mentions) else len(text)
        name = NAMES[mention[2]]
        facts.add(f"thing: {name}")
        if mention[1]:
            facts.add(f"size: {name} {mention[1]}")
        if place := _PLACE.search(text, mention.end(), end):
            facts.add(f"place: {name} {PLACES[PLACE_OF[place[0]]][0]}")
    return facts


def fact_f1(said: set[str], true: set[str]) -> float:
    """F1 of the facts that are said, 0..1; 0 if none are right, and 1 if there are none and none are said.

    >>> fact_f1({"thing: cat", "thing: dog"}, {"thing: cat"})
    0.6666666666666666
    """
    return 2 * len(said & true) / (len(said) + len(true)) if said or true else 1.0
