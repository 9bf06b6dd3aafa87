"""`sugar-hf ask` on an index of stories."""

import json

import pytest

from sugar_hf import SugarIndex, SugarRag, picturebook
from sugar_hf.retrieval import QUESTION_FIRST, SugarEmbedder

MODEL = picturebook.checkpoint("mini-sugar")
QUESTION = "what is in the garden?"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    embedder = SugarEmbedder.from_pretrained(MODEL, positions="all")
    folder = tmp_path_factory.mktemp("ask") / "stories.index"
    return SugarIndex.build(folder, picturebook.load("test", "story", 6), embedder, show_progress=False)


@pytest.fixture(scope="module")
def expected(index):
    rag = SugarRag.from_pretrained(MODEL, index, template=QUESTION_FIRST, top_k=2)
    return rag.answer(QUESTION, max_new_tokens=8)


def test_ask_gives_json(cli, index, expected):
    options = ["--top-k", "2", "--max-new-tokens", "8", "--template", "question-first"]
    found = cli("ask", index.folder, QUESTION, *options, "--json")
    assert found.code == 0, found.err
    values = json.loads(found.out)
    assert values["answer"] == expected.text
    assert values["reused_tokens"] == expected.reused_tokens > 0
    assert [entry["id"] for entry in values["documents"]] == [hit.id for hit in expected.hits]
    for_people = cli("ask", index.folder, QUESTION, *options)
    assert for_people.out == expected.text + "\n"
    assert [line.split()[2] for line in for_people.err.splitlines() if line[:3].strip().endswith(".")] == [
        hit.id for hit in expected.hits
    ]
    assert "slices in the prompt, matched up to slice" in for_people.err


def test_ask_a_file_with_images(cli, index, tmp_path):
    part = next(part for part in index.get("test-story-0-4").load() if not isinstance(part, str))
    part.save(tmp_path / "a.png")
    lines = [{"query": [{"image": "a.png"}, "what is it?"]}, {"query": "where is it?"}]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = cli(
        "ask", index.folder, "--query-file", tmp_path / "q.jsonl", "--max-new-tokens", "4", "--min-score", "1.1"
    )
    assert found.code == 0, found.err
    answers = [json.loads(line) for line in found.out.splitlines()]
    assert [answer["query"] for answer in answers] == [0, 1]
    assert all("below min_score=1.1" in answer["note"] for answer in answers)


def test_what_is_refused(cli, index, subtests):
    for options, code, message in [
        (["--template", "{question}"], 2, "a text with {documents} and {question}"),
        (["--where", "{"], 2, "it is no JSON"),
        (["--max-new-tokens", "0"], 2, "Invalid value for '--max-new-tokens'"),
        (["--mode", "words"], 2, "'words' is not one of"),
        (["--mode", "text", "--prompt", "Find it."], 2, "no query is embedded"),
        (["--prompt-name", "question"], 1, "prompt_name='question': mini-sugar has 'document', 'query'"),
        (["--mode", "text", "--min-score", "0.5"], 1, "min_score=0.5 is a bound on the cosine"),
        (["--template", "{documents} {documents} {question}"], 1, "template, text"),
    ]:
        with subtests.test(code=code, message=message):
            found = cli("ask", index.folder, QUESTION, *options)
            assert (found.code, found.out) == (code, "")
            assert message in " ".join(found.err.replace("│", " ").split())


def test_words_and_instructions_find_as_a_search_does(cli, index):
    ways = [["--mode", "text"], ["--mode", "hybrid"], ["--prompt", "Find a garden."], ["--prompt-name", "query"]]
    for way in ways:
        options = ["--top-k", 3, "--json", *way]
        found = cli("ask", index.folder, QUESTION, *options, "--max-new-tokens", 2)
        assert found.code == 0, found.err
        hits = cli("search", index.folder, QUESTION, *options)
        assert hits.code == 0, hits.err
        searched = [hit["id"] for hit in json.loads(hits.out)]
        assert [hit["id"] for hit in json.loads(found.out)["documents"]] == searched
    expected = index.search(QUESTION, 1, prompt="Find a garden.")[0]
    hits = cli("search", index.folder, QUESTION, "--top-k", 1, "--json", "--prompt", "Find a garden.")
    assert json.loads(hits.out)[0]["score"] == pytest.approx(expected.score, abs=1e-5)
    for command in ("ask", "search"):
        refused = cli(command, index.folder, QUESTION, "--prompt", "Find it.", "--prompt-name", "query")
        assert refused.code == 1
        assert "give prompt or prompt_name, not both" in refused.err


def test_the_model_judges_what_was_found(cli, index):
    found = cli("ask", index.folder, QUESTION, "--top-k", 2, "--rerank", 4, "--template", "citing", "--json")
    assert found.code == 0, found.err
    answer = json.loads(found.out)
    scores = [document["score"] for document in answer["documents"]]
    assert len(scores) == 2
    assert scores == sorted(scores, reverse=True)
    assert 0 <= scores[0] <= 1
    refused = cli("ask", index.folder, QUESTION, "--top-k", 5, "--rerank", 4)
    assert refused.code == 1
    assert "rerank=4 is less than top_k=5" in refused.err
    hits = cli("search", index.folder, QUESTION, "--top-k", 2, "--rerank", 4, "--json")
    assert hits.code == 0, hits.err
    assert [hit["id"] for hit in json.loads(hits.out)] == [document["id"] for document in answer["documents"]]
