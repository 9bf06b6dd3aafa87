"""Encoders: Sugar's is its embedder, a checkpoint opens as what it is, and documents are compared by their vectors."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import build_sugar, build_tiny_llava, cached_sugar, picture
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_encoders import save_blip2, save_dual
from tqdm.auto import tqdm
from transformers import Blip2ForConditionalGeneration

from sugar_hf.data import BadSampleError, Document
from sugar_hf.evaluation import encoders
from sugar_hf.evaluation.baselines import Blip2Encoder, DualEncoder
from sugar_hf.evaluation.encoders import open_encoder, similarity
from sugar_hf.picturebook import checkpoint
from sugar_hf.retrieval import SugarEmbedder

DOCUMENTS = [
    Document("text", "A cat sits on the red mat."),
    Document("image", picture(1)),
    Document("both", [picture(2), "A dog runs", picture(3), "after two balls."]),
]


@pytest.fixture(scope="module")
def sugar_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "sugar"
    for part in cached_sugar("llava"):
        part.save_pretrained(folder)
    return folder


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def unit(rng, count, width=8):
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def pair_by_pair(queries, candidates):
    return np.array([[(query @ candidate.T).max() for candidate in candidates] for query in queries])


def test_sugar_is_embedded_at_the_last_slice():
    model, processor = cached_sugar("llava")
    found = SugarEmbedder(model, processor).embed_documents(DOCUMENTS, batch_size=2)
    expected = SugarEmbedder(model, processor, positions="all").embed_documents(DOCUMENTS)
    for ours, slices in zip(found, expected, strict=True):
        assert ours.shape == (1, 16)
        assert ours.dtype == np.float32
        assert np.allclose(ours[0], slices[-1], atol=1e-5)


def test_sugar_skips_what_is_broken_and_names_it():
    broken = Document("broken", [Path("nowhere.png"), "A cat"])
    encoder = SugarEmbedder(*cached_sugar("llava"))
    skipped = []
    found = encoder.embed_documents([DOCUMENTS[0], broken, DOCUMENTS[1]], skipped=skipped)
    assert [rows is None for rows in found] == [False, True, False]
    assert [error.sample for error in skipped] == ["broken"]
    with pytest.raises(BadSampleError, match=r"broken.*nowhere\.png"):
        encoder.embed_documents([DOCUMENTS[0], broken])


def test_sugar_embeds_a_document_that_comes_again_once():
    encoder = SugarEmbedder(*cached_sugar("llava"))
    with tqdm(total=4, file=io.StringIO()) as bar:
        first, second, third, again = encoder.embed_documents([*DOCUMENTS, DOCUMENTS[0]], progress=bar)
        assert bar.n == 4
    assert again is first
    assert second is not third


def test_settings_of_sugar_go_through_json_and_tell_its_weights():
    model, processor = build_sugar("llava")
    encoder = SugarEmbedder(model, processor, truncate_dim=8)
    encoder.checkpoint = "some/sugar"
    before = encoder.describe()
    assert json.loads(json.dumps(before)) == before == encoder.describe()
    assert (encoder.name, before["checkpoint"], before["dim"]) == ("some/sugar", "some/sugar", 8)
    with torch.no_grad():
        next(model.retrieval_head.parameters()).add_(1.0)
    assert encoder.describe()["weights"] != before["weights"]
    assert encoder.notes() == {}


def test_a_sugar_checkpoint_opens_as_sugar(sugar_folder):
    encoder = open_encoder(sugar_folder, device="cpu", dtype="bfloat16")
    assert isinstance(encoder, SugarEmbedder)
    assert encoder.name == "sugar"
    assert encoder.describe()["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="has no modes"):
        open_encoder(sugar_folder, "average")


def test_adapters_on_sugar_open_under_their_own_name(sugar_folder, tmp_path):
    model = open_encoder(sugar_folder, device="cpu").model
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "tuned")
    cached_sugar("llava")[1].save_pretrained(tmp_path / "tuned")
    encoder, base = (open_encoder(folder, device="cpu") for folder in (tmp_path / "tuned", sugar_folder))
    assert (encoder.name, base.name) == ("tuned", "sugar")
    assert encoder.describe()["checkpoint"] == str(tmp_path / "tuned")
    assert np.abs(encoder.embed_documents(DOCUMENTS)[0] - base.embed_documents(DOCUMENTS)[0]).max() > 1e-3


def test_a_dual_encoder_opens_in_the_mode_that_is_asked_for():
    folder = checkpoint("mini-clip")
    assert isinstance(open_encoder(folder, device="cpu"), DualEncoder)
    assert open_encoder(folder, device="cpu").name == "mini-clip (average)"
    assert open_encoder(folder, "text", device="cpu").name == "mini-clip (text)"
    with pytest.raises(ValueError, match="mode='itc': a DualEncoder has average, image, text"):
        open_encoder(folder, "itc")


def test_blip2_opens_for_contrast(tmp_path):
    encoder = open_encoder(save_blip2(tmp_path), device="cpu")
    assert isinstance(encoder, Blip2Encoder)
    assert encoder.mode == "itc"
    assert open_encoder(tmp_path, "multimodal", device="cpu").mode == "multimodal"


def test_blip2_for_generation_is_refused_with_the_mend(tmp_path):
    folder = save_blip2(tmp_path, model_class=Blip2ForConditionalGeneration)
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*image-text retrieval, such as"):
        open_encoder(folder)


def test_a_dual_encoder_that_lacks_weights_is_refused(tmp_path):
    file = Path(save_dual(tmp_path, "clip")) / "model.safetensors"
    weights = load_file(file)
    del weights["text_projection.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, which would be random: text_projection\.weight"):
        open_encoder(tmp_path)


def test_a_plain_vision_language_model_is_refused_with_the_mend(tmp_path):
    build_tiny_llava(seed=0)[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="from_backbone, train it"):
        open_encoder(tmp_path)


def test_what_does_not_embed_images_and_texts_is_refused():
    with pytest.raises(ValueError, match="of type 'bert', which does not embed"):
        open_encoder(checkpoint("mini-bert"))


def test_single_vectors_are_compared_by_their_dot_product(rng):
    queries, candidates = [unit(rng, 1) for _ in range(3)], [unit(rng, 1) for _ in range(5)]
    scores = similarity(queries, candidates)
    assert scores.dtype == np.float32
    assert np.allclose(scores, np.concatenate(queries) @ np.concatenate(candidates).T, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 40, 2**26])
def test_several_vectors_are_compared_by_their_best_pair_in_chunks_of_any_size(rng, monkeypatch, chunk):
    monkeypatch.setattr(encoders, "CHUNK", chunk)
    queries = [unit(rng, count) for count in (1, 3, 2, 4, 1)]
    candidates = [unit(rng, count) for count in (2, 1, 5)]
    assert np.allclose(similarity(queries, candidates), pair_by_pair(queries, candidates), atol=1e-6)


def test_one_side_alone_may_have_several_vectors(rng):
    one, several = [unit(rng, 1) for _ in range(4)], [unit(rng, count) for count in (3, 1, 2)]
    assert np.allclose(similarity(one, several), pair_by_pair(one, several), atol=1e-6)
    assert np.allclose(similarity(several, one), similarity(one, several).T, atol=1e-6)


def test_nothing_to_compare_gives_an_empty_table(rng):
    assert similarity([], [unit(rng, 2)]).shape == (0, 1)
    assert similarity([unit(rng, 2)], []).shape == (1, 0)


def test_what_cannot_be_compared_is_named(subtests):
    for queries, candidates, message in [
        ([None], [np.eye(2)], "query 0 was not embedded"),
        ([np.eye(2)], [np.eye(2), np.zeros((0, 2))], r"candidate 1 has vectors of shape \(0, 2\)"),
        ([np.eye(2), np.eye(3)], [np.eye(2)], r"query 1 has vectors of shape \(3, 3\)"),
        ([np.eye(2)[0]], [np.eye(2)], r"query 0 has vectors of shape \(2,\)"),
        ([np.eye(2)], [np.eye(3)], "queries have 2 dimensions, candidates 3"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            similarity(queries, candidates)


@pytest.mark.parametrize("kind", ["sugar", "dual"])
def test_an_empty_batch_is_refused(kind):
    encoder = SugarEmbedder(*cached_sugar("llava")) if kind == "sugar" else open_encoder(checkpoint("mini-clip"))
    with pytest.raises(ValueError, match="batch_size=0"):
        encoder.embed_documents(DOCUMENTS, batch_size=0)
