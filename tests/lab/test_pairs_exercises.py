import random
from collections import Counter

import numpy as np
import pytest

from sugar_hf.evaluation.benchmarks.tasks.image_pairs import mmvp_prompt
from sugar_hf.picturebook import SPLITS, random_scene, render
from sugar_hf.picturebook.scenes import PLACES
from sugar_lab.exercises import draw_many
from sugar_lab.exercises.contrasts import (
    DIFFERENCES,
    REORDERINGS,
    draw_contrast,
    draw_contrasts,
    draw_reordering,
    fits,
    near_copy,
)
from sugar_lab.exercises.crowds import sign_of, things
from sugar_lab.exercises.pair_exercises import EXERCISES, TWO_CHOICES

PLACE_OF = {name: place for place, names in enumerate(PLACES) for name in names}


def drawn(kind, split="test", size=60):
    return draw_contrasts(draw_contrast, kind, split, size)


def cells(scene):
    """Which of the nine cells of a picture hold what: 9 blocks of pixels."""
    pixels = np.asarray(render(scene)).reshape(3, 32, 3, 32, 3).swapaxes(1, 2)
    return pixels.reshape(9, -1)


def is_true(kind, text, scene):
    """Whether a statement is true of a scene, read from its words alone."""
    found = {item.concept: item for item in things(scene)}
    words = text.split()
    if kind == "presence":
        there, other = text.split(" and ") if " and " in text else text.split(" but no ")
        wanted = other.split()[-1]
        return there.split()[-1] in found and (wanted in found) == (" and " in text)
    if kind == "count":
        return ("no", "one", "two", "three", "four", "five").index(words[0]) == len(scene.items)
    if kind == "size":
        return found[words[2]].size == words[1]
    if kind in ("place", "kind"):
        item = found.get(words[1])
        return item is not None and item.place == PLACE_OF[" ".join(words[2:])]
    if kind == "relation":
        one, two = found[words[1]].place, found[words[-1]].place
        holds = {
            "left": one % 3 < two % 3,
            "right": one % 3 > two % 3,
            "above": one // 3 < two // 3,
            "below": one // 3 > two // 3,
        }
        return holds[words[2]]
    if kind == "background":
        return scene.background == words[4] and words[1] in found
    if kind == "text":
        return sign_of(scene).text == words[-1]
    names, across = text.split(" from ")[0], text.endswith("left to right")
    order = [phrase.split()[-1] for phrase in names.replace(" and ", ", ").split(", ")]
    places = sorted(found.values(), key=lambda item: item.place % 3 if across else item.place // 3)
    return [item.concept for item in places] == order


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_each_text_is_true_of_its_scene_alone(kind):
    for contrast in drawn(kind):
        assert [is_true(kind, text, scene) for text in contrast.texts for scene in contrast.scenes] == [
            True,
            False,
            False,
            True,
        ]


@pytest.mark.parametrize("kind", DIFFERENCES)
def test_nothing_else_differs_between_the_two_pictures(kind):
    most = {"presence": 1, "count": 1, "size": 1, "place": 2, "relation": 2, "background": 9, "text": 1}
    most |= {"order": 2, "kind": 1}
    for contrast in drawn(kind, size=20):
        first, second = map(cells, contrast.scenes)
        differing = int((first != second).any(axis=1).sum())
        assert 1 <= differing <= most[kind]


@pytest.mark.parametrize("split", SPLITS)
def test_both_scenes_of_a_contrast_belong_to_its_split(split):
    contrasts = [contrast for kind in DIFFERENCES for contrast in drawn(kind, split, 20)]
    contrasts += [contrast for kind in REORDERINGS for contrast in draw_contrasts(draw_reordering, kind, split, 20)]
    assert all(fits(scene, split) for contrast in contrasts for scene in contrast.scenes)


def test_a_near_copy_has_one_change_and_belongs_to_the_split():
    rng = random.Random(0)
    changes = Counter()
    for _ in range(150):
        scene = random_scene(rng, "test")
        copy = near_copy(scene, rng, "test")
        names, others = ([(item.concept, item.size) for item in each.items] for each in (scene, copy))
        places = [item.place for item in scene.items] != [item.place for item in copy.items]
        replaced = sum(one != other for one, other in zip(names, others, strict=True))
        found = {"places": places, "thing": replaced == 1, "background": scene.background != copy.background}
        assert sum(found.values()) == 1
        assert fits(copy, "test")
        changes.update(name for name, is_so in found.items() if is_so)
    assert min(changes[name] for name in ("places", "thing", "background")) > 20


@pytest.mark.parametrize("kind", REORDERINGS)
def test_a_reordering_has_the_same_words_and_other_things_to_see(kind):
    for contrast in draw_contrasts(draw_reordering, kind, "test", 60):
        first, second = contrast.texts
        assert first != second
        assert Counter(first.split()) == Counter(second.split())
        for text, scene in zip(contrast.texts, contrast.scenes, strict=True):
            said = [phrase.split() for phrase in text.split(" and ")]
            assert {(words[2], words[1], PLACE_OF[" ".join(words[3:])]) for words in said} == {
                (item.concept, item.size, item.place) for item in scene.items
            }
        one, two = ({(item.concept, item.size, item.place) for item in scene.items} for scene in contrast.scenes)
        assert not one & two


def test_pairs_are_the_same_each_time_and_the_first_do_not_depend_on_how_many():
    assert drawn("order", size=5) == drawn("order", size=9)[:5]
    assert draw_contrasts(draw_contrast, "order", "test", 5, seed=1) != drawn("order", size=5)


def test_kinds_that_there_are_not_are_named():
    rng = random.Random(0)
    with pytest.raises(ValueError, match="no difference 'colour'; choose one of presence, count"):
        draw_contrast(rng, "test", "colour")
    with pytest.raises(ValueError, match="nothing exchanges 'colours'; choose one of things, sizes, places"):
        draw_reordering(rng, "test", "colours")


def test_two_choices_are_asked_in_the_words_of_the_paper():
    assert TWO_CHOICES.format("a cat", "a dog") == mmvp_prompt("a cat", "a dog")


def test_the_letter_of_two_choices_is_that_of_the_true_statement():
    for exercise in draw_many(EXERCISES["two_choice"], "two_choice", "train", 300):
        scene, question = exercise.parts
        choices = {line[0]: line[2:] for line in question.split("\n")[1:3]}
        true = [letter for letter, text in choices.items() if is_true(exercise.info["type"], text, scene)]
        assert true == [exercise.answer]


def test_letters_and_kinds_of_two_choices_are_balanced():
    exercises = draw_many(EXERCISES["two_choice"], "two_choice", "train", 1800)
    assert 0.46 < sum(exercise.answer == "A" for exercise in exercises) / 1800 < 0.54
    kinds = Counter(exercise.info["type"] for exercise in exercises)
    assert set(kinds) == set(DIFFERENCES)
    assert min(kinds.values()) > 140
    # no words give the answer away: those that are only in one statement are as often in the right one
    for word in (" but no ", " left of ", " above ", "a small "):
        found = [[word in line for line in exercise.parts[1].split("\n")[1:3]] for exercise in exercises]
        right = [
            both["AB".index(exercise.answer)]
            for both, exercise in zip(found, exercises, strict=True)
            if sum(line_has for line_has in both) == 1 and exercise.info["type"] in ("presence", "relation", "size")
        ]
        assert len(right) > 50
        assert 0.35 < np.mean(right) < 0.65


def test_a_two_choice_is_a_row_of_training():
    [exercise] = draw_many(EXERCISES["two_choice"], "two_choice", "train", 1)
    row = exercise.row()
    assert [part["type"] for part in row["messages"][0]["content"]] == ["image", "text"]
    assert row["messages"][1]["content"][0]["text"] == exercise.answer
    assert len(row["images"]) == 1
