"""What the trainers take from the inside of the libraries is checked: a version that changed it is refused by name."""

import inspect
import re
from pathlib import Path

import pytest
from test_sugar_sft import make_sft
from training_tools import make_trainer
from transformers import Trainer

import sugar_hf.training
from sugar_hf.training import SugarTrainer
from sugar_hf.training.checkpoints import AtomicCheckpoints
from sugar_hf.training.guards import STATE_HOOKS, TRAINER_HOOKS, check_hooks

SOURCES = [path.read_text() for path in Path(sugar_hf.training.__file__).parent.glob("*.py")]


@pytest.mark.parametrize("name", [name for name in TRAINER_HOOKS if name.startswith("_")])
def test_hook_that_is_gone_or_changed_is_named(monkeypatch, name):
    with monkeypatch.context() as patch:
        patch.delattr(Trainer, name)
        with pytest.raises(RuntimeError, match=rf"need Trainer\.{name}\(.*it is gone\. Install"):
            check_hooks()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, name, lambda self, something_else: None)
        with pytest.raises(RuntimeError, match=rf"need Trainer\.{name}\(.*it takes \(something_else\)"):
            check_hooks()
    check_hooks()


@pytest.mark.parametrize("make", [make_trainer, make_sft])
def test_both_trainers_check_them(tmp_path, monkeypatch, make):
    monkeypatch.delattr(Trainer, "_get_grad_norm")
    with pytest.raises(RuntimeError, match="_get_grad_norm"):
        make(tmp_path)


def test_all_private_methods_of_the_trainer_are_in_the_list():
    """Every private name of `Trainer` that the sources read from `self` or `super()`, or define anew."""
    private = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    used = {
        name
        for source in SOURCES
        for name in re.findall(r"(?:self|super\(\)|Trainer)\.(_\w+)|def (_\w+)\(", source)
        for name in name
    }
    assert private & used <= TRAINER_HOOKS.keys()
    assert set(STATE_HOOKS) == {"_set_sync_gradients"}
    assert all(inspect.isfunction(vars(Trainer)[name]) for name in TRAINER_HOOKS)


def bypass(monkeypatch, owner, name):
    """The library has the method still, but does not use it."""
    monkeypatch.setattr(owner, name, getattr(Trainer, name))


def test_unused_hooks_are_found_in_the_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        bypass(patch, SugarTrainer, "_get_grad_norm")
        with pytest.raises(RuntimeError, match=r"_get_grad_norm of transformers .* was not used.*nonfinite_loss"):
            make_trainer(tmp_path / "a", max_steps=1).train()
    trainer = make_trainer(tmp_path / "b", max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    with monkeypatch.context() as patch:
        bypass(patch, AtomicCheckpoints, "_load_from_checkpoint")
        with pytest.raises(RuntimeError, match=r"_load_from_checkpoint .* was not used.*resuming"):
            trainer.train(resume_from_checkpoint=True)
    with monkeypatch.context() as patch:
        patch.setattr(SugarTrainer, "_get_train_sampler", lambda self, train_dataset=None: None)
        with pytest.raises(RuntimeError, match=r"_get_train_sampler .* was not used.*group_by_length"):
            make_trainer(tmp_path / "c", train_sampling_strategy="group_by_length").train()
    with monkeypatch.context() as patch:
        bypass(patch, SugarTrainer, "_get_num_items_in_batch")
        with pytest.raises(RuntimeError, match=r"_get_num_items_in_batch .* was not used"):
            make_trainer(tmp_path / "d", mini_batch_size=2).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_device_train_batch_size": 1, "positions_per_sample": 1}, "one slice end, and no pair"),
        (
            {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
            "pairs of slice ends of one sample only",
        ),
    ],
)
def test_batches_that_tell_nothing_apart_are_said(tmp_path, options, message):
    with pytest.warns(UserWarning, match=message):
        make_trainer(tmp_path, train_sampling_strategy="sequential", max_steps=2, **options).train()
