"""The paper's LoRA recipe: where adapters go, and that they save, load and merge with equal results."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from training_tools import logged, make_rows, make_sugar, make_trainer
from transformers import AutoModel

from sugar_hf.data import to_sample
from sugar_hf.model import SugarForConditionalGeneration
from sugar_hf.training import sugar_lora_config


def outputs(model, processor):
    inputs = processor([to_sample(row) for row in make_rows()[:3]])
    with torch.no_grad():
        found = model.eval()(**inputs)
    return found.logits, found.retrieval_embeds


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A base checkpoint, an adapter trained from it by SugarTrainer, and what the trained model gives."""
    folder = tmp_path_factory.mktemp("lora")
    base, processor = make_sugar()
    base.save_pretrained(folder / "base")
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    before = outputs(base, processor)
    model = get_peft_model(base, sugar_lora_config(base, r=4, lora_alpha=8))
    trainer = make_trainer(folder, model=model, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return folder, trainer, processor, before, outputs(trainer.model, processor)


def test_adapters_go_to_the_language_model_only():
    model, _ = make_sugar()
    config = sugar_lora_config(model)
    assert (config.r, config.lora_alpha) == (128, 256)
    adapted = get_peft_model(model, config)
    trainable = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    lora = [name for name in trainable if "lora_" in name]
    assert len(lora) == 2 * 2 * 2  # layers, projections, A and B
    assert all("language_model" in name and ("q_proj" in name or "v_proj" in name) for name in lora)
    assert all("retrieval_head.modules_to_save" in name for name in set(trainable) - set(lora))
    assert len(trainable) - len(lora) == 4


def test_unknown_target_names_the_layers_there_are():
    model, _ = make_sugar()
    with pytest.raises(ValueError, match=r"no linear layers named c_attn.*k_proj.*q_proj"):
        sugar_lora_config(model, target_modules=["c_attn"])


def test_further_options_reach_the_configuration():
    model, _ = make_sugar()
    config = sugar_lora_config(model, lora_dropout=0.1, modules_to_save=["lm_head"])
    assert config.lora_dropout == 0.1
    assert config.modules_to_save == ["retrieval_head", "lm_head"]


def test_training_moves_adapters_and_head_alone(trained):
    folder, trainer, _, before, after = trained
    base = dict(SugarForConditionalGeneration.from_pretrained(folder / "base").named_parameters())
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): parameter
        for name, parameter in trainer.model.named_parameters()
        if not parameter.requires_grad and "original_module" not in name
    }
    assert len(kept) == len(base) - 4
    assert all(torch.equal(base[name], parameter) for name, parameter in kept.items())
    assert not torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert all(loss > 0 for loss in logged(trainer, "loss_structure"))


def test_adapter_folder_is_small_and_has_the_processor(trained):
    folder, *_ = trained
    names = {path.name for path in (folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "processor_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names


def test_adapter_loads_with_the_auto_class(trained):
    folder, _, processor, _, after = trained
    model = AutoModel.from_pretrained(folder / "adapter")
    assert isinstance(model, SugarForConditionalGeneration)
    for ours, theirs in zip(outputs(model, processor), after, strict=True):
        assert torch.equal(ours, theirs)


def test_adapter_loads_with_peft(trained):
    folder, _, processor, _, after = trained
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "adapter")
    for ours, theirs in zip(outputs(model, processor), after, strict=True):
        assert torch.equal(ours, theirs)


def test_adapter_merges_and_the_merged_model_round_trips(trained, tmp_path):
    folder, _, processor, _, after = trained
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    assert isinstance(merged, SugarForConditionalGeneration)
    in_memory = outputs(merged, processor)
    for ours, theirs in zip(in_memory, after, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path)
    for ours, theirs in zip(outputs(AutoModel.from_pretrained(tmp_path), processor), in_memory, strict=True):
        assert torch.equal(ours, theirs)


def test_head_warm_up_and_learning_rate_reach_the_wrapped_head(tmp_path):
    base, _ = make_sugar()
    model = get_peft_model(base, sugar_lora_config(base, r=2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = make_trainer(tmp_path, model=model, head_learning_rate=5e-3, head_warmup_steps=2)
    trainer.train()
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert len(moved) == 4
    assert all("retrieval_head.modules_to_save" in name for name in moved)
    rates = {group["lr"] for group in trainer.create_optimizer().param_groups if group["params"]}
    assert len(trainer.create_optimizer().param_groups) == 4
    assert rates == {0.0}  # the schedule has ended for both
