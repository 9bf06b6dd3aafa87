import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.picturebook import checkpoint, render
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_lab.budget import FULL, QUICK
from sugar_lab.exercises.contrasts import DIFFERENCES, REORDERINGS, draw_contrast, draw_contrasts, draw_reordering
from sugar_lab.twins import all_twins
from sugar_lab.twins.pair_twins import TWINS as PAIRS
from sugar_lab.twins.retrieval_twins import ALIKE, ORDERS, clip_encoder, draw_orders, draw_scenes, draw_stories
from sugar_lab.twins.retrieval_twins import TWINS as RETRIEVAL

TWINS = RETRIEVAL | PAIRS


class Seeing:
    """An encoder that embeds a loaded sample as a function says."""

    name = "seeing"

    def __init__(self, see):
        self.see = see

    def embed_documents(self, documents, *, batch_size=8, skipped=None, progress=None):
        rows = [np.atleast_2d(np.asarray(self.see(document.load()), np.float32)) for document in documents]
        return [row / np.linalg.norm(row) for row in rows]

    def describe(self):
        return {}

    def notes(self):
        return {}


class Answering:
    """A generator that answers a loaded sample as a function says."""

    name = "answering"

    def __init__(self, answer):
        self.answer = answer

    def generate(self, samples, max_new_tokens):
        return [self.answer(*sample) for sample in samples]

    def settings(self):
        return {}


def blind(sample):
    return [1.0, 0.0]


def seen(part):
    """What names a picture or a text."""
    return part.tobytes() if isinstance(part, Image.Image) else part


def known(pairs, size):
    """An encoder's function that knows the number of each picture and text, by the last part of a sample."""
    numbers = {seen(part): number for part, number in pairs}
    return lambda sample: np.eye(size)[numbers[seen(sample[-1])]]


def contrasts(draw, kinds, sizes):
    return [each for kind, size in zip(kinds, sizes, strict=True) for each in draw_contrasts(draw, kind, "test", size)]


def told(contrast_list, form):
    """Pictures and texts of contrasts, with a number for each of their sides."""
    for i, contrast in enumerate(contrast_list):
        for side in (0, 1):
            yield render(contrast.scenes[side]), 2 * i + side
            yield form.format(contrast.texts[side]), 2 * i + side


# ---- coco ----


def test_scenes_and_captions_find_each_other_for_who_sees():
    drawn = draw_scenes(QUICK.scenes)
    both = [(part, i) for i, (scene, words) in enumerate(drawn) for part in (render(scene), words)]
    evaluator = RETRIEVAL["coco"].build(QUICK)
    result = evaluator(Seeing(known(both, QUICK.scenes)))
    assert result["t2i recall@1"] == result["i2t recall@1"] == 100.0
    assert result["t2i candidates"] == result["n"] == QUICK.scenes
    assert result["t2i ties"] == 0
    assert evaluator(Seeing(blind))["t2i recall@10"] == pytest.approx(100 * 10 / QUICK.scenes)


def test_scenes_are_near_copies_of_the_first_of_each_twelve_and_no_two_have_one_caption():
    drawn = draw_scenes(QUICK.scenes)
    assert drawn == draw_scenes(QUICK.scenes) == draw_scenes(QUICK.scenes + 4)[: QUICK.scenes]
    assert len({words for _, words in drawn}) == QUICK.scenes
    for number, (copy, _) in enumerate(drawn):
        first = drawn[number - number % ALIKE][0]
        same = [one.concept == other.concept for one, other in zip(first.items, copy.items, strict=True)]
        assert sum(same) >= len(same) - 1


# ---- vist ----


def test_who_knows_the_stories_finds_their_last_pictures():
    stories = draw_stories("story", QUICK.stories)
    ends = {tuple(story.sentences): i for i, story in enumerate(stories)}
    last = {seen(render(story.frames[-1])): i for i, story in enumerate(stories)}

    def see(sample):
        words = tuple(part for part in sample if isinstance(part, str))
        number = ends[words] if words else last.get(seen(sample[0]), QUICK.stories)
        return np.eye(QUICK.stories + 1)[number]

    result = RETRIEVAL["vist"].build(QUICK)(Seeing(see))
    assert {result[name] for name in RETRIEVAL["vist"].paper} == {100.0}
    assert result["n_candidates"] == 5 * result["n_stories"] == 5 * QUICK.stories


def test_pictures_that_were_seen_are_kept_or_with_dagger_removed():
    stories = draw_stories("story", QUICK.stories)
    number = {seen(render(frame)): i for i, story in enumerate(stories) for frame in story.frames}
    number |= {story.sentences[-1]: i for i, story in enumerate(stories)}
    last_words = Counter(story.sentences[-1] for story in stories)

    # all pictures of a story are alike, so that the first of them is taken
    result = RETRIEVAL["vist"].build(QUICK)(Seeing(lambda sample: np.eye(QUICK.stories)[number[seen(sample[-1])]]))
    assert max(last_words.values()) < 3
    assert result["5c+4i recall@1"] == 0.0
    assert result["5c+4i dagger recall@1"] > 90.0


def test_queries_of_stories_are_interleaved_as_in_the_paper():
    evaluator = RETRIEVAL["vist"].build(QUICK)
    [words] = {tuple(type(part) is str for part in document.sample) for document in evaluator.sets["5c"]}
    [mixed] = {tuple(type(part) is str for part in document.sample) for document in evaluator.sets["5c+4i"]}
    assert words == (True,) * 5
    assert mixed == (True, False) * 4 + (True,)


# ---- order ----


def test_orders_are_all_different_and_the_right_one_is_anywhere():
    orders, right = draw_orders(random.Random(0))
    assert orders[right] == (0, 1, 2, 3, 4)
    assert len(set(orders)) == ORDERS
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    places = Counter(draw_orders(random.Random(i))[1] for i in range(1200))
    assert len(places) == ORDERS
    assert min(places.values()) > 25


@pytest.mark.parametrize("kind", ["story", "process"])
def test_no_frame_of_a_story_is_there_twice(kind):
    for story in draw_stories(kind, 100):
        assert len({seen(render(frame)) for frame in story.frames}) == 5
        assert story.kind == kind
        assert len(story.sentences) == 5
        if kind == "process":
            assert len({words.split(", ", 1)[1] for words in story.sentences}) == 5


def test_who_sees_the_order_finds_it_among_the_orders_of_the_same_frames_alone():
    place = {}
    for kind in ("story", "process"):
        for story in draw_stories(kind, QUICK.pairs // 2):
            place |= {seen(render(frame)): i for i, frame in enumerate(story.frames)}

    def see(sample):  # the same for all stories: what others have is no candidate
        pictures = [part for part in sample if isinstance(part, Image.Image)]
        order = [place[seen(picture)] for picture in pictures] or range(5)
        return np.concatenate([np.eye(5)[frame] for frame in order])

    evaluator = RETRIEVAL["order"].build(QUICK)
    result = evaluator(Seeing(see))
    for kind in ("process", "story"):
        assert result[f"{kind} recall@1"] == 100.0
        assert result[f"{kind} ties"] == 0


def test_who_sees_no_order_finds_the_right_one_by_chance():
    evaluator = RETRIEVAL["order"].build(QUICK)
    result = evaluator(Seeing(blind))
    assert result["process ties"] == result["n"] == QUICK.pairs // 2
    first = [draw_orders(random.Random(f"order/process/{i}"))[1] == 0 for i in range(result["n"])]
    assert result["process recall@1"] == 100.0 * np.mean(first) < 20.0
    assert RETRIEVAL["order"].chance["story recall@1"] == pytest.approx(100 / 24)


# ---- pairs ----


def test_who_sees_has_all_of_winoground_and_who_reads_words_alone_none():
    drawn = contrasts(draw_reordering, REORDERINGS, [4, 4, 4])
    evaluator = PAIRS["winoground"].build(QUICK)
    result = evaluator(Seeing(known(told(drawn, "{}."), 24)))
    assert result["text"] == result["image"] == result["group"] == 100.0
    assert result["n"] == QUICK.pairs

    def words(sample):
        return [float(len(sample[0])), 1.0] if isinstance(sample[0], str) else [1.0, 1.0]

    assert evaluator(Seeing(words))["group"] == 0.0


def test_winoground_has_the_number_of_pairs_of_the_budget():
    groups = Counter(pair.group for pair in PAIRS["winoground"].build(FULL).items)
    assert groups == {"things": 67, "sizes": 67, "places": 66}


def test_the_statement_that_is_true_is_chosen():
    drawn = contrasts(draw_contrast, DIFFERENCES, [4] * 9)
    truth = {seen(picture): drawn[n // 2].texts[n % 2] for picture, n in list(told(drawn, "{}"))[::2]}

    def right(picture, question):
        return "A" if question.split("\n")[1] == f"A.{truth[seen(picture)]}" else "B"

    evaluator = PAIRS["mmvp"].build(QUICK)
    answers = Counter(example.reference["answer"] for example in evaluator.examples)
    assert answers == {"A": 36, "B": 36}
    assert Counter(example.reference["type"] for example in evaluator.examples) == dict.fromkeys(DIFFERENCES, 8)
    result = evaluator(Answering(right))
    assert result["mean accuracy"] == result["pair accuracy"] == 100.0
    wrong = evaluator(Answering(lambda picture, question: "BA"["AB".index(right(picture, question))]))
    assert wrong["mean accuracy"] == 0.0
    always = evaluator(Answering(lambda picture, question: "A"))
    assert always["mean accuracy"] == 50.0
    assert always["pair accuracy"] == 0.0


def test_the_same_pairs_are_told_apart_by_similarity():
    drawn = contrasts(draw_contrast, DIFFERENCES, [4] * 9)
    evaluator = PAIRS["mmvp-embed"].build(QUICK)
    numbers = [(part, n) for part, n in told(drawn, "a picture of {}.")]
    own = {seen(part): n for part, n in numbers if isinstance(part, Image.Image)}
    # statements such as "one thing" are those of several pairs: which side of its pair a text is on is enough
    sides = {}
    for part, n in numbers:
        if isinstance(part, str):
            sides.setdefault(part, []).append(n)

    def see(sample):
        found = [own[seen(sample[0])]] if isinstance(sample[0], Image.Image) else sides[sample[0]]
        return np.eye(72)[found].sum(axis=0)

    result = evaluator(Seeing(see))
    assert result["accuracy"] == 100.0
    assert result["n"] == 36
    assert {key for key in result if key.startswith("accuracy, ")} == {f"accuracy, {kind}" for kind in DIFFERENCES}
    assert evaluator(Seeing(blind))["accuracy"] == 0.0


# ---- all ----


@pytest.fixture(scope="module")
def mini_sugar():
    loaded = SugarEmbedder.from_pretrained(checkpoint("mini-sugar"), device="cpu")
    return loaded.model, loaded.processor


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_measures_the_small_model_and_fills_cells_of_the_paper(name, mini_sugar):
    twin = all_twins()[name]
    evaluator = twin.build(replace(QUICK, pairs=4, stories=12))  # the orders of stories are many documents
    assert (
        (twin.name, twin.primary_metric) == (evaluator.name, evaluator.primary_metric) == (name, twin.primary_metric)
    )
    result = evaluator(*mini_sugar, batch_size=32)
    assert result["failed"] == []
    assert all(0 <= result[figure] <= 100 for figure in (twin.primary_metric, *twin.paper, *twin.chance))
    for cell in twin.paper.values():
        table, column = cell.split("/", 1)
        assert table == "pool" or column in TABLES[table].columns


def test_mini_clip_is_the_baseline():
    encoder = clip_encoder()
    assert encoder.name == "mini-clip (average)"
    assert encoder.max_length == 77
    result = RETRIEVAL["coco"].build(QUICK)(encoder)
    assert result["t2i recall@5"] > 50.0  # 8.3 by chance


def test_pools_grow_and_hold_the_right_one():
    evaluator = RETRIEVAL["pool"].build(QUICK)
    for ranking in evaluator.rankings:
        size = int(ranking.name)
        for query in (0, 7, 199):
            left = set(range(200)) - set(ranking.excluded[query])
            assert len(left) == size
            assert query in left
    result = evaluator(Seeing(blind))
    assert result["200 ties"] == 200
    assert set(RETRIEVAL["pool"].paper) <= set(result)
