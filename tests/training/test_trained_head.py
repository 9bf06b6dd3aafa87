"""With alpha > 0 the retrieval head is trained and saved, or training is refused before the first step."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model, inject_adapter_in_model
from test_sugar_sft import make_sft
from training_tools import make_arguments, make_dataset, make_sugar, make_trainer
from versions import needs_the_switches_of_transformers

from sugar_hf.training import SugarTrainer, SugarTrainingArguments, sugar_lora_config

PLAIN_LORA = {"target_modules": ["q_proj", "v_proj"], "r": 2}


def half_of_the_head():
    """Name of the first layer of the head."""
    return next(iter(dict(make_sugar()[0].retrieval_head.named_children())))


def refused(trainer, match):
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match=match):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**PLAIN_LORA),
        LoraConfig(**PLAIN_LORA, modules_to_save=["lm_head"]),
        LoraConfig(**PLAIN_LORA, modules_to_save=[half_of_the_head()]),
        LoraConfig(target_modules="all-linear", r=2),
        PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=2, num_layers=2, token_dim=64, num_attention_heads=4
        ),
    ],
    ids=["lora", "other module", "half of the head", "adapters in the head", "prompt"],
)
def test_adapter_without_the_head_is_refused(tmp_path, config):
    model = get_peft_model(make_sugar()[0], config)
    refused(make_trainer(tmp_path, model=model), r'adapter is trained and saved without it.*modules_to_save=\["retr')


def test_head_made_trainable_by_hand_is_still_not_in_the_adapter(tmp_path):
    model = get_peft_model(make_sugar()[0], LoraConfig(**PLAIN_LORA))
    model.base_model.model.retrieval_head.requires_grad_(True)
    refused(make_trainer(tmp_path, model=model), "saved without it")


@needs_the_switches_of_transformers
def test_adapters_of_transformers_own_integration_are_looked_at_too(tmp_path):
    model = make_sugar()[0]
    model.add_adapter(LoraConfig(**PLAIN_LORA))
    refused(make_trainer(tmp_path, model=model), "LORA adapter is trained and saved without it")


def test_adapters_that_nobody_would_save_are_refused(tmp_path):
    model = inject_adapter_in_model(LoraConfig(**PLAIN_LORA), make_sugar()[0])
    model.retrieval_head.requires_grad_(True)
    refused(make_trainer(tmp_path, model=model), r"get_peft_model\(model, config\)")


def test_peft_config_of_sft_is_looked_at(tmp_path):
    refused(make_sft(tmp_path, peft_config=LoraConfig(**PLAIN_LORA)), "saved without it")


def test_frozen_head_is_refused(tmp_path):
    model = make_sugar()[0]
    model.requires_grad_(False).get_decoder().requires_grad_(True)
    refused(make_trainer(tmp_path / "a", model=model), r"its weights \w+.weight, .* are frozen.*head.requires_grad_")
    model.retrieval_head.requires_grad_(True)
    *_, last = model.retrieval_head.parameters()
    last.requires_grad_(False)
    refused(make_trainer(tmp_path / "b", model=model), r"its weights \w+.bias are frozen")
    adapted = get_peft_model(make_sugar()[0], sugar_lora_config(make_sugar()[0], r=2))
    adapted.requires_grad_(False)
    refused(make_trainer(tmp_path / "c", model=adapted), "are frozen. Give the configuration of the adapter")


def test_model_init_may_freeze_it_too(tmp_path):
    def model_init():
        model = make_sugar()[0]
        model.retrieval_head.requires_grad_(False)
        return model

    processor = make_sugar()[1]
    trainer = SugarTrainer(
        args=make_arguments(tmp_path),
        model_init=model_init,
        train_dataset=make_dataset(processor),
        processing_class=processor,
    )
    with pytest.raises(ValueError, match="are frozen"):
        trainer.train()


def test_optimizer_without_the_head_is_refused(tmp_path):
    model, processor = make_sugar()
    optimizer = torch.optim.AdamW(model.vlm.parameters(), lr=1e-3)
    trainer = SugarTrainer(
        model,
        make_arguments(tmp_path),
        train_dataset=make_dataset(processor),
        processing_class=processor,
        optimizers=(optimizer, None),
    )
    refused(trainer, "the optimizer does not have its weights retrieval_head.")
    with pytest.raises(ValueError, match="head_learning_rate=0"):
        SugarTrainingArguments(str(tmp_path), head_learning_rate=0.0, use_cpu=True)


def test_without_the_structure_loss_nothing_is_asked_of_the_head(tmp_path):
    model = get_peft_model(make_sugar()[0], LoraConfig(**PLAIN_LORA))
    make_trainer(tmp_path / "adapter", model=model, alpha=0.0, max_steps=1).train()
    frozen = make_sugar()[0]
    frozen.retrieval_head.requires_grad_(False)
    make_trainer(tmp_path / "frozen", model=frozen, alpha=0.0, max_steps=1).train()
    trainer = make_trainer(tmp_path / "evaluated", model=frozen)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss_structure"] > 0


def test_head_named_in_the_configuration_is_trained_and_saved(tmp_path):
    for number, targets in enumerate((["q_proj", "v_proj"], "all-linear")):
        config = LoraConfig(target_modules=targets, r=2, modules_to_save=["retrieval_head"])
        trainer = make_trainer(tmp_path / str(number), model=get_peft_model(make_sugar()[0], config), max_steps=1)
        head = trainer.model.base_model.model.retrieval_head
        before = [weight.detach().clone() for weight in head.modules_to_save["default"].parameters()]
        trainer.train()
        after = list(head.modules_to_save["default"].parameters())
        assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
