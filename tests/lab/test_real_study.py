"""The stages of the study on real documents, one after the other, with models given by their names."""

from dataclasses import replace

import pytest
from lab_tools import write_manual

from sugar_hf import picturebook
from sugar_hf.data import Document
from sugar_lab.claims import QUESTIONS
from sugar_lab.outcomes import read_outcomes
from sugar_lab.real import stages_asked, stages_real
from sugar_lab.real.head_rows import ASKED, head_rows, label_rows, longer_rows, longest_rows
from sugar_lab.real.joint_training import JointBudget, by_embeddings
from sugar_lab.real.manuals import read_manual, slices_of, text_of
from sugar_lab.real.short_questions import ShortQuestion
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


def test_labels_are_compared_from_the_same_whitened_head_and_of_test_alone(study):
    rows = {row.name: row for row in label_rows()}
    default = rows["kl-0.15-whitened"]
    others = [row for name, row in rows.items() if name.startswith(f"{default.name}-")]
    assert [row.loss.label_kernel for row in (default, *others)] == ["calibrated", "aligned", "mean", "gak"]
    assert all(replace(row, name=default.name, loss=default.loss) == default for row in others)
    asked = {row for each in QUESTIONS if each.study == "real-labels" for row in (each.row, each.rival)}
    assert asked <= rows.keys()
    stages_real.make_models(study)
    study.make_states()
    short = [replace(row, steps=3) for row in (default, *others)]
    found = stages_real.measure_labels(study, {0: short}, study.work / "labels", "labels")
    outcomes = read_outcomes([found]).to_pylist()
    assert {entry["study"] for entry in outcomes} == {"real-labels"}
    assert {entry["row"] for entry in outcomes} == {row.name for row in short}


def test_models_that_were_trained_longest_are_asked(study, monkeypatch):
    monkeypatch.setattr(stages_real, "LOSSES", 3)
    output = study.work / "outcomes"
    head = [row for row in head_rows() if row.name == "kl-0.15-whitened"]
    stages_real.make_models(study)
    study.make_states()
    stages_real.trained_heads(study, [replace(row, steps=3) for row in head], 0)
    stages_real.measure_joint(study, [0], list(ASKED), output, longest_rows(), BUDGET, "longest", sizes=(5, 9))
    corpus = study.sets("test")["gimp/title"].corpus
    first = [document for document in corpus if "paints" in slices_of(document)[0]][:4]
    asked = [
        ShortQuestion(each.id, text_of(slices_of(each)), (slices_of(each)[0].partition("that ")[2],)) for each in first
    ]
    monkeypatch.setattr(stages_asked, "QUESTIONS", asked)
    monkeypatch.setattr(stages_asked, "_searched", lambda study: corpus)
    monkeypatch.setattr(
        stages_asked, "by_sentences", lambda study, corpus: lambda asked: [[*range(len(corpus))]] * len(asked)
    )
    found = read_outcomes([stages_asked.measure_asked(study, [0], output)]).to_pylist()
    assert {entry["row"] for entry in found if entry["study"] == "real-asked"} == {"none", "right", "own", "encoder"}
    ranks = {
        entry["item"]: entry["value"] for entry in found if entry["row"] == "encoder" and entry["task"] == "section"
    }
    assert ranks == {f"{document.id}@ask": corpus.index(document) + 1.0 for document in first}
    places = {entry["task"] for entry in found if entry["study"] == "real-asked-curve"}
    assert places == {*(f"place {number}" for number in range(1, 7)), "middle less ends"}


def test_own_embeddings_search_sections_of_which_one_is_too_long(study):
    texts = ["a dog on a red background", "a cat on a blue background", "a white mountain. " * 60]
    model, processor = study.model()
    search = by_embeddings(model, processor, [Document(text[:9], [text]) for text in texts], max_length=64)
    assert [found[0] for found in search([texts[1], texts[0], "a white mountain. " * 10])] == [1, 0, 2]
