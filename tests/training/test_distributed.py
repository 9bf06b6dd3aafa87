"""Two and three processes give what one gives with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import torch
from safetensors.torch import load_file
from training_tools import make_dataset, make_sugar

from sugar_hf.structure import SliceFeatures, label_matrix, structure_loss
from sugar_hf.training import SugarCollator, draw_slice_ends

WORKER = Path(distributed_worker.__file__)


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def processes(request, tmp_path_factory):
    """Number of processes and the folder of what they found. Three of them run fewer scenarios."""
    folder = tmp_path_factory.mktemp(f"processes-{request.param}")
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={request.param}"]
    command += ["--standalone", str(WORKER), str(folder)]
    paths = os.pathsep.join(filter(None, [str(WORKER.parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return request.param, folder, done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process finds, by scenario."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: distributed_worker.train(folder, name, 1) for name in distributed_worker.SCENARIOS}


def results(folder):
    return json.loads((folder / "results.json").read_text())


def assert_equal(found, expected):
    """Equal to 1e-6 of the largest entry of a weight's gradient (or of 1), which float32 cannot pass by far."""
    assert found.keys() == expected.keys()
    for weight, gradient in found.items():
        scale = max(1.0, expected[weight].abs().max().item())
        error = (gradient - expected[weight]).abs().max().item() / scale
        assert error <= 1e-6, f"{weight}: {error}"


def test_gradients_and_losses_are_those_of_one_process(processes, alone, subtests):
    world_size, folder, _ = processes
    for name in distributed_worker.scenarios(world_size):
        with subtests.test(name):
            check_scenario(folder, name, *alone[name])


def check_scenario(folder, name, expected, logged):
    assert_equal(load_file(folder / f"{name}.safetensors"), expected)
    both = results(folder)[name]
    assert len(both["log"]) == 2
    for ours, theirs in zip(both["log"], logged["log"], strict=True):
        for key in {"loss", "loss_lm", "loss_structure", "grad_norm", "temperature"} & theirs.keys():
            assert ours[key] == pytest.approx(theirs[key], rel=1e-4), key
    for key in {"eval_loss", "eval_loss_lm", "eval_loss_structure"} & logged["evaluated"].keys():
        assert both["evaluated"][key] == pytest.approx(logged["evaluated"][key], rel=1e-3), key
    for key in ("recall@1", "recall@2", "recall@3", "mrr", "ndcg@3"):
        key = f"eval_retrieval_{key}"
        assert both["evaluated"][key] == pytest.approx(logged["evaluated"][key], abs=1e-6), key


def test_processes_have_unequal_numbers_of_ends(processes):
    world_size, _, _ = processes
    _, processor = make_sugar()
    share = distributed_worker.GLOBAL_BATCH // world_size
    lengths = [len(row["teacher_is_image"]) for row in make_dataset(processor, distributed_worker.rows())]
    counts = [sum(lengths[start : start + share]) for start in range(0, distributed_worker.GLOBAL_BATCH, share)]
    assert len(counts) == world_size
    assert len(set(counts)) > 1


def test_mini_batches_are_reduced_once(processes):
    _, folder, _ = processes
    found = results(folder)
    assert found["reductions_two_pass"] == found["reductions_plain"] > 0


def test_pairs_of_one_process_alone_are_an_explicit_option(processes):
    world_size, folder, stderr = processes
    assert "structure_loss_scope='rank'" in stderr
    model, processor = make_sugar()
    collate = SugarCollator(processor)
    rows = make_dataset(processor, distributed_worker.rows()).to_list()
    share = distributed_worker.GLOBAL_BATCH // world_size
    losses = []
    for start in range(0, distributed_worker.GLOBAL_BATCH, share):
        batch = collate(rows[start : start + share])
        features, keys = SliceFeatures(**batch.pop("structure_features")), batch.pop("sample_keys")
        ends = draw_slice_ends(features.lengths.tolist(), keys.tolist(), 4, seed=3, step=0)
        with torch.no_grad():
            embeddings = model(**batch).retrieval_embeds[ends[:, 0], ends[:, 1]]
        losses.append(structure_loss(embeddings, label_matrix(features, ends)).item())
    found = results(folder)
    assert found["rank"]["log"][0]["loss_structure"] == pytest.approx(sum(losses) / world_size, rel=1e-4)
    assert found["rank"]["log"][0]["loss_structure"] != pytest.approx(
        found["plain"]["log"][0]["loss_structure"], rel=1e-4
    )


def test_sharded_weights_have_the_same_gradients(processes):
    _, folder, _ = processes
    expected, value = distributed_worker.sharded_gradients(1, 0)
    assert_equal(load_file(folder / "sharded.safetensors"), expected)
    assert results(folder)["sharded"] == pytest.approx(value, rel=1e-5)
