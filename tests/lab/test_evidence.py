"""The outcome of each item, from what evaluators write; and what is kept of it."""

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from sugar_hf.evaluation.examples import Record
from sugar_lab import evidence
from sugar_lab.budget import Budget
from sugar_lab.claims import QUESTIONS
from sugar_lab.evidence import MOST, MOVED, OUTCOMES, TWINS, evidence_rows, evidence_twins, write_evidence
from sugar_lab.intervals import UNTRAINED
from sugar_lab.item_outcomes import item_outcomes, share_of_false
from sugar_lab.mix import known_pairs
from sugar_lab.model_rows import ROWS
from sugar_lab.outcomes import read_outcomes
from sugar_lab.row_training import base_facts, start_of
from sugar_lab.stages import Lab, all_stages, do_stage
from sugar_lab.twins import all_twins
from sugar_lab.twins.loss_twins import build_loss

TINY = Budget("tiny", questions=3, scenes=14, stories=3, pairs=4, rows=12, batch_size=6, seeds=(0,))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The base, measured on a little of everything."""
    rows = {name: row for name, row in evidence_rows().items() if name in ("base", "mini-clip")}
    lab = Lab(TINY, tmp_path_factory.mktemp("evidence"), rows, evidence_twins)
    for stage in all_stages(lab):
        do_stage(lab, stage)
    return lab


def test_items_come_out_as_the_figures_say(lab):
    twins = evidence_twins()
    for stage in all_stages(lab):
        twin, path = twins[stage.twin], lab.result_file(stage)
        figures = json.loads(path.read_text())["figures"]
        found = list(item_outcomes(twin, twin.build(TINY), path.with_suffix(".jsonl")))
        by_task: dict[str, list[float]] = {}
        for task, _, _, value in found:
            by_task.setdefault(task, []).append(value)
        for task, values in by_task.items():
            metric = next(metric for name, _, metric, _ in found if name == task)
            if metric == "rank":
                figure, value = f"{task.partition(' ')[2]} recall@5", 100 * np.mean(np.array(values) <= 5)
            elif metric == "hit":
                figure, value = task.partition(" ")[2], 100 * np.mean(values)
            elif task.endswith("false"):
                continue
            else:
                figure, value = twin.primary_metric, np.mean(values)
            assert figures[figure] == pytest.approx(value), task


def test_outcomes_are_written_and_kept_where_the_work_folder_has_none(lab, tmp_path):
    measured, outcomes = write_evidence(lab, tmp_path)
    table = read_outcomes(outcomes)
    assert set(table["seed"].to_pylist()) == {UNTRAINED}
    assert {task.partition(" ")[0] for task in table["task"].to_pylist()} == set(TWINS)
    assert {"coco t2i", "vist 5c+4i dagger", "winoground group", "llava-w false"} <= set(table["task"].to_pylist())
    before = outcomes.read_bytes()
    elsewhere = replace(lab, work=tmp_path / "elsewhere", kept=measured)
    write_evidence(elsewhere, tmp_path)
    assert outcomes.read_bytes() == before
    outcomes.unlink()
    with pytest.raises(ValueError, match=f"{OUTCOMES} has no outcomes of measure/base/0/coco"):
        write_evidence(elsewhere, tmp_path)


def test_a_description_is_false_by_what_it_states_wrongly():
    reference = {"facts": ["thing: cat", "size: cat small"]}
    assert share_of_false(Record("1", "a small cat", reference)) == 0
    assert share_of_false(Record("1", "a large cat", reference)) == 50
    assert share_of_false(Record("1", "nothing", reference)) == 0


def test_losses_are_those_of_the_answers(tmp_path, llava):
    evaluator = build_loss(TINY)
    path = tmp_path / "loss.jsonl"
    found = evaluator(*llava, output=path, batch_size=4)
    alone = evaluator(*llava, batch_size=1)
    assert found["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["run"] == {"task": "answer-loss", "n": 6}
    assert np.mean([line["loss"] for line in lines[1:]]) == pytest.approx(found["loss"])
    assert math.isfinite(found["loss"])


def test_every_twin_is_measured_or_moved_or_part_of_another_table():
    moved = {twin for twins in MOVED.values() for twin in twins}
    assert moved <= set(all_twins())
    assert not moved & set(TWINS)
    assert set(all_twins()) - moved - set(TWINS) == {"pool", "demon", "mme", "vizwiz", "webqa"}


def test_rows_of_another_base_name_its_weights(tmp_path):
    row = evidence_rows()["no-gist"]
    with pytest.raises(FileNotFoundError, match=f"'no-gist' starts from.*{row.base}.*--base"):
        start_of(row, [])
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(FileNotFoundError):
        start_of(row, [tmp_path])
    digest = hashlib.sha256(b"weights").hexdigest()
    assert start_of(replace(row, base=digest[:16]), [tmp_path]) == tmp_path
    assert start_of(replace(row, base="")).name == "mini-vlm"
    assert base_facts() != evidence.NO_GIST


def test_known_pairs_have_the_same_words_on_both_sides():
    rows = known_pairs(10, 0)
    assert len(rows) == len({row["id"] for row in rows}) == 10
    text, picture = rows[0], rows[1]
    words = [
        part["messages"][0]["content"][0]["text"]
        for part in (text["query"], *picture["positives"], *picture["negatives"])
    ]
    assert words[0] == words[1]
    assert sorted(words[1].strip(".").split()) == sorted(words[2].strip(".").split())
    assert text["positives"][0]["images"] == picture["query"]["images"]
    assert text["positives"] != text["negatives"]
    assert known_pairs(10, 0) == rows
    assert known_pairs(4, 1) != rows[:4]


def test_rows_of_the_comparison_are_measured_on_everything_and_those_of_claims_with_several_seeds():
    rows = evidence_rows()
    assert all(row.measured == "all" for row in rows.values())
    asked = {row for each in QUESTIONS if each.study == "lab" for row in (each.row, each.rival)}
    assert all(rows[row].seeds >= 3 for row in asked if rows[row].is_trained)
    assert {name for name, row in rows.items() if row.seeds == 8} == set(MOST) <= asked
    assert {name for name, row in rows.items() if not row.is_trained} == {"base", "mini-clip", "no-gist"}
    assert rows["infonce"].facts() == ROWS["infonce"].facts()
