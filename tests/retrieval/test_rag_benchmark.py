"""benchmarks/rag.py on small models: it measures, and what it writes says what was measured."""

import json
import sys
from pathlib import Path

import pytest
import torch

from sugar_hf.model import SugarForConditionalGeneration
from sugar_hf.model.modeling_sugar import find_cache

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def rag():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import rag

        yield rag
        for name in ("rag", "rag_models", "training", "training_models"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def measured(rag):
    return rag.measure("small", ["short"], repeats=1, new_tokens=3, memory_runs=0)


def test_retriever_of_the_same_size(rag):
    ways = rag.Ways("small", ("independent", "clip-l"), 1, one_copy=True)
    assert ways.parameters["independent"] == pytest.approx(ways.parameters["VLM"], rel=0.02)
    assert ways.parameters["clip-l"] < ways.parameters["independent"]


def test_every_way_is_measured(rag, measured):
    case = measured["cases"]["short"]
    assert set(case["seconds"]) == set(rag.WAYS) == {"reuse", *case["reuse_over"]}
    assert case["answer_tokens"] == 3
    for seconds in case["seconds"].values():
        parts = [seconds[name] for name in rag.PHASES]
        assert min(parts) > 0
        assert sum(parts) == pytest.approx(seconds["total"], rel=0.05)


def spoilt(generate):
    """Spoils what was computed for the question before it is used."""

    def wrapped(*args, **kwargs):
        cache = find_cache(kwargs)
        for layer in () if cache is None else cache.layers:
            layer.values = -layer.values
        return generate(*args, **kwargs)

    return wrapped


@pytest.fixture
def two_ways(rag):
    names = ("reuse", "noreuse")
    return rag.Ways("small", names, 3, one_copy=True), rag.Case("1 image", 1, 1, ways=names)


def test_answers_that_differ_are_an_error(rag, two_ways, monkeypatch):
    ways, case = two_ways
    calls = {way: ways.prepare(way, case) for way in case.ways}
    calls["reuse"](rag.make_question(1))  # which finds that reuse is exact
    monkeypatch.setattr(ways, "prepare", lambda way, case: calls[way])
    monkeypatch.setattr(SugarForConditionalGeneration, "generate", spoilt(SugarForConditionalGeneration.generate))
    with pytest.raises(ValueError, match="answers with and without reuse differ"):
        rag.measure_case(ways, case, 1)


def test_answers_that_cannot_differ_are_an_error(rag):
    ways = rag.Ways("small", ("reuse", "noreuse", "vlm"), 3, one_copy=True)
    with torch.no_grad():
        for name, weight in ways.sugar.vlm.model.language_model.named_parameters():
            if name.endswith("o_proj.weight"):
                weight.zero_()
    with pytest.raises(ValueError, match="answers do not depend on what is found"):
        rag.measure_case(ways, rag.Case("1 image", 1, 1, ways=("reuse", "noreuse", "vlm")), 1)


def test_nothing_reused_is_an_error(rag, two_ways, monkeypatch):
    monkeypatch.setattr(SugarForConditionalGeneration, "generate", spoilt(SugarForConditionalGeneration.generate))
    with (
        pytest.warns(UserWarning, match="nothing of a prompt is reused"),
        pytest.raises(ValueError, match="nothing of the question is reused"),
    ):
        rag.measure_case(*two_ways, 1)


def test_summary_and_document(rag, measured, tmp_path, monkeypatch, capsys):
    mib = {way: {"peak": peak, "before": 1.0} for way, peak in zip(rag.WAYS, (50, 60, 100, 80, 99), strict=True)}
    found = {**measured, "mib": mib}
    page, figures = tmp_path / "rag.md", tmp_path / "rag.json"
    page.write_text(f"# Before\n{rag.BEGIN}old\n{rag.END}\nafter\n")
    figures.write_text(json.dumps({"command": "python benchmarks/rag.py", "measured": found}))
    monkeypatch.setattr(rag, "DOCUMENT", page)
    monkeypatch.setattr(sys, "argv", ["rag.py", "--from-json", str(figures), "--json", str(figures), "--update-docs"])
    rag.main()
    written = json.loads(figures.read_text())
    assert written["peak_memory_ratio"] == 0.5
    assert written["reuse_over_independent_latency"] == measured["cases"]["short"]["reuse_over"]["independent"]
    assert written["reuse_over_noreuse_latency"] == measured["cases"]["short"]["reuse_over"]["noreuse"]
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert f"| {rag.WAYS['clip-l']} |" in text
    assert "| **0.62** |" in text
    assert "`python benchmarks/rag.py` on " in text
    assert '"peak_memory_ratio": 0.5' in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(rag):
    found = rag.peak("small", "reuse", "short", 2, 1)
    assert found["peak"] >= found["before"] > 0
