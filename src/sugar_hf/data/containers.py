"""Raw rows out of files and folders, one at a time and with their places.

JSON arrays are read element by element, so that each row knows the line on which it starts and only one row at a time
exists as Python objects. A row that cannot be parsed is yielded with its error; a file that cannot be read beyond some
point raises.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from .errors import BadSampleError
from .images import IMAGE_SUFFIXES

_WHITE = re.compile(r"[ \t\r\n]*")
_CAPTION_SUFFIXES = (".txt", ".json")
_CAPTION_KEYS = ("caption", "text")


@dataclass(frozen=True)
class RawRow:
    """A row as its container has it.

    Attributes:
        file: The file it stands in.
        row: 0-based number in the file (or folder).
        line: 1-based line on which it starts, or None.
        value: What was parsed there, of whatever type; None with an error.
        error: Why it could not be parsed.
    """

    file: str
    row: int
    line: int | None
    value: Any = None
    error: BadSampleError | None = None


def iter_rows(path: Path, show_progress: bool = True) -> Iterator[RawRow]:
    """Yields the rows of a data file (`.json`, `.jsonl`, `.csv`, `.parquet`) or of a folder of image-caption files.

    A `.json` or `.jsonl` file may hold an array or one object a line, whatever its name.

    Raises:
        FileNotFoundError: There is no such path.
        ValueError: The suffix is not one of these.
        BadSampleError: The file as a whole is damaged (an array that breaks off, no valid Parquet).
    """
    if not path.exists():
        raise FileNotFoundError(f"no data file or folder {str(path)!r}")
    if path.is_dir():
        return _pair_files(path, show_progress)
    suffix = path.suffix.lower()
    if suffix in (".json", ".jsonl"):
        return _json_array(path, show_progress) if _is_array(path) else _json_lines(path, show_progress)
    if suffix == ".csv":
        return _csv(path, show_progress)
    if suffix == ".parquet":
        return _parquet(path, show_progress)
    raise ValueError(f"{str(path)!r}: readers know .json, .jsonl, .csv and .parquet files, and folders")


def _bar(path: Path, total: int, unit: str, show: bool) -> tqdm:
    # The delay keeps short reads silent.
    return tqdm(
        total=total, unit=unit, unit_scale=unit == "B", desc=f"reading {path.name}", delay=2.0, disable=not show
    )


def _is_array(path: Path) -> bool:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        while (chunk := file.read(4096)) and not chunk.strip():
            pass
    return chunk.lstrip().startswith("[")


def _json_array(path: Path, show_progress: bool) -> Iterator[RawRow]:
    file = str(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSampleError(f"not UTF-8 ({error})", file=file, mend="Convert the file to UTF-8") from error
    decoder, row, line, seen = json.JSONDecoder(), 0, 1, 0
    position = _skip_white(text, _skip_white(text, 0) + 1)
    with _bar(path, len(text), "B", show_progress) as bar:
        while text[position : position + 1] != "]":
            line += text.count("\n", seen, position)
            bar.update(position - seen)
            seen = position
            try:
                value, end = decoder.raw_decode(text, position)
                end = _skip_white(text, end)
                if text[end : end + 1] not in (",", "]"):
                    raise json.JSONDecodeError("expected ',' or ']'", text, end)
            except (ValueError, RecursionError) as error:
                # What follows cannot be told from the broken row, so the file ends here for every `on_error`.
                raise BadSampleError(
                    f"invalid JSON ({error})", file=file, line=line, row=row, mend="Mend the file or fetch it again"
                ) from error
            yield RawRow(file, row, line, value)
            row += 1
            position = end if text[end] == "]" else _skip_white(text, end + 1)
        bar.update(len(text) - seen)
    if _skip_white(text, position + 1) != len(text):
        raise BadSampleError("text after the end of the array", file=file, mend="Keep one array, or one object a line")


def _skip_white(text: str, position: int) -> int:
    match = _WHITE.match(text, position)
    return match.end() if match else position


def _json_lines(path: Path, show_progress: bool) -> Iterator[RawRow]:
    row = 0
    with open(path, "rb") as file, _bar(path, path.stat().st_size, "B", show_progress) as bar:
        for number, raw in enumerate(file, start=1):
            bar.update(len(raw))
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
                yield RawRow(str(path), row, number, value)
            except (ValueError, RecursionError) as error:
                fault = BadSampleError(f"invalid JSON ({error})", mend="Mend or remove the line")
                yield RawRow(str(path), row, number, error=fault)
            row += 1


def _csv(path: Path, show_progress: bool) -> Iterator[RawRow]:
    with open(path, "rb") as file, _bar(path, path.stat().st_size, "B", show_progress) as bar:
        reader = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        row, line = 0, 1
        try:
            for value in reader:
                start, line = line + 1, reader.line_num
                bar.update(file.tell() - bar.n)
                if None in value:
                    fault = BadSampleError("more fields than the header", mend="Quote fields that hold commas")
                    yield RawRow(str(path), row, start, error=fault)
                else:
                    yield RawRow(str(path), row, start, value)
                row += 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadSampleError(
                f"invalid CSV ({error})", file=str(path), line=line + 1, row=row, mend="Mend the file"
            ) from error


def _parquet(path: Path, show_progress: bool) -> Iterator[RawRow]:
    try:
        with pq.ParquetFile(path) as file, _bar(path, file.metadata.num_rows, "rows", show_progress) as bar:
            # Small batches: a row may hold the bytes of several images.
            rows = (value for batch in file.iter_batches(batch_size=32) for value in batch.to_pylist())
            for row, value in enumerate(rows):
                yield RawRow(str(path), row, None, value)
                bar.update(1)
    except (pa.ArrowException, OSError) as error:
        raise BadSampleError(f"invalid Parquet ({error})", file=str(path), mend="Fetch the file again") from error


def _pair_files(folder: Path, show_progress: bool) -> Iterator[RawRow]:
    """Yields `{"key", "image", "text"}` for every pair of files with one stem, in the order of their names."""
    pairs: dict[str, dict[str, str]] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            # Shards of webdataset tools leave counts beside the data.
            if name.startswith(".") or name.endswith("_stats.json"):
                continue
            stem, suffix = os.path.splitext(os.path.join(parent, name))
            kind = "image" if suffix.lower() in IMAGE_SUFFIXES else suffix.lower()
            if kind == "image" or kind in _CAPTION_SUFFIXES:
                pairs.setdefault(stem, {})[kind] = stem + suffix
    with _bar(folder, len(pairs), "pairs", show_progress) as bar:
        for row, stem in enumerate(sorted(pairs)):
            files = pairs[stem]
            place = files.get("image") or next(iter(files.values()))
            try:
                value = {
                    "key": os.path.relpath(stem, folder),
                    "image": os.path.relpath(_image_of(files), folder),
                    "text": read_caption(files),
                }
                yield RawRow(place, row, None, value)
            except BadSampleError as error:
                yield RawRow(place, row, None, error=error)
            bar.update(1)


def _image_of(files: dict[str, str]) -> str:
    if "image" not in files:
        raise BadSampleError("the caption has no image of the same name", field="image", mend="Add it, or remove both")
    return files["image"]


def read_caption(files: dict[str, str]) -> Any:
    """The caption in a `.txt` file, or under `caption` or `text` in a `.json` file.

    Args:
        files: Files of one stem, by their suffixes.

    Raises:
        BadSampleError: There is no such file, or it cannot be read or has no caption.
    """
    for suffix in _CAPTION_SUFFIXES:
        if suffix not in files:
            continue
        try:
            text = Path(files[suffix]).read_text(encoding="utf-8-sig")
            if suffix == ".txt":
                return text
            value = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise BadSampleError(f"cannot read {files[suffix]!r} ({error})", field="text", mend="Mend it") from error
        keys = [key for key in _CAPTION_KEYS if isinstance(value, dict) and value.get(key) is not None]
        if not keys:
            raise BadSampleError(f"{files[suffix]!r} has no caption", field="text", mend="Give it under 'caption'")
        return value[keys[0]]
    raise BadSampleError("the image has no caption", field="text", mend="Put it in a .txt or .json of the same name")
