"""Segments: documents in an Arrow file, their vectors in a safetensors file, both written once and then only read."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .documents import DOCUMENT_FEATURES, Document
from .errors import DamagedIndexError
from .files import MEND, FileEntry
from .manifest import SegmentEntry

SCHEMA: pa.Schema = DOCUMENT_FEATURES.arrow_schema
# A segment ends after this many documents, or bytes of either file.
MOST_DOCUMENTS = 65536
MOST_BYTES = 512 * 2**20
BATCH_DOCUMENTS = 256
BATCH_BYTES = 32 * 2**20


def record_batches(rows: Iterable[Mapping[str, Any]]) -> Iterator[pa.RecordBatch]:
    """Put stored documents into record batches of bounded size."""
    waiting: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += sum(len(image["bytes"]) for image in row["images"])
        if len(waiting) == BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)
            waiting, size = [], 0
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)


def map_table(path: Path) -> pa.Table:
    """Open an Arrow file of documents without reading it; it stays readable when its name is gone.

    Raises:
        DamagedIndexError: It is no such file.
    """
    try:
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            table = reader.read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedIndexError(f"{path} cannot be read ({error}). {MEND}.") from error
    if table.schema.names != SCHEMA.names or table.schema.types != SCHEMA.types:
        raise DamagedIndexError(f"{path} holds no documents: it has the columns {', '.join(table.schema.names)}.")
    return table


def write_tensors(path: Path, tensors: dict[str, np.ndarray], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file."""
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path, metadata=header)


def open_tensors(path: Path) -> Any:
    """Open a safetensors file without reading it.

    Raises:
        DamagedIndexError: It is none.
    """
    try:
        return safe_open(path, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise DamagedIndexError(f"{path} cannot be read ({error}). {MEND}.") from error


@dataclass(frozen=True)
class Segment:
    """A segment that is open.

    Args:
        entry: What the manifest says of it.
        table: Its documents.
        tensors: Its vectors: `codes` (n, w), `document` (n,) int32, its number in this segment, `slice` (n,) int32.
    """

    entry: SegmentEntry
    table: pa.Table
    tensors: Any

    @classmethod
    def open(cls, folder: Path, entry: SegmentEntry, verify: bool) -> "Segment":
        """Open a segment.

        Raises:
            DamagedIndexError: A file is missing or damaged.
        """
        texts, vectors = (file.check(folder, verify) for file in (entry.texts, entry.vectors))
        segment = cls(entry, map_table(texts), open_tensors(vectors))
        if segment.table.num_rows != entry.documents:
            raise DamagedIndexError(f"{texts} has {segment.table.num_rows} documents instead of {entry.documents}.")
        if not {"codes", "document", "slice"} <= set(segment.tensors.keys()):
            raise DamagedIndexError(f"{vectors} holds no vectors of an index.")
        counts = {segment.tensors.get_slice(name).get_shape()[0] for name in ("codes", "document", "slice")}
        if counts != {entry.rows}:
            raise DamagedIndexError(f"{vectors} has {sorted(counts)} vectors instead of {entry.rows}.")
        if entry.rows and not 0 <= int(segment.document.min()) <= int(segment.document.max()) < entry.documents:
            raise DamagedIndexError(f"{vectors} has vectors of documents that {texts.name} does not have.")
        return segment

    @cached_property
    def document(self) -> np.ndarray:
        """(rows,) int32, the document of each vector, counted from the first of the segment."""
        return self.tensors.get_tensor("document")

    @cached_property
    def slice(self) -> np.ndarray:
        """(rows,) int32, the slice at which each vector was taken."""
        return self.tensors.get_tensor("slice")

    def codes(self, first: int, last: int) -> np.ndarray:
        """Codes of the rows from `first` to before `last`, (last - first, w)."""
        return self.tensors.get_slice("codes")[first:last]

    def ids(self, first: int = 0) -> list[str]:
        """Ids of the documents from `first` on."""
        return self.table["id"].slice(first).to_pylist()

    def metadata(self, first: int = 0) -> list[dict[str, Any]]:
        """Metadata of the documents from `first` on."""
        return [json.loads(text) for text in self.table["metadata"].slice(first).to_pylist()]

    def read(self, number: int) -> Document:
        """Read a document by its number in the segment."""
        return Document.from_row(self.table.slice(number, 1).to_pylist()[0])


class SegmentWriter:
    """Writes documents and their codes into segments of bounded size, in order.

    Args:
        folder: The folder `segments` of the index.
        number: Number of the first segment to be written.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self.entries: list[SegmentEntry] = []
        self._writer: Any = None
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._documents = self._bytes = self._code_bytes = 0

    def add(self, batch: pa.RecordBatch, codes: np.ndarray, document: np.ndarray, slices: np.ndarray) -> None:
        """Add documents.

        Args:
            batch: n documents.
            codes: (m, w) codes of their vectors.
            document: (m,) the document of each, counted from the first of the batch.
            slices: (m,) the slice of each.
        """
        if self._writer is None:
            self._writer = pa.ipc.new_stream(str(self._texts), SCHEMA)
        self._writer.write_batch(batch)
        # copies, as codes may be views into a much larger part
        self._parts.append((codes.copy(), (document + self._documents).astype(np.int32), slices.astype(np.int32)))
        self._documents += batch.num_rows
        self._bytes += batch.nbytes
        self._code_bytes += codes.nbytes
        if self._documents >= MOST_DOCUMENTS or max(self._bytes, self._code_bytes) >= MOST_BYTES:
            self._end()

    def finish(self) -> list[SegmentEntry]:
        """Write what is left. Returns the segments, whose files are on the disk."""
        if self._writer is not None:
            self._end()
        return self.entries

    @property
    def _texts(self) -> Path:
        return self.folder / f"{self.number:06d}.arrow"

    def _end(self) -> None:
        self._writer.close()
        codes, document, slices = (np.concatenate(arrays) for arrays in zip(*self._parts, strict=True))
        vectors = self._texts.with_suffix(".safetensors")
        write_tensors(vectors, {"codes": codes, "document": document, "slice": slices})
        files = FileEntry.of(self._texts), FileEntry.of(vectors)
        self.entries.append(SegmentEntry(self._documents, len(codes), *files))
        self.number += 1
        self._writer, self._parts = None, []
        self._documents = self._bytes = self._code_bytes = 0
