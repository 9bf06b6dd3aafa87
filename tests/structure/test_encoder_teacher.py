"""One encoder as the teacher: a model of sentence-transformers, or an embedder of ours."""

import numpy as np
import pytest
import torch
from builders import build_tokenizer, cached_sugar, picture
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tiny_teachers import save_tiny_teachers
from transformers import CLIPImageProcessorPil, CLIPProcessor

from sugar_hf import EncoderTeacher, SugarEmbedder
from sugar_hf.structure import (
    SliceFeatures,
    StructureLossConfig,
    block_means,
    check_cache,
    label_matrix,
    triple_distance,
)

TEXTS = [["a red cat", "the dog"], ["blue mat"]]
MIXED = [["a red cat", picture(1), "the dog"], [picture(2)], ["blue mat", "a cat"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    found = save_tiny_teachers(folder)
    image_processor = CLIPImageProcessorPil.from_pretrained(found["clip"])
    tokenizer = build_tokenizer(())
    tokenizer.padding_side = "right"
    CLIPProcessor(image_processor, tokenizer).save_pretrained(found["clip"])
    return found


@pytest.fixture(scope="module")
def clip(folders):
    return SentenceTransformer(modules=[Transformer(folders["clip"])], device="cpu")


@pytest.fixture(scope="module")
def text(folders):
    network = Transformer(folders["text"], max_seq_length=32)
    return SentenceTransformer(modules=[network, Pooling(16, pooling_mode="mean")], device="cpu")


@pytest.fixture(scope="module")
def teacher(clip):
    return EncoderTeacher(clip, show_progress=False)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_columns_are_the_encoders_vectors(clip, teacher):
    columns = teacher.embed(MIXED)
    assert teacher.widths == (12, 0, 0)
    assert [row["teacher_clip"].shape for row in columns] == [(3, 12), (1, 12), (2, 12)]
    assert columns[0]["teacher_is_image"].tolist() == [False, True, False]
    expected = unit(np.stack([clip.encode(part) for part in MIXED[0]]))
    assert np.abs(columns[0]["teacher_clip"] - expected).max() < 2e-3


def test_one_space_compares_all_pairs(teacher):
    features = SliceFeatures.pad(teacher.embed(MIXED))
    vectors = features.clip[0]
    for teachers in ("triple", "clip"):
        distances = triple_distance(features, features, teachers)
        torch.testing.assert_close(distances[0, 0], (2 - 2 * vectors @ vectors.T).clamp(0, 4))
    ends = torch.tensor([[0, 0], [0, 2], [1, 0], [2, 1]])
    labels = [label_matrix(features, ends, StructureLossConfig(teachers=name)) for name in ("triple", "clip")]
    torch.testing.assert_close(*labels)


def test_other_encoders_take_the_place_of_one_block(clip, text):
    teacher = EncoderTeacher(clip, text=text, show_progress=False)
    assert teacher.widths == (12, 0, 16)
    features = SliceFeatures.pad(teacher.embed(MIXED))
    cosines = 1 - triple_distance(features, features)[0, 0] / 2
    shared, texts = features.clip[0], features.text[0]
    assert cosines[0, 2] == pytest.approx(float(texts[0] @ texts[2]), abs=1e-5)
    assert cosines[0, 1] == pytest.approx(float(shared[0] @ shared[1]), abs=1e-5)
    means = block_means(teacher.embed(MIXED))
    centred = triple_distance(features, features, block_means=means)
    assert centred.isfinite().all()


def test_block_means_of_one_space_are_those_of_clip(teacher):
    columns = teacher.embed(MIXED)
    assert block_means(columns) == pytest.approx(block_means(columns, "clip"))


def test_an_embedder_of_ours_is_an_encoder():
    model, processor = cached_sugar("llava")
    embedder = SugarEmbedder(model, processor)
    teacher = EncoderTeacher(embedder, show_progress=False)
    columns = teacher.embed(MIXED)
    expected = embedder.encode([["a red cat"], [picture(1)], ["the dog"]])
    assert np.abs(columns[0]["teacher_clip"] - expected).max() < 2e-3
    assert teacher.fingerprint == EncoderTeacher(SugarEmbedder(model, processor)).fingerprint
    narrow = EncoderTeacher(SugarEmbedder(model, processor, truncate_dim=4))
    assert narrow.widths == (4, 0, 0)
    assert narrow.fingerprint != teacher.fingerprint


def test_a_saved_sugar_model_is_loaded_by_name(tmp_path):
    model, processor = cached_sugar("llava")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    teacher = EncoderTeacher.from_pretrained(tmp_path, show_progress=False)
    ours = EncoderTeacher(SugarEmbedder(model, processor), show_progress=False)
    for one, other in zip(teacher.embed(MIXED), ours.embed(MIXED), strict=True):
        assert np.abs(one["teacher_clip"].astype(float) - other["teacher_clip"]).max() < 2e-3


def test_what_is_cached_is_known_by_the_encoder(text, folders, tmp_path, subtests):
    dataset = Dataset.from_dict({"texts": TEXTS})
    teacher = EncoderTeacher(text, show_progress=False)
    cached = teacher.cache(dataset, lambda row: row["texts"], cache_dir=tmp_path)
    assert check_cache(cached, teacher) == teacher.fingerprint
    again = SentenceTransformer(
        modules=[Transformer(folders["text"], max_seq_length=32), Pooling(16, pooling_mode="mean")], device="cpu"
    )
    check_cache(cached, EncoderTeacher(again))
    again[0].max_seq_length = 16
    others = {
        "length": again,
        "pooling": SentenceTransformer(modules=[text[0], Pooling(16, pooling_mode="cls")], device="cpu"),
        "prompt": SentenceTransformer(
            modules=list(text), prompts={"query": "find: "}, default_prompt_name="query", device="cpu"
        ),
        "width": SentenceTransformer(modules=list(text), truncate_dim=8, device="cpu"),
    }
    for name, other in others.items():
        with subtests.test(name), pytest.raises(ValueError, match=r"another encoder teacher"):
            check_cache(cached, EncoderTeacher(other))
    with torch.no_grad():
        again[0].model.embeddings.word_embeddings.weight[0] += 1
    again[0].max_seq_length = 32
    with pytest.raises(ValueError, match=r"another encoder teacher"):
        check_cache(cached, EncoderTeacher(again))


def test_cached_columns_give_the_features_of_new_ones(text, tmp_path):
    dataset = Dataset.from_dict({"texts": TEXTS})
    teacher = EncoderTeacher(text, show_progress=False)
    cached = teacher.cache(dataset, lambda row: row["texts"], cache_dir=tmp_path)
    fresh = SliceFeatures.pad(teacher.embed(TEXTS))
    for rows in (list(cached), list(cached.with_format("numpy"))):
        stored = SliceFeatures.pad(rows)
        assert stored.dino.shape == (2, 2, 0)
        torch.testing.assert_close(stored.clip, fresh.clip)
    assert block_means(cached)["text-text"] == pytest.approx(block_means(teacher.embed(TEXTS))["text-text"])


def test_texts_that_are_too_long_are_counted(text):
    with pytest.warns(UserWarning, match=r"1 for the encoder teacher \(at 32 tokens\)"):
        EncoderTeacher(text, show_progress=False).embed([["a cat " * 40, "a cat"]])


def test_bad_encoders_and_slices_are_refused(clip, text, subtests):
    cases = {
        "an encoder of texts alone": lambda: EncoderTeacher(text, show_progress=False).embed(MIXED),
        "EncoderTeacher has no encoder": lambda: EncoderTeacher(text=text, image=clip),
        "image= needs an encoder of images": lambda: EncoderTeacher(clip, image=text),
        "teacher is a str": lambda: EncoderTeacher("all-MiniLM-L6-v2"),
        "no SentenceTransformer": lambda: EncoderTeacher(torch.nn.Linear(2, 2)),
        "batch_size must be": lambda: EncoderTeacher(clip, batch_size=0),
    }
    for message, case in cases.items():
        with subtests.test(message), pytest.raises((TypeError, ValueError), match=message):
            case()
