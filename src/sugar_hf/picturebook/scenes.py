"""Scenes: one to three glyphs on a 3x3 grid over a coloured background, their pictures, captions and questions."""

import random
import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
from PIL import Image

from .glyphs import CONCEPTS, sprites
from .signs import SIGN_PIXELS, plate

SCENE_PIXELS = 96
CELL_PIXELS = SCENE_PIXELS // 3
SIZES = {"small": 20, "large": 28}  # pixels
JITTER = 2  # a glyph lies up to this many pixels off the middle of its cell
BACKGROUNDS = {
    "white": (245, 245, 240),
    "black": (35, 35, 40),
    "grey": (150, 150, 150),
    "red": (205, 75, 70),
    "yellow": (235, 215, 95),
    "green": (105, 175, 95),
    "blue": (85, 130, 205),
    "purple": (150, 100, 185),
}
PLACES = (
    ("at the top left", "in the top left corner"),
    ("at the top", "at the top in the middle"),
    ("at the top right", "in the top right corner"),
    ("on the left", "at the left edge"),
    ("in the middle", "in the centre"),
    ("on the right", "at the right edge"),
    ("at the bottom left", "in the bottom left corner"),
    ("at the bottom", "at the bottom in the middle"),
    ("at the bottom right", "in the bottom right corner"),
)
SPLITS = ("train", "validation", "test")
HELD_OUT_SHARE = 10  # one combination in this many is kept for each of validation and test


@dataclass(frozen=True)
class Item:
    """A glyph in a scene: which concept, `small` or `large`, and the cell 0..8 in reading order. A sign has a text."""

    concept: str
    size: str
    place: int
    text: str = ""

    def article(self) -> str:
        return "an" if self.concept[0] in "aeiou" else "a"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `look` seeds what no caption says: the jitter of the glyphs and the shade."""

    items: tuple[Item, ...]
    background: str
    look: int = 0

    def at(self, place: int) -> Item | None:
        return next((item for item in self.items if item.place == place), None)

    def find(self, concept: str) -> Item | None:
        return next((item for item in self.items if item.concept == concept), None)


@cache
def split_of(first: str, second: str) -> str:
    """The split that a pair (of concepts, or of a concept and a background) belongs to, fixed for all time."""
    bucket = zlib.crc32("+".join(sorted((first, second))).encode()) % HELD_OUT_SHARE
    return ("test", "validation")[bucket] if bucket < 2 else "train"


def splits_of(scene: Scene) -> set[str]:
    """The splits of all combinations in a scene: pairs of concepts, and each concept with the background."""
    concepts = [item.concept for item in scene.items]
    pairs = [*combinations(concepts, 2), *((concept, scene.background) for concept in concepts)]
    return {split_of(*pair) for pair in pairs}


def belongs(scenes: list[Scene], split: str) -> bool:
    """Return whether these scenes may stand in a split.

    Training scenes hold no held-out combination. Test (and validation) scenes hold at least one of their own and none
    of the other's.
    """
    found = set().union(*(splits_of(scene) for scene in scenes))
    return found == {"train"} if split == "train" else split in found and found <= {"train", split}


def random_scene(rng: random.Random, split: str, count: int | None = None) -> Scene:
    """Draw a scene of `count` (1 to 3) different concepts that belongs to a split."""
    while True:
        scene = draw_scene(rng, count)
        if belongs([scene], split):
            return scene


def draw_scene(rng: random.Random, count: int | None = None) -> Scene:
    """Draw a scene without regard to splits."""
    count = count or rng.choice((1, 2, 2, 3))
    concepts, places = rng.sample(CONCEPTS, count), rng.sample(range(9), count)
    items = tuple(Item(c, rng.choice(("small", "large")), p) for c, p in zip(concepts, places, strict=True))
    return Scene(items, rng.choice(tuple(BACKGROUNDS)), rng.getrandbits(31))


def render_array(scene: Scene) -> np.ndarray:
    """Draw a scene as uint8 RGB of shape (96, 96, 3)."""
    rng = random.Random(scene.look)
    shade = rng.uniform(-12, 12)
    canvas = np.empty((SCENE_PIXELS, SCENE_PIXELS, 3), dtype=np.float32)
    canvas[:] = np.asarray(BACKGROUNDS[scene.background], dtype=np.float32) + shade
    for item in scene.items:
        if item.text:
            glyph, pixels = plate(item.text), SIGN_PIXELS
        else:
            pixels = SIZES[item.size]
            glyph = sprites(pixels)[CONCEPTS.index(item.concept)]
        margin = (CELL_PIXELS - pixels) // 2
        jitter = min(JITTER, margin)
        top = item.place // 3 * CELL_PIXELS + margin + rng.randint(-jitter, jitter)
        left = item.place % 3 * CELL_PIXELS + margin + rng.randint(-jitter, jitter)
        window = canvas[top : top + pixels, left : left + pixels]
        alpha = glyph[..., 3:]
        window += alpha * (glyph[..., :3] - window)
    return canvas.clip(0, 255).astype(np.uint8)


def render(scene: Scene) -> Image.Image:
    """Draw a scene as a 96 x 96 RGB picture."""
    return Image.fromarray(render_array(scene))


def join(phrases: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def describe_item(item: Item, rng: random.Random, size: bool = True, place: bool = True) -> str:
    """Write an item in words, with its size and place if asked for."""
    noun = f"a {item.size} {item.concept}" if size else f"{item.article()} {item.concept}"
    return f"{noun} {rng.choice(PLACES[item.place])}" if place else noun


def caption(scene: Scene, rng: random.Random, detail: str = "full", shuffle: bool = False) -> str:
    """Put a scene into words.

    Args:
        scene: what to describe.
        rng: chooses the wording and, for `some`, what is told.
        detail: `full` tells size, place and background of everything, `brief` only what is there, `some` a random
            part of the attributes.
        shuffle: name the things in any order instead of reading order.
    """
    size, place = detail == "full", detail == "full"
    if detail == "some":
        size, place = rng.random() < 0.5, rng.random() < 0.5
    background = detail == "full" or (detail == "some" and rng.random() < 0.5)
    items = sorted(scene.items, key=lambda item: item.place)
    if shuffle:
        rng.shuffle(items)
    things = join([describe_item(item, rng, size, place) for item in items])
    if not background:
        return rng.choice(("{}.", "there is {}.", "a picture of {}.")).format(things)
    forms = (
        "{} on a {} background.",
        "on a {1} background there is {0}.",
        "a picture of {} in front of a {} background.",
        "the background is {1}, with {0}.",
    )
    return rng.choice(forms).format(things, scene.background)


def questions(scene: Scene, rng: random.Random) -> list[tuple[str, str, str]]:
    """All kinds of questions about a scene, one of each, as (kind, question, answer).

    Kinds: `what` (by place), `how many`, `where`, `background`, `size`, `yes/no` (present and absent things are
    asked for equally often).
    """
    item = rng.choice(scene.items)
    place = rng.choice(PLACES[item.place])
    present = rng.random() < 0.5
    absent = rng.choice([name for name in rng.sample(CONCEPTS, 5) if scene.find(name) is None])
    asked = replace(item, concept=item.concept if present else absent)
    return [
        ("what", f"what is {place}?", item.concept),
        ("how many", "how many things are there?", ("one", "two", "three")[len(scene.items) - 1]),
        ("where", f"where is the {item.concept}?", PLACES[item.place][0]),
        (
            "background",
            rng.choice(("which colour is the background?", "what is the background colour?")),
            scene.background,
        ),
        ("size", f"is the {item.concept} small or large?", item.size),
        ("yes/no", f"is there {asked.article()} {asked.concept}?", "yes" if present else "no"),
    ]
