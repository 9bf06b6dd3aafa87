"""What labels of pairs follow, the lengths of two prefixes or their content: `python -m sugar_lab.label_content`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from datasets import Dataset
from scipy.stats import spearmanr

from sugar_hf.structure import SliceFeatures, StructureLossConfig, features_from_columns, label_matrix
from sugar_hf.training.structure_term import draw_slice_ends

from .model_rows import KERNELS

CONFIGS: Mapping[str, StructureLossConfig] = {
    "calibrated": StructureLossConfig(),
    **{name: StructureLossConfig(**settings) for name, settings in KERNELS.items()},
}
BATCH, BATCHES, ENDS = 48, 12, 4


def label_content(batches: Iterable[SliceFeatures]) -> dict[str, dict[str, float]]:
    """Rank correlations of the labels of different samples' slice ends, by kernel.

    Args:
        batches: teachers' vectors of samples; of each four slice ends are drawn, as in training.

    Returns:
        Spearman's rho with the `length difference`, in slices, and with the `mean similarity` of all pairs of slices.
    """
    labels: dict[str, list[np.ndarray]] = {name: [] for name in CONFIGS}
    differences: list[np.ndarray] = []
    for step, features in enumerate(batches):
        lengths = features.lengths.tolist()
        ends = draw_slice_ends(lengths, list(range(len(lengths))), ENDS, seed=0, step=step)
        samples, last = ends.numpy().T
        pairs = np.triu(samples[:, None] != samples, 1)
        differences.append(np.abs(last[:, None] - last)[pairs])
        for name, config in CONFIGS.items():
            labels[name].append(label_matrix(features, ends, config).numpy()[pairs])
    by_kernel = {name: np.concatenate(parts) for name, parts in labels.items()}
    apart = np.concatenate(differences)
    return {
        name: {
            "length difference": round(float(spearmanr(found, apart).statistic), 2),
            "mean similarity": round(float(spearmanr(found, by_kernel["mean"]).statistic), 2),
        }
        for name, found in by_kernel.items()
    }


def random_batches(count: int) -> Iterator[list[int]]:
    """Yield batches of numbers below `count`, the same each time."""
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        yield sorted(rng.choice(count, min(BATCH, count), replace=False).tolist())


def of_rows(rows: Dataset) -> dict[str, dict[str, float]]:
    """The correlations for rows with the teachers' vectors in columns."""
    return label_content(features_from_columns(list(rows.select(batch))) for batch in random_batches(len(rows)))


def main(work: Annotated[Path, typer.Option(help="The lab's folder.")] = Path("runs/lab-evidence")) -> None:
    """Print the correlations for the training data of the drawn world."""
    from .budget import EVIDENCE
    from .mix import prepare_mix

    typer.echo(json.dumps(of_rows(prepare_mix("all", EVIDENCE.rows, 0, work)), indent=2))


if __name__ == "__main__":
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(main)
    app(prog_name="python -m sugar_lab.label_content")
