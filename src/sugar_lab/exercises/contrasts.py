"""Pairs of scenes that differ in one respect, with words that tell one from the other."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.names import GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, Item, Scene, belongs, join
from sugar_hf.picturebook.signs import CHARACTERS
from sugar_hf.picturebook.stories import free_place, swap

from .crowds import COUNTS, draw_crowd, things

#: How a near copy differs from its scene.
CHANGES = ("places", "thing", "background")
#: What the second caption of a reordering has exchanged.
REORDERINGS = ("things", "sizes", "places")


@dataclass(frozen=True)
class Contrast:
    """Two scenes and two texts; the first text is true of the first scene alone, the second of the second.

    Args:
        kind: in what they differ.
        scenes: the scenes.
        texts: what tells them apart, as noun phrases without a full stop.
    """

    kind: str
    scenes: tuple[Scene, Scene]
    texts: tuple[str, str]


Drawn = tuple[Scene, Scene, str, str]


def near_copy(scene: Scene, rng: random.Random, split: str) -> Scene:
    """Draw a scene that is like another one but for a change, one of `CHANGES`.

    The change is `places`, the same things elsewhere; `thing`, one of them replaced by another one of its group; or
    `background`, another colour. Both scenes belong to the split.
    """
    while True:
        # the change, too, is drawn anew: some scenes have no copy with a certain one in their split
        change = rng.choice(CHANGES)
        if change == "places":
            places = rng.sample(range(9), len(scene.items))
            items = tuple(replace(item, place=place) for item, place in zip(scene.items, places, strict=True))
            copy = replace(scene, items=items)
        elif change == "thing":
            copy = _replaced(scene, rng.choice(things(scene)), rng)
        else:
            copy = replace(scene, background=_other_colour(scene, rng))
        if copy != scene and fits(copy, split):
            return replace(copy, look=rng.getrandbits(31))


def fits(scene: Scene, split: str) -> bool:
    """True if a scene may stand in a split; as in crowds, signs and repetitions make no combination."""
    kinds = {item.concept: item for item in things(scene)}
    return belongs([replace(scene, items=tuple(kinds.values()))], split)


def draw_contrast(rng: random.Random, split: str, kind: str | None = None) -> Contrast:
    """Draw two pictures that are the same but for one difference, as in MMVP.

    Args:
        rng: draws.
        split: the split that both belong to.
        kind: one of `DIFFERENCES`; drawn if None.

    Raises:
        ValueError: for another kind.
    """
    if kind is not None and kind not in DIFFERENCES:
        raise ValueError(f"no difference {kind!r}; choose one of {', '.join(DIFFERENCES)}")
    kind = kind or rng.choice(tuple(DIFFERENCES))
    while True:
        first, second, of_first, of_second = DIFFERENCES[kind](rng, split)
        if fits(first, split) and fits(second, split):
            break
    if rng.random() < 0.5:
        first, second, of_first, of_second = second, first, of_second, of_first
    return Contrast(kind, (first, second), (of_first, of_second))


def draw_reordering(rng: random.Random, split: str, kind: str | None = None) -> Contrast:
    """Draw two scenes whose descriptions have the same words in another order, as in Winoground.

    Args:
        rng: draws.
        split: the split that both belong to.
        kind: what is exchanged, one of `REORDERINGS`; drawn if None.

    Raises:
        ValueError: for another kind.
    """
    if kind is not None and kind not in REORDERINGS:
        raise ValueError(f"nothing exchanges {kind!r}; choose one of {', '.join(REORDERINGS)}")
    kind = kind or rng.choice(REORDERINGS)
    scene = draw_crowd(rng, split, count=2, sign=False)
    sizes = rng.sample(("small", "large"), 2)
    one, two = (replace(item, size=size) for item, size in zip(scene.items, sizes, strict=True))
    if kind == "things":
        items = replace(one, concept=two.concept), replace(two, concept=one.concept)
    elif kind == "sizes":
        items = replace(one, size=two.size), replace(two, size=one.size)
    else:
        items = replace(one, place=two.place), replace(two, place=one.place)
    names = {item.place: rng.choice(PLACES[item.place]) for item in (one, two)}  # the same in both texts

    def told(pair: tuple[Item, Item]) -> str:
        return " and ".join(f"a {item.size} {item.concept} {names[item.place]}" for item in pair)

    scenes = replace(scene, items=(one, two)), replace(scene, items=items, look=rng.getrandbits(31))
    return Contrast(kind, scenes, (told((one, two)), told(items)))


def draw_contrasts(
    draw: Callable[[random.Random, str, str | None], Contrast], kind: str, split: str, size: int, seed: int = 0
) -> list[Contrast]:
    """Draw contrasts of one kind; the same ones on every machine.

    Args:
        draw: `draw_contrast` or `draw_reordering`.
        kind: which kind.
        split: `train`, `validation` or `test`.
        size: how many; the first ones do not depend on it.
        seed: another seed gives other ones.
    """
    name = f"{draw.__name__}/{kind}/{split}/{seed}"
    return [draw(random.Random(f"pairs/{name}/{number}"), split, kind) for number in range(size)]


# ---- the differences. Scenes keep their look, and their things the order, so that nothing else moves ----


def _presence(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split, sign=False)
    kept, gone = rng.sample(scene.items, 2)
    fewer = tuple(item for item in scene.items if item != gone)
    texts = f"{_named(kept)} and {_named(gone)}", f"{_named(kept)} but no {gone.concept}"
    return replace(scene, items=(*fewer, gone)), replace(scene, items=fewer), *texts


def _count(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split, rng.randint(2, 5), repeats=rng.random() < 0.5, sign=False)
    return scene, replace(scene, items=scene.items[:-1]), _counted(len(scene.items)), _counted(len(scene.items) - 1)


def _size(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split)
    item = rng.choice(things(scene))
    other = replace(item, size="large" if item.size == "small" else "small")
    texts = f"a {item.size} {item.concept}", f"a {other.size} {item.concept}"
    return scene, replace(scene, items=swap(scene, item, other)), *texts


def _place(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split)
    item = rng.choice(things(scene))
    other = replace(item, place=free_place(scene, rng))
    return scene, replace(scene, items=swap(scene, item, other)), _placed(item, rng), _placed(other, rng)


def _relation(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split, rng.randint(2, 4), sign=False)
    across = rng.random() < 0.5
    rows = rng.randrange(3), rng.randrange(3)
    # one thing lies in the middle column (or row), the other one on either side of it
    moved, fixed = [3 * rows[0], 3 * rows[0] + 2], 3 * rows[1] + 1
    if not across:
        moved, fixed = [rows[0], rows[0] + 6], rows[1] + 3
    free = [place for place in range(9) if place not in (*moved, fixed)]
    places = [moved[0], fixed, *rng.sample(free, len(scene.items) - 2)]
    items = tuple(replace(item, place=place) for item, place in zip(scene.items, places, strict=True))
    one, two = items[:2]
    wheres = ("left of", "right of") if across else ("above", "below")
    first, second = (f"{_named(one)} {where} {_named(two)}" for where in wheres)
    other = (replace(one, place=moved[1]), *items[1:])
    return replace(scene, items=items), replace(scene, items=other), first, second


def _background(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split)
    other = replace(scene, background=_other_colour(scene, rng))
    item = rng.choice(things(scene))
    first, second = (f"{_named(item)} on a {each.background} background" for each in (scene, other))
    return scene, other, first, second


def _text(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split, sign=True)
    sign = scene.items[-1]
    number = rng.randrange(len(sign.text))
    letter = rng.choice([character for character in CHARACTERS if character != sign.text[number]])
    other = replace(sign, text=sign.text[:number] + letter + sign.text[number + 1 :])
    texts = f"a sign that says {sign.text}", f"a sign that says {other.text}"
    return scene, replace(scene, items=swap(scene, sign, other)), *texts


def _order(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split, 3, sign=False)
    line, across = rng.randrange(3), rng.random() < 0.5
    places = [3 * line + number if across else 3 * number + line for number in range(3)]
    items = [replace(item, place=place) for item, place in zip(scene.items, places, strict=True)]
    i, j = rng.sample(range(3), 2)
    other = list(items)
    other[i], other[j] = replace(items[i], place=places[j]), replace(items[j], place=places[i])
    where = "from left to right" if across else "from top to bottom"
    first, second = (
        f"{join([_named(item) for item in sorted(each, key=lambda item: item.place)])} {where}"
        for each in (items, other)
    )
    return replace(scene, items=tuple(items)), replace(scene, items=tuple(other)), first, second


def _kind(rng: random.Random, split: str) -> Drawn:
    scene = draw_crowd(rng, split)
    item = rng.choice(things(scene))
    other = _replaced(scene, item, rng)
    where = rng.choice(PLACES[item.place])
    first, second = (f"{_named(each)} {where}" for each in (item, other.at(item.place) or item))
    return scene, other, first, second


#: Draws two scenes of each difference, with their texts; the second scene may lie outside the split.
DIFFERENCES: dict[str, Callable[[random.Random, str], Drawn]] = {
    "presence": _presence,
    "count": _count,
    "size": _size,
    "place": _place,
    "relation": _relation,
    "background": _background,
    "text": _text,
    "order": _order,
    "kind": _kind,
}


def _named(item: Item) -> str:
    return f"{item.article()} {item.concept}"


def _placed(item: Item, rng: random.Random) -> str:
    return f"{_named(item)} {rng.choice(PLACES[item.place])}"


def _counted(number: int) -> str:
    return f"{COUNTS[number]} {'thing' if number == 1 else 'things'}"


def _other_colour(scene: Scene, rng: random.Random) -> str:
    return rng.choice([name for name in BACKGROUNDS if name != scene.background])


def _replaced(scene: Scene, item: Item, rng: random.Random) -> Scene:
    """The scene with another thing of the item's group in its stead."""
    present = {each.concept for each in scene.items}
    group = GROUP_OF[item.concept]
    concept = rng.choice([name for name in CONCEPTS if GROUP_OF[name] == group and name not in present])
    return replace(scene, items=swap(scene, item, replace(item, concept=concept)))
