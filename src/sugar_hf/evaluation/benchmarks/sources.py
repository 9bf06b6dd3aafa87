"""Where the data of a task comes from: a folder with the official files, or rows of the Hub."""

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Image, get_dataset_config_names, get_dataset_split_names, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from ...data import BadSampleError, resolve_image
from .judges import Judge


@dataclass(frozen=True)
class Source:
    """What a user said about the data of a task.

    Args:
        task: The task's name, for errors.
        data: A folder: with the official files, or one that `datasets.load_dataset` reads. Or a name on the Hub.
            `None` for the task's own name there.
        split: The split; the task's usual one if `None`.
        limit: Take this many samples only, from the first (whole groups, where samples are scored together).
        seed: For what is drawn.
        options: Further options of the task, by name.
        judge: What marks answers, where a task needs that; without one, answers are only written.
    """

    task: str
    data: str | None = None
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    options: Mapping[str, str] = field(default_factory=dict)
    judge: Judge | None = None

    @cached_property
    def folder(self) -> Path | None:
        """The local folder, if the data is one."""
        if self.data is None or not Path(self.data).is_dir():
            return None
        return Path(self.data)

    def find(self, *names: str) -> Path | None:
        """Look for an official file, in the folder or below; the first name that is found, the shallowest first.

        Args:
            *names: File or folder names, or patterns of `pathlib.Path.glob`; with "/", relative paths.
        """
        if self.folder is None:
            return None
        for name in names:
            if (self.folder / name).exists():  # spares a walk over millions of images
                return self.folder / name
            found = sorted(self.folder.rglob(name), key=lambda path: (len(path.parts), str(path)))
            if found:
                return found[0]
        return None

    def need(self, *names: str, command: str = "") -> Path:
        """`find`, or a clear error.

        Args:
            *names: As for `find`.
            command: What gets them, if a command does.

        Raises:
            FileNotFoundError: The folder has none of them.
        """
        found = self.find(*names)
        if found is None:
            where = f"in {self.folder}" if self.folder else f"({self.data!r} is no folder)"
            get = f"`{command}` gets it; docs/benchmarks.md says more." if command else ""
            raise FileNotFoundError(
                f"{self.task}: no {' or '.join(names)} {where}. {get or 'docs/benchmarks.md says what to get.'}"
            )
        return found

    def rows(self, hub_id: str | None, config: str | None, split: str) -> Dataset:
        """Load rows; images stay encoded, as `{"bytes", "path"}`.

        Args:
            hub_id: The task's name on the Hub; `None` if it is not there.
            config: Its configuration.
            split: Its split.

        Raises:
            ValueError: They cannot be loaded; the error says what to do.
        """
        name, cache = self._named(hub_id), _cache(self.folder) if self.folder else None
        with self._loading(f"{name}{f' ({config})' if config else ''}, split {split}"):
            rows = load_dataset(name, config, split=split, cache_dir=cache)
        for column, feature in rows.features.items():
            if isinstance(feature, Image):
                rows = rows.cast_column(column, Image(decode=False))
        return rows

    def configs(self, hub_id: str | None) -> list[str]:
        """The names of the configurations of rows; see `rows`."""
        name = self._named(hub_id)
        with self._loading(name):
            return list(get_dataset_config_names(name))

    def split_of(self, hub_id: str | None, config: str, split: str) -> str:
        """The split if the configuration has it, else its only one: a corpus is often a split of its own name."""
        name = self._named(hub_id)
        with self._loading(f"{name} ({config})"):
            found = get_dataset_split_names(name, config)
        return str(found[0]) if split not in found and len(found) == 1 else split

    def inside(self, name: str) -> "Source":
        """The same source with the folder of that name as its data, if the data is a folder that has one."""
        if self.folder is None or not (self.folder / name).is_dir():
            return self
        return replace(self, data=str(self.folder / name))

    def _named(self, hub_id: str | None) -> str:
        name = self.data or hub_id
        if name is None:
            raise ValueError(f"{self.task}: it is not on the Hub. Give a folder with --data; see docs/benchmarks.md.")
        return name

    @contextmanager
    def _loading(self, what: str) -> Iterator[None]:
        try:
            yield
        except (
            OSError,
            ValueError,
            DatasetsError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
        ) as error:
            said = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.task}: cannot load {what}: {said}. docs/benchmarks.md says what to get."
            ) from error

    def limited(self, items: Sequence[Any]) -> Sequence[Any]:
        """The first `limit` items, or all."""
        if self.limit is None:
            return items
        return items.select(range(min(self.limit, len(items)))) if isinstance(items, Dataset) else items[: self.limit]

    def option(self, name: str, default: str, choices: Sequence[str] | None = None) -> str:
        """An option's value.

        Raises:
            ValueError: It is none of the choices.
        """
        value = self.options.get(name, default)
        if choices is not None and value not in choices:
            raise ValueError(f"{self.task}: {name}={value!r} is none of {', '.join(choices)}.")
        return value

    def settings(self, **more: Any) -> dict[str, Any]:
        """What a result should say of the data."""
        said = {"data": self.data, "split": self.split, "limit": self.limit, "options": dict(self.options)}
        return {**{key: value for key, value in said.items() if value}, **more}


def _cache(folder: Path) -> str:
    """Return a cache for a local folder as it is now.

    `datasets` would take the rows of another folder of the same name with the same configurations, or of this one
    before it was changed.
    """
    seen = hashlib.sha256(str(folder.resolve()).encode())
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            state = path.stat()
            seen.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return str(Path(datasets.config.HF_DATASETS_CACHE, "sugar_hf", seen.hexdigest()[:16]))


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        ValueError: It is none; the error names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from error


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object a line.

    Raises:
        ValueError: A line is none; the error names file and line.
    """
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: a JSON object is expected, this is {line[:40].strip()!r}")
            rows.append(row)
    return rows


def read_table(path: Path, delimiter: str = ",") -> list[dict[str, str]]:
    """Read a table with a head, fields of any length."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def get(row: Mapping[Any, Any], name: Any, where: str) -> Any:
    """A field of a row.

    Raises:
        BadSampleError: The row lacks it.
    """
    if name not in row or row[name] is None:
        there = ", ".join(map(str, list(row)[:8])) or "nothing"
        raise BadSampleError("the field is missing", field=str(name), sample=where, mend=f"There is {there}")
    return row[name]


def image_in(folder: Path, name: str, where: str) -> Path:
    """The path of an image named in a file, which may not lead out of the folder.

    A file that is not there is no error yet: its sample is counted as failed when it is asked.

    Raises:
        BadSampleError: The name leads out of the folder.
    """
    try:
        return Path(resolve_image(name, folder))
    except BadSampleError as error:
        path = folder / name
        if not path.exists() and path.resolve().is_relative_to(folder.resolve()):
            return path
        raise error.at(sample=where) from None
