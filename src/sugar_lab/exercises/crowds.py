"""Fuller scenes than the stories have: up to five things, several of one kind, and signs."""

import random

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.names import GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, SIZES, Item, Scene, split_of
from sugar_hf.picturebook.signs import SIGN, draw_text

#: Things that are drawn more often than others, as some things are in photographs.
POPULAR = tuple(sorted(CONCEPTS)[::12])
POPULAR_SHARE = 0.25
COUNTS = ("no", "one", "two", "three", "four", "five")


def draw_concept(rng: random.Random) -> str:
    """Draw a concept, popular ones more often."""
    return rng.choice(POPULAR) if rng.random() < POPULAR_SHARE else rng.choice(CONCEPTS)


def draw_crowd(
    rng: random.Random, split: str, count: int | None = None, repeats: bool = False, sign: bool | None = None
) -> Scene:
    """Draw a scene of 2 to 5 things that belongs to a split.

    As for other scenes, those of training hold no combination that is kept for validation or test, and those of the
    others hold at least one of their own and none of the other's.

    Args:
        rng: draws.
        split: `train`, `validation` or `test`.
        count: how many things; 2 to 5 if not given.
        repeats: let one concept occur two to four times.
        sign: whether one of the things is a sign; drawn, one in four, if not given.
    """
    other = {"train": None, "validation": "test", "test": "validation"}[split]
    while True:
        size = count or rng.choice((2, 3, 3, 4, 5))
        background = rng.choice(tuple(BACKGROUNDS))
        has_sign = rng.random() < 0.25 if sign is None else sign
        kinds: list[str] = []
        found: set[str] = set()
        for _ in range(60):
            if len(kinds) == size - has_sign:
                break
            concept = draw_concept(rng)
            splits = {split_of(concept, known) for known in (*kinds, background)}
            if concept in kinds or (splits != {"train"} if split == "train" else other in splits):
                continue
            kinds.append(concept)
            found |= splits
        if len(kinds) < size - has_sign or (split != "train" and split not in found):
            continue
        if repeats and len(kinds) > 1:
            times = rng.randint(2, min(4, len(kinds)))
            kinds = [kinds[0]] * times + kinds[times:]
        places = rng.sample(range(9), size)
        items = [Item(name, rng.choice(tuple(SIZES)), place) for name, place in zip(kinds, places, strict=False)]
        if has_sign:
            items.append(Item(SIGN, "large", places[-1], draw_text(rng)))
        if split != "train" and not _holds(items, background, split):
            continue  # repeating a thing has thrown the combination out
        return Scene(tuple(items), background, rng.getrandbits(31))


def things(scene: Scene) -> list[Item]:
    """The items of a scene that are no signs, in reading order."""
    return sorted((item for item in scene.items if not item.text), key=lambda item: item.place)


def sign_of(scene: Scene) -> Item | None:
    """The sign of a scene, if there is one."""
    return next((item for item in scene.items if item.text), None)


def single(scene: Scene) -> list[Item]:
    """The things that are the only ones of their kind."""
    names = [item.concept for item in things(scene)]
    return [item for item in things(scene) if names.count(item.concept) == 1]


def absent(scene: Scene, rng: random.Random, kind: str = "random") -> str:
    """Draw a concept that is not in a scene.

    Args:
        scene: the scene.
        rng: draws.
        kind: `random`; `popular`, one of those that occur often; `adversarial`, one of the group of a thing that is
            there.

    Raises:
        ValueError: for another kind.
    """
    present = {item.concept for item in scene.items}
    if kind == "random":
        pool = list(CONCEPTS)
    elif kind == "popular":
        pool = list(POPULAR)
    elif kind == "adversarial":
        group = GROUP_OF[rng.choice(things(scene)).concept]
        pool = [name for name in CONCEPTS if GROUP_OF[name] == group]
    else:
        raise ValueError(f"no kind {kind!r} of absent things; choose random, popular or adversarial")
    return rng.choice([name for name in pool if name not in present])


def _holds(items: list[Item], background: str, split: str) -> bool:
    names = sorted({item.concept for item in items if not item.text})
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]] + [(name, background) for name in names]
    return any(split_of(*pair) == split for pair in pairs)
