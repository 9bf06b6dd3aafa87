"""Twins of table 3's retrieval, and of what it leaves out: whether the order of a document is seen."""

import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, permutations
from typing import Any

from sugar_hf.data import Document
from sugar_hf.evaluation.benchmarks.tasks.image_text_retrieval import STORY, story_rankings
from sugar_hf.evaluation.benchmarks.tasks.image_text_retrieval import TASKS as TASKS_OF_PAPER
from sugar_hf.evaluation.encoders import Encoder, open_encoder
from sugar_hf.evaluation.examples import Lazy
from sugar_hf.evaluation.ranking_evaluator import Ranking, RankingEvaluator
from sugar_hf.picturebook import Scene, Story, caption, checkpoint, draw_process, draw_story, random_scene, render

from ..budget import Budget
from ..exercises.contrasts import near_copy
from .twin import Twin

SPLIT = "test"
ALIKE = 12  # scenes of which all but the first are near copies of the first
POOLS = (10, 20, 50, 100, 200)
ORDERS = 24  # candidates of a query for the right order, itself among them


def clip_encoder() -> Encoder:
    """The baseline of these twins, as CLIP is the paper's: the shipped `mini-clip`.

    A document's images are averaged, as are those vectors of its texts and images that both documents have (mode
    `average` of `DualEncoder`), so it knows nothing of an order of images. Texts are cut after 77 tokens; how many
    were is in a result's `settings["notes"]["truncated"]`.
    """
    return open_encoder(checkpoint("mini-clip"), mode="average")


# ---- MSCOCO ----


def draw_scenes(size: int, seed: int = 0) -> list[tuple[Scene, str]]:
    """Draw test scenes with their full captions: the first of each twelve is new, the others are near copies of it.

    No two scenes show the same, so each caption is true of one scene alone.

    Args:
        size: How many.
        seed: Another seed gives other ones.
    """
    drawn: list[tuple[Scene, str]] = []
    shown = set()
    for number in range(size):
        rng = random.Random(f"coco/{seed}/{number}")
        while True:
            first = number - number % ALIKE
            if number > first:
                scene = near_copy(drawn[first][0], rng, SPLIT)
            else:
                scene = random_scene(rng, SPLIT, rng.choice((2, 3)))  # one thing has too few copies
            if _content(scene) not in shown:
                break
        shown.add(_content(scene))
        drawn.append((scene, caption(scene, rng)))
    return drawn


def build_coco(budget: Budget) -> RankingEvaluator:
    """Scenes and captions, each of which is asked for by the other."""
    drawn = draw_scenes(budget.scenes)
    targets = [[i] for i in range(len(drawn))]
    return RankingEvaluator(
        "coco",
        {
            "captions": [Document(str(i), words) for i, (_, words) in enumerate(drawn)],
            "images": Lazy(len(drawn), lambda i: Document(str(i), render(drawn[i][0]))),
        },
        [Ranking("t2i", "captions", "images", targets), Ranking("i2t", "images", "captions", targets)],
        primary_metric=TASKS_OF_PAPER["coco"].primary_metric,
        settings={"split": SPLIT},
    )


# ---- VIST ----


def build_vist(budget: Budget) -> RankingEvaluator:
    """The last picture of a story, among all pictures of all stories."""
    stories = draw_stories("story", budget.stories)
    frames = [frame for story in stories for frame in story.frames]

    def mixed(i: int) -> Document:
        words, pictures = stories[i].sentences, map(render, stories[i].frames[:-1])
        parts: list[Any] = [*chain.from_iterable(zip(words[:-1], pictures, strict=True)), words[-1]]
        return Document(str(i), parts)

    numbers = [list(range(STORY * i, STORY * (i + 1))) for i in range(len(stories))]
    return RankingEvaluator(
        "vist",
        {
            "5c": [Document(str(i), list(story.sentences)) for i, story in enumerate(stories)],
            "5c+4i": Lazy(len(stories), mixed),
            "images": Lazy(len(frames), lambda i: Document(f"{i // STORY}/{i % STORY + 1}", render(frames[i]))),
        },
        story_rankings([own[-1:] for own in numbers], [own[:-1] for own in numbers]),
        primary_metric=TASKS_OF_PAPER["vist"].primary_metric,
        settings={"split": SPLIT},
        counts={"n_stories": len(stories), "n_candidates": len(frames)},
    )


# ---- size of the pool ----


def build_pool(budget: Budget) -> RankingEvaluator:
    """The last picture of a story from its five sentences and four pictures, among more and more last pictures.

    As many stories as the largest pool, whatever the budget. The pool of a story is its own last picture and those of
    the next ones, so that each pool is part of the larger ones.
    """
    size = max(POOLS)
    stories = draw_stories("story", size, seed=1)

    def mixed(i: int) -> Document:
        words, pictures = stories[i].sentences, map(render, stories[i].frames[:-1])
        parts: list[Any] = [*chain.from_iterable(zip(words[:-1], pictures, strict=True)), words[-1]]
        return Document(str(i), parts)

    def others(pool: int) -> Lazy[list[int]]:
        return Lazy(size, lambda i: [(i + step) % size for step in range(pool, size)])

    return RankingEvaluator(
        "pool",
        {"5c+4i": Lazy(size, mixed), "images": Lazy(size, lambda i: Document(str(i), render(stories[i].frames[-1])))},
        [Ranking(str(pool), "5c+4i", "images", [[i] for i in range(size)], others(pool)) for pool in POOLS],
        primary_metric=f"{size} recall@1",
        settings={"split": SPLIT},
    )


# ---- order ----


def draw_stories(kind: str, size: int, seed: int = 0) -> list[Story]:
    """Draw test stories, or processes, of five frames, none of which shows what another one of its story does.

    Args:
        kind: `story` or `process`.
        size: How many.
        seed: Another seed gives other ones.
    """
    draw = {"story": draw_story, "process": draw_process}[kind]
    drawn = []
    for number in range(size):
        rng = random.Random(f"{kind}/{seed}/{number}")
        while True:
            story = draw(rng, SPLIT, STORY)
            # sentences of a process tell neither sizes nor places
            told = [_content(frame) if kind == "story" else _kinds(frame) for frame in story.frames]
            if len(set(told)) == STORY:
                break
        drawn.append(story)
    return drawn


def draw_orders(rng: random.Random) -> tuple[list[tuple[int, ...]], int]:
    """Draw the right order of five frames among 23 wrong ones, all different.

    Returns:
        The orders, and the number of the right one. Of candidates that score the same the first one wins: an encoder
        that sees no order finds the right one by chance.
    """
    right, *wrong = permutations(range(STORY))
    orders = rng.sample(wrong, ORDERS - 1)
    number = rng.randrange(ORDERS)
    return [*orders[:number], right, *orders[number:]], number


def build_order(budget: Budget) -> RankingEvaluator:
    """The sentences of a story in order, and which of its own frames' orders they find."""
    size = budget.pairs // 2  # each asks for 48 documents of five pictures to be embedded
    others = Lazy(size, lambda i: [*range(ORDERS * i), *range(ORDERS * (i + 1), ORDERS * size)])
    sets: dict[str, Sequence[Document]] = {}
    rankings = []
    for kind in ("process", "story"):
        stories = draw_stories(kind, size)
        drawn = [draw_orders(random.Random(f"order/{kind}/{i}")) for i in range(size)]
        targets = [[ORDERS * i + right] for i, (_, right) in enumerate(drawn)]
        sets[kind] = [Document(str(i), list(story.sentences)) for i, story in enumerate(stories)]
        pictures = f"{kind} in pictures"
        sets[pictures] = _reordered(stories, [orders for orders, _ in drawn])
        rankings.append(Ranking(kind, kind, pictures, targets, others))
    return RankingEvaluator(
        "order",
        sets,
        rankings,
        primary_metric="process recall@1",
        settings={"split": SPLIT, "orders": ORDERS},
    )


def _reordered(stories: Sequence[Story], orders: Sequence[Sequence[tuple[int, ...]]]) -> Lazy[Document]:
    """The pictures of the first story in all of its orders, then those of the second, and so on."""
    picture = lru_cache(maxsize=4 * STORY)(render)  # the orders of a story are built one after the other

    def build(i: int) -> Document:
        story, order = stories[i // ORDERS], orders[i // ORDERS][i % ORDERS]
        name = f"{i // ORDERS}: {' '.join(str(frame + 1) for frame in order)}"
        return Document(name, [picture(story.frames[frame]) for frame in order])

    return Lazy(len(stories) * ORDERS, build)


def _content(scene: Scene) -> Any:
    """What a full caption tells of a scene."""
    return frozenset((item.concept, item.size, item.place) for item in scene.items), scene.background


def _kinds(scene: Scene) -> Any:
    """What a sentence of a process tells of a frame."""
    return frozenset(item.concept for item in scene.items), scene.background


TWINS = {
    twin.name: twin
    for twin in (
        Twin(
            "coco",
            "COCO",
            "embed",
            build_coco,
            TASKS_OF_PAPER["coco"].primary_metric,
            paper=TASKS_OF_PAPER["coco"].paper,
            card="Scenes and captions that tell all of them. Of each twelve scenes eleven are near copies of one: the "
            "same things elsewhere, one thing replaced by its like, or another background.",
        ),
        Twin(
            "vist",
            "VIST",
            "embed",
            build_vist,
            TASKS_OF_PAPER["vist"].primary_metric,
            paper=TASKS_OF_PAPER["vist"].paper,
            card="Stories of five frames; all frames of all stories are candidates for the last one. With dagger the "
            "four before it cannot be retrieved.",
        ),
        Twin(
            "pool",
            "Size of the pool",
            "embed",
            build_pool,
            f"{max(POOLS)} recall@1",
            paper={f"{size} recall@1": f"pool/{size}" for size in POOLS},
            chance={f"{size} recall@1": 100 / size for size in POOLS},
            card="Stories of five frames: the last picture from what comes before, among the last ones of more and "
            "more other stories. The paper has no such experiment.",
        ),
        Twin(
            "order",
            "Order",
            "embed",
            build_order,
            "process recall@1",
            chance={f"{kind} recall@{k}": 100 * k / ORDERS for kind in ("process", "story") for k in (1, 5, 10)},
            card="Five sentences ask for the same five frames in the right order, among 23 wrong orders of them. "
            "The frames of a process have nothing in common; those of a "
            "story follow from each other. The paper has no such experiment.",
        ),
    )
}
