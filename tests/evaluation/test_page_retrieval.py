"""ViDoRe in its three forms, against trec_eval."""

import pytest
from benchmark_tools import scene
from fixtures_retrieval import write_vidore, write_vidore_beir, write_vidore_languages
from matching_tools import Seeing, blind, knowing
from relevance_tools import trec_figures

from sugar_hf import SugarEmbedder, picturebook
from sugar_hf.evaluation.benchmarks.runner import open_model
from sugar_hf.evaluation.benchmarks.sources import Source
from sugar_hf.evaluation.benchmarks.tasks import all_tasks


def load(name, folder, **options):
    return all_tasks()[name].load(Source(name, str(folder), options=options))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_vidore(folder / "pairs")
    write_vidore_beir(folder / "beir" / "docvqa_test_subsampled_beir")
    write_vidore_beir(folder / "v2", languages=("english", "french"))
    write_vidore_languages(folder / "v3")
    return folder


CASES = [
    ("vidore-v1", "pairs", {}),
    ("vidore-v1", "beir", {"subset": "docvqa_test_subsampled_beir"}),
    ("vidore-v2", "v2", {}),
    ("vidore-v2", "v2", {"language": "french"}),
    ("vidore-v3", "v3", {}),
]


@pytest.mark.parametrize(("name", "folder", "options"), CASES)
def test_figures_are_those_of_trec_eval(data, name, folder, options):
    evaluator = load(name, data / folder, **options)
    model, processor = open_model(picturebook.checkpoint("mini-sugar"), device="cpu")
    result = evaluator(model, processor)
    assert result["failed"] == []
    expected = trec_figures(evaluator, SugarEmbedder(model, processor))
    assert {key: result[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert evaluator.primary_metric == all_tasks()[name].primary_metric
    assert evaluator.primary_metric == ("ndcg@10" if name == "vidore-v3" else "ndcg@5")


@pytest.mark.parametrize(("name", "folder", "options"), CASES)
def test_a_page_is_one_image_and_a_query_one_text(data, name, folder, options):
    task = load(name, data / folder, instruction="none", **options).task
    assert {tuple(part["type"] for part in each.content.messages[0]["content"]) for each in task.corpus} == {
        ("image",)
    }
    assert {tuple(part["type"] for part in each.content.messages[0]["content"]) for each in task.queries} == {
        ("text",)
    }


def test_pages_and_queries_of_version_1_are_taken_once(data):
    evaluator = load("vidore-v1", data / "pairs")
    result = evaluator(Seeing(blind))
    assert (result["queries"], result["corpus"]) == (4, 5)
    assert result["pages without a query"] == 1
    # the query A has two pages, of which the last one counts
    assert result["pages that another row of the query replaces"] == 1
    assert evaluator.task.relevance["0"] == {"documents/page_3.png": 1.0}
    assert evaluator.task.queries[0].content.messages[-1]["content"][0]["text"] == f"A: {scene(0)[1]}"


def test_in_the_other_form_all_pages_of_a_query_count(data):
    evaluator = load("vidore-v1", data / "beir", subset="docvqa_test_subsampled_beir", instruction="none")
    assert evaluator.task.relevance["0"] == {"0": 1.0, "3": 1.0}
    result = evaluator(Seeing(knowing))
    assert (result["recall@1"], result["hit@1"]) == (pytest.approx(50.0), pytest.approx(75.0))


def test_queries_of_several_languages_are_counted_apart(data):
    result = load("vidore-v2", data / "v2")(Seeing(blind))
    assert (result["english queries"], result["french queries"], result["n"]) == (2, 2, 4)
    assert (result["english ndcg@5"] + result["french ndcg@5"]) / 2 == pytest.approx(result["ndcg@5"])
    one = load("vidore-v2", data / "v2", language="french")(Seeing(blind))
    assert (one["n"], one["ndcg@5"]) == (2, pytest.approx(result["french ndcg@5"]))
    assert one["settings"]["language"] == "french"


def test_version_3_has_a_corpus_for_each_language(data):
    assert load("vidore-v3", data / "v3")(Seeing(blind))["n"] == 3
    assert load("vidore-v3", data / "v3", language="french")(Seeing(blind))["n"] == 4
    with pytest.raises(ValueError, match="vidore-v3: language='german' is none of english, french"):
        load("vidore-v3", data / "v3", language="german")
    with pytest.raises(ValueError, match="vidore-v2: language='german' is none of all, english, french"):
        load("vidore-v2", data / "v2", language="german")


def test_a_language_where_there_is_none_is_refused(data):
    with pytest.raises(ValueError, match="language='french': queries of docvqa_test_subsampled_beir name none"):
        load("vidore-v1", data / "beir", subset="docvqa_test_subsampled_beir", language="french")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2].update(image=scene(9)[0]), r"row 2 of.*page_1\.png.*another picture in row 1.*_beir"),
        (lambda rows: rows[2].update(image_filename=None), "row 2 of vidore-v1.*image_filename.*missing"),
        (lambda rows: rows[0].update(image=None), r"page_0\.png.*image.*missing"),
        (lambda rows: [row.update(query=None) for row in rows], "queries is empty|none of the 0 queries is judged"),
    ],
)
def test_faults_of_pages_are_named(tmp_path, change, message):
    write_vidore(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load("vidore-v1", tmp_path)


def test_pages_of_files_are_compared_by_what_is_in_them(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    for n, number in enumerate((1, 1, 9)):
        scene(number)[0].save(folder / f"{n}.png")
    rows = ["file_name,query,image_filename", "0.png,first,page", "1.png,second,page"]
    (folder / "metadata.csv").write_text("\n".join(rows))
    assert len(load("vidore-v1", tmp_path).task.corpus) == 1
    (folder / "metadata.csv").write_text("\n".join([*rows, "2.png,third,page"]))
    with pytest.raises(ValueError, match=r"row 2 of.*'page' is another picture in row 0.*_beir"):
        load("vidore-v1", tmp_path)


def test_a_set_that_is_nowhere_says_so():
    with pytest.raises(ValueError, match=r"vidore-v2: cannot load vidore/nothing.*docs/benchmarks\.md says"):
        all_tasks()["vidore-v2"].load(Source("vidore-v2", options={"subset": "nothing"}))
