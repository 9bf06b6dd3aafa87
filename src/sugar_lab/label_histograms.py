"""How the labels of pairs are spread, kernel by kernel."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sugar_hf.structure import StructureLossConfig, block_means, features_from_columns, label_matrix
from sugar_hf.training.structure_term import draw_slice_ends

#: Rows whose labels differ from each other's.
LABELLED = ("mse", "aligned", "gak", "mean", "clip-only", "centring")
EDGES = np.linspace(-1, 1, 81)
BATCH, BATCHES, ENDS = 24, 20, 4


def label_histograms(rows: Dataset, configs: Mapping[str, StructureLossConfig]) -> dict[str, dict[str, list[Any]]]:
    """Histograms of the labels M^l (eq. 2 to 4) of pairs of different slice ends in batches as training has them.

    Args:
        rows: training rows with the teachers' vectors; the first 480 are looked at, 24 in a batch.
        configs: the labels' settings, by the name of a row.

    Returns:
        For each name `bins`, 81 edges from -1 to 1, and `counts`, 80 numbers of pairs.
    """
    found: dict[str, dict[str, list[Any]]] = {}
    for name, config in configs.items():
        if config.centring:
            config = replace(config, block_means=block_means(rows, config.teachers))
        counts = np.zeros(len(EDGES) - 1, np.int64)
        for start in range(0, min(len(rows), BATCH * BATCHES), BATCH):
            features = features_from_columns(list(rows.select(range(start, min(start + BATCH, len(rows))))))
            lengths = features.lengths.tolist()
            ends = draw_slice_ends(lengths, list(range(len(lengths))), ENDS, seed=0, step=start)
            labels = label_matrix(features, ends, config)
            above = torch.triu(torch.ones_like(labels, dtype=torch.bool), diagonal=1)
            counts += np.histogram(labels[above].clamp(-1, 1).numpy(), EDGES)[0]
        found[name] = {"bins": [round(float(edge), 4) for edge in EDGES], "counts": counts.tolist()}
    return found
