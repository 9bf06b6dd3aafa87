"""wikiHow-TIIR and MRMR, from official files and rows, against trec_eval."""

import json
import shutil

import pytest
from benchmark_tools import scene
from fixtures_retrieval import MRMR, tiir_rows, write_lines, write_mrmr, write_tiir
from matching_tools import Seeing, blind
from relevance_tools import trec_figures

from sugar_hf import SugarEmbedder, picturebook
from sugar_hf.data import BadSampleError
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks
from sugar_hf.evaluation.benchmarks.tasks.interleaved_retrieval import MRMR_INSTRUCTIONS, TIIR_INSTRUCTION, mrmr_parts


def load(name, folder, **more):
    return all_tasks()[name].load(Source(name, str(folder), **more))


def texts(document):
    return [part["text"] for message in document.content.messages for part in message["content"] if part["text"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tiir(folder / "wikihow-tiir")
    for subset in MRMR:
        write_mrmr(folder / f"mrmr-{subset}", subset)
    return folder


@pytest.fixture
def own_tiir(tmp_path, data):
    return shutil.copytree(data / "wikihow-tiir", tmp_path / "tiir")


@pytest.fixture(scope="module")
def sugar():
    return open_model(picturebook.checkpoint("mini-sugar"), device="cpu")


@pytest.mark.parametrize("name", ["wikihow-tiir", *(f"mrmr-{subset}" for subset in MRMR)])
def test_figures_are_those_of_trec_eval(data, sugar, name):
    evaluator = load(name, data / name)
    result = evaluator(*sugar)
    assert result["failed"] == []
    expected = trec_figures(evaluator, SugarEmbedder(*sugar))
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert evaluator.primary_metric == all_tasks()[name].primary_metric
    assert evaluator.primary_metric in expected


# ---- wikiHow-TIIR ----


def test_tiir_is_interleaved_on_both_sides(data):
    folder = data / "wikihow-tiir"
    evaluator = load("wikihow-tiir", folder)
    document = evaluator.task.corpus[2]
    assert document.sample == [scene(2)[1], folder / "doc_images" / "2.png", "then", scene(3)[1]]
    query = evaluator.task.queries[1]
    assert [message["role"] for message in query.content.messages] == ["system", "user"]
    assert texts(query) == [TIIR_INSTRUCTION, f"how: {scene(1)[1]}", scene(2)[1]]
    assert query.content.images == [folder / "query_images" / f"1_{k}.png" for k in (0, 1)]


def test_the_corpus_of_tiir_is_what_is_judged(data):
    result = load("wikihow-tiir", data / "wikihow-tiir")(Seeing(blind))
    assert (result["queries"], result["corpus"], result["documents outside the corpus"]) == (3, 6, 1)
    assert result["settings"]["instruction"] == TIIR_INSTRUCTION


@pytest.mark.parametrize(("given", "said"), [("none", []), ("Look for this.", ["Look for this."])])
def test_an_instruction_can_be_left_out_or_be_another(data, given, said):
    evaluator = load("wikihow-tiir", data / "wikihow-tiir", options={"instruction": given})
    assert texts(evaluator.task.queries[0]) == [*said, f"how: {scene(0)[1]}", scene(1)[1]]


@pytest.mark.parametrize("form", ["./data/doc_images/{}", "{}", "doc_images/{}"])
def test_paths_of_tiir_may_start_in_several_places(own_tiir, form):
    docs = tiir_rows()[1]
    for row in docs:
        row["data"][1] = form.format(row["data"][1].removeprefix("doc_images/"))
    write_lines(own_tiir / "docs.jsonl", docs)
    assert load("wikihow-tiir", own_tiir)(Seeing(blind))["failed"] == []


def test_images_of_tiir_can_lie_elsewhere(own_tiir, tmp_path):
    for name in ("doc_images", "query_images"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (own_tiir / name).rename(tmp_path / "photos" / name)
    result = load("wikihow-tiir", own_tiir)(Seeing(blind))
    assert len(result["failed"]) == 9  # three queries, six documents
    options = {"images": str(tmp_path / "photos")}
    assert load("wikihow-tiir", own_tiir, options=options)(Seeing(blind))["failed"] == []
    with pytest.raises(ValueError, match="wikihow-tiir: images='nowhere' is no folder"):
        load("wikihow-tiir", own_tiir, options={"images": "nowhere"})


def test_a_missing_picture_of_a_document_costs_its_query(own_tiir):
    whole = load("wikihow-tiir", own_tiir)(Seeing(blind))
    (own_tiir / "doc_images" / "1.png").unlink()
    result = load("wikihow-tiir", own_tiir)(Seeing(blind))
    assert [(each["set"], each["id"]) for each in result["failed"]] == [("corpus", "1")]
    assert result["recall@100"] == pytest.approx(whole["recall@100"] - 100 / 3)


def test_a_limit_takes_the_first_queries_and_all_documents(data):
    result = load("wikihow-tiir", data / "wikihow-tiir", limit=1)(Seeing(blind))
    assert (result["n"], result["corpus"]) == (1, 6)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("docs", lambda rows: rows[1].pop("data"), r"data.*missing"),
        ("docs", lambda rows: rows[1].update(data="text"), r"data.*a list of strings is expected"),
        ("docs", lambda rows: rows[1].update(id=0), r"docs\.jsonl, line 2.*'0' stands in a line before"),
        ("docs", lambda rows: rows[1].update(data=["../../secret.png"]), r"lies outside"),
        ("docs", lambda rows: rows.pop(5), r"qrels\.jsonl, line 6.*'5' is not in docs\.jsonl.*one version"),
        ("queries", lambda rows: rows.pop(1), r"'1' is judged, but is none of the 2 queries.*one version"),
        ("queries", lambda rows: rows[1].update(qid=None), r"queries\.jsonl, line 2.*qid.*missing"),
        ("qrels", lambda rows: rows[1].pop("did"), r"qrels\.jsonl, line 2.*did.*missing"),
        ("qrels", lambda rows: [row.update(qid=None) for row in rows], r"none of the 3 queries is judged"),
    ],
)
def test_faults_of_tiir_are_named(own_tiir, file, change, message):
    rows = [json.loads(line) for line in (own_tiir / f"{file}.jsonl").read_text().splitlines()]
    change(rows)
    write_lines(own_tiir / f"{file}.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        load("wikihow-tiir", own_tiir)


def test_missing_files_of_tiir_say_what_to_get(own_tiir):
    (own_tiir / "queries.jsonl").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"wikihow-tiir: no queries\.jsonl in .*hf download vec-ai/wikiHow-TIIR"
    ):
        load("wikihow-tiir", own_tiir)


def test_queries_that_nobody_judged_are_counted_and_named(own_tiir):
    rows = tiir_rows()[2]
    rows[2]["qid"] = None
    write_lines(own_tiir / "qrels.jsonl", rows)
    result = load("wikihow-tiir", own_tiir)(Seeing(blind))
    assert (result["n"], result["unjudged queries"]) == (2, 1)
    assert result["settings"]["skipped"] == {"2": "nobody judged it"}


# ---- MRMR ----


def test_mrmr_puts_images_where_the_text_names_them(data):
    evaluator = load("mrmr-theorem", data / "mrmr-theorem")
    assert texts(evaluator.task.queries[3]) == [MRMR_INSTRUCTIONS["theorem"], " or "]
    assert [part["type"] for part in evaluator.task.queries[3].content.messages[1]["content"]] == [
        "image",
        "text",
        "image",
    ]
    kinds = [[part["type"] for part in each.content.messages[0]["content"]] for each in evaluator.task.corpus]
    assert kinds == [["text"]] * 3 + [["text", "image", "text", "image"]] * 2 + [["image"]]


@pytest.mark.parametrize(
    ("row", "parts", "left"),
    [
        ({"text": "a <image> b", "image": b"0"}, ["a ", b"0", " b"], 0),
        ({"text": "a <image 1>", "image": b"0"}, ["a ", b"0"], 0),  # the one image under its other name
        ({"text": "a", "image": b"0"}, [b"0", "a"], 0),
        ({"text": "a", "image": b"0", "image 1": b"1", "image 2": b"2"}, [b"1", b"2", "a"], 0),
        ({"text": "a <image 2>", "image 1": b"1", "image 2": b"2"}, [b"1", "a ", b"2"], 0),
        ({"text": "a <image 1> <image 3>", "image 1": b"1"}, ["a ", b"1", "<image 3>"], 1),
        ({"text": None, "image": b"0", "vision": b"9"}, [b"0"], 0),
        ({"text": "a", "image": None, "image 1": None}, ["a"], 0),
    ],
)
def test_parts_of_mrmr(row, parts, left):
    assert mrmr_parts(row) == (parts, left)


def test_placeholders_without_an_image_are_counted_and_named(tmp_path):
    def change(queries, corpus, qrels):
        corpus[0]["text"] += " <image 4>"
        qrels[0]["query-id"] = qrels[1]["query-id"] = queries[0]["id"] = corpus[0]["id"]
        queries[0]["text"] += " <image 3> <image 4>"

    write_mrmr(tmp_path, "traffic", change)
    result = load("mrmr-traffic", tmp_path)(Seeing(blind))
    assert result["placeholders without an image"] == 3
    assert result["settings"]["unfilled placeholders"] == {"corpus 0": 1, "query 0": 2}


def test_mrmr_counts_by_discipline(data):
    result = load("mrmr-knowledge", data / "mrmr-knowledge")(Seeing(blind))
    assert {key: value for key, value in result.items() if key.endswith("queries")} == {
        "Medicine queries": 1,
        "Physics queries": 3,
        "queries": 4,
        "unjudged queries": 0,
    }
    whole = (3 * result["Physics ndcg@10"] + result["Medicine ndcg@10"]) / 4
    assert whole == pytest.approx(result["ndcg@10"])


def test_an_instruction_of_a_row_is_the_querys(tmp_path):
    def change(queries, corpus, qrels):
        for n, row in enumerate(queries):
            row["instruction"] = f"Task {n}."

    write_mrmr(tmp_path, "design", change)
    asked = load("mrmr-design", tmp_path).task.queries
    assert [texts(query)[0] for query in asked] == ["Task 0.", "Task 1.", "Task 2."]


def test_negation_is_ranked_among_four(data, tmp_path):
    name = "mrmr-negation"
    evaluator = load(name, data / name)
    result = evaluator(Seeing(blind), output=tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()][1:]
    assert [[found for found, _ in line["candidates"]] for line in lines] == [
        [f"{n}_{k}" for k in (4, 3, 2, 1)] for n in range(3)
    ]
    assert result["recall@5"] == 100.0
    assert result["corpus"] == 12
    everything = load(name, data / name, options={"candidates": "all"})(Seeing(blind))
    assert everything["recall@5"] < 100.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, c, j: q.append(dict(q[0])), "two of the queries have the id 'test_0'.*one version"),
        (lambda q, c, j: c.append(dict(c[0])), "two of the corpus have the id '0'"),
        (lambda q, c, j: j[0].update({"corpus-id": "99"}), "names '99', which is not in the corpus.*one version"),
        (lambda q, c, j: j[0].update({"query-id": "other"}), "'other' is judged, but is none of the 3 queries"),
        (lambda q, c, j: j[1].update({"corpus-id": "0"}), "'0' has two grades for the query 'test_0'"),
        (lambda q, c, j: j[2].update(score=0), "query 'test_1' has no relevant document"),
        (lambda q, c, j: j[2].update(score=None), "judgement 2 of mrmr-traffic.*score.*missing"),
        (lambda q, c, j: [row.pop("id") for row in c], "row 0 of the corpus.*missing"),
        (lambda q, c, j: q[1].update(text=None, image=None), "test_1"),
    ],
)
def test_faults_of_rows_are_named(tmp_path, change, message):
    write_mrmr(tmp_path, "traffic", change)
    with pytest.raises(ValueError, match=message):
        load("mrmr-traffic", tmp_path)


def test_a_query_without_candidates_is_named(tmp_path):
    write_mrmr(tmp_path, "negation", lambda q, c, j: [row.update(id=f"x{row['id']}") for row in c[:4]])
    with pytest.raises(ValueError, match=r"mrmr-negation: the query '0' has no candidates of its own.*candidates=all"):
        load("mrmr-negation", tmp_path)


def test_a_configuration_that_is_missing_is_named(tmp_path, data):
    folder = shutil.copytree(data / "mrmr-traffic", tmp_path / "traffic")
    readme = folder / "README.md"
    readme.write_text(readme.read_text().replace("config_name: qrels", "config_name: other"))
    with pytest.raises(ValueError, match=r"has no configuration qrels or default, only .*other"):
        load("mrmr-traffic", folder)


def test_a_broken_sample_keeps_its_class(tmp_path):
    write_mrmr(tmp_path, "traffic", lambda q, c, j: q[1].update(text=None, image=None))
    with pytest.raises(BadSampleError, match="test_1"):
        load("mrmr-traffic", tmp_path)
