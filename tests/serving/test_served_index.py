"""What a server does with an index: search, answer, explain, show, and follow it on disk."""

import io
import json
import shutil

import pytest
from PIL import Image
from serving_tools import image_part, running

from sugar_hf import SugarIndex, SugarRag
from sugar_hf.retrieval import QUESTION_FIRST, SugarRagPipeline, SugarReranker
from sugar_hf.serving import Engine, ServingOptions
from sugar_hf.serving.server import THUMBNAIL

QUERY = "on a grey background there is a large broom in the top left corner."


@pytest.fixture(scope="module")
def index(mini, stories):
    return SugarIndex.load(stories, mini)


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_search_finds_what_the_index_finds(served, index, pictures):
    part = {"type": "text", "text": "a dog"}
    for given, sample in (
        (QUERY, QUERY),
        ([image_part(pictures[0]), part], {"query": [pictures[0], "a dog"]}),
        ({"image": image_part(pictures[1])["image_url"]["url"]}, pictures[1]),
    ):
        found = served.post("/v1/search", query=given, top_k=4).json()["data"]
        expected = index.search(sample, 4)
        assert [hit["id"] for hit in found] == [hit.id for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        assert [hit["metadata"] for hit in found] == [hit.metadata for hit in expected]
        assert [part.get("text") for part in found[0]["parts"] if part["type"] == "text"] == [
            part["text"]
            for message in expected[0].document.content.messages
            for part in message["content"]
            if part["text"]
        ]
    chat = [{"role": "user", "content": QUERY}]
    found = served.post("/v1/search", messages=chat).json()["data"]
    assert [hit["id"] for hit in found] == [hit.id for hit in index.search(chat)]


def test_modes_are_those_of_the_index(served, index, pictures):
    for mode in ("text", "hybrid"):
        found = served.post("/v1/search", query="a large broom", top_k=4, mode=mode).json()["data"]
        expected = index.search("a large broom", 4, mode=mode)
        assert [hit["id"] for hit in found] == [hit.id for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        answered = served.post("/v1/answer", query="a large broom", top_k=4, mode=mode, max_tokens=2).json()
        assert [hit["id"] for hit in answered["documents"]] == [hit.id for hit in expected]
    for route in ("/v1/search", "/v1/answer"):
        wordless = served.post(route, query=[image_part(pictures[0])], mode="text")
        assert (wordless.status_code, wordless.json()["error"]["param"]) == (400, "query")
        assert "query has no words" in wordless.json()["error"]["message"]
    scored = served.post("/v1/answer", query="a large broom", mode="text", min_score=0.1)
    assert (scored.status_code, scored.json()["error"]["param"]) == (400, "mode")


def test_an_instruction_is_embedded_with_the_query(served, index):
    prompt = "Find a story about a broom."
    for mode in ("vector", "hybrid"):
        expected = index.search(QUERY, 4, mode=mode, prompt=prompt)
        found = served.post("/v1/search", query=QUERY, top_k=4, mode=mode, prompt=prompt).json()["data"]
        assert [hit["id"] for hit in found] == [hit.id for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
        answered = served.post("/v1/answer", query=QUERY, top_k=4, mode=mode, prompt=prompt, max_tokens=2).json()
        assert [hit["id"] for hit in answered["documents"]] == [hit.id for hit in expected]
    plain = index.search(QUERY, 4)
    assert found != [hit.id for hit in plain]


def test_the_model_judges_what_was_found(served, index, mini, subtests):
    reranker = SugarReranker(mini.model, mini.processor)
    expected = index.search(QUERY, 3, reranker=reranker, rerank=8)
    found = served.post("/v1/search", query=QUERY, top_k=3, rerank=8).json()["data"]
    assert [hit["id"] for hit in found] == [hit.id for hit in expected]
    assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    for wrong in ({"rerank": 2}, {"rerank": 0}, {"rerank": 10**6}):
        with subtests.test(**wrong):
            refused = served.post("/v1/search", query=QUERY, top_k=3, **wrong)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "rerank")


def test_answers_from_what_was_judged(mini, stories):
    engine = Engine(mini, SugarIndex.load(stories), ServingOptions(rerank=8, top_k=2))
    with running(engine) as server:
        found = server.post("/v1/answer", query=QUERY, max_tokens=4).json()["documents"]
        wider = server.post("/v1/answer", query=QUERY, max_tokens=4, top_k=9).json()["documents"]
    reranker = SugarReranker(mini.model, mini.processor)
    expected = SugarRag(mini.model, mini.processor, SugarIndex.load(stories), top_k=2, reranker=reranker, rerank=8)
    assert [hit["id"] for hit in found] == [hit.id for hit in expected.find(QUERY)]
    assert len(wider) == 9


def test_filters(served, subtests):
    assert served.post("/v1/search", query=QUERY, where={"kind": "nothing"}).json()["data"] == []
    assert len(served.post("/v1/search", query=QUERY, where={"kind": "story"}, top_k=3).json()["data"]) == 3
    for where in ({"kind": {"$near": 1}}, {"$or": 1}, {"a": {"b": {"c": 1}}}):
        with subtests.test(where=where):
            for route in ("/v1/search", "/v1/answer"):
                found = served.post(route, query=QUERY, where=where)
                assert (found.status_code, found.json()["error"]["param"]) == (400, "where")


def test_answers_are_those_of_the_pipeline(mini, served, index, pictures):
    rag = SugarRagPipeline(model=mini.model, processor=mini.processor, index=index)
    for given, sample in (
        ("what comes?", "what comes?"),
        ([image_part(pictures[0]), {"type": "text", "text": "what comes?"}], {"query": [pictures[0], "what comes?"]}),
    ):
        for search in ({}, {"top_k": 2}, {"min_score": 0.999}, {"where": {"kind": "nothing"}}):
            expected = rag(sample, **search)
            found = served.post("/v1/answer", query=given, **search).json()
            assert found["answer"] == expected["answer"]
            assert found["note"] == expected["note"]
            assert found["usage"]["prompt_tokens"] == expected["prompt_tokens"]
            for ours, theirs in zip(found["documents"], expected["documents"], strict=True):
                assert (ours["id"], ours["used"], ours["slice"]) == (theirs["id"], theirs["used"], theirs["slice"])
                assert ours["score"] == pytest.approx(theirs["score"], abs=1e-6)
    chat = [{"role": "user", "content": "what comes?"}]
    assert served.post("/v1/answer", messages=chat).json()["answer"] == rag(chat)["answer"]


def test_the_documents_of_a_streamed_answer_come_first(served):
    body = {"query": "what comes?", "top_k": 2, "max_tokens": 20}
    whole = served.post("/v1/answer", **body).json()
    first, *pieces, last = events(served.post("/v1/answer", stream=True, **body))
    assert (first["documents"], first["note"]) == (whole["documents"], whole["note"])
    assert "".join(piece["delta"] for piece in pieces) == whole["answer"]
    assert (last["finish_reason"], last["usage"]) == (whole["finish_reason"], whole["usage"])


def test_what_is_drawn_of_an_answer_depends_on_the_seed(served):
    def draw(seed):
        body = {"query": "what comes?", "top_k": 2, "temperature": 2.0, "top_p": 0.95, "max_tokens": 16, "seed": seed}
        found = served.post("/v1/answer", **body).json()
        assert len(found["documents"]) == 2
        return found["answer"]

    assert draw(7) == draw(7)
    assert len({draw(seed) for seed in range(4)}) > 1


def test_the_question_may_come_first(mini, stories, index):
    options = ServingOptions(template=QUESTION_FIRST, top_k=3)
    rag = SugarRag(mini.model, mini.processor, index, template=QUESTION_FIRST, top_k=3)
    with running(Engine(mini, SugarIndex.load(stories), options)) as server:
        found = server.post("/v1/answer", query="what comes?").json()
    expected = rag.answer("what comes?")
    assert (found["answer"], [hit["id"] for hit in found["documents"]]) == (
        expected.text,
        [h.id for h in expected.hits],
    )


def test_faults_of_questions_name_the_field(served, subtests):
    for route in ("/v1/search", "/v1/answer"):
        for body, param in (
            ({}, "query"),
            ({"query": "a", "messages": [{"role": "user", "content": "a"}]}, "query"),
            ({"query": "a", "top_k": 0}, "top_k"),
            ({"query": "a", "top_k": 101}, "top_k"),
            ({"query": " "}, "query"),
            ({"query": "so many words " * 2000}, "query"),
            ({"query": "a", "where": [1]}, "where"),
        ):
            with subtests.test(route=route, param=param):
                found = served.post(route, **body)
                assert (found.status_code, found.json()["error"]["param"]) == (400, param), found.text


def test_explain(served, index):
    hit = index.search(QUERY, 1)[0]
    found = served.post("/v1/explain", query=QUERY, id=hit.id, slice=hit.slice).json()
    expected = index.explain(QUERY, hit).to_dict()
    assert found["model"]["path"] == expected["model"]["path"]
    assert found["document"] == expected["document"]
    assert found["score"] == pytest.approx(hit.score, abs=1e-5)
    assert served.post("/v1/explain", query=QUERY, id="none").status_code == 404
    long = served.post("/v1/explain", query="so many words " * 2000, id=hit.id)
    assert (long.status_code, long.json()["error"]["param"]) == (400, "query")


def test_pictures_are_those_of_the_documents_alone(served, index, rows, subtests):
    found = served.http.get("/v1/images", params={"id": rows[0]["id"], "number": 1})
    assert found.headers["content-type"] == "image/jpeg"
    shown = Image.open(io.BytesIO(found.content))
    assert max(shown.size) <= THUMBNAIL
    own = index.get(rows[0]["id"]).load()[2]
    assert shown.size == own.size
    for name, number in (("../../etc/passwd", 0), ("/etc/passwd", 0), (rows[0]["id"], 99), (rows[0]["id"], -1)):
        with subtests.test(name=name, number=number):
            assert served.http.get("/v1/images", params={"id": name, "number": number}).status_code == 404
    assert served.http.get("/v1/images", params={"id": rows[0]["id"], "number": "x"}).status_code == 400
    assert served.http.get("/v1/images").status_code == 400


def test_the_index_is_followed_and_not_written(mini, stories, tmp_path):
    folder = tmp_path / "changing.index"
    shutil.copytree(stories, folder)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    engine = Engine(mini, SugarIndex.load(folder), ServingOptions(refresh_seconds=3600))
    with running(engine) as server:
        assert server.post("/v1/search", query="a green whale", top_k=1).json()["data"][0]["id"] != "new"
        server.post("/v1/answer", query="a green whale")
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
        SugarIndex.load(folder, mini).add([{"id": "new", "text": "a green whale"}], show_progress=False)
        engine.index.follow()
        assert server.post("/v1/search", query="a green whale", top_k=1).json()["data"][0]["id"] == "new"
        assert server.figure('sugar_index_refreshes_total{outcome="changed"}') == 1
        current = (folder / "CURRENT").read_text()
        (folder / "CURRENT").write_text("broken")
        engine.index.follow()  # what was read is still searched
        assert server.post("/v1/search", query="a green whale", top_k=1).json()["data"][0]["id"] == "new"
        assert server.figure('sugar_index_refreshes_total{outcome="failed"}') == 1
        (folder / "CURRENT").write_text(current)


def test_an_index_that_another_model_has_replaced_is_not_searched(mini, stories, tmp_path):
    folder = tmp_path / "replaced.index"
    shutil.copytree(stories, folder)
    engine = Engine(mini, SugarIndex.load(folder), ServingOptions(refresh_seconds=3600))
    with running(engine) as server:
        other = type(mini)(mini.model, mini.processor, split_sentences=True)
        SugarIndex.build(folder, ["a cat."], other, overwrite=True, show_progress=False)
        engine.index.follow()
        for route in ("/v1/search", "/v1/answer"):
            found = server.post(route, query=QUERY)
            assert (found.status_code, found.json()["error"]["code"]) == (503, "index_changed")
        assert server.http.get("/ready").status_code == 503
        assert server.post("/v1/embeddings", input="a cat").status_code == 200
        SugarIndex.build(folder, ["a cat."], mini, overwrite=True, show_progress=False)
        engine.index.follow()
        assert server.post("/v1/search", query="a cat.").status_code == 200
        assert server.http.get("/ready").status_code == 200


def test_without_an_index(mini):
    with running(Engine(mini)) as server:
        for route in ("/v1/search", "/v1/answer"):
            found = server.post(route, query=QUERY)
            assert (found.status_code, found.json()["error"]["code"]) == (404, "no_index")
        assert server.http.get("/").status_code == 200
        assert server.http.get("/ready").json() == {"status": "ready"}
