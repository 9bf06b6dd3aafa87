"""Data files of every known format to one `datasets.Dataset` in the common schema.

Images stay paths (or the bytes that the file itself holds) and are decoded when a sample is used. Nothing is cached
between calls: a data set on disk may change under the same name, and a reader that remembers the old one is worse
than a slow one. `Dataset.save_to_disk` keeps the result.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from .columns import ColumnChoice
from .containers import ID_KEYS, RawRow, is_saved, iter_rows
from .errors import BadSampleError, SkippedRowsWarning
from .formats import PARSERS, ImageSource, detect
from .media import is_empty
from .schema import FEATURES, kind, validate_row

Format = Literal["auto", "llava", "mmc4", "obelics", "pairs", "chat"]

_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_NAMED = 5  # how many skipped rows the warning names
_PROBED = 100  # how many rows are looked at to tell the format


class ReadOptions(TypedDict, total=False):
    """What all readers take besides the path; `load_dataset_file` says what each does."""

    image_root: str | Path | None
    on_error: Literal["raise", "skip"]
    validate_images: bool
    allow_outside_root: bool
    drop_broken_images: bool
    columns: Sequence[str] | None
    drop_columns: Sequence[str] | None
    skipped: list[BadSampleError] | None
    show_progress: bool


def load_dataset_file(
    path: str | Path,
    format: Format = "auto",
    *,
    image_root: str | Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    validate_images: bool = True,
    allow_outside_root: bool = False,
    drop_broken_images: bool = False,
    columns: Sequence[str] | None = None,
    drop_columns: Sequence[str] | None = None,
    skipped: list[BadSampleError] | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Reads a data file, or a folder of images with captions, into the common schema.

    | format | file | a row |
    |---|---|---|
    | `llava` | JSON array or lines | `conversations`, `image` or `images` (a name, a list, or left out) |
    | `mmc4` | JSON lines | `text_list`, `image_info` with `image_name` and `matched_text_index` |
    | `obelics` | JSON lines or Parquet | `texts` and `images` with None where the other has an entry |
    | `pairs` | JSON lines, CSV, Parquet | an image (`image`, `file_name`, ...) and a caption (`text` or `caption`) |
    | `pairs` | folder | ImageFolder with `metadata.csv` or `.jsonl`, or `x.jpg` beside `x.txt` or `x.json` |
    | `pairs` | webdataset `.tar`, or a folder of them | an image and a caption |
    | `chat` | JSON lines | `messages` with `role` and `content`, and `images`; the forms of TRL and ms-swift |

    Each kind of row may come in each container: `.json`, `.jsonl`, `.csv`, `.tsv`, `.parquet` (all but Parquet also
    with `.gz`, `.bz2` or `.xz` behind), webdataset shards, or the folder that `Dataset.save_to_disk` wrote. Empty
    cells are no images. A row with pictures, films or sounds that nothing uses is broken.

    Args:
        path: The file or folder.
        format: One of the table, or `auto`: told by the keys of the first row that parses.
        image_root: Where relative image names start. Default: the folder of the data file. Every image must lie in it.
        on_error: `raise` at the first broken row, or `skip` broken rows, count them in a warning and list them in
            `skipped`. A file that is damaged as a whole raises in both cases.
        validate_images: Decode every image completely now, each file once: some 5 ms for a photograph of 640 x 480.
            Without it only names and files are checked (some 10,000 rows a second), and a damaged image is an error
            of `to_sample` when its turn comes.
        allow_outside_root: Accept image paths outside `image_root`; only for data files that you trust.
        drop_broken_images: In `mmc4` and `obelics`, leave out a broken image, or a place with neither text nor image,
            instead of its whole document. Web documents lose links all the time. Each place left out is counted and
            listed like a skipped row.
        columns: Read these columns alone.
        drop_columns: Read all columns but these.
        skipped: A list to which the error of every row or image left out is appended.
        show_progress: Show a progress bar where reading takes longer than two seconds.

    Returns:
        A data set with `FEATURES`. `source` of a row is `file:line#row`, or `file#row` where there are no lines.

    Raises:
        BadSampleError: A row is broken (see `on_error`), or the file as a whole is.
        FileNotFoundError: There is no such path.
        ValueError: The format is unknown or cannot be told, or no row is usable.
    """
    if format != "auto" and format not in PARSERS:
        raise ValueError(f"unknown format {format!r}: use auto, {', '.join(PARSERS)}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    file = _data_file(Path(path))
    is_folder = file.is_dir() and not is_saved(file)
    root = Path(image_root) if image_root is not None else file if is_folder else file.parent
    images = ImageSource(os.path.abspath(root), allow_outside_root, validate_images, drop_broken_images)
    choice = ColumnChoice.of(columns, drop_columns)
    name = _detect(file, choice) if format == "auto" else format
    left_out: list[BadSampleError] = []
    rows = _rows(iter_rows(file, show_progress, choice=choice), name, images, on_error, left_out)
    dataset = _write(rows)
    choice.check()
    if skipped is not None:
        skipped.extend(left_out)
    if dataset is None:
        raise ValueError(f"{str(file)!r} has no usable row ({len(left_out)} broken). {_first(left_out)}".rstrip())
    if left_out:
        warnings.warn(
            f"{str(file)!r}: {len(left_out)} broken rows or images left out, {len(dataset)} rows kept. "
            + _first(left_out),
            SkippedRowsWarning,
            stacklevel=2,
        )
    return dataset


def read_llava(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Reads LLaVA instruction data; see `formats.parse_llava` and `load_dataset_file`."""
    return load_dataset_file(path, "llava", **options)


def read_mmc4(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Reads an MMC4 shard; see `formats.parse_mmc4` and `load_dataset_file`."""
    return load_dataset_file(path, "mmc4", **options)


def read_obelics(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Reads OBELICS documents; see `formats.parse_obelics` and `load_dataset_file`."""
    return load_dataset_file(path, "obelics", **options)


def read_pairs(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Reads image-caption pairs from a file or a folder; see `formats.parse_pair` and `load_dataset_file`."""
    return load_dataset_file(path, "pairs", **options)


def read_chat(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Reads chat messages; see `formats.parse_chat` and `load_dataset_file`."""
    return load_dataset_file(path, "chat", **options)


def _data_file(path: Path) -> Path:
    """The metadata file of an ImageFolder; any other path is itself."""
    found = [path / name for name in _METADATA if (path / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{str(path)!r} has {' and '.join(file.name for file in found)}: pass the one to read")
    return found[0] if found else path


def _detect(file: Path, choice: ColumnChoice) -> str:
    fault: BadSampleError | None = None
    for number, raw in enumerate(iter_rows(file, show_progress=False, choice=choice)):
        name = detect(raw.value)
        if raw.error is not None and fault is None:
            fault = _locate(raw.error, raw)
        if name is not None:
            return name
        if number >= _PROBED:
            break
    if file.is_dir():
        return "pairs"
    if fault is not None:
        raise fault
    raise ValueError(
        f"cannot tell the format of {str(file)!r} from its keys: pass format=, one of {', '.join(PARSERS)}"
    )


def _rows(
    raws: Iterator[RawRow], name: str, images: ImageSource, on_error: str, left_out: list[BadSampleError]
) -> Iterator[dict[str, Any]]:
    for raw in raws:
        images.dropped.clear()
        try:
            row = _parse(raw, name, images)
        except (BadSampleError, RecursionError) as fault:
            error = fault if isinstance(fault, BadSampleError) else BadSampleError("the row is nested too deeply")
            if on_error == "raise":
                raise _locate(error, raw) from fault.__cause__
            left_out.append(_locate(error, raw))
            continue
        left_out.extend(_locate(error, raw) for error in images.dropped)
        yield row


def _parse(raw: RawRow, name: str, images: ImageSource) -> dict[str, Any]:
    if raw.error is not None:
        raise raw.error
    if not isinstance(raw.value, dict):
        raise BadSampleError(f"expected an object with keys, got {kind(raw.value)}")
    messages, stored = PARSERS[name](raw.value, images)
    row = {"id": _identifier(raw), "source": _place(raw), "messages": messages, "images": stored}
    validate_row(row)
    # Arrow holds no half surrogate pairs, as which names of files come that are no UTF-8.
    names = {"id": _identifier(raw), **{f"images[{i}]": image["path"] or "" for i, image in enumerate(stored)}}
    for field, text in {**names, "source": _place(raw)}.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            mend = "Rename the file, or give the row another id"
            raise BadSampleError(f"{text!r} is not valid Unicode", field=field, mend=mend) from error
    return row


def _place(raw: RawRow) -> str:
    return f"{raw.file}#{raw.row}" if raw.line is None else f"{raw.file}:{raw.line}#{raw.row}"


def _identifier(raw: RawRow) -> str:
    """The row's own name if it has one, else the file's stem and the row's number."""
    for key in ID_KEYS:
        value = raw.value.get(key)
        if is_empty(value):
            continue
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise BadSampleError(f"expected a string or a whole number, got {kind(value)}", field=key)
        return str(value)
    return f"{Path(raw.file).stem}-{raw.row}"


def _locate(error: BadSampleError, raw: RawRow) -> BadSampleError:
    named = raw.value.get("id") if isinstance(raw.value, dict) else None
    # `validate_row` takes `source` for the file, which already has the line.
    error.file = raw.file
    return error.at(line=raw.line, row=raw.row, sample=None if named is None else str(named))


def _first(errors: list[BadSampleError]) -> str:
    if not errors:
        return ""
    shown = "; ".join(str(error) for error in errors[:_NAMED])
    return f"The first: {shown}" if len(errors) > 1 else shown


@cache
def _scratch() -> str:
    """The folder of all Arrow files of this process, removed when it ends."""
    folder, owner = tempfile.mkdtemp(prefix="sugar_hf_data_"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child that exits must leave its parent's files alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _write(rows: Iterator[dict[str, Any]]) -> Dataset | None:
    """Writes rows to an Arrow file and opens it memory-mapped; None if there are no rows.

    `Dataset.from_generator` would wrap a row's error in its own, and would answer a later call from its cache although
    the data file has changed.
    """
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=_scratch())
    os.close(handle)
    count = 0
    try:
        with ArrowWriter(features=FEATURES, path=path, writer_batch_size=256) as writer:
            for row in rows:
                writer.write(FEATURES.encode_example(row))
                count += 1
            if count:
                writer.finalize()
    except BaseException:
        os.remove(path)
        raise
    if not count:
        os.remove(path)
        return None
    return Dataset.from_file(path)
