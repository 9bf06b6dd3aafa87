"""The wrapped model does what the backbone does, and embeds slices independently of how they are batched."""

import pytest
import torch
from builders import picture
from transformers.modeling_outputs import CausalLMOutputWithPast

from sugar_hf.model import SugarForConditionalGeneration
from sugar_hf.model.modeling_sugar import CACHE_NAME, find_cache

CHAT = [
    {"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A bird."},
]
LONG = ["A cat sits.", picture(1), picture(2, 70, 20), "Two dogs\nrun.", picture(1), "The sun rises."]
SAMPLES = ["A cat.", picture(1), LONG, CHAT]


@torch.no_grad()
def embed(model, processor, samples, **options):
    return model.get_retrieval_embeddings(**processor(samples, **options))


@torch.no_grad()
def test_output_shapes_and_norms(sugar):
    model, processor = sugar
    inputs = processor(SAMPLES)
    output = model(**inputs)
    assert output.loss is None
    assert output.retrieval_embeds.shape == (4, 6, 16)
    assert output.retrieval_embeds.dtype == torch.float32
    assert output.retrieval_mask.sum(1).tolist() == [1, 1, 6, 3]
    assert output.last_hidden_state.shape == (*inputs["input_ids"].shape, 32)
    norms = output.retrieval_embeds.norm(dim=-1)
    assert torch.allclose(norms, output.retrieval_mask.float())


@torch.no_grad()
def test_without_slice_map_nothing_is_embedded(llava):
    model, processor = llava
    inputs = processor(SAMPLES)
    inputs.pop("slice_map")
    output = model(**inputs)
    assert output.retrieval_embeds is None
    assert output.last_hidden_state is None
    with pytest.raises(ValueError, match="slice_map is missing"):
        model.get_retrieval_embeddings(**inputs)


@torch.no_grad()
def test_image_pooling_changes_images_only(llava):
    model, processor = llava
    inputs = processor([["A cat.", picture(1)]])
    last = SugarForConditionalGeneration.from_backbone(model.vlm, retrieval_dim=16, image_pooling="last")
    last.retrieval_head = model.retrieval_head
    mean_embeds, last_embeds = model(**inputs).retrieval_embeds[0], last(**inputs).retrieval_embeds[0]
    assert torch.equal(mean_embeds[0], last_embeds[0])
    assert not torch.allclose(mean_embeds[1], last_embeds[1], atol=1e-3)


@torch.no_grad()
def test_an_error_leaves_nothing_behind(llava):
    model, processor = llava
    inputs = processor(["A cat."])
    expected = model(**inputs).retrieval_embeds
    with pytest.raises(TypeError):
        model(**{**inputs, "labels": "wrong"})
    assert torch.equal(model(**inputs).retrieval_embeds, expected)
    assert len(model.vlm.base_model._forward_hooks) == 1  # however many calls there were


@torch.no_grad()
def test_bfloat16_and_autocast(fresh_llava):
    model, processor = fresh_llava
    inputs = processor([LONG], return_labels=True)
    expected = model(**inputs).retrieval_embeds
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(**inputs).retrieval_embeds
    half = model.to(torch.bfloat16)(**inputs.to("cpu", dtype=torch.bfloat16)).retrieval_embeds
    for embeds in (mixed, half):
        assert embeds.dtype == torch.float32
        assert torch.allclose(embeds.norm(dim=-1), torch.ones(1, 6))
        assert (embeds * expected).sum(-1).min() > 0.99


@torch.no_grad()
def test_accessors_reach_the_backbone(llava):
    model, _ = llava
    assert model.get_input_embeddings() is model.vlm.get_input_embeddings()
    assert model.get_output_embeddings() is model.vlm.lm_head
    assert model.base_model is model.vlm.model
    assert model.generation_config is model.vlm.generation_config
    assert model.config.image_token_id == model.vlm.config.image_token_id
    assert model.config.get_text_config().hidden_size == 32


@torch.no_grad()
def test_the_cache_is_found_under_the_librarys_own_name(llava):
    model, processor = llava
    inputs = processor(["A cat."])
    output = model(**inputs, use_cache=True)
    assert isinstance(output, CausalLMOutputWithPast)
    assert output[CACHE_NAME] is find_cache(output)
    assert find_cache(output).get_seq_length() == inputs["input_ids"].shape[1]
    for name in ("cache", "past_key_values"):
        assert find_cache({"logits": None, name: "here"}) == "here"
    assert find_cache(model(**inputs, use_cache=False)) is None
