"""A run that was cut off goes on as if it had not been."""

import pytest
import torch
from peft import get_peft_model
from training_tools import logged, make_dataset, make_sugar, make_trainer
from transformers import AutoModel

from sugar_hf.training import sugar_lora_config


@pytest.mark.parametrize(("workers", "steps"), [(0, 1), (1, 2)])
def test_resumed_run_has_the_losses_of_the_uninterrupted_one(tmp_path, workers, steps):
    """Bit-equal, with random slice ends, shuffling, an epoch's border in between, a head warm-up and a schedule."""
    options = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 3,
        "per_device_train_batch_size": 4 // steps,
        "gradient_accumulation_steps": steps,
        "positions_per_sample": 2,
        "head_learning_rate": 5e-3,
        "head_warmup_steps": 4,
        "alpha_warmup_ratio": 0.7,
        "dataloader_num_workers": workers,
        "label_statistics_steps": 2,
    }
    whole = make_trainer(tmp_path, **options)
    whole.train()
    # another seed of the model: its weights must come from the checkpoint
    rest = make_trainer(tmp_path, seed=1, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name in ("loss", "loss_lm", "loss_structure", "grad_norm", "label_spearman"):
        assert len(logged(whole, name)) >= 4
        assert logged(rest, name) == logged(whole, name)
    for ours, theirs in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_resumed_run_of_mini_batches_of_like_length(tmp_path):
    options = {
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": 2,
        "per_device_train_batch_size": 3,
        "mini_batch_size": 2,
        "train_sampling_strategy": "group_by_length",
    }
    whole = make_trainer(tmp_path, **options)
    whole.train()
    rest = make_trainer(tmp_path, seed=1, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert len(logged(rest, "loss")) == 6
    assert logged(rest, "loss") == logged(whole, "loss")


def test_resumed_adapter_has_the_losses_of_the_uninterrupted_one(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "positions_per_sample": 2}
    trainers = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        base, _ = make_sugar()
        torch.manual_seed(0)
        model = get_peft_model(base, sugar_lora_config(base, r=2))
        trainers.append(make_trainer(tmp_path, model=model, **options))
        trainers[-1].train(resume_from_checkpoint=checkpoint)
    whole, rest = trainers
    assert logged(rest, "loss") == logged(whole, "loss")
    assert len(logged(rest, "loss")) == 4
    for ours, theirs in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_best_model_is_loaded_at_the_end(tmp_path):
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        learning_rate=0.1,  # makes it worse with every step, so that the first checkpoint is the best
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss_structure",
        eval_dataset=make_dataset(make_sugar()[1]),
    )
    trainer.train()
    best = AutoModel.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    assert all(torch.equal(weight, best[name]) for name, weight in trainer.model.state_dict().items())
    assert trainer.evaluate()["eval_loss_structure"] == pytest.approx(trainer.state.best_metric)
