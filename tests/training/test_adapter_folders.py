"""An adapter's folder holds the configuration of its Sugar model and the name of its base."""

import json
from pathlib import Path

import pytest
import torch
from builders import build_tiny_llava
from peft import LoraConfig, get_peft_model
from test_sugar_sft import make_sft
from training_tools import logged, make_arguments, make_dataset, make_trainer
from versions import needs_the_switches_of_transformers

from sugar_hf.model import SugarConfig, SugarForConditionalGeneration, SugarProcessor
from sugar_hf.training import SugarTrainer, checkpoints, sugar_lora_config

OPTIONS = {"retrieval_dim": 24, "retrieval_hidden_size": 40, "image_pooling": "last", "text_pooling": "mean"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """The folder of a plain vision-language model."""
    folder = tmp_path_factory.mktemp("backbone")
    for part in build_tiny_llava(0):
        part.save_pretrained(folder)
    return str(folder)


def adapted(backbone: str):
    torch.manual_seed(1)
    model = SugarForConditionalGeneration.from_backbone(backbone, **OPTIONS)
    return get_peft_model(model, sugar_lora_config(model, r=2))


def make(backbone, folder, model=None, **kwargs):
    processor = SugarProcessor.from_pretrained(backbone)
    return SugarTrainer(
        adapted(backbone) if model is None else model,
        make_arguments(folder, **{"save_strategy": "steps", "save_steps": 1, **kwargs}),
        train_dataset=make_dataset(processor),
        processing_class=processor,
    )


def check_folder(folder: Path, base: str) -> None:
    config = SugarConfig.from_pretrained(folder)
    assert {name: getattr(config, name) for name in OPTIONS} == OPTIONS
    assert config.vlm_config.model_type == "llava"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base
    assert (folder / "adapter_model.safetensors").is_file()
    assert (folder / "processor_config.json").is_file()


def test_checkpoints_and_saved_adapter_carry_the_configuration(backbone, tmp_path):
    trainer = make(backbone, tmp_path)
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    for name in ("checkpoint-1", "checkpoint-2", "adapter"):
        check_folder(tmp_path / name, backbone)
    trainer.save_model()
    check_folder(tmp_path, backbone)
    assert (tmp_path / "checkpoint-2").is_dir()


def test_sft_writes_the_same(backbone, tmp_path):
    model = SugarForConditionalGeneration.from_backbone(backbone, **OPTIONS)
    trainer = make_sft(
        tmp_path, model, peft_config=sugar_lora_config(model, r=2), max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    check_folder(tmp_path / "checkpoint-1", backbone)


@needs_the_switches_of_transformers
def test_transformers_own_integration_writes_the_same(backbone, tmp_path):
    model = SugarForConditionalGeneration.from_backbone(backbone, **OPTIONS)
    model.add_adapter(LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["retrieval_head"]))
    trainer = make(backbone, tmp_path, model, max_steps=1)
    trainer.train()
    check_folder(tmp_path / "checkpoint-1", backbone)


def test_a_backbone_in_memory_gives_its_own_name(backbone, tmp_path):
    named = build_tiny_llava(0)[0].from_pretrained(backbone)
    model = SugarForConditionalGeneration.from_backbone(named, **OPTIONS)
    trainer = make(backbone, tmp_path, get_peft_model(model, sugar_lora_config(model, r=2)), max_steps=1)
    trainer.train()
    check_folder(tmp_path / "checkpoint-1", backbone)


def test_a_base_without_a_name_is_said(tmp_path, caplog):
    trainer = make_trainer(tmp_path)
    trainer = make_trainer(tmp_path, model=get_peft_model(trainer.model, sugar_lora_config(trainer.model, r=2)))
    trainer.save_model(str(tmp_path / "adapter"))
    assert "The adapter's base has no name" in caplog.text
    assert SugarConfig.from_pretrained(tmp_path / "adapter").retrieval_dim == 16


def test_resumed_run_has_the_losses_of_the_whole(backbone, tmp_path):
    whole = make(backbone, tmp_path / "whole", max_steps=3)
    whole.train()
    rest = make(backbone, tmp_path / "whole", max_steps=3)
    rest.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    assert logged(rest, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-6)
    weights = dict(whole.model.named_parameters())
    assert all(torch.allclose(weight, weights[name]) for name, weight in rest.model.named_parameters())


def test_model_of_an_earlier_training_is_replaced_and_never_mixed(backbone, tmp_path, monkeypatch):
    whole = make(backbone, tmp_path, SugarForConditionalGeneration.from_backbone(backbone), max_steps=1)
    whole.save_model(str(tmp_path / "model"))
    (tmp_path / "model" / "notes.txt").write_text("mine")
    trainer = make(backbone, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SugarProcessor, "save_pretrained", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.save_model(str(tmp_path / "model"))
    assert SugarForConditionalGeneration.from_pretrained(tmp_path / "model").config.retrieval_dim == 256
    trainer.save_model(str(tmp_path / "model"))
    check_folder(tmp_path / "model", backbone)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert "notes.txt" in names
    assert not {"model.safetensors", "_unfinished"} & names


@pytest.mark.parametrize("number", range(5))
def test_replacement_killed_at_any_point_leaves_no_mixture(tmp_path, monkeypatch, number):
    files = {"config.json": "x", "adapter_config.json": "x", "adapter_model.safetensors": "x"}
    old = {"config.json": "old", "model.safetensors": "old"}
    for folder, contents in ((tmp_path / "new", files), (tmp_path / "model", old)):
        folder.mkdir()
        for name, text in contents.items():
            (folder / name).write_text(text)
    calls = []

    def killed(real):
        def call(*args, **kwargs):
            calls.append(args)
            if len(calls) > number:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        return call

    monkeypatch.setattr(checkpoints.os, "replace", killed(checkpoints.os.replace))
    monkeypatch.setattr(Path, "unlink", killed(Path.unlink))
    with pytest.raises(KeyboardInterrupt):
        checkpoints._replace_model(tmp_path / "new", tmp_path / "model")
    left = {path.name: path.read_text() for path in (tmp_path / "model").iterdir()}
    assert left in (old, files) or not {"config.json", "adapter_config.json"} <= set(left)
    assert left == old or left.get("config.json") != "old"
