"""Language models in 4 bit: what is quantised, that adapters on it train, and that they merge into a whole model."""

import json

import pytest
import torch
from builders import build_tiny_idefics3, build_tiny_llava, build_tiny_qwen2_vl, picture
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from tiny_teachers import save_tiny_teachers
from transformers import AutoConfig, AutoModel, AutoProcessor, BitsAndBytesConfig

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor, adapter_off, adapter_on, merge_adapter
from sugar_hf.training import sugar_lora_config

SAMPLES = [["A cat on a mat.", picture(1), "It sleeps."], [picture(2), "Two dogs."]]
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks
FAMILIES = {"llava": build_tiny_llava, "idefics3": build_tiny_idefics3, "qwen2_vl": build_tiny_qwen2_vl}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders by family. As wide as a block of 64 weights: bitsandbytes' inference on a CPU takes no other widths."""
    folder = tmp_path_factory.mktemp("four_bit")
    for family, build in FAMILIES.items():
        model, processor = build()
        text = model.config.get_text_config()
        text.hidden_size = text.intermediate_size = 64
        if family == "qwen2_vl":
            model.config.vision_config.hidden_size = 64
            text.rope_parameters["mrope_section"] = [2, 2, 4]
        else:
            text.head_dim = 16
        torch.manual_seed(0)
        wide = type(model)(model.config)
        with torch.no_grad():
            for parameter in wide.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(4)
        wide.save_pretrained(folder / family)
        processor.save_pretrained(folder / family)
    return folder


@pytest.fixture(scope="module")
def script(train_sugar):
    return train_sugar


def load(script, path, dtype="float32"):
    options = {"quantization_config": script.four_bit(AutoConfig.from_pretrained(path), dtype), "dtype": dtype}
    torch.manual_seed(0)
    return SugarForConditionalGeneration.from_backbone(path, retrieval_dim=16, **options)


def adapted(model):
    """The model with adapters that matter."""
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, sugar_lora_config(model, r=4, lora_alpha=8))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def outputs(model, path, training=True):
    # there is no dropout; in `eval` bitsandbytes computes in bfloat16 on a CPU, with the weights laid out anew
    found = model.train(training)(**SugarProcessor.from_pretrained(path)(SAMPLES))
    return found.logits.float(), found.retrieval_embeds


def linear_layers(model):
    return {name: type(module).__name__ for name, module in model.named_modules() if "Linear" in type(module).__name__}


def test_the_language_model_alone_is_quantised(models, script, subtests):
    for family in FAMILIES:
        with subtests.test(family=f"{family!r:.60}"):
            layers = linear_layers(load(script, models / family))
            quantised = {name for name, kind in layers.items() if kind == "Linear4bit"}
            assert len(quantised) == 2 * 7
            assert all(".layers." in name and "vis" not in name for name in quantised)
            assert {
                "retrieval_head.pooled_to_hidden",
                "retrieval_head.hidden_to_embedding",
                "vlm.lm_head",
            } <= layers.keys() - quantised
            assert any("vis" in name for name in layers)


@pytest.mark.parametrize("skipped", [None, ["lm_head"]])
def test_the_head_is_never_quantised(models, skipped):
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped)
    model = SugarForConditionalGeneration.from_backbone(models / "llava", quantization_config=config)
    layers = linear_layers(model)
    assert [kind for name, kind in layers.items() if "retrieval_head" in name] == ["Linear", "Linear"]
    assert "Linear4bit" in layers.values()
    assert model.retrieval_head.pooled_to_hidden.weight.dtype == torch.float32


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("training", "tolerance"), [(True, 1e-5), (False, 0.05)])
def test_adapter_modes(family, training, tolerance, models, script, tmp_path):
    path = models / family
    model = load(script, path)
    off = outputs(model, path, training)
    model = adapted(model)
    on = outputs(model, path, training)
    with adapter_off(model):
        for ours, theirs in zip(outputs(model, path, training), off, strict=True):
            assert torch.equal(ours, theirs)
    merged = merge_adapter(model)
    assert set(linear_layers(merged).values()) == {"Linear"}
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    found = outputs(merged, path)
    for ours, theirs, before in zip(found, on, off, strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=0)
        assert (theirs - before).abs().max() > 0.2
    merged.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    for ours, theirs in zip(outputs(AutoModel.from_pretrained(tmp_path), path), found, strict=True):
        assert torch.equal(ours, theirs)


def test_merged_in_bfloat16_round_trips(models, script, tmp_path):
    path = models / "llava"
    model = adapted(load(script, path, "bfloat16"))
    on = outputs(model, path)
    merged = merge_adapter(model)
    assert {parameter.dtype for parameter in merged.vlm.parameters()} == {torch.bfloat16}
    found = outputs(merged, path)
    for ours, theirs in zip(found, on, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.15, rtol=0)
    merged.save_pretrained(tmp_path)
    for ours, theirs in zip(outputs(AutoModel.from_pretrained(tmp_path), path), found, strict=True):
        assert torch.equal(ours, theirs)


def test_what_cannot_be_merged_is_refused(models, script):
    model = load(script, models / "llava")
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(ValueError, match="no plain LoRA"):
        merge_adapter(model)
    adapter_on(model)  # it is as it was


def test_the_script_trains_in_four_bit_and_saves_a_whole_model(models, script, tmp_path):
    teachers = save_tiny_teachers(tmp_path / "teachers")
    rows = [{"messages": [{"role": "document", "content": f"A cat and {i} dogs. They sleep."}]} for i in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        f"--model {models / 'llava'} --dataset {tmp_path / 'rows.jsonl'} --output_dir {tmp_path / 'out'} "
        "--format chat --lora --load_in_4bit --lora_r 4 --lora_alpha 8 --retrieval_dim 16 --max_steps 2 "
        "--learning_rate 1e-2 --per_device_train_batch_size 4 --gradient_checkpointing --use_cpu --report_to none "
        "--save_strategy no --teacher_device cpu --disable_tqdm true"
    )
    teachers = [part for role, name in teachers.items() for part in (f"--{role}", name)]
    script.main([*options.split(), *teachers])
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert set(linear_layers(model).values()) == {"Linear"}
    before = SugarForConditionalGeneration.from_backbone(models / "llava").vlm
    moved = [
        name
        for (name, ours), theirs in zip(model.vlm.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(ours, theirs)
    ]
    assert len(moved) == 2 * 7  # all of the language model has been through 4 bit
    embeddings, mask = model.get_retrieval_embeddings(**AutoProcessor.from_pretrained(tmp_path / "out")(SAMPLES))
    assert embeddings.shape == (2, 3, 16)
    assert mask.sum() == 5
