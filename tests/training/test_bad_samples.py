"""Samples that cannot be used: named, or left out and counted, and the rest trains as if they had never been there."""

import math
import warnings

import pytest
import torch
from test_sugar_sft import make_sft
from training_tools import document, logged, make_dataset, make_rows, make_sugar, make_trainer

from sugar_hf.data import BadSampleError
from sugar_hf.training import SugarCollator

LONG = 60


def too_long(number=0):
    """A sample whose first text is over `max_length=LONG` already."""
    row = {**document(20 + number, "ti"), "id": f"long-{number}"}
    row["messages"][0]["content"][0]["text"] = "A cat on a mat. " * 40
    return row


def broken_image(number=0):
    row = {**document(30 + number, "it"), "id": f"broken-{number}"}
    row["images"][0]["bytes"] = row["images"][0]["bytes"][:60]
    return row


def other_roles(number=0):
    """A chat that the template of the tiny model does not take."""
    content = [{"type": "text", "text": "A cat."}]
    turns = [{"role": role, "content": content} for role in ("assistant", "assistant", "system")]
    return {"id": f"roles-{number}", "source": "tests", "messages": turns, "images": []}


def rows_with(bad, places):
    """The usual rows, with bad ones at some places."""
    rows = [row for row in make_rows() if row["id"] not in ("document-3", "document-7")]
    for number, place in enumerate(places):
        rows.insert(place, bad(number))
    return rows


def dataset_of(rows):
    """Teacher columns of sound rows; those of bad ones are as wide, and never looked at."""
    _, processor = make_sugar()
    sound = make_dataset(processor, [row for row in rows if row["id"].startswith(("document", "chat"))]).to_list()
    found = {row["id"]: row for row in sound}
    names = [name for name in sound[0] if name.startswith("teacher_")]
    return [found.get(row["id"], {**row, **{name: sound[0][name] for name in names}}) for row in rows]


ORDER = {"per_device_train_batch_size": 2, "train_sampling_strategy": "sequential", "max_length": LONG}


@pytest.mark.parametrize(
    ("bad", "field"), [(too_long, "messages"), (broken_image, r"images\[0\]"), (other_roles, "messages")]
)
def test_error_names_row_source_and_field(tmp_path, bad, field):
    rows = rows_with(bad, [2])
    dataset = make_dataset(make_sugar()[1], [rows[0]]).select([])
    dataset = type(dataset).from_list(dataset_of(rows), features=dataset.features)
    trainer = make_trainer(tmp_path, train_dataset=dataset, **ORDER)
    with pytest.raises(BadSampleError, match=rf"tests \(row 2, sample '{rows[2]['id']}'\): {field}: "):
        trainer.train()
    with pytest.raises(BadSampleError, match=rf"tests \(row 2, sample '{rows[2]['id']}'\): {field}: "):
        trainer.evaluate(dataset)


@pytest.mark.parametrize("workers", [0, 1])
def test_sft_and_workers_name_it_too(tmp_path, workers):
    trainer = make_sft(tmp_path, max_length=LONG, dataloader_num_workers=workers)
    trainer.train_dataset = dataset_of(rows_with(too_long, [0]))
    with pytest.raises(BadSampleError, match=r"sample 'long-0'\): messages: "):
        trainer.train()


@pytest.mark.parametrize(
    ("bad", "options"),
    [(too_long, {}), (broken_image, {}), (too_long, {"mini_batch_size": 1}), (broken_image, {"alpha": 0.0})],
)
def test_skipped_samples_are_counted_and_nothing_else_changes(tmp_path, caplog, bad, options):
    """Two bad rows in a batch of four: the losses are those of the two sound ones."""
    settings = {**ORDER, "per_device_train_batch_size": 4, "max_steps": 1, **options}
    rows = rows_with(bad, [1, 2])[:4]
    trainer = make_trainer(tmp_path / "a", train_dataset=dataset_of(rows), on_bad_sample="skip", **settings)
    trainer.train()
    assert logged(trainer, "skipped_samples") == [2]
    assert trainer.skipped_samples == 2
    assert f"A sample is left out (1 so far). tests (sample '{rows[1]['id']}')" in caplog.text
    sound = [rows[0], rows[3]]
    plain = make_trainer(
        tmp_path / "b", train_dataset=dataset_of(sound), **{**settings, "per_device_train_batch_size": 2}
    )
    plain.train()
    for name in ("loss", "loss_lm", "loss_structure", "grad_norm"):
        assert logged(trainer, name) == pytest.approx(logged(plain, name), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"mini_batch_size": 1}, {"gradient_accumulation_steps": 2}])
def test_batch_of_which_nothing_is_left_changes_nothing(tmp_path, options):
    """The second batch is bad: after it weights are those of the run without it."""
    rows = rows_with(too_long, [2, 3])
    settings = {**ORDER, "lr_scheduler_type": "constant", "weight_decay": 0.5, "positions_per_sample": 0, **options}
    trainer = make_trainer(
        tmp_path / "a", train_dataset=dataset_of(rows[:4]), on_bad_sample="skip", max_steps=2, **settings
    )
    trainer.train()
    count = 1 if options.get("gradient_accumulation_steps") else 2
    assert trainer.skipped_samples == (4 if count == 1 else 2)
    assert all(math.isfinite(loss) for loss in logged(trainer, "loss_lm"))
    if count == 2:
        plain = make_trainer(tmp_path / "b", train_dataset=dataset_of(rows[:2]), max_steps=1, **settings)
        plain.train()
        weights = dict(plain.model.named_parameters())
        assert all(torch.equal(weight, weights[name]) for name, weight in trainer.model.named_parameters())


def test_count_survives_a_resume(tmp_path):
    rows = dataset_of(rows_with(too_long, [1, 5]))
    settings = {**ORDER, "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "on_bad_sample": "skip"}
    whole = make_trainer(tmp_path, train_dataset=rows, **settings)
    whole.train()
    rest = make_trainer(tmp_path, train_dataset=rows, seed=1, **settings)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole.skipped_samples == rest.skipped_samples == 2
    assert logged(rest, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-6)


def test_evaluation_leaves_them_out_of_the_loss(tmp_path, caplog):
    rows = rows_with(too_long, [0, 2, 3])
    settings = {**ORDER, "per_device_eval_batch_size": 2, "positions_per_sample": 0}
    trainer = make_trainer(tmp_path, train_dataset=dataset_of(make_rows()), on_bad_sample="skip", **settings)
    metrics = trainer.evaluate(dataset_of(rows))
    assert metrics["eval_skipped_samples"] == 3
    total = metrics["eval_loss_lm"] + trainer.args.alpha * metrics["eval_loss_structure"]
    assert metrics["eval_loss"] == pytest.approx(total)
    assert "3 samples are left out of the evaluation" in caplog.text
    alone = trainer.evaluate(dataset_of([rows[1]]))  # beside the first bad one in its batch
    assert alone["eval_skipped_samples"] == 0


def test_predictions_have_no_blank_sample(tmp_path):
    seen = {}

    def compute_metrics(prediction):
        seen["mask"] = prediction.predictions[2]
        return {}

    rows = rows_with(too_long, [2, 3])[:4]
    trainer = make_trainer(
        tmp_path,
        train_dataset=dataset_of(make_rows()),
        on_bad_sample="skip",
        compute_metrics=compute_metrics,
        **{**ORDER, "per_device_eval_batch_size": 2},
    )
    trainer.evaluate(dataset_of(rows))
    assert len(seen["mask"]) == 2


def test_when_everything_is_bad_the_run_stops(tmp_path):
    rows = dataset_of(rows_with(too_long, range(12)))[:12]
    trainer = make_trainer(tmp_path, train_dataset=rows, on_bad_sample="skip", **{**ORDER, "max_steps": 6})
    with pytest.raises(RuntimeError, match=r"samples of 5 steps in a row.*max_length=60.*long-9"):
        trainer.train()


def test_collator_tells_what_it_left_out():
    _, processor = make_sugar()
    collator = SugarCollator(processor, on_bad_sample="skip", max_length=LONG)
    rows = dataset_of([make_rows()[5], too_long(), broken_image()])
    batch = collator(rows)
    assert batch["sample_ids"] == ["document-5"]
    assert batch["input_ids"].shape[0] == 1
    assert ["long-0" in text or "broken-0" in text for text in batch["bad_samples"]] == [True, True]
    empty = collator(rows[1:])
    assert empty["sample_ids"] == []
    assert len(empty["input_ids"]) == 1
    assert (empty["labels"] == -100).all()
    assert empty["structure_features"]["clip"].shape == (0, 1, 8)


def test_sample_without_anything_to_learn_is_said_once(tmp_path):
    _, processor = make_sugar()
    rows = make_rows()
    asked = {**rows[1], "id": "asked", "messages": rows[1]["messages"][:2]}
    collator = SugarCollator(processor)
    with pytest.warns(UserWarning, match=r"Sample 'asked' of tests has no text to learn"):
        collator([rows[0], asked])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator([rows[0], asked])
