"""The models of the study on real documents, on tiny stand-ins."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sugar_hf import picturebook
from sugar_hf.data import Document, RetrievalSet
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.embedding_sugar import check_prefix_embeddings
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.structure import StructureLossConfig, TripleTeacher
from sugar_lab.real.frozen_states import make_states, make_vectors, read_states
from sugar_lab.real.head_study import HeadRow, figures, measure, scores_of, train_heads
from sugar_lab.real.hybrid_rows import fused
from sugar_lab.real.joint_training import (
    JointBudget,
    JointRow,
    embedded_ranks,
    item_losses,
    sample_rows,
    smaller,
    train_joint,
)
from sugar_lab.real.real_models import assemble
from sugar_lab.real.real_teachers import caption_pairs, ridge
from sugar_lab.real.vision_tower import EfficientNetLite, EfficientNetLiteConfig, convert


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(0)
    model = SugarForConditionalGeneration.from_backbone(picturebook.checkpoint("mini-vlm"), retrieval_dim=32)
    return model.eval(), SugarProcessor.from_pretrained(picturebook.checkpoint("mini-vlm"))


@pytest.fixture(scope="module")
def documents():
    red, blue = (Image.new("RGB", (48, 48), colour) for colour in ("red", "blue"))
    return [
        Document("a", ["a red dog", red, "a cat"]),
        Document("b", [blue, "a blue dog"]),
        Document("c", ["a tree"]),
        Document("d", ["a cat", "a red dog", "a house", blue]),
        Document("e", ["a tree"]),
    ]


def test_the_tower_has_its_norms_folded(tmp_path):
    config = EfficientNetLiteConfig(image_size=64, num_labels=10)
    plain = published(EfficientNetLite(config))
    torch.save(plain, tmp_path / "tower.pth")
    tower = convert(tmp_path / "tower.pth", config)
    images = torch.randn(1, 3, 64, 64)
    stem = torch.nn.functional.conv2d(
        torch.nn.functional.pad(images, (0, 1, 0, 1)), plain["_conv_stem.weight"], stride=2
    )
    parts = (plain[f"_bn0.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    normed = torch.nn.functional.batch_norm(stem, *parts, eps=1e-3)
    torch.testing.assert_close(tower.stem(images), normed, rtol=1e-4, atol=1e-4)
    assert tower(images).last_hidden_state.shape == (1, 4, 1280)
    torch.save({**plain, "other.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ValueError, match=r"other\.weight"):
        convert(tmp_path / "more.pth", config)


def published(tower):
    """A state dict as the published weights have it."""
    generator = torch.Generator().manual_seed(0)
    state = {"_fc.weight": tower.classifier.weight.detach(), "_fc.bias": tower.classifier.bias.detach()}
    parts = [("_conv_stem", "_bn0", tower.stem), ("_conv_head", "_bn1", tower.head)]
    for number, block in enumerate(tower.blocks):
        here = f"_blocks.{number}."
        parts.append((f"{here}_depthwise_conv", f"{here}_bn1", block.depthwise))
        parts.append((f"{here}_project_conv", f"{here}_bn2", block.project))
        if block.expand is not None:
            parts.append((f"{here}_expand_conv", f"{here}_bn0", block.expand))
    for convolution, norm, module in parts:
        state[f"{convolution}.weight"] = module.weight.detach()
        for name in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{name}"] = torch.rand(len(module.weight), generator=generator) + 0.5
        state[f"{norm}.num_batches_tracked"] = torch.tensor(1)
    return state


def test_a_language_model_and_a_tower_make_a_backbone_with_exact_prefixes(tmp_path):
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(picturebook.checkpoint("mini-vlm"))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    language = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes))
    tower = EfficientNetLite(EfficientNetLiteConfig(image_size=64, num_labels=10))
    assemble(language, tokenizer, tower, tmp_path / "backbone", seed=0)
    model = SugarForConditionalGeneration.from_backbone(str(tmp_path / "backbone")).eval()
    processor = SugarProcessor.from_pretrained(str(tmp_path / "backbone"))
    assert int((processor([[Image.new("RGB", (90, 30)), "a dog"]])["slice_map"].abs() == 1).sum()) == 4
    assert check_prefix_embeddings(model, processor).is_exact


def test_states_are_those_of_the_model_and_made_once(mini, documents, tmp_path):
    model, processor = mini
    make_states(model, processor, documents[:2], tmp_path, {"model": "mini"})
    make_states(model, processor, documents, tmp_path, {"model": "mini"})
    states = read_states(tmp_path)
    numbers = states.numbers(documents)
    assert numbers[2] == numbers[4]
    assert states.lengths(numbers).tolist() == [3, 2, 1, 4, 1]
    embedded = SugarEmbedder(model, processor).embed_documents(documents)
    with torch.no_grad():
        found = model.retrieval_head(states.last(numbers, "last"))
    np.testing.assert_allclose(found, np.concatenate(embedded), atol=2e-3)
    with pytest.raises(ValueError, match="model"):
        make_states(model, processor, documents, tmp_path, {"model": "another"})
    with pytest.raises(ValueError, match="f has no states: run the stage `states`"):
        states.numbers([Document("f", ["a text of its own"])])


def test_a_first_text_that_is_too_long_is_cut_and_named(mini, tmp_path):
    model, processor = mini
    long = Document("long", ["a red dog and a blue cat " * 20, "a tree"])
    with pytest.warns(UserWarning, match="long: its first text is cut to 48 tokens"):
        make_states(model, processor, [long], tmp_path, {"model": "mini"}, max_length=64)
    assert read_states(tmp_path).lengths(np.array([0])).tolist() == [2]


def test_slices_are_embedded_once_by_the_teacher(mini, documents, tmp_path):
    teacher = TripleTeacher.from_pretrained(**picturebook.mini_teachers(), show_progress=False)
    vectors = make_vectors(teacher, mini[1], documents, tmp_path)
    assert len(vectors.columns["teacher_is_image"]) == 7
    expected = teacher.embed([mini[1].slices(documents[3].load())])[0]
    np.testing.assert_allclose(vectors.columns_of(3)["teacher_clip"], expected["teacher_clip"], atol=2e-3)
    assert vectors.features([0, 3], 2).lengths.tolist() == [2, 2]


def test_heads_of_one_run_are_those_of_runs_of_their_own(mini, documents, tmp_path):
    model, processor = mini
    make_states(model, processor, documents, tmp_path / "states", {})
    states = read_states(tmp_path / "states")
    teacher = TripleTeacher.from_pretrained(**picturebook.mini_teachers(), show_progress=False)
    vectors = make_vectors(teacher, processor, documents, tmp_path / "vectors")
    settings = {"steps": 3, "batch_size": 4, "retrieval_dim": 16}
    learnt = StructureLossConfig(objective="kl", target_temperature=0.1, learn_temperature=True)
    rows = [
        HeadRow("mse", StructureLossConfig(), **settings),
        HeadRow("infonce", StructureLossConfig(objective="infonce"), "mean", **settings),
        HeadRow("learnt", learnt, "mean", **{**settings, "steps": 2}),
        HeadRow("random", None, **settings),
    ]
    whole = (model.config, states, vectors, {"sections": range(5)}, states.numbers(documents))
    together = train_heads(*whole, rows, seed=0, show_progress=False)
    for row in rows:
        alone = train_heads(*whole, [row], seed=0, show_progress=False)[row.name]
        for name, weight in alone.state_dict().items():
            torch.testing.assert_close(weight, together[row.name].state_dict()[name])
    task = RetrievalSet(documents[2:3], documents[:4], {"c": {"c": 1.0}})
    found = measure(states, {"task": task}, rows[0], together["mse"])
    assert found == {"task": {"c": 1}}
    assert figures(found)["mean"]["MRR"] == 1
    everywhere = HeadRow("mse, all ends", StructureLossConfig(), positions="all", head="mse", **settings)
    anywhere = scores_of(states, task, everywhere, together["mse"], {})
    ends = together["mse"](torch.from_numpy(states.states["last"].astype(np.float32))).detach().numpy()
    query = ends[states.offsets[states.numbers(documents[2:3])[0]]]
    number = states.numbers(documents)[3]
    assert anywhere[0, 3] == pytest.approx(
        (ends[states.offsets[number] : states.offsets[number + 1]] @ query).max(), abs=1e-5
    )
    asking = RetrievalSet(documents[3:4], documents[:3], {documents[3].id: {"c": 1.0}})
    late = scores_of(states, asking, replace(everywhere, positions="late"), together["mse"], {})
    asked = ends[states.offsets[number] : states.offsets[number + 1]]
    candidates = [ends[states.offsets[each] : states.offsets[each + 1]] for each in states.numbers(documents[:3])]
    assert len(asked) > 1
    assert late[0].tolist() == pytest.approx([(asked @ each.T).max(1).mean() for each in candidates], abs=1e-5)


def test_equal_ranks_of_two_searches_are_fused_alike():
    found = fused(np.array([[0.9, 0.5, 0.1], [0.0, 0.0, 1.0]]), np.array([[3.0, 1.0, 2.0], [1.0, 0.0, 2.0]]))
    np.testing.assert_allclose(found, [[2 / 61, 1 / 62 + 1 / 63, 1 / 63 + 1 / 62], [2 / 62, 2 / 63, 2 / 61]])


def test_the_map_between_spaces_is_that_of_ridge_regression():
    generator = np.random.default_rng(0)
    seen, wanted = generator.normal(size=(9, 12)), generator.normal(size=(9, 4))
    weight, offset, bias = ridge(seen, wanted, [0.5])[0.5]
    centred = seen - seen.mean(0)
    expected = np.linalg.solve(centred.T @ centred + 0.5 * np.eye(12), centred.T @ (wanted - wanted.mean(0)))
    np.testing.assert_allclose(weight, expected, atol=1e-5)
    np.testing.assert_allclose(bias, wanted.mean(0))
    assert offset.shape == (12,)


def test_a_picture_goes_with_the_text_behind_it(documents):
    assert [(text, name) for _, text, name in caption_pairs(documents)] == [
        ("a cat", "a"),
        ("a blue dog", "b"),
        ("a house", "d"),
    ]


def test_the_loss_of_an_item_is_that_of_the_backbone(mini, documents):
    model, processor = mini
    losses = item_losses(model, processor, documents[:2], torch.float32)
    for document, loss in zip(documents, losses, strict=False):
        batch = processor([document.load()], return_labels=True)
        with torch.no_grad():
            assert loss == pytest.approx(float(model(**batch).loss), abs=1e-4)


def test_a_smaller_task_has_its_relevant_documents():
    texts = {name: Document(name, [name]) for name in "abcdefgh"}
    task = RetrievalSet([texts["a"], texts["b"]], list(texts.values())[2:], {"a": {"c": 1.0}, "b": {"d": 1.0}})
    part = smaller(task, 1, 3)
    assert len(part.queries) == 1
    assert len(part.corpus) == 3
    assert {*part.relevance[part.queries[0].id]} <= {document.id for document in part.corpus}


def test_adapters_projector_and_head_are_trained_and_merged(documents, tmp_path):
    torch.manual_seed(0)
    model = SugarForConditionalGeneration.from_backbone(picturebook.checkpoint("mini-vlm"), retrieval_dim=16)
    processor = SugarProcessor.from_pretrained(picturebook.checkpoint("mini-vlm"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    teacher = TripleTeacher.from_pretrained(**picturebook.mini_teachers(), show_progress=False)
    vectors = make_vectors(teacher, processor, documents, tmp_path / "vectors")
    columns = [{name: column.tolist() for name, column in vectors.columns_of(number).items()} for number in range(5)]
    rows = Dataset.from_list(
        [
            {**row, **more, "teacher_fingerprint": teacher.fingerprint}
            for row, more in zip(sample_rows(documents), columns, strict=True)
        ]
    )
    row = JointRow("kl", StructureLossConfig(objective="kl", temperature=0.3), 0.3, "mean", None)
    budget = JointBudget(steps=2, batch_size=4, max_length=64, rank=2)
    trained, log = train_joint(model, processor, rows, row, 0, budget, tmp_path / "run")
    moved = {name for name, weight in trained.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".")[0] for name in moved} == {"vlm", "retrieval_head"}
    assert any("projector" in name for name in moved)
    assert all("vision" not in name for name in moved)
    assert embedded_ranks(trained, processor, {"t": RetrievalSet(documents[:1], documents, {"a": {"a": 1.0}})}, 64)
    assert log
