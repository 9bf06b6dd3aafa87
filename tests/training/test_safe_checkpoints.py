"""Checkpoints are atomic, whatever interrupts their writing."""

import json
import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from training_tools import logged, make_dataset, make_sugar, make_trainer
from transformers import AutoModel
from transformers.trainer_utils import get_last_checkpoint

from sugar_hf.training import checkpoints
from sugar_hf.training.checkpoints import UNFINISHED, _clear, _publish

PARTS = {"config.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fill(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True)
    for name in ("a", "b"):
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.iterdir())]


class Killed(BaseException):
    """Stands for the end of the process: nobody catches it."""


def test_checkpoints_are_whole_and_nothing_else_is_left(tmp_path):
    make_trainer(tmp_path, **EVERY_STEP).train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    for folder in tmp_path.iterdir():
        assert set(names(folder)) >= PARTS


def test_nothing_is_at_its_place_while_it_is_written(tmp_path, monkeypatch):
    seen = []
    save = torch.save

    def watch(value, path, *rest, **kwargs):
        seen.append((Path(path).relative_to(tmp_path).parts[0], names(tmp_path)))
        save(value, path, *rest, **kwargs)

    monkeypatch.setattr(torch, "save", watch)
    make_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    assert len(seen) >= 4
    assert all(entry == (UNFINISHED, [UNFINISHED]) for entry in seen)


@pytest.mark.parametrize("part", ["training_args.bin", "rng_state.pth"])
def test_interrupted_save_leaves_the_last_good_one(tmp_path, monkeypatch, part):
    trainer = make_trainer(tmp_path, **EVERY_STEP)
    save = torch.save

    def stop(value, path, *rest, **kwargs):
        if trainer.state.global_step == 2 and Path(path).name == part:
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        save(value, path, *rest, **kwargs)

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.train()
    assert "The last good checkpoint is" in caught.value.__notes__[0]
    assert names(tmp_path) == ["checkpoint-1"]
    assert get_last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_remains_of_a_killed_run_are_removed_at_the_next_start(tmp_path):
    whole = make_trainer(tmp_path / "whole", **EVERY_STEP)
    whole.train()
    run = tmp_path / "killed"
    make_trainer(run, **{**EVERY_STEP, "max_steps": 2}).train()
    fill(run / UNFINISHED / "checkpoint-3", "half")
    marked = run / "checkpoint-9"
    marked.mkdir()
    (marked / checkpoints.JIT_MARK).write_text("in progress")
    assert get_last_checkpoint(run) == str(marked)
    rest = make_trainer(run, seed=1, **EVERY_STEP)
    rest.train(resume_from_checkpoint=True)
    assert names(run) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    # the schedule of the first two steps was that of a shorter run, so only what was drawn can be compared
    assert len(logged(rest, "loss")) == 3
    assert logged(rest, "epoch") == logged(whole, "epoch")


def test_no_checkpoint_at_all_is_the_error_of_the_base_trainer(tmp_path):
    trainer = make_trainer(tmp_path, **EVERY_STEP)
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer.train(resume_from_checkpoint=True)


def test_checkpoint_of_an_earlier_run_is_replaced_as_a_whole(tmp_path):
    fill(tmp_path / "checkpoint-2", "of an earlier run")
    trainer = make_trainer(tmp_path, **{**EVERY_STEP, "max_steps": 2})
    trainer.train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert not {"a", "b"} & set(names(tmp_path / "checkpoint-2"))
    stored = AutoModel.from_pretrained(tmp_path / "checkpoint-2").state_dict()
    assert all(torch.equal(weight, stored[name]) for name, weight in trainer.model.state_dict().items())


def killed_at(monkeypatch, number: int) -> list[int]:
    """Makes the `number`-th rename or deletion the last thing that happens."""
    calls: list[int] = []

    def counted(real):
        def call(*args, **kwargs):
            calls.append(len(calls))
            if calls[-1] == number:
                raise Killed
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoints.os, "replace", counted(os.replace))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", counted(checkpoints.shutil.rmtree))
    return calls


@pytest.mark.parametrize("number", range(8))
def test_replacement_killed_at_any_point_ends_with_the_new_one(tmp_path, number):
    new = fill(tmp_path / UNFINISHED / "checkpoint-2", "new")
    target = fill(tmp_path / "checkpoint-2", "old")
    with pytest.MonkeyPatch.context() as patch:
        calls = killed_at(patch, number)
        try:
            _publish(new, target)
        except Killed:
            assert len(calls) == number + 1
        else:
            assert len(calls) <= number  # all of the calls are tried
    if target.exists():
        assert contents(target) in (["old", "old"], ["new", "new"])
    _clear(tmp_path)
    assert names(tmp_path) == ["checkpoint-2"]
    expected = "old" if number == 0 else "new"  # before the first rename the new one is not known to be whole
    assert contents(target) == [expected, expected]


def test_rotation_keeps_the_newest_and_the_best_and_never_shows_a_part(tmp_path, monkeypatch):
    seen = []
    remove = checkpoints.shutil.rmtree

    def watch(path, *rest, **kwargs):
        seen.append(Path(path).relative_to(tmp_path).parts[0])
        remove(path, *rest, **kwargs)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", watch)
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        learning_rate=0.1,  # makes it worse with every step, so that the first checkpoint is the best
        alpha=30.0,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss_structure",
        greater_is_better=False,
        eval_dataset=make_dataset(make_sugar()[1]),
    )
    trainer.train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    assert set(seen) == {UNFINISHED}
    for folder in ("checkpoint-1", "checkpoint-4"):
        state = json.loads((tmp_path / folder / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-1")


def test_upload_starts_from_the_final_place(tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        "sugar_hf.training.hub_upload.HubUploads._push_from_checkpoint",
        lambda self, checkpoint_folder: pushed.append((checkpoint_folder, names(Path(checkpoint_folder)))),
    )
    trainer = make_trainer(tmp_path, **{**EVERY_STEP, "max_steps": 1})
    trainer.args.push_to_hub = True
    trainer.train()
    [(folder, files)] = pushed
    assert folder == str(tmp_path / "checkpoint-1")
    assert set(files) >= PARTS


@pytest.fixture
def file_limit():
    """Sets the largest size of a file that this process can write; past it a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("part", ["model.safetensors", "optimizer.pt"])
def test_full_disk_keeps_the_earlier_checkpoints_and_names_the_last(tmp_path, file_limit, part):
    trainer = make_trainer(tmp_path, save_total_limit=1, **EVERY_STEP)
    trainer.args.max_steps = 1
    trainer.train()
    first = tmp_path / "checkpoint-1"
    before = {path.name: path.read_bytes() for path in first.iterdir()}
    # the optimizer's state is the larger file, so that a limit between them hits it and a lower one the weights
    sizes = {name: (first / name).stat().st_size for name in ("model.safetensors", "optimizer.pt")}
    assert sizes["model.safetensors"] < sizes["optimizer.pt"]
    trainer.args.max_steps = 3
    file_limit(sizes[part] - 1000)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (of safetensors or torch)
        trainer.train(resume_from_checkpoint=True)
    assert f"The last good checkpoint is {first}" in caught.value.__notes__[0]
    assert names(tmp_path) == ["checkpoint-1"]
    assert {path.name: path.read_bytes() for path in first.iterdir()} == before


def test_full_disk_without_an_earlier_checkpoint(tmp_path, file_limit):
    trainer = make_trainer(tmp_path, **EVERY_STEP)
    file_limit(20_000)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        trainer.train()
    assert "There is no earlier one in" in caught.value.__notes__[0]
    assert names(tmp_path) == []
