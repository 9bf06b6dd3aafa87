"""Exercises whose answers are in what stands before the question: facts, examples, or pictures with captions.

Nothing else tells the answers, for each training exercise has a world of its own. Where nothing that is given tells
one, it is `unknown`, and not a guess: a tenth of the facts, examples and pictures are about something else, and a
tenth of the exercises of facts have none.
"""

import random
from dataclasses import dataclass

from sugar_hf.picturebook.glyphs import CONCEPTS, GROUPS
from sugar_hf.picturebook.names import GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, PLACES, Item, Scene, belongs

from .exercise import Draw, Exercise, Part
from .facts import CHOICES, KIND_OF_THING, NAMES, RELATIONS, World

#: The paper's words before what was found (app. F.1).
WORDS = (
    "Please answer the questions based on the pictures. If the reference information is useful, please use it. "
    "Otherwise, please ignore the reference information. Reference information:"
)
UNKNOWN = "unknown"
POSITIONS = 6
BY_PLACE = 0.4
_UNTOLD = 0.1


# ---- Questions of facts ----


@dataclass(frozen=True)
class Asked:
    """A question of a fact about a thing in a picture.

    Args:
        world: whose facts.
        scene: the picture.
        concept: the thing, which the question does not name.
        relation: what is asked of it.
        question: the question.
    """

    world: World
    scene: Scene
    concept: str
    relation: str
    question: str

    @property
    def answer(self) -> str:
        return self.world.value(self.concept, self.relation)


def scene_with(concept: str, rng: random.Random, split: str) -> Scene:
    """Draw a scene of a split with two things: a given one first, and one of another group."""
    while True:
        other = rng.choice(CONCEPTS)
        if GROUP_OF[other] == GROUP_OF[concept]:
            continue
        names = zip((concept, other), rng.sample(range(9), 2), strict=True)
        items = tuple(Item(name, rng.choice(("small", "large")), place) for name, place in names)
        scene = Scene(items, rng.choice(tuple(BACKGROUNDS)), rng.getrandbits(31))
        if belongs([scene], split):
            return scene


def ask(
    world: World,
    concept: str,
    relation: str,
    rng: random.Random,
    split: str,
    by_place: float = 0.0,
) -> Asked:
    """Ask for a fact about a thing in a new picture.

    Args:
        world: whose facts.
        concept: the thing.
        relation: one of `RELATIONS` or `CHOICES`.
        rng: draws the picture and the words.
        split: what the picture belongs to.
        by_place: share of questions that say where the thing is, and not what kind of thing it is.
    """
    scene = scene_with(concept, rng, split)
    thing = KIND_OF_THING[GROUP_OF[concept]]
    if rng.random() < by_place:
        thing = f"thing {rng.choice(PLACES[scene.items[0].place])}"
    form = rng.choice((RELATIONS | CHOICES)[relation].questions)
    return Asked(world, scene, concept, relation, form.format(thing=thing))


def draw_fact(rng: random.Random, split: str) -> Exercise:
    """The paper's prompt with up to three facts, then picture and question, as `knowledge_prompt` writes it."""
    world = World.of_split(split, rng)
    asked = ask(world, rng.choice(CONCEPTS), rng.choice(tuple(RELATIONS)), rng, split, by_place=BY_PLACE)
    if rng.random() < _UNTOLD:
        return Exercise("fact", (asked.scene, asked.question), UNKNOWN, {"relation": asked.relation})
    is_told = rng.random() >= _UNTOLD
    told = [(asked.concept, asked.relation)] if is_told else []
    told += rng.sample(other_facts(asked, rng), rng.choice((0, 0, 1, 2)) if is_told else rng.choice((1, 1, 2, 3)))
    rng.shuffle(told)
    facts = " ".join(world.fact(*each) for each in told)
    parts = (f"{WORDS} {facts} ", asked.scene, f" {asked.question}")
    return Exercise("fact", parts, asked.answer if is_told else UNKNOWN, {"relation": asked.relation})


def other_facts(asked: Asked, rng: random.Random) -> list[tuple[str, str]]:
    """Draw four facts that do not answer a question.

    One each is about something like the thing, about what else is in the picture, about the thing itself but something
    else of it, and about anything.
    """
    kin = [name for name in GROUPS[GROUP_OF[asked.concept]].split() if name != asked.concept]
    relations = [name for name in RELATIONS if name != asked.relation]
    others = [name for name in CONCEPTS if asked.scene.find(name) is None]
    return [
        (rng.choice(kin), asked.relation),
        (asked.scene.items[1].concept, asked.relation),
        (asked.concept, rng.choice(relations)),
        (rng.choice(others), rng.choice(relations)),
    ]


# ---- Examples ----


def shot_prompt(asked: Asked) -> str:
    """The question, with its lettered options if it has some."""
    options = CHOICES[asked.relation].values if asked.relation in CHOICES else ()
    return "\n".join([asked.question, *(f"{letter}. {value}" for letter, value in zip("ABC", options, strict=False))])


def shot_answer(asked: Asked) -> str:
    """The answer, or the letter of the right option."""
    return "ABC"[CHOICES[asked.relation].values.index(asked.answer)] if asked.relation in CHOICES else asked.answer


def draw_shots(rng: random.Random, split: str) -> Exercise:
    """One or two examples with answers, then the question, in one turn, as `shots_as_text` writes them.

    Half of the questions have options, and those always an example that tells.
    """
    world = World.of_split(split, rng)
    relation = rng.choice(tuple(rng.choice((RELATIONS, CHOICES))))
    asked = ask(world, rng.choice(CONCEPTS), relation, rng, split)
    is_told = relation in CHOICES or rng.random() >= _UNTOLD
    kin = [name for name in GROUPS[GROUP_OF[asked.concept]].split() if name != asked.concept]
    told = [asked.concept] if is_told else []
    told += rng.sample(kin, rng.choice((0, 1)) if is_told else rng.choice((1, 2)))
    rng.shuffle(told)
    parts: list[Part] = []
    for concept in told:
        shot = ask(world, concept, relation, rng, split)
        parts += [shot.scene, f"{shot_prompt(shot)}\nAnswer: {shot_answer(shot)}\n"]
    parts += [asked.scene, shot_prompt(asked)]
    return Exercise("shots", tuple(parts), shot_answer(asked) if is_told else UNKNOWN, {"relation": relation})


# ---- Pictures with captions ----


@dataclass(frozen=True)
class Page:
    """A picture of somebody's thing and another thing, with its caption.

    Args:
        owner: whose; a name that the picture does not show.
        scene: the thing and what is with it.
    """

    owner: str
    scene: Scene

    @property
    def concept(self) -> str:
        return self.scene.items[0].concept

    @property
    def other(self) -> Item:
        return self.scene.items[1]

    @property
    def caption(self) -> str:
        return f"the {self.concept} of {self.owner}"


def draw_page(concept: str, owner: str, rng: random.Random, split: str) -> Page:
    """Draw the picture to a caption."""
    return Page(owner, scene_with(concept, rng, split))


def ask_page(page: Page, kind: str) -> tuple[str, str]:
    """Question and answer about a page, which the question names by its caption.

    Args:
        page: the page.
        kind: `with`, what else is there; or `color`, the background.
    """
    if kind == "with":
        return f"what is with {page.caption}?", page.other.concept
    return f"which colour is behind {page.caption}?", page.scene.background


def ask_kind(rng: random.Random) -> str:
    """Two questions of three ask for the other thing, which is harder to guess than the colour."""
    return rng.choice(("with", "with", "color"))


def draw_web(rng: random.Random, split: str) -> Exercise:
    """The paper's prompt with one to three pictures and captions, then a question about one of them."""
    names = rng.sample(NAMES, 4)
    concepts = rng.sample(CONCEPTS, 3)
    page = draw_page(concepts[0], names[0], rng, split)
    others = [draw_page(rng.choice((concepts[0], concepts[1])), names[1], rng, split)]
    others.append(draw_page(concepts[2], rng.choice((names[0], names[2])), rng, split))
    question, answer = ask_page(page, ask_kind(rng))
    is_told = rng.random() >= _UNTOLD
    shown = [page] if is_told else []
    shown += rng.sample(others, rng.choice((0, 1, 1, 2)) if is_told else rng.choice((1, 1, 2)))
    rng.shuffle(shown)
    parts: list[Part] = [f"{WORDS} "]
    for number, each in enumerate(shown):
        parts += [each.scene, f" {each.caption}." + (f" {question}" if number == len(shown) - 1 else " ")]
    return Exercise("web", tuple(parts), answer if is_told else UNKNOWN)


def draw_pages(rng: random.Random, split: str, answer: str) -> tuple[Page, list[Page], str]:
    """Draw a question about one of six pages to which the answer is `yes` or `no`.

    Returns:
        The relevant page, the five others and the question. The thing that is asked for is in one of the six pictures,
        whatever the answer is, and no thing is in two.
    """
    names = rng.sample(NAMES, POSITIONS)
    while True:
        concepts = rng.sample(CONCEPTS, POSITIONS)
        pages = [draw_page(*each, rng, split) for each in zip(concepts, names, strict=True)]
        if len({item.concept for page in pages for item in page.scene.items}) == 2 * POSITIONS:
            break
    relevant, others = pages[0], pages[1:]
    wanted = relevant.other if answer == "yes" else rng.choice(others).other
    return relevant, others, f"is there {wanted.article()} {wanted.concept} with {relevant.caption}?"


def draw_position(rng: random.Random, split: str) -> Exercise:
    """The paper's probe: the question, six pictures with captions, the relevant one anywhere, and yes or no."""
    answer, place = rng.choice(("yes", "no")), rng.randrange(POSITIONS)
    relevant, others, question = draw_pages(rng, split, answer)
    pages = [*others[:place], relevant, *others[place:]]
    parts: list[Part] = [f"{question}\n"]
    for page in pages:
        parts += [page.scene, f" {page.caption} "]
    parts[-1] = f" {pages[-1].caption}.\n please answer the question in Yes or No.\n"
    return Exercise("position", tuple(parts), answer, {"position": place + 1})


EXERCISES: dict[str, Draw] = {
    "fact": draw_fact,
    "shots": draw_shots,
    "web": draw_web,
    "position": draw_position,
}
