"""What decides: rows and twins of the budget `evidence`, with the outcome of each item kept.

Tasks at chance or saturated in this world are left out; `MOVED` says why, and the study on real documents has them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from sugar_hf._files import atomic_write

from .intervals import UNTRAINED
from .item_outcomes import item_outcomes
from .model_rows import BASE, CLIP, DEFAULT, KERNELS, NO_GIST, ROWS, WHITENED, Row
from .outcomes import Outcome, read_outcomes, write_outcomes
from .stages import Lab, Stage, all_stages, measurements
from .twins import Twin, all_twins
from .twins.loss_twins import TWINS as LOSS

STUDY = "lab"
OUTCOMES, MEASURED = "outcomes.parquet", "evidence.jsonl"
TWINS = ("coco", "vist", "winoground", "vqav2", "gqa", "textvqa", "llava-w", "mm-vet", *LOSS)
#: Answers that are neither at chance nor saturated.
ANSWERS = ("vqav2", "gqa", "textvqa", "llava-w", "mm-vet")
#: Twins that tell nothing here, by the reason.
MOVED: Mapping[str, tuple[str, ...]] = {
    "the base and all rows are at chance: a language model of two million weights did not learn to compare options, "
    "or to copy a fact from its prompt": (
        *("scienceqa", "mmbench", "mmvp", "mmvp-embed", "order", "webqa-position"),
        *("fvqa", "rag-vizwiz", "rag-scienceqa"),
    ),
    "all rows are nearly right always": ("pope",),
}
#: The row that retrieves best, and how it is trained.
WINNER = "kl-0.15"
WON: Mapping[str, Any] = {"objective": "kl", "alpha": 1.2, "temperature": 0.15}
_NCE: Mapping[str, Any] = {"objective": "infonce", "alpha": 0.3}
_KL: Mapping[str, Any] = {"objective": "kl"}
_DEFAULT = ROWS[DEFAULT].settings
#: What the design asks more than three seeds for: the default, what it is compared with, and its labels' rivals.
MOST = ("lm-only", DEFAULT, "infonce-0.2-whitened", f"{DEFAULT}-mean", f"{DEFAULT}-gak")


def evidence_rows() -> dict[str, Row]:
    """The rows. Those of `MOST` have eight seeds, the other decisive ones three; see `evidence_tables.ROWS`.

    The weights of `kl` and `infonce` give all temperatures the same gradient at the start.
    """
    decisive = (
        *(ROWS[name] for name in ("lm-only", "infonce", "mse", "kl", "sugar", DEFAULT)),
        Row("infonce-0.2-whitened", {**_NCE, "alpha": 1.0, "temperature": 0.2, **WHITENED}),
        Row("infonce-0.2", {**_NCE, "alpha": 1.0, "temperature": 0.2}),
        Row(WINNER, WON),
        Row("kl-0.3", {**_KL, "alpha": 5.0, "temperature": 0.3}),
        Row("kl-0.3-text-mean", {**_KL, "alpha": 5.0, "temperature": 0.3, "text_pooling": "mean"}),
        *(Row(f"{DEFAULT}-{kernel}", {**_DEFAULT, **settings}) for kernel, settings in KERNELS.items()),
        Row(f"{DEFAULT}-lora", _DEFAULT, lora=True),
        Row(f"{DEFAULT}-head", _DEFAULT, head_alone=True),
    )
    looked_at = (
        *(ROWS[name] for name in (BASE, CLIP)),
        Row("kl-a0.1", {**_KL, "alpha": 0.1}),
        Row(f"{WINNER}-pairs", WON, data="paired"),
        Row(f"{DEFAULT}-mse", {**_DEFAULT, "mse_weight": 1.0}),
        Row(f"{DEFAULT}-lifted", {**_DEFAULT, "positive_share": 0.1}),
        Row("no-gist", base=NO_GIST, is_trained=False),
        Row("no-gist-infonce", _NCE, base=NO_GIST),
        Row(f"no-gist-{WINNER}", WON, base=NO_GIST),
    )
    found = [replace(row, measured="all", seeds=8 if row.name in MOST else 3) for row in decisive]
    found += [replace(row, measured="all", seeds=1) for row in looked_at]
    order = [BASE, CLIP, *(row.name for row in found)]
    return {row.name: row for row in sorted(found, key=lambda row: order.index(row.name))}


def evidence_twins() -> dict[str, Twin]:
    """The twins that tell rows apart."""
    known = {**all_twins(), **LOSS}
    return {name: known[name] for name in TWINS}


def write_evidence(lab: Lab, output: Path) -> list[Path]:
    """Write all measurements and the outcomes of their items; outcomes of kept ones stay as they are.

    Args:
        lab: what was run.
        output: where the files go.

    Returns:
        The files.

    Raises:
        ValueError: a kept measurement has no outcomes in the file of before.
    """
    found = measurements(lab)
    path = output / OUTCOMES
    before = read_outcomes(path) if path.is_file() else None
    outcomes: list[Any] = []
    evaluators: dict[str, Any] = {}
    for stage in all_stages(lab):
        if stage.name not in found:
            continue
        if lab.result_file(stage).is_file():
            if stage.twin not in evaluators:
                evaluators[stage.twin] = lab.twins()[stage.twin].build(lab.budget)
            outcomes += _outcomes(lab, stage, evaluators[stage.twin])
            continue
        kept = None
        if before is not None:
            ours = pc.and_(pc.equal(before["row"], stage.row), pc.equal(before["seed"], _seed(lab, stage)))
            task = before["task"]
            ours = pc.and_(ours, pc.or_(pc.equal(task, stage.twin), pc.starts_with(task, f"{stage.twin} ")))
            kept = before.filter(ours)
        if kept is None or not kept.num_rows:
            raise ValueError(f"{path} has no outcomes of {stage.name}: remove its line from {MEASURED}, and run it.")
        outcomes += [tuple(line.values()) for line in kept.to_pylist()]
    lines = [json.dumps(result, ensure_ascii=False, sort_keys=True) for result in found.values()]
    atomic_write(output / MEASURED, "\n".join(lines) + "\n")
    return [output / MEASURED, write_outcomes(path, outcomes)]


def _seed(lab: Lab, stage: Stage) -> int:
    return stage.seed if lab.rows[stage.row].is_trained else UNTRAINED


def _outcomes(lab: Lab, stage: Stage, evaluator: Any) -> Iterator[Outcome]:
    twin, path = lab.twins()[stage.twin], lab.result_file(stage).with_suffix(".jsonl")
    for task, item, metric, value in item_outcomes(twin, evaluator, path):
        yield Outcome(STUDY, stage.row, _seed(lab, stage), task, item, metric, value)
