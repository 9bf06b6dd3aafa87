"""The embedder: equal to the pipeline, in any batch and order, and clear about what cannot be embedded."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import build_sugar, cached_sugar, picture
from PIL import Image

from sugar_hf import picturebook
from sugar_hf.data import BadSampleError, as_document
from sugar_hf.model import SugarRetrievalPipeline
from sugar_hf.model.embedding_sugar import embed_in_batches
from sugar_hf.retrieval.embedder import EmbeddingSettings, SugarEmbedder

SAMPLES = [
    "a cat",
    [picture(0), "a dog in the garden"],
    picture(1),
    ["one", "two", picture(2), "three"],
    [{"role": "user", "content": [picture(3), "What is it?"]}, {"role": "assistant", "content": "A cat."}],
    ["a longer text with some more words in it", picture(4)],
]


@pytest.fixture(scope="module")
def llava():
    return cached_sugar("llava")


@pytest.fixture(scope="module")
def embedder(llava):
    return SugarEmbedder(*llava, batch_size=4)


@pytest.fixture(scope="module")
def vectors(embedder):
    return embedder.encode(SAMPLES)


def documents(samples=SAMPLES):
    return [as_document(sample, number, "doc-") for number, sample in enumerate(samples)]


def test_embeddings_are_the_pipelines(llava, vectors):
    model, processor = llava
    pipe = SugarRetrievalPipeline(model=model, processor=processor, task="sugar-retrieval")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, pipe.encode(SAMPLES, batch_size=4), atol=1e-6)  # in other batches


def test_batches_and_order_do_not_matter(embedder, vectors, subtests):
    for batch_size in [1, 2, 6]:
        with subtests.test(batch_size=batch_size):
            order = [3, 0, 5, 1, 4, 2]
            found = embedder.encode([SAMPLES[i] for i in order], batch_size=batch_size)
            np.testing.assert_allclose(found, vectors[order], atol=1e-5)


def test_slices(embedder, vectors):
    found = embedder.encode_slices(SAMPLES)
    assert [len(rows) for rows in found] == [1, 2, 1, 4, 3, 2]
    np.testing.assert_allclose(np.stack([rows[-1] for rows in found]), vectors, atol=1e-6)
    np.testing.assert_allclose(found[3][0], embedder.encode(["one"])[0], atol=1e-5)


def test_documents_are_embedded_as_samples_are(subtests):
    for family in ["llava", "qwen2_5_vl", "smolvlm"]:
        with subtests.test(family=family):
            last = SugarEmbedder(*cached_sugar(family), batch_size=4)
            every = SugarEmbedder(*cached_sugar(family), batch_size=4, positions="all")
            wanted = last.encode_slices(SAMPLES)
            found = zip(last.embed_documents(documents()), wanted, every.embed_documents(documents()), strict=True)
            for row, whole, rows in found:
                np.testing.assert_allclose(row, whole[-1:], atol=1e-5)
                np.testing.assert_allclose(rows, whole, atol=1e-5)


def test_sentences_can_be_slices(llava):
    embedder = SugarEmbedder(*llava, split_sentences=True)
    [rows] = embedder.encode_slices([["A cat sits. It sleeps!", picture(0)]])
    assert rows.shape[0] == 3
    assert embedder.settings.split_sentences


def test_truncated_embeddings_are_normalised_anew(llava, vectors):
    embedder = SugarEmbedder(*llava, batch_size=4, truncate_dim=5)
    found = embedder.encode(SAMPLES)
    assert embedder.dim == found.shape[1] == 5
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    wanted = vectors[:, :5] / np.linalg.norm(vectors[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_no_logits_are_computed_and_the_model_is_left_as_it_was(llava):
    model, _ = llava
    calls = []
    hook = model.get_output_embeddings().register_forward_hook(lambda *args: calls.append(1))
    model.train()
    model.retrieval_head.eval()
    try:
        SugarEmbedder(*llava).encode(SAMPLES[:2])
        assert model.training
        assert not model.retrieval_head.training
    finally:
        hook.remove()
        model.eval()
    assert not calls


def test_images_of_one_batch_only_are_decoded(embedder, monkeypatch):
    alive = []

    process = embedder.processor

    def recorded(samples, **options):
        alive.append(sum(isinstance(part, Image.Image) for sample in samples for part in sample))
        return process(samples, **options)

    monkeypatch.setattr(embedder, "processor", recorded)
    embedder.embed_documents(documents([[picture(i), picture(i + 1)] for i in range(8)]))
    assert alive == [8, 8]


def test_bad_documents_are_named_or_skipped(embedder, vectors):
    broken = documents()
    broken.insert(1, as_document({"id": "broken", "image": b"not an image"}, 0))
    broken.insert(4, as_document({"id": "gone", "document": ["a", Image.new("RGB", (0, 0))]}, 0))
    with pytest.raises(BadSampleError, match=r"sample '(broken|gone)'.*images\[0\]"):
        embedder.embed_documents(broken)
    skipped = []
    found = embedder.embed_documents(broken, skipped=skipped)
    assert [rows is None for rows in found] == [False, True, False, False, True, False, False, False]
    assert [error.sample for error in skipped] == ["broken", "gone"]
    np.testing.assert_allclose(np.concatenate([rows for rows in found if rows is not None]), vectors, atol=1e-5)


def test_a_malformed_sample_is_named(embedder):
    from sugar_hf.data import Document

    bad = [Document("fine", "a"), Document("bad", ["a", 3])]
    with pytest.raises(BadSampleError, match=r"sample 'bad'.*int is neither text nor image"):
        embedder.embed_documents(bad)
    skipped = []
    assert embedder.embed_documents(bad, skipped=skipped)[1] is None
    assert len(skipped) == 1


def test_documents_of_ten_thousand_slices(llava):
    long = documents([["word"] * 10_000, "a cat"])
    strict = SugarEmbedder(*llava, max_length=64)
    with pytest.raises(
        BadSampleError, match=r"sample 'doc-0': document: has over \d+ tokens in 10000 slices.*max_length"
    ):
        strict.embed_documents(long)
    skipped = []
    found = strict.embed_documents(long, skipped=skipped)
    assert [rows is None for rows in found] == [True, False]
    assert [error.sample for error in skipped] == ["doc-0"]
    lenient = SugarEmbedder(*llava, max_length=64, truncation="slice", positions="all")
    with pytest.warns(UserWarning, match="dropped its last"):
        found = lenient.embed_documents(long)
    assert 1 < len(found[0]) < 64


def test_vectors_that_are_no_numbers_are_refused():
    model, processor = build_sugar("llava")
    with torch.no_grad():
        model.retrieval_head.hidden_to_embedding.weight[0, 0] = float("nan")
    embedder = SugarEmbedder(model, processor)
    with pytest.raises(BadSampleError, match=r"sample 'doc-0'.*no unit vector at slice 0 \(its length is nan\)"):
        embedder.embed_documents(documents(["a"]))
    with pytest.raises(ValueError, match="sample 0: the model gives no unit vector"):
        embedder.encode(["a"])
    with torch.no_grad():
        for parameter in model.retrieval_head.parameters():
            parameter.zero_()
    with pytest.raises(BadSampleError, match=r"its length is 0\.0"):
        embedder.embed_documents(documents(["a"]))


def test_progress_counts_documents(embedder):
    class Bar:
        n = 0

        def update(self, count):
            self.n += count

    bar = Bar()
    broken = [*documents(), as_document({"id": "broken", "image": b"x"}, 0)]
    embedder.embed_documents(broken, skipped=[], progress=bar)
    assert bar.n == len(broken)


def test_empty_and_wrong_calls(embedder, llava):
    assert embedder.encode([]).shape == (0, embedder.dim)
    assert embedder.encode_slices([]) == []
    assert embedder.embed_documents([]) == []
    with pytest.raises(ValueError, match=r"For one: \[sample\]"):
        embedder.encode("a cat")
    with pytest.raises(ValueError, match="mine, part 1: the text is empty"):
        embedder.encode([["a", " "]], names=["mine"])
    with pytest.raises(ValueError, match="batch_size=0"):
        embedder.embed_documents([], batch_size=0)
    for options, message in [
        ({"batch_size": 0}, "batch_size=0"),
        ({"positions": "first"}, "positions='first'"),
        ({"truncate_dim": 10_000}, "the width of the model's embeddings"),
        ({"truncation": "token"}, "truncation='token'"),
        ({"truncation": "slice"}, "needs max_length"),
    ]:
        with pytest.raises(ValueError, match=message):
            SugarEmbedder(*llava, **options)


def test_settings(llava):
    settings = SugarEmbedder(*llava, truncate_dim=5, positions="all", max_length=9, truncation="slice").settings
    assert (settings.dim, settings.positions, settings.truncate_dim, settings.dtype) == (5, "all", 5, "float32")
    assert EmbeddingSettings.from_dict(settings.to_dict()) == settings
    assert settings.difference(SugarEmbedder(*llava, truncate_dim=5).settings) is None
    assert "dim is 5 and" in settings.difference(SugarEmbedder(*llava).settings)
    other = SugarEmbedder(*llava, truncate_dim=5, split_sentences=True).settings
    assert settings.difference(other) == "split_sentences is False and True"
    values = settings.to_dict()
    assert values.pop("text_pooling") == "last"
    earlier = EmbeddingSettings.from_dict(values)  # of an index of an earlier version
    assert earlier.difference(settings) is None
    assert earlier.difference(replace(settings, text_pooling="mean")) == "text_pooling is 'last' and 'mean'"
    with pytest.raises(ValueError, match="unknown embedding settings: pooling"):
        EmbeddingSettings.from_dict({**settings.to_dict(), "pooling": 1})
    with pytest.raises(ValueError, match="lack dim"):
        EmbeddingSettings.from_dict({"retrieval_dim": 3})


def test_from_pretrained():
    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"), dtype="bfloat16", batch_size=16)
    assert embedder.settings.dtype == "bfloat16"
    assert embedder.settings.model.endswith("mini-sugar")
    found = embedder.encode(["a dog.", "a cat."])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_batches_are_prepared_ahead_of_an_accelerator():
    begun, seen = threading.Event(), []

    def prepare(window):
        if window == [2]:
            begun.set()
        if window == [3]:
            raise ValueError("the fault of window 3")
        return window[0] * 10, {}

    def run(numbers, inputs):
        assert begun.wait(60)  # by another thread, while the first window runs
        seen.append(inputs)
        yield numbers, [np.eye(1, 4)]

    def embed(windows):
        return embed_in_batches(windows, prepare, run, lambda faults, count: None, ahead=True)

    with pytest.raises(ValueError, match="the fault of window 3"):  # when its turn comes
        embed([[1], [2], [3], [4]])
    assert seen == [10, 20]
    assert embed([]) == {}
