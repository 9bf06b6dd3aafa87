"""The lab's stages: what is done when, going on after a stop, and the figures of tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from sugar_lab import scheduler as running
from sugar_lab import stages
from sugar_lab.aggregate import KEPT, aggregate, read_curves, write_tables
from sugar_lab.budget import QUICK, Budget
from sugar_lab.model_rows import ROWS, Row
from sugar_lab.row_training import model_folder, row_facts
from sugar_lab.scheduler import run_stages
from sugar_lab.stage_files import mark_whole
from sugar_lab.stages import Lab, Stage, all_stages, unfinished
from sugar_lab.twins import Twin

TINY = Budget("tiny", questions=2, batch_size=6, rows=12, seeds=(0, 1))
CALLS: Counter[str] = Counter()


class Evaluator:
    """Counts who calls it, and gives the number of its calls so far as a figure."""

    primary_metric = "score"

    def __init__(self, name):
        self.name = name

    def __call__(self, model, processor=None, *, output=None, batch_size=8, encoder=None):
        who = f"{model} on {self.name}" + (" with encoder" if encoder else "")
        CALLS[who] += 1
        if CALLS[who] <= CALLS[f"stop {who}"]:
            raise KeyboardInterrupt
        if CALLS[f"break {who}"]:
            raise ValueError("broken")
        return {"score": float(sum(CALLS.values())), "n": 2, "seed": 0, "failed": [], "settings": {}}


def build_answers(budget):
    return Evaluator("answers")


def build_search(budget):
    return Evaluator("search")


def build_facts(budget):
    return Evaluator("facts")


def build_without(budget):
    return Evaluator("facts without")


def fake_twins():
    return {
        "answers": Twin("answers", "Answers", "generate", build_answers, "score", {"score": "table1/POPE"}),
        "search": Twin("search", "Search", "embed", build_search, "score", {"score": "table3a/T2I R@1"}),
        "facts": Twin("facts", "Facts", "both", build_facts, "score", {"score": "table7/FVQA"}),
    }


def fake_variants():
    return {"facts, none": ("facts", "no retrieval", build_without), "facts, image": ("facts", "image", build_facts)}


def fake_rows():
    return {name: ROWS[name] for name in ("base", "mini-clip", "lm-only", "sugar", "mean")}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab whose models are their folders' names, trained at once."""

    def train(row, seed, budget, work, bases=()):
        CALLS[f"train {row.name}-{seed}"] += 1
        mark_whole(model_folder(row, seed, work), row_facts(row, seed, budget))

    CALLS.clear()
    monkeypatch.setattr(stages, "train_row", train)
    monkeypatch.setattr(stages, "prepare_mix", lambda *_: None)
    monkeypatch.setattr(stages, "open_model", lambda folder: (Path(folder).name, "processor"))
    monkeypatch.setattr(stages, "open_encoder", lambda folder: Path(folder).name)
    monkeypatch.setattr(running, "_settle", lambda threads: None)
    return Lab(TINY, tmp_path, fake_rows(), fake_twins, fake_variants)


def test_each_row_is_measured_on_what_it_can_do(lab):
    found = [(s.row, s.seed, s.twin, s.suffix) for s in all_stages(lab) if s.kind == "measure"]
    assert [item for item in found if item[1] == 0] == [
        ("base", 0, "answers", ""),
        ("base", 0, "search", ""),  # as the rows start, with a fresh head
        ("mini-clip", 0, "search", ""),
        ("lm-only", 0, "answers", ""),
        ("lm-only", 0, "facts", ""),
        ("lm-only", 0, "facts", "no retrieval"),
        ("lm-only", 0, "facts", "image"),
        ("sugar", 0, "answers", ""),
        ("sugar", 0, "search", ""),
        ("sugar", 0, "facts", ""),
        ("sugar", 0, "facts", "no retrieval"),
        ("mean", 0, "answers", ""),  # of the paper's ablation; the columns of the other two are not
    ]
    assert {item[1] for item in found if item[0] == "sugar"} == {0, 1}


def test_stages_come_after_what_they_need(lab):
    names = [stage.name for stage in all_stages(lab)]
    assert len(set(names)) == len(names)
    for place, stage in enumerate(all_stages(lab)):
        assert set(stage.needs) <= set(names[:place])


def test_only_what_is_asked_for_is_measured_and_what_it_needs_trained(lab):
    assert [stage.name for stage in all_stages(lab, ["sugar/sea*", "*/answers"]) if "/0" in stage.name] == [
        "measure/base/0/answers",
        "data/all/0",
        "train/lm-only/0",
        "measure/lm-only/0/answers",
        "train/sugar/0",
        "measure/sugar/0/answers",
        "measure/sugar/0/search",
        "train/mean/0",
        "measure/mean/0/answers",
    ]
    assert {stage.row for stage in all_stages(lab, ["mini-clip"])} == {"mini-clip"}
    with pytest.raises(ValueError, match=r"--only sugar/none: there is no such measurement. Rows: base, mini-clip"):
        all_stages(lab, ["sugar/none"])


def test_a_run_that_was_stopped_goes_on(lab):
    CALLS["stop sugar-0 on search"] = 1
    with pytest.raises(KeyboardInterrupt):
        run_stages(lab, all_stages(lab))
    before = {path: path.read_text() for path in lab.work.rglob("*.json")}
    run_stages(lab, all_stages(lab))
    assert {path: path.read_text() for path in before} == before
    assert CALLS.pop("sugar-0 on search") == 2
    del CALLS["stop sugar-0 on search"]
    assert set(CALLS.values()) == {1, 2}
    assert [name for name, count in CALLS.items() if count == 2] == [
        "lm-only-0 on facts with encoder",  # by itself, and by images
        "lm-only-1 on facts with encoder",
    ]
    assert unfinished(lab, all_stages(lab)) == []


def test_a_stage_that_fails_stops_only_those_that_need_it(lab, monkeypatch):
    CALLS["break mini-clip on search"] = 1
    train = stages.train_row

    def train_some(row, seed, budget, work, bases=()):
        if row.name == "lm-only" and seed:
            raise OSError("no room")
        train(row, seed, budget, work, bases)

    monkeypatch.setattr(stages, "train_row", train_some)
    with pytest.raises(RuntimeError) as error:
        run_stages(lab, all_stages(lab))
    assert str(error.value) == (
        "not done: measure/mini-clip/0/search (ValueError: broken); train/lm-only/1 (OSError: no room); "
        "measure/lm-only/1/answers (needs train/lm-only/1); measure/lm-only/1/facts (needs train/lm-only/1); "
        "measure/lm-only/1/facts/no retrieval (needs train/lm-only/1); "
        "measure/lm-only/1/facts/image (needs train/lm-only/1)"
    )
    assert CALLS["mean-1 on answers"] == 1
    assert [stage.name for stage in unfinished(lab, all_stages(lab))][:3] == [
        "measure/mini-clip/0/search",
        "data/all/1",
        "train/lm-only/1",
    ]


def test_results_of_other_settings_are_refused(lab):
    run_stages(lab, all_stages(lab, ["base", "sugar"]))
    other = Lab(Budget("tiny", questions=3), lab.work, fake_rows(), fake_twins, fake_variants)
    with pytest.raises(ValueError, match=r"answers.json was made with other budget. Delete it, or take"):
        run_stages(other, all_stages(other, ["base"]))
    shutil.rmtree(lab.work / "results")
    with pytest.raises(ValueError, match=r"sugar-1/whole.json was made with other batch_size, rows\."):
        run_stages(other, all_stages(other, ["sugar"]))


def test_who_answers_and_who_retrieves_is_in_a_rows_name(lab):
    run_stages(lab, all_stages(lab, ["*/facts"]))
    tables = write_tables(lab, lab.work / "tables")
    assert [path.name for path in tables] == ["table7.json", "curves.json"]
    entries = json.loads(tables[0].read_text())
    assert [entry["row"] for entry in entries] == [
        "lm-only + mini-clip",
        "lm-only + mini-clip image",
        "lm-only, no retrieval",
        "sugar + own",
        "sugar, no retrieval",
    ]
    assert {(entry["table"], entry["metric"], entry["n"], entry["budget"]) for entry in entries} == {
        ("table7", "FVQA", 2, "tiny")
    }
    assert entries[0]["command"] == "python -m sugar_lab --budget tiny --only lm-only/facts"
    assert not CALLS["lm-only-0 on facts without with encoder"]
    assert CALLS["lm-only-0 on facts without"] == 1


def test_what_was_measured_elsewhere_is_not_measured_again(lab, tmp_path):
    run_stages(lab, all_stages(lab, ["sugar", "base"]))
    write_tables(lab, tmp_path / "tables")
    elsewhere = replace(lab, work=tmp_path / "elsewhere", kept=tmp_path / "tables" / KEPT)
    chosen = all_stages(elsewhere, ["sugar", "base", "mean"])
    assert {stage.row for stage in unfinished(elsewhere, chosen) if stage.kind != "data"} == {"mean"}
    CALLS.clear()
    run_stages(elsewhere, chosen)
    assert set(CALLS) == {"train mean-0", "train mean-1", "mean-0 on answers", "mean-1 on answers"}
    write_tables(elsewhere, tmp_path / "tables")
    entries = json.loads((tmp_path / "tables" / "table1.json").read_text())
    assert [(entry["row"], entry["seeds"]) for entry in entries] == [
        ("base", [0]),
        ("sugar", [0, 1]),
        ("mean", [0, 1]),
    ]
    other = replace(elsewhere, work=tmp_path / "other", budget=replace(TINY, rows=18))
    assert unfinished(other, all_stages(other, ["base", "sugar"])) == all_stages(other, ["base", "sugar"])
    more = replace(elsewhere, work=tmp_path / "more", budget=replace(TINY, seeds=(0, 1, 2)))
    assert {stage.seed for stage in unfinished(more, all_stages(more, ["sugar"]))} == {2}


def result(row, seed, figures, twin="answers", **changes):
    facts = {"n": 2, "budget": "tiny", "versions": {"torch": "2"}, "command": "c", **changes}
    return {"row": row, "seed": seed, "twin": twin, "figures": figures, **facts}


def test_figures_are_means_over_seeds():
    twins = {
        **fake_twins(),
        "order": Twin("order", "Order", "embed", build_search, "score", chance={"score": 25.0}),
    }
    found = aggregate(
        [
            result("sugar", 2, {"score": 64.0}),
            result("sugar", 0, {"score": 61.0}),
            result("sugar", 1, {"score": 61.00004}),
            result("base", 0, {"score": 50, "other": 1.0}),
            result("sugar", 0, {"score": 1 / 3}, "order"),
        ],
        twins,
    )
    common = {"n": 2, "budget": "tiny", "versions": {"torch": "2"}, "command": "c"}
    assert found == {
        "order": [
            {
                **{"table": "order", "row": "sugar", "metric": "score", "mean": 0.3333, "spread": 0.0},
                **{"seeds": [0], "values": [0.3333], "chance": 25.0},
                **common,
            }
        ],
        "table1": [
            {
                **{"table": "table1", "row": "base", "metric": "POPE", "mean": 50.0, "spread": 0.0},
                **{"seeds": [0], "values": [50.0]},
                **common,
            },
            {
                # mean (61 + 61 + 64) / 3, and the root of ((1 + 1 + 4) / 2)
                **{"table": "table1", "row": "sugar", "metric": "POPE", "mean": 62.0, "spread": 1.732},
                **{"seeds": [0, 1, 2], "values": [61.0, 61.0, 64.0]},
                **common,
            },
        ],
    }


def test_figures_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"table1, sugar, POPE: the seeds differ in n\."):
        aggregate([result("sugar", 0, {"score": 1}), result("sugar", 1, {"score": 1}, n=3)], fake_twins())
    with pytest.raises(ValueError, match=r"sugar on answers: there is no figure 'score': measure it again"):
        aggregate([result("sugar", 0, {"scores": 1})], fake_twins())


def test_rows_are_in_the_order_of_the_tables():
    rows = ["mean", "sugar + own", "lm-only + mini-clip", "base"]
    found = aggregate([result(row, 0, {"score": 1}) for row in rows], fake_twins())
    assert [entry["row"] for entry in found["table1"]] == ["base", "lm-only + mini-clip", "sugar + own", "mean"]


def test_curves_have_both_losses(tmp_path):
    folder = tmp_path / "models" / "sugar-0"
    folder.mkdir(parents=True)
    log = [{"step": 5, "loss": 3.0, "loss_lm": 1.23456, "loss_structure": 0.5}, {"step": 10, "loss_lm": 1.0}]
    (folder / "log.json").write_text(json.dumps(log))
    assert read_curves(tmp_path) == {
        "sugar-0": [{"step": 5, "lm_loss": 1.2346, "structure_loss": 0.5}, {"step": 10, "lm_loss": 1.0}]
    }


def test_every_row_is_a_training_that_can_be(tmp_path):
    from sugar_lab.row_training import row_arguments

    for row in ROWS.values():
        arguments = row_arguments(row, 0, QUICK, tmp_path)
        assert row.retrieves == (not row.is_trained or arguments.alpha > 0)
    assert Row("x", {"alpha": 0}).retrieves is False
    assert row_arguments(ROWS["batch-24"], 0, QUICK, tmp_path).max_steps == 4


def test_names_of_stages_differ():
    assert Stage("data", "all", 2).name == "data/all/2"
    assert Stage("measure", "sugar", 1, "vqav2", "image").name == "measure/sugar/1/vqav2/image"


# ---- In earnest ----


@pytest.mark.slow
def test_processes_do_it_together(tmp_path):
    rows = {name: ROWS[name] for name in ("base", "mini-clip", "sugar")}
    lab = Lab(TINY, tmp_path, rows, fake_twins, fake_variants)
    run_stages(lab, all_stages(lab, ["*/answers", "*/search"]), workers=2)
    assert unfinished(lab, all_stages(lab, ["*/answers", "*/search"])) == []
    assert sorted(path.name for path in write_tables(lab, tmp_path / "tables")) == [
        "curves.json",
        "labels.json",
        "table1.json",
        "table3a.json",
    ]
    labels = json.loads((tmp_path / "tables" / "labels.json").read_text())
    assert sum(labels["sugar"]["counts"]) > 100


@pytest.mark.slow
def test_the_quick_lab_runs_in_earnest(tmp_path):
    lab = Lab(QUICK, tmp_path)
    chosen = ["sugar", "lm-only", "base", "mini-clip"]
    run_stages(lab, all_stages(lab, chosen))
    assert unfinished(lab, all_stages(lab, chosen)) == []
    found = {path.stem.split(", ")[0] for path in tmp_path.glob("results/*/*.json")}
    assert found == set(lab.twins())
    entries = [entry for path in write_tables(lab, tmp_path / "tables") for entry in json.loads(path.read_text())]
    assert {entry["row"] for entry in entries if isinstance(entry, dict)} >= {"sugar", "lm-only", "base", "mini-clip"}


ORPHAN = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from sugar_lab.scheduler import _settle

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), _settle, (1,))
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600).result()
"""


@pytest.mark.slow
def test_workers_end_when_the_process_that_started_them_is_killed(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        assert Path(f"/proc/{worker}").exists()
        parent.kill()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "(zombie)" in Path(f"/proc/{worker}/status").read_text():
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived the process that started it")
