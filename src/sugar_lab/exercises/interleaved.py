"""Exercises with several pictures between texts, twins of the categories of DEMON (arXiv 2308.04152).

`info` has `task`, the task of DEMON whose form and scorer an exercise has, and `choices` where it is to choose among
texts. What an exercise shows belongs to its split as a whole, as a story does: pictures of training hold no held-out
combination, and among those of a test exercise is at least one. Signs count for nothing in that.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.names import GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, SIZES, Item, Scene, belongs, draw_scene, questions
from sugar_hf.picturebook.signs import CHARACTERS, SIGN, draw_text
from sugar_hf.picturebook.stories import draw_story, free_place, next_frame, swap

from .exercise import Draw, Exercise, Part

PEOPLE = ("anna", "ben", "carla", "dan", "eva", "finn", "gina", "hugo")
ORDER = ("first", "second", "third")
NUMBERS = ("none", "one", "two", "three")
IMAGES = ("image a", "image b", "image c", "image d")
GAP = "..."
LONGEST = 80  # words in a prompt


def choice_text(choices: Sequence[str]) -> str:
    """The choices as DEMON lists them behind a question.

    >>> choice_text(["cat", "dog"])
    "Choice list:['cat', 'dog']. Your answer is:"
    """
    listed = "', '".join(choices)
    return f"Choice list:['{listed}']. Your answer is:"


def draw_dialogue(rng: random.Random, split: str) -> Exercise:
    """Turns about two or three pictures, and a question about one that is not the last.

    Nothing said before gives the answer away, and the other pictures have another one: something at the same place,
    or the same thing elsewhere.
    """
    kind = rng.choice(("what", "where", "background"))
    size = rng.choice((2, 3))
    asked = rng.randrange(size - 1)
    while True:
        scenes = [draw_scene(rng, 2) for _ in range(size)]
        item = rng.choice(scenes[asked].items)
        for i in range(size):
            if i != asked and kind == "what":
                scenes[i] = _move_to(scenes[i], item.place, rng)
            if i != asked and kind == "where":
                scenes[i] = _put(scenes[i], item.concept, rng)
        if len({_answer(scene, item, kind) for scene in scenes}) == size and belongs(scenes, split):
            break
    parts: list[Part] = []
    told = ("what", "where", "size") if kind == "background" else ("background",)
    for i, scene in enumerate(scenes):
        names = told if i == asked else ("what", "where", "size", "background")
        _, question, answer = rng.choice([turn for turn in questions(scene, rng) if turn[0] in names])
        parts += [scene, f"question: {question} answer: {answer}."]
    wanted = {
        "what": f"what is {PLACES[item.place][0]}?",
        "where": f"where is the {item.concept}?",
        "background": "which colour is the background?",
    }[kind]
    parts[-1] = f"{parts[-1]} question: in the {ORDER[asked]} picture, {wanted} answer:"
    return Exercise("dialogue", tuple(parts), _answer(scenes[asked], item, kind), {"task": "MMCoQA"})


def draw_storytelling(rng: random.Random, split: str) -> Exercise:
    """A story so far in pictures and sentences, and the next picture: say what happens, in the story's own words."""
    while True:
        story = draw_story(rng, split, rng.choice((2, 3, 4)))
        parts: list[Part] = []
        for frame, sentence in zip(story.frames, (*story.sentences[:-1], "what happens now?"), strict=True):
            parts += [frame, sentence]
        if _words(parts) <= LONGEST:
            return Exercise("storytelling", tuple(parts), story.sentences[-1], {"task": "VIST"})


def draw_relation(rng: random.Random, split: str) -> Exercise:
    """Two pictures that differ in one thing, beside what no caption says: say what has changed."""
    while True:
        before = draw_scene(rng, rng.choice((2, 3, 4)))
        after, sentence = next_frame(before, rng)
        if belongs([before, after], split):
            parts = ("before:", before, "now:", after, "what has changed?")
            return Exercise("relation", parts, sentence, {"task": "CLEVR-Change"})


def draw_cloze(rng: random.Random, split: str) -> Exercise:
    """A story that lacks a sentence or its last picture, to be chosen among four."""
    return (_sentence_cloze if rng.random() < 0.5 else _picture_cloze)(rng, split)


def draw_knowledge(rng: random.Random, split: str) -> Exercise:
    """Facts that hold in this exercise alone, and pictures: who owns the thing that is shown?"""
    while True:
        people, owned = rng.sample(PEOPLE, 4), _akin(rng.choice(CONCEPTS), 4, rng)
        order = rng.sample(range(4), 4)
        form = rng.choice(("picture", "pictures", "place"))
        shown = owned[:1] if form == "picture" else owned[:2]
        scenes = [_scene(shown, rng)] if form == "place" else [_scene([concept], rng) for concept in shown]
        if belongs(scenes, split):
            break
    asked = rng.randrange(len(shown))
    verb = rng.choice(("owns", "likes"))
    facts = " ".join(f"{people[i]} {verb} the {owned[i]}." for i in order)
    if form == "place":
        thing = f"the thing {PLACES[scenes[0].items[asked].place][0]}"
    else:
        thing = "the thing in the picture" if form == "picture" else f"the thing in the {ORDER[asked]} picture"
    pictures = _numbered(scenes) if form == "pictures" else scenes
    return _choose("knowledge", (facts, *pictures), f"who {verb} {thing}?", people[asked], people, rng, "MultiModalQA")


def draw_text_rich(rng: random.Random, split: str) -> Exercise:
    """Two or three pictures with a sign each: read the one that is asked for.

    To choose from are its text and the one of another sign, each once more with one character changed.
    """
    size = rng.choice((2, 3))
    while True:
        scenes = [draw_scene(rng, rng.choice((1, 2))) for _ in range(size)]
        kinds = [item.concept for scene in scenes for item in scene.items]
        if len(set(kinds)) == len(kinds) and belongs(scenes, split):
            break
    while True:
        texts = [draw_text(rng) for _ in range(size)]
        order = rng.sample(range(size), 2)
        choices = [texts[i] for i in order] + [_misread(texts[i], rng) for i in order]
        if len({*texts, *choices}) == size + 2:
            break
    asked = order[0]
    signed = []
    for scene, text in zip(scenes, texts, strict=True):
        sign = Item(SIGN, "large", free_place(scene, rng), text)
        signed.append(replace(scene, items=(*scene.items, sign)))
    item = rng.choice(scenes[asked].items)
    picture = rng.choice((f"the {ORDER[asked]} picture", f"the picture with the {item.concept}"))
    question = f"what does the sign in {picture} say?"
    return _choose("text_rich", _numbered(signed), question, texts[asked], choices, rng, "SlideVQA")


def draw_reasoning(rng: random.Random, split: str) -> Exercise:
    """Several pictures: which one shows a thing, how many do, or whether two show the same things."""
    return rng.choice((_which, _how_many, _same))(rng, split)


def _which(rng: random.Random, split: str) -> Exercise:
    right = rng.randrange(3)
    item, scenes = _with_and_without(rng, split, [i == right for i in range(3)])
    question = f"in which picture is there {item.article()} {item.concept}?"
    return _choose("reasoning", _numbered(scenes), question, ORDER[right], ORDER, rng, "NLVR2")


def _how_many(rng: random.Random, split: str) -> Exercise:
    count = rng.randrange(4)
    where = rng.sample(range(3), count)
    item, scenes = _with_and_without(rng, split, [i in where for i in range(3)])
    question = f"how many pictures show {item.article()} {item.concept}?"
    return _choose("reasoning", _numbered(scenes), question, NUMBERS[count], NUMBERS, rng, "NLVR2")


def _same(rng: random.Random, split: str) -> Exercise:
    same = rng.random() < 0.5
    while True:
        first = draw_scene(rng, rng.choice((2, 3)))
        kinds = [item.concept for item in first.items]
        if not same:
            lost = rng.randrange(len(kinds))
            kinds[lost] = _akin(kinds[lost], 2, rng, without=kinds)[1]
        scenes = [first, _scene(kinds, rng)]
        if belongs(scenes, split):
            break
    question = "do both pictures show the same things?"
    return _choose("reasoning", _numbered(scenes), question, "yes" if same else "no", ("yes", "no"), rng, "NLVR2")


def _with_and_without(rng: random.Random, split: str, shown: Sequence[bool]) -> tuple[Item, list[Scene]]:
    """Draw a thing, and pictures of two things that show it or something of its group."""
    while True:
        item = Item(rng.choice(CONCEPTS), "large", 0)
        akin = _akin(item.concept, len(shown) + 1, rng)[1:]
        scenes = [
            _put(draw_scene(rng, 2), item.concept if here else other, rng)
            for here, other in zip(shown, akin, strict=True)
        ]
        found = [scene.find(item.concept) is not None for scene in scenes]
        if found == list(shown) and belongs(scenes, split):
            return item, scenes


def _sentence_cloze(rng: random.Random, split: str) -> Exercise:
    while True:
        story = draw_story(rng, split, 3)
        missing = rng.choice((1, 2))
        choices = _ways_on(story.frames[missing - 1], story.frames[missing], story.sentences[missing], rng)
        parts: list[Part] = []
        for i, (frame, sentence) in enumerate(zip(story.frames, story.sentences, strict=True)):
            parts += [frame, GAP if i == missing else sentence]
        answer = story.sentences[missing]
        options = [sentence for _, sentence in choices]
        question = f"{parts.pop()} which sentence is missing?"
        exercise = _choose("cloze", parts, question, answer, options, rng, "RecipeQA_TextCloze")
        if belongs([*story.frames, *(scene for scene, _ in choices)], split) and _words(exercise.parts) <= LONGEST:
            return exercise


def _picture_cloze(rng: random.Random, split: str) -> Exercise:
    while True:
        story = draw_story(rng, split, 2)
        candidates = [scene for scene, _ in _ways_on(story.frames[0], story.frames[1], story.sentences[1], rng)]
        if belongs([story.frames[0], *candidates], split):
            break
    rng.shuffle(candidates)
    parts: list[Part] = [story.frames[0], f"{' '.join(story.sentences)} which image comes next?"]
    for name, scene in zip(IMAGES, candidates, strict=True):
        parts += [f"{name}:", scene]
    parts.append("Your answer is:")
    answer = IMAGES[candidates.index(story.frames[1])]
    return Exercise("cloze", tuple(parts), answer, {"task": "RecipeQA_VisualCloze"})


def _ways_on(scene: Scene, follows: Scene, sentence: str, rng: random.Random) -> list[tuple[Scene, str]]:
    """What follows a scene, and three other things that could: no two alike in what they show or in their words.

    All are drawn in the same way, so that nothing but the pictures tells which one is right.
    """
    found = [(follows, sentence)]
    while len(found) < 4:
        way = next_frame(scene, rng)
        alike = (_content(way[0]) == _content(known) or _bag(way[1]) == _bag(told) for known, told in found)
        if not any(alike):
            found.append(way)
    return found


def _choose(
    kind: str,
    parts: Sequence[Part],
    question: str,
    answer: str,
    choices: Sequence[str],
    rng: random.Random,
    task: str,
) -> Exercise:
    """An exercise whose answer is one of some texts, in any order."""
    listed = rng.sample(choices, len(choices))
    return Exercise(kind, (*parts, f"{question} {choice_text(listed)}"), answer, {"task": task, "choices": listed})


def _numbered(scenes: Sequence[Scene]) -> list[Part]:
    return [part for name, scene in zip(ORDER, scenes, strict=False) for part in (f"{name}:", scene)]


def _scene(kinds: Sequence[str], rng: random.Random) -> Scene:
    """A scene of just these things."""
    places = rng.sample(range(9), len(kinds))
    items = [Item(concept, rng.choice(tuple(SIZES)), place) for concept, place in zip(kinds, places, strict=True)]
    return Scene(tuple(items), rng.choice(tuple(BACKGROUNDS)), rng.getrandbits(31))


def _akin(concept: str, size: int, rng: random.Random, without: Sequence[str] = ()) -> list[str]:
    """A concept, and others of its group, none of `without`."""
    pool = [name for name in CONCEPTS if GROUP_OF[name] == GROUP_OF[concept] and name not in (concept, *without)]
    return [concept, *rng.sample(pool, size - 1)]


def _move_to(scene: Scene, place: int, rng: random.Random) -> Scene:
    """The scene with one of its things at a place, if nothing is there."""
    if scene.at(place):
        return scene
    item = rng.choice(scene.items)
    return replace(scene, items=swap(scene, item, replace(item, place=place)))


def _put(scene: Scene, concept: str, rng: random.Random) -> Scene:
    """The scene with a thing in the place of one of its own, if it is not there already."""
    if scene.find(concept):
        return scene
    item = rng.choice(scene.items)
    return replace(scene, items=swap(scene, item, replace(item, concept=concept)))


def _answer(scene: Scene, item: Item, kind: str) -> str:
    """What a question about an item of one scene has as its answer in another scene, which has one, too."""
    if kind == "background":
        return scene.background
    found = scene.at(item.place) if kind == "what" else scene.find(item.concept)
    if found is None:
        raise ValueError(f"nothing to answer {kind!r} about {item} in {scene}")
    return found.concept if kind == "what" else PLACES[found.place][0]


def _misread(text: str, rng: random.Random) -> str:
    """The text of a sign with one character changed."""
    place = rng.randrange(len(text))
    return text[:place] + rng.choice(CHARACTERS.replace(text[place], "")) + text[place + 1 :]


def _content(scene: Scene) -> tuple[frozenset[Item], str]:
    return frozenset(scene.items), scene.background


def _bag(sentence: str) -> list[str]:
    """The words that DEMON's scorer looks at, which knows neither their order nor words of one letter."""
    return sorted(word for word in sentence.strip(".").split() if len(word) > 1)


def _words(parts: Sequence[Part]) -> int:
    return sum(len(part.split()) for part in parts if isinstance(part, str))


EXERCISES: dict[str, Draw] = {
    "dialogue": draw_dialogue,
    "storytelling": draw_storytelling,
    "relation": draw_relation,
    "cloze": draw_cloze,
    "knowledge": draw_knowledge,
    "text_rich": draw_text_rich,
    "reasoning": draw_reasoning,
}
