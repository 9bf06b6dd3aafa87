"""Exercises with several pictures between texts: what they hold, and that they can be answered in one way only."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from sugar_hf.data import to_sample
from sugar_hf.evaluation.benchmarks.scorers import demon_text_choice
from sugar_hf.evaluation.benchmarks.tasks.demon_tasks import choice_text as official_choice_text
from sugar_hf.picturebook import Scene
from sugar_hf.picturebook.scenes import PLACES, SPLITS, belongs
from sugar_lab.exercises import draw_many
from sugar_lab.exercises.crowds import sign_of, things
from sugar_lab.exercises.interleaved import EXERCISES, GAP, IMAGES, LONGEST, NUMBERS, ORDER, choice_text

SIZE = 300


@cache
def drawn(kind, split="test"):
    return draw_many(EXERCISES[kind], kind, split, SIZE)


def scenes_of(exercise):
    return [part for part in exercise.parts if isinstance(part, Scene)]


def text_of(exercise):
    return " ".join(part for part in exercise.parts if isinstance(part, str))


def asked_of(exercise):
    """Number of the picture that the question names by its order."""
    return ORDER.index(re.search(rf"the ({'|'.join(ORDER)}) picture", text_of(exercise)).group(1))


def place_of(words):
    return next(number for number, names in enumerate(PLACES) if words in names)


def chosen(kind):
    return [exercise for exercise in drawn(kind) if "choices" in exercise.info]


every_kind = pytest.mark.parametrize("kind", EXERCISES)


@every_kind
def test_the_same_exercises_are_drawn_twice_and_other_ones_for_another_seed(kind):
    draw = EXERCISES[kind]
    assert draw_many(draw, kind, "test", 20) == drawn(kind)[:20]
    assert draw_many(draw, kind, "test", 20, seed=1) != drawn(kind)[:20]


@every_kind
@pytest.mark.parametrize("split", SPLITS)
def test_what_an_exercise_shows_belongs_to_its_split(kind, split):
    for exercise in drawn(kind, split):
        unsigned = [replace(scene, items=tuple(things(scene))) for scene in scenes_of(exercise)]
        assert belongs(unsigned, split)


@every_kind
def test_prompts_are_short_and_hold_few_pictures(kind):
    for exercise in drawn(kind):
        assert exercise.kind == kind
        assert len(text_of(exercise).split()) <= LONGEST
        assert (1 if kind == "knowledge" else 2) <= len(scenes_of(exercise)) <= 5


@every_kind
def test_a_row_of_training_has_prompt_and_answer_as_two_turns(kind):
    exercise = drawn(kind, "train")[0]
    user, assistant = to_sample({"id": "0", "source": "picturebook", **exercise.row()})
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    wanted = ["image" if isinstance(part, Scene) else "text" for part in exercise.parts]
    assert [part["type"] for part in user["content"]] == wanted
    assert [part["text"] for part in assistant["content"]] == [exercise.answer]


def test_choices_are_listed_as_demon_lists_them():
    assert choice_text(["a cat", "a dog"]) == official_choice_text(["a cat", "a dog"])
    for exercise in chosen("knowledge"):
        assert exercise.parts[-1].endswith(choice_text(exercise.info["choices"]))


@pytest.mark.parametrize("kind", ["cloze", "knowledge", "text_rich", "reasoning"])
def test_the_scorer_tells_all_choices_apart(kind):
    for exercise in chosen(kind)[:60]:
        choices = exercise.info["choices"]
        right = [choice for choice in choices if demon_text_choice(choice, choices, exercise.answer)]
        assert right == [exercise.answer]


@pytest.mark.parametrize("kind", ["cloze", "knowledge", "text_rich"])
def test_the_right_choice_stands_anywhere_equally_often(kind):
    places = Counter(exercise.info["choices"].index(exercise.answer) for exercise in chosen(kind))
    total = sum(places.values())
    assert set(places) == {0, 1, 2, 3}
    assert all(abs(count / total - 0.25) < 0.1 for count in places.values())


def test_the_answer_of_a_dialogue_is_in_an_earlier_picture_only():
    for exercise in drawn("dialogue"):
        scenes, asked = scenes_of(exercise), asked_of(exercise)
        question = exercise.parts[-1].split("picture, ")[1]
        said = []
        for scene in scenes:
            if found := re.match(r"what is (.*)\?", question):
                said.append(scene.at(place_of(found.group(1))).concept)
            elif found := re.match(r"where is the (.*)\?", question):
                said.append(PLACES[scene.find(found.group(1)).place][0])
            else:
                said.append(scene.background)
        assert asked < len(scenes) - 1
        assert said[asked] == exercise.answer
        assert said.count(exercise.answer) == 1


def test_a_dialogue_does_not_give_its_answer_away():
    for exercise in drawn("dialogue"):
        number = exercise.parts.index(scenes_of(exercise)[asked_of(exercise)])
        turn = exercise.parts[number + 1].split(" question: in the ")[0]
        assert not re.search(rf"\b{exercise.answer}\b", turn)


def test_a_story_ends_with_a_picture_and_alternates_before():
    for exercise in drawn("storytelling"):
        kinds = [isinstance(part, Scene) for part in exercise.parts]
        assert kinds == [True, False] * (len(kinds) // 2)
        assert exercise.parts[-1] == "what happens now?"
        assert exercise.answer.endswith(".")


def test_two_related_pictures_differ_in_one_thing_that_the_answer_names():
    for exercise in drawn("relation"):
        before, after = scenes_of(exercise)
        changed = {item.concept for item in set(before.items) ^ set(after.items)}
        if before.background != after.background:
            assert not changed
            assert after.background in exercise.answer
        else:
            assert len(changed) == 1
            assert changed.pop() in exercise.answer


def test_half_the_gaps_want_a_picture_and_its_letter_is_any_equally_often():
    letters = Counter(exercise.answer for exercise in drawn("cloze") if "choices" not in exercise.info)
    total = sum(letters.values())
    assert 0.4 < total / SIZE < 0.6
    assert set(letters) == set(IMAGES)
    assert all(abs(count / total - 0.25) < 0.1 for count in letters.values())


def test_no_two_pictures_to_choose_from_show_the_same():
    for exercise in drawn("cloze"):
        if "choices" in exercise.info:
            assert sum(GAP in part for part in exercise.parts if isinstance(part, str)) == 1
        else:
            shown = {(frozenset(scene.items), scene.background) for scene in scenes_of(exercise)}
            assert len(shown) == 5


def test_the_facts_and_the_picture_tell_who_owns_the_thing():
    for exercise in drawn("knowledge"):
        owners = {thing: name for name, thing in re.findall(r"(\w+) (?:owns|likes) the (\w+)\.", exercise.parts[0])}
        scenes, question = scenes_of(exercise), exercise.parts[-1].split("?")[0]
        where = re.search(r"the thing (.*)", question).group(1)
        if where == "in the picture":
            item = scenes[0].items[0]
        elif where.endswith("picture"):
            item = scenes[asked_of(exercise)].items[0]
        else:
            item = scenes[0].at(place_of(where))
        assert owners[item.concept] == exercise.answer
        assert sorted(owners.values()) == sorted(exercise.info["choices"])


def test_the_sign_that_is_asked_for_says_the_answer():
    for exercise in drawn("text_rich"):
        scenes = scenes_of(exercise)
        if found := re.search(r"picture with the (\w+) say", exercise.parts[-1]):
            [scene] = [scene for scene in scenes if scene.find(found.group(1))]
        else:
            scene = scenes[asked_of(exercise)]
        assert sign_of(scene).text == exercise.answer
        assert len(set(exercise.info["choices"])) == 4


def test_half_the_choices_of_a_sign_stand_on_a_sign():
    for exercise in drawn("text_rich"):
        texts = {sign_of(scene).text for scene in scenes_of(exercise)}
        assert len(texts & set(exercise.info["choices"])) == 2


def test_the_pictures_tell_the_answers_of_reasoning():
    for exercise in drawn("reasoning"):
        question, scenes = exercise.parts[-1], scenes_of(exercise)
        if question.startswith("do both"):
            first, second = ({item.concept for item in scene.items} for scene in scenes)
            assert exercise.answer == ("yes" if first == second else "no")
            continue
        concept = re.search(r"an? (\w+)\?", question).group(1)
        found = [number for number, scene in enumerate(scenes) if scene.find(concept)]
        if question.startswith("how many"):
            assert exercise.answer == NUMBERS[len(found)]
        else:
            assert [ORDER[number] for number in found] == [exercise.answer]


def test_the_answers_of_reasoning_are_balanced():
    for start, answers in (("do both", ("yes", "no")), ("how many", NUMBERS), ("in which", ORDER)):
        said = Counter(item.answer for item in drawn("reasoning") if item.parts[-1].startswith(start))
        total = sum(said.values())
        assert total > SIZE / 4
        assert set(said) == set(answers)
        assert all(abs(count / total - 1 / len(answers)) < 0.12 for count in said.values())
