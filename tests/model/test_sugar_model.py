"""The wrapped model does what the backbone does, and embeds slices independently of how they are batched."""

import pytest
import torch
from builders import picture

from sugar_hf.model import SugarForConditionalGeneration

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
def test_logits_loss_and_generation_are_the_backbones(sugar):
    model, processor = sugar
    inputs = processor(SAMPLES, return_labels=True)
    backbone_inputs = {key: value for key, value in inputs.items() if key != "slice_map"}
    output, expected = model(**inputs), model.vlm(**backbone_inputs)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    prompt = processor([CHAT[:1], LONG], padding_side="left")
    generated = model.generate(**prompt, max_new_tokens=5, do_sample=False)
    prompt.pop("slice_map")
    assert torch.equal(generated, model.vlm.generate(**prompt, max_new_tokens=5, do_sample=False))


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
def test_embeddings_need_no_logits(sugar, monkeypatch):
    model, processor = sugar
    inputs = processor(SAMPLES)
    expected = model(**inputs).retrieval_embeds

    def refuse(*args):
        raise AssertionError("logits were computed")

    monkeypatch.setattr(model.vlm.lm_head, "forward", refuse)
    embeds, mask = model.get_retrieval_embeddings(**inputs)
    assert torch.allclose(embeds, expected, atol=1e-6)
    assert mask.sum() == 11


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_batch_and_neighbours_do_not_matter(sugar, side):
    model, processor = sugar
    together, _ = embed(model, processor, SAMPLES, padding_side=side)
    reverse, _ = embed(model, processor, SAMPLES[::-1], padding_side=side)
    for i, sample in enumerate(SAMPLES):
        alone, mask = embed(model, processor, [sample], padding_side=side, pad_to_multiple_of=128)
        count = mask.shape[1]
        assert torch.allclose(alone[0], together[i, :count], atol=1e-5)
        assert torch.allclose(alone[0], reverse[-1 - i, :count], atol=1e-5)
    other_side, _ = embed(model, processor, SAMPLES, padding_side="left" if side == "right" else "right")
    assert torch.allclose(together, other_side, atol=1e-5)


def test_embeddings_tell_samples_apart(sugar):
    """Guards the invariance tests: they would pass if all embeddings were the same."""
    embeds = embed(*sugar, [LONG])[0][0]
    assert (embeds @ embeds.T).fill_diagonal_(0).max() < 0.9999


def test_a_prefix_alone_has_the_embedding_it_has_in_the_sample(sugar):
    model, processor = sugar
    whole, _ = embed(model, processor, [LONG])
    for end in range(1, len(LONG)):
        prefix, _ = embed(model, processor, [LONG[:end]])
        assert torch.allclose(prefix[0], whole[0, :end], atol=1e-5)


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
def test_hook_is_gone_after_an_error(llava):
    model, processor = llava
    inputs = processor(["A cat."])
    with pytest.raises(TypeError):
        model(**{**inputs, "labels": "wrong"})
    assert not model.vlm.base_model._forward_hooks


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
