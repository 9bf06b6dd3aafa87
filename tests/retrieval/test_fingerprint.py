"""The fingerprint: what it lets pass, what it refuses, and that it says what differs."""

import json
import re

import pytest
import torch
from builders import build_sugar, cached_sugar
from peft import LoraConfig, get_peft_model

from sugar_hf import merge_adapter
from sugar_hf.model import SugarForConditionalGeneration, adapter_off, adapter_on
from sugar_hf.retrieval.embedder import ModelFingerprint, SugarEmbedder


@pytest.fixture
def model_and_processor():
    return build_sugar("llava")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_saved_model_in_any_precision_is_the_same(family, tmp_path):
    model, processor = cached_sugar(family)
    before = ModelFingerprint.of(model, processor)
    model.save_pretrained(tmp_path)
    for dtype in ("float32", "bfloat16", "float16"):
        loaded = SugarForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        after = ModelFingerprint.of(loaded.eval(), processor)
        assert before.difference(after) is None
        assert after.difference(before) is None
    assert before.distance(after) < 0.2


def test_it_goes_through_json(model_and_processor):
    fingerprint = ModelFingerprint.of(*model_and_processor)
    back = ModelFingerprint.from_dict(json.loads(json.dumps(fingerprint.to_dict())))
    assert back == fingerprint
    assert back.difference(fingerprint) is None


def test_indexes_of_earlier_versions_have_texts_by_their_last_token(model_and_processor):
    assert "text_pooling" not in ModelFingerprint.of(*model_and_processor).parts["config"]


def changed(model, processor, change):
    before = ModelFingerprint.of(model, processor)
    change(model, processor)
    return ModelFingerprint.of(model, processor).difference(before)


def noise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.1)


CHANGES = {
    "head": (lambda model, _: noise(model.retrieval_head), "the weights of retrieval head differ"),
    "backbone": (lambda model, _: noise(model.vlm), "the weights of backbone differ"),
    "pooling": (lambda model, _: setattr(model.config, "image_pooling", "last"), r"image_pooling \('last' and 'mean'"),
    "text pooling": (
        lambda model, _: setattr(model.config, "text_pooling", "mean"),
        r"text_pooling \('mean'",
    ),
    "token": (lambda _, processor: processor.tokenizer.add_tokens(["sugar"]), "the processor differs: tokenizer"),
    "template": (
        lambda _, processor: setattr(processor, "chat_template", processor.chat_template + " "),
        "the processor differs: chat template",
    ),
    "image size": (
        lambda _, processor: setattr(processor.image_processor, "image_mean", [0.1, 0.2, 0.3]),
        r"the processor differs: image image_mean \(\[0.1, 0.2, 0.3\] and",
    ),
}


def test_it_says_what_differs(model_and_processor, subtests):
    for name, (change, message) in CHANGES.items():
        with subtests.test(name=name):
            found = changed(*model_and_processor, change)
            assert found is not None
            assert re.search(message, found)


def test_another_model_of_the_same_shape(model_and_processor):
    torch.manual_seed(5)
    model, processor = model_and_processor
    other = SugarForConditionalGeneration(model.config).eval()
    found = ModelFingerprint.of(model, processor).difference(ModelFingerprint.of(other, processor))
    assert found.startswith("the weights of backbone and retrieval head differ (the probe's embeddings are ")


def test_slightly_trained_weights_of_the_same_precision_are_other_weights(model_and_processor):
    def step(model, _):
        with torch.no_grad():
            for parameter in model.vlm.parameters():
                parameter.mul_(1.01)

    assert "the weights of backbone differ" in changed(*model_and_processor, step)


def with_adapters(model):
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["retrieval_head"])
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_()
    return tuned.eval()


def test_adapters_on_and_off_are_two_models_and_off_is_the_base(model_and_processor):
    model, processor = model_and_processor
    base = ModelFingerprint.of(model, processor)
    tuned = with_adapters(model)
    on = ModelFingerprint.of(tuned, processor)
    assert on.difference(base) == "adapters are on here and off or missing there"
    with adapter_off(tuned):
        off = ModelFingerprint.of(tuned, processor)
        assert off.difference(base) is None
        assert off.difference(on) == "adapters are off or missing here and on there"
    merged = ModelFingerprint.of(merge_adapter(tuned), processor)
    assert merged.difference(on) is None
    assert on.difference(merged) is None


def test_other_adapters_are_another_model(model_and_processor):
    model, processor = model_and_processor
    tuned = with_adapters(model)
    on = ModelFingerprint.of(tuned, processor)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_A" in name:
                parameter.neg_()
    assert "the weights of adapters differ" in ModelFingerprint.of(tuned, processor).difference(on)


def test_the_embedder_takes_it_anew_only_when_something_changed(model_and_processor, monkeypatch):
    model, processor = model_and_processor
    taken = []
    of = ModelFingerprint.of
    monkeypatch.setattr(ModelFingerprint, "of", lambda *args: taken.append(1) or of(*args))
    tuned = with_adapters(model)
    embedder = SugarEmbedder(tuned, processor)
    first = embedder.fingerprint
    embedder.encode(["a"])
    assert embedder.fingerprint is first
    with adapter_off(tuned):
        assert embedder.fingerprint.difference(first) is not None
    adapter_on(tuned)
    assert embedder.fingerprint.difference(first) is None
    noise(model.retrieval_head)
    assert embedder.fingerprint.difference(first) is not None
    assert len(taken) == 4


def test_taking_it_leaves_the_model_in_training(model_and_processor):
    model, processor = model_and_processor
    model.train()
    state = torch.random.get_rng_state()
    ModelFingerprint.of(model, processor)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
