"""Other names of concepts, and the groups that they belong to."""

import random

from .glyphs import GROUPS

#: Of each concept that has one, another name that people use.
SYNONYMS = {
    "airplane": "plane",
    "ambulance": "rescue car",
    "aubergine": "eggplant",
    "automobile": "car",
    "bathtub": "bath",
    "bicycle": "bike",
    "broom": "besom",
    "bucket": "pail",
    "candy": "sweet",
    "coat": "jacket",
    "doughnut": "donut",
    "eyeglasses": "glasses",
    "ferry": "ferryboat",
    "handbag": "bag",
    "hedgehog": "urchin",
    "hippopotamus": "hippo",
    "honeybee": "bee",
    "hut": "cabin",
    "jeans": "trousers",
    "luggage": "suitcase",
    "necktie": "tie",
    "package": "parcel",
    "pig": "hog",
    "rabbit": "bunny",
    "rhinoceros": "rhino",
    "rooster": "cock",
    "sailboat": "yacht",
    "ship": "vessel",
    "skunk": "polecat",
    "television": "tv",
    "wrench": "spanner",
}
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
#: A thing of a group, as questions call it.
GROUP_NOUN = {
    "animals": "an animal",
    "food": "something to eat",
    "nature": "a part of nature",
    "travel": "something to travel with or to",
    "things": "a thing of the house",
}


def spoken(concept: str, rng: random.Random, share: float = 0.15) -> str:
    """A concept's name, now and then its other one."""
    return SYNONYMS[concept] if concept in SYNONYMS and rng.random() < share else concept
