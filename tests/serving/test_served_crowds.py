"""Many clients at a time: nothing is mixed up or lost, queues have ends, and who leaves ends what was begun."""

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import torch
from builders import build_sugar
from peft import get_peft_model
from serving_tools import address, image_part, running

from sugar_hf import SugarEmbedder, SugarIndex
from sugar_hf.model import SugarGenerationPipeline, adapter_off
from sugar_hf.serving import Engine, ServingOptions
from sugar_hf.serving.generation_worker import Task
from sugar_hf.training import sugar_lora_config

CHAT = "/v1/chat/completions"
WHO = {"messages": [{"role": "user", "content": "Who?"}]}


def eventually(holds):
    """Wait for something that comes soon; fails when it does not."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


class Slow:
    """In the place of `generate`: a token, then one more whenever it is told so."""

    def __init__(self, model):
        self.more, self.calls, self.ended = threading.Semaphore(0), 0, 0
        self.token = torch.tensor([[model.generation_config.eos_token_id + 5]])

    def __call__(self, input_ids, stopping_criteria, max_new_tokens, **_):
        self.calls += 1
        for _ in range(max_new_tokens):
            input_ids = torch.cat([input_ids, self.token.expand(len(input_ids), 1)], dim=1)
            if all(criterion(input_ids, None).all() for criterion in stopping_criteria):
                break
            while not self.more.acquire(timeout=0.01):
                if all(criterion(input_ids, None).all() for criterion in stopping_criteria):
                    break
        self.ended += 1
        return input_ids


@pytest.fixture
def slow(mini, monkeypatch):
    slow = Slow(mini.model)
    monkeypatch.setattr(mini.model, "generate", slow)
    yield slow
    slow.more.release(10_000)


def mixed(served, mini, pictures, rows):
    """Requests of all kinds, each with what its answer has to be."""
    index = served.engine.index
    colour, detail = "which colour is the background?", "describe the picture in detail."
    requests = []
    for number in range(10):
        text, picture = f"a small thing number {number}.", pictures[number % len(pictures)]
        [vector] = mini.encode([text], show_progress=False)
        requests.append(("/v1/embeddings", {"input": text}, ("data", 0, "embedding"), vector))
        sample = [picture, text]
        given = {"input": {"image": address(picture), "text": text}}
        vector = mini.encode([sample], show_progress=False)[0]
        requests.append(("/v1/embeddings", given, ("data", 0, "embedding"), vector))
        best = index.search(text, 1)[0].id
        requests.append(("/v1/search", {"query": text, "top_k": 1}, ("data", 0, "id"), best))
        question = {"messages": [{"role": "user", "content": [image_part(picture), {"type": "text", "text": colour}]}]}
        requests.append((CHAT, question, ("choices", 0, "message", "content"), None))
        if number < 2:
            question = {
                "messages": [{"role": "user", "content": [image_part(picture), {"type": "text", "text": detail}]}]
            }
            requests.append((CHAT, {**question, "stream": True}, None, None))
            requests.append(("/v1/answer", {"query": text, "top_k": 1}, ("documents", 0, "id"), best))
    return requests


def body_of(answer, path):
    assert answer.status_code == 200, answer.text
    if path is None:
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line and line != "data: [DONE]"]
        return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    found = answer.json()
    for step in path:
        found = found[step]
    return found


@pytest.mark.parametrize(("clients", "each"), [(4, 8), pytest.param(8, 50, marks=pytest.mark.slow)])
def test_nothing_is_mixed_up_or_lost(served, mini, pictures, rows, clients, each):
    requests = mixed(served, mini, pictures, rows)
    alone = [body_of(served.post(path, **body), at) for path, body, at, _ in requests]
    for (_, _, _, expected), found in zip(requests, alone, strict=True):
        if expected is not None:
            assert found == pytest.approx(expected, abs=1e-6) if isinstance(found, list) else found == expected

    def client(number):
        with httpx2.Client(base_url=served.url, timeout=120) as http:
            order = np.random.default_rng(number).permutation(np.arange(each) % len(requests)).tolist()
            for at in order:
                path, body, steps, _ = requests[at]
                found = body_of(http.post(path, json=body), steps)
                if isinstance(found, list):
                    np.testing.assert_allclose(found, alone[at], atol=1e-6)
                else:
                    assert found == alone[at]
        return each

    with ThreadPoolExecutor(clients) as pool:
        assert sum(pool.map(client, range(clients))) == clients * each


def test_chats_that_wait_are_answered_together_as_alone(served, pictures):
    """Whatever their lengths, limits and stops, and whether they are streamed; those that draw are alone."""
    detail, colour = "describe the picture in detail.", "which colour is the background?"
    bodies = []
    for number in range(12):
        text = {"type": "text", "text": (detail, colour, "who?")[number % 3]}
        parts = [*([image_part(pictures[number % 4])] * (number % 3 < 2)), text]
        body = {"messages": [{"role": "user", "content": parts}], "stream": number % 4 == 1}
        body |= {"max_tokens": 3 + number} if number % 2 else {"stop": ["a large", " at the"]}
        body |= {"temperature": 1.5, "seed": number} if number % 5 == 4 else {}
        bodies.append(body)

    def ask(body):
        return body_of(served.post(CHAT, **body), None if body["stream"] else ("choices", 0))

    alone = [ask(body) for body in bodies]
    batches, chats = (served.figure(f"sugar_generations_together_{name}") for name in ("count", "sum"))
    holds, goes = threading.Event(), threading.Event()

    def wait(tasks):
        holds.set()
        goes.wait(30)
        tasks[0].end(None)

    served.engine._generation.submit(Task(wait, served.engine.watch([], None)))
    holds.wait(30)
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = [pool.submit(ask, body) for body in bodies]
        eventually(lambda: served.figure('sugar_queue_length{queue="generation"}') == len(bodies))
        goes.set()
        assert [answer.result() for answer in found] == alone
    assert served.figure("sugar_generations_together_sum") - chats == len(bodies) + 1
    assert served.figure("sugar_generations_together_count") - batches == 1 + 2 + 2  # 10 alike, 8 at the most; 2 draw


def test_a_full_queue_answers_429(mini, stories, slow):
    engine = Engine(mini, SugarIndex.load(stories), ServingOptions(most_generations_waiting=2))
    with running(engine) as server, ThreadPoolExecutor(8) as pool:
        first = [pool.submit(server.post, CHAT, max_tokens=2, **WHO)]
        eventually(lambda: slow.calls == 1)
        first += [pool.submit(server.post, CHAT, max_tokens=2, **WHO) for _ in range(2)]
        eventually(lambda: server.figure('sugar_queue_length{queue="generation"}') == 2)
        for path, body in ((CHAT, WHO), (CHAT, {**WHO, "stream": True}), ("/v1/answer", {"query": "a"})):
            refused = server.post(path, **body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        assert server.post("/v1/embeddings", input="a").status_code == 200  # these do not wait for generations
        slow.more.release(100)
        assert [answer.result().status_code for answer in first] == [200] * 3
        assert server.post(CHAT, max_tokens=2, **WHO).status_code == 200


def test_too_many_requests_answer_429(mini, slow):
    with running(Engine(mini, options=ServingOptions(most_requests=1))) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, CHAT, max_tokens=2, **WHO)
        eventually(lambda: slow.calls == 1)
        refused = server.post("/v1/embeddings", input="a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert server.http.get("/health").status_code == 200
        slow.more.release(10)
        assert first.result().status_code == 200
        assert server.post("/v1/embeddings", input="a").status_code == 200


def test_too_many_inputs_answer_429(mini):
    with running(Engine(mini, options=ServingOptions(most_inputs_waiting=3))) as server:
        holds, goes = threading.Event(), threading.Event()
        server.engine._embedding.call(lambda: (holds.set(), goes.wait(30)))
        holds.wait(30)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.post, "/v1/embeddings", input=["a", "b", "c"])
            eventually(lambda: len(server.engine._embedding._waiting) == 3)
            refused = server.post("/v1/embeddings", input="d")
            goes.set()
            assert waiting.result().status_code == 200
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_a_second_signal_ends_it_at_once(mini, slow):
    with running(Engine(mini)) as server, ThreadPoolExecutor(1) as pool:
        begun = pool.submit(server.post, CHAT, max_tokens=3, **WHO)
        eventually(lambda: slow.calls == 1)
        server.server.handle_exit(signal.SIGTERM, None)
        server.server.handle_exit(signal.SIGTERM, None)
        server.thread.join(30)
        assert not server.thread.is_alive()
        assert begun.exception() is not None or begun.result().status_code != 200
    server.engine.stop()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("path", "body"), [(CHAT, WHO), ("/v1/answer", {"query": "Who?"})])
def test_who_leaves_ends_the_generation(served, slow, streamed, path, body):
    cancelled = served.figure("sugar_generations_cancelled_total")
    content = json.dumps({**body, "stream": streamed, "max_tokens": 200}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as wire:
        wire.sendall(head.encode() + content)
        eventually(lambda: slow.calls == 1)
        if streamed:
            assert b"200 OK" in wire.recv(1000)
        assert slow.ended == 0
    eventually(lambda: slow.ended == 1)
    eventually(lambda: served.figure("sugar_generations_cancelled_total") == cancelled + 1)
    eventually(lambda: served.figure("sugar_requests_in_progress") == 0)


def test_inputs_of_who_leaves_are_not_embedded(mini):
    with running(Engine(mini)) as server, ThreadPoolExecutor(1) as pool:
        holds, goes = threading.Event(), threading.Event()
        server.engine._embedding.call(lambda: (holds.set(), goes.wait(30)))
        holds.wait(30)
        address = f"{server.url}/v1/embeddings"
        leaves = pool.submit(httpx2.post, address, json={"input": ["a"] * 100}, timeout=1.0)
        eventually(lambda: server.figure("sugar_requests_in_progress") == 1)  # it has come before it leaves
        with pytest.raises(httpx2.ReadTimeout):
            leaves.result()
        eventually(lambda: server.figure("sugar_requests_in_progress") == 0)
        goes.set()
        assert server.post("/v1/embeddings", input="a").status_code == 200
        assert server.figure("sugar_batch_inputs_sum") == 1


def test_who_leaves_the_queue_is_not_served(served, slow):
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(served.post, CHAT, max_tokens=2, **WHO)
        eventually(lambda: slow.calls == 1)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{served.url}{CHAT}", json=WHO, timeout=0.3)
        eventually(lambda: served.figure("sugar_requests_in_progress") == 1)
        slow.more.release(100)
        assert first.result().status_code == 200
    eventually(lambda: served.figure('sugar_queue_length{queue="generation"}') == 0)
    assert served.post(CHAT, max_tokens=2, **WHO).status_code == 200
    assert slow.calls == 2


def test_a_server_that_ends_finishes_what_it_has_begun(mini, slow):
    with running(Engine(mini)) as server, ThreadPoolExecutor(2) as pool:
        begun = pool.submit(server.post, CHAT, max_tokens=3, **WHO)
        streamed = pool.submit(server.post, CHAT, max_tokens=3, stream=True, **WHO)
        eventually(lambda: slow.calls == 1 and server.figure("sugar_requests_in_progress") == 2)
        assert server.http.get("/ready").status_code == 200
        server.server.handle_exit(signal.SIGTERM, None)
        refused = server.post("/v1/embeddings", input="a")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert refused.headers["retry-after"]
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/health").status_code == 200
        slow.more.release(100)
        assert begun.result().json()["usage"]["completion_tokens"] == 3
        assert streamed.result().text.endswith("data: [DONE]\n\n")
        server.thread.join(30)
        assert not server.thread.is_alive()
    assert not server.engine.is_alive


def test_adapters_answer_only_where_they_are_wanted(mini, stories):
    """With the base for answers, embeddings are still the model's, in the same server at the same time."""
    model, processor = build_sugar("llava")
    adapted = get_peft_model(model, sugar_lora_config(model, r=2)).eval()
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    embedder = SugarEmbedder(adapted.get_base_model(), processor)
    pipe = SugarGenerationPipeline(model=adapted.get_base_model(), processor=processor)
    chats = [[{"role": "user", "content": f"Who is {name}?"}] for name in ("a", "bb", "ccc")]
    options = {"max_new_tokens": 8}
    on = [pipe(chat, **options)[0]["generated_text"] for chat in chats]
    with adapter_off(adapted):
        off = [pipe(chat, **options)[0]["generated_text"] for chat in chats]
        plain = embedder.encode(["a cat"], show_progress=False)
    vector = embedder.encode(["a cat"], show_progress=False)
    assert on != off
    assert np.abs(vector - plain).max() > 1e-3
    for way, expected in (("model", on), ("base", off)):
        with running(Engine(embedder, options=ServingOptions(generate_with=way))) as server:

            def ask(number, server=server, expected=expected):
                if number % 2:
                    [row] = server.post("/v1/embeddings", input="a cat").json()["data"]
                    np.testing.assert_allclose(row["embedding"], vector[0], atol=1e-6)
                else:
                    chat = chats[number // 2 % 3]
                    found = server.post(CHAT, messages=chat, max_tokens=8).json()
                    assert found["choices"][0]["message"]["content"] == expected[number // 2 % 3]

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(ask, range(12)))
    with pytest.raises(ValueError, match="has no adapters"):
        Engine(mini, options=ServingOptions(generate_with="base"))
