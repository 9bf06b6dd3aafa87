"""The drawn world: deterministic, told truly, and split by combination."""

import random
import unicodedata
from itertools import combinations

import numpy as np
import pytest

from sugar_hf import picturebook
from sugar_hf.data import to_sample, validate_row
from sugar_hf.picturebook import glyphs, scenes, stories


def test_three_hundred_concepts_with_unicode_names():
    assert len(picturebook.CONCEPTS) == len(set(picturebook.CONCEPTS)) == 300
    for name in picturebook.CONCEPTS:
        unicodedata.lookup(glyphs.UNICODE_NAMES.get(name, name.upper()))


def test_sprites_are_drawn_and_different():
    sheet = glyphs.sprite_sheet()
    assert sheet.shape == (300, 64, 64, 4)
    assert (sheet[..., 3].reshape(300, -1).max(axis=1) > 240).all()
    assert len({tile.tobytes() for tile in sheet}) == 300
    with pytest.raises(KeyError, match="no concept named 'unicorn'"):
        picturebook.sprite("unicorn")


def test_render_puts_the_glyph_into_its_cell():
    empty = scenes.render_array(scenes.Scene((), "blue", look=3)).astype(int)
    scene = scenes.Scene((scenes.Item("dog", "large", 5),), "blue", look=3)
    changed = np.abs(scenes.render_array(scene).astype(int) - empty).sum(axis=-1) > 0
    ys, xs = np.nonzero(changed)
    assert 32 <= ys.min() < ys.max() < 64
    assert 64 <= xs.min() < xs.max() < 96


def test_large_is_larger_than_small():
    def ink(size):
        blank = scenes.render_array(scenes.Scene((), "white"))
        drawn = scenes.render_array(scenes.Scene((scenes.Item("tomato", size, 4),), "white"))
        return (drawn != blank).any(axis=-1).sum()

    assert ink("large") > 1.5 * ink("small")


def test_scenes_keep_to_their_split(subtests):
    for split in picturebook.SPLITS:
        with subtests.test(split=f"{split!r:.60}"):
            rng = random.Random(1)
            for _ in range(100):
                found = scenes.splits_of(scenes.random_scene(rng, split))
                assert found == {"train"} if split == "train" else split in found


def test_a_tenth_of_the_combinations_is_held_out_for_test():
    pairs = list(combinations(picturebook.CONCEPTS, 2))
    share = sum(scenes.split_of(*pair) == "test" for pair in pairs) / len(pairs)
    assert 0.09 < share < 0.11


def test_full_captions_tell_everything():
    rng = random.Random(2)
    for _ in range(100):
        scene = scenes.draw_scene(rng)
        words = scenes.caption(scene, rng)
        assert scene.background in words
        for item in scene.items:
            assert f"a {item.size} {item.concept}" in words
            assert any(place in words for place in scenes.PLACES[item.place])


def test_questions_are_answered_truly():
    rng = random.Random(3)
    yes = 0
    for _ in range(300):
        scene = scenes.draw_scene(rng)
        answers = {kind: (question, answer) for kind, question, answer in scenes.questions(scene, rng)}
        assert answers["how many"][1] == ("one", "two", "three")[len(scene.items) - 1]
        assert answers["background"][1] == scene.background
        question, answer = answers["what"]
        (item,) = [item for item in scene.items if question[8:-1] in scenes.PLACES[item.place]]
        assert answer == item.concept
        question, answer = answers["yes/no"]
        asked = question.split()[-1].rstrip("?")
        assert (answer == "yes") == (scene.find(asked) is not None)
        yes += answer == "yes"
    assert 120 < yes < 180


def test_stories_tell_what_changes():
    rng = random.Random(4)
    for _ in range(100):
        story = stories.draw_story(rng, "train")
        assert 3 <= len(story.frames) <= 6
        assert len(story.sentences) == len(story.frames)
        for before, after, words in zip(story.frames, story.frames[1:], story.sentences[1:], strict=False):
            places = [item.place for item in after.items]
            assert len(set(places)) == len(places)
            if before.background != after.background:
                assert after.background in words
            else:
                (changed,) = {item.concept for item in {*before.items} ^ {*after.items}}
                assert changed in words


def test_processes_name_their_order():
    story = stories.draw_process(random.Random(5), "train", length=4)
    assert [words.split(",")[0] for words in story.sentences] == ["first", "then", "next", "at last"]


def test_rows_are_in_the_common_schema(subtests):
    for kind in picturebook.KINDS:
        with subtests.test(kind=f"{kind!r:.60}"):
            for row in picturebook.load("test", kind=kind, size=6):
                validate_row(row)
                assert to_sample(row)
                assert row["kind"] == kind
                answers = sum(message["role"] == "assistant" for message in row["messages"])
                assert len(row["question_kinds"]) == (answers if kind == "question" else 0)


def test_load_is_deterministic_and_seeds_differ():
    first, again, other = (picturebook.load("train", size=20, seed=seed) for seed in (0, 0, 1))
    assert first.to_list() == again.to_list()
    assert not {str(row["messages"]) for row in first} & {
        str(row["messages"]) for row in other if row["kind"] == "story"
    }


def test_twins_meet_in_a_batch_and_tell_the_same():
    rows = picturebook.load("train", size=24)
    for block in (rows.select(range(12)), rows.select(range(12, 24))):
        numbers = {
            kind: [row["id"].split("-")[-1] for row in block if row["kind"] == kind] for kind in ("words", "pictures")
        }
        assert len(numbers["words"]) == 1
        assert numbers["words"] == numbers["pictures"]
    words = picturebook.load("train", kind="words", size=40)
    pictures = picturebook.load("train", kind="pictures", size=40)
    lengths = [(len(a["messages"][0]["content"]), len(b["images"])) for a, b in zip(words, pictures, strict=True)]
    assert {shown for told, shown in lengths if told == 1} == {1}
    assert {shown in (1, told) for told, shown in lengths} == {True}
    assert not any(row["images"] for row in words)


def test_load_names_what_there_is():
    with pytest.raises(ValueError, match="choose one of train, validation, test"):
        picturebook.load("dev")
    with pytest.raises(ValueError, match="choose one of story, process"):
        picturebook.load(kind="poem")
    with pytest.raises(FileNotFoundError, match="no checkpoint 'maxi-vlm'"):
        picturebook.checkpoint("maxi-vlm")


def test_documents_can_be_of_one_form():
    rows = picturebook.load("test", kind="story", size=5, words_first=True, frames=5)
    for row in rows:
        assert [part["type"] for part in row["messages"][0]["content"]] == ["text", "image"] * 5
