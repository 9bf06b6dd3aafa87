"""What a backbone has to give, seen on one small model of each kind that can go wrong; families has all types."""

import copy
import json
import warnings

import pytest
import torch
from builders import build_sugar, build_tiny_llava
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from shrinker import tiny_model
from tiny_inputs import tiny_inputs
from torch import nn
from transformers import AutoModel, AutoModelForImageTextToText, conversion_mapping
from versions import since_5_23

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.backbone_sugar import BackboneError, has_body, probe
from sugar_hf.training import lora_coverage, sugar_lora_config


def wrap(model_type):
    vlm = tiny_model(model_type).eval()
    return SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=8).eval(), tiny_inputs(vlm)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# --- refusals


@pytest.mark.parametrize("model_type", ["florence2", "t5gemma2"])
def test_encoder_decoders_are_refused_by_name(model_type):
    with pytest.raises(BackboneError, match=rf"^{model_type} cannot be a backbone of Sugar: it is an encoder-decoder"):
        SugarForConditionalGeneration.from_backbone(tiny_model(model_type))


def test_a_folder_is_refused_before_its_weights_are_read(tmp_path):
    tiny_model("t5gemma2").config.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="encoder-decoder"):
        SugarForConditionalGeneration.from_backbone(tmp_path)


def test_states_that_are_not_one_for_each_token_are_refused():
    model, inputs = wrap("git")  # it puts what it sees before the tokens
    for options in ({}, {"skip_logits": True}, {"labels": inputs.inputs["input_ids"], "skip_logits": True}):
        with pytest.raises(BackboneError, match=r"git cannot be .* which are not one for each token"):
            model(**inputs.inputs, **options)


def test_a_language_model_is_no_backbone(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    LlamaForCausalLM(small).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="llama cannot be a backbone"):
        SugarForConditionalGeneration.from_backbone(tmp_path)


def test_adapters_are_no_backbone(tmp_path):
    vlm, _ = build_tiny_llava()
    adapted = get_peft_model(vlm, LoraConfig(target_modules=["q_proj"], r=2))
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"a PeftModel is no backbone.*merge_and_unload"):
        SugarForConditionalGeneration.from_backbone(adapted)
    with pytest.raises(ValueError, match="is an adapter"):
        SugarForConditionalGeneration.from_backbone(tmp_path)


# --- what comes of the probe


def test_the_probe_leaves_the_model_as_it_is():
    vlm, _ = build_tiny_llava()
    vlm.train()
    vlm.model.vision_tower.eval()
    before, modes, state = weights(vlm), [module.training for module in vlm.modules()], torch.get_rng_state()
    assert probe(vlm) is True
    assert [module.training for module in vlm.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in vlm.state_dict().items())


@torch.no_grad()
def test_a_backbone_whose_base_model_is_itself_works():
    model, inputs = wrap("nemotron_h_omni")
    assert not has_body(model.vlm)
    ids = inputs.inputs["input_ids"]
    slice_map = torch.zeros_like(ids)
    slice_map[:, -1] = 1
    whole = model(**inputs.inputs, slice_map=slice_map, labels=ids)
    embeds, _ = model.get_retrieval_embeddings(**inputs.inputs, slice_map=slice_map)
    torch.testing.assert_close(embeds, whole.retrieval_embeds)
    short = model(**inputs.inputs, labels=ids, skip_logits=True)
    assert short.logits is None
    torch.testing.assert_close(short.loss, whole.loss)
    assert short.last_hidden_state.shape == (*ids.shape, model.config.get_text_config().hidden_size)

    def refuse(*args):
        raise AssertionError("logits were computed")

    head = model.get_output_embeddings()
    head.forward, forward = refuse, head.forward
    try:
        again, _ = model.get_retrieval_embeddings(**inputs.inputs, slice_map=slice_map)
    finally:
        head.forward = forward
    torch.testing.assert_close(again, embeds)


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["fuyu", since_5_23("video_llava", reason="its own forward pass fails")])
def test_a_picture_of_another_name_arrives(model_type):
    model, inputs = wrap(model_type)
    before = model(**inputs.inputs).logits
    assert not torch.allclose(before, model(**inputs.other_picture).logits, atol=1e-4)


def test_frozen_layers_with_running_statistics_do_not_move():
    model, _ = build_sugar("llava")
    model.vlm.add_module("frozen_norm", nn.BatchNorm1d(4).requires_grad_(False))
    model.vlm.add_module("learnt_norm", nn.BatchNorm1d(4))
    model.train()
    assert not model.vlm.frozen_norm.training
    assert model.vlm.learnt_norm.training
    assert model.vlm.model.training


def test_the_kind_of_attention_stays(tmp_path):
    vlm, _ = build_tiny_llava()
    vlm.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    for model in (SugarForConditionalGeneration.from_backbone(vlm), copy.deepcopy(vlm)):
        config = model.config.vlm_config if isinstance(model, SugarForConditionalGeneration) else model.config
        assert config.text_config._attn_implementation == "eager"
        assert config.vision_config._attn_implementation == "sdpa"
    model.save_pretrained(tmp_path)
    loaded = SugarForConditionalGeneration.from_backbone(tmp_path, attn_implementation="eager")
    assert loaded.vlm.config.vision_config._attn_implementation == "eager"
    loaded.save_pretrained(tmp_path / "sugar")
    again = AutoModel.from_pretrained(tmp_path / "sugar", attn_implementation="eager")
    assert again.vlm.config.text_config._attn_implementation == "eager"
    assert again.config._attn_implementation == "eager"


# --- weights


@pytest.mark.parametrize("model_type", ["kimi_k25", "step3p7", "inkling_mm_model"])
def test_weights_are_those_that_the_backbones_own_class_loads(model_type, tmp_path):
    """Rules for converting checkpoints look at the configuration, the class and the names of the model they load."""
    vlm = tiny_model(model_type)
    vlm.save_pretrained(tmp_path / "plain")
    expected = weights(AutoModelForImageTextToText.from_pretrained(tmp_path / "plain"))
    model = SugarForConditionalGeneration.from_backbone(tmp_path / "plain", retrieval_dim=8)
    model.save_pretrained(tmp_path / "sugar")
    again = AutoModel.from_pretrained(tmp_path / "sugar")
    again.vlm.save_pretrained(tmp_path / "plain again")
    for found in (model.vlm, again.vlm, AutoModelForImageTextToText.from_pretrained(tmp_path / "plain again")):
        state = found.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "sugar"))
    assert {f"vlm.{name}" for name in before} == {name for name in after if not name.startswith("retrieval_head.")}


def test_no_rule_for_checkpoints_names_the_heads_layers():
    model, _ = build_sugar("llava")
    layers = {name.split(".")[0] for name in model.retrieval_head.state_dict()}
    mapping = conversion_mapping._build_checkpoint_conversion_mapping()
    patterns = {pattern for rules in mapping.values() for rule in rules for pattern in rule.source_patterns}
    assert len(patterns) > 100
    assert not [pattern for pattern in patterns for layer in layers if layer in pattern]


def test_checkpoints_with_the_heads_old_names_load(tmp_path):
    model, _ = build_sugar("llava")
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {
        name.replace("pooled_to_hidden", "up_proj").replace("hidden_to_embedding", "down_proj"): value
        for name, value in load_file(file).items()
    }
    assert "retrieval_head.up_proj.weight" in old
    save_file(old, file, metadata={"format": "pt"})
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_shards_hold_all_weights_and_leave_no_old_file(tmp_path):
    model, _ = build_sugar("llava")
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    names = {file.name for file in tmp_path.iterdir()}
    assert "model.safetensors" not in names
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {name for name in names if name.endswith(".safetensors")}
    loaded = AutoModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path)
    assert [file.name for file in tmp_path.glob("model*")] == ["model.safetensors"]


@pytest.mark.parametrize("dies_at", ["weights", "configuration"])
def test_a_save_that_ends_early_leaves_no_mixture(dies_at, tmp_path, monkeypatch):
    from sugar_hf.model import checkpoint_sugar

    old, _ = build_sugar("llava")
    old.save_pretrained(tmp_path)
    new, _ = build_sugar("llava")
    new.config.image_pooling = "last"
    with torch.no_grad():
        new.retrieval_head.pooled_to_hidden.weight.add_(1)
    if dies_at == "weights":
        monkeypatch.setattr(
            checkpoint_sugar, "save_file", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full"))
        )
    else:
        replace = checkpoint_sugar.os.replace

        def die(source, target):
            if str(target).endswith("config.json") and "generation" not in str(target):
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(checkpoint_sugar.os, "replace", die)
    with pytest.raises((OSError, KeyboardInterrupt)):
        new.save_pretrained(tmp_path)
    monkeypatch.undo()
    if dies_at == "weights":
        loaded = AutoModel.from_pretrained(tmp_path)
        assert loaded.config.image_pooling == "mean"
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in old.state_dict().items())
    else:  # the weights are new, so that there must be no configuration
        with pytest.raises((OSError, ValueError)):
            AutoModel.from_pretrained(tmp_path)
    new.save_pretrained(tmp_path)
    assert AutoModel.from_pretrained(tmp_path).config.image_pooling == "last"
    assert not list(tmp_path.glob(".writing-*"))


# --- precision and devices


def test_the_head_is_float32_whatever_the_backbone_is(tmp_path):
    vlm, processor = build_tiny_llava()
    vlm.to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    for model in (
        SugarForConditionalGeneration.from_backbone(vlm),
        SugarForConditionalGeneration.from_backbone(tmp_path / "plain"),
    ):
        assert model.dtype == torch.bfloat16
        assert {weight.dtype for weight in model.retrieval_head.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path / "sugar")
    loaded = AutoModel.from_pretrained(tmp_path / "sugar")
    assert loaded.dtype == torch.bfloat16
    head = loaded.retrieval_head.pooled_to_hidden.weight
    assert torch.equal(head, model.retrieval_head.pooled_to_hidden.weight)
    before = head.detach().clone()
    optimizer = torch.optim.AdamW(loaded.parameters(), lr=1e-5)
    inputs = SugarProcessor(processor)(["A cat."])
    loaded(**inputs).retrieval_embeds.sum().backward()
    optimizer.step()
    assert (head != before).float().mean() > 0.99  # in bfloat16 one weight in six would move


@torch.no_grad()
def test_head_and_lm_head_may_lie_on_other_devices():
    model, processor = build_sugar("llava")
    inputs = processor(["A cat.", "Two dogs."], return_labels=True)
    hidden = model(**inputs, skip_logits=True).last_hidden_state
    model.retrieval_head.to("meta")
    assert model.retrieval_head(hidden[:, 0]).device.type == "meta"  # the states went to the head
    seen = []
    with pytest.raises(NotImplementedError, match="meta"):  # and only the way back from a device without data fails
        model._embed(hidden, inputs["slice_map"])

    def far_away(states):
        seen.append(states.shape)
        return torch.empty(len(states), 50, device="meta")

    from sugar_hf.model.modeling_sugar import chunked_cross_entropy

    with pytest.raises(NotImplementedError, match="meta"):
        chunked_cross_entropy(hidden, inputs["labels"], far_away, 50)
    assert len(seen) == 1


# --- adapters


def test_an_adapter_whose_weights_have_no_place_is_an_error(tmp_path):
    model, _ = build_sugar("llava")
    model.save_pretrained(tmp_path / "base")
    base = SugarForConditionalGeneration.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(base, sugar_lora_config(base, r=2))
    adapted.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    saved = load_file(file)
    moved = {name.replace("layers.1.", "layers.7."): value for name, value in saved.items()}
    for changed in (moved, {**saved, "base_model.model.vlm.extra.lora_A.weight": torch.ones(2, 2)}):
        save_file(changed, file, metadata={"format": "pt"})
        for load in (AutoModel, SugarForConditionalGeneration):
            with pytest.raises(ValueError, match=r"does not fit the LlavaForConditionalGeneration.*have no place"):
                load.from_pretrained(tmp_path / "adapter")
    save_file(saved, file, metadata={"format": "pt"})
    assert isinstance(AutoModel.from_pretrained(tmp_path / "adapter"), SugarForConditionalGeneration)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@torch.no_grad()
def test_an_adapter_of_a_plain_backbone_brings_its_head(pooling, tmp_path):
    vlm, processor = build_tiny_llava()
    vlm.save_pretrained(tmp_path / "plain")
    base = SugarForConditionalGeneration.from_backbone(tmp_path / "plain", retrieval_dim=12, image_pooling=pooling)
    adapted = get_peft_model(base, sugar_lora_config(base, r=2)).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weight.add_(0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    inputs = SugarProcessor(processor)([["A cat.", "Two dogs."]])
    expected = adapted(**inputs)
    for load in (AutoModel, AutoModelForImageTextToText, SugarForConditionalGeneration):
        loaded = load.from_pretrained(tmp_path / "adapter").eval()
        assert isinstance(loaded, SugarForConditionalGeneration)
        assert (loaded.config.retrieval_dim, loaded.config.image_pooling) == (12, pooling)
        found = loaded(**inputs)
        assert torch.equal(found.retrieval_embeds, expected.retrieval_embeds)
        assert torch.equal(found.logits, expected.logits)
    (tmp_path / "adapter" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"trained on the plain model .* no config\.json"):
        SugarForConditionalGeneration.from_pretrained(tmp_path / "adapter")


def test_an_adapter_without_a_head_on_a_plain_backbone_is_refused(tmp_path):
    vlm, _ = build_tiny_llava()
    vlm.save_pretrained(tmp_path / "plain")
    base = SugarForConditionalGeneration.from_backbone(tmp_path / "plain")
    get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "adapter")
    base.config.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds no retrieval head.*modules_to_save"):
        AutoModel.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("settings", ["{}", "[]", "no json", '{"base_model_name_or_path": 3}'])
def test_a_damaged_adapter_configuration_is_named(settings, tmp_path):
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        SugarForConditionalGeneration.from_pretrained(tmp_path)


def test_pickled_adapters_are_not_read(tmp_path):
    model, _ = build_sugar("llava")
    model.save_pretrained(tmp_path / "base")
    base = SugarForConditionalGeneration.from_pretrained(tmp_path / "base")
    get_peft_model(base, sugar_lora_config(base, r=2)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(OSError, match=r"has no adapter_model\.safetensors.*Pickled"):
        AutoModel.from_pretrained(tmp_path / "adapter")


def test_adapters_lie_in_every_layer_of_the_language_model_alone(subtests):
    for model_type, kinds in [
        ("qwen3_5", {"q_proj", "v_proj", "in_proj_qkv"}),  # linear attention in most layers
        ("kimi_k25", {"kv_b_proj"}),  # latent attention
        ("fuyu", {"query_key_value"}),  # fused
        ("idefics", {"q_proj", "v_proj"}),  # its decoder holds the vision tower too
    ]:
        with subtests.test(model_type=model_type, kinds=kinds):
            model, _ = wrap(model_type)
            with warnings.catch_warnings():
                warnings.simplefilter("error", UserWarning)
                config = sugar_lora_config(model, r=2)
            coverage = lora_coverage(get_peft_model(model, config))
            assert coverage.adapted == coverage.layers > 0
            assert not [name for name in coverage.modules if "vis" in name or "indexer" in name]
            assert kinds <= {name.rpartition(".")[2] for name in coverage.modules}


def test_layers_without_an_adapter_are_told():
    model, _ = wrap("qwen3_5")
    with pytest.warns(UserWarning, match=r"LoRA adapts \d+ of \d+ layers"):
        sugar_lora_config(model, r=2, target_modules=["q_proj"])


def test_all_linear_is_all_of_the_language_model():
    model, _ = build_sugar("llava")
    adapted = get_peft_model(model, sugar_lora_config(model, r=2, target_modules="all-linear"))
    modules = lora_coverage(adapted).modules
    assert len(modules) == 2 * 7
    assert all("language_model" in name for name in modules)
    assert isinstance(adapted, PeftModel)
