"""Explanations: similarities, alignments, scores and labels, against values worked out otherwise."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from builders import cached_sugar, picture
from tiny_teachers import save_tiny_teachers

from sugar_hf import StructureLossConfig, TripleTeacher
from sugar_hf.data import Document
from sugar_hf.retrieval import SugarEmbedder, SugarIndex, explain
from sugar_hf.retrieval.explain import best_path, shorten

QUERY = ["A cat sits on the red mat.", picture(0), "A dog runs."]
DOCUMENT = [picture(1), "Three green apples and a house."]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folders = save_tiny_teachers(tmp_path_factory.mktemp("teachers"))
    return TripleTeacher.from_pretrained(**folders, show_progress=False)


def alignments(m, n):
    """All monotone paths from (0, 0) to (m - 1, n - 1)."""
    if (m, n) == (1, 1):
        return [[(0, 0)]]
    before = [(m - 1, n), (m, n - 1), (m - 1, n - 1)]
    return [[*path, (m - 1, n - 1)] for a, b in before if a and b for path in alignments(a, b)]


def test_path_and_visits_are_those_of_all_alignments_counted_one_by_one(subtests):
    for shape in [(1, 1), (1, 4), (3, 2), (4, 4)]:
        with subtests.test(shape=shape):
            distances = np.random.default_rng(0).uniform(0, 2, shape)
            sigma = 0.5
            weight = np.exp(-distances / (2 * sigma**2))
            weight = weight / (2 - weight)
            paths = alignments(*shape)
            weights = [math.prod(weight[pair] for pair in path) for path in paths]
            assert best_path(distances, sigma) == tuple(paths[int(np.argmax(weights))])


def test_visits_and_sigma_of_the_label_kernels(llava):
    found = explain(QUERY, DOCUMENT, *llava, sigma=0.5)
    weight = np.exp(-(2 - 2 * found.model.similarity.astype(np.float64)) / (2 * 0.5**2))
    weight = weight / (2 - weight)
    expected, total = np.zeros((3, 2)), 0.0
    for path in alignments(3, 2):
        product = math.prod(weight[pair] for pair in path)
        total += product
        for pair in path:
            expected[pair] += product
    np.testing.assert_allclose(found.model.visits, expected / total, atol=1e-5)
    assert found.model.sigma == 0.5
    assert explain(QUERY, DOCUMENT, *llava).model.sigma == pytest.approx(math.sqrt(0.1))
    config = StructureLossConfig(label_kernel="aligned", delta=0.4)
    assert explain(QUERY, DOCUMENT, *llava, config=config).model.sigma == pytest.approx(0.4 * math.sqrt(2.5))


def test_slice_embeddings_are_those_of_each_slice_alone(llava):
    found = explain(QUERY, DOCUMENT, *llava)
    embedder = SugarEmbedder(*llava)
    rows, columns = embedder.encode([[part] for part in QUERY]), embedder.encode([[part] for part in DOCUMENT])
    np.testing.assert_allclose(found.model.similarity, rows @ columns.T, atol=1e-5)
    whole = embedder.encode([QUERY, DOCUMENT])
    assert found.score == pytest.approx(float(whole[0] @ whole[1]), abs=1e-5)
    assert [*found.query[::2], found.document[1]] == [QUERY[0], QUERY[2], DOCUMENT[1]]
    assert found.teacher is None
    assert found.label is None


def test_prefix_embeddings_end_in_the_score(llava):
    found = explain(QUERY, DOCUMENT, *llava, embeddings="prefix")
    embedder = SugarEmbedder(*llava)
    rows, columns = embedder.encode_slices([QUERY, DOCUMENT])
    np.testing.assert_allclose(found.model.similarity, rows @ columns.T, atol=1e-5)
    assert found.model.similarity[-1, -1] == pytest.approx(found.score, abs=1e-6)
    assert np.abs(found.model.similarity - explain(QUERY, DOCUMENT, *llava).model.similarity).max() > 1e-3


def test_teachers_compare_by_modality(llava, teacher):
    found = explain(QUERY, DOCUMENT, *llava, teacher=teacher)
    query, document = teacher.embed([found.query, found.document])
    spaces = {(True, True): "dino", (False, False): "text"}
    for i, j in itertools.product(range(3), range(2)):
        kinds = (bool(query["teacher_is_image"][i]), bool(document["teacher_is_image"][j]))
        column = f"teacher_{spaces.get(kinds, 'clip')}"
        a, b = query[column][i].astype(np.float32), document[column][j].astype(np.float32)
        cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        assert found.teacher.similarity[i, j] == pytest.approx(cosine, abs=1e-5)


def test_the_label_is_the_kernels(llava, teacher):
    single = explain(QUERY[0], DOCUMENT[1], *llava, teacher=teacher)
    assert single.label == pytest.approx(float(single.teacher.similarity[0, 0]), abs=1e-4)  # calibrated: the cosine
    mean = explain(QUERY, DOCUMENT, *llava, teacher=teacher, config=StructureLossConfig(label_kernel="mean"))
    assert mean.label == pytest.approx(float(mean.teacher.similarity.mean()), abs=1e-5)
    aligned = StructureLossConfig(label_kernel="aligned", delta=0.5)
    found = explain(QUERY, DOCUMENT, *llava, teacher=teacher, config=aligned)
    visits, cosines = found.teacher.visits, found.teacher.similarity
    assert found.label == pytest.approx(float((visits * cosines).sum() / visits.sum()), abs=1e-4)


def test_centred_distances_change_the_path_and_not_the_cosines_shown(llava, teacher):
    means = {"image-image": 0.5, "text-text": 0.5, "image-text": -0.5}
    config = StructureLossConfig(centring=True, block_means=means)
    plain, centred = (explain(QUERY, DOCUMENT, *llava, teacher=teacher, config=c) for c in (None, config))
    np.testing.assert_allclose(centred.teacher.similarity, plain.teacher.similarity)
    assert np.abs(centred.teacher.visits - plain.teacher.visits).max() > 1e-3


def test_options_of_the_embedder(llava):
    text = "A cat sits. A dog runs. The sun rises."
    found = explain(text, DOCUMENT, *llava, split_sentences=True)
    assert found.query == ("A cat sits.", "A dog runs.", "The sun rises.")
    embedder = SugarEmbedder(*llava, split_sentences=True, truncate_dim=5)
    whole = embedder.encode([text, DOCUMENT])
    cut = explain(text, DOCUMENT, *llava, split_sentences=True, truncate_dim=5)
    assert cut.score == pytest.approx(float(whole[0] @ whole[1]), abs=1e-5)
    length = len(llava[1]([["A cat sits.", "A dog runs."]])["input_ids"][0])
    with pytest.warns(UserWarning, match="dropped its last 1 slices"):
        short = explain(
            ["A cat sits.", "A dog runs.", "The sun rises."], "a", *llava, max_length=length, truncation="slice"
        )
    assert short.query == ("A cat sits.", "A dog runs.")


@pytest.mark.parametrize("positions", ["last", "all"])
def test_a_hit_of_an_index_is_explained_as_it_was_found(llava, tmp_path, positions):
    embedder = SugarEmbedder(*llava, positions=positions, truncate_dim=6)
    documents = [Document(f"d{i}", [f"Number {i}.", picture(i), "A cat sits on the mat."]) for i in range(4)]
    index = SugarIndex.build(tmp_path / "index", documents, embedder, show_progress=False)
    query = {"query": ["Number 1.", picture(1)]}  # a document's beginning
    hits = index.search(query, 4)
    assert positions == "last" or (hits[0].id, hits[0].slice) == ("d1", 1)
    for hit in hits:
        found = index.explain(query, hit, embeddings="prefix")
        assert found.score == pytest.approx(hit.score, abs=1e-5)
        assert len(found.document) == (3 if positions == "last" else hit.slice + 1)
        assert found.model.similarity[-1, -1] == pytest.approx(found.score, abs=1e-6)
    whole = index.explain(QUERY, "d1", sigma=0.5)
    assert (len(whole.document), whole.model.sigma) == (3, 0.5)
    with pytest.raises(KeyError, match="'d9'"):
        index.explain(QUERY, "d9")


def test_chats_and_documents(llava):
    chat = [{"role": "user", "content": [{"type": "image", "image": picture(0)}, {"type": "text", "text": "What?"}]}]
    found = explain(chat, Document("d", DOCUMENT), *llava)
    assert found.model.similarity.shape == (2, 2)
    assert found.document[1] == DOCUMENT[1]


def test_the_model_is_left_as_it_was(fresh_llava):
    model, processor = fresh_llava
    model.train()
    explain("a", "b", model, processor)
    assert all(module.training for module in model.modules())


def test_plain_values_and_text(llava, teacher):
    found = explain(QUERY, DOCUMENT, *llava, teacher=teacher)
    values = json.loads(json.dumps(found.to_dict()))
    size = {"type": "image", "width": QUERY[1].width, "height": QUERY[1].height}
    assert values["query"] == [{"type": "text", "text": QUERY[0]}, size, {"type": "text", "text": QUERY[2]}]
    np.testing.assert_allclose(values["teacher"]["similarity"], found.teacher.similarity)
    assert [tuple(pair) for pair in values["model"]["path"]] == list(found.model.path)
    assert (values["score"], values["label"], values["label_kernel"]) == (found.score, found.label, "calibrated")
    lines = str(found).splitlines()
    assert f"model, slice embeddings; score {found.score:.3f}" in lines
    assert f"teachers; label {found.label:.3f} (calibrated)" in lines
    assert f"     1  {QUERY[0]}" in lines
    assert f"     2  [image {QUERY[1].width} x {QUERY[1].height}]" in lines
    assert str(found).count("*") == len(found.model.path) + len(found.teacher.path) + 1  # the legend has one


def test_many_slices_as_text(llava):
    found = explain([f"word {i}" for i in range(30)], ["a", "b"], *llava, embeddings="prefix")
    lines = str(found).splitlines()
    assert "  and 6 slices more" in lines
    assert any(line.startswith("  query 1 - document 1: ") for line in lines)
    assert len(lines) < 70


def test_texts_of_documents_do_no_harm_in_a_terminal():
    assert shorten("red\x1b[31m\nnext\u202e", 80) == "red [31m next"
    assert shorten("猫猫猫猫", 6) == "猫猫…"
    assert shorten("abcdef", 6) == "abcdef"


def test_options_that_are_refused(llava, teacher, subtests):
    for options, message in [
        ({"embeddings": "word"}, "embeddings='word': give one of slice, prefix"),
        ({"sigma": 0}, "sigma=0: give a positive number"),
        ({"sigma": math.nan}, "sigma=nan"),
        ({"document_slices": 0}, "document_slices=0: give 1 or more"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"truncate_dim": 99}, "truncate_dim=99"),
        ({"config": StructureLossConfig(centring=True)}, "centring=True needs block_means"),
    ]:
        with (
            subtests.test(message=message),
            pytest.raises(ValueError, match=message),
        ):
            explain("a", "b", *llava, teacher=teacher, **options)


def test_samples_that_are_refused(llava):
    with pytest.raises(ValueError, match="query, part 0: the text is empty"):
        explain(" ", "b", *llava)
    with pytest.raises(ValueError, match="document: has neither text nor image"):
        explain("a", [], *llava)


def test_another_family_whose_beginnings_are_not_exact():
    model, processor = cached_sugar("paligemma")
    found = explain(QUERY, DOCUMENT, model, processor)
    assert found.model.similarity.shape == (3, 2)
    assert torch.isfinite(torch.from_numpy(found.model.visits)).all()
