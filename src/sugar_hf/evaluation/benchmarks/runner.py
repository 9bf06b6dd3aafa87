"""One task on one model, from data to a file with the result."""

import hashlib
import json
import platform
import re
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from ..._files import atomic_write
from ...model import SugarForConditionalGeneration, SugarProcessor
from ...model.checkpoint_sugar import read_config
from ..encoders import Encoder, open_encoder
from .sources import Source
from .tasks import Task

#: Fields of a result that are no figures.
FIELDS = ("n", "seed", "failed", "skipped", "settings", "submission", "server", "scored", "reason", "unjudged", "runs")
#: Characters of a part of a run's name; a file name has room for 255.
LONGEST = 80


def is_sugar(name: str) -> bool:
    """Whether a checkpoint is a Sugar model, or adapters on one."""
    return bool(read_config(name).model_type == "sugar")


def open_model(name: str, device: str | None = None, dtype: str | None = None, **options: Any) -> tuple[Any, Any]:
    """Load a Sugar model or any image-text-to-text model, with its processor.

    Args:
        name: Folder or Hub name.
        device: Where it runs; the accelerator if there is one.
        dtype: Data type of the weights; the checkpoint's when `None`.
        **options: Passed to `from_pretrained`, such as `attn_implementation`.

    Raises:
        ValueError: It is another kind of model.
    """
    options["dtype"] = "auto" if dtype is None else dtype
    if is_sugar(name):
        model: Any = SugarForConditionalGeneration.from_pretrained(name, **options)
        processor: Any = SugarProcessor.from_pretrained(name)
    else:
        kind = AutoConfig.from_pretrained(name).model_type
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, **options)
        except ValueError as error:
            raise ValueError(
                f"{name} ({kind}) is no image-text-to-text model, so it answers no questions. It may be a retriever: "
                "give it as --retriever, or run a retrieval task."
            ) from error
        processor = AutoProcessor.from_pretrained(name)
    if device is None:
        device = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    return model.to(device).eval(), processor


class Models:
    """Loads what the tasks need, each model once.

    Args:
        name: The model that is measured.
        retriever: Another model that retrieves for it; `None` if it does so itself, or nothing is retrieved.
        mode: Mode of the retriever, or of the model where it is none of ours; see `open_encoder`.
        device: See `open_model`.
        dtype: See `open_model`.
        **options: See `open_model`.
    """

    def __init__(
        self,
        name: str,
        *,
        retriever: str | None = None,
        mode: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        self.name, self.retriever, self.mode = name, retriever, mode
        self._where: dict[str, Any] = {"device": device, "dtype": dtype}
        self._options = options
        self._model: tuple[Any, Any] | None = None
        self._encoders: dict[str, Encoder] = {}

    def arguments(self, task: Task) -> dict[str, Any]:
        """What the task's evaluator is called with."""
        if task.kind == "embed" and not is_sugar(self.name):
            return {"model": self._encoder(self.name)}
        if self._model is None:
            self._model = open_model(self.name, **self._where, **self._options)
        model, processor = self._model
        arguments = {"model": model, "processor": processor}
        if task.kind == "both" and self.retriever is not None:
            arguments["encoder"] = self._encoder(self.retriever)
        return arguments

    def _encoder(self, name: str) -> Encoder:
        if name not in self._encoders:
            self._encoders[name] = open_encoder(name, self.mode, **self._where)
        return self._encoders[name]


def run_name(task: Task, source: Source, models: Models) -> str:
    """A file name that differs where runs do."""
    parts = [_slug(models.name)]
    if task.kind == "both" and models.retriever is not None:
        parts[0] += f"+{_slug(models.retriever)}"
    if models.mode is not None and (task.kind == "embed" or "+" in parts[0]):
        parts[0] += f"-{_slug(models.mode)}"
    parts += [_slug(source.split)] if source.split else []
    parts += [f"{_slug(key)}={_slug(value)}" for key, value in sorted(source.options.items())]
    parts += [f"seed={source.seed}"] if source.seed else []
    parts += [f"judge={_slug(source.judge.name)}"] if source.judge is not None else []
    parts += [f"first-{source.limit}"] if source.limit is not None else []
    return ".".join(parts)


def run_task(
    task: Task, source: Source, models: Models, folder: str | Path, *, name: str | None = None, batch_size: int = 8
) -> dict[str, Any]:
    """Measure a model on a task, and write the result.

    Args:
        task: The task.
        source: Its data.
        models: The models.
        folder: Where results are; `{folder}/{task}/{name}.json` is written, and the predictions beside it.
        name: The run's name; made of model, retriever, split, options and limit when `None`.
        batch_size: Samples in one forward pass.

    Returns:
        What was written: `task`, `run`, `model`, `retriever`, `primary_metric`, `metrics`, and what the evaluator
        says beside them.
    """
    name = name or run_name(task, source, models)
    path = Path(folder, task.name, f"{name}.json")
    evaluator = task.load(source)
    began = time.perf_counter()
    found = evaluator(**models.arguments(task), output=path.with_name(f"{name}.jsonl"), batch_size=batch_size)
    written = {
        "task": task.name,
        "title": task.title,
        "run": name,
        "model": models.name,
        "retriever": models.retriever if task.kind == "both" else None,
        "primary_metric": evaluator.primary_metric,
        "metrics": {key: value for key, value in found.items() if key not in FIELDS},
        **{key: found[key] for key in FIELDS if key in found},
        "limit": source.limit,
        "seconds": round(time.perf_counter() - began, 2),
        "versions": versions(),
    }
    write_result(path, written)
    return written


def versions() -> dict[str, str]:
    """What the result was made with."""
    names = ("sugar-hf", "torch", "transformers", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result atomically."""
    atomic_write(path, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _slug(name: str) -> str:
    """The last part of a name, as a file name has it; of a long one, the beginning and a digest."""
    slug = re.sub(r"[^A-Za-z0-9=+-]+", "-", name.rstrip("/").rsplit("/", 1)[-1]).strip("-") or "model"
    return slug if len(slug) <= LONGEST else f"{slug[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
