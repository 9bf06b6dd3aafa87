"""SugarSFTTrainer: the structure loss on TRL's trainer."""

import importlib
import math
import sys

import pytest
import torch
import trl
from peft import PeftModel
from training_tools import logged, make_dataset, make_sugar, make_trainer

from sugar_hf.training import SugarSFTConfig, SugarSFTTrainer, SugarTrainer, sugar_lora_config


def make_sft(folder, model=None, peft_config=None, train_dataset=None, **kwargs):
    own, processor = make_sugar()
    settings = {
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "seed": 3,
    }
    return SugarSFTTrainer(
        own if model is None else model,
        SugarSFTConfig(str(folder), **{**settings, **kwargs}),
        train_dataset=make_dataset(processor) if train_dataset is None else train_dataset,
        processing_class=processor,
        peft_config=peft_config,
    )


def test_is_trls_trainer_with_the_structure_loss():
    assert issubclass(SugarSFTTrainer, SugarTrainer)
    assert issubclass(SugarSFTTrainer, trl.SFTTrainer)
    assert issubclass(SugarSFTConfig, trl.SFTConfig)
    assert SugarSFTConfig.max_length is None
    assert SugarSFTConfig.learning_rate == trl.SFTConfig.learning_rate


def test_three_steps_have_the_losses_of_the_plain_trainer(tmp_path):
    sft = make_sft(tmp_path / "sft")
    sft.train()
    plain = make_trainer(tmp_path / "plain", max_steps=3, head_whitening_samples=None)
    plain.train()
    for name in ("loss", "loss_lm", "loss_structure"):
        assert logged(sft, name) == pytest.approx(logged(plain, name), rel=1e-6)
    assert all(0 <= accuracy <= 1 for accuracy in logged(sft, "mean_token_accuracy"))


def test_evaluates_and_saves_with_a_card(tmp_path):
    trainer = make_sft(tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    metrics = trainer.evaluate(trainer.train_dataset)
    total = metrics["eval_loss_lm"] + trainer.args.alpha * metrics["eval_loss_structure"]
    assert metrics["eval_loss"] == pytest.approx(total, rel=1e-4)
    card = (tmp_path / "README.md").read_text()
    assert "2411.00304" in card
    assert (tmp_path / "checkpoint-1" / "processor_config.json").is_file()


def test_trains_an_adapter_with_gradient_checkpointing(tmp_path):
    model, _ = make_sugar()
    config = sugar_lora_config(model, r=2)
    trainer = make_sft(tmp_path, model, peft_config=config, gradient_checkpointing=True, max_steps=2)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert isinstance(trainer.model, PeftModel)
    trainer.train()
    moved = [name for name, p in trainer.model.named_parameters() if p.requires_grad and not p.equal(before[name])]
    assert any("retrieval_head" in name for name in moved)
    assert any("lora_B" in name for name in moved)


def test_mini_batches_give_the_losses_of_the_whole_batch(tmp_path):
    logs = []
    for size in (None, 1):
        trainer = make_sft(tmp_path / str(size), max_steps=2, mini_batch_size=size)
        trainer.train()
        logs.append([logged(trainer, name) for name in ("loss", "loss_structure")])
        assert all(0 <= value <= 1 for value in logged(trainer, "mean_token_accuracy"))
    assert logs[0] == [pytest.approx(values, rel=1e-3) for values in logs[1]]


def test_trains_under_bfloat16_autocast(tmp_path):
    trainer = make_sft(tmp_path, bf16=True, max_steps=1)
    trainer.train()
    assert math.isfinite(logged(trainer, "loss")[0])
    assert next(trainer.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dft"}, "loss_type='dft' is not supported"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported"),
        ({"alpha": -1.0}, "alpha=-1.0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        SugarSFTConfig(str(tmp_path), bf16=False, **options)


def test_missing_trl_is_said_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    monkeypatch.delitem(sys.modules, "sugar_hf.training.sft_trainer")
    with pytest.raises(ImportError, match=r"pip install 'sugar-hf\[trl\]'"):
        importlib.import_module("sugar_hf.training.sft_trainer")
