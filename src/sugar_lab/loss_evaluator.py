"""The language-model loss of answers, one by one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from sugar_hf.evaluation.jsonl_file import ResultLines
from sugar_hf.training import SugarCollator

FIGURE = "loss"


class LossEvaluator:
    """Holds rows of training's kind, and measures how well a model foresees their answers.

    Args:
        name: the task's name.
        rows: rows with `id`, `messages` and `images`, each with a turn of the assistant.
    """

    def __init__(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.name, self.rows, self.primary_metric, self.seed = name, rows, FIGURE, 0

    @torch.no_grad()
    def __call__(
        self, model: Any, processor: Any, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a Sugar model.

        Args:
            model: the model.
            processor: the model's.
            output: a file of JSON lines, written anew: what was run, then the `id` and the `loss` of each row, the
                mean over the tokens of its answer.
            batch_size: rows in one forward pass.

        Returns:
            `loss`, the mean over the rows; `n`, `seed`, `failed` (always empty) and `settings`.
        """
        collate, losses = SugarCollator(processor), []
        settings = {"task": self.name, "n": len(self.rows)}
        with ResultLines(output, settings) as lines:
            for start in tqdm(range(0, len(self.rows), batch_size), desc=self.name, unit="batches", delay=2):
                rows = self.rows[start : start + batch_size]
                batch = collate(rows)
                labels = batch["labels"][:, 1:].to(model.device)
                inputs = {
                    key: value.to(model.device)
                    for key, value in batch.items()
                    if isinstance(value, torch.Tensor) and key not in ("labels", "slice_map")
                }
                logits = model(**inputs, use_cache=False).logits[:, :-1].float()
                found = cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
                found = found / (labels != -100).sum(1)
                for row, loss in zip(rows, found.tolist(), strict=True):
                    lines.write({"id": row["id"], FIGURE: loss})
                    losses.append(loss)
        return {FIGURE: sum(losses) / len(losses), "n": len(losses), "seed": 0, "failed": [], "settings": settings}
