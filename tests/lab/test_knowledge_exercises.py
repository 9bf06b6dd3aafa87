import random
from collections import Counter

import pytest

from sugar_hf.picturebook.glyphs import CONCEPTS
from sugar_hf.picturebook.names import GROUP_OF
from sugar_hf.picturebook.scenes import BACKGROUNDS, Scene, belongs
from sugar_lab.exercises import draw_many
from sugar_lab.exercises.facts import CHOICES, HOMES, NAMES, RELATIONS, YEARS, World
from sugar_lab.exercises.knowledge_exercises import EXERCISES, POSITIONS, UNKNOWN, WORDS, ask

SIZE = 400


def drawn(kind, split="train", size=SIZE):
    return draw_many(EXERCISES[kind], kind, split, size)


def texts(exercise):
    return "".join(part for part in exercise.parts if isinstance(part, str))


def scenes(exercise):
    return [part for part in exercise.parts if isinstance(part, Scene)]


@pytest.mark.parametrize("kind", EXERCISES)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_exercises_of_knowledge_are_the_same_each_time_and_belong_to_their_split(kind, split):
    found = drawn(kind, split, 60)
    assert found == drawn(kind, split, 60)
    assert all(belongs([scene], split) for exercise in found for scene in scenes(exercise))
    assert all(exercise.kind == kind and exercise.answer for exercise in found)


def test_names_and_places_are_many_and_differ():
    assert len(NAMES) == len(set(NAMES)) == 40
    assert len(HOMES) == len(set(HOMES)) == 20
    assert len(YEARS) == 19
    assert not set(NAMES + HOMES) & set(CONCEPTS)


def test_worlds_agree_no_more_often_than_by_chance():
    one, other = World("test"), World("train/1")
    for name, relation in (RELATIONS | CHOICES).items():
        same = sum(one.value(concept, name) == other.value(concept, name) for concept in CONCEPTS) / len(CONCEPTS)
        assert abs(same - 1 / len(relation.values)) < 0.1
        assert one.value("dog", name) == World("test").value("dog", name)


def test_each_training_exercise_has_a_world_of_its_own():
    worlds = {World.of_split("train", random.Random(seed)) for seed in range(100)}
    assert len(worlds) == 100
    assert World.of_split("test", random.Random(0)) == World("test") not in worlds


def test_facts_are_told_with_the_name_of_their_thing():
    world = World("test")
    assert world.fact("dog", "owner") == f"the dog belongs to {world.value('dog', 'owner')}."
    assert world.fact("dog", "age") == f"the dog is {world.value('dog', 'age')} years old."


def test_a_question_names_the_kind_of_the_thing_or_its_place_and_never_itself():
    rng = random.Random(0)
    for concept in CONCEPTS[::5]:
        asked = ask(World("test"), concept, "owner", rng, "test", by_place=0.5)
        assert concept not in asked.question.split()
        assert {GROUP_OF[item.concept] for item in asked.scene.items[1:]}.isdisjoint({GROUP_OF[concept]})


def test_the_picture_tells_which_fact_is_the_answer():
    for exercise in drawn("fact"):
        told, picture = texts(exercise), scenes(exercise)[0]
        if WORDS not in told:
            assert exercise.answer == UNKNOWN
            continue
        facts = exercise.parts[0].removeprefix(WORDS).strip().removesuffix(".").split(". ")
        assert 1 <= len(facts) <= 3
        sign = {"owner": "belongs", "home": "comes", "age": "old"}[exercise.info["relation"]]
        fits = [fact for fact in facts if sign in fact and picture.items[0].concept == fact.split()[1]]
        if exercise.answer == UNKNOWN:
            assert not fits
        else:
            assert len(fits) == 1
            assert exercise.answer in fits[0].split()


def test_a_fifth_of_the_questions_of_facts_cannot_be_answered():
    share = sum(exercise.answer == UNKNOWN for exercise in drawn("fact", size=2000)) / 2000
    assert 0.15 < share < 0.23


def test_an_example_of_the_same_thing_has_the_same_answer():
    for exercise in drawn("shots"):
        *shots, asked = scenes(exercise)
        answers = [part.split("Answer: ")[1].strip() for part in exercise.parts[1:-1:2]]
        right = [said for said, shot in zip(answers, shots, strict=True) if _same(shot, asked)]
        assert right == ([] if exercise.answer == UNKNOWN else [exercise.answer])
        assert len(answers) in (1, 2)


def _same(shot, asked):
    return shot.items[0].concept == asked.items[0].concept


def test_letters_are_uniform():
    letters = Counter(
        exercise.answer for exercise in drawn("shots", size=3000) if exercise.info["relation"] in CHOICES
    )
    total = sum(letters.values())
    assert set(letters) == set("ABC")
    assert all(abs(count / total - 1 / 3) < 0.05 for count in letters.values())


def test_caption_and_picture_together_answer():
    for exercise in drawn("web"):
        *captions, last = [part for part in exercise.parts[1:] if isinstance(part, str)]
        caption, question = last.split(". ")
        captions = [each.strip(" .") for each in (*captions, caption)]
        fits = [scene for said, scene in zip(captions, scenes(exercise), strict=True) if f"{said}?" in question]
        if exercise.answer == UNKNOWN:
            assert not fits
        else:
            [scene] = fits
            assert exercise.answer in (scene.background, scene.items[1].concept)
            assert (exercise.answer in BACKGROUNDS) == question.startswith("which colour")


def test_half_of_the_probe_is_yes_and_the_thing_is_always_in_one_of_the_pictures():
    found = drawn("position", size=1000)
    assert 0.45 < sum(exercise.answer == "yes" for exercise in found) / len(found) < 0.55
    places = Counter(exercise.info["position"] for exercise in found)
    assert set(places) == set(range(1, POSITIONS + 1))
    assert min(places.values()) > 120
    for exercise in found[:100]:
        thing = exercise.parts[0].removeprefix("is there ").split(" with ")[0].split(" ", 1)[1]
        holds = [scene.find(thing) is not None for scene in scenes(exercise)]
        assert sum(holds) == 1
        assert holds[exercise.info["position"] - 1] == (exercise.answer == "yes")
