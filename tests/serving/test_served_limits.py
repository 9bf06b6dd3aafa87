"""What a server refuses, and what it never does."""

import base64
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from PIL import Image
from serving_tools import address, image_part, png, running

from sugar_hf.retrieval import SugarIndex
from sugar_hf.serving import Engine, Limits, ServingOptions, contents

JSON = {"content-type": "application/json"}
EMBED = "/v1/embeddings"


@pytest.fixture(scope="module")
def narrow(mini, stories):
    limits = Limits(body_bytes=20_000, pixels=30_000, samples=4, slices=5, input_tokens=40, new_tokens=6)
    with running(Engine(mini, options=ServingOptions(limits=limits))) as server:
        yield server


@pytest.fixture(scope="module")
def still(mini, stories, tmp_path_factory):
    """A server of an index that no other has, which does not look by itself whether it has changed."""
    folder = shutil.copytree(stories, tmp_path_factory.mktemp("still") / "still.index")
    with running(Engine(mini, SugarIndex.load(folder), options=ServingOptions(refresh_seconds=3600.0))) as server:
        yield server


def fault(answer):
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in answer.text
    return answer.status_code, error["param"], error["code"]


def test_bodies_that_are_too_large(narrow):
    text = json.dumps({"input": "a" * 30_000}).encode()
    assert fault(narrow.http.post(EMBED, content=text, headers=JSON)) == (413, None, "body_too_large")

    def pieces():
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    assert fault(narrow.http.post(EMBED, content=pieces(), headers=JSON)) == (413, None, "body_too_large")


def test_more_than_the_limits_names_the_field(narrow, subtests):
    square = address(Image.new("RGB", (120, 120)))
    for path, body, param, code in (
        (EMBED, {"input": ["a"] * 5}, "input", "too_many_inputs"),
        (EMBED, {"input": ["a", ["b"] * 6]}, "input[1]", "too_many_slices"),
        (
            EMBED,
            {"input": [{"image": square}, {"image": square}, {"image": square}]},
            "input[2].image",
            "too_many_pixels",
        ),
        (EMBED, {"input": ["a", "b " * 60]}, "input[1]", None),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 5}, "documents", "too_many_inputs"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "b " * 60}]}, "messages", None),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "b"}], "max_tokens": 7},
            "max_tokens",
            "too_many_tokens",
        ),
    ):
        with subtests.test(param=param, code=code):
            assert fault(narrow.post(path, **body)) == (400, param, code)


def test_a_small_file_of_many_pixels_is_not_decoded(served):
    buffer = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(buffer, "PNG")  # over Pillow's limit, too
    assert len(buffer.getvalue()) < 100_000
    bomb = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert fault(served.post(EMBED, input={"image": bomb})) == (400, "input.image", "too_many_pixels")
    with pytest.raises(ValueError, match="pixels=0: give 1 or more"):
        Limits(pixels=0)


def test_what_is_no_request(served, subtests):
    deep = b'{"input":' + b"[" * 100_000
    for content, headers, status in (
        (b"{", JSON, 400),
        (b"", JSON, 400),
        (b"[]", JSON, 400),
        (b'"a"', JSON, 400),
        (b"null", JSON, 400),
        (b'{"input": "a"}', {"content-type": "text/plain"}, 415),
        (b'{"input": "a"}', {}, 415),
        (b"\xff\xfe", JSON, 400),
        (b'{"input": "\xff"}', JSON, 400),
        (rb'{"input": "\ud800"}', JSON, 400),
        (rb'{"input": ["a", {"\ud800": "a"}]}', JSON, 400),
        (b'{"input": NaN}', JSON, 400),
        (deep, JSON, 400),
        (deep + b"]" * 100_000 + b"}", JSON, 400),
        (b'{"input": {"a": {"a": {"a": 1}}}}', JSON, 400),
    ):
        with subtests.test(content=content[:40]):
            assert fault(served.http.post(EMBED, content=content, headers=headers))[0] == status
    number = b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}'
    assert fault(served.http.post("/v1/chat/completions", content=number, headers=JSON))[1] == "temperature"
    for where in (
        b'{"a": NaN}',
        b'{"a": 1e999}',
        rb'{"\ud800": 1}',
        rb'{"a": "\ud800"}',
        b'{"a":' * 40 + b"1" + b"}" * 40,
    ):
        with subtests.test(where=where[:40]):
            content = b'{"query": "a", "where": ' + where + b"}"
            found = served.http.post("/v1/search", content=content, headers=JSON)
            assert found.status_code in (200, 400), found.text  # a filter may name a field that no document has
    assert fault(served.http.get("/v1/nothing"))[0] == 404
    assert fault(served.http.get(EMBED))[0] == 405
    assert fault(served.http.post("/v1/search", json={"query": "a", "where": {"a": {"$gt": None}}}))[1] == "where"


class Witness:
    """Notes what files this process opens and whom it connects to; an audit hook cannot be taken off again.

    Files of the folder of other servers, which look there by themselves in between, are left out.
    """

    def __init__(self, others):
        self.found, self.others = None, str(others)
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        is_heard = self.found is not None and event in ("open", "socket.connect", "socket.getaddrinfo")
        if is_heard and not str(arguments[0]).startswith(self.others):
            self.found.append((event, arguments[:2]))


@pytest.fixture(scope="module")
def witness(stories):
    return Witness(stories)


def test_no_file_and_no_address_of_a_request_is_opened(still, witness, pictures, subtests):
    secret = Path(tempfile.mkdtemp()) / "secret.png"
    pictures[0].save(secret)
    sources = [
        str(secret),
        secret.as_uri(),
        "secret.png",
        "http://127.0.0.1:9/a.png",
        "https://example.org/a.png",
        "ftp://example.org/a.png",
        "//example.org/a.png",
        "\\\\host\\a.png",
        f"data:image/png;base64,{secret}",
        "/dev/zero",
    ]
    chat = "/v1/chat/completions"

    def bodies(source):
        part = {"type": "image_url", "image_url": {"url": source}}
        yield EMBED, {"input": {"image": source}}
        yield EMBED, {"input": [["a", part]]}
        yield EMBED, {"messages": [{"role": "user", "content": [part]}]}
        yield chat, {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "a"}]}]}
        for name in ("path", "url", "image", "base64"):
            yield chat, {"messages": [{"role": "user", "content": [{"type": "image", name: source}]}]}
        yield "/v1/search", {"query": [part]}
        yield "/v1/answer", {"query": {"image": source}}
        yield "/v1/rerank", {"query": "a", "documents": [{"image": source}]}

    for path, body in bodies(address(pictures[0])):  # what is imported at first is imported now
        still.post(path, **body)
    for path, body in bodies("x"):
        still.post(path, **body)
    for source in sources:
        for path, body in bodies(source):
            with subtests.test(source=source, path=path):
                witness.found = []
                answer = still.post(path, **body)
                found, witness.found = witness.found, None
                assert fault(answer)[0] == 400
                assert found == []
    text = still.post(EMBED, input=str(secret))  # a text that looks like a path is a text
    assert text.status_code == 200


def test_addresses_are_fetched_where_that_is_allowed(mini, monkeypatch, pictures):
    monkeypatch.delenv("SUGAR_HF_URLS", raising=False)
    with running(Engine(mini, options=ServingOptions(limits=Limits(allow_urls=True)))) as server:
        for name in ("127.0.0.1:9", "localhost:9", "[::1]:9", "10.0.0.1", "169.254.169.254"):
            found = server.post(EMBED, input={"image": f"http://{name}/a.png"})
            assert fault(found)[:2] == (400, "input.image")
            assert "no address of the public internet" in found.json()["error"]["message"]
        file = server.post(EMBED, input={"image": "file:///etc/passwd"})
        assert fault(file)[0] == 400
        monkeypatch.setattr(contents, "fetch_image", lambda url, default: png(pictures[0]))
        found = server.post(EMBED, input={"image": "https://example.org/a.png"}).json()["data"][0]["embedding"]
    assert found == pytest.approx(mini.encode([pictures[0]], show_progress=False)[0].tolist(), abs=1e-6)
    assert "SUGAR_HF_URLS" not in os.environ  # which is not the server's to change


def test_the_key(mini, stories):
    with running(Engine(mini), api_key="sesame") as server:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "sesame"},
            {"Authorization": "Bearer"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/images", "/nowhere"):
                found = server.http.get(path, headers=headers)
                assert fault(found) == (401, None, "invalid_api_key")
                assert found.headers["www-authenticate"] == "Bearer"
            assert server.http.post(EMBED, json={"input": "a"}, headers=headers).status_code == 401
        for path in ("/", "/docs", "/health", "/ready"):
            assert server.http.get(path).status_code == 200
        assert [model.id for model in server.openai("sesame").models.list()] == ["mini-sugar"]


def test_the_names_of_a_machine(mini):
    with running(Engine(mini), hosts=("127.0.0.1", "localhost", "::1")) as server:
        for name in ("localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST"):
            assert server.http.get("/v1/models", headers={"Host": name}).status_code == 200
        for name in ("evil.example", "127.0.0.1.evil.example", ""):
            assert fault(server.http.get("/v1/models", headers={"Host": name}))[0] == 421


def test_pages_of_elsewhere_are_not_let_in(served):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for found in (
        served.http.options(EMBED, headers=asked),
        served.http.post(EMBED, json={"input": "a"}, headers={"Origin": "https://evil.example"}),
    ):
        assert not [name for name in found.headers if name.startswith("access-control")]
    page = served.http.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_figures(served, pictures):
    served.post(EMBED, input=["a", {"image": address(pictures[0])}])
    served.post("/v1/chat/completions", messages=[{"role": "user", "content": [image_part(pictures[0])]}])
    served.http.request("PROPFIND", "/made/up")
    text = served.http.get("/metrics").text
    for line in (
        'sugar_requests_total{method="POST",route="/v1/embeddings",status="200"}',
        'sugar_requests_total{method="other",route="other",status="404"}',
        'sugar_request_seconds_bucket{le="0.1",route="/v1/embeddings"}',
        'sugar_queue_length{queue="embedding"}',
        'sugar_queue_length{queue="generation"}',
        "sugar_batch_inputs_sum",
        'sugar_tokens_total{kind="embedded"}',
        'sugar_tokens_total{kind="generated"}',
        'sugar_tokens_total{kind="prompt"}',
    ):
        assert line in text
