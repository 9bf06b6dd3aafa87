"""The stages of the study on real documents, one after the other, with models given by their names."""

from dataclasses import replace

import pytest
from lab_tools import write_manual

from sugar_hf import picturebook
from sugar_lab.outcomes import read_outcomes
from sugar_lab.real import stages_real
from sugar_lab.real.head_rows import head_rows, longer_rows
from sugar_lab.real.joint_training import JointBudget
from sugar_lab.real.manuals import read_manual
from sugar_lab.real.study import Study

MODELS = {"backbone": "mini-vlm", "clip": "mini-clip", "dino": "mini-dino", "text": "mini-bert"}
TASKS = ("gimp/title", "gimp/next", "gimp/caption")
HEADS = ("infonce-0.1", "mse", "kl-0.15", "kl-0.15-all-ends", "raw", "whitened", "kl-0.15-whitened", "whitened-late")
BUDGET = JointBudget(steps=2, batch_size=2, max_length=128)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    names = {name: str(picturebook.checkpoint(checkpoint)) for name, checkpoint in MODELS.items()}
    found = Study(tmp_path_factory.mktemp("study"), patterns=TASKS, **names)
    (found.work / "packages.json").write_text("{}")
    vars(found)["manuals"] = [read_manual("gimp", write_manual(tmp_path_factory.mktemp("manual")))]
    vars(found)["stamps"] = []
    return found


def values(path, row):
    return {
        (entry["task"], entry["item"]): entry["value"]
        for entry in read_outcomes([path]).to_pylist()
        if entry["row"] == row
    }


def test_heads_and_the_model_are_trained_and_measured_on_the_same_queries(study, monkeypatch):
    monkeypatch.setattr(stages_real, "LOSSES", 3)
    output = study.work / "outcomes"
    stages_real.make_models(study)
    study.make_states()
    rows = [replace(row, steps=min(row.steps, 3)) for row in head_rows() if row.name in HEADS]
    heads = stages_real.measure_heads(study, {0: rows}, output, "heads")
    ranks = {row: values(heads, row) for row in HEADS}
    assert all(found.keys() == ranks["raw"].keys() for found in ranks.values())
    assert len({tuple(found.values()) for found in ranks.values()}) == len(HEADS)  # each does something of its own
    trained = stages_real.measure_joint(study, [0], [], output, budget=BUDGET)
    start, moved = values(trained, "start"), values(trained, "kl-0.15")
    assert start.keys() == moved.keys()
    assert {task for task, _ in start} == {"held-out loss", *TASKS}
    assert start != moved
    longer = stages_real.measure_joint(study, [0], ["lm-only"], output, longer_rows(), BUDGET, "longer")
    assert {entry["row"] for entry in read_outcomes([longer]).to_pylist()} == {"lm-only"}
    kept = study.work / "joint" / "kl-0.15-0.json"
    before = kept.stat().st_mtime_ns
    stages_real.measure_joint(study, [0], [], output, budget=BUDGET)
    assert kept.stat().st_mtime_ns == before
