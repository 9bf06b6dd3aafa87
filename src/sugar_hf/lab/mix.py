"""The data that rows are trained on: documents (discriminative) and chats (generative), as the paper mixes them."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from ..data import FEATURES, to_sample
from ..model import SugarProcessor
from ..picturebook import checkpoint, load, mini_teachers
from ..picturebook.exercises import all_exercises
from ..structure import TripleTeacher
from .whole import is_whole, mark_whole

PARTS = ("all", "generative", "discriminative")
_TURNS = ("question", "describe")
_PLAIN = 5  # one question in so many stays what the picturebook has, the others become exercises


def training_rows(part: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Draw training rows in the common schema.

    Half of them are documents: stories, processes, captions, and the same scenes told in words and shown in pictures,
    which stand next to each other, so that they meet in a batch. The others are chats: exercises of all kinds, in
    turn, and the picturebook's own questions and descriptions. In any 12 successive rows, both halves have 6.

    Args:
        part: `all`, or one half alone: `generative` or `discriminative`.
        size: how many rows, whatever the part is.
        seed: another seed gives other rows.

    Raises:
        ValueError: for another part.
    """
    if part not in PARTS:
        raise ValueError(f"no part {part!r} of the training data; choose one of {', '.join(PARTS)}")
    # each half is half of the whole; so is a half of any twelve, but for the last ones
    drawn = load("train", size=size if part == "all" else 2 * size + 12, seed=seed)
    exercises = _exercises(size, seed)
    rows = []
    for row in drawn:
        is_chat = row["kind"] in _TURNS
        if part != "all" and is_chat != (part == "generative"):
            continue
        if row["kind"] == "question" and int(row["id"].rpartition("-")[2]) % _PLAIN:
            row = next(exercises)
        rows.append({name: row[name] for name in FEATURES})
    return rows[:size]


def _exercises(size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Exercises of all kinds in turn."""
    draws = all_exercises()
    for number in range(size):
        for kind, draw in draws.items():
            exercise = draw(random.Random(f"mix/{kind}/{seed}/{number}"), "train")
            yield {"id": f"train-{kind}-{seed}-{number}", "source": "picturebook", **exercise.row()}


def mix_folder(part: str, size: int, seed: int, work: Path) -> Path:
    """Where training rows are kept."""
    return work / "mix" / f"{part}-{size}-{seed}"


def prepare_mix(part: str, size: int, seed: int, work: Path) -> Dataset:
    """The training rows with the teachers' vectors, made once and kept in `work`.

    Args:
        part: see `training_rows`.
        size: see `training_rows`.
        seed: see `training_rows`.
        work: the lab's folder.
    """
    folder = mix_folder(part, size, seed, work)
    names = mini_teachers()
    teacher = TripleTeacher.from_pretrained(names["clip"], names["dino"], names["text"])
    facts = {"teachers": teacher.fingerprint, "exercises": sorted(all_exercises())}
    if is_whole(folder, facts):
        return load_from_disk(str(folder))
    processor = SugarProcessor.from_pretrained(checkpoint("mini-vlm"))
    teacher.show_progress = False
    rows = Dataset.from_list(training_rows(part, size, seed), features=FEATURES)
    cached = teacher.cache(rows, slices=lambda row: processor.slices(to_sample(row)), cache_dir=work / "teachers")
    cached.save_to_disk(str(folder))
    mark_whole(folder, facts)
    return load_from_disk(str(folder))
