"""Twins of tables 4a, 5 and 7: questions whose answers have to be found, and the place of what answers them.

All tell of the test world, whose facts no training data holds. A twin's evaluator searches by the whole question,
picture and text in one embedding, as Sugar can; a dual encoder averages both. `VARIANTS` has the tables' other rows.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from sugar_hf.data import Document
from sugar_hf.evaluation.benchmarks.scorers.vqa_scorers import evalai_accuracy
from sugar_hf.evaluation.benchmarks.tasks import Evaluator
from sugar_hf.evaluation.benchmarks.tasks.augmented_vqa import Shot, shots_as_text
from sugar_hf.evaluation.benchmarks.tasks.knowledge_vqa import knowledge_prompt
from sugar_hf.evaluation.benchmarks.tasks.multiple_choice import score_science_qa
from sugar_hf.evaluation.benchmarks.tasks.vqa import score_answers
from sugar_hf.evaluation.benchmarks.tasks.webqa_tasks import position_prompt, score_position, score_webqa
from sugar_hf.evaluation.examples import Example, Lazy
from sugar_hf.evaluation.generation_evaluator import GenerationEvaluator, Score
from sugar_hf.evaluation.knowledge_evaluator import Fill, KnowledgeEvaluator, Pool, View
from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.scenes import render

from ..budget import Budget
from ..exercises.facts import CHOICES, NAMES, RELATIONS, World
from ..exercises.knowledge_exercises import (
    BY_PLACE,
    POSITIONS,
    Asked,
    Page,
    ask,
    ask_kind,
    ask_page,
    draw_page,
    draw_pages,
    shot_answer,
    shot_prompt,
)
from .twin import Twin

WORLD = World("test")
CANDIDATES = 12  # pages among which a question of WebQA's twin searches
ANSWER_TOKENS = 8
VIEWS: dict[str, tuple[str, ...]] = {
    "whole": ("whole",),
    "image": ("image",),
    "text": ("text",),
    "average": ("image", "text"),
}
_GUESS = 100 * sum(1 / len(relation.values) for relation in RELATIONS.values()) / len(RELATIONS)
_GUESS_PAGE = 100 * (2 / 3 / len(CONCEPTS) + 1 / 3 / 8)


@dataclass(frozen=True)
class _Questions:
    """What the twins of one kind differ in.

    Args:
        name: The twin's name.
        examples: The questions.
        pool: What can be found.
        views: How it can be searched.
        fill: Puts what was found into a prompt.
        score: Makes figures.
        primary_metric: The figure to look at.
    """

    name: str
    examples: Sequence[Example]
    pool: Pool
    views: Mapping[str, View]
    fill: Fill
    score: Score
    primary_metric: str


def _build(make: Callable[[Budget], _Questions], view: str | None, budget: Budget) -> KnowledgeEvaluator:
    """The evaluator of a view; of no retrieval if there is none."""
    made = make(budget)
    return KnowledgeEvaluator(
        made.name,
        made.examples,
        made.pool,
        {name: made.views[name] for name in VIEWS[view or "whole"]},
        made.fill,
        made.score,
        primary_metric=made.primary_metric,
        top_k=0 if view is None else 1,
        max_new_tokens=ANSWER_TOKENS,
        settings={"budget": budget.name, "view": view or "no retrieval"},
    )


def _concepts(name: str, budget: Budget) -> list[str]:
    """What a twin tells of; more is asked of no thing than of another."""
    return random.Random(f"{name}/concepts").sample(CONCEPTS, budget.facts)


def _ask(name: str, concepts: Sequence[str], relations: Sequence[str], number: int, by_place: float) -> Asked:
    """The question of a number: the things in turn, each time about something else."""
    turn, place = divmod(number, len(concepts))
    rng = random.Random(f"{name}/question/{number}")
    relation = relations[(turn + place) % len(relations)]
    return ask(WORLD, concepts[place], relation, rng, "test", by_place)


# ---- Examples that are retrieved ----


def _rag(name: str, relations: Sequence[str], score: Score, budget: Budget) -> _Questions:
    concepts = _concepts(name, budget)
    asked = [_ask(name, concepts, relations, number, 0.0) for number in range(budget.questions)]
    told = [(concept, relation) for concept in concepts for relation in relations]
    numbers = {each: number for number, each in enumerate(told)}
    known = [
        ask(WORLD, concept, relation, random.Random(f"{name}/shot/{concept}/{relation}"), "train")
        for concept, relation in told
    ]

    def example(i: int) -> Example:
        each, answer = asked[i], shot_answer(asked[i])
        reference: dict[str, Any] = {"answers": [answer] * 10, "answer_type": each.relation}
        if each.relation in CHOICES:
            reference = {"answer": answer, "subject": each.relation, "grade": None}
        return Example.of(f"{name} {i}", [render(each.scene), shot_prompt(each)], reference)

    def query(*which: str) -> Sequence[Document]:
        return Lazy(len(asked), lambda i: _shot(f"{name} {i}", asked[i]).document(*which))

    def side(*which: str) -> Sequence[Document]:
        return Lazy(len(known), lambda i: _shot(f"{name} shot {i}", known[i]).document(*which))

    def entry(i: int) -> Document:
        shot = _shot(f"{name} shot {i}", known[i])
        return Document(shot.id, [shot.image, shot.prompt, shot.answer])

    return _Questions(
        name,
        Lazy(len(asked), example),
        Pool(
            Lazy(len(known), entry),
            {"shots": side("image", "question"), "images": side("image"), "questions": side("question")},
            gold=[[numbers[each.concept, each.relation]] for each in asked],
        ),
        {
            "whole": View(query("image", "question"), "shots"),
            "image": View(query("image"), "images"),
            "text": View(query("question"), "questions"),
        },
        shots_as_text,
        score,
        "accuracy",
    )


def _shot(id: str, asked: Asked) -> Shot:
    return Shot(id, render(asked.scene), shot_prompt(asked), shot_answer(asked))


# ---- Facts ----


def _fvqa(budget: Budget) -> _Questions:
    concepts = _concepts("fvqa", budget)
    asked = [_ask("fvqa", concepts, tuple(RELATIONS), number, BY_PLACE) for number in range(budget.questions)]
    facts = [WORLD.fact(concept, relation) for concept in concepts for relation in RELATIONS]
    numbers = {fact: number for number, fact in enumerate(facts)}
    entries = [Document(f"fact {number}", [fact]) for number, fact in enumerate(facts)]

    def parts(i: int) -> dict[str, Any]:
        return {"image": render(asked[i].scene), "question": asked[i].question}

    def query(*which: str) -> Sequence[Document]:
        return Lazy(len(asked), lambda i: Document(f"fvqa {i}", [parts(i)[name] for name in which]))

    def example(i: int) -> Example:
        return Example.of(f"fvqa {i}", list(parts(i).values()), {"answers": [asked[i].answer]})

    return _Questions(
        "fvqa",
        Lazy(len(asked), example),
        Pool(entries, {"facts": entries}, gold=[[numbers[WORLD.fact(each.concept, each.relation)]] for each in asked]),
        {
            "whole": View(query("image", "question"), "facts"),
            "image": View(query("image"), "facts"),
            "text": View(query("question"), "facts"),
        },
        knowledge_prompt,
        partial(score_webqa, can_rate=False),
        "rouge_l",
    )


# ---- Pictures with captions ----


def _pages(budget: Budget) -> list[Page]:
    """Two pages of each thing, of different owners."""
    pages = []
    for concept in _concepts("webqa", budget):
        rng = random.Random(f"webqa/page/{concept}")
        pages += [draw_page(concept, owner, rng, "test") for owner in rng.sample(NAMES, 2)]
    return pages


def candidates(pages: Sequence[Page], relevant: int, rng: random.Random) -> list[int]:
    """Return the numbers of twelve pages, ascending.

    These are the relevant one, the other one of its thing, one of its owner if there is another, and any.
    """
    others = [number for number in range(len(pages)) if number != relevant]
    rng.shuffle(others)
    twin = next(number for number in others if pages[number].concept == pages[relevant].concept)
    same_owner = [number for number in others if pages[number].owner == pages[relevant].owner][:1]
    chosen = dict.fromkeys([relevant, twin, *same_owner, *others])
    return sorted(list(chosen)[:CANDIDATES])


def _webqa(budget: Budget) -> _Questions:
    pages = _pages(budget)
    order = random.Random("webqa/order").sample(range(len(pages)), len(pages))
    relevant = [order[number % len(order)] for number in range(budget.questions)]
    rngs = [random.Random(f"webqa/question/{number}") for number in range(budget.questions)]
    kinds = [ask_kind(rng) for rng in rngs]
    allowed = [candidates(pages, number, rng) for number, rng in zip(relevant, rngs, strict=True)]
    asked = [ask_page(pages[number], kind) for number, kind in zip(relevant, kinds, strict=True)]

    def example(i: int) -> Example:
        category = "color" if kinds[i] == "color" else "Others"
        reference = {"answers": [asked[i][1]], "category": category, "keywords": None}
        return Example.of(f"webqa {i}", [asked[i][0]], reference)

    def side(*which: str) -> Sequence[Document]:
        def entry(i: int) -> Document:
            parts: dict[str, Any] = {"image": render(pages[i].scene), "caption": f"{pages[i].caption}."}
            return Document(f"page {i}", [parts[name] for name in which])

        return Lazy(len(pages), entry)

    questions = [Document(f"webqa {i}", [question]) for i, (question, _) in enumerate(asked)]
    pictures = Lazy(len(asked), lambda i: Document(f"webqa {i}", [render(pages[relevant[i]].scene)]))
    whole = side("image", "caption")
    return _Questions(
        "webqa",
        Lazy(len(asked), example),
        Pool(
            whole,
            {"pages": whole, "images": side("image"), "captions": side("caption")},
            allowed,
            gold=[[number] for number in relevant],
        ),
        {
            "whole": View(questions, "pages"),
            "image": View(pictures, "captions"),
            "text": View(questions, "images"),
        },
        knowledge_prompt,
        partial(score_webqa, can_rate=find_spec("word2number") is not None),
        "rouge_l",
    )


# ---- The position probe ----


def build_position(budget: Budget) -> GenerationEvaluator:
    """Ask each question six times, with its relevant page at each place among the same others.

    Therefore there are half as many questions as other twins have.
    """
    size = budget.questions // 2
    drawn = [
        draw_pages(random.Random(f"webqa-position/{number}"), "test", ("yes", "no")[number % 2])
        for number in range(size)
    ]

    def example(i: int) -> Example:
        number, place = divmod(i, POSITIONS)
        relevant, others, question = drawn[number]
        pages = [*others[:place], relevant, *others[place:]]
        reference = {"answer": ("yes", "no")[number % 2], "position": place + 1}
        prompt = position_prompt(question, [(render(page.scene), page.caption) for page in pages])
        return Example.of(f"webqa-position {number}@{place + 1}", prompt, reference)

    return GenerationEvaluator(
        "webqa-position",
        Lazy(size * POSITIONS, example),
        score_position,
        primary_metric="mean",
        max_new_tokens=ANSWER_TOKENS,
        settings={"budget": budget.name},
    )


_MAKERS: dict[str, Callable[[Budget], _Questions]] = {
    "rag-vizwiz": partial(_rag, "rag-vizwiz", tuple(RELATIONS), score_answers(evalai_accuracy)),
    "rag-scienceqa": partial(_rag, "rag-scienceqa", tuple(CHOICES), score_science_qa),
    "fvqa": _fvqa,
    "webqa": _webqa,
}

#: Rows of the tables beside a twin's own, by name: the twin, what the row is called, and how its evaluator is made.
#: The rows of views are for any encoder; `average` takes the mean of the views of image and text.
VARIANTS: dict[str, tuple[str, str, Callable[[Budget], Evaluator]]] = {
    f"{name}, {suffix}": (name, suffix, partial(_build, make, view))
    for name, make in _MAKERS.items()
    for suffix, view in (("no retrieval", None), ("image", "image"), ("text", "text"), ("average", "average"))
}

TWINS: dict[str, Twin] = {
    twin.name: twin
    for twin in (
        Twin(
            "rag-vizwiz",
            "VizWiz with retrieved examples",
            "both",
            partial(_build, _MAKERS["rag-vizwiz"], "whole"),
            "accuracy",
            {"accuracy": "table4a/VizWiz"},
            {"accuracy": _GUESS},
            "Questions for invented facts about a thing in the picture. The pool has questions for the same facts, "
            "with other pictures, and their answers; one goes before the question.",
        ),
        Twin(
            "rag-scienceqa",
            "ScienceQA-IMG with retrieved examples",
            "both",
            partial(_build, _MAKERS["rag-scienceqa"], "whole"),
            "accuracy",
            {"accuracy": "table4a/SQA-I"},
            {"accuracy": 100 / 3},
            "The same with three lettered options, which are the same for all things.",
        ),
        Twin(
            "webqa-position",
            "WebQA by position",
            "generate",
            build_position,
            "mean",
            {f"position {place}": f"table5/{place}" for place in range(1, POSITIONS + 1)},
            {"mean": 50.0, **{f"position {place}": 50.0 for place in range(1, POSITIONS + 1)}},
            "Is something with a thing of somebody's? The picture with the caption that says whose it is stands at "
            "each of six places among five others; what is asked for is always in one of the six.",
        ),
        Twin(
            "fvqa",
            "FVQA",
            "both",
            partial(_build, _fvqa, "whole"),
            "rouge_l",
            {"rouge_l": "table7/FVQA"},
            {"rouge_l": _GUESS, "exact match": _GUESS},
            "Questions for invented facts (owner, home, age) about a thing in the picture, by its kind or its place. "
            "The pool has all facts of the test world about these things, as sentences.",
        ),
        Twin(
            "webqa",
            "WebQA",
            "both",
            partial(_build, _webqa, "whole"),
            "rouge_l",
            {"rouge_l": "table7/WebQA"},
            {"rouge_l": _GUESS_PAGE, "exact match": _GUESS_PAGE},
            f"What is with a thing of somebody's, or behind it? Each question searches among {CANDIDATES} pictures "
            "with captions, one of the same thing of another owner. Only caption and picture together answer.",
        ),
    )
}
