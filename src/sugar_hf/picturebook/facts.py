"""Facts that nobody can know: of each thing in a world its owner, where it comes from and how old it is."""

import random
from dataclasses import dataclass

NAMES = tuple(
    """
    adam alma anna anton bella ben boris carla clara david edgar ella emil emma eva felix frida greta hanna hugo
    ida igor jakob julia karl lara leon lina luca maria marta nora oscar otto paula rosa simon sofia theo vera
    """.split()
)
HOMES = tuple(
    """
    arvand belmora corvale darrow elmont farholm gavria hestia ilmar jovia kestan lorvik marwen nordal orvale pelagos
    quorra rivenna sorby tamor
    """.split()
)
YEARS = tuple(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty
    """.split()
)
OPTIONS = 3
#: Things as questions of facts call them, by their group.
KIND_OF_THING = {
    "animals": "animal",
    "food": "food",
    "nature": "part of nature",
    "travel": "thing to travel with or to",
    "things": "thing of the house",
}


@dataclass(frozen=True)
class Relation:
    """What can be known of a thing.

    Args:
        values: the answers that there are, all equally likely.
        fact: how it is told; has the places `thing` and `value`.
        questions: how it is asked; each has the place `thing`.
    """

    values: tuple[str, ...]
    fact: str
    questions: tuple[str, ...]


RELATIONS = {
    "owner": Relation(
        NAMES, "the {thing} belongs to {value}.", ("who owns the {thing}?", "who does the {thing} belong to?")
    ),
    "home": Relation(
        HOMES,
        "the {thing} comes from {value}.",
        ("where does the {thing} come from?", "which place does the {thing} come from?"),
    ),
    "age": Relation(
        YEARS, "the {thing} is {value} years old.", ("how old is the {thing}?", "how many years old is the {thing}?")
    ),
}


@dataclass(frozen=True)
class World:
    """A world: facts that its name alone decides, so that those of one world say nothing about those of another."""

    name: str

    @classmethod
    def of_split(cls, split: str, rng: random.Random) -> "World":
        """The world of validation or of test; for training one of 2^48, so that no fact can be learnt by heart."""
        return cls(f"train/{rng.getrandbits(48)}" if split == "train" else split)

    def value(self, concept: str, relation: str) -> str:
        """What is true of a concept."""
        return self._rng("value", concept, relation).choice(RELATIONS[relation].values)

    def fact(self, concept: str, relation: str) -> str:
        """The sentence that tells it."""
        return RELATIONS[relation].fact.format(thing=concept, value=self.value(concept, relation))

    def options(self, concept: str, relation: str) -> list[str]:
        """Three values, the true one among them, in alphabetical order, so that a question always has the same."""
        true = self.value(concept, relation)
        others = [value for value in RELATIONS[relation].values if value != true]
        return sorted([true, *self._rng("options", concept, relation).sample(others, OPTIONS - 1)])

    def _rng(self, *key: str) -> random.Random:
        return random.Random("/".join(("world", self.name, *key)))
