"""Segments: documents in an Arrow file, their vectors in a safetensors file, both written once and then only read."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...data import BadSampleError
from ...data.documents import Document
from .codecs import Codec
from .index_errors import DamagedIndexError
from .layout import (
    FIX,
    SCHEMA,
    FileEntry,
    SegmentEntry,
    check_tensor,
    checked_read,
    map_table,
    open_tensors,
    write_tensors,
)


@dataclass(frozen=True)
class Limits:
    """Sizes of what a store writes.

    Args:
        batch_documents: The most documents of a record batch.
        batch_bytes: A batch ends after this many bytes of images.
        segment_documents: A segment ends after this many documents.
        segment_bytes: Or after this many bytes of either of its files.
        small_segment: A segment of fewer documents is small.
        most_small_segments: Once so many small segments stand at the end, the next write joins them.
    """

    batch_documents: int = 256
    batch_bytes: int = 32 * 2**20
    segment_documents: int = 65536
    segment_bytes: int = 512 * 2**20
    small_segment: int = 1024
    most_small_segments: int = 32


def record_batches(rows: Iterable[Mapping[str, Any]], limits: Limits) -> Iterator[pa.RecordBatch]:
    """Put stored documents into record batches of bounded size."""
    waiting: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        waiting.append(row)
        size += sum(len(image["bytes"]) for image in row["images"])
        if len(waiting) == limits.batch_documents or size >= limits.batch_bytes:
            yield pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)
            waiting, size = [], 0
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)


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
    def open(cls, folder: Path, entry: SegmentEntry, codec: Codec | None, positions: str, verify: bool) -> "Segment":
        """Open a segment. Its files are always checked so far that reading them is safe afterwards.

        Args:
            folder: The folder `segments`.
            entry: What the manifest says of it.
            codec: How vectors are stored.
            positions: `"last"` or `"all"`.
            verify: Compare the digests, too.

        Raises:
            MissingFileError: A file is missing.
            DamagedIndexError: A file is damaged.
        """
        texts, vectors = (file.check(folder, verify) for file in (entry.texts, entry.vectors))
        segment = cls(entry, map_table(texts), open_tensors(vectors))
        if segment.table.num_rows != entry.documents:
            raise DamagedIndexError(
                f"{texts} has {segment.table.num_rows} documents instead of {entry.documents}. {FIX}."
            )
        with checked_read(vectors):
            rows = (entry.rows,)
            lengths = {segment.tensors.get_slice(name).get_shape()[0] for name in ("codes", "document", "slice")}
            if lengths != {entry.rows}:
                raise ValueError(f"it has {sorted(lengths)} vectors instead of {entry.rows}")
            if codec is None:
                raise ValueError("the manifest does not say how its vectors are stored")
            check_tensor(segment.tensors, "codes", codec.code_dtype, (entry.rows, codec.code_width))
            for name in ("document", "slice"):
                check_tensor(segment.tensors, name, np.int32, rows)
            document = segment.document
            if positions == "last":
                fits = np.array_equal(document, np.arange(entry.documents)) and (segment.slice == -1).all()
            else:
                steps = np.diff(document, prepend=-1, append=entry.documents)
                fits = bool(((steps == 0) | (steps == 1)).all()) and (segment.slice >= 0).all()
                fits = fits and (not entry.documents or entry.rows >= entry.documents)
            if not fits:
                raise ValueError(f"its vectors are not those of the documents of {texts.name}")
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
        texts = self.table["metadata"].slice(first).to_pylist()
        try:
            found = [json.loads(text) for text in texts]
            if not all(isinstance(values, dict) for values in found):
                raise ValueError("it is no object")
        except (ValueError, RecursionError) as error:
            raise DamagedIndexError(
                f"{self.entry.texts.name} has metadata that is no JSON ({error}). {FIX}."
            ) from error
        return found

    def read(self, number: int) -> Document:
        """Read a document by its number in the segment.

        Raises:
            DamagedIndexError: What is stored is no document.
        """
        try:
            return Document.from_row(self.table.slice(number, 1).to_pylist()[0])
        except (BadSampleError, RecursionError) as error:
            raise DamagedIndexError(f"{self.entry.texts.name} holds no document ({error}). {FIX}.") from error


class SegmentWriter:
    """Writes documents and their codes into segments of bounded size, in order.

    Args:
        folder: The folder `segments` of the index.
        number: Number of the first segment to be written.
        limits: Sizes of segments.
    """

    def __init__(self, folder: Path, number: int, limits: Limits) -> None:
        self.folder = folder
        self.number = number
        self._limits = limits
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
        limits = self._limits
        if self._documents >= limits.segment_documents or max(self._bytes, self._code_bytes) >= limits.segment_bytes:
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
