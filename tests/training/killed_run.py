"""A training run, or the teachers' work on a data set, for tests that kill it: `python killed_run.py train FOLDER`.

Files are written slowly, so that a kill also comes while one is half there.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from tiny_teachers import save_tiny_teachers
from training_tools import document, make_dataset, make_rows, make_sugar, make_trainer
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from sugar_hf.data import to_sample
from sugar_hf.structure import TEACHER_COLUMNS, TripleTeacher

PARTS = 8  # in which a file is written


def write_slowly(pause: float) -> None:
    """Lets `torch.save` write its file in parts, and renames wait, each for `pause` seconds."""
    save, replace = torch.save, os.replace

    def slow_save(value, path, *rest, **kwargs):
        buffer = io.BytesIO()
        save(value, buffer, *rest, **kwargs)
        data = buffer.getvalue()
        with open(path, "wb") as file:
            for part in range(PARTS):
                file.write(data[len(data) * part // PARTS : len(data) * (part + 1) // PARTS])
                file.flush()
                time.sleep(pause)

    def slow_replace(*paths):
        time.sleep(pause)
        replace(*paths)
        time.sleep(pause)

    torch.save, os.replace = slow_save, slow_replace


class Report(TrainerCallback):
    """Prints the number of each step that is done, and leaves a moment for a kill before the checkpoint is written."""

    def __init__(self, pause: float):
        self.pause = pause

    def on_step_end(self, args, state, control, **kwargs):
        print(f"step {state.global_step}", flush=True)
        time.sleep(self.pause)


def digest(tensors) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(folder: Path, pause: float, seed: int, options: dict) -> None:
    """Trains to the end, from the last checkpoint if there is one; what was logged goes to `FOLDER-RANK.json`."""
    if pause:
        write_slowly(pause)
    rows = make_rows()
    if bad := options.pop("bad", None):
        rows[bad] = {**document(9, "tt"), "id": "bad"}
    dataset = make_dataset(make_sugar()[1], rows)
    if bad:
        broken = dataset.to_list()
        broken[bad]["teacher_text"][0][0] = float("nan")
        dataset = dataset.from_list(broken, features=dataset.features)
    settings = {
        "max_steps": 40,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "positions_per_sample": 2,
        "head_learning_rate": 5e-3,
        "head_warmup_steps": 5,
        "alpha_warmup_ratio": 0.5,
        "label_statistics_steps": 3,
    }
    trainer = make_trainer(
        folder, seed=seed, train_dataset=dataset, callbacks=[Report(pause)], **{**settings, **options}
    )
    trainer.train(resume_from_checkpoint=folder.is_dir() and get_last_checkpoint(str(folder)) is not None)
    names = ("step", "loss", "loss_lm", "loss_structure", "grad_norm", "label_spearman", "skipped_steps")
    result = {
        "log": [{name: entry[name] for name in names if name in entry} for entry in trainer.state.log_history],
        "weights": digest(trainer.model.parameters()),
        "skipped": trainer.skipped_steps,
    }
    (folder.parent / f"{folder.name}-{trainer.args.process_index}.json").write_text(json.dumps(result))


def cache(folder: Path, pause: float, count: int) -> None:
    """Caches the vectors of `count` rows in parts of four, and writes what they are and how many were made."""
    if not (folder / "teachers").exists():
        save_tiny_teachers(folder / "teachers")
    roles = {role: str(folder / "teachers" / role) for role in ("clip", "dino", "text")}
    teacher = TripleTeacher.from_pretrained(**roles, show_progress=False)
    _, processor = make_sugar()
    dataset = make_dataset(processor, [document(number, "tit") for number in range(count)], cached=False)
    embed, made = teacher._embed, []

    def watch(samples, *rest, **kwargs):
        made.extend(samples)
        print(f"step {len(made)}", flush=True)
        time.sleep(pause)
        return embed(samples, *rest, **kwargs)

    teacher._embed = watch
    cached = teacher.cache(
        dataset,
        lambda row: processor.slices(to_sample(row)),
        batch_size=1,
        part_rows=4,
        cache_dir=folder / "parts",
    )
    vectors = json.dumps([cached[name][:] for name in TEACHER_COLUMNS])
    result = {"made": len(made), "vectors": hashlib.sha256(vectors.encode()).hexdigest()}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["train", "cache"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={})
    command = parser.parse_args()
    if command.what == "train":
        train(command.folder, command.pause, command.seed, command.options)
    else:
        cache(command.folder, command.pause, **command.options)
