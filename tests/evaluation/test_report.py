"""Results beside the paper's tables."""

import json

import pytest
from huggingface_hub import ModelCard, ModelCardData

from sugar_hf.evaluation.benchmarks import report
from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.evaluation.benchmarks.runner import write_result
from sugar_hf.evaluation.benchmarks.tasks import all_tasks


def result(task="vqav2", model="me/sugar", metrics=None, **more):
    primary = all_tasks()[task].primary_metric
    return {
        "task": task,
        "title": all_tasks()[task].title,
        "run": "r",
        "model": model,
        "retriever": None,
        "primary_metric": primary,
        "metrics": metrics or {primary: 71.234},
        "n": 40,
        "seed": 3,
        "failed": [],
        "settings": {},
        "limit": None,
        **more,
    }


def test_every_cell_that_a_task_claims_is_in_the_paper():
    for task in all_tasks().values():
        for place in task.paper.values():
            table, column = place.split("/", 1)
            assert column in TABLES[table].columns, f"{task.name}: {place}"


def test_every_column_of_the_paper_has_a_task():
    claimed = {place for task in all_tasks().values() for place in task.paper.values()}
    for name, table in TABLES.items():
        for column in table.columns:
            place = table.aliases.get(column, f"{name}/{column}")
            assert place in claimed, place


def test_tables_are_consistent():
    for table in TABLES.values():
        for name, row in table.rows.items():
            assert row
            assert set(row) <= set(table.columns), name


def test_our_rows_stand_below_those_of_the_paper():
    text = report.as_markdown([result(), result("gqa", metrics={"accuracy": 50.0, "accuracy, open": 1.5})])
    lines = text.splitlines()
    at = lines.index("|  | VQAv2 | GQA |")
    assert lines[at + 2 : at + 6] == [
        "| LLaVA-1.5 7B (paper) | 78.5 | 62.0 |",
        "| VILA-7B (paper) | 79.9 | 62.3 |",
        "| Sugar (Vicuna-7B) (paper) | 76.0 | 58.7 |",
        "| **sugar** | 71.2 | 50.0 |",
    ]
    assert "n = 40, 0 failed, seed 3." in text
    assert "| accuracy, open | 1.50 |" in text
    assert "DEMON" not in text


def test_what_makes_a_figure_no_score_is_said():
    failed = [{"id": "a", "error": "e"}]
    text = report.as_markdown([result(limit=5, failed=failed)])
    assert "| **sugar** | 71.2 (first 5) (1 failed) |" in text
    assert "n = 40, 1 failed, seed 3, the first 5 only." in text


def test_runs_with_other_options_are_other_rows():
    runs = [result("textvqa", settings={"options": {"ocr": ocr}}) for ocr in ("on", "off")]
    rows = report.rows_of("table1", TABLES["table1"], runs, all_tasks())
    assert sorted(rows) == ["sugar, ocr=off", "sugar, ocr=on"]


def test_results_are_read_and_submissions_are_not(tmp_path):
    write_result(tmp_path / "vqav2" / "a.json", result())
    (tmp_path / "vqav2" / "a.submission.json").write_text("[]")
    (tmp_path / "vqav2" / "a.jsonl").write_text("{}")
    assert [found["task"] for found in report.read_results(tmp_path)] == ["vqav2"]
    (tmp_path / "other.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"other\.json: no result of `sugar-hf evaluate`"):
        report.read_results(tmp_path)


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no results below"):
        report.read_results(tmp_path)


def test_metadata_of_a_model_card():
    index = report.model_index([result(), result("gqa"), result("vizwiz", limit=2)])
    data = ModelCardData(**{"model-index": index})
    card = ModelCard.from_template(data, template_str="---\n{{ card_data }}\n---\n# x\n")
    found = {each.dataset_name: each for each in card.data.eval_results}
    assert sorted(found) == ["GQA", "VQAv2"]  # a part of the data is no score
    assert found["VQAv2"].metric_value == 71.23
    assert found["VQAv2"].dataset_type == "lmms-lab/VQAv2"
    assert found["VQAv2"].dataset_split == "validation"


def test_data_sets_of_one_benchmark_are_told_apart():
    names = ("docvqa_test_subsampled", "tatdqa_test")
    settings = [{"dataset": name, "hub_id": f"vidore/{name}", "options": {"subset": name}} for name in names]
    runs = [result("vidore-v1", settings=each) for each in settings]
    [found] = report.model_index(runs)
    data = [each["dataset"] for each in found["results"]]
    assert [(each["type"], each["config"]) for each in data] == [(f"vidore/{name}", name) for name in names]
    assert "n = 40, 0 failed, seed 3, subset=tatdqa_test." in report.as_markdown(runs)


def test_metadata_is_of_one_model():
    runs = [result(), result(model="other")]
    with pytest.raises(ValueError, match="of one model are needed, there are those of me/sugar, other"):
        report.model_index(runs)
    assert report.model_index(runs, "other")[0]["name"] == "other"
    with pytest.raises(ValueError, match="name one"):
        report.model_index(runs, "nobody")
