"""The adapter on, off and merged: what the model computes, and what else must stay as it was."""

import pytest
import torch
from builders import build_sugar, build_tiny_llava, picture
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel
from versions import needs_the_switches_of_transformers

import sugar_hf
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor, adapter_off, adapter_on, merge_adapter
from sugar_hf.training import sugar_lora_config

SAMPLES = [["A cat on a mat.", picture(1), "It sleeps."], [picture(2), "Two dogs."]]
CHAT = [{"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "What is it?"}]}]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks


@torch.no_grad()
def outputs(model, processor) -> dict[str, torch.Tensor]:
    """Everything a user can ask of the model: logits, both ways to embeddings, greedy generation."""
    model.eval()
    inputs = processor(SAMPLES)
    found = model(**inputs)
    embeddings, _ = model.get_retrieval_embeddings(**inputs)
    prompt = processor([CHAT], add_generation_prompt=True)
    written = model.generate(**prompt, do_sample=False, max_new_tokens=6)
    return {"logits": found.logits, "joint": found.retrieval_embeds, "alone": embeddings, "written": written}


def assert_equal(found, expected):
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def assert_close(found, expected):
    for name in ("logits", "joint", "alone"):
        torch.testing.assert_close(found[name], expected[name], atol=1e-5, rtol=1e-5)


def flags(model):
    return [parameter.requires_grad for parameter in model.parameters()]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A Sugar checkpoint, an adapter of it with weights that matter, and what both compute."""
    folder = tmp_path_factory.mktemp("adapter_modes")
    vlm, backbone_processor = build_tiny_llava()
    processor = SugarProcessor(backbone_processor)
    torch.manual_seed(0)
    SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16).save_pretrained(folder / "base")
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    off = outputs(base, processor)
    adapted = get_peft_model(base, sugar_lora_config(base, r=4, lora_alpha=8))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(folder / "adapter")
    on = outputs(adapted, processor)
    for name in off:  # else the tests below would show nothing
        assert not torch.equal(on[name], off[name]), name
    return folder, processor, on, off


def load(folder, way):
    if way == "auto":
        return AutoModel.from_pretrained(folder / "adapter")
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    wrapped = PeftModel.from_pretrained(base, folder / "adapter", is_trainable=way == "peft to train")
    return wrapped.get_base_model() if way == "inside peft" else wrapped


WAYS = ["auto", "peft", "peft to train", "inside peft"]


def test_off_is_the_base_and_on_is_the_adapter_again(files, subtests):
    for way in WAYS:
        with subtests.test(way=f"{way!r:.60}"):
            folder, processor, on, off = files
            model = load(folder, way)
            trainable = flags(model)
            assert_equal(outputs(model, processor), on)
            for _ in range(2):
                adapter_off(model)
                assert_equal(outputs(model, processor), off)
                adapter_on(model)
                assert_equal(outputs(model, processor), on)
            assert flags(model) == trainable


def test_a_block_puts_back_what_was_before(files, subtests):
    for way in WAYS:
        with subtests.test(way=f"{way!r:.60}"):
            folder, processor, on, off = files
            model = load(folder, way)
            with adapter_off(model):
                with adapter_on(model):
                    assert_equal(outputs(model, processor), on)
                assert_equal(outputs(model, processor), off)
            assert_equal(outputs(model, processor), on)
            adapter_off(model)
            with pytest.raises(KeyError), adapter_on(model):
                raise KeyError
            assert_equal(outputs(model, processor), off)


@needs_the_switches_of_transformers
def test_on_mends_what_the_switch_of_transformers_forgets(files):
    folder, processor, on, off = files
    model = load(folder, "auto")
    model.disable_adapters()
    assert_equal(outputs(model, processor), off)
    model.enable_adapters()
    assert not torch.equal(outputs(model, processor)["joint"], on["joint"])  # the head is still the base's
    adapter_on(model)
    assert_equal(outputs(model, processor), on)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("switched_off", [False, True])
def test_merged_is_close_to_on_and_is_a_model_like_any_other(files, tmp_path, way, switched_off):
    folder, processor, on, _ = files
    model = load(folder, way)
    if switched_off:
        adapter_off(model)
    merged = merge_adapter(model)
    assert type(merged) is SugarForConditionalGeneration
    found = outputs(merged, processor)
    assert_close(found, on)
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert all(flags(merged))
    with pytest.raises(ValueError, match="has no adapters"):
        adapter_off(merged)
    merged.save_pretrained(tmp_path)
    assert not (tmp_path / "adapter_config.json").exists()
    assert_equal(outputs(AutoModel.from_pretrained(tmp_path), processor), found)
    again = get_peft_model(merged, sugar_lora_config(merged, r=2))
    assert_equal(outputs(again, processor), found)  # a new adapter starts as nothing


def test_off_on_and_merged_in_every_family(family, tmp_path):
    model, processor = build_sugar(family)
    model.save_pretrained(tmp_path / "base")
    base = SugarForConditionalGeneration.from_pretrained(tmp_path / "base").eval()
    inputs = processor(SAMPLES)

    @torch.no_grad()
    def embed(model):
        return model.get_retrieval_embeddings(**inputs)[0]

    off = embed(base)
    adapted = get_peft_model(base, sugar_lora_config(base, r=4, lora_alpha=8))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    adapted.save_pretrained(tmp_path / "adapter")
    on = embed(adapted)
    assert (on - off).abs().max() > 0.05
    loaded = AutoModel.from_pretrained(tmp_path / "adapter").eval()
    for model in (adapted, loaded):
        with adapter_off(model):
            assert torch.equal(embed(model), off)
        assert torch.equal(embed(model), on)
        merged = merge_adapter(model)
        torch.testing.assert_close(embed(merged), on, atol=1e-5, rtol=0)
        merged.save_pretrained(tmp_path / "merged")
        assert torch.equal(embed(AutoModel.from_pretrained(tmp_path / "merged").eval()), embed(merged))


@needs_the_switches_of_transformers
def test_an_adapter_on_a_model_that_was_never_loaded_merges_too(tmp_path):
    model, processor = build_sugar("llava")
    model.add_adapter(sugar_lora_config(model, r=2))
    before = outputs(model, processor)
    merged = merge_adapter(model)
    assert_close(outputs(merged, processor), before)
    merged.save_pretrained(tmp_path)
    assert_equal(outputs(AutoModel.from_pretrained(tmp_path), processor), outputs(merged, processor))


def test_a_model_without_adapters_is_told_how_to_get_some():
    model = SugarForConditionalGeneration.from_backbone(build_tiny_llava()[0], retrieval_dim=16)
    for function in (adapter_on, adapter_off, merge_adapter):
        with pytest.raises(ValueError, match=r"SugarForConditionalGeneration has no adapters.*load_adapter"):
            function(model)


def test_off_is_refused_where_the_base_is_gone(files):
    folder, *_ = files
    model = load(folder, "peft")
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into the weights"):
        adapter_off(model)
    for options, said in (({"bias": "lora_only"}, "biases"), ({"init_lora_weights": "olora"}, "olora")):
        base = SugarForConditionalGeneration.from_pretrained(folder / "base")
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **options))
        with pytest.raises(ValueError, match=said):
            adapter_off(model)


def test_merging_refuses_weights_that_are_not_numbers(files):
    folder, *_ = files
    model = load(folder, "peft")
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).fill_(torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        merge_adapter(model)


def test_merging_is_at_the_top():
    assert sugar_hf.merge_adapter is merge_adapter
