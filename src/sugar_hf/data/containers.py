"""Raw rows out of files and folders, one at a time and with their places.

JSON arrays are read element by element, so that each row knows the line on which it starts and only one row at a time
exists as Python objects. A row that cannot be parsed is yielded with its error; a file that cannot be read beyond some
point raises.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_from_disk
from tqdm.auto import tqdm

from .coco import CocoForm, coco_rows, is_coco
from .errors import BadSampleError
from .formats import IMAGE_KEYS, PAIR_TEXT_KEYS
from .schema import IMAGE_SUFFIXES, names_media

#: Suffixes of data files; any of them may be followed by one of `COMPRESSED`.
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".tar")
COMPRESSED = (".gz", ".bz2", ".xz")
#: Columns that say which row it is, the first that is there.
ID_KEYS = ("id", "key", "file_name")

_WHITE = re.compile(r"[ \t\r\n]*")
_CAPTION_SUFFIXES = (".txt", ".json")
_CAPTION_KEYS = ("caption", "text")
_FIELD_LIMIT = 2**31 - 1  # characters of a CSV field; the csv module's own limit is that of a short text
_BATCH = 32  # rows that are in memory at once: a row may hold the bytes of several images
# Columns whose cells are read as they are written; those of other columns get the type of their column.
_TEXT_COLUMNS = frozenset(
    {*ID_KEYS, *IMAGE_KEYS, *PAIR_TEXT_KEYS, "source", "metadata", "document", "sample", "messages", "conversations"}
    | {"prompt", "completion", "query", "response", "instruction", "input", "output", "history", "system"}
)
_HINTS = {
    ".zip": "Unpack it, and pass the folder",
    ".7z": "Unpack it, and pass the folder",
    ".rar": "Unpack it, and pass the folder",
    ".tgz": "Name it .tar.gz",
    ".zst": "Decompress it first (zstd -d), or compress it with gzip",
    ".arrow": "Pass the folder that Dataset.save_to_disk wrote, or write it with Dataset.to_parquet",
    ".feather": "Write it as Parquet",
    ".xlsx": "Save it as CSV",
    ".xls": "Save it as CSV",
    ".ndjson": "Name it .jsonl",
    ".yaml": "Write it as JSON lines",
    ".docx": "Save it as PDF or HTML",
    ".odt": "Save it as PDF or HTML",
    ".pptx": "Save it as PDF",
    ".epub": "Unpack it as a .zip, and pass the folder",
    ".rst": "Write it as HTML or Markdown (pandoc)",
}
_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
_INT64 = 2**63
# What stands for nothing in a column of numbers, in pandas and so in `datasets`.
_ABSENT = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
    | {"NULL", "NaN", "None", "n/a", "nan", "null"}
)


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


def data_suffix(path: Path) -> str:
    """The suffix that says what a file holds, in small letters, without that of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def is_saved(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote a folder.

    Raises:
        ValueError: It holds several splits.
    """
    if (folder / "dataset_dict.json").is_file():
        raise ValueError(f"{str(folder)!r} holds several splits: pass the folder of one of them")
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def shards_of(folder: Path) -> list[Path]:
    """The webdataset shards right in a folder, in the order of their names; none if there are images beside them."""
    names = sorted(os.listdir(folder))
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        return []
    return [folder / name for name in names if data_suffix(Path(name)) == ".tar"]


def unread_file(path: Path) -> ValueError:
    """The error for a file of a kind that is not read, with what to do."""
    known = f"{', '.join(DATA_SUFFIXES)} (also with {', '.join(COMPRESSED)} behind), PDF, HTML, Markdown, and folders"
    hint = _HINTS.get(path.suffix.lower(), "")
    return ValueError(f"{str(path)!r} is none of the files that are read: readers know {known}. {hint}".rstrip(" ."))


def iter_rows(
    path: Path,
    show_progress: bool = True,
    *,
    choice: ColumnChoice | None = None,
    texts: frozenset[str] = frozenset(),
    coco: CocoForm = "texts",
) -> Iterator[RawRow]:
    """Yield the rows of a data file, of a saved data set, or of a folder of image-caption files or webdataset shards.

    A `.json` or `.jsonl` file may hold an array, one object a line, or objects over several lines, whatever its name;
    in UTF-8, or in UTF-16 or UTF-32.

    Args:
        path: The file or folder.
        show_progress: Show a bar if it takes long.
        choice: The columns that are read; all if None.
        texts: Columns of a CSV file that hold texts, whatever they look like, beside those that always do.
        coco: What a row of a file of COCO's captions is.

    Raises:
        FileNotFoundError: There is no such path.
        ValueError: The suffix is not one of these.
        BadSampleError: The file as a whole is damaged (an array that breaks off, no valid Parquet).
    """
    choice = choice or ColumnChoice()
    if not path.exists():
        raise FileNotFoundError(f"no data file or folder {str(path)!r}{hub_hint(path)}")
    if path.is_dir():
        if is_saved(path):
            return _saved(path, choice)
        if shards := shards_of(path):
            return _chosen((raw for shard in shards for raw in _tar(shard, show_progress)), choice)
        return _chosen(_pair_files(path, show_progress), choice)
    suffix = data_suffix(path)
    if suffix in (".json", ".jsonl"):
        return _chosen(_with_captions(_json(path, show_progress), coco), choice)
    if suffix in (".csv", ".tsv"):
        return _csv(path, show_progress, choice, _TEXT_COLUMNS | texts, "\t" if suffix == ".tsv" else ",")
    if suffix == ".tar":
        return _chosen(_tar(path, show_progress), choice)
    if suffix == ".parquet" and path.suffix.lower() == suffix:
        return _parquet(path, show_progress, choice)
    raise unread_file(path)


def is_hub(path: Path) -> bool:
    """Whether a path is the address of a data set on the Hub: `hf://datasets/user/name?split=train`."""
    return path.parts[:2] == ("hf:", "datasets")


def hub_hint(path: Path) -> str:
    """What to do if a path that is not there is the name of a data set on the Hub; empty if it is no such name."""
    if path.is_absolute() or not 1 <= len(path.parts) <= 2 or path.suffix or path.parts[0] in (".", ".."):
        return ""
    return f". If it is a data set of the Hub, write hf://datasets/{path.as_posix()}?split=..."


def _chosen(rows: Iterator[RawRow], choice: ColumnChoice) -> Iterator[RawRow]:
    for raw in rows:
        yield raw if raw.error is not None else RawRow(raw.file, raw.row, raw.line, choice.of_row(raw.value))


def _bar(path: Path, total: int, unit: str, show: bool) -> tqdm:
    # The delay keeps short reads silent.
    return tqdm(
        total=total, unit=unit, unit_scale=unit == "B", desc=f"reading {path.name}", delay=2.0, disable=not show
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """A file without its compression, and the file on the disk, whose place shows how far it was read.

    Raises:
        BadSampleError: The compression is damaged.
    """
    openers: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = openers.get(path.suffix.lower())
    with open(path, "rb") as raw:
        if opener is None:
            yield raw, raw
            return
        try:
            with opener(raw) as file:
                yield file, raw
        except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            mend = "Fetch the file again"
            raise BadSampleError(f"the compression is damaged ({error})", file=str(path), mend=mend) from error


def _encoding(path: Path) -> str:
    """The encoding of a text file by its first bytes: UTF-8, or what a byte order mark or zeros tell."""
    with _opened(path) as (file, _):
        return json.detect_encoding(file.read(4))


def decode_text(data: bytes) -> str:
    """A text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        UnicodeDecodeError: It is in another encoding.
    """
    encoding = json.detect_encoding(data)
    return data.decode(encoding if encoding in ("utf-16", "utf-32") else "utf-8-sig")


# ---- JSON ----


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)


def _json(path: Path, show_progress: bool) -> Iterator[RawRow]:
    encoding = _encoding(path)
    with _opened(path) as (file, _):
        lines = io.TextIOWrapper(file, encoding=encoding, errors="replace", newline="\n")
        first = next((line.strip() for line in lines if line.strip("\ufeff \t\r\n")), "").lstrip("\ufeff")
    if first.startswith("[") or (first.startswith("{") and _is_spread(path, first)):
        return _json_text(path, show_progress, is_array=first.startswith("["))
    return _json_lines(path, encoding, show_progress)


def _with_captions(raws: Iterator[RawRow], form: CocoForm) -> Iterator[RawRow]:
    """Rows as they are, but for a file of COCO's, whose one object is a row for each image or caption."""
    for raw in raws:
        if not isinstance(raw.value, dict) or "annotations" not in raw.value or not is_coco(raw.value):
            yield raw
            continue
        for number, row in enumerate(coco_rows(raw.value, form)):
            if isinstance(row, BadSampleError):
                yield RawRow(raw.file, number, None, error=row)
            else:
                yield RawRow(raw.file, number, None, row)


def _is_spread(path: Path, first: str) -> bool:
    """Whether the first object continues after the first line."""
    try:
        _DECODER.decode(first)
        return False
    except (ValueError, RecursionError):
        pass
    text = _whole(path).lstrip()
    try:
        _, end = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False  # then the line is broken
    return "\n" in text[:end]


def _whole(path: Path) -> str:
    with _opened(path) as (file, _):
        data = file.read()
    encoding = json.detect_encoding(data)
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise BadSampleError(f"not UTF-8 ({error})", file=str(path), mend="Convert the file to UTF-8") from error


def _json_text(path: Path, show_progress: bool, is_array: bool) -> Iterator[RawRow]:
    """The values of an array, or those that follow each other over several lines."""
    file, text = str(path), _whole(path)
    row, line, seen = 0, 1, 0
    position = _skip_white(text, 0)
    position = _skip_white(text, position + 1) if is_array else position
    with _bar(path, len(text), "B", show_progress) as bar:
        while text[position : position + 1] != "]" if is_array else position < len(text):
            line += text.count("\n", seen, position)
            bar.update(position - seen)
            seen = position
            try:
                value, end = _DECODER.raw_decode(text, position)
                end = _skip_white(text, end)
                if is_array and text[end : end + 1] not in (",", "]"):
                    raise json.JSONDecodeError("expected ',' or ']'", text, end)
            except (ValueError, RecursionError) as error:
                # What follows cannot be told from the broken row, so the file ends here for every `on_error`.
                raise BadSampleError(
                    f"invalid JSON ({error})", file=file, line=line, row=row, mend="Mend the file or fetch it again"
                ) from error
            yield RawRow(file, row, line, value)
            row += 1
            position = _skip_white(text, end + 1) if is_array and text[end] == "," else end
        bar.update(len(text) - seen)
    if is_array and _skip_white(text, position + 1) != len(text):
        raise BadSampleError("text after the end of the array", file=file, mend="Keep one array, or one object a line")


def _skip_white(text: str, position: int) -> int:
    match = _WHITE.match(text, position)
    return match.end() if match else position


def _json_lines(path: Path, encoding: str, show_progress: bool) -> Iterator[RawRow]:
    row = 0
    is_bytes = encoding in ("utf-8", "utf-8-sig")
    with _opened(path) as (file, raw_file), _bar(path, path.stat().st_size, "B", show_progress) as bar:
        lines: Any = file if is_bytes else io.TextIOWrapper(file, encoding=encoding, newline="\n")
        numbered = enumerate(lines, start=1)
        while True:
            try:
                number, raw = next(numbered)
            except StopIteration:
                return
            except UnicodeDecodeError as error:
                raise BadSampleError(
                    f"not {encoding} ({error})", file=str(path), mend="Convert it to UTF-8"
                ) from error
            if not raw.strip():
                continue
            bar.update(raw_file.tell() - bar.n)
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8") if is_bytes else raw
                yield RawRow(str(path), row, number, _DECODER.decode(text))
            except (ValueError, RecursionError) as error:
                fault = BadSampleError(f"invalid JSON ({error})", mend="Mend or remove the line")
                yield RawRow(str(path), row, number, error=fault)
            row += 1


# ---- Tables ----


def _csv(
    path: Path, show_progress: bool, choice: ColumnChoice, texts: frozenset[str], delimiter: str
) -> Iterator[RawRow]:
    # For the whole process, as there is no other way; it only ever grows.
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    types: dict[str, ColumnType] | None = None
    with _bar(path, path.stat().st_size, "B", show_progress) as bar:
        for number, line, value, place in _csv_rows(path, delimiter):
            if types is None:
                names = [name for name in value if name is not None and choice(name)]
                typed = [name for name in names if name not in texts and not names_media(name)]
                try:
                    rows = (row for _, _, row, _ in _csv_rows(path, delimiter)) if typed else iter(())
                    types = column_types((row for row in rows if None not in row), typed)
                except BadSampleError as error:  # raised again when the second reading comes to that place
                    types = {} if error.row is None else column_types(_until(path, delimiter, error.row), typed)
            bar.update(place - bar.n)
            if None in value:
                fault = BadSampleError("more fields than the header", mend="Quote fields that hold commas")
                yield RawRow(str(path), number, line, error=fault)
                continue
            cells = {name: types[name].convert(cell) if name in types else _text(cell) for name, cell in value.items()}
            yield RawRow(str(path), number, line, choice.of_row(_listed(cells)))


def _text(cell: str | None) -> str | None:
    return cell if cell and cell.strip() else None


def _until(path: Path, delimiter: str, row: int) -> Iterator[Mapping[str, str | None]]:
    for number, _, value, _ in _csv_rows(path, delimiter):
        if None not in value:
            yield value
        if number == row - 1:
            return


def _listed(cells: dict[str, Any]) -> dict[str, Any]:
    """A table of texts has no lists: `images` is one name, or a list in JSON."""
    value = cells.get("images")
    if isinstance(value, str) and value.strip():
        try:
            found = json.loads(value) if value.lstrip().startswith("[") else [value]
        except (ValueError, RecursionError):
            found = [value]
        cells["images"] = found
    return cells


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, int, dict[Any, Any], int]]:
    """Yield number, line, cells by column, and place in the file of each row."""
    row, line = 0, 1
    encoding = _encoding(path)
    with _opened(path) as (file, raw_file):
        text = io.TextIOWrapper(file, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="")
        reader = csv.DictReader(text, strict=True, delimiter=delimiter)
        try:
            _check_header(reader, delimiter, str(path))
            for value in reader:
                start, line = line + 1, reader.line_num
                yield row, start, value, raw_file.tell()
                row += 1
        except (csv.Error, UnicodeError) as error:
            raise BadSampleError(
                f"invalid CSV ({error})", file=str(path), line=line + 1, row=row, mend="Mend the file"
            ) from error


def _check_header(reader: csv.DictReader, delimiter: str, file: str) -> None:
    names = list(reader.fieldnames or [])
    # The index that pandas writes has no name; it is called as `datasets` calls it.
    reader.fieldnames = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(names)]
    if len(names) == 1 and (other := next((mark for mark in ";\t|," if mark in names[0] and mark != delimiter), None)):
        mend = "Save it with commas, or as .tsv with tabs"
        raise BadSampleError(f"the fields of the header are parted by {other!r}", file=file, line=1, mend=mend)
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise BadSampleError(f"the header names {twice[0]!r} twice", file=file, line=1, mend="Rename one of them")


def _parquet(path: Path, show_progress: bool, choice: ColumnChoice) -> Iterator[RawRow]:
    try:
        with pq.ParquetFile(path) as file, _bar(path, file.metadata.num_rows, "rows", show_progress) as bar:
            names = file.schema_arrow.names
            _check_names(names, path)
            kept = [name for name in names if choice(name)]
            batches = file.iter_batches(batch_size=_BATCH, columns=None if len(kept) == len(names) else kept)
            for raw in rows_of_batches(batches, str(path)):
                yield raw
                bar.update(1)
    except (pa.ArrowException, OSError) as error:
        raise BadSampleError(f"invalid Parquet ({error})", file=str(path), mend="Fetch the file again") from error


def _check_names(names: list[str], path: Path) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadSampleError(f"the column {twice[0]!r} is there twice", file=str(path), mend="Rename one of them")


def _saved(folder: Path, choice: ColumnChoice) -> Iterator[RawRow]:
    dataset = load_from_disk(folder)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{str(folder)!r} holds several splits: pass the folder of one of them")
    return rows_of_batches(arrow_batches(dataset, choice), str(folder))


def arrow_batches(dataset: Dataset, choice: ColumnChoice) -> Iterator[pa.RecordBatch]:
    """The rows of a data set as they are stored, so that no image is decoded and stored again."""
    kept = [name for name in dataset.column_names if choice(name)]
    if len(kept) < len(dataset.column_names):
        dataset = dataset.select_columns(kept)
    for table in dataset.with_format("arrow").iter(batch_size=_BATCH):
        yield from table.to_batches()


def rows_of_batches(batches: Iterator[pa.RecordBatch], file: str) -> Iterator[RawRow]:
    """Rows as Python objects; one with a value that Python cannot hold is an error that names the column."""
    row = 0
    for batch in batches:
        try:
            values: list[Any] = batch.to_pylist()
        except Exception:  # whatever Arrow's conversions raise: it is looked for row by row
            values = [_row_of(batch.slice(i, 1)) for i in range(batch.num_rows)]
        for value in values:
            is_fault = isinstance(value, BadSampleError)
            yield RawRow(file, row, None, None if is_fault else value, value if is_fault else None)
            row += 1


def _row_of(batch: pa.RecordBatch) -> dict[str, Any] | BadSampleError:
    """The one row of a batch, or why it cannot be had: a date out of range, a text that is not UTF-8, ..."""
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column.to_pylist()[0]
        except Exception as error:
            reason = f"the value cannot be read ({type(error).__name__}: {error})"
            return BadSampleError(reason, field=name, mend="Mend it, or leave the column out with drop_columns")
    return row


# ---- Folders and shards ----


def _tar(path: Path, show_progress: bool) -> Iterator[RawRow]:
    """A shard of webdataset: files of one name, which ends at its first dot, are a row. It is read as a stream."""
    file, row = str(path), 0
    try:
        with (
            open(path, "rb") as raw,
            tarfile.open(fileobj=raw, mode="r|*") as tar,
            _bar(path, path.stat().st_size, "B", show_progress) as bar,
        ):
            name, files = "", dict[str, bytes]()
            for member in tar:
                bar.update(raw.tell() - bar.n)
                content = tar.extractfile(member) if member.isfile() else None
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if content is None or not stem:
                    continue
                key = f"{folder}/{stem}".removeprefix("./") if folder else stem
                if files and key != name:
                    yield _of_shard(file, row, name, files)
                    row, files = row + 1, {}
                name = key
                files[suffix.lower()] = content.read()
            if files:
                yield _of_shard(file, row, name, files)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        raise BadSampleError(f"invalid tar ({error})", file=file, row=row, mend="Fetch the file again") from error


def _of_shard(file: str, row: int, key: str, files: dict[str, bytes]) -> RawRow:
    try:
        value: dict[str, Any] = {"key": key}
        images = [data for suffix, data in files.items() if f".{suffix}".endswith(IMAGE_SUFFIXES)]
        if images:
            value["image"] = images[0] if len(images) == 1 else images
        for suffix, data in files.items():
            if suffix == "json":
                found = _DECODER.decode(decode_text(data))
                if not isinstance(found, dict):
                    raise BadSampleError("the .json of the row holds no object", field="json")
                found = {name: each for name, each in found.items() if name != "key"}
                if twice := found.keys() & value.keys():
                    raise BadSampleError("the .json and another file of the row both give it", field=min(twice))
                value |= found
            elif suffix in ("txt", "text", "caption"):
                value[suffix] = decode_text(data)
            elif suffix in ("cls", "id"):
                text = decode_text(data).strip()
                value[suffix] = int(text) if text.isdecimal() and len(text) < 19 else text
            elif not f".{suffix}".endswith(IMAGE_SUFFIXES):
                value[suffix] = data
        return RawRow(file, row, None, value)
    except BadSampleError as error:
        return RawRow(file, row, None, error=error.at(sample=key))
    except (ValueError, RecursionError) as error:
        fault = BadSampleError(f"a text of the row cannot be read ({error})", sample=key, mend="Mend the shard")
        return RawRow(file, row, None, error=fault)


def _pair_files(folder: Path, show_progress: bool) -> Iterator[RawRow]:
    """Yield `{"key", "image", "text"}` for every pair of files with one stem, in the order of their names."""
    pairs: dict[str, dict[str, str]] = {}
    others: Counter[str] = Counter()
    twice: dict[str, str] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            # Shards of webdataset tools leave counts beside the data.
            if name.startswith(".") or name.endswith("_stats.json"):
                continue
            stem, suffix = os.path.splitext(os.path.join(parent, name))
            kind = "image" if suffix.lower() in IMAGE_SUFFIXES else suffix.lower()
            if kind == "image" or kind in _CAPTION_SUFFIXES:
                if kind in pairs.setdefault(stem, {}):
                    twice[stem] = name
                pairs[stem].setdefault(kind, stem + suffix)
            else:
                others[suffix or "no suffix"] += 1
    if others:
        counts = ", ".join(f"{suffix}: {count}" for suffix, count in sorted(others.items()))
        said = f"{folder}: files that are no pairs of image and caption are left alone ({counts})"
        if not pairs:
            mend = "Pass one of the data files, or the folder of pairs"
            raise ValueError(f"{str(folder)!r} has no pair of image and caption, but other files ({counts}). {mend}")
        warnings.warn(said, stacklevel=4)
    with _bar(folder, len(pairs), "pairs", show_progress) as bar:
        for row, stem in enumerate(sorted(pairs)):
            files = pairs[stem]
            place = files.get("image") or next(iter(files.values()))
            try:
                if stem in twice:
                    both = f"{os.path.basename(files['image'])} and {twice[stem]}"
                    raise BadSampleError(f"two images share a name: {both}", field="image", mend="Rename one of them")
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
            text = decode_text(Path(files[suffix]).read_bytes())
            if suffix == ".txt":
                return text
            value = _DECODER.decode(text)
        except (OSError, ValueError, RecursionError) as error:
            raise BadSampleError(f"cannot read {files[suffix]!r} ({error})", field="text", mend="Mend it") from error
        keys = [key for key in _CAPTION_KEYS if isinstance(value, dict) and value.get(key) is not None]
        if not keys:
            raise BadSampleError(f"{files[suffix]!r} has no caption", field="text", mend="Give it under 'caption'")
        return value[keys[0]]
    raise BadSampleError("the image has no caption", field="text", mend="Put it in a .txt or .json of the same name")


# ---- Columns ----


@dataclass
class ColumnChoice:
    """The columns that are read; all others are left alone, as if they were not there.

    Attributes:
        keep: These alone; all if None.
        drop: All but these.
        seen: Which of the named ones were found so far.
    """

    keep: frozenset[str] | None = None
    drop: frozenset[str] = frozenset()
    seen: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, columns: Sequence[str] | None, drop_columns: Sequence[str] | None) -> ColumnChoice:
        """The choice that two options make.

        Raises:
            ValueError: Both are given, or one is a str.
        """
        for name, value in (("columns", columns), ("drop_columns", drop_columns)):
            if isinstance(value, str):
                raise ValueError(f"{name} is a list of names, not {value!r}: give [{value!r}].")
        if columns is not None and drop_columns:
            raise ValueError("give columns or drop_columns, not both.")
        return cls(None if columns is None else frozenset(columns), frozenset(drop_columns or ()))

    def __call__(self, name: Any) -> bool:
        """Whether a column is read."""
        if name in self.drop or (self.keep is not None and name in self.keep):
            self.seen.add(name)
        return name not in self.drop if self.keep is None else name in self.keep

    def of_row(self, row: Any) -> Any:
        """A row without the columns that are not read; what is no row is returned as it is."""
        if not isinstance(row, Mapping) or (self.keep is None and not self.drop):
            return row
        return {name: value for name, value in row.items() if self(name)}

    def check(self) -> None:
        """Raise an error where a named column is in no row, once all rows were seen.

        Raises:
            ValueError: Names the columns.
        """
        if missing := sorted((self.drop if self.keep is None else self.keep) - self.seen):
            option = "drop_columns" if self.keep is None else "columns"
            raise ValueError(f"{option}: no row has the column {', '.join(map(repr, missing))}. Check the names.")


class ColumnType:
    """Learns from all cells of a column of texts of which type they are, as `datasets` tells it.

    A column is one of whole numbers, of numbers, of truth values or of texts, all of it. What would not come back as
    it was (leading zeros, more than 64 bits) is text. An empty cell is absent; `NA`, `null` and their like are so in
    a column of numbers, and words in one of texts.
    """

    def __init__(self) -> None:
        self.is_integer = self.is_float = self.is_boolean = True
        self.is_blank = True

    def see(self, cell: str | None) -> None:
        """Look at a cell."""
        if cell is None or not (text := cell.strip()) or text in _ABSENT:
            return
        self.is_blank = False
        if self.is_boolean and text.lower() not in _BOOLEANS:
            self.is_boolean = False
        if self.is_integer and not (len(text) <= 20 and _INTEGER.fullmatch(text) and -_INT64 < int(text) < _INT64):
            self.is_integer = False
        if self.is_float and not (_FLOAT.fullmatch(text) and _fits_float(text)):
            self.is_float = False

    def convert(self, cell: str | None) -> Any:
        """The value of a cell, None if it is absent."""
        if cell is None or not (text := cell.strip()):
            return None
        if self.is_blank or not (self.is_boolean or self.is_integer or self.is_float):
            return cell
        if text in _ABSENT:
            return None
        if self.is_boolean:
            return _BOOLEANS[text.lower()]
        return int(text) if self.is_integer else float(text)


def _fits_float(text: str) -> bool:
    """Whether a number is one that a float can hold: a long row of digits is a name and not a number."""
    digits = text.lstrip("+-")
    return len(digits) <= 15 if digits.isdigit() else abs(float(text)) != float("inf")


def column_types(rows: Iterable[Mapping[str, str | None]], names: Iterable[str]) -> dict[str, ColumnType]:
    """The types of columns.

    Args:
        rows: All rows of a table of texts.
        names: Its columns.
    """
    types = {name: ColumnType() for name in names}
    for row in rows:
        for name, kind in types.items():
            kind.see(row.get(name))
    return types
