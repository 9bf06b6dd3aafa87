"""The lab's work as a list of stages: data, models, and what is measured of them."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

from sugar_hf.evaluation.benchmarks.runner import FIELDS, open_model, versions
from sugar_hf.evaluation.benchmarks.tasks import Evaluator
from sugar_hf.evaluation.encoders import open_encoder
from sugar_hf.picturebook import checkpoint

from .budget import Budget
from .mix import prepare_mix
from .model_rows import CLIP, ROWS, Row
from .row_training import base_facts, base_with_head, model_folder, row_facts, start_of, train_row
from .stage_files import agrees, is_whole, write_json
from .twins import Twin, all_twins

NO_RETRIEVAL = "no retrieval"
#: How models are measured that retrieve for themselves: as a twin has it, by the paper's average, and without.
OWN_SUFFIXES = ("average", NO_RETRIEVAL)
BATCH_SIZE = 48  # of measurements
#: What makes an evaluator of a twin's other rows, by suffix: see `VARIANTS` of `twins/knowledge.py`.
Variants = Mapping[str, tuple[str, str, Callable[[Budget], Evaluator]]]


def all_variants() -> Variants:
    """The other ways in which twins of knowledge are measured."""
    return import_module(".twins.knowledge_twins", __package__).VARIANTS


@dataclass(frozen=True)
class Stage:
    """A piece of work.

    Args:
        kind: `data`, `train` or `measure`.
        row: whose.
        seed: which seed.
        twin: what is measured.
        suffix: which other row of the twin, such as `image`; its own if empty.
        needs: names of the stages that come before it.
    """

    kind: str
    row: str = ""
    seed: int = 0
    twin: str = ""
    suffix: str = ""
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "/".join(str(part) for part in (self.kind, self.row, self.seed, self.twin, self.suffix) if part != "")


@dataclass(frozen=True)
class Lab:
    """What is run, and where. Other processes get it too, so the functions have to be ones of modules.

    Args:
        budget: sizes.
        work: folder of models, data and results.
        rows: the rows by name.
        twins: gives the twins by name.
        variants: gives the twins' other rows.
        kept: a file with measurements of other work folders, of which those that fit are not done again.
        bases: folders of models that rows start from, beside the shipped mini VLM.
    """

    budget: Budget
    work: Path
    rows: Mapping[str, Row] = field(default_factory=lambda: ROWS)
    twins: Callable[[], dict[str, Twin]] = all_twins
    variants: Callable[[], Variants] = all_variants
    kept: Path | None = None
    bases: tuple[Path, ...] = ()

    def seeds(self, row: Row) -> tuple[int, ...]:
        """The seeds of a row."""
        if not row.is_trained:
            return (0,)
        return self.budget.seeds[: row.seeds]

    def result_file(self, stage: Stage) -> Path:
        """Where the result of a measurement is."""
        name = f"{stage.twin}, {stage.suffix}" if stage.suffix else stage.twin
        return self.work / "results" / f"{stage.row}-{stage.seed}" / f"{name}.json"


def all_stages(lab: Lab, only: Sequence[str] = ()) -> list[Stage]:
    """Everything that is to be done, each stage after those that it needs.

    Args:
        lab: what is run.
        only: patterns `ROW/TWIN`, `ROW` or `*/TWIN` of what is to be measured; everything if empty. What that needs
            is done too.

    Raises:
        ValueError: a pattern fits nothing.
    """
    measured = [stage for row in lab.rows.values() for stage in _measurements(lab, row)]
    if only:
        patterns = [pattern if "/" in pattern else f"{pattern}/*" for pattern in only]
        for pattern in patterns:
            if not any(fnmatchcase(f"{stage.row}/{stage.twin}", pattern) for stage in measured):
                rows, twins = ", ".join(lab.rows), ", ".join(lab.twins())
                raise ValueError(f"--only {pattern}: there is no such measurement. Rows: {rows}. Twins: {twins}.")
        measured = [s for s in measured if any(fnmatchcase(f"{s.row}/{s.twin}", pattern) for pattern in patterns)]
    stages: dict[str, Stage] = {}
    for stage in measured:
        row = lab.rows[stage.row]
        before = []
        if row.is_trained:
            mix = Stage("data", row.data, stage.seed)
            before += [mix, Stage("train", row.name, stage.seed, needs=(mix.name,))]
        stages |= {each.name: each for each in (*before, stage)}
    return sorted(stages.values(), key=lambda stage: stage.seed)  # all rows have one seed before any has two


def _measurements(lab: Lab, row: Row) -> Iterator[Stage]:
    for twin in lab.twins().values():
        answers = row.is_trained and row.learns_text
        can = {"generate": row.generates, "loss": row.generates, "embed": row.retrieves, "both": answers}[twin.kind]
        if not can or not row.is_measured_on(twin):
            continue
        suffixes = [""]
        if twin.kind == "both":
            known = [suffix for name, suffix, _ in lab.variants().values() if name == twin.name]
            suffixes += [suffix for suffix in known if suffix in OWN_SUFFIXES or not row.retrieves]
        for seed in lab.seeds(row):
            needs = (f"train/{row.name}/{seed}",) if row.is_trained else ()
            yield from (Stage("measure", row.name, seed, twin.name, suffix, needs) for suffix in suffixes)


def facts_of(lab: Lab, stage: Stage) -> dict[str, Any]:
    """What a measurement depends on."""
    row = lab.rows[stage.row]
    model: Any = None if row.name == CLIP else row.base or base_facts()
    if row.is_trained:
        model = row_facts(row, stage.seed, lab.budget)
    return {"model": model, "budget": {name: size for name, size in asdict(lab.budget).items() if name != "seeds"}}


def measurements(lab: Lab) -> dict[str, dict[str, Any]]:
    """All results that there are, by the name of their stage: those of the work folder, and those that are kept.

    Kept ones that were made with other settings are left out.

    Raises:
        ValueError: a result of the work folder was made with other settings.
    """
    kept: dict[str, dict[str, Any]] = {}
    if lab.kept is not None and lab.kept.is_file():
        lines = [json.loads(line) for line in lab.kept.read_text(encoding="utf-8").splitlines()]
        kept = {line["stage"]: line for line in lines}
    found = {}
    for stage in all_stages(lab):
        if stage.kind != "measure":
            continue
        facts, path = facts_of(lab, stage), lab.result_file(stage)
        if agrees(path, facts, "facts"):
            found[stage.name] = {**json.loads(path.read_text(encoding="utf-8")), "stage": stage.name}
        elif stage.name in kept and kept[stage.name]["facts"] == json.loads(json.dumps(facts)):
            found[stage.name] = kept[stage.name]
    return found


def unfinished(lab: Lab, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that are left to do: measurements without result, and what they need that is not there.

    Raises:
        ValueError: something is there that was made with other settings.
    """
    left: list[Stage] = []
    needed: set[str] = set()
    measured = measurements(lab)
    for stage in reversed(stages):
        if stage.kind == "measure":
            done = stage.name in measured
        elif stage.kind == "train":
            row = lab.rows[stage.row]
            done = is_whole(model_folder(row, stage.seed, lab.work), row_facts(row, stage.seed, lab.budget))
            done = done or stage.name not in needed
        else:
            done = stage.name not in needed  # if they are there, they are found in no time
        if not done:
            left.append(stage)
            needed.update(stage.needs)
    return left[::-1]


def do_stage(lab: Lab, stage: Stage) -> None:
    """Do a piece of work; what it needs has been done."""
    if stage.kind == "data":
        prepare_mix(stage.row, lab.budget.rows, stage.seed, lab.work)
    elif stage.kind == "train":
        train_row(lab.rows[stage.row], stage.seed, lab.budget, lab.work, lab.bases)
    else:
        measure(lab, stage)


def measure(lab: Lab, stage: Stage) -> None:
    """Measure a row on a twin; the predictions are kept beside the result, so that a run that was stopped goes on."""
    row, twin, path = lab.rows[stage.row], lab.twins()[stage.twin], lab.result_file(stage)
    build, who = twin.build, row.name
    if stage.suffix:
        build = next(
            make for name, suffix, make in lab.variants().values() if (name, suffix) == (twin.name, stage.suffix)
        )
    arguments: dict[str, Any]
    if row.name == CLIP:
        arguments = {"model": open_encoder(checkpoint(CLIP))}
    elif not row.is_trained and twin.kind != "generate":
        found = base_with_head(stage.seed, start_of(row, lab.bases))
        arguments = dict(zip(("model", "processor"), found, strict=True))
    else:
        folder = model_folder(row, stage.seed, lab.work) if row.is_trained else start_of(row, lab.bases)
        arguments = dict(zip(("model", "processor"), open_model(str(folder)), strict=True))
    if stage.suffix == NO_RETRIEVAL:
        who += f", {NO_RETRIEVAL}"
    elif twin.kind == "both":
        if not row.retrieves:
            arguments["encoder"] = open_encoder(checkpoint(CLIP))
        who += f" + {'own' if row.retrieves else CLIP} {stage.suffix}".rstrip()
    measured = build(lab.budget)(**arguments, output=path.with_suffix(".jsonl"), batch_size=BATCH_SIZE)
    result = {
        "row": who,
        "seed": stage.seed,
        "twin": twin.name,
        "figures": {key: value for key, value in measured.items() if key not in FIELDS},
        "n": measured["n"],
        "failed": measured["failed"],
        "facts": facts_of(lab, stage),
        "budget": lab.budget.name,
        "command": f"python -m sugar_lab --budget {lab.budget.name} --only {row.name}/{twin.name}",
        "versions": {**versions(), "machine": platform.machine()},
    }
    write_json(path, result)
