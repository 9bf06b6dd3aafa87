"""Parts of a write that does not count yet.

A part is some documents that follow each other, with their vectors. It is either there as a whole or not, and a write
that was killed keeps the parts it has. Any process may stage a part; the numbers say how the parts follow each other.

All of this only saves work: a part or a plan with which anything is wrong counts as one that is not there.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..._files import atomic_write, fsync, replace
from ...data import BadSampleError
from ..documents import Document
from .index_errors import DamagedIndexError, IndexMismatchError
from .layout import FileEntry, as_json, reading, remove
from .manifest import Head
from .segments import SCHEMA, map_table, open_tensors, read_tensor, record_batches, write_tensors

PLAN = "plan.json"
UNIT_TOLERANCE = 1e-3
_PART = re.compile(r"part-(\d+)\.safetensors")


@dataclass(frozen=True)
class StagedPart:
    """A part that is there. Its files are opened when they are needed, as there may be very many parts.

    Args:
        path: Its file of vectors; that of its documents is beside it.
        ids: Its documents, without those that were skipped.
        skipped: Why documents were left out.
    """

    path: Path
    ids: list[str]
    skipped: list[BadSampleError]

    @property
    def vectors(self) -> np.ndarray:
        """(n, d) float32."""
        with open_tensors(self.path) as file:
            return file.get_tensor("vectors")

    def batches(self) -> Iterator[tuple[pa.RecordBatch, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the documents in record batches.

        Yields:
            A batch, its vectors (m, d), the document of each (m,), counted from the first of the batch, and the slice
            of each (m,); slice -1 stands for the last.
        """
        with open_tensors(self.path) as file:
            vectors, document, slices = (file.get_tensor(name) for name in ("vectors", "document", "slice"))
        first = 0
        for batch in map_table(self.path.with_suffix(".arrow")).to_batches():
            low, high = np.searchsorted(document, [first, first + batch.num_rows]).tolist()
            yield batch, vectors[low:high], document[low:high] - first, slices[low:high]
            first += batch.num_rows


class Staging:
    """The parts of the write in progress, in the folder `pending` of an index.

    ```python
    staging = Staging.open(folder)            # in any process, while one has `index.writer()` open
    if not staging.holds(7, documents):
        staging.stage(7, documents, vectors)  # documents[0] .. and their vectors
    ```

    Args:
        folder: The folder `pending`.
        dim: Width of the vectors.
        positions: `"last"`: one vector for each document, `"all"`: one for each of its slices.
        write: Which write the parts belong to; those of others do not count.
    """

    def __init__(self, folder: Path, dim: int, positions: str, write: str) -> None:
        self.folder = folder
        self.dim = dim
        self.positions = positions
        self.write = write

    @classmethod
    def open(cls, index_folder: str | Path) -> "Staging":
        """Join the write in progress of an index.

        Raises:
            FileNotFoundError: There is none.
        """
        folder = Path(index_folder) / "pending"
        plan = read_plan(folder)
        if plan is None:
            raise FileNotFoundError(f"{index_folder} is not being written. Open `index.writer()` in one process.")
        return cls(folder, plan["head"]["dim"], plan["head"]["positions"], plan["write"])

    def holds(self, number: int, documents: Sequence[Document]) -> bool:
        """Whether a part is there, as a whole, and made of these documents."""
        if not self._path(number).is_file():
            return False
        try:
            self._read(number, part_key(documents))
        except (DamagedIndexError, OSError):
            return False
        return True

    def stage(
        self,
        number: int,
        documents: Sequence[Document],
        vectors: Sequence[np.ndarray | None],
        skipped: Sequence[BadSampleError] = (),
    ) -> None:
        """Write a part, which may be there already.

        Args:
            number: Its number. Documents of the index stand in the order of part numbers.
            documents: Its documents.
            vectors: For each document a vector (d,) or its vectors (S, d); `None` leaves the document out.
            skipped: Why documents were left out.

        Raises:
            IndexMismatchError: Vectors have another width, or there are several where one is expected.
            ValueError: Vectors are not finite or of length 1; the error names the document.
            BadSampleError: A document cannot be stored.
        """
        checked = [self._checked(*row) for row in zip(documents, vectors, strict=True)]
        kept = [(document, rows) for document, rows in zip(documents, checked, strict=True) if rows is not None]
        self.folder.mkdir(exist_ok=True)
        texts = self._path(number).with_suffix(".arrow")
        temporary = texts.with_name(texts.name + ".tmp")
        for path in (texts, self._path(number)):
            for place in (path, path.with_name(path.name + ".tmp")):
                if place.exists() and not place.is_file():
                    remove(place)
        with pa.ipc.new_stream(str(temporary), SCHEMA) as writer:
            for batch in record_batches(document.to_row() for document, _ in kept):
                writer.write_batch(batch)
        entry = FileEntry.of(temporary)
        replace(temporary, texts)
        counts = [len(rows) for _, rows in kept]
        slices = [np.arange(count) if self.positions == "all" else np.array([-1]) for count in counts]
        values = np.concatenate([rows for _, rows in kept]) if kept else np.zeros((0, self.dim), np.float32)
        tensors = {
            "vectors": values,
            "document": np.repeat(np.arange(len(kept), dtype=np.int32), counts),
            "slice": np.concatenate([*slices, np.zeros(0)]).astype(np.int32),
        }
        header = {
            "key": part_key(documents),
            "texts": entry.sha256,
            "texts_size": str(entry.size),
            "skipped": json.dumps([vars(error) for error in skipped]),
            "write": self.write,
        }
        header["digest"] = _digest(tensors, header)
        temporary = self._path(number).with_suffix(".safetensors.tmp")
        write_tensors(temporary, tensors, header)
        replace(temporary, self._path(number))

    def numbers(self) -> list[int]:
        """The numbers of the parts that are there."""
        found = (_PART.fullmatch(path.name) for path in self.folder.glob("part-*.safetensors"))
        return sorted(int(match[1]) for match in found if match)

    def read(self, number: int) -> StagedPart:
        """Open a part.

        Raises:
            DamagedIndexError: It is not there or damaged.
        """
        try:
            return self._read(number)
        except (DamagedIndexError, OSError) as error:
            remove(self._path(number))
            raise DamagedIndexError(
                f"part {number} of the write is missing or damaged ({error}) Start the same write again: what is "
                "damaged is made anew."
            ) from error

    def _read(self, number: int, key: str | None = None) -> StagedPart:
        """Open a part; one of these documents, if a key is given.

        Raises:
            MissingFileError: It is not there.
            DamagedIndexError: Anything else is wrong with it.
        """
        path = self._path(number)
        with reading(path), open_tensors(path) as file:
            header = file.metadata()
            if header["write"] != self.write or header["key"] != (key or header["key"]):
                raise ValueError("it is a part of another write")
            count = file.get_slice("vectors").get_shape()[0]
            forms = {"vectors": (np.float32, (count, self.dim)), "document": (np.int32, (count,))}
            forms["slice"] = forms["document"]
            tensors = {name: read_tensor(file, name, *form) for name, form in forms.items()}
            if _digest(tensors, header) != header["digest"]:
                raise ValueError("it was changed")
            skipped = [BadSampleError(**values) for values in json.loads(header["skipped"])]
            texts = FileEntry(path.with_suffix(".arrow").name, int(header["texts_size"]), header["texts"])
        ids = map_table(texts.check(self.folder, verify=True))["id"].to_pylist()
        return StagedPart(path, ids, skipped)

    def clear(self) -> None:
        """Forget all parts."""
        remove(self.folder)

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.safetensors"

    def _checked(self, document: Document, vectors: np.ndarray | None) -> np.ndarray | None:
        if vectors is None:
            return None
        rows = np.atleast_2d(np.asarray(vectors, dtype=np.float32))
        where = f"document {document.id!r}"
        if rows.ndim != 2 or rows.shape[1] != self.dim:
            raise IndexMismatchError(
                f"{where}: expected vectors of {self.dim} dimensions, as the index has, got the shape "
                f"{np.shape(vectors)}."
            )
        if not len(rows) or (self.positions == "last" and len(rows) != 1):
            raise IndexMismatchError(
                f"{where}: got {len(rows)} vectors; with positions={self.positions!r} a document has "
                f"{'one' if self.positions == 'last' else 'one for each slice'}."
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{where}: its vector has NaN or infinite numbers.")
        lengths = np.linalg.norm(rows, axis=1)
        if (np.abs(lengths - 1) > UNIT_TOLERANCE).any():
            worst = lengths[np.argmax(np.abs(lengths - 1))]
            raise ValueError(
                f"{where}: its vector has the length {worst:.4g} instead of 1. Divide vectors by their length, if "
                "cosines are what you want."
            )
        return rows


def _digest(tensors: dict[str, np.ndarray], header: Mapping[str, str]) -> str:
    """SHA-256 over the tensors of a part, and all that its header says besides."""
    found = hashlib.sha256(json.dumps(sorted(item for item in header.items() if item[0] != "digest")).encode())
    for name in sorted(tensors):
        found.update(np.ascontiguousarray(tensors[name]).data)
    return found.hexdigest()


def part_key(documents: Sequence[Document]) -> str:
    """What tells a part from others: the digests of its documents; it reads their image files."""
    found = hashlib.sha256()
    for document in documents:
        try:
            found.update(f"{document.digest}\n".encode())
        except BadSampleError as error:  # it is going to be skipped, or to stop the write
            found.update(f"{document.id!r} {error}\n".encode())
    return found.hexdigest()


def read_plan(folder: Path) -> dict[str, Any] | None:
    """Read what the write in progress is about; `None` if there is none that can go on."""
    try:
        if folder.is_symlink() or any(path.is_symlink() for path in folder.iterdir()):
            return None
        plan = json.loads((folder / PLAN).read_bytes())
        Head.from_dict(plan["head"])
        is_plan = all(isinstance(plan[key], str) for key in ("kind", "uid", "write")) and type(plan["base"]) is int
    except Exception:  # whatever is wrong with it: nothing but work is lost
        return None
    return plan if is_plan and plan["write"] else None


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Say what the write is about, before its first part."""
    folder.mkdir(exist_ok=True)
    atomic_write(folder / PLAN, as_json(plan))
    fsync(folder.parent)
