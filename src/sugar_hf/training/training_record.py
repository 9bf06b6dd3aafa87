"""What a model card says of a training: data, arguments, losses, versions, hardware, emissions, evaluations."""

import csv
import io
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import yaml_dump
from PIL import Image
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import has_length

from ..model.model_card import in_code, in_line, is_hub_name, table
from ..structure import TEACHER_COLUMNS
from .guards import adapter_configs

EXAMPLES = 3
MAX_CHARACTERS = 200  # of a text of an example
MAX_ROWS = 20  # of the table of losses
EVAL_RESULTS = ".eval_results"
PACKAGES = ("sugar-hf", "transformers", "torch", "datasets", "accelerate", "peft", "tokenizers")
# Where a run lies, whose it is and how it is watched: nothing that was learnt depends on it.
_PRIVATE = re.compile(
    r"^(hub_|logging_|push_to_hub|report_to|save_|disable_tqdm|log_|trackio_|accelerator_config|dataloader_|use_cpu)"
    r"|_dir$|^(run_name|project|local_rank|debug)$|^do_"
)
_TIMES = ("_runtime", "_per_second", "_compilation_time")
_NO_FIGURES = ("n", "seed", "epoch")
_DATA_SET = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@?([0-9a-f]{40})?")


@dataclass(frozen=True)
class Evaluation:
    """Figures of a model on a data set.

    Args:
        name: The data set: its Hub name (`user/name`), or another.
        task: What was measured.
        figures: The numbers by name.
        primary: The name of the one to look at.
        notes: How it was measured.
    """

    name: str
    task: str
    figures: dict[str, float]
    primary: str
    notes: str = ""

    @classmethod
    def of(cls, name: str, result: Mapping[str, Any]) -> "Evaluation":
        """Take what an evaluator returns, what `sugar-hf evaluate` writes, or plain numbers by name.

        Raises:
            ValueError: There is no number in it.
        """
        found = result.get("metrics", result)
        figures = {
            key: value
            for key, value in found.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and key not in _NO_FIGURES
        }
        if not figures:
            raise ValueError(f"results[{name!r}] has no numbers: give what an evaluator returns, or numbers by name.")
        settings = result.get("settings")
        task = result.get("task") or (settings.get("task") if isinstance(settings, Mapping) else None) or "default"
        primary = result.get("primary_metric") or next(iter(figures))
        notes = f"n = {result['n']}" if isinstance(result.get("n"), int) else ""
        return cls(name, str(task), figures, primary, notes)

    def entries(self) -> list[EvalResult]:
        """Return the results as they stand in the metadata of a card (`model-index`)."""
        kind = self.name if is_hub_name(self.name) else "custom"
        return [
            EvalResult(
                task_type="image-text-to-text",
                task_name=self.task,
                dataset_type=kind,
                dataset_name=self.name,
                metric_type=re.sub(r"\W+", "_", name).strip("_").lower(),
                metric_name=name,
                metric_value=value,
            )
            for name, value in self.figures.items()
        ]


def write_evaluations(evaluations: Sequence[Evaluation], folder: Path) -> None:
    """Write `.eval_results/*.yaml`, from which the Hub makes leaderboards: the primary figure of each benchmark.

    Only data sets of the Hub have leaderboards; results on others stand in the card alone.
    """
    for each in evaluations:
        if not is_hub_name(each.name):
            continue
        entry = EvalResultEntry(each.name, each.task, each.figures[each.primary], notes=each.notes or None)
        file = folder / EVAL_RESULTS / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', f'{each.name}_{each.task}')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml_dump(eval_result_entries_to_yaml([entry])), encoding="utf-8")


def own_evaluation(trainer: Trainer) -> Evaluation | None:
    """Return what the trainer's own evaluations last measured, without times, losses and label statistics."""
    found: dict[str, float] = {}
    for entry in trainer.state.log_history:
        found |= {
            key.removeprefix("eval_"): float(value)
            for key, value in entry.items()
            if key.startswith("eval_")
            and not key.endswith(_TIMES)
            and not re.search(r"_loss(_|$)|_label_|_skipped_", key)
            and isinstance(value, int | float)
        }
    name = _hub_name(trainer.eval_dataset) or "evaluation set"
    return Evaluation(name, "evaluation", found, next(iter(found))) if found else None


def results_table(evaluations: Sequence[Evaluation]) -> str | None:
    """Return the results as a table in Markdown; `None` if there are none."""
    rows = [(each.name, name, value) for each in evaluations for name, value in each.figures.items()]
    return table(("Data", "Metric", "Value"), rows) if rows else None


def training_record(trainer: Trainer) -> dict[str, Any]:
    """Return what the card's template says of a training, with all texts ready to stand in Markdown.

    Nothing in it tells of this machine: no folder, no name of a user, no secret.
    """
    return {
        "datasets": _datasets(trainer),
        "arguments": changed_arguments(trainer.args),
        "arguments_class": type(trainer.args).__name__,
        "adapters": _adapters(trainer),
        "losses": losses_table(trainer.state.log_history),
        "environment": _environment(trainer),
        "emissions": _said(read_emissions(Path(trainer.args.output_dir))),
    }


def dataset_names(trainer: Trainer) -> list[str]:
    """Return the Hub names of the data sets that were trained on."""
    return [name for name in (_hub_name(trainer.train_dataset),) if name]


# --- data


def _datasets(trainer: Trainer) -> list[dict[str, Any]]:
    evaluated = trainer.eval_dataset
    named = evaluated if isinstance(evaluated, Mapping) else {"": evaluated}
    data = {"Training data": trainer.train_dataset}
    data |= {f"Evaluation data {in_line(name)}".strip(): each for name, each in named.items()}
    return [
        {
            "title": title,
            "name": _name(each),
            "size": f"{len(each):,} samples" if has_length(each) else "streamed",
            # a stream may be shuffled or far away: its first rows may cost what its first thousand do
            "examples": [example(row) for row in islice(_rows(each), EXAMPLES)] if has_length(each) else [],
        }
        for title, each in data.items()
        if each is not None
    ]


def _rows(dataset: Any) -> Iterable[Mapping[str, Any]]:
    if isinstance(dataset, Dataset):
        kept = [name for name in dataset.column_names if name not in TEACHER_COLUMNS]
        return dataset.select_columns(kept)
    return (row for row in dataset if isinstance(row, Mapping))


def _hub_name(dataset: Any) -> str | None:
    """The Hub name of a data set, by the address that its files came from."""
    if not isinstance(dataset, Dataset):
        return None
    for address in dataset.info.download_checksums or {}:
        if match := _DATA_SET.match(str(address)):
            return match[1]
    return None


def _name(dataset: Any) -> str:
    name = _hub_name(dataset)
    if name:
        return f"[{in_code(name)}](https://huggingface.co/datasets/{in_code(name)})"
    if isinstance(dataset, Dataset) and "source" in dataset.column_names:
        sources = dict.fromkeys(Path(str(source)).name for source in dataset.with_format(None)["source"][:1000])
        shown = [f"`{in_code(source)}`" for source in islice(sources, 5)]
        return ", ".join(shown) + (" and others" if len(sources) > 5 else "")
    return "A data set without a name"


def example(row: Mapping[str, Any]) -> str:
    """Describe a row in a line of Markdown: its texts, shortened, and its images by their size.

    >>> content = [{"type": "text", "text": "A <b>cat</b>."}, {"type": "image", "text": None}]
    >>> example({"messages": [{"role": "user", "content": content}], "images": [Image.new("RGB", (4, 3))]})
    'user: "A &lt;b>cat&lt;/b>." (image of 4 × 3)'
    """
    images = iter(row.get("images") or ())
    if not isinstance(row.get("messages"), list):
        columns = {key: value for key, value in row.items() if key not in ("id", "source") and value is not None}
        return "; ".join(f"{in_line(key)}: {_described(value)}" for key, value in columns.items())
    turns = []
    for message in row["messages"]:
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or ()
        said = [
            _image_size(next(images, None)) if part.get("type") == "image" else _described(part.get("text"))
            for part in parts
        ]
        turns.append(f"{in_line(message.get('role'))}: {' '.join(said)}")
    return "; ".join(turns)


def _described(value: Any) -> str:
    if isinstance(value, str):
        text = value if len(value) <= MAX_CHARACTERS else value[:MAX_CHARACTERS].rstrip() + " …"
        return f'"{_quoted(text)}"'
    if isinstance(value, Image.Image) or (isinstance(value, Mapping) and {"bytes", "path"} & value.keys()):
        return _image_size(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_described(each) for each in value[:5]) + (", …]" if len(value) > 5 else "]")
    if isinstance(value, Mapping) and isinstance(value.get("messages"), list):  # a sample of a pair
        return example(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{in_line(key)}: {_described(each)}" for key, each in value.items()) + "}"
    return in_line(value) if isinstance(value, int | float | bool | None) else type(value).__name__


def _quoted(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]#|~$])", r"\\\1", in_line(text))


def _image_size(image: Any) -> str:
    try:
        if isinstance(image, Mapping):
            source = io.BytesIO(image["bytes"]) if image.get("bytes") else image["path"]
            with Image.open(source) as opened:  # reads the header alone
                return f"(image of {opened.width} × {opened.height})"
        return f"(image of {image.width} × {image.height})"
    except (OSError, KeyError, TypeError, AttributeError, ValueError, Image.DecompressionBombError):
        return "(image)"


# --- arguments


def changed_arguments(args: TrainingArguments) -> dict[str, str]:
    """Return the arguments that are not the default, without those that say where a run lies or whose it is."""
    values, found = args.to_dict(), {}
    for each in fields(args):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        value = values.get(each.name)
        is_default = value in (default, _plain(default)) or (not value and not default)
        if not is_default and not _PRIVATE.search(each.name):
            found[each.name] = f"`{in_code(_without_folders(value))}`"
    return found


def _plain(default: Any) -> Any:
    return default.value if isinstance(default, Enum) else default


def _without_folders(value: Any) -> Any:
    """The value, with files and folders of this machine by their last name."""
    if isinstance(value, Mapping):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(each) for each in value]
    is_path = isinstance(value, str) and (os.path.isabs(value) or value.startswith("~") or Path(value).exists())
    return Path(value).name if is_path else value


def _adapters(trainer: Trainer) -> list[str]:
    said = []
    for name, config in adapter_configs(trainer.model).items():
        settings = {
            key: value for key in ("r", "lora_alpha", "lora_dropout") if (value := vars(config).get(key)) is not None
        }
        whole = ", ".join(f"`{in_code(each)}`" for each in config.modules_to_save or ())
        kind = f"`{in_code(name)}`: {in_line(config.peft_type.value)}"
        told = ", ".join(f"`{key}` {value}" for key, value in settings.items())
        said.append(f"{kind}{', ' if told else ''}{told}{f', trained whole: {whole}' if whole else ''}")
    return said


# --- losses


def losses_table(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the losses over the steps as a table in Markdown, thinned to a few rows; `None` if none was logged.

    >>> print(losses_table([{"step": 1, "loss": 2.5}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "loss": 1.25}]))
    | Step | loss | eval_loss |
    |---|---|---|
    | 1 | 2.5 | 3 |
    | 2 | 1.25 |  |
    """
    steps: dict[int, dict[str, float]] = {}
    for entry in history:
        losses = {
            key: float(value)
            for key, value in entry.items()
            if isinstance(value, int | float) and re.fullmatch(r"(eval_\w*?)?loss(_\w+)?", key)
        }
        if losses and "step" in entry:
            steps.setdefault(entry["step"], {}).update(losses)
    if not steps:
        return None
    names = list(dict.fromkeys(name for row in steps.values() for name in row))
    kept = _thinned(sorted(steps), {step for step, row in steps.items() if any(n.startswith("eval_") for n in row)})
    return table(("Step", *names), [(step, *(steps[step].get(name) for name in names)) for step in kept])


def _thinned(steps: list[int], wanted: set[int]) -> list[int]:
    """At most so many of the steps: the first, the last, those that are wanted, and others between them."""
    if len(steps) <= MAX_ROWS:
        return steps
    best = sorted(wanted) or steps
    places = {round(k * (len(best) - 1) / (MAX_ROWS - 3)) for k in range(MAX_ROWS - 2)}
    return sorted({steps[0], steps[-1], *(best[place] for place in places)})


# --- versions, hardware, emissions


def _environment(trainer: Trainer) -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    args = trainer.args
    count = args.world_size * max(1, args.n_gpu if args.device.type == "cuda" else 1)
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
    elif args.device.type == "cpu":
        device = f"CPU ({platform.machine()}, {os.cpu_count()} cores)"
    else:
        device = args.device.type
    found["Hardware"] = f"{count} × {in_line(device)}"
    seconds = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    if seconds:
        found["Training time"] = str(timedelta(seconds=round(sum(seconds))))
    return found


def read_emissions(folder: Path) -> dict[str, str]:
    """Read the last row of CodeCarbon's `emissions.csv` in the folder of a run; empty if there is none."""
    file = folder / "emissions.csv"
    if not file.is_file():
        return {}
    with open(file, newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    return rows[-1] if rows and rows[-1].get("emissions") else {}


def emissions_metadata(folder: Path) -> dict[str, Any]:
    """Return the emissions as the Hub reads them from a card, in grams of CO2."""
    row = read_emissions(folder)
    if not row:
        return {}
    told = {"hardware_used": row.get("gpu_model"), "cpu_model": row.get("cpu_model"), "geographical_location": None}
    told["geographical_location"] = row.get("country_name")
    return {
        "co2_eq_emissions": {
            "emissions": float(row["emissions"]) * 1000,
            "source": "codecarbon",
            "training_type": "fine-tuning",
            **{key: in_line(value) for key, value in told.items() if value},
        }
    }


def _said(row: Mapping[str, str]) -> str:
    if not row:
        return ""
    energy = f", {float(row['energy_consumed']):.3g} kWh" if row.get("energy_consumed") else ""
    place = f", in {in_line(row['country_name'])}" if row.get("country_name") else ""
    return f"{float(row['emissions']):.3g} kg of CO2{energy}{place}"
