"""benchmarks/gpu.py on tiny shapes: all sections run, failures are kept apart, and FLOPs are what torch counts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import gpu

        yield gpu
        for name in ("gpu", "training", "training_models"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def dry_run(gpu, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    return gpu.main(["--dry-run", "--json", str(path)]), path


def test_a_dry_run_has_all_sections(gpu, dry_run):
    found, path = dry_run
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    sections = found["sections"]
    assert list(sections) == list(gpu.SECTIONS)
    assert not [section["error"] for section in sections.values() if "error" in section]
    assert sections["spread"]["equal"]
    assert "disk" in sections["spread"]["modules"]
    assert sections["training"]["tflops_a_second"] > 0
    assert sections["embedding"]["attention"]["sdpa"]["least_cosine_to_sdpa"] == pytest.approx(1)
    assert "not measured" in sections["embedding"]["attention"]["flash_attention_2"]
    assert {"small", "large"} == sections["memory"]["mib"].keys()


def test_the_page_takes_figures_of_a_gpu_alone(gpu, dry_run, tmp_path):
    found, _ = dry_run
    page = tmp_path / "costs.md"
    page.write_text((ROOT / "docs" / "costs.md").read_text())
    with pytest.raises(ValueError, match="figures of a GPU"):
        gpu.update_document(found, page)
    machine = {**found["machine"], "device": "NVIDIA H100", "cuda": "13.0"}
    failed = {**found["sections"], "memory": {"error": "Traceback\nOutOfMemoryError: too much"}}
    gpu.update_document({"machine": machine, "sections": failed}, page)
    text = page.read_text()
    assert "| *memory* | failed: OutOfMemoryError: too much |" in text
    assert "On one NVIDIA H100" in text
    assert text.count(gpu.BEGIN) == text.count(gpu.END) == 1


def test_a_section_that_fails_loses_no_other(gpu, tmp_path, monkeypatch):
    def broken(sizes):
        raise RuntimeError("no memory")

    path = tmp_path / "gpu.json"

    def fine(sizes):
        assert "no memory" in json.loads(path.read_text())["sections"]["broken"]["error"]
        return {"figure": 1}

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": (broken, 1), "fine": (fine, 1)})
    found = gpu.run(["broken", "fine"], gpu.TINY, False, 100, path)["sections"]
    assert found["broken"]["error"] == "RuntimeError: no memory"
    assert found["fine"]["figure"] == 1
    late = gpu.run(["fine"], gpu.TINY, False, 0, path)["sections"]
    assert "Nothing was left" in late["fine"]["error"]


def test_a_section_of_its_own_process_has_a_limit(gpu, tmp_path):
    programs = {
        "fine": "import sys; print('words'); print('{\"given\": \"' + sys.argv[2] + '\"}')",
        "broken": "raise RuntimeError('no memory')",
        "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "slow": "import time; time.sleep(60)",
    }
    found = {}
    for name, program in programs.items():
        path = tmp_path / f"{name}.py"
        path.write_text(program)
        found[name] = gpu.run_apart("labels", 0.5 if name == "slow" else 60, program=str(path))
    assert found["fine"] == {"given": "labels"}
    assert found["broken"]["error"].endswith("RuntimeError: no memory")
    assert "code -9" in found["killed"]["error"]
    assert "longer than" in found["slow"]["error"]


@pytest.mark.slow
def test_a_section_runs_in_a_process_of_its_own(gpu):
    assert gpu.run_apart("labels", 300, "--dry-run")["seconds"]["16"]["cpu"] > 0


def test_without_a_gpu_only_the_dry_run_runs(gpu, capsys):
    if torch.cuda.is_available():
        pytest.skip("There is a GPU.")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--dry-run" in capsys.readouterr().err


def test_flops_are_those_that_torch_counts(gpu, tmp_path):
    """Of one sample without padding; torch counts the half of causal attention that is masked, too."""
    steps = gpu.Steps("tiny", 1, str(tmp_path))
    steps.model.set_attn_implementation("eager")
    batch, text = steps.batch, steps.vlm.config.text_config
    masked = 2.0 * text.num_hidden_layers * text.hidden_size * batch["input_ids"].shape[1] ** 2
    head = gpu.weights(steps.sugar.retrieval_head.modules_to_save["default"])
    adapters = gpu.weights(steps.vlm.model.language_model, adapters=True)
    tokens, slices = batch["input_ids"].shape[1], 3
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "slice_map")}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        steps.sugar.eval().get_retrieval_embeddings(**inputs)
    counted = counter.get_total_flops() - masked - 2 * head * slices - 2 * adapters * tokens
    assert counted == pytest.approx(gpu.flops(steps.vlm, batch, is_step=False))
    with FlopCounterMode(display=False) as counter:
        steps.joint()
    # before the first layer nothing needs a gradient: neither its input nor its keys
    first = steps.vlm.model.language_model.layers[0].self_attn
    spared = sum(gpu.weights(part) for part in (first.q_proj, first.k_proj, first.v_proj))
    spared += sum(part.lora_A["default"].weight.numel() for part in (first.q_proj, first.v_proj))
    counted = counter.get_total_flops() - 3 * masked - 6 * head * slices + 2 * spared * tokens
    counted += 2 * text.hidden_size * tokens**2
    # the products of labels and cosines are left out
    assert counted == pytest.approx(gpu.flops(steps.vlm, batch, is_step=True), rel=1e-3)
