"""The check of prefix embeddings: what it leaves alone and what it says. Its verdicts are tested in tests/families."""

import pytest
import torch
from builders import build_sugar, cached_sugar
from peft import LoraConfig, get_peft_model
from transformers import pipeline

from sugar_hf.model import PrefixCheck, check_prefix_embeddings


def test_modes_and_gradients_are_left_as_they_are(fresh_llava):
    model, processor = fresh_llava
    model.train()
    model.vlm.model.vision_tower.eval()
    before = {name: module.training for name, module in model.named_modules()}
    assert check_prefix_embeddings(model, processor).is_exact
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_leaves_the_modes_too(fresh_llava, monkeypatch):
    model, processor = fresh_llava
    model.train()
    monkeypatch.setattr(model, "get_retrieval_embeddings", lambda **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        check_prefix_embeddings(model, processor)
    assert model.retrieval_head.training


def test_half_precision(subtests):
    for family, is_exact in [("llava", True), ("llava_onevision", False), ("paligemma", False)]:
        with subtests.test(family=family, is_exact=is_exact):
            model, processor = build_sugar(family)
            check = check_prefix_embeddings(model.to(torch.bfloat16), processor)
            assert check.is_exact is is_exact
            assert check.deviation > 1e-4  # rounding, if nothing else


def test_adapters(fresh_llava):
    model, processor = fresh_llava
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert check_prefix_embeddings(adapted, processor).is_exact


def test_a_model_that_looks_ahead_is_found(fresh_llava, monkeypatch):
    """With tokens all the same, the embeddings alone tell."""
    model, processor = fresh_llava
    for layer in model.get_decoder().layers:
        attend = layer.self_attn.forward
        monkeypatch.setattr(
            layer.self_attn,
            "forward",
            lambda *args, attend=attend, **kwargs: attend(*args, **{**kwargs, "attention_mask": None}),
        )
        layer.self_attn.is_causal = False
    check = check_prefix_embeddings(model, processor)
    assert check.reasons == ("tokens see what comes after them",)
    assert check.deviation > 1e-3


def test_what_it_says():
    assert str(PrefixCheck(0.0, ())) == "Embeddings at slice ends inside a sample are those of its prefixes alone."
    said = str(PrefixCheck(0.1234, ("one", "other")))
    assert "ends there: one; other (distance up to 0.12, of at most 2)" in said
    assert "pass it as a sample of its own: [sample[:1], sample[:2], ...]" in said


def test_options_given_to_pipeline_are_warned_about():
    model, processor = cached_sugar("paligemma")
    retrieve = pipeline(
        "sugar-retrieval", model=model, processor=processor, device="cpu", return_positions=True, top_k=1
    )
    with pytest.warns(UserWarning, match="return_positions: With this model") as warned:
        retrieve("A cat.", ["A dog."])
    (ours,) = [warning for warning in warned if warning.category is UserWarning]
    assert ours.filename == __file__
