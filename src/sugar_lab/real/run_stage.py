"""Which stage of the study does what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .head_rows import chosen, head_rows, label_rows, longer_rows, longest_rows, widened
from .stages_asked import measure_answers, measure_asked, measure_curve
from .stages_real import (
    JOINT_SEEDS,
    LONGER,
    LONGEST,
    LONGEST_SEEDS,
    LONGEST_SIZES,
    make_models,
    measure_heads,
    measure_hybrid,
    measure_joint,
    measure_labels,
)
from .study import Study

WIDENED_SEEDS = 3  # of whitened heads; the others have one


def do_stage(
    study: Study, name: str, *, only: Sequence[str], seeds: Sequence[int], output: Path, part: int, parts: int
) -> None:
    """Do a stage; those before it have been done."""
    if name == "models":
        make_models(study)
    elif name == "states":
        study.make_states(part=part, parts=parts)
    elif name == "heads":
        measure_heads(study, {seed: chosen() if seed else head_rows() for seed in seeds}, output, name)
    elif name == "widened":
        whitened = [row for row in widened() if "whitened" in row.name]
        more = {seed: whitened for seed in seeds if 0 < seed < WIDENED_SEEDS}
        measure_heads(study, {0: widened(), **more}, output, name)
    elif name == "labels":
        study.make_states(("test",), part, parts, "sections")
        measure_labels(study, dict.fromkeys(seeds, label_rows()), output, name)
    elif name == "hybrid":
        measure_hybrid(study, seeds, output)
    elif name == "joint":
        measure_joint(study, [seed for seed in seeds if seed < JOINT_SEEDS], only, output)
    elif name == "longer":
        measure_joint(study, [0], only, output, longer_rows(), LONGER, name)
    elif name == "longest":
        longest = [seed for seed in seeds if seed < LONGEST_SEEDS]
        measure_joint(study, longest, only, output, longest_rows(), LONGEST, name, LONGEST_SIZES)
    elif name == "answers":
        measure_answers(study, output)
    elif name == "asked":
        measure_asked(study, [seed for seed in seeds if seed < JOINT_SEEDS], output)
    elif name == "curve":
        measure_curve(study, [seed for seed in seeds if seed < JOINT_SEEDS], output)
