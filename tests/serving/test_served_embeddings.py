"""POST /v1/embeddings and /v1/rerank give what the embedder gives, whoever else is embedded at the time."""

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serving_tools import address, image_part, running

from sugar_hf.serving import Engine, ServingOptions
from sugar_hf.serving.embedding_worker import Embedded
from sugar_hf.serving.schemas import EmbeddingRequest
from sugar_hf.serving.server import _embedding_response

TEXTS = ["a red cat.", "two dogs run on a blue background.", "a broom", "a small snowflake in the centre. it snows."]


@pytest.fixture(scope="module")
def inputs(pictures):
    """What requests hold, and the samples that it stands for."""
    text = {"type": "text", "text": "at night:"}
    return [
        *((text, text) for text in TEXTS),
        ({"image": address(pictures[0])}, [pictures[0]]),
        ({"text": "a cat", "image": address(pictures[1])}, [pictures[1], "a cat"]),
        ([text, image_part(pictures[2]), "a dog"], ["at night:", pictures[2], "a dog"]),
        ([image_part(picture) for picture in pictures[:3]], pictures[:3]),
    ]


def vectors(answer):
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [row["index"] for row in data] == list(range(len(data)))
    return np.array([row["embedding"] for row in data])


def test_every_form_of_input(served, mini, inputs):
    expected = mini.encode([sample for _, sample in inputs], show_progress=False)
    answer = served.post("/v1/embeddings", input=[given for given, _ in inputs])
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-6)
    for (given, _), wanted in zip(inputs[:6], expected, strict=False):
        np.testing.assert_allclose(vectors(served.post("/v1/embeddings", input=given)), [wanted], atol=1e-6)


def test_texts_may_be_pooled_by_their_mean(served, mini, monkeypatch):
    last = mini.encode(TEXTS, show_progress=False)
    monkeypatch.setattr(mini.model.config, "text_pooling", "mean")
    expected = mini.encode(TEXTS, show_progress=False)
    assert np.abs(expected - last).max() > 1e-3
    np.testing.assert_allclose(vectors(served.post("/v1/embeddings", input=TEXTS)), expected, atol=1e-6)


def test_together_with_others(served, mini, inputs):
    """Many requests at a time, alike only in that they come together."""
    expected = mini.encode([sample for _, sample in inputs], show_progress=False)
    before = served.figure("sugar_batch_inputs_sum")
    batches = served.figure("sugar_batch_inputs_count")

    def ask(number):
        given = [inputs[(number + step) % len(inputs)][0] for step in range(1 + number % 3)]
        wanted = [expected[(number + step) % len(inputs)] for step in range(1 + number % 3)]
        np.testing.assert_allclose(vectors(served.post("/v1/embeddings", input=given)), wanted, atol=1e-6)
        return len(given)

    with ThreadPoolExecutor(12) as pool:
        asked = sum(pool.map(ask, range(48)))
    assert served.figure("sugar_batch_inputs_sum") - before == asked
    assert served.figure("sugar_batch_inputs_count") - batches < asked


def test_the_client_of_openai(served, mini):
    client = served.openai()
    expected = mini.encode(TEXTS, show_progress=False)
    for options in ({}, {"encoding_format": "float"}, {"dimensions": mini.dim}):  # without one it asks for base64
        found = client.embeddings.create(model="mini-sugar", input=TEXTS, **options)
        np.testing.assert_allclose([row.embedding for row in found.data], expected, atol=1e-6)
        assert found.usage.prompt_tokens == sum(len(mini.processor([text])["input_ids"][0]) for text in TEXTS)


def test_base64_is_float32(served, mini):
    [row] = served.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64").json()["data"]
    found = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_allclose(found, mini.encode([TEXTS[0]], show_progress=False)[0], atol=1e-6)


def test_chats(served, mini, pictures):
    chats = [
        [{"role": "user", "content": "a cat"}],
        [
            {"role": "user", "content": [{"type": "text", "text": "what?"}, image_part(pictures[0])]},
            {"role": "assistant", "content": "red"},
        ],
    ]
    own = [
        chats[0],
        [{"role": "user", "content": ["what?", pictures[0]]}, {"role": "assistant", "content": "red"}],
    ]
    expected = mini.encode(own, show_progress=False)
    np.testing.assert_allclose(vectors(served.post("/v1/embeddings", messages=chats)), expected, atol=1e-6)
    np.testing.assert_allclose(vectors(served.post("/v1/embeddings", messages=chats[1])), expected[1:], atol=1e-6)


def test_a_vector_for_each_slice(served, mini, inputs):
    expected = mini.encode_slices([sample for _, sample in inputs], show_progress=False)
    answer = served.post("/v1/embeddings", input=[given for given, _ in inputs], positions="all")
    np.testing.assert_allclose(vectors(answer), np.concatenate(expected), atol=1e-6)
    places = [(row["sample"], row["slice"]) for row in answer.json()["data"]]
    assert places == [(sample, piece) for sample, rows in enumerate(expected) for piece in range(len(rows))]


def test_other_widths_are_those_that_the_server_names(served, mini):
    refused = served.post("/v1/embeddings", input="a cat", dimensions=32)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")
    with running(Engine(mini, options=ServingOptions(dimensions=(32,)))) as server:
        found = vectors(server.post("/v1/embeddings", input=["a cat"], dimensions=32))
        assert server.post("/v1/embeddings", input="a cat", dimensions=31).status_code == 400
    whole = mini.encode(["a cat"], show_progress=False)[:, :32]
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole), atol=1e-6)
    with pytest.raises(ValueError, match="dimensions: 129"):
        Engine(mini, options=ServingOptions(dimensions=(129,)))


def test_a_vector_without_a_beginning_is_not_written_as_null():
    found = [Embedded(np.array([[0.0, 0.0, 1.0]], np.float32), 3)]
    with pytest.raises(ValueError, match="no unit vector at slice 0"), np.errstate(invalid="ignore"):
        _embedding_response(found, EmbeddingRequest(model="mini", input="a"), 2, "mini")


def test_rerank(served, mini, inputs):
    documents, samples = zip(*inputs, strict=True)
    scores = mini.encode(list(samples), show_progress=False) @ mini.encode(["a cat"], show_progress=False)[0]
    found = served.post("/v1/rerank", query="a cat", documents=list(documents), return_documents=True).json()
    assert [row["index"] for row in found["results"]] == np.argsort(-scores, kind="stable").tolist()
    for row in found["results"]:
        assert row["relevance_score"] == pytest.approx(scores[row["index"]], abs=1e-6)
        given = documents[row["index"]]
        assert row["document"] == ({"text": given} if isinstance(given, str) else given)
    short = served.post("/v1/rerank", query="a cat", documents=list(documents), top_n=2).json()
    assert short["results"] == [{k: v for k, v in row.items() if k != "document"} for row in found["results"][:2]]
    assert short["usage"]["total_tokens"] > 0


def test_faults_name_the_input(served, pictures, subtests):
    broken = address(pictures[0])[:-40]
    for body, param in (
        ({}, "input"),
        ({"input": "a", "messages": [{"role": "user", "content": "a"}]}, "messages"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", " "]}, "input[1]"),
        ({"input": [1, 2]}, "input[0]"),
        ({"input": ["a", {}]}, "input[1]"),
        ({"input": ["a", {"txt": "a"}]}, "input[1].txt"),
        ({"input": ["a", {"type": "text", "text": "a"}]}, "input[1].type"),
        ({"input": ["a", ["a", {"type": "text", "text": 1}]]}, "input[1][1].text"),
        ({"input": ["a", {"image": broken}]}, "input[1].image"),
        ({"input": ["a", {"image": "data:image/png;base64,AAAA"}]}, "input[1].image"),
        ({"input": ["a", {"image": "data:image/png;base64,*"}]}, "input[1].image"),
        (
            {"input": ["a", [image_part(pictures[0]), {"type": "image_url", "image_url": {"url": "x.png"}}]]},
            "input[1][1].image_url.url",
        ),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "positions": "first"}, "positions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
    ):
        with subtests.test(param=param):
            found = served.post("/v1/embeddings", **body)
            assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.text
            assert param.split("[")[0] in found.json()["error"]["message"]


def test_one_bad_input_harms_no_other_request(served, mini):
    def ask(number):
        if number % 4 == 0:
            found = served.post("/v1/embeddings", input=["a", "so many words " * 2000])
            assert (found.status_code, found.json()["error"]["param"]) == (400, "input[1]")
        else:
            found = vectors(served.post("/v1/embeddings", input=TEXTS[number % 4]))
            np.testing.assert_allclose(found, mini.encode([TEXTS[number % 4]], show_progress=False), atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))
