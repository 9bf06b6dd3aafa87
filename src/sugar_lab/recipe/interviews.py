"""Many questions about one picture. A picture takes more tokens than an answer: asked once, it teaches little."""

import random
from collections.abc import Callable, Sequence

from sugar_hf.picturebook.names import GROUP_NOUN, GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, Scene, render_array
from sugar_hf.picturebook.signs import draw_text

from ..exercises.closed_questions import LETTERS, lettered
from ..exercises.crowds import COUNTS, absent, draw_crowd, sign_of, single, things
from ..exercises.facts import NAMES
from ..exercises.relations import OPPOSITE, WORDS, article, decoy, decoys, related, unique
from .vlm_recipe import Picture as Drawn
from .vlm_recipe import Piece, chat

TURNS = 8
Turn = tuple[str, str]
Ask = Callable[[Scene, random.Random], Turn | None]


def draw_interview(rng: random.Random) -> list[Piece]:
    """A scene of three to five things, and eight questions about it: yes and no, letters, words."""
    return _draw(rng, _ASKED, TURNS)


def draw_choices(rng: random.Random) -> list[Piece]:
    """The same with questions that have options, which need more examples than others."""
    return _draw(rng, (_options,), TURNS // 2)


def _draw(rng: random.Random, asked: Sequence[Ask], count: int) -> list[Piece]:
    scene = draw_crowd(rng, "train", count=rng.choice((3, 4, 5)), sign=rng.random() < 0.5)
    turns: list[Turn] = []
    while len(turns) < count:
        turn = rng.choice(asked)(scene, rng)
        if turn is not None and turn not in turns:
            turns.append(turn)
    return chat(Drawn(render_array(scene)), turns, scene)


def draw_told(rng: random.Random) -> list[Piece]:
    """Who owns each thing of a scene, in words; then questions by name and by place."""
    scene = draw_crowd(rng, "train", count=rng.choice((2, 3, 4)), sign=False)
    items = things(scene)
    others = decoys(scene, rng, 2)
    owners = dict(zip([*(item.concept for item in items), *others], rng.sample(NAMES, len(items) + 2), strict=True))
    told = rng.sample(sorted(owners), len(owners))
    form = rng.choice(("{1} owns the {0}.", "the {0} belongs to {1}."))
    facts = " ".join(form.format(name, owners[name]) for name in told)
    turns = []
    for item in rng.sample(items, len(items)):
        where = rng.choice(PLACES[item.place])
        thing = f"the {item.concept}" if rng.random() < 0.4 else f"the thing {where}"
        turns.append((f"who owns {thing}?", owners[item.concept]))
    first, *rest = turns
    return chat(Drawn(render_array(scene)), [(f"{facts} {first[0]}", first[1]), *rest], scene)


# ---- questions ----


def _yes_no(rng: random.Random, right: str, wrong: str) -> Turn:
    return (right, "yes") if rng.random() < 0.5 else (wrong, "no")


def _presence(scene: Scene, rng: random.Random) -> Turn:
    here = rng.choice(things(scene)).concept
    away = absent(scene, rng, rng.choice(("random", "popular", "adversarial")))
    end = rng.choice(("", " in the picture"))
    return _yes_no(rng, f"is there {article(here)}{end}?", f"is there {article(away)}{end}?")


def _negated(scene: Scene, rng: random.Random) -> Turn:
    return _yes_no(rng, f"is there no {decoy(scene, rng)}?", f"is there no {rng.choice(things(scene)).concept}?")


def _place(scene: Scene, rng: random.Random) -> Turn:
    item, other = rng.sample(scene.items, 2) if len(scene.items) > 1 else (scene.items[0], scene.items[0])
    if item.text:
        item, other = other, item
    right, wrong = rng.choice(PLACES[item.place]), rng.choice(PLACES[other.place])
    return _yes_no(rng, f"is the {item.concept} {right}?", f"is the {item.concept} {wrong}?")


def _relation(scene: Scene, rng: random.Random) -> Turn | None:
    if not (found := list(related(things(scene)))):
        return None
    first, relation, second = rng.choice(found)
    right, wrong = (f"is the {first.concept} {WORDS[r]} the {second.concept}?" for r in (relation, OPPOSITE[relation]))
    return _yes_no(rng, right, wrong)


def _who_stands_so(scene: Scene, rng: random.Random) -> Turn | None:
    if not (found := unique(things(scene))):
        return None
    thing, relation, other = rng.choice(found)
    return f"what is {WORDS[relation]} the {other.concept}?", thing.concept


def _background(scene: Scene, rng: random.Random) -> Turn:
    other = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    return _yes_no(rng, f"is the background {scene.background}?", f"is the background {other}?")


def _group(scene: Scene, rng: random.Random) -> Turn:
    item = rng.choice(things(scene))
    group = GROUP_OF[item.concept]
    other = rng.choice([name for name in GROUP_NOUN if name != group])
    asked = f"is the thing {rng.choice(PLACES[item.place])}"
    return _yes_no(rng, f"{asked} {GROUP_NOUN[group]}?", f"{asked} {GROUP_NOUN[other]}?")


def _number(scene: Scene, rng: random.Random) -> Turn:
    count = len(scene.items)
    if rng.random() < 0.5:
        return "how many things are there?", COUNTS[count]
    other = rng.choice([number for number in (2, 3, 4, 5) if number != count])
    return _yes_no(rng, f"are there {COUNTS[count]} things?", f"are there {COUNTS[other]} things?")


def _size(scene: Scene, rng: random.Random) -> Turn:
    item = rng.choice(single(scene))
    return f"is the {item.concept} small or large?", item.size


def _what(scene: Scene, rng: random.Random) -> Turn:
    item = rng.choice(things(scene))
    return f"what is {rng.choice(PLACES[item.place])}?", item.concept


def _sign(scene: Scene, rng: random.Random) -> Turn | None:
    sign = sign_of(scene)
    if sign is None:
        return None
    if rng.random() < 0.6:
        return "what does the sign say?", sign.text
    return _yes_no(rng, f"does the sign say {sign.text}?", f"does the sign say {draw_text(rng)}?")


def _options(scene: Scene, rng: random.Random) -> Turn:
    item = rng.choice(things(scene))
    names = [other.concept for other in things(scene) if other is not item]
    form = rng.choice(("presence", "place", "where"))
    if form == "presence":
        question, right, wrong = "which of these is in the picture?", item.concept, decoys(scene, rng, 3)
    elif form == "place":
        question, right = f"what is {rng.choice(PLACES[item.place])}?", item.concept
        wrong = [*rng.sample(names, min(3, len(names))), *decoys(scene, rng, 3)]
    else:
        question, right = f"where is the {item.concept}?", PLACES[item.place][0]
        wrong = [PLACES[place][0] for place in rng.sample([p for p in range(9) if p != item.place], 3)]
    options = [right, *wrong[: rng.choice((2, 3))]]
    rng.shuffle(options)
    return f"{question}\n{lettered(options)}", LETTERS[options.index(right)]


_ASKED: tuple[Ask, ...] = (
    _presence,
    _presence,
    _negated,
    _place,
    _relation,
    _who_stands_so,
    _background,
    _group,
    _number,
    _size,
    _what,
    _sign,
    _sign,
    _options,
    _options,
)
