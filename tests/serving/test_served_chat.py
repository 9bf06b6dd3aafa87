"""POST /v1/chat/completions gives what the pipeline gives, whole and in pieces."""

import json

import openai
import pytest
from serving_tools import image_part

from sugar_hf.model import SugarGenerationPipeline

QUESTIONS = ("which colour is the background?", "what is in the picture?", "describe the picture in detail.")


@pytest.fixture(scope="module")
def pipe(mini):
    return SugarGenerationPipeline(model=mini.model, processor=mini.processor)


@pytest.fixture(scope="module")
def client(served):
    return served.openai()


def asked(question, *pictures):
    parts = [*map(image_part, pictures), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts if pictures else question}]


def said(client, **body):
    return client.chat.completions.create(model="mini-sugar", **body)


def streamed(client, **body):
    """The pieces of an answer, why it ended, and what else came."""
    chunks = list(client.chat.completions.create(model="mini-sugar", stream=True, **body))
    assert chunks[0].choices[0].delta.role == "assistant"
    pieces = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    [reason] = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    return pieces, reason, chunks


def test_answers_are_those_of_the_pipeline(client, pipe, pictures):
    for question in QUESTIONS:
        for given in ([], pictures[:1], pictures[:2]):
            [expected] = pipe([{"role": "user", "content": [*given, question]}])
            found = said(client, messages=asked(question, *given))
            assert found.choices[0].message.content == expected["generated_text"]
            assert found.choices[0].finish_reason == "stop"
            assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_conversation_with_instructions(client, pipe, pictures):
    chat = [
        {"role": "system", "content": "Be brief."},
        *asked(QUESTIONS[0], pictures[0]),
        {"role": "assistant", "content": "red"},
        *asked(QUESTIONS[1]),
    ]
    own = [dict(message) for message in chat]
    own[1] = {"role": "user", "content": [pictures[0], QUESTIONS[0]]}
    assert said(client, messages=chat).choices[0].message.content == pipe(own)[0]["generated_text"]


def test_pieces_make_the_whole_answer(client, pictures):
    for question in QUESTIONS:
        body = {"messages": asked(question, pictures[0]), "max_tokens": 24}
        whole = said(client, **body)
        pieces, reason, chunks = streamed(client, stream_options={"include_usage": True}, **body)
        assert "".join(pieces) == whole.choices[0].message.content
        assert reason == whole.choices[0].finish_reason
        assert chunks[-1].usage == whole.usage
        assert all(chunk.usage is None for chunk in chunks[:-1])
        assert len({chunk.id for chunk in chunks}) == 1


def test_a_long_answer_comes_in_many_pieces(client, pictures):
    pieces, _, _ = streamed(client, messages=asked(QUESTIONS[2], pictures[0]))
    assert len(pieces) > 8


def test_an_answer_ends_before_a_stop(client, pictures):
    body = {"messages": asked(QUESTIONS[2], pictures[0])}
    text = said(client, **body).choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    for given in (stop, ["never there", stop]):
        found = said(client, stop=given, **body)
        assert found.choices[0].message.content == text[: text.index(stop)].strip()
        assert found.choices[0].finish_reason == "stop"
        assert found.usage.completion_tokens < said(client, **body).usage.completion_tokens
        pieces, reason, _ = streamed(client, stop=given, **body)
        assert ("".join(pieces), reason) == (found.choices[0].message.content, "stop")


def test_the_most_tokens(client, pictures):
    for name in ("max_tokens", "max_completion_tokens"):
        found = said(client, messages=asked(QUESTIONS[2], pictures[0]), **{name: 5})
        assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (5, "length")


def test_what_is_drawn_depends_on_the_seed(client):
    def draw(seed):
        body = {"temperature": 2.0, "top_p": 0.95, "max_tokens": 16, "seed": seed}
        return said(client, messages=asked(QUESTIONS[1]), **body).choices[0].message.content

    first = draw(7)
    draw(8)
    assert draw(7) == first
    assert len({draw(seed) for seed in (None, None, None, None)}) > 1
    likeliest = said(client, messages=asked(QUESTIONS[1])).choices[0].message.content
    for temperature in (0, 5e-324, 1e-3):
        found = said(client, messages=asked(QUESTIONS[1]), temperature=temperature, seed=1)
        assert found.choices[0].message.content == likeliest
    assert said(client, messages=asked(QUESTIONS[1]), top_p=5e-324, seed=1).choices[0].message.content == likeliest


def test_what_is_not_supported_is_refused_by_name(served, subtests):
    for name, value in (
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "required"),
        ("logprobs", True),
        ("top_logprobs", 2),
        ("n", 2),
        ("response_format", {"type": "json_object"}),
        ("presence_penalty", 0.5),
        ("audio", {"voice": "x"}),
        ("nonsense", 1),
        ("nonsense", None),
    ):
        with subtests.test(name=name):
            found = served.post("/v1/chat/completions", messages=asked("Who?"), **{name: value})
            assert found.status_code == 400
            assert found.json()["error"]["param"] == name
            assert found.json()["error"]["type"] == "invalid_request_error"


def test_what_asks_for_nothing_is_taken(served):
    neutral = {"n": 1, "logprobs": False, "presence_penalty": 0, "tools": None, "user": "me", "stop": None}
    neutral |= {"response_format": {"type": "text"}, "logit_bias": {}, "stream": None, "temperature": None}
    assert served.post("/v1/chat/completions", messages=asked("Who?"), max_tokens=2, **neutral).status_code == 200


def test_faults_of_a_chat_name_the_field(served, pictures, subtests):
    user = {"role": "user", "content": "Who?"}
    for messages, param in (
        ([], "messages"),
        ("Who?", "messages"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([user, {"role": "assistant", "content": "I."}], "messages[1].role"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "messages[0].content[0].image_url"),
        ([user | {"name": "me"}], "messages[0].name"),
        ([{"role": "user", "content": " "}], "messages"),
        (
            [{"role": "user", "content": [image_part(pictures[0]), {"type": "text", "text": " "}]}],
            "messages[0].content[1]",
        ),
    ):
        with subtests.test(param=param):
            found = served.post("/v1/chat/completions", messages=messages)
            assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_numbers_out_of_range_name_the_field(served, subtests):
    for name, value in (("temperature", 3), ("top_p", 0), ("max_tokens", 0), ("max_tokens", "5"), ("seed", -1)):
        with subtests.test(name=name, value=value):
            found = served.post("/v1/chat/completions", messages=asked("Who?"), **{name: value})
            assert (found.status_code, found.json()["error"]["param"]) == (400, name)
    found = served.post("/v1/chat/completions", messages=asked("Who?"), max_tokens=1024)
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")
    found = served.post("/v1/chat/completions", messages=asked("Who?"), max_tokens=5, max_completion_tokens=6)
    assert found.json()["error"]["param"] == "max_tokens"


def test_the_client_of_openai_sees_errors_as_its_own(client):
    with pytest.raises(openai.BadRequestError, match="messages"):
        said(client, messages=[])
    with pytest.raises(openai.NotFoundError, match="no 'gpt-5' here, but 'mini-sugar'"):
        client.chat.completions.create(model="gpt-5", messages=asked("Who?"))
    assert [model.id for model in client.models.list()] == ["mini-sugar"]


def test_an_error_of_a_stream_comes_before_it_as_an_error(served):
    found = served.post("/v1/chat/completions", messages=asked("Who?" * 2000), stream=True)
    assert (found.status_code, found.json()["error"]["param"]) == (400, "messages")


def test_a_failure_within_a_stream_is_its_last_event(served, monkeypatch):
    def broken(*_, stopping_criteria, **__):
        raise RuntimeError("a secret of the machine")

    monkeypatch.setattr(served.engine.model, "generate", broken)
    found = served.post("/v1/chat/completions", messages=asked("Who?"), stream=True)
    *_, last = [line for line in found.text.splitlines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert "secret" not in found.text
    whole = served.post("/v1/chat/completions", messages=asked("Who?"))
    assert whole.status_code == 500
    assert whole.json()["error"] == {
        "message": "the server failed; its log says why.",
        "type": "server_error",
        "param": None,
        "code": None,
    }
