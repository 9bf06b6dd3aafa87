"""Tasks of every kind that docs/harnesses.md names, held in memory and run by mteb itself on the mini checkpoint."""

import random
import re
import sys
from importlib import import_module
from pathlib import Path

import mteb
import numpy as np
import pytest
from builders import build_sugar, picture
from datasets import Dataset, DatasetDict, Features, Image, Value
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.image.image_text_pair_classification import AbsTaskImageTextPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.models_protocols import EncoderProtocol

from sugar_hf import picturebook
from sugar_hf.data import to_sample
from sugar_hf.evaluation import recall_at_k, target_ranks
from sugar_hf.evaluation.harnesses.mteb_sugar import SugarMTEB, describe, samples_of
from sugar_hf.retrieval import SugarEmbedder
from sugar_lab.exercises.contrasts import DIFFERENCES, draw_contrast, draw_contrasts

DOCS = Path(__file__).parents[2] / "docs" / "harnesses.md"
MINI = picturebook.checkpoint("mini-sugar")
SIZE = 24


@pytest.fixture(scope="module")
def embedder():
    return SugarEmbedder.from_pretrained(MINI, device="cpu")


@pytest.fixture(scope="module")
def model(embedder):
    return SugarMTEB(embedder)


def metadata(name, kind, category, score, modalities):
    return TaskMetadata(
        name=name,
        type=kind,
        category=category,
        modalities=modalities,
        main_score=score,
        description="Drawn scenes.",
        reference="https://example.org",
        dataset={"path": "NA", "revision": "NA"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        date=("2024-01-01", "2024-01-01"),
        dialect=[],
        domains=[],
        task_subtypes=[],
        license="cc-by-4.0",
        annotations_creators="derived",
        sample_creation="created",
        bibtex_citation="",
    )


def made(base, data, name, *arguments, **attributes):
    """A task of the class `base` whose data set is `data`."""

    def load_data(self, num_proc=None, **kwargs):
        self.dataset, self.data_loaded = data, True

    members = {"metadata": metadata(f"Made{name}", *arguments), "load_data": load_data, **attributes}
    return type(f"Made{name}", (base,), members)()


def scores(model, task, **options):
    (result,) = mteb.evaluate(
        model,
        [task],
        cache=None,
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs={"batch_size": 5, **options},
    ).task_results
    return result.scores["test"][0]


def table(samples, prefix):
    """Samples of the same form, texts and images in any order, as rows of mteb."""
    columns = {"id": [f"{prefix}{i}" for i in range(len(samples))]}
    kinds = {"id": Value("string")}
    for part in samples[0]:
        name = "text" if isinstance(part, str) else "image"
        kinds[name] = Value("string") if name == "text" else Image()
        columns[name] = [next(p for p in sample if isinstance(p, str) == (name == "text")) for sample in samples]
    return Dataset.from_dict(columns, features=Features(kinds))


@pytest.fixture(scope="module")
def pools():
    drawn = {"size": SIZE, "seed": 1, "words_first": True}
    captions = [to_sample(row) for row in picturebook.load("test", kind="caption", **drawn)]
    stories = [to_sample(row) for row in picturebook.load("test", kind="story", frames=3, **drawn)]
    texts, images = [row[:1] for row in captions], [row[1:] for row in captions]
    return {
        "t2t": (texts, [[row[0].split(".")[0]] for row in captions]),
        "i2t": (images, [[" ".join(row[0].split()[:12])] for row in captions]),  # not all that is there
        "t2i": ([story[2:3] for story in stories], [story[3:4] for story in stories]),
        # with a frame between the two, as neighbours are all found
        "it2i": ([story[:2] for story in stories], [story[5:] for story in stories]),
        "t2it": ([story[2:3] for story in stories], [[story[1], story[2]] for story in stories]),
        "it2it": ([story[:2] for story in stories], [story[4:] for story in stories]),
    }


def retrieval_task(category, queries, documents):
    names = {"t": "text", "i": "image"}
    data = RetrievalSplitData(
        queries=table(queries, "q"),
        corpus=table(documents, "d"),
        relevant_docs={f"q{i}": {f"d{i}": 1} for i in range(len(queries))},
        top_ranked=None,
    )
    modalities = sorted({names[letter] for letter in category if letter in names})
    kind = "Retrieval" if category == "t2t" else "Any2AnyRetrieval"
    return made(
        AbsTaskRetrieval, {"default": {"test": data}}, category.upper(), kind, category, "ndcg_at_10", modalities
    )


def image_first(samples):
    return [sorted(sample, key=lambda part: isinstance(part, str)) for sample in samples]


def test_recall_is_that_of_our_own_vectors(pools, embedder, model, subtests):
    for category in ["t2t", "i2t", "t2i", "it2i", "t2it", "it2it"]:
        with subtests.test(category=category):
            queries, documents = pools[category]
            found = scores(model, retrieval_task(category, queries, documents))
            similarity = embedder.encode(image_first(queries)) @ embedder.encode(image_first(documents)).T
            ours = recall_at_k(target_ranks(similarity, [[i] for i in range(SIZE)]), (1, 5, 10))
            assert {f"recall@{k}": found[f"recall_at_{k}"] * 100 for k in (1, 5, 10)} == pytest.approx(ours, abs=1e-2)
            assert 1 / SIZE < found["recall_at_1"] < 1


class Named:
    name = "made"


def encode(model, batches, **options):
    return model.encode(batches, task_metadata=Named, hf_split="test", hf_subset="default", **options)


def test_vectors_are_those_of_the_embedder(embedder, model):
    texts, images = ["a dog.", "a red cat sleeps on green."], [picture(0), picture(1)]
    both = {"text": texts, "image": images}
    samples = [[image, text] for image, text in zip(images, texts, strict=True)]
    assert encode(model, [both]) == pytest.approx(embedder.encode(samples), abs=1e-5)
    assert encode(model, [{"text": texts}]) == pytest.approx(embedder.encode(texts), abs=1e-5)
    assert encode(model, [{"image": images}]) == pytest.approx(embedder.encode(images), abs=1e-5)
    turned = SugarMTEB(embedder, order="text_image")
    assert encode(turned, [both]) == pytest.approx(embedder.encode([sample[::-1] for sample in samples]), abs=1e-5)
    assert np.abs(encode(turned, [both]) - encode(model, [both])).max() > 1e-3


def test_rows_may_have_several_images_or_lack_one_part(embedder, model):
    batch = {"text": ["both", " ", "words"], "image": [[picture(0), picture(1)], picture(2), None]}
    samples = [[picture(0), picture(1), "both"], [picture(2)], ["words"]]
    assert encode(model, [batch]) == pytest.approx(embedder.encode(samples), abs=1e-5)


def test_batches_change_nothing_and_order_is_kept(model):
    texts = [" ".join(["dog"] * (1 + i * 7 % 11)) for i in range(40)]
    whole = encode(model, [{"text": texts}], batch_size=40)
    singly = encode(model, [{"text": [text]} for text in texts], batch_size=2)
    assert whole.shape == (40, model.embedder.dim)
    assert singly == pytest.approx(whole, abs=1e-5)
    assert encode(model, []).shape == (0, model.embedder.dim)


def test_prompts_of_tasks_are_not_used_but_instructions_of_queries_are(embedder, model):
    queries = Dataset.from_dict(
        {"id": ["q0", "q1"], "text": ["a dog", "a cat"], "instruction": ["find it", "find it"]}
    )
    corpus = Dataset.from_dict({"id": ["d0", "d1"], "title": ["pets", "pets"], "text": ["the dog", "the cat"]})
    data = RetrievalSplitData(
        queries=queries,
        corpus=corpus,
        relevant_docs={"q0": {"d0": 1}, "q1": {"d1": 1}},
        top_ranked=None,
    )
    seen = []

    class Watching(SugarMTEB):
        def encode(self, inputs, **kwargs):
            seen.append(super().encode(inputs, **kwargs))
            return seen[-1]

    task = made(AbsTaskRetrieval, {"default": {"test": data}}, "Told", "Retrieval", "t2t", "ndcg_at_10", ["text"])
    task.metadata = task.metadata.model_copy(update={"prompt": {"query": "Find a picture."}})
    scores(Watching(embedder), task)
    expected = [embedder.encode(["pets the dog", "pets the cat"]), embedder.encode(["a dog find it", "a cat find it"])]
    for vectors in expected:
        assert any(vectors == pytest.approx(found, abs=1e-5) for found in seen)


def test_compositionality_counts_as_by_hand(embedder, model):
    found_pairs = [each for kind in DIFFERENCES for each in draw_contrasts(draw_contrast, kind, "test", 12)]
    pairs = [list(zip(each.texts, map(picturebook.render, each.scenes), strict=True)) for each in found_pairs]
    columns = {f"caption_{k}": [pair[k][0] for pair in pairs] for k in (0, 1)}
    columns |= {f"image_{k}": [pair[k][1] for pair in pairs] for k in (0, 1)}
    kinds = {name: Image() if name.startswith("image") else Value("string") for name in columns}
    task = made(
        AbsTaskImageTextPairClassification,
        DatasetDict({"test": Dataset.from_dict(columns, features=Features(kinds))}),
        "Pairs",
        "Compositionality",
        "i2t",
        "accuracy",
        ["text", "image"],
        images_column_names=("image_0", "image_1"),
        texts_column_names=("caption_0", "caption_1"),
    )
    found = scores(model, task)
    s = np.stack(
        [embedder.encode([a[0], b[0]]) @ embedder.encode([a[1], b[1]]).T for a, b in pairs]
    )  # (pairs, captions, images)
    text = (s[:, 0, 0] > s[:, 1, 0]) & (s[:, 1, 1] > s[:, 0, 1])
    image = (s[:, 0, 0] > s[:, 0, 1]) & (s[:, 1, 1] > s[:, 1, 0])
    assert found["text_acc"] == pytest.approx(text.mean())
    assert found["image_acc"] == pytest.approx(image.mean())
    assert found["accuracy"] == pytest.approx((text & image).mean())
    assert 0 < found["accuracy"] < found["text_acc"] < 1  # some of these differences are beyond it


def test_images_are_classified_by_a_linear_probe(model):
    rng = random.Random(0)
    kinds = Features({"image": Image(), "label": Value("int64")})
    colours = list(picturebook.BACKGROUNDS)[:2]

    def draw(split, count):
        rows = []
        while len(rows) < count:
            scene = picturebook.random_scene(rng, split)
            if scene.background in colours:
                rows.append({"image": picturebook.render(scene), "label": colours.index(scene.background)})
        return Dataset.from_list(rows, features=kinds)

    data = DatasetDict({"train": draw("train", 24), "test": draw("test", 24)})
    task = made(
        AbsTaskClassification,
        data,
        "Colours",
        "ImageClassification",
        "i2c",
        "accuracy",
        ["image"],
        n_experiments=1,
        samples_per_label=8,
        input_column_name="image",
    )
    assert scores(model, task)["accuracy"] > 0.8


@pytest.mark.parametrize("modality", ["text", "image"])
def test_similarity_of_pairs(modality, model, pools):
    samples = [sample[0] for sample in pools["i2t"][0 if modality == "image" else 1]]
    kind = Image() if modality == "image" else Value("string")
    same = [i % 2 for i in range(SIZE)]
    other = [samples[i] if same[i] else samples[i - 1] for i in range(SIZE)]
    data = DatasetDict(
        {
            "test": Dataset.from_dict(
                {"sentence1": samples, "sentence2": other, "score": [float(value) for value in same]},
                features=Features({"sentence1": kind, "sentence2": kind, "score": Value("float64")}),
            )
        }
    )
    arguments = ("STS", "t2t") if modality == "text" else ("VisualSTS(eng)", "i2i")
    task = made(AbsTaskSTS, data, f"Twins{modality}", *arguments, "cosine_spearman", [modality])
    assert scores(model, task)["cosine_spearman"] > 0.8


def test_mteb_takes_it_for_an_encoder_with_cosine(model):
    assert isinstance(model, EncoderProtocol)
    a, b = encode(model, [{"text": ["a dog", "a cat"]}]), encode(model, [{"text": ["a bus"]}])
    assert np.asarray(model.similarity(3 * a, b)) == pytest.approx(a @ b.T, abs=1e-5)


def test_results_are_stored_under_name_and_weights(embedder, model, tmp_path):
    meta = model.mteb_model_meta
    assert (meta.name, meta.modalities, meta.embed_dim) == ("local/mini-sugar", ["text", "image"], embedder.dim)
    embedder.model.save_pretrained(tmp_path / "moved")
    embedder.processor.save_pretrained(tmp_path / "moved")
    moved = SugarMTEB(tmp_path / "moved", device="cpu")
    assert (moved.mteb_model_meta.name, moved.mteb_model_meta.revision) == ("local/moved", meta.revision)
    assert describe(embedder, "text_image").revision != meta.revision
    cut = SugarEmbedder(embedder.model, embedder.processor, truncate_dim=8)
    assert describe(cut).revision != meta.revision
    assert describe(cut).embed_dim == 8
    other = SugarEmbedder(*build_sugar("llava"))
    assert describe(other).revision != meta.revision


def test_rows_that_cannot_be_embedded(model, subtests):
    for batch, message in [
        ({"audio": [1]}, "made .test.: has audio. A Sugar model embeds texts and images only"),
        ({"text": ["a"], "video": [1]}, "has video"),
        ({"id": ["1"]}, "there is no column text or image, only id"),
        ({"text": ["a dog", " "]}, "made .test., row 2: has neither text nor image"),
        ({"image": [np.zeros((3, 4, 4))]}, "made .test., row 1.*ndarray is neither text nor image"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            encode(model, [{"text": ["a dog"]}, batch])


def test_options_that_cannot_be(embedder):
    with pytest.raises(ValueError, match="order='images'"):
        SugarMTEB(embedder, order="images")
    with pytest.raises(ValueError, match="truncate_dim, device: loading options"):
        SugarMTEB(embedder, truncate_dim=8, device="cpu")


def test_options_reach_the_embedder():
    loaded = SugarMTEB(MINI, device="cpu", truncate_dim=8, dtype="float64")
    assert encode(loaded, [{"text": ["a dog"]}]).shape == (1, 8)
    assert loaded.mteb_model_meta.embed_dim == 8


def test_samples_are_made_without_a_model():
    assert samples_of({"text": ["a"], "id": ["1"]}) == [["a"]]


def test_without_mteb_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.abs_encoder", None)
    monkeypatch.delitem(sys.modules, "sugar_hf.evaluation.harnesses.mteb_sugar")
    with pytest.raises(ImportError, match=r'pip install "sugar-hf\[mteb\]"'):
        import_module("sugar_hf.evaluation.harnesses.mteb_sugar")


def test_the_tasks_of_the_docs_are_there():
    section = DOCS.read_text(encoding="utf-8").split("## mteb")[1]
    names = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\w+)` \|", section, re.MULTILINE)
    assert len(names) > 10
    for name, category, score in names:
        found = mteb.get_task(name).metadata
        assert (found.category, found.main_score) == (category, score)
        assert set(found.modalities) <= {"text", "image"}
