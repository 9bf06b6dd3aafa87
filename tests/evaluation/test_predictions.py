"""Predictions that stay, and runs that go on where they were."""

import json
import os

import numpy as np
import pytest
from benchmark_tools import Saying, pictures, scene, words
from PIL import Image

from sugar_hf.data import BadSampleError, Document
from sugar_hf.evaluation import Example, GenerationEvaluator, Lazy
from sugar_hf.evaluation.embedding_store import EmbeddingStore
from sugar_hf.evaluation.examples import digest_of
from sugar_hf.evaluation.predictions import PredictionFile


def score(records):
    return {"accuracy": 100 * sum(record.prediction == record.reference for record in records) / len(records)}


def evaluator(size=10, prompt=lambda i: [f"number {i}"], **options):
    examples = Lazy(size, lambda i: Example.of(i, prompt(i), f"number {i}"))
    return GenerationEvaluator("numbers", examples, score, primary_metric="accuracy", **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_prediction_is_a_line(tmp_path):
    path = tmp_path / "numbers.jsonl"
    result = evaluator(3, seed=5)(Saying(words), output=path, batch_size=2)
    assert result["accuracy"] == 100
    assert (result["n"], result["seed"], result["failed"]) == (3, 5, [])
    first, *rest = lines(path)
    assert first["run"]["model"] == "saying"
    assert {line["id"]: (line["prediction"], line["reference"]) for line in rest} == {
        str(i): (f"number {i}", f"number {i}") for i in range(3)
    }
    assert not path.with_name("numbers.jsonl.lock").exists()


def test_batches_are_of_similar_length():
    lengths = [3, 50, 4, 51, 5, 52]
    generator = Saying(words)
    evaluator(6, lambda i: ["x" * lengths[i]])(generator, batch_size=3)
    assert [len(words(sample)) for sample in generator.asked] == [52, 51, 50, 5, 4, 3]


def test_a_run_that_was_killed_goes_on(tmp_path):
    path, size = tmp_path / "numbers.jsonl", 80

    def answer_and_die(sample):
        if sum(1 for line in path.read_text().splitlines()) > 40:
            os._exit(9)
        return words(sample)

    child = os.fork()
    if not child:
        evaluator(size)(Saying(answer_and_die), output=path, batch_size=2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    done = len(lines(path)) - 1
    assert 0 < done < size
    generator = Saying(words)
    result = evaluator(size)(generator, output=path, batch_size=2)
    assert len(generator.asked) == size - done
    assert result == evaluator(size)(Saying(words), batch_size=2)


def test_a_line_that_was_cut_off_is_asked_again(tmp_path):
    path = tmp_path / "numbers.jsonl"
    whole = evaluator()(Saying(words), output=path)
    text = path.read_text()
    path.write_text(text[:-20])
    generator = Saying(words)
    assert evaluator()(generator, output=path) == whole
    assert len(generator.asked) == 1
    assert len(lines(path)) == 11


def test_a_file_of_another_run_is_refused(tmp_path):
    path = tmp_path / "numbers.jsonl"
    evaluator()(Saying(words), output=path)
    other = Saying(words)
    other.name = "another"
    with pytest.raises(ValueError, match=r'predictions of another run .*model: "saying" there, "another" now'):
        evaluator()(other, output=path)
    evaluator()(Saying(words), output=path)  # the lock is free again


def test_where_the_data_lies_may_change(tmp_path):
    path = tmp_path / "numbers.jsonl"
    evaluator(settings={"data": "/here"})(Saying(words), output=path)
    generator = Saying(words)
    evaluator(settings={"data": "/there"})(generator, output=path)
    assert not generator.asked


def test_changed_data_is_noticed(tmp_path):
    path = tmp_path / "numbers.jsonl"
    evaluator()(Saying(words), output=path)
    with pytest.raises(ValueError, match="sample '0' was another when it was answered"):
        evaluator(prompt=lambda i: [f"item {i}"])(Saying(words), output=path)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "numbers.jsonl"
    evaluator()(Saying(words), output=path)
    text = path.read_text().splitlines()
    text[3] = "{"
    path.write_text("\n".join(text) + "\n")
    with pytest.raises(ValueError, match="line 4: no prediction"):
        evaluator()(Saying(words), output=path)


def test_two_processes_do_not_write_one_file(tmp_path):
    path = tmp_path / "numbers.jsonl"
    with PredictionFile(path, {}), pytest.raises(ValueError, match="another process writes to it"):
        PredictionFile(path, {})


def test_a_sample_that_fails_is_wrong_and_listed_and_asked_again(tmp_path):
    path, missing = tmp_path / "numbers.jsonl", tmp_path / "missing.png"

    def prompt(i):
        return [missing, f"number {i}"] if i == 2 else [f"number {i}"]

    generator = Saying(words)
    result = evaluator(4, prompt)(generator, output=path)
    assert result["accuracy"] == 75
    [failure] = result["failed"]
    assert failure["id"] == "2"
    assert "missing.png" in failure["error"]
    assert len(generator.asked) == 3
    scene(0)[0].save(missing)
    generator = Saying(words)
    result = evaluator(4, prompt)(generator, output=path)
    assert (result["accuracy"], result["failed"], len(generator.asked)) == (100, [], 1)
    assert pictures(generator.asked[0])


def test_one_bad_prompt_does_not_harm_its_batch():
    def answer(sample):
        if words(sample) == "number 3":
            raise ValueError("too long")
        return words(sample)

    result = evaluator(5)(Saying(answer), batch_size=5)
    assert result["accuracy"] == 80
    assert result["failed"] == [{"id": "3", "error": "too long"}]


def test_a_malformed_prompt_is_listed():
    result = evaluator(3, lambda i: [] if i == 1 else [f"number {i}"])(Saying(words))
    assert [failure["id"] for failure in result["failed"]] == ["1"]
    assert result["n"] == 3


def test_ids_must_differ():
    examples = [Example.of("a", ["x"]), Example.of("a", ["y"])]
    with pytest.raises(ValueError, match="two samples have the id 'a'"):
        GenerationEvaluator("t", examples, None, primary_metric=None)(Saying(words))


def test_no_samples_is_an_error():
    with pytest.raises(ValueError, match="there are no samples"):
        evaluator(0)


def test_a_digest_knows_texts_references_and_images():
    image = scene(0)[0]
    changed = image.copy()
    changed.putpixel((0, 0), (1, 2, 3))
    documents = [Document("a", [image, "x"]), Document("a", [changed, "x"]), Document("a", [image, "y"])]
    digests = {digest_of(document) for document in documents} | {digest_of(documents[0], "reference")}
    assert len(digests) == 4
    assert digest_of(Document("a", [image.copy(), "x"])) in digests


class Counting:
    """An encoder that notes what it embeds; a document of the text "bad" fails."""

    name = "counting"

    def __init__(self, **settings):
        self.embedded, self.said = [], settings

    def embed_documents(self, documents, *, batch_size, skipped, progress):
        found = []
        for document in documents:
            [text] = [part["text"] for part in document.content.messages[0]["content"]]
            self.embedded.append(text)
            progress.update()
            if text == "bad":
                skipped.append(BadSampleError("it is bad", sample=document.id))
                found.append(None)
            else:
                vectors = np.random.default_rng(len(text)).normal(size=(len(text) % 3 + 1, 8))
                found.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
        return found

    def describe(self):
        return self.said


def documents(*texts):
    return [Document(f"d{i}", text) for i, text in enumerate(texts)]


def test_embeddings_are_kept(tmp_path):
    encoder, texts = Counting(), documents("a", "bb", "ccc")
    found = EmbeddingStore(encoder, tmp_path).encode("texts", texts)
    again = EmbeddingStore(encoder, tmp_path).encode("texts", texts)
    assert encoder.embedded == ["a", "bb", "ccc"]
    assert [rows.shape for rows in found] == [(2, 8), (3, 8), (1, 8)]
    for rows, same in zip(found, again, strict=True):
        np.testing.assert_array_equal(rows, same)


@pytest.mark.parametrize("change", ["encoder", "text", "order"])
def test_embeddings_of_something_else_are_made_anew(tmp_path, change):
    EmbeddingStore(Counting(mode="a"), tmp_path).encode("texts", documents("a", "bb"))
    encoder = Counting(mode="b" if change == "encoder" else "a")
    texts = {"encoder": ("a", "bb"), "text": ("a", "cc"), "order": ("bb", "a")}[change]
    EmbeddingStore(encoder, tmp_path).encode("texts", documents(*texts))
    assert encoder.embedded == list(texts)


def test_documents_that_fail_are_listed_and_tried_again(tmp_path):
    encoder = Counting()
    store = EmbeddingStore(encoder, tmp_path)
    found = store.encode("texts", documents("a", "bad", "cc"))
    assert [rows is None for rows in found] == [False, True, False]
    assert store.failed == [{"set": "texts", "id": "d1", "error": "sample 'd1': it is bad"}]
    store.encode("texts", documents("a", "bad", "cc"))
    assert len(encoder.embedded) == 6


def test_lazy_items_are_built_when_asked_for():
    built = []
    items = Lazy(4, lambda i: built.append(i) or i * 10)
    assert (len(items), items[1], items[-1], items[1:3]) == (4, 10, 30, [10, 20])
    assert built == [1, 3, 1, 2]
    with pytest.raises(IndexError):
        items[4]


def test_a_grey_image_in_a_prompt_is_read():
    generator = Saying(words)
    evaluator(1, lambda i: [Image.new("L", (8, 8)), f"number {i}"])(generator)
    assert pictures(generator.asked[0])[0].mode == "RGB"
