"""Facts that nobody can know: of each thing in a world its owner, where it comes from and how old it is."""

import random
from dataclasses import dataclass

_NAMES = """
    adam alma anna anton bella ben boris carla clara david edgar ella emil emma eva felix frida greta hanna hugo
    ida igor jakob julia karl lara leon lina luca maria marta nora oscar otto paula rosa simon sofia theo vera
"""
_HOMES = """
    arvand belmora corvale darrow elmont farholm gavria hestia ilmar jovia kestan lorvik marwen nordal orvale pelagos
    quorra rivenna sorby tamor
"""
_YEARS = """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty
"""
NAMES, HOMES, YEARS = (tuple(words.split()) for words in (_NAMES, _HOMES, _YEARS))
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
        questions: how it is asked; each has the place `thing`.
    """

    values: tuple[str, ...]
    questions: tuple[str, ...]


#: What facts tell.
RELATIONS = {
    "owner": Relation(NAMES, ("who owns the {thing}?", "who does the {thing} belong to?")),
    "home": Relation(HOMES, ("where does the {thing} come from?", "which place does the {thing} come from?")),
    "age": Relation(YEARS, ("how old is the {thing}?", "how many years old is the {thing}?")),
}
FACTS = {
    "owner": "the {thing} belongs to {value}.",
    "home": "the {thing} comes from {value}.",
    "age": "the {thing} is {value} years old.",
}
#: What is asked with options, which are the same for all things and so give none away.
CHOICES = {
    "team": Relation(("sun", "moon", "star"), ("which team is the {thing} in?", "what is the team of the {thing}?")),
    "season": Relation(
        ("spring", "summer", "winter"), ("in which season is the {thing} sold?", "when is the {thing} sold?")
    ),
    "day": Relation(
        ("monday", "friday", "sunday"), ("on which day is the {thing} cleaned?", "when is the {thing} cleaned?")
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
        rng = random.Random(f"world/{self.name}/{concept}/{relation}")
        return rng.choice((RELATIONS | CHOICES)[relation].values)

    def fact(self, concept: str, relation: str) -> str:
        """The sentence that tells it."""
        return FACTS[relation].format(thing=concept, value=self.value(concept, relation))
