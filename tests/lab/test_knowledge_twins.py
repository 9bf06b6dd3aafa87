import random
import re

import numpy as np
import pytest

from sugar_hf import picturebook
from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.evaluation.benchmarks.tasks import knowledge_vqa as knowledge
from sugar_hf.evaluation.benchmarks.tasks.augmented_vqa import shots_as_text
from sugar_hf.evaluation.benchmarks.tasks.webqa_tasks import position_prompt
from sugar_hf.evaluation.examples import Record
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.retrieval.rag import KNOWLEDGE_VQA
from sugar_lab.budget import QUICK
from sugar_lab.exercises import draw_many
from sugar_lab.exercises.facts import NAMES
from sugar_lab.exercises.knowledge_exercises import EXERCISES, WORDS, draw_page
from sugar_lab.twins import all_twins
from sugar_lab.twins.knowledge_twins import CANDIDATES, TWINS, VARIANTS, candidates

SEARCHING = [name for name in TWINS if name != "webqa-position"]


class Reading:
    """A generator that reads the answer off what stands before the question."""

    def __init__(self):
        self.name, self.asked = "reading", []

    def generate(self, samples, max_new_tokens):
        self.asked += samples
        return [self._read(texts(sample)) for sample in samples]

    def settings(self):
        return {"model": self.name}

    def _read(self, told):
        found = re.search(r"Answer: (\w+)|belongs to (\w+)|comes from (\w+)\.|is (\w+) years", told)
        return next(filter(None, found.groups())) if found else "nothing"


class Perfect:
    """An encoder that gives a question and its right entry the same vector."""

    def __init__(self, evaluator):
        self.name, self.size = "perfect", len(evaluator.pool.entries)
        self.gold = {
            example.id: numbers[0] for example, numbers in zip(evaluator.examples, evaluator.pool.gold, strict=True)
        }

    def embed_documents(self, documents, *, batch_size=8, skipped=None, progress=None):
        vectors = np.eye(self.size, dtype=np.float32)
        return [vectors[[self.gold.get(each.id, int(each.id.split()[-1]))]] for each in documents]

    def describe(self):
        return {"encoder": self.name}

    def notes(self):
        return {}


def texts(sample):
    return "".join(part for part in sample if isinstance(part, str))


def answer(example):
    return example.reference["answer"] if "answer" in example.reference else example.reference["answers"][0]


@pytest.fixture(scope="module")
def mini():
    folder = picturebook.checkpoint("mini-sugar")
    return SugarForConditionalGeneration.from_pretrained(folder).eval(), SugarProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name", TWINS)
def test_right_answers_get_everything_and_wrong_ones_nothing(name):
    evaluator = TWINS[name].build(QUICK)
    right = evaluator.score([Record(each.id, answer(each), each.reference) for each in evaluator.examples])
    wrong = evaluator.score([Record(each.id, "nothing", each.reference) for each in evaluator.examples])
    assert right[evaluator.primary_metric] == pytest.approx(100)
    assert wrong[evaluator.primary_metric] == 0
    assert set(TWINS[name].paper) | set(TWINS[name].chance) <= set(right)
    assert TWINS[name].primary_metric == evaluator.primary_metric
    assert TWINS[name].name == evaluator.name == name


@pytest.mark.parametrize("name", TWINS)
def test_twins_are_drawn_the_same_each_time(name):
    one, other = TWINS[name].build(QUICK), TWINS[name].build(QUICK)
    first, again = list(one.examples), list(other.examples)
    assert [texts(each.document.sample) for each in first] == [texts(each.document.sample) for each in again]
    assert [each.reference for each in first] == [each.reference for each in again]
    assert len({each.id for each in first}) == len(first)


@pytest.mark.parametrize("name", SEARCHING)
def test_no_two_of_a_pool_are_one(name):
    pool = TWINS[name].build(QUICK).pool
    assert len({entry.id for entry in pool.entries}) == len(pool.entries)
    assert all(len(numbers) == 1 for numbers in pool.gold)


@pytest.mark.parametrize("name", ["fvqa", "rag-vizwiz", "rag-scienceqa"])
def test_what_is_found_gives_the_answer_and_nothing_else_does(name):
    evaluator = TWINS[name].build(QUICK)
    reading = Reading()
    result = evaluator(reading, encoder=Perfect(evaluator))
    assert result["retrieval recall@1"] == 100
    assert result[evaluator.primary_metric] == pytest.approx(100)
    _, _, build = VARIANTS[f"{name}, no retrieval"]
    assert build(QUICK)(reading)[evaluator.primary_metric] == 0
    for example in evaluator.examples:
        if name != "rag-scienceqa":  # whose question has all options
            assert answer(example) not in texts(example.document.sample).split()


def test_a_page_that_is_found_stands_before_its_question():
    evaluator = TWINS["webqa"].build(QUICK)
    reading = Reading()
    assert evaluator(reading, encoder=Perfect(evaluator))["retrieval recall@1"] == 100
    for prompt in reading.asked:
        words, picture, asked = prompt
        caption, question = asked.strip().split(". ")
        assert words == f"{WORDS} "
        assert picture.size == (96, 96)
        assert question.endswith(f" {caption}?")


def test_a_question_searches_among_twelve_pages_with_another_of_the_same_thing():
    rng = random.Random(0)
    pages = [draw_page(concept, name, rng, "test") for concept in CONCEPTS[:30] for name in rng.sample(NAMES, 2)]
    for relevant in range(len(pages)):
        found = candidates(pages, relevant, rng)
        assert len(set(found)) == CANDIDATES
        assert relevant in found
        assert found == sorted(found)
        assert sum(pages[number].concept == pages[relevant].concept for number in found) == 2
        same_owner = sum(page.owner == pages[relevant].owner for page in pages)
        assert sum(pages[number].owner == pages[relevant].owner for number in found) >= min(same_owner, 2)


def test_the_relevant_pair_is_at_each_place_among_the_same_others():
    evaluator = TWINS["webqa-position"].build(QUICK)
    assert len(evaluator.examples) == QUICK.questions // 2 * 6
    prompts = [texts(evaluator.examples[i].document.sample) for i in range(6)]
    wanted = prompts[0].split("\n")[0].split(" with ")[1].removesuffix("?")
    captions = [re.findall(r"the \w+ of \w+", prompt.split("\n", 1)[1]) for prompt in prompts]
    assert [each.index(wanted) for each in captions] == [0, 1, 2, 3, 4, 5]
    assert len({tuple(one for one in each if one != wanted) for each in captions}) == 1
    right = [Record(each.id, answer(each), each.reference) for each in evaluator.examples]
    assert evaluator.score(right)["labels yes"] == 50
    assert evaluator.score([Record(each.id, "yes", each.reference) for each in right])["mean"] == 50


def test_training_has_the_prompts_of_the_evaluation():
    assert WORDS == knowledge.WORDS == KNOWLEDGE_VQA.text.removesuffix(" {documents} {question}")
    for exercise in draw_many(EXERCISES["fact"], "fact", "train", 50):
        if len(exercise.parts) == 3:
            facts = exercise.parts[0].removeprefix(WORDS).strip()
            question = [exercise.parts[1], exercise.parts[2].strip()]
            assert knowledge.knowledge_prompt(question, [[facts]]) == list(exercise.parts)
    for exercise in draw_many(EXERCISES["web"], "web", "train", 50):
        captions = [part.strip() for part in exercise.parts[2::2]]
        captions[-1], question = captions[-1].split(". ")
        documents = [[scene, caption] for scene, caption in zip(exercise.parts[1::2], captions, strict=True)]
        documents[-1][1] += "."
        assert knowledge.knowledge_prompt([question], documents) == list(exercise.parts)
    for exercise in draw_many(EXERCISES["position"], "position", "train", 20):
        captions = [part.split(".\n")[0].strip() for part in exercise.parts[2::2]]
        pairs = list(zip(exercise.parts[1::2], captions, strict=True))
        assert position_prompt(exercise.parts[0].strip(), pairs) == list(exercise.parts)
    for exercise in draw_many(EXERCISES["shots"], "shots", "train", 50):
        told = [part.strip().split("\nAnswer: ") for part in exercise.parts[1:-1:2]]
        shots = [[scene, *each] for scene, each in zip(exercise.parts[:-2:2], told, strict=True)]
        assert shots_as_text(exercise.parts[-2:], shots) == list(exercise.parts)


def test_twins_and_variants_are_of_cells_of_the_paper():
    for twin in TWINS.values():
        for cell in twin.paper.values():
            table, column = cell.split("/", 1)
            assert column in TABLES[table].columns
    assert set(TWINS) <= set(all_twins())
    assert set(VARIANTS) == {
        f"{name}, {suffix}" for name in SEARCHING for suffix in ("no retrieval", "image", "text", "average")
    }
    for name, (twin, suffix, build) in VARIANTS.items():
        evaluator = build(QUICK)
        assert name == f"{twin}, {suffix}"
        assert evaluator.name == twin
        assert evaluator.top_k == (suffix != "no retrieval")


@pytest.mark.parametrize("name", TWINS)
def test_the_mini_model_is_measured(name, mini):
    result = TWINS[name].build(QUICK)(*mini, batch_size=16)
    assert result["failed"] == []
    assert 0 <= result[TWINS[name].primary_metric] <= 100
    if name in SEARCHING:
        assert result["unsearched"] == 0
        assert result["skipped"] == []
        assert result["settings"]["view"] == "whole"
