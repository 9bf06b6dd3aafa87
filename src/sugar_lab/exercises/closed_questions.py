"""Questions about one picture whose answer is chosen: yes or no, or the letter of an option."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from sugar_hf.picturebook.names import GROUP_NOUN, GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, Item, Scene
from sugar_hf.picturebook.signs import CHARACTERS

from .crowds import COUNTS, POPULAR, absent, draw_crowd, sign_of, single, things
from .exercise import Exercise
from .relations import OPPOSITE, SPATIAL, WORDS, article, counted, decoy, decoys, related, unique

LETTERS = "ABCDE"

# ---- things that are there or not ----

ABSENT = ("random", "popular", "adversarial")


def draw_object(rng: Random, split: str, category: str | None = None) -> Exercise:
    """Draw a question whether a thing is in the picture.

    `info` has `category`: which things may be absent, `random`, `popular` or `adversarial` ones. In `popular` only
    popular things are asked for, whether they are there or not, elsewhere none, so that the name tells nothing.
    """
    category = category or rng.choice(ABSENT)
    present = rng.random() < 0.5
    while True:
        scene = draw_crowd(rng, split, count=rng.choice((3, 4, 5)))
        concept = rng.choice(single(scene)).concept if present else absent(scene, rng, category)
        if (concept in POPULAR) == (category == "popular"):
            break
    question = f"is there {article(concept)} in the picture?"
    return Exercise("object", (scene, question), "yes" if present else "no", {"category": category})


# ---- pairs of yes and no ----

PERCEPTION = ("existence", "count", "position", "color", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation")
MORE = ("small things than large ones", "large things than small ones")
TIMES = {2: "twice", 3: "three times", 4: "four times"}


def draw_yes_no(rng: Random, split: str) -> Exercise:
    """Draw one of the two questions of a pair."""
    return rng.choice(draw_yes_no_pair(rng, split))


def draw_yes_no_pair(rng: Random, split: str, subtask: str | None = None) -> tuple[Exercise, Exercise]:
    """Draw two questions about one picture, first the one that is answered by yes.

    `info` has `category`, one of the subtasks of MME.

    Raises:
        ValueError: for a subtask that is not among `PERCEPTION` and `COGNITION`.
    """
    subtask = subtask or rng.choice(PERCEPTION + COGNITION)
    if subtask not in _PAIRS:
        raise ValueError(f"no subtask {subtask!r}; there are {', '.join(_PAIRS)}")
    scene, yes, no = _PAIRS[subtask](rng, split)
    info = {"category": subtask}
    return (
        Exercise("yes_no_pair", (scene, yes), "yes", info),
        Exercise("yes_no_pair", (scene, no), "no", info),
    )


def _existence(rng: Random, split: str) -> tuple[Scene, str, str]:
    scene = draw_crowd(rng, split)
    here, away = article(rng.choice(things(scene)).concept), article(decoy(scene, rng))
    if rng.random() < 0.3:
        # "no" stands before a name without its article
        here, away = (name.split(" ", 1)[1] for name in (here, away))
        return scene, f"is there no {away}?", f"is there no {here}?"
    return scene, f"is there {here}?", f"is there {away}?"


def _count(rng: Random, split: str) -> tuple[Scene, str, str]:
    # right and wrong numbers are drawn alike, so that the number alone tells nothing
    if rng.random() < 0.5:
        scene = draw_crowd(rng, split, count=rng.choice((4, 5)), repeats=True, sign=False)
        names = [item.concept for item in things(scene)]
        concept = max(names, key=names.count)
        right = names.count(concept)
        wrong = rng.choice([number for number in TIMES if number != right])
        return scene, f"is the {concept} there {TIMES[right]}?", f"is the {concept} there {TIMES[wrong]}?"
    right, wrong = rng.sample((2, 3, 4, 5), 2)
    scene = draw_crowd(rng, split, count=right, sign=False)
    return scene, f"are there {COUNTS[right]} things?", f"are there {COUNTS[wrong]} things?"


def _position(rng: Random, split: str) -> tuple[Scene, str, str]:
    if rng.random() < 0.5:
        scene = draw_crowd(rng, split)
        item = rng.choice(things(scene))
        other = rng.choice([thing for thing in scene.items if thing is not item])
        right, wrong = rng.choice(PLACES[item.place]), rng.choice(PLACES[other.place])
        return scene, f"is the {item.concept} {right}?", f"is the {item.concept} {wrong}?"
    while True:
        scene = draw_crowd(rng, split)
        if found := [row for row in related(things(scene)) if row[1] in SPATIAL]:
            first, relation, second = rng.choice(found)
            right, wrong = WORDS[relation], WORDS[OPPOSITE[relation]]
            ends = f"the {second.concept}?"
            return scene, f"is the {first.concept} {right} {ends}", f"is the {first.concept} {wrong} {ends}"


def _color(rng: Random, split: str) -> tuple[Scene, str, str]:
    scene = draw_crowd(rng, split)
    other = rng.choice([name for name in BACKGROUNDS if name != scene.background])
    return scene, f"is the background {scene.background}?", f"is the background {other}?"


def _ocr(rng: Random, split: str) -> tuple[Scene, str, str]:
    """The wrong text differs in one character."""
    scene = draw_crowd(rng, split, sign=True)
    sign = sign_of(scene)
    text = sign.text if sign else ""
    place = rng.randrange(len(text))
    other = rng.choice([character for character in CHARACTERS if character != text[place]])
    wrong = text[:place] + other + text[place + 1 :]
    return scene, f"does the sign say {text}?", f"does the sign say {wrong}?"


def _commonsense(rng: Random, split: str) -> tuple[Scene, str, str]:
    scene = draw_crowd(rng, split)
    item = rng.choice(things(scene))
    group = GROUP_OF[item.concept]
    others = sorted({GROUP_OF[thing.concept] for thing in things(scene)} - {group})
    wrong = rng.choice(others or [name for name in GROUP_NOUN if name != group])
    asked = f"is the thing {PLACES[item.place][0]}"
    return scene, f"{asked} {GROUP_NOUN[group]}?", f"{asked} {GROUP_NOUN[wrong]}?"


def _calculation(rng: Random, split: str) -> tuple[Scene, str, str]:
    if rng.random() < 0.5:
        more = rng.choice((1, 2))
        right, wrong = rng.sample(range(2 + more, 6), 2)
        scene = draw_crowd(rng, split, count=right - more, sign=False)
        asked = f"with {COUNTS[more]} more, are there"
        return scene, f"{asked} {COUNTS[right]} things?", f"{asked} {COUNTS[wrong]} things?"
    while True:
        scene = draw_crowd(rng, split, count=rng.choice((3, 4, 5)), sign=False)
        small = sum(item.size == "small" for item in things(scene))
        large = len(things(scene)) - small
        if small != large:
            more_small, more_large = (f"are there more {ends}?" for ends in MORE)
            return (scene, more_small, more_large) if small > large else (scene, more_large, more_small)


_PAIRS = {
    "existence": _existence,
    "count": _count,
    "position": _position,
    "color": _color,
    "OCR": _ocr,
    "commonsense_reasoning": _commonsense,
    "numerical_calculation": _calculation,
}

# ---- options ----


def lettered(options: Sequence[str]) -> str:
    """Options, each on a line with its letter.

    >>> lettered(["red", "blue"])
    'A. red\\nB. blue'
    """
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def _choose(name: str, scene: Scene, question: str, options: list[str], right: str, category: str) -> Exercise:
    info = {"question": question, "options": options, "category": category}
    return Exercise(name, (scene, f"{question}\n{lettered(options)}"), LETTERS[options.index(right)], info)


def _filled(rng: Random, scene: Scene, here: list[str], size: int) -> list[str]:
    """Wrong options: things that are there, and if they do not suffice, others that might be."""
    chosen = rng.sample(here, min(size, len(here)))
    return chosen + decoys(scene, rng, size - len(chosen))


def draw_choice(rng: Random, split: str) -> Exercise:
    """Draw a question with three to five options.

    `info` has `question`, `options` and `category`: `presence`, `absence`, `place`, `where` or `group`.
    """
    form, size = rng.choice(("presence", "absence", "place", "where", "group")), rng.choice((3, 4, 5))
    while True:
        scene = draw_crowd(rng, split, count=rng.randint(size - 1, 5) if form == "absence" else None, sign=False)
        items = things(scene)
        item = rng.choice(items)
        others = [thing for thing in items if thing is not item]
        names = [thing.concept for thing in others]
        right, question = item.concept, ""
        if form == "presence":
            question, wrong = "which of these is in the picture?", decoys(scene, rng, size - 1)
        elif form == "absence":
            question, right = "which of these is not in the picture?", decoy(scene, rng)
            wrong = [thing.concept for thing in rng.sample(items, size - 1)]
        elif form == "place":
            question, wrong = f"what is {rng.choice(PLACES[item.place])}?", _filled(rng, scene, names, size - 1)
        elif form == "where":
            question, right = f"where is the {item.concept}?", PLACES[item.place][0]
            wrong = _places(rng, item, others, size - 1)
        else:
            group = GROUP_OF[item.concept]
            question = f"what in the picture is {GROUP_NOUN[group]}?"
            if group in {GROUP_OF[name] for name in names}:
                continue
            # some are there but of another group, the others of the group but not there
            wrong = rng.sample(names, rng.randint(1, min(size - 2, len(names))))
            while len(wrong) < size - 1:
                name = decoy(Scene((item,), scene.background), rng)
                if GROUP_OF[name] == group and scene.find(name) is None and name not in wrong:
                    wrong.append(name)
        options = rng.sample([right, *wrong], size)
        return _choose("choice", scene, question, options, right, form)


def _places(rng: Random, item: Item, others: list[Item], size: int) -> list[str]:
    """Wrong places: those of the other things, and if they do not suffice, empty ones."""
    taken = [other.place for other in others]
    empty = [place for place in range(9) if place != item.place and place not in taken]
    chosen = rng.sample(taken, min(size, len(taken)))
    return [PLACES[place][0] for place in chosen + rng.sample(empty, size - len(chosen))]


CIRCULAR = ("localization", "attributes", "relation", "count", "background")


def draw_circular(rng: Random, split: str) -> Exercise:
    """Draw a question with four options, which can be turned round: see `rotations`.

    `info` has `question`, `options` and `category`, one of `CIRCULAR`.
    """
    form = rng.choice(CIRCULAR)
    often = form == "count" and rng.random() < 0.5
    while True:
        count = rng.choice((4, 5)) if often else rng.randint(2, 5) if form == "count" else rng.choice((3, 4, 5))
        scene = draw_crowd(rng, split, count=count, repeats=often, sign=False)
        items = things(scene)
        item = rng.choice(items)
        if form == "localization":
            question, right = f"what is {rng.choice(PLACES[item.place])}?", item.concept
            wrong = _filled(rng, scene, [thing.concept for thing in items if thing is not item], 3)
        elif form == "attributes":
            first, second = (thing.concept for thing in rng.sample(items, 2))
            sizes = {thing.concept: thing.size for thing in items}
            pairs = [(one, two) for one in ("small", "large") for two in ("small", "large")]
            phrases = {pair: f"a {pair[0]} {first} and a {pair[1]} {second}" for pair in pairs}
            question, right = "what does the picture show?", phrases.pop((sizes[first], sizes[second]))
            wrong = list(phrases.values())
        elif form == "relation":
            if not (found := unique(items)):
                continue
            thing, relation, other = rng.choice(found)
            question, right = f"what is {WORDS[relation]} the {other.concept}?", thing.concept
            wrong = _filled(rng, scene, [it.concept for it in items if it.concept not in (right, other.concept)], 3)
        elif form == "count" and often:
            concept, times = counted(items, rng)
            question, right = f"how often is there {article(concept)}?", COUNTS[times]
            wrong = [COUNTS[number] for number in range(1, 5) if COUNTS[number] != right]
        elif form == "count":
            question, right = "how many things are there?", COUNTS[count]
            wrong = [COUNTS[number] for number in range(2, 6) if number != count]
        else:
            question, right = "which colour is the background?", scene.background
            wrong = rng.sample([name for name in BACKGROUNDS if name != right], 3)
        return _choose("circular", scene, question, rng.sample([right, *wrong], 4), right, form)


def rotations(exercise: Exercise) -> list[Exercise]:
    """The same question with its options in each order that turning them round gives, first as it is."""
    options = list(exercise.info["options"])
    right = options[LETTERS.index(exercise.answer)]
    scene, question = exercise.parts[0], exercise.info["question"]
    turned = []
    for start in range(len(options)):
        order = options[start:] + options[:start]
        parts = (scene, f"{question}\n{lettered(order)}")
        info = {**exercise.info, "options": order}
        turned.append(replace(exercise, parts=parts, answer=LETTERS[order.index(right)], info=info))
    return turned
