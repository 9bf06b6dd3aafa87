"""Stories and processes.

In a story things move, appear, leave and change from frame to frame. The frames of a process have nothing in common
but their order.
"""

import random
from dataclasses import dataclass, replace

from .glyphs import CONCEPTS
from .scenes import BACKGROUNDS, PLACES, Item, Scene, belongs, caption, draw_scene, join

ORDINALS = ("first", "then", "next", "after that", "later", "at last")


@dataclass(frozen=True)
class Story:
    """Frames in order, each a picture and the sentence that belongs to it."""

    kind: str  # "story" or "process"
    frames: tuple[Scene, ...]
    sentences: tuple[str, ...]


def free_place(scene: Scene, rng: random.Random) -> int:
    """Draw a place of the grid on which nothing stands."""
    taken = {item.place for item in scene.items}
    return rng.choice([place for place in range(9) if place not in taken])


def swap(scene: Scene, old: Item, new: Item | None) -> tuple[Item, ...]:
    """Return the scene's items with one replaced, or taken away."""
    kept = [new if item == old else item for item in scene.items]
    return tuple(item for item in kept if item is not None)


def next_frame(scene: Scene, rng: random.Random) -> tuple[Scene, str]:
    """One event: the scene that follows, and the sentence that tells only what happens."""
    events = ["move", "move", "background", "size"]
    if len(scene.items) < 3:
        events += ["appear", "appear", "appear"]
    if len(scene.items) > 1:
        events += ["leave"]
    event, item = rng.choice(events), rng.choice(scene.items)
    scene = replace(scene, look=rng.getrandbits(31))
    if event == "move":
        place = free_place(scene, rng)
        verb = rng.choice(("moves", "goes", "jumps"))
        to = (
            rng.choice(PLACES[place])
            .replace("at the", "to the")
            .replace("in the", "to the")
            .replace("on the", "to the")
        )
        # "to the top to the middle" would be the outcome for the two long names of the middle column
        to = to.replace(" to the middle", " in the middle") if to.count("to the") > 1 else to
        return replace(scene, items=swap(scene, item, replace(item, place=place))), f"the {item.concept} {verb} {to}."
    if event == "background":
        colour = rng.choice([name for name in BACKGROUNDS if name != scene.background])
        verb = rng.choice(("turns", "becomes"))
        return replace(scene, background=colour), f"the background {verb} {colour}."
    if event == "size":
        size, verb = ("large", "grows") if item.size == "small" else ("small", "shrinks")
        return replace(scene, items=swap(scene, item, replace(item, size=size))), f"the {item.concept} {verb}."
    if event == "leave":
        verb = rng.choice(("leaves", "goes away", "disappears"))
        return replace(scene, items=swap(scene, item, None)), f"the {item.concept} {verb}."
    present = {item.concept for item in scene.items}
    concept = rng.choice([name for name in rng.sample(CONCEPTS, 4) if name not in present])
    new = Item(concept, rng.choice(("small", "large")), free_place(scene, rng))
    verb = rng.choice(("appears", "arrives", "comes"))
    where = rng.choice(PLACES[new.place])
    return replace(scene, items=(*scene.items, new)), f"a {new.size} {new.concept} {verb} {where}."


def draw_story(rng: random.Random, split: str, length: int | None = None) -> Story:
    """Draw a story of `length` (3 to 6) frames: the first sentence describes, the others tell what happens."""
    while True:
        frames = [draw_scene(rng, rng.choice((1, 2)))]
        sentences = [caption(frames[0], rng)]
        for _ in range((length or rng.randint(3, 6)) - 1):
            frame, sentence = next_frame(frames[-1], rng)
            frames.append(frame)
            sentences.append(sentence)
        if belongs(frames, split):
            return Story("story", tuple(frames), tuple(sentences))


def draw_process(rng: random.Random, split: str, length: int | None = None) -> Story:
    """Draw a process of `length` (3 to 6) frames: unrelated things in an order that the sentences name."""
    while True:
        count = length or rng.randint(3, 6)
        frames = [draw_scene(rng, rng.choice((1, 1, 2))) for _ in range(count)]
        if belongs(frames, split):
            break
    sentences = []
    for index, frame in enumerate(frames):
        things = join([f"{item.article()} {item.concept}" for item in frame.items])
        order = ORDINALS[0] if index == 0 else ORDINALS[-1] if index == count - 1 else ORDINALS[index]
        sentences.append(f"{order}, {things} on {frame.background}.")
    return Story("process", tuple(frames), tuple(sentences))
