"""Retrieval and generation through `pipeline`."""

import numpy as np
import pytest
import torch
from builders import build_tiny_llava, picture
from transformers import pipeline

from sugar_hf import picturebook
from sugar_hf.model import CandidateIndex, DefaultModel, SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.pipeline_sugar import split_inputs

RED, BLUE = picture(1), picture(2, 64, 20)
CHAT = [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}]}]
POOL = ["A cat.", RED, ["A dog.", BLUE], "Two balls.", CHAT, [RED, BLUE, "The sun."]]


@pytest.fixture
def retrieve(llava):
    model, processor = llava
    return pipeline("sugar-retrieval", model=model, processor=processor, device="cpu")


@pytest.fixture
def generate(llava):
    model, processor = llava
    return pipeline("sugar-generation", model=model, processor=processor, device="cpu")


@torch.no_grad()
def last_embedding(llava, sample):
    model, processor = llava
    return model.get_retrieval_embeddings(**processor([sample]))[0][0, -1].numpy()


# --- retrieval


def test_one_query_gives_one_list(retrieve, llava):
    results = retrieve("A dog.", candidates=POOL, top_k=3)
    scores = [float(last_embedding(llava, "A dog.") @ last_embedding(llava, candidate)) for candidate in POOL]
    order = sorted(range(len(POOL)), key=lambda i: -scores[i])[:3]
    assert [result["index"] for result in results] == order
    for result in results:
        assert result.keys() == {"index", "score", "candidate"}
        assert result["score"] == pytest.approx(scores[result["index"]], abs=1e-5)
        assert result["candidate"] is POOL[result["index"]]


@pytest.mark.parametrize("query", ["A cat.", RED, CHAT, {"query": ["A dog.", BLUE]}, {"type": "image", "image": RED}])
def test_a_sample_finds_itself(retrieve, query):
    (result,) = retrieve(query, POOL, top_k=1)
    assert result["index"] == {str: 0, list: 4}.get(type(query), 2 if "query" in query_keys(query) else 1)
    assert result["score"] == pytest.approx(1, abs=1e-5)


def query_keys(query):
    return query.keys() if isinstance(query, dict) else ()


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_several_queries_of_any_modality(retrieve, batch_size):
    queries = [["A dog.", BLUE], [RED], ["Two balls."], CHAT, [RED, BLUE, "The sun."]]
    results = retrieve(queries, POOL, top_k=1, batch_size=batch_size)
    assert [result[0]["index"] for result in results] == [2, 1, 3, 4, 5]


def test_lists_of_texts_and_of_images_are_several_queries(retrieve):
    assert [result[0]["index"] for result in retrieve(["Two balls.", "A cat."], POOL)] == [3, 0]
    assert len(retrieve([RED, BLUE], POOL, top_k=2)) == 2


def test_flat_list_of_both_is_refused(retrieve):
    with pytest.raises(ValueError, match=r"one interleaved input or several\. .*\{'query'"):
        retrieve(["A cat.", RED], POOL)


def test_split_inputs():
    assert split_inputs("a") == (["a"], True)
    assert split_inputs(CHAT) == ([CHAT], True)
    assert split_inputs({"query": ["a", RED]}) == ([["a", RED]], True)
    assert split_inputs([["a", RED]]) == ([["a", RED]], False)
    assert split_inputs(["a", ["b", RED]]) == (["a", ["b", RED]], False)
    assert split_inputs([{"query": ["a", RED]}, "b"]) == ([["a", RED], "b"], False)
    assert split_inputs([CHAT, CHAT]) == ([CHAT, CHAT], False)
    for bad in ([], 3, None):
        with pytest.raises(ValueError, match="cannot read"):
            split_inputs(bad)


def test_positions_come_from_one_forward_pass(retrieve, llava, monkeypatch):
    query = ["A cat.", RED, "A dog."]
    index = CandidateIndex(POOL, retrieve.encode(POOL))
    assert retrieve.prefix_check.is_exact  # found by further passes, once
    calls = []
    original = llava[0].get_retrieval_embeddings
    monkeypatch.setattr(llava[0], "get_retrieval_embeddings", lambda **inputs: calls.append(1) or original(**inputs))
    results = retrieve({"query": query}, index, top_k=2, return_positions=True)
    assert len(calls) == 1
    assert [len(found) for found in results] == [2, 2, 2]
    for end, found in enumerate(results, start=1):
        expected = retrieve({"query": query[:end]}, index, top_k=2)
        assert [result["index"] for result in found] == [result["index"] for result in expected]
        assert found[0]["score"] == pytest.approx(expected[0]["score"], abs=1e-5)


def test_embeddings(retrieve, llava):
    answer = retrieve({"query": ["A cat.", RED]}, return_embeddings=True)
    assert answer.keys() == {"embedding"}
    np.testing.assert_allclose(answer["embedding"], last_embedding(llava, ["A cat.", RED]), atol=1e-6)
    answer = retrieve([["A cat.", RED]], POOL, return_embeddings=True, return_positions=True)[0]
    assert answer["embedding"].shape == (2, 16)
    assert len(answer["results"]) == 2


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_encode_keeps_the_order(retrieve, llava, batch_size):
    embeddings = retrieve.encode(POOL, batch_size=batch_size)
    assert embeddings.dtype == np.float32
    for embedding, sample in zip(embeddings, POOL, strict=True):
        np.testing.assert_allclose(embedding, last_embedding(llava, sample), atol=1e-5)


def test_options_given_to_pipeline_are_defaults(llava):
    model, processor = llava
    pipe = pipeline("sugar-retrieval", model=model, processor=processor, device="cpu", top_k=2, return_embeddings=True)
    assert len(pipe("A cat.", POOL)["results"]) == 2
    assert pipe("A cat.").keys() == {"embedding"}
    assert len(pipe("A cat.", POOL, top_k=1, return_embeddings=False)) == 1


def test_any_index_with_search_embeddings_and_documents_will_do(retrieve):
    class Index:
        documents = ("x", "y")

        def search_embeddings(self, embeddings, top_k):
            assert embeddings.dtype == np.float32
            assert top_k == 3
            count = len(embeddings)
            return np.array([[0.9, 0.5, 0.0]] * count), np.array([[1, 0, -1]] * count)

    assert retrieve("a", Index(), top_k=3) == [
        {"index": 1, "score": 0.9, "candidate": "y"},
        {"index": 0, "score": 0.5, "candidate": "x"},
    ]


def test_bad_calls(retrieve, subtests):
    for arguments, options, message in [
        (("a",), {}, "nothing to search"),
        (("a", "b"), {}, "must be a list or an index, got a str"),
        (("a", []), {}, "no candidate to embed"),
        (("a", ["b", " "]), {}, "candidate 1, part 0: the text is empty"),
        ((["a", " "], ["b"]), {}, "input 1, part 0: the text is empty"),
        (([["a"], [" "]], ["b"]), {}, "query 1, part 0: the text is empty"),
        (("a", ["b"]), {"top_k": 0}, "at least one result"),
    ]:
        with (
            subtests.test(message=message),
            pytest.raises(ValueError, match=message),
        ):
            retrieve(*arguments, **options)


# --- generation


@torch.no_grad()
def test_generation_is_the_models(generate, llava):
    model, processor = llava
    inputs = processor([CHAT], add_generation_prompt=True)
    expected = model.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    answer = generate(CHAT, do_sample=False)
    assert answer == [{"generated_text": processor.decode(expected, skip_special_tokens=True).strip()}]
    assert generate("What?", images=RED, do_sample=False) == answer
    assert generate({"query": [RED, "What?"]}, do_sample=False) == answer


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generation_in_batches_of_mixed_modality(generate, batch_size):
    prompts = [["Compare", RED, "with", BLUE], "Two dogs run?", CHAT]
    answers = generate(prompts, batch_size=batch_size, do_sample=False, max_new_tokens=3)
    assert answers == [
        generate({"query": prompts[0]}, do_sample=False, max_new_tokens=3),
        generate(prompts[1], do_sample=False, max_new_tokens=3),
        generate(CHAT, do_sample=False, max_new_tokens=3),
    ]


def test_several_sequences(generate):
    torch.manual_seed(0)
    answers = generate(["What?", "Who?"], do_sample=True, num_return_sequences=2, batch_size=2)
    assert [len(answer) for answer in answers] == [2, 2]


def test_bad_generation_inputs(generate):
    with pytest.raises(ValueError, match="images= goes with a prompt that is a str"):
        generate(CHAT, images=RED)
    with pytest.raises(ValueError, match="ends with the assistant's turn"):
        generate([*CHAT, {"role": "assistant", "content": "A cat."}])


def test_prompts_without_chat_template():
    vlm, backbone = build_tiny_llava()
    backbone.chat_template = None
    model, processor = SugarForConditionalGeneration.from_backbone(vlm), SugarProcessor(backbone)
    pipe = pipeline("sugar-generation", model=model, processor=processor, device="cpu")
    assert len(pipe({"query": ["A cat", RED]})) == 1


# --- where the model comes from


def test_default_model_is_sugar_in_the_working_folder(llava, tmp_path, monkeypatch):
    model, processor = llava
    monkeypatch.chdir(tmp_path)
    pipeline("sugar-retrieval", model=model, processor=processor, device="cpu").save_pretrained("sugar")
    assert DefaultModel()["model"] == (str(tmp_path / "sugar"), "main")
    found = pipeline("sugar-retrieval", device="cpu")("A dog.", POOL, top_k=2)
    expected = pipeline("sugar-retrieval", model="sugar", device="cpu")("A dog.", POOL, top_k=2)
    assert found == expected
    assert len(pipeline("sugar-generation", device="cpu")("What?")) == 1


def test_default_model_is_looked_up_when_it_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert DefaultModel()["model"] == (picturebook.checkpoint("mini-sugar"), "main")
    shipped = tmp_path / "package" / "mini-sugar"
    monkeypatch.setattr(DefaultModel, "shipped", shipped)
    with pytest.raises(ValueError, match=r"neither \./sugar nor .*mini-sugar\. Pass model="):
        DefaultModel()["model"]
    shipped.mkdir(parents=True)
    (shipped / "config.json").write_text("{}")
    assert DefaultModel()["model"] == (str(shipped), "main")


def test_other_models_and_missing_processors_are_refused(llava):
    model, processor = llava
    with pytest.raises(ValueError, match=r"needs a Sugar model, got llava\. .*from_backbone"):
        pipeline("sugar-retrieval", model=model.vlm, processor=processor, device="cpu")
