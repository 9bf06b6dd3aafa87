"""Runs that are killed at a random moment go on as if they had not been. Real processes, real `kill -9`."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers.trainer_utils import get_last_checkpoint

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

SCRIPT = Path(__file__).with_name("killed_run.py")
PAUSE = 0.01
KILLS = 10
FILES = {"model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"}

pytestmark = pytest.mark.slow


def start(*command, processes: int = 1) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    launcher = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}"]
    return subprocess.Popen(
        [*launcher, str(SCRIPT), *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen, timeout: float = 180) -> tuple[str, str]:
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, err[-4000:]
    return out, err


def kill(process: subprocess.Popen) -> None:
    """As `kill -9`; the process must not have come to its end before."""
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err[-4000:]


def wait_for_step(process: subprocess.Popen, count: int) -> None:
    """Reads what a process says until it has done `count` steps of this life."""
    while count:
        line = process.stdout.readline()
        assert line, process.communicate()[1][-4000:]
        count -= line.startswith("step ")


def wait_for_save(process: subprocess.Popen, run: Path) -> None:
    """Waits until a checkpoint is being written."""
    unfinished = run / "_unfinished"
    while process.poll() is None and not any(unfinished.glob("*")):
        time.sleep(0.002)


def check_whole(checkpoint: str) -> int:
    """Loads all that a resume needs of a checkpoint; returns its step."""
    folder = Path(checkpoint)
    assert {path.name for path in folder.iterdir()} >= FILES
    state = json.loads((folder / "trainer_state.json").read_text())
    assert folder.name == f"checkpoint-{state['global_step']}"
    SugarForConditionalGeneration.from_pretrained(folder)
    SugarProcessor.from_pretrained(folder)
    optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
    assert all("exp_avg" in entry for entry in optimizer["state"].values())
    torch.load(folder / "scheduler.pt", weights_only=True)
    torch.load(folder / "rng_state.pth", weights_only=False)  # of numpy and Python too, and written by this test
    return state["global_step"]


def test_training_killed_ten_times_has_the_losses_of_the_uninterrupted_run(tmp_path):
    finish(start("train", tmp_path / "whole"))
    draw = random.Random(7)
    run = tmp_path / "run"
    in_a_save, steps = 0, []
    for number in range(KILLS):
        # weights of another seed: all that counts must come from the checkpoint
        process = start("train", run, "--pause", PAUSE, "--seed", number)
        wait_for_step(process, draw.randint(1, 2))
        if number % 2:
            wait_for_save(process, run)
            time.sleep(draw.uniform(0, 0.3))  # a save takes 0.4 seconds
        else:
            time.sleep(draw.uniform(0, 0.6))
        kill(process)
        in_a_save += any((run / "_unfinished").glob("*"))
        last = get_last_checkpoint(str(run))
        steps.append(0 if last is None else check_whole(last))
        assert sum(path.name.startswith("checkpoint-") for path in run.iterdir()) <= 3
    assert in_a_save >= 3, f"only {in_a_save} of {KILLS} kills came while a checkpoint was written"
    assert steps == sorted(steps)
    finish(start("train", run, "--seed", KILLS))
    assert not (run / "_unfinished").exists()
    ours, theirs = (json.loads((tmp_path / f"{name}-0.json").read_text()) for name in ("run", "whole"))
    assert [entry["step"] for entry in ours["log"]] == [entry["step"] for entry in theirs["log"]]
    assert len(ours["log"]) > 40
    assert ours == theirs


def test_teachers_killed_three_times_make_no_vector_twice(tmp_path):
    options = ["--options", json.dumps({"count": 24})]
    finish(start("cache", tmp_path / "whole", *options))
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["made"] == 24
    draw = random.Random(3)
    stored = 0
    for _ in range(3):
        process = start("cache", tmp_path / "run", "--pause", 0.1, *options)
        wait_for_step(process, draw.randint(5, 7))
        kill(process)
        before, stored = stored, len(list((tmp_path / "run" / "parts").glob("*.arrow")))
        assert stored > before
    finish(start("cache", tmp_path / "run", *options))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result == {"made": 24 - 4 * stored, "vectors": whole["vectors"]}


SPREAD = {
    "max_steps": 6,
    "structure_loss_scope": "rank",
    "gradient_accumulation_steps": 1,
    "head_warmup_steps": 0,
    "save_total_limit": None,
}


def results(tmp_path: Path, name: str) -> list[dict]:
    return [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_write_one_whole_checkpoint_and_resume(tmp_path):
    finish(start("train", tmp_path / "whole", "--options", json.dumps(SPREAD), processes=2))
    whole = results(tmp_path, "whole")
    names = {path.name for path in (tmp_path / "whole" / "checkpoint-3").iterdir()}
    assert names >= FILES - {"rng_state.pth"} | {"rng_state_0.pth", "rng_state_1.pth"}
    assert sorted(os.listdir(tmp_path / "whole")) == [f"checkpoint-{step}" for step in range(1, 7)]
    run = tmp_path / "run"
    run.mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(run / "checkpoint-3")
    finish(start("train", run, "--seed", 1, "--options", json.dumps(SPREAD), processes=2))
    assert results(tmp_path, "run") == whole
    assert whole[0]["weights"] == whole[1]["weights"]


def test_two_processes_agree_on_a_step_that_one_of_them_cannot_make(tmp_path):
    options = {**SPREAD, "bad": 3, "nonfinite_loss": "skip", "save_strategy": "no", "positions_per_sample": 0}
    finish(start("train", tmp_path / "skip", "--options", json.dumps(options), processes=2))
    ours, theirs = results(tmp_path, "skip")
    assert ours["skipped"] == theirs["skipped"] == 3  # in each of the three epochs one batch has the bad sample
    assert ours["weights"] == theirs["weights"]
    process = start(
        "train", tmp_path / "error", "--options", json.dumps({**options, "nonfinite_loss": "error"}), processes=2
    )
    _, err = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "FloatingPointError: Step" in err
    assert "vectors of 'bad' are not finite" in err
