"""What the lab trains: exercises as tokens, the base, and the rows."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlavaProcessor

from sugar_hf import SugarForConditionalGeneration, SugarProcessor, picturebook
from sugar_hf.data import to_sample
from sugar_hf.lab import mix, training
from sugar_hf.lab.budget import Budget
from sugar_hf.lab.mix import prepare_mix, training_rows
from sugar_hf.lab.pieces import by_length, draw_signs, pieces
from sugar_hf.lab.rows import ROWS, Row
from sugar_hf.lab.training import WithoutText, train_base, train_row
from sugar_hf.picturebook.exercises import Exercise, all_exercises
from sugar_hf.picturebook.recipe.vlm import Picture, collator
from sugar_hf.picturebook.scenes import random_scene

RNG = random.Random(0)
TINY = Budget("tiny", base_steps=0, steps=4, batch_size=6, rows=12, seeds=(0,))
A, B, C = (random_scene(RNG, "train") for _ in range(3))


@pytest.mark.parametrize(
    "parts",
    [
        (A, "what is there?"),
        (A, B, C, "which one has a dog?"),
        ("first: ", A, "then: ", B, "what is next?"),
        ("read this. ", A, " and this."),
        ("a dog runs.", "what does it do?"),
        ("fact: dogs run.", A, "what does it do?", "say yes or no.", B),
    ],
    ids=lambda parts: "".join("i" if isinstance(part, picturebook.Scene) else "t" for part in parts),
)
def test_an_exercise_has_the_tokens_that_the_processors_make(parts):
    exercise = Exercise("kind", parts, "the dog does.")
    backbone = picturebook.checkpoint("mini-vlm")
    batch = collator(LlavaProcessor.from_pretrained(backbone))([pieces(exercise)])
    processor = SugarProcessor.from_pretrained(backbone)
    expected = processor([to_sample({"id": "x", "source": "x", **exercise.row()})], return_labels=True)
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
    assert batch["labels"].tolist() == expected["labels"].tolist()


def test_all_kinds_of_exercises_have_the_tokens_that_the_processors_make():
    backbone = picturebook.checkpoint("mini-vlm")
    collate, processor = collator(LlavaProcessor.from_pretrained(backbone)), SugarProcessor.from_pretrained(backbone)
    for kind, draw in all_exercises().items():
        drawn = [draw(random.Random(f"{kind}/{number}"), "train") for number in range(3)]
        batch = collate([pieces(exercise) for exercise in drawn])
        samples = [to_sample({"id": kind, "source": "x", **exercise.row()}) for exercise in drawn]
        expected = processor(samples, return_labels=True, padding_side="right")
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
        assert batch["labels"].tolist() == expected["labels"].tolist()


def test_kinds_of_like_length_share_a_batch():
    def of(words, pictures):
        return lambda rng, split: Exercise("", (*(A for _ in range(pictures)), "word " * words), "yes")

    exercises = {"long": of(30, 3), "tiny": of(1, 1), "short": of(3, 1), "mid": of(20, 2)}
    groups = by_length(exercises, 2)
    assert [group.draws for group in groups] == [
        (exercises["tiny"], exercises["short"]),
        (exercises["mid"], exercises["long"]),
    ]
    assert len(by_length(exercises, 9)) == 4
    drawn = groups[0](random.Random(0))
    assert sum(isinstance(piece, Picture) for piece in drawn) == 1


def test_signs_are_asked_for_by_place():
    text = "".join(piece[0] for piece in draw_signs(random.Random(1)) if not isinstance(piece, Picture))
    assert text.count("does the sign") == 4
    assert text.count("</s>") == 7


# ---- The data of rows ----


def one_exercise(rng, split):
    return Exercise("one", (A, "what is the number?"), str(rng.randrange(1000)))


@pytest.fixture
def exercises(monkeypatch):
    monkeypatch.setattr(mix, "all_exercises", lambda: {"one": one_exercise, "two": one_exercise})


def kinds(rows):
    return [row["id"].split("-")[1] for row in rows]


def test_any_twelve_rows_are_half_documents_and_half_chats(exercises):
    rows = training_rows("all", 36, 0)
    documents = [row["messages"][0]["role"] == "document" for row in rows]
    assert {sum(documents[start : start + 12]) for start in range(25)} == {6}
    found = kinds(rows)
    for place, kind in enumerate(found):
        assert (kind == "words") == (found[place + 1 : place + 2] == ["pictures"])
    assert {name: found.count(name) for name in ("one", "two", "question", "describe")} == {
        "one": 6,
        "two": 6,
        "question": 3,
        "describe": 3,
    }


def test_a_half_of_the_data_has_as_many_rows(exercises):
    for part, role in (("generative", "user"), ("discriminative", "document")):
        rows = training_rows(part, 30, 0)
        assert len(rows) == 30
        assert {row["messages"][0]["role"] for row in rows} == {role}
    with pytest.raises(ValueError, match="no part 'half' of the training data; choose one of all, generative"):
        training_rows("half", 30, 0)


def test_the_data_depends_on_the_seed_alone(exercises):
    assert training_rows("all", 24, 1) == training_rows("all", 24, 1)
    assert training_rows("all", 24, 1)[:12] == training_rows("all", 12, 1)
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


def test_the_base_is_the_shipped_one_if_it_has_no_steps(tmp_path):
    assert str(train_base(0, tmp_path)) == picturebook.checkpoint("mini-vlm")
    assert list(tmp_path.iterdir()) == []


def test_without_text_there_is_nothing_to_write():
    processor = SugarProcessor.from_pretrained(picturebook.checkpoint("mini-vlm"))
    batch = WithoutText(processor)(training_rows("all", 12, 0))
    assert set(batch["labels"].unique().tolist()) == {-100}
    assert batch["slice_map"].max() > 1


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
        train_row(Row("sugar", "", {"alpha": 3.0}), 0, TINY, stopped)


def test_only_the_language_model_and_the_head_are_trained(exercises, tmp_path):
    folder = train_row(ROWS["disc-only"], 0, TINY, tmp_path)
    before = SugarForConditionalGeneration.from_backbone(picturebook.checkpoint("mini-vlm"), retrieval_dim=128)
    after = dict(SugarForConditionalGeneration.from_pretrained(folder).named_parameters())
    changed = {name for name, weight in before.named_parameters() if not torch.equal(weight, after[name])}
    assert changed == {name for name in after if "language_model" in name or "retrieval_head" in name}
    log = json.loads((folder / "log.json").read_text())
    assert [entry["loss_lm"] for entry in log] == [0.0] * 4
