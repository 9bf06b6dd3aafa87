"""Loading is strict, and a round trip changes no bit."""

import json

import pytest
import torch
from builders import build_tiny_llava, picture
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY

from sugar_hf.model import SugarConfig, SugarForConditionalGeneration, register

SAMPLE = ["A cat.", picture(1), "A dog."]


@pytest.fixture
def folder(llava, tmp_path):
    model, processor = llava
    model.save_pretrained(tmp_path / "sugar")
    processor.save_pretrained(tmp_path / "sugar")
    return tmp_path / "sugar"


def edit_weights(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_saving_twice_gives_the_same_files(folder, tmp_path):
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}
    for name in ("model.safetensors", "processor_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_tokenizer_loads_on_its_own(folder, llava):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("A cat.")["input_ids"] == llava[1].tokenizer("A cat.")["input_ids"]


@pytest.mark.parametrize(
    ("suffix", "hint"),
    [
        ("retrieval_head.pooled_to_hidden.bias", "SugarForConditionalGeneration.from_backbone"),
        (".norm.weight", "1 missing: vlm.model.language_model"),
        (".post_layernorm.weight", "1 missing: vlm.model.vision_tower"),
    ],
)
def test_missing_weight_is_named(folder, suffix, hint):
    def drop(weights):  # names on disk differ from those in the model
        (found,) = [name for name in weights if name.endswith(suffix)]
        del weights[found]

    edit_weights(folder, drop)
    with pytest.raises(ValueError, match=rf"1 missing: \S*{suffix}") as error:
        AutoModel.from_pretrained(folder)
    assert hint in str(error.value)


def test_unexpected_weight_is_named(folder):
    edit_weights(folder, lambda weights: weights.update({"retrieval_head.extra.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"1 unexpected: retrieval_head\.extra\.weight"):
        AutoModel.from_pretrained(folder)


def test_weight_of_another_shape_is_named(folder):
    edit_weights(folder, lambda weights: weights.update({"retrieval_head.hidden_to_embedding.bias": torch.ones(3)}))
    with pytest.raises(ValueError, match=r"1 of another shape: retrieval_head\.hidden_to_embedding\.bias"):
        AutoModel.from_pretrained(folder, ignore_mismatched_sizes=True)


def test_loading_info_is_passed_on(folder):
    model, info = SugarForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, SugarForConditionalGeneration)
    assert not info["missing_keys"]


def test_state_dict_is_checked_too(llava):
    model, _ = llava
    state = model.state_dict()
    loaded = SugarForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state)
    assert torch.equal(loaded.retrieval_head.pooled_to_hidden.weight, model.retrieval_head.pooled_to_hidden.weight)
    del state["retrieval_head.pooled_to_hidden.bias"]
    with pytest.raises(ValueError, match=r"the given state dict .*pooled_to_hidden\.bias"):
        SugarForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=state)


def test_plain_backbone_is_not_loaded_as_sugar(llava, tmp_path):
    llava[0].vlm.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_backbone"):
        SugarForConditionalGeneration.from_pretrained(tmp_path)


def test_from_backbone_refuses_a_broken_backbone(llava, tmp_path):
    llava[0].vlm.save_pretrained(tmp_path)

    def drop(weights):
        del weights[next(name for name in weights if name.endswith("norm.weight"))]

    edit_weights(tmp_path, drop)
    with pytest.raises(ValueError, match=r"1 missing: .*norm\.weight"):
        SugarForConditionalGeneration.from_backbone(tmp_path)


def test_from_backbone_refuses_sugar_and_useless_options(llava, folder):
    model, _ = llava
    for backbone in (model, folder):
        with pytest.raises(ValueError, match="is a Sugar model already"):
            SugarForConditionalGeneration.from_backbone(backbone)
    with pytest.raises(ValueError, match="dtype"):
        SugarForConditionalGeneration.from_backbone(model.vlm, dtype="bfloat16")


def test_dtype_is_respected(folder):
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.vlm.parameters()} == {torch.bfloat16} == {model.dtype}
    # an optimizer's small steps would be lost in it
    assert {parameter.dtype for parameter in model.retrieval_head.parameters()} == {torch.float32}


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_weights_on_the_disk_give_the_same_embeddings(folder, llava, tmp_path, share):
    """All of them, or those of some modules; the head's stay in memory."""
    room = int(share * llava[0].vlm.get_memory_footprint())
    options = {"device_map": "auto", "max_memory": {"cpu": room}, "offload_folder": tmp_path / "offloaded"}
    model = SugarForConditionalGeneration.from_pretrained(folder, **options).eval()
    places = [str(place) for name, place in model.hf_device_map.items() if name != "retrieval_head"]
    assert set(places) == ({"cpu", "disk"} if share else {"disk"})
    inputs = llava[1]([SAMPLE])
    with torch.no_grad():
        expected, _ = llava[0].eval().get_retrieval_embeddings(**inputs)
        found, _ = model.get_retrieval_embeddings(**inputs)
    assert torch.equal(found, expected)


def test_config_round_trip_and_checks(llava, folder):
    config = AutoConfig.from_pretrained(folder)
    assert isinstance(config, SugarConfig)
    assert config.vlm_config.to_dict() == llava[0].config.vlm_config.to_dict()
    assert config.retrieval_dim == 16
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    with pytest.raises(ValueError, match="no `vlm_config`"):
        SugarConfig()
    with pytest.raises(ValueError, match="mean, last"):
        SugarConfig(vlm_config=config.vlm_config, image_pooling="max")
    with pytest.raises(ValueError, match="retrieval_dim=0"):
        SugarConfig(vlm_config=config.vlm_config, retrieval_dim=0)


def test_registering_again_changes_nothing():
    before = {task: PIPELINE_REGISTRY.check_task(task)[1] for task in ("sugar-retrieval", "sugar-generation")}
    register()
    assert all(PIPELINE_REGISTRY.check_task(task)[1] is entry for task, entry in before.items())


def test_from_backbone_computes_in_the_backbones_own_dtype(tmp_path):
    """Weights may be stored in half precision while the configuration asks for float32."""
    backbone, _ = build_tiny_llava()
    backbone.half().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    assert SugarForConditionalGeneration.from_backbone(tmp_path).dtype == torch.float32
    assert SugarForConditionalGeneration.from_backbone(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16
