"""What the lab trains: the data, and the rows."""

import json
import random
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from sugar_hf import SugarForConditionalGeneration, SugarProcessor, picturebook
from sugar_hf.picturebook.scenes import random_scene
from sugar_lab import mix
from sugar_lab import row_training as training
from sugar_lab.budget import Budget
from sugar_lab.exercises import Exercise
from sugar_lab.mix import prepare_mix, training_rows
from sugar_lab.model_rows import ROWS, Row
from sugar_lab.row_training import WithoutText, train_row

TINY = Budget("tiny", batch_size=6, rows=24, seeds=(0,))
A = random_scene(random.Random(0), "train")


# ---- The data of rows ----


def one_exercise(rng, split):
    return Exercise("one", (A, "what is the number?"), str(rng.randrange(1000)))


@pytest.fixture
def exercises(monkeypatch):
    monkeypatch.setattr(mix, "all_exercises", lambda: {"one": one_exercise, "two": one_exercise})


def kinds(rows):
    return [row["id"].split("-")[1] for row in rows]


def test_short_rows_come_first_and_pairs_stand_together(exercises):
    rows = training_rows("all", 180, 0)
    first, last = rows[:144], rows[144:]
    documents = [row["messages"][0]["role"] == "document" for row in rows]
    assert {sum(documents[start : start + 12]) for start in range(0, 144, 12)} == {8}
    assert sum(documents[144:]) == 18
    lengths = [mix._length(row) for row in last]
    assert lengths == sorted(lengths)
    assert max(len(row["images"]) for row in first) == 1
    assert max(len(row["images"]) for row in last) > 1
    found = kinds(rows)
    for kind, following in pairwise(found[:144]):
        assert (kind == "words") == (following == "pictures")
    numbers = [row["id"].split("-")[2:] for row in rows]
    assert all(numbers[i] == numbers[i + 1] for i, kind in enumerate(found[:144]) if kind == "words")
    assert {name: found[:144].count(name) for name in ("words", "caption", "one", "two", "question")} == {
        "words": 36,
        "caption": 24,
        "one": 19,
        "two": 19,
        "question": 10,
    }
    assert {name: found[144:].count(name) for name in ("one", "two", "question", "describe", "story")} == {
        "one": 6,
        "two": 6,
        "question": 3,
        "describe": 3,
        "story": 6,
    }
    assert len({row["id"] for row in rows}) == 180


def test_only_short_exercises_about_one_picture_come_first(monkeypatch):
    draws = {
        "two": lambda rng, split: Exercise("two", (A, A, "?"), "yes"),
        "none": lambda rng, split: Exercise("none", ("?",), "yes"),
        "wordy": lambda rng, split: Exercise("wordy", (A, "word " * 50), "yes"),
        "fit": lambda rng, split: Exercise("fit", (A, "what is there?"), "a dog"),
    }
    monkeypatch.setattr(mix, "all_exercises", lambda: draws)
    assert set(kinds(training_rows("generative", 24, 0))) == {"fit", "question"}


def test_a_half_of_the_data_has_as_many_rows(exercises):
    for part, role in (("generative", "user"), ("discriminative", "document")):
        rows = training_rows(part, 40, 0)
        assert len(rows) == 40
        assert {row["messages"][0]["role"] for row in rows} == {role}
    with pytest.raises(ValueError, match="no part 'half' of the training data; choose one of all, generative"):
        training_rows("half", 30, 0)


def test_the_data_depends_on_the_seed_alone(exercises):
    assert training_rows("all", 24, 1) == training_rows("all", 24, 1)
    ids = [{row["id"] for row in training_rows("all", 24, seed)} for seed in (0, 1)]
    assert ids[0].isdisjoint(ids[1])


def test_the_teachers_vectors_are_made_once(exercises, tmp_path, monkeypatch):
    rows = prepare_mix("all", 12, 0, tmp_path)
    assert len(rows) == 12
    assert all(len(row["teacher_clip"]) == len(row["teacher_is_image"]) for row in rows)
    monkeypatch.setattr(mix, "training_rows", None)
    again = prepare_mix("all", 12, 0, tmp_path)
    assert again["teacher_text"] == rows["teacher_text"]
    monkeypatch.setattr(mix, "all_exercises", lambda: {"three": one_exercise})
    with pytest.raises(ValueError, match="was made with other exercises"):
        prepare_mix("all", 12, 0, tmp_path)


# ---- Training ----


def test_without_text_there_is_nothing_to_write():
    processor = SugarProcessor.from_pretrained(picturebook.checkpoint("mini-vlm"))
    batch = WithoutText(processor)(training_rows("all", 12, 0))
    assert set(batch["labels"].unique().tolist()) == {-100}
    assert batch["slice_map"].abs().max() > 1


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_was_stopped_goes_on_to_the_same_model(exercises, tmp_path, monkeypatch):
    row, whole, stopped = ROWS["sugar"], tmp_path / "whole", tmp_path / "stopped"
    arguments = training.row_arguments

    def often(*settings):
        found = arguments(*settings)
        found.save_steps = 2
        return found

    monkeypatch.setattr(training, "row_arguments", often)
    folder = train_row(row, 0, TINY, whole)
    step = training.SugarTrainer.training_step

    def stop(self, *inputs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *inputs)

    monkeypatch.setattr(training.SugarTrainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_row(row, 0, TINY, stopped)
    assert not (stopped / "models").exists()
    monkeypatch.setattr(training.SugarTrainer, "training_step", step)
    again = train_row(row, 0, TINY, stopped)
    assert not (stopped / "runs" / "sugar-0").exists()
    wanted, found = (load_file(each / "model.safetensors") for each in (folder, again))
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    logs = [json.loads((each / "log.json").read_text()) for each in (folder, again)]
    assert [entry["step"] for entry in logs[1]] == [1, 2, 3, 4]
    assert logs[0] == logs[1]
    monkeypatch.setattr(training, "prepare_mix", None)
    assert train_row(row, 0, TINY, stopped) == again
    with pytest.raises(ValueError, match=r"was made with other settings\. Delete it"):
        train_row(Row("sugar", {"alpha": 3.0}), 0, TINY, stopped)


def test_only_the_language_model_and_the_head_are_trained(exercises, tmp_path):
    folder = train_row(ROWS["disc-only"], 0, TINY, tmp_path)
    before = SugarForConditionalGeneration.from_backbone(picturebook.checkpoint("mini-vlm"), retrieval_dim=128)
    after = dict(SugarForConditionalGeneration.from_pretrained(folder).named_parameters())
    changed = {name for name, weight in before.named_parameters() if not torch.equal(weight, after[name])}
    assert changed == {name for name in after if "language_model" in name or "retrieval_head" in name}
    log = json.loads((folder / "log.json").read_text())
    assert [entry["loss_lm"] for entry in log] == [0.0] * 4


def test_adapters_end_in_the_language_models_own_matrices(exercises, tmp_path):
    folder = train_row(ROWS["lora"], 0, TINY, tmp_path)
    before = SugarForConditionalGeneration.from_backbone(picturebook.checkpoint("mini-vlm"), retrieval_dim=128)
    after = dict(SugarForConditionalGeneration.from_pretrained(folder).named_parameters())
    assert after.keys() == dict(before.named_parameters()).keys()
    changed = {name for name, weight in before.named_parameters() if not torch.equal(weight, after[name])}
    adapted = {name for name in after if "language_model" in name and ("q_proj" in name or "v_proj" in name)}
    assert changed == adapted | {name for name in after if "retrieval_head" in name}
