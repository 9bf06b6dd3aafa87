"""The mean over a text's own tokens as its embedding, beside the state of its last token."""

import numpy as np
import pytest
import torch
from builders import picture
from sentence_transformers import SentenceTransformer
from transformers import pipeline

from sugar_hf import SugarEmbedder
from sugar_hf.model import SugarConfig, SugarForConditionalGeneration

CHAT = [
    {"role": "system", "content": "Find the picture."},
    {"role": "user", "content": [{"type": "image", "image": picture(3)}, {"type": "text", "text": "What is it?"}]},
    {"role": "assistant", "content": "A bird, I think."},
]
PLAIN = ["A cat sits. It sleeps.", picture(1), "Two dogs\nrun.", "x"]


@pytest.fixture
def mean(sugar, monkeypatch):
    """Every family in turn, with `text_pooling="mean"`."""
    model, processor = sugar
    monkeypatch.setattr(model.config, "text_pooling", "mean")
    return model, processor


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_is_the_mean_of_its_own_tokens(mean, side):
    model, processor = mean
    samples = [PLAIN, CHAT, "A cat."]
    inputs = processor(samples, padding_side=side)
    output = model(**inputs)
    for i, sample in enumerate(samples):
        texts = {k: part for k, part in enumerate(processor.slices(sample), start=1) if isinstance(part, str)}
        assert texts
        for number, text in texts.items():
            own = (inputs["slice_map"][i] == -number).nonzero()[:, 0]
            written = processor.decode(inputs["input_ids"][i][own])
            # in a chat, a token may reach over the end of a text
            assert written.strip() == text or (sample is CHAT and written.startswith(text))
            expected = model.retrieval_head(output.last_hidden_state[i, own].mean(dim=0))
            torch.testing.assert_close(output.retrieval_embeds[i, number - 1], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_it_changes_texts_of_several_tokens_only(sugar, monkeypatch):
    model, processor = sugar
    inputs = processor([["x", picture(1), "A cat sits."]])
    last = model(**inputs).retrieval_embeds[0]
    monkeypatch.setattr(model.config, "text_pooling", "mean")
    mean = model(**inputs).retrieval_embeds[0]
    torch.testing.assert_close(mean[:2], last[:2], atol=1e-6, rtol=0)
    assert (mean[2] - last[2]).norm() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_sentences_and_shortened_samples_have_the_vectors_of_prefixes(llava, monkeypatch, side):
    model, processor = llava
    monkeypatch.setattr(model.config, "text_pooling", "mean")
    sample = ["A cat sits. It sleeps!", picture(1), "Two dogs run. The sun rises. One more."]
    options = {"split_sentences": True, "padding_side": side}
    whole = model(**processor([sample], **options)).retrieval_embeds[0]
    assert len(whole) == 6
    prefix = model(**processor([["A cat sits.", "x"], ["A cat sits. It sleeps!"]], **options)).retrieval_embeds
    torch.testing.assert_close(prefix[:, 0], whole[:1].expand(2, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(prefix[1, 1], whole[1], atol=1e-5, rtol=0)
    length = processor([sample], **options)["input_ids"].shape[1] - 1
    with pytest.warns(UserWarning, match="dropped its last 1 slices"):
        inputs = processor([sample, "x"], max_length=length, truncation="slice", **options)
    torch.testing.assert_close(model(**inputs).retrieval_embeds[0], whole[:5], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_map_of_an_earlier_version_is_refused(llava, monkeypatch):
    model, processor = llava
    inputs = processor([["A cat sits.", picture(1)]])
    expected = model(**inputs).retrieval_embeds
    earlier = inputs["slice_map"].clamp(min=0)  # images alone
    earlier[0, (inputs["slice_map"][0] == -1).nonzero()[-1, 0]] = 1
    assert torch.equal(model(**{**inputs, "slice_map": earlier}).retrieval_embeds, expected)
    monkeypatch.setattr(model.config, "text_pooling", "mean")
    with pytest.raises(ValueError, match=r"slice_map .*text_pooling"):
        model(**{**inputs, "slice_map": earlier})


def test_embedder_pipeline_and_sentence_transformers_give_it(fresh_llava, tmp_path):
    model, processor = fresh_llava
    last = SugarEmbedder(model, processor).encode(["A cat sits.", PLAIN[:3]])
    model.config.text_pooling = "mean"
    with torch.no_grad():
        alone = model(**processor(["A cat sits."])).retrieval_embeds[0, -1]
        within = model(**processor([PLAIN[:3]])).retrieval_embeds[0, -1]
    expected = torch.stack([alone, within]).numpy()
    assert np.abs(expected - last).max(axis=1).min() > 1e-3
    found = SugarEmbedder(model, processor).encode(["A cat sits.", PLAIN[:3]])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    retrieve = pipeline("sugar-retrieval", model=model, processor=processor, device="cpu")
    hit = retrieve({"query": "A cat sits."}, [PLAIN[:3]])[0]
    assert hit["score"] == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    encoder = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(encoder.encode(["A cat sits.", PLAIN[:3]]), expected, atol=1e-5)


def test_the_configuration_says_how_texts_are_pooled(llava, tmp_path):
    model, _ = llava
    settings = model.config.to_dict()
    assert settings.pop("text_pooling") == "last"
    assert SugarConfig.from_dict(settings).text_pooling == "last"  # that of an earlier version
    with pytest.raises(ValueError, match="text_pooling='max'"):
        SugarConfig(vlm_config=model.vlm.config, text_pooling="max")
    own = SugarForConditionalGeneration.from_backbone(model.vlm, retrieval_dim=16, text_pooling="mean")
    own.save_pretrained(tmp_path)
    for options in ({}, {"text_pooling": "last"}):
        loaded = SugarForConditionalGeneration.from_pretrained(tmp_path, **options)
        assert loaded.config.text_pooling == options.get("text_pooling", "mean")
