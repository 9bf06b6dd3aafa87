"""Open questions about one picture, as the benchmarks of comprehension have them.

The answers are words, what a sign says, or a description. Those that are chosen, from yes and no or from options, are
in `closed_questions`.
"""

from dataclasses import replace
from random import Random
from typing import Any

from sugar_hf.picturebook.names import SYNONYMS, spoken
from sugar_hf.picturebook.scenes import PLACES, Item, Scene, caption
from sugar_hf.picturebook.signs import SIGN, draw_text

from .closed_questions import draw_choice, draw_circular, draw_object, draw_yes_no
from .crowds import COUNTS, draw_crowd, sign_of, single, things
from .described_facts import facts_of
from .exercise import Draw, Exercise
from .relations import OPPOSITE, SPATIAL, WORDS, article, counted, decoy, related, unique

UNANSWERABLE = "unanswerable"
SAY_SO = "\nif the picture does not tell, say unanswerable."
BACKGROUND = ("which colour is the background?", "what is the background colour?")
#: How many of ten people call a thing by its other name, or a place by its second one.
OTHERS = {"name": 3, "place": 4}


def answers_of(answer: str) -> list[str]:
    """What ten people answer: most of them this, some of them another name of the thing or of the place."""
    if answer in SYNONYMS:
        return [answer] * (10 - OTHERS["name"]) + [SYNONYMS[answer]] * OTHERS["name"]
    for first, second in PLACES:
        if answer == first:
            return [first] * (10 - OTHERS["place"]) + [second] * OTHERS["place"]
    return [answer] * 10


def _asked(name: str, scene: Scene, question: str, answer: str, **info: Any) -> Exercise:
    return Exercise(name, (scene, question), answer, info)


# ---- open questions ----


def draw_open(rng: Random, split: str) -> Exercise:
    """Draw one of six kinds: what, where, how many, background, size, yes or no.

    `info` has `answers`, those of ten people, and `answer_type`: `yes/no`, `number` or `other`.
    """
    form = rng.choice(("what", "where", "how many", "background", "size", "yes/no"))
    often = form == "how many" and rng.random() < 0.5
    size = rng.choice((4, 5)) if often else rng.randint(2, 5)
    scene = draw_crowd(rng, split, count=size, repeats=often, sign=False if form == "how many" else None)
    item = rng.choice(things(scene))
    name = spoken(item.concept, rng)
    kind = "other"
    if form == "what":
        question, answer = f"what is {rng.choice(PLACES[item.place])}?", item.concept
    elif form == "where":
        question, answer = f"where is the {name}?", PLACES[item.place][0]
    elif form == "how many":
        kind, question, answer = "number", "how many things are there?", COUNTS[size]
        if often:
            concept, times = counted(things(scene), rng)
            question, answer = f"how often is there {article(concept)}?", COUNTS[times]
    elif form == "background":
        question, answer = rng.choice(BACKGROUND), scene.background
    elif form == "size":
        question, answer = f"is the {name} small or large?", item.size
    else:
        present = rng.random() < 0.5
        concept = item.concept if present else decoy(scene, rng)
        kind, question, answer = "yes/no", f"is there {article(concept)}?", "yes" if present else "no"
    return _asked("open", scene, question, answer, answers=answers_of(answer), answer_type=kind)


# ---- relations ----

COMPOSITIONAL = ("relation", "relation", "chain", "attribute", "verify", "verify", "logic", "negation")


def draw_compositional(rng: Random, split: str) -> Exercise:
    """Draw a question that needs one or two steps from thing to thing, or the word not.

    `info` has `kind`: `open`, or `binary` if the answer is yes or no.
    """
    form = rng.choice(COMPOSITIONAL)
    while True:
        scene = draw_crowd(rng, split, count=rng.choice((3, 3, 4, 5)), sign=False)
        found = _compose(form, scene, rng)
        if found is not None:
            question, answer = found
            kind = "binary" if answer in ("yes", "no") else "open"
            return _asked("compositional", scene, question, answer, kind=kind)


def _compose(form: str, scene: Scene, rng: Random) -> tuple[str, str] | None:
    """Question and answer, if the scene has what the form asks for."""
    items = things(scene)
    steps = unique(items)
    if form == "relation" and steps:
        thing, relation, other = rng.choice(steps)
        return f"what is {WORDS[relation]} the {other.concept}?", thing.concept
    if form == "chain":
        chains = [(a, b) for a in steps for b in steps if a[0] == b[2] and a[1] in SPATIAL and b[0] != a[2]]
        if chains:
            (_, first, start), (end, second, _) = rng.choice(chains)
            return f"what is {WORDS[second]} the thing {WORDS[first]} the {start.concept}?", end.concept
    if form == "attribute" and (near := [step for step in steps if step[1] in SPATIAL]):
        thing, relation, other = rng.choice(near)
        place = f"the thing {WORDS[relation]} the {other.concept}"
        if rng.random() < 0.5:
            return f"is {place} small or large?", thing.size
        return f"where is {place}?", PLACES[thing.place][0]
    if form == "verify":
        return _verify(items, rng)
    if form == "logic":
        return _logic(scene, rng)
    if form == "negation":
        if rng.random() < 0.5:
            return _verify(items, rng, negated=True)
        size = rng.choice(("small", "large"))
        others = [item for item in items if item.size != size]
        if len(others) == 1:
            return f"which thing is not {size}?", others[0].concept
    return None


def _verify(items: list[Item], rng: Random, negated: bool = False) -> tuple[str, str] | None:
    """Whether one thing stands so to another; if not, it is the other way round."""
    if not (found := list(related(items))):
        return None
    thing, relation, other = rng.choice(found)
    is_true = rng.random() < 0.5
    asked = WORDS[relation if is_true else OPPOSITE[relation]]
    word = "not " if negated else ""
    return f"is the {thing.concept} {word}{asked} the {other.concept}?", "yes" if is_true != negated else "no"


def _logic(scene: Scene, rng: Random) -> tuple[str, str]:
    word, is_true = rng.choice(("and", "or")), rng.random() < 0.5
    present = {("and", True): 2, ("and", False): 1, ("or", True): 1, ("or", False): 0}[word, is_true]
    names = [item.concept for item in rng.sample(things(scene), present)]
    while len(names) < 2:
        name = decoy(scene, rng)
        if name not in names:
            names.append(name)
    first, second = rng.sample(names, 2)
    return f"is there {article(first)} {word} {article(second)}?", "yes" if is_true else "no"


# ---- what cannot be answered ----


def draw_unanswerable(rng: Random, split: str) -> Exercise:
    """Draw a question that the picture answers, or, as often and in the same words, one that it does not.

    `info` has `answers`, those of ten people, and `answer_type`: `other` or `unanswerable`.
    """
    form, known = rng.choice(("what", "where", "size", "sign")), rng.random() < 0.5
    scene = draw_crowd(rng, split, sign=known if form == "sign" else None)
    item = rng.choice(things(scene))
    name = item.concept if known else decoy(scene, rng)
    sign = sign_of(scene)
    if form == "what":
        place = item.place if known else rng.choice([place for place in range(9) if scene.at(place) is None])
        question, answer = f"what is {rng.choice(PLACES[place])}?", name
    elif form == "where":
        question, answer = f"where is the {name}?", PLACES[item.place][0]
    elif form == "size":
        question, answer = f"is the {name} small or large?", item.size
    else:
        question, answer = "what does the sign say?", sign.text if sign else ""
    answer = answer if known else UNANSWERABLE
    kind = "other" if known else UNANSWERABLE
    return _asked("unanswerable", scene, question + SAY_SO, answer, answers=answers_of(answer), answer_type=kind)


# ---- signs ----


def draw_reading(rng: Random, split: str) -> Exercise:
    """Draw a question of what a sign says, at times of one of two signs. `info` has `answers`, of ten people."""
    scene = draw_crowd(rng, split, sign=True)
    sign = next(item for item in scene.items if item.text)
    question = rng.choice(("what does the sign say?", "what is written on the sign?"))
    if rng.random() < 0.4:
        # the second one shares neither row nor column, so that both pairs of words fit
        places = [p for p in range(9) if scene.at(p) is None and p % 3 != sign.place % 3 and p // 3 != sign.place // 3]
        if places:
            text = sign.text
            while text == sign.text:
                text = draw_text(rng)
            other = Item(SIGN, "large", rng.choice(places), text)
            scene = replace(scene, items=(*scene.items, other))
            side = "sign on the left" if sign.place % 3 < other.place % 3 else "sign on the right"
            level = "upper sign" if sign.place < other.place else "lower sign"
            question = f"what does the {rng.choice((side, level))} say?"
    return _asked("reading", scene, question, sign.text, answers=answers_of(sign.text))


# ---- descriptions ----


def draw_detail(rng: Random, split: str) -> Exercise:
    """Draw a request for a description of two or three things. `info` has the scene's `facts`."""
    scene = draw_crowd(rng, split, count=rng.choice((2, 3)), sign=False)
    question = rng.choice(("describe the picture in detail.", "tell all that you see in the picture."))
    return _asked("detail", scene, question, caption(scene, rng), facts=sorted(facts_of(scene)))


# ---- several abilities at once ----

MIXED = {
    "thing and size": ("rec", "spat"),
    "sign and background": ("ocr", "rec"),
    "sign and place": ("ocr", "spat"),
    "sign and number": ("ocr", "math"),
    "numbers by size": ("rec", "math"),
    "numbers by side": ("rec", "spat", "math"),
}


def draw_mixed(rng: Random, split: str) -> Exercise:
    """Draw a question of two parts, which need two abilities or three between them.

    `info` has `capability`, by MM-Vet's names, and `parts`: for each part of the answer, in order, what is right.
    """
    form = rng.choice(tuple(MIXED))
    with_sign = form.startswith("sign")
    scene = draw_crowd(rng, split, count=rng.choice((3, 4, 5)), sign=with_sign)
    items, sign = things(scene), sign_of(scene)
    item = rng.choice(single(scene))
    text = sign.text if sign else ""
    parts: list[list[str]]
    if form == "thing and size":
        question = f"what is {PLACES[item.place][0]}, and is it small or large?"
        names = [item.concept, SYNONYMS[item.concept]] if item.concept in SYNONYMS else [item.concept]
        parts = [names, [item.size]]
    elif form == "sign and background":
        question = "what does the sign say, and which colour is the background?"
        parts = [[text], [scene.background]]
    elif form == "sign and place":
        question = "what does the sign say, and where is it?"
        parts = [[text], list(PLACES[sign.place]) if sign else []]
    elif form == "sign and number":
        question = "what does the sign say, and how many other things are there?"
        parts = [[text], [COUNTS[len(items)]]]
    elif form == "numbers by size":
        question = "how many things are small, and how many are large?"
        parts = [[_number(sum(item.size == size for item in items))] for size in ("small", "large")]
    else:
        question = f"how many things are to the left of the {item.concept}, and how many to the right of it?"
        column = item.place % 3
        left, right = (sum(way * (other.place % 3) < way * column for other in items) for way in (1, -1))
        parts = [[_number(left)], [_number(right)]]
    answer = ", ".join(part[0] for part in parts)
    return _asked("mixed", scene, question, answer, parts=parts, capability=list(MIXED[form]))


def _number(count: int) -> str:
    return COUNTS[count] if count else "none"


EXERCISES: dict[str, Draw] = {
    "open": draw_open,
    "compositional": draw_compositional,
    "unanswerable": draw_unanswerable,
    "choice": draw_choice,
    "reading": draw_reading,
    "object": draw_object,
    "yes_no_pair": draw_yes_no,
    "circular": draw_circular,
    "detail": draw_detail,
    "mixed": draw_mixed,
}
