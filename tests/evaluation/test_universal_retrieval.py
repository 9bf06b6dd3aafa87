"""M-BEIR, from its own files and from rows, against trec_eval."""

import json
import shutil

import pytest
from benchmark_tools import scene
from fixtures_retrieval import INSTRUCTIONS, write_lines, write_mbeir, write_mbeir_hub
from matching_tools import Seeing, blind
from relevance_tools import trec_figures

from sugar_hf import SugarEmbedder, picturebook
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks

QUERIES, POOL = "query/test/mbeir_oven_task8_test.jsonl", "cand_pool/local/mbeir_oven_task8_cand_pool.jsonl"


def load(folder, **options):
    return all_tasks()["mbeir"].load(Source("mbeir", str(folder), options=options))


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mbeir")
    write_mbeir(folder)
    return folder


@pytest.fixture
def own_mbeir(tmp_path, mbeir):
    return shutil.copytree(mbeir, tmp_path / "mbeir")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_mbeir_hub(folder / "mbeir_oven_task8")
    return folder


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("mbeir", {}),
        ("mbeir", {"pool": "global"}),
        ("mbeir", {"dataset": "mscoco_task0"}),
        ("rows", {"instruction": "none"}),
    ],
)
def test_figures_are_those_of_trec_eval(request, form, options):
    evaluator = load(request.getfixturevalue(form), **options)
    model, processor = open_model(picturebook.checkpoint("mini-sugar"), device="cpu")
    result = evaluator(model, processor)
    assert result["failed"] == []
    expected = trec_figures(evaluator, SugarEmbedder(model, processor))
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert evaluator.primary_metric == all_tasks()["mbeir"].primary_metric == "hit@5"


def test_an_image_stands_before_its_text_and_the_instruction_before_both(mbeir):
    evaluator = load(mbeir)
    query = evaluator.task.queries[0].content
    [system, user] = query.messages
    assert system["content"][0]["text"] in INSTRUCTIONS[1][4:6]
    assert [part["type"] for part in user["content"]] == ["image", "text"]
    assert query.images == [mbeir / "mbeir_images/oven_images/0.jpg"]
    kinds = [[part["type"] for part in each.content.messages[0]["content"]] for each in evaluator.task.corpus]
    assert kinds == [["image", "text"]] * 5 + [["text"]]


def test_instructions_are_drawn_by_the_seed(mbeir):
    def told(seed):
        source = Source("mbeir", str(mbeir), seed=seed, options={"dataset": "mscoco_task0"})
        queries = all_tasks()["mbeir"].load(source).task.queries
        return tuple(query.content.messages[0]["content"][0]["text"] for query in queries)

    assert told(0) == told(0)
    assert len({told(seed) for seed in range(8)}) > 1
    assert {text for seed in range(8) for text in told(seed)} <= set(INSTRUCTIONS[3][4:])


@pytest.mark.parametrize(("pool", "candidates", "outside", "relevant"), [("local", 6, 1, 1), ("global", 9, 0, 2)])
def test_positives_of_other_data_sets_count_where_they_are(mbeir, pool, candidates, outside, relevant):
    evaluator = load(mbeir, pool=pool)
    result = evaluator(Seeing(blind))
    assert (result["corpus"], result["positives outside the pool"]) == (candidates, outside)
    assert len(evaluator.task.relevance["5:0"]) == relevant
    assert result["settings"]["pool"] == pool


def test_the_recall_of_mbeir_is_a_hit(mbeir):
    result = load(mbeir)(Seeing(blind))
    # equal scores rank by id from the last: 5, 4, 3, 2, 1, 0
    assert (result["hit@5"], result["recall@5"]) == (pytest.approx(200 / 3), pytest.approx(200 / 3))
    assert (result["hit@1"], result["mrr"]) == (0.0, pytest.approx(100 * (1 / 6 + 1 / 2 + 1 / 4) / 3))


def test_fashion_is_looked_at_among_the_first_ten(own_mbeir):
    for folder, end in (("query/test", "_test"), ("cand_pool/local", "_cand_pool")):
        (own_mbeir / folder / f"mbeir_oven_task8{end}.jsonl").rename(
            own_mbeir / folder / f"mbeir_fashioniq_task7{end}.jsonl"
        )
    assert load(own_mbeir, dataset="fashioniq_task7").primary_metric == "hit@10"


def test_rows_need_a_word_on_instructions(rows):
    with pytest.raises(ValueError, match=r"the rows have no instructions.*instruction=none, or a clone of TIGER-Lab"):
        load(rows)
    with pytest.raises(ValueError, match="the rows have the local pool"):
        load(rows, instruction="none", pool="global")
    query = load(rows, instruction="Find it.").task.queries[0].content
    assert [message["role"] for message in query.messages] == ["system", "user"]


def test_a_missing_picture_is_counted_where_it_is_needed(own_mbeir):
    (own_mbeir / "mbeir_images/oven_images/1.jpg").unlink()
    result = load(own_mbeir)(Seeing(blind))
    assert [(each["set"], each["id"]) for each in result["failed"]] == [("queries", "5:1"), ("corpus", "5:1")]
    assert result["n"] == 3


def change(folder, file, edit):
    path = folder / file
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    edit(lines)
    write_lines(path, lines)


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (QUERIES, lambda q: q[1].pop("pos_cand_list"), "query 5:1 of .*pos_cand_list.*missing"),
        (QUERIES, lambda q: q[1].update(pos_cand_list=["6:7"]), "5:1.*none is of the query's data set.*one version"),
        (QUERIES, lambda q: q[1].update(pos_cand_list=["5:99"]), "5:1.*'5:99' is not in the local pool.*one version"),
        (QUERIES, lambda q: q[1].update(qid="5:0"), "line 2.*'5:0' stands in a line before"),
        (QUERIES, lambda q: q[1].update(query_img_path=None), "5:1.*query_img_path.*missing"),
        (QUERIES, lambda q: q[1].update(query_modality="audio"), "5:1.*query_instructions.tsv has none.*instruction="),
        (QUERIES, lambda q: q[1].update(query_img_path="../../secret.jpg"), "5:1.*lies outside"),
        (POOL, lambda c: c[2].update(did="5:1"), "line 3.*'5:1' stands in a line before"),
        (POOL, lambda c: c[5].pop("txt"), "5:5.*txt.*missing"),
        (POOL, lambda c: c[5].update(modality="video"), "5:5.*unknown modality 'video'.*image,text"),
    ],
)
def test_faults_of_mbeir_are_named(own_mbeir, file, edit, message):
    change(own_mbeir, file, edit)
    with pytest.raises(ValueError, match=message):
        load(own_mbeir)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        (QUERIES, {}),
        (POOL, {}),
        ("cand_pool/global/mbeir_union_test_cand_pool.jsonl", {"pool": "global"}),
        ("instructions/query_instructions.tsv", {}),
    ],
)
def test_missing_files_of_mbeir_are_named(own_mbeir, file, options):
    (own_mbeir / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"mbeir: no {file} .*hf download TIGER-Lab/M-BEIR"):
        load(own_mbeir, **options)


def test_a_table_of_instructions_with_spaces_is_refused(own_mbeir):
    table = own_mbeir / "instructions/query_instructions.tsv"
    table.write_text(table.read_text().replace("\t", " "))
    with pytest.raises(ValueError, match=r"query_instructions\.tsv, line 2: expected five columns"):
        load(own_mbeir)
    query = load(own_mbeir, instruction="none").task.queries[0]
    assert [part for part in query.sample if isinstance(part, str)] == [f"What is this, {scene(0)[1]}?"]
