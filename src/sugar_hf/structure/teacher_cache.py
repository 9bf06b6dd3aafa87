"""Teacher columns of a data set, computed in parts. Each part is stored atomically, so a killed run resumes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from .._files import atomic_path

logger = logging.getLogger(__name__)

# Counts of a batch of rows, in the first of them: stored with the vectors, as parts are found on disk.
COUNTS = ("texts", "truncated_clip", "truncated_text")
# Behind an Arrow stream nothing is read: there a part has these letters and the digest of all before them.
MARK = b"sugar-part-1"
DIGEST_SIZE = 16
VECTORS = List(List(Value("float16")))
STORED_FEATURES = Features(
    {
        "teacher_clip": VECTORS,
        "teacher_dino": VECTORS,
        "teacher_text": VECTORS,
        "teacher_is_image": List(Value("bool")),
        "teacher_fingerprint": Value("string"),
        **dict.fromkeys(COUNTS, Value("int32")),
    }
)
# Rows of a data set, and their numbers in it, to columns.
Compute = Callable[[list[dict[str, Any]], range], dict[str, list[Any]]]


def columns_in_parts(
    dataset: Dataset,
    compute: Compute,
    key: str,
    folder: Path | None = None,
    by_content: bool = False,
    reuse: bool = True,
    part_rows: int = 2048,
    batch_size: int = 64,
    title: str | None = None,
) -> Dataset:
    """Compute columns for all rows, part by part; parts that lie in a folder from an earlier call are not computed.

    A part is written to a temporary file, which gets its name when all of it is on the disk, and ends with a digest:
    one that is cut or damaged is thrown away and computed again.

    Args:
        dataset: The data set.
        compute: Gives the columns of some rows, those of `STORED_FEATURES`.
        key: Stands for all that the columns depend on beside the rows.
        folder: Where parts are stored; None keeps them in memory.
        by_content: Whether a part is known by the contents of its rows, whatever process has read them from whatever
            file, or by the data set's fingerprint, which costs nothing.
        reuse: Whether stored parts are used.
        part_rows: Rows of a part.
        batch_size: Rows handed to `compute` at once.
        title: Title of a progress bar over all rows, which says how many were found; None for no bar.

    Returns:
        A data set with these columns alone.
    """
    spans = [range(start, min(start + part_rows, len(dataset))) for start in range(0, len(dataset), part_rows)]

    def place(rows: range) -> Path | None:
        if folder is None:
            return None
        source = _contents(dataset, rows) if by_content else f"{dataset._fingerprint} {rows}"
        return folder / f"cache-{hashlib.blake2b(f'{key} {source}'.encode(), digest_size=16).hexdigest()}.arrow"

    def stored(rows: range) -> Dataset | None:
        path = place(rows)
        return None if path is None or not reuse else _stored(path, len(rows))

    parts: list[Dataset] = []
    while len(parts) < len(spans) and (part := stored(spans[len(parts)])) is not None:
        parts.append(part)
    found = sum(map(len, parts))
    said = f"{title} ({found} of {len(dataset)} rows found)" if found else title
    # What was found does not count for the rows per second.
    with tqdm(total=len(dataset), initial=found, desc=said, unit="row", disable=title is None) as bar:
        for rows in spans[len(parts) :]:
            if (part := stored(rows)) is None:
                part = _store(_written(dataset, rows, compute, batch_size, bar), place(rows))
            else:
                bar.update(len(rows))
            parts.append(part)
    return concatenate_datasets(parts)


def _written(dataset: Dataset, rows: range, compute: Compute, batch_size: int, bar: tqdm) -> pa.Buffer:
    """The computed columns of a part as the bytes of an Arrow file."""
    buffer = pa.BufferOutputStream()
    with ArrowWriter(features=STORED_FEATURES, stream=buffer) as writer:
        for start in range(rows.start, rows.stop, batch_size):
            numbers = range(start, min(start + batch_size, rows.stop))
            batch = dataset[numbers.start : numbers.stop]
            values = zip(*batch.values(), strict=True)
            writer.write_batch(compute([dict(zip(batch, row, strict=True)) for row in values], numbers))
            bar.update(len(numbers))
        writer.finalize()
    return buffer.getvalue()


def _stored(path: Path, rows: int) -> Dataset | None:
    """The part in a file; None if there is none, or it is not as it was written, and then it is removed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            end = max(0, len(data) - len(MARK) - DIGEST_SIZE)
            with memoryview(data) as view, view[:end] as content:
                whole = view[end:] == MARK + _digest(content)
        if whole:
            part = Dataset.from_file(str(path))
            if len(part) == rows and part.features == STORED_FEATURES:
                return part
    except FileNotFoundError:
        return None
    except (OSError, ValueError, pa.ArrowException) as error:
        logger.debug(f"{path}: {error}")
    logger.warning(f"{path}, where teacher vectors were kept, is damaged: they are computed again.")
    with contextlib.suppress(OSError):
        path.unlink()
    return None


def _digest(data: Any) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_SIZE).digest()


def _store(part: pa.Buffer, path: Path | None) -> Dataset:
    if path is None:
        return Dataset.from_buffer(part)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(part)
        file.write(MARK + _digest(part))
    return Dataset.from_file(str(path))


class _Digest(io.RawIOBase):
    """A file that keeps nothing of what is written to it but a digest."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return len(data)


def _contents(dataset: Dataset, rows: range, step: int = 256) -> str:
    """A digest of the stored values of some rows."""
    stored = dataset.with_format("arrow")
    sink = _Digest()
    for start in range(rows.start, rows.stop, step):
        table = stored[start : min(start + step, rows.stop)].replace_schema_metadata(None)
        # A slice still has the bits of its neighbours in its bitmaps; what is taken is copied and has not.
        table = table.take(list(range(len(table)))).combine_chunks()
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as stream:
            stream.write_table(table)
    return sink.digest.hexdigest()
