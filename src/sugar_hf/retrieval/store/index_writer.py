"""The one write in progress of an index: documents are staged in parts, and a commit adds all of them or none."""

import hashlib
import json
import os
import re
import shutil
import socket
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..._files import atomic_path, atomic_write, fsync
from ...data import BadSampleError
from ...data.documents import Document
from ...model.embedding_sugar import first_not_unit
from ..embedder import are_equal
from .codecs import Codec
from .layout import (
    CURRENT,
    SCHEMA,
    DamagedIndexError,
    Deleted,
    DuplicateIdError,
    FileEntry,
    Graph,
    IndexMismatchError,
    IndexSpec,
    Limits,
    LockedIndexError,
    Manifest,
    Segment,
    SegmentEntry,
    as_json,
    check_links,
    map_table,
    names_of,
    open_tensors,
    read_current,
    read_tensors,
)
from .postings import VERSION as WORDS_VERSION
from .postings import PostingsBuilder
from .snapshot import DocumentNumber, IndexStore, Snapshot, read_settled

#: From this share of deleted documents on, compaction is advised.
MUCH_DELETED = 1 / 3
_PLAN = "plan.json"
_PART = re.compile(r"part-(\d+)\.safetensors")
# Files left behind when creating an index was interrupted.
_LEFT_BEHIND = re.compile(r"LOCK|LOCK\.owner|manifest-000000\.json(\.\d+\.tmp)?|CURRENT\.\d+\.tmp")
_OLD = ("manifest-*.json", "deleted-*.safetensors", "graph-*", "milvus-*", "*.tmp", "segments/*")

#: n documents, the codes of m vectors (m, w), the document of each (m,), counted from the first of the batch, and the
#: slice of each (m,); slice -1 stands for the last.
Batch = tuple[pa.RecordBatch, np.ndarray, np.ndarray, np.ndarray]


@dataclass
class AddReport:
    """The outcome of a write.

    Args:
        added: Number of new documents.
        updated: Number of documents that replaced one of the same id.
        duplicates: Number of documents that were left out because the index has their id.
        skipped: Why documents were left out that cannot be embedded.
        seconds: How long it took.
    """

    added: int = 0
    updated: int = 0
    duplicates: int = 0
    skipped: list[BadSampleError] = field(default_factory=list)
    seconds: float = 0.0


# ---- Files ----


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists. What cannot be removed now is left for the next write."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file."""
    try:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path, metadata=header)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), str(error), str(path)) if number else OSError(f"{path}: {error}")) from error


def entries_of(*paths: Path) -> tuple[FileEntry, ...]:
    """Describe files, once their content is on the disk."""
    fsync(*paths)
    entries = []
    for path in paths:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            entries.append(FileEntry(path.name, file.tell(), sha256))
    return tuple(entries)


def write_current(folder: Path, manifest: Manifest) -> None:
    """Make a manifest the newest. Its files must already be on disk. A kill leaves it or the one before."""
    name, data, current = manifest.written()
    atomic_write(folder / name, data, (folder / CURRENT, current))


def record_batches(rows: Iterable[Mapping[str, Any]], limits: Limits) -> Iterator[pa.RecordBatch]:
    """Put stored documents into record batches of bounded size."""
    waiting, size = list[Mapping[str, Any]](), 0
    for row in rows:
        waiting.append(row)
        size += sum(len(image["bytes"]) for image in row["images"])
        if len(waiting) == limits.batch_documents or size >= limits.batch_bytes:
            yield pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)
            waiting, size = [], 0
    if waiting:
        yield pa.RecordBatch.from_pylist(waiting, schema=SCHEMA)


def write_segments(folder: Path, first: int, batches: Iterable[Batch], limits: Limits) -> list[SegmentEntry]:
    """Write documents and their codes into segments of bounded size, in order, and wait until they are on the disk.

    Args:
        folder: The folder `segments` of the index.
        first: Number of the first segment.
        batches: The documents.
        limits: Sizes of segments.
    """
    entries: list[SegmentEntry] = []
    left = iter(batches)
    batch = next(left, None)
    while batch is not None:
        path = folder / f"{first + len(entries):06d}.arrow"
        vectors, words = path.with_suffix(".safetensors"), path.with_name(f"{path.stem}-words.safetensors")
        builder = PostingsBuilder()
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        documents = size = code_size = 0
        with pa.ipc.new_stream(str(path), SCHEMA) as texts:
            while batch is not None:
                rows, codes, document, slices = batch
                texts.write_batch(rows)
                builder.add(rows)
                # copies, as codes may be views into a much larger part
                parts.append((codes.copy(), (document + documents).astype(np.int32), slices.astype(np.int32)))
                documents, size, code_size = documents + rows.num_rows, size + rows.nbytes, code_size + codes.nbytes
                batch = next(left, None)
                if documents >= limits.segment_documents or max(size, code_size) >= limits.segment_bytes:
                    break
        codes, document, slices = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        write_tensors(vectors, {"codes": codes, "document": document, "slice": slices})
        write_tensors(words, builder.postings().tensors(), {"version": WORDS_VERSION})
        entries.append(SegmentEntry(documents, len(codes), *entries_of(path, vectors, words)))
    return entries


# ---- Locks ----


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of an index while it is written. It is released when the process exits, even if killed.

    Raises:
        DamagedIndexError: The folder holds a link that leads out of it.
        LockedIndexError: Another process holds it.
        PermissionError: The folder cannot be written.
    """
    check_links(folder)
    lock, owner = FileLock(folder / "LOCK", timeout=0), folder / "LOCK.owner"
    try:
        lock.acquire()
    except Timeout as error:
        try:
            who = owner.read_text("utf-8")
        except OSError:
            who = "another process"
        raise LockedIndexError(
            f"{folder} is being written by {who}. Wait until it is done, or end that process."
        ) from error
    except OSError as error:
        raise PermissionError(
            f"{folder} cannot be written ({error}). It can be searched; to change it, copy it to a folder that "
            "you can write."
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a temporary folder is in use by a process that lives."""
    if not (path / "LOCK").is_file():
        return False
    try:
        with FileLock(path / "LOCK", timeout=0):
            return False
    except (Timeout, OSError):
        return True


# ---- Parts that are not committed yet ----


@dataclass(frozen=True)
class PendingPart:
    """A part on disk, without the documents that were skipped. There may be very many: files are opened when needed.

    Args:
        path: Its file of vectors; that of its documents is beside it.
        ids: Its documents.
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

    def batches(self, codec: Codec | None) -> Iterator[Batch]:
        """Yield the documents in record batches, with the codes of their vectors."""
        assert codec is not None
        with open_tensors(self.path) as file:
            vectors, document, slices = (file.get_tensor(name) for name in ("vectors", "document", "slice"))
        codes, first = codec.encode(vectors), 0
        for batch in map_table(self.path.with_suffix(".arrow")).to_batches():
            low, high = np.searchsorted(document, [first, first + batch.num_rows]).tolist()
            yield batch, codes[low:high], document[low:high] - first, slices[low:high]
            first += batch.num_rows


@dataclass(frozen=True)
class PendingParts:
    """The parts of the write in progress, in the folder `pending` of an index.

    A part is some consecutive documents with their vectors, staged atomically by any process. A write that was killed
    keeps its parts. They only save work: a part with which anything is wrong is treated as missing.

    Args:
        folder: The folder `pending`.
        dim: Width of the vectors.
        positions: `"last"`: one vector for each document, `"all"`: one for each of its slices.
        write: The write that the parts belong to; those of others are ignored.
        limits: Sizes of record batches.
    """

    folder: Path
    dim: int
    positions: str
    write: str
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def open(cls, index_folder: str | Path) -> "PendingParts":
        """Join the write in progress of an index.

        Raises:
            FileNotFoundError: There is none.
        """
        folder = Path(index_folder) / "pending"
        plan = _read_plan(folder)
        if plan is None:
            raise FileNotFoundError(f"{index_folder} is not being written. Open `index.writer()` in one process.")
        return cls(folder, plan["head"]["dim"], plan["head"]["positions"], plan["write"])

    def holds(self, number: int, documents: Sequence[Document]) -> bool:
        """Whether a part is there, undamaged, and made of these documents."""
        with suppress(DamagedIndexError, OSError):
            return self._path(number).is_file() and bool(self.read(number, _part_key(documents)))
        return False

    def stage(
        self,
        number: int,
        documents: Sequence[Document],
        vectors: Sequence[np.ndarray | None],
        skipped: Sequence[BadSampleError] = (),
    ) -> None:
        """Write a part; an existing one of this number is replaced.

        Args:
            number: Its number. Documents of the index stand in the order of part numbers.
            documents: Its documents.
            vectors: For each document a vector (d,) or its vectors (S, d); `None` leaves the document out.
            skipped: Why documents were left out.

        Raises:
            IndexMismatchError: Vectors have another width, or there are several where one is expected.
            ValueError: Vectors are not finite or not of length 1; the error names the document.
            BadSampleError: A document cannot be stored.
        """
        given = zip(documents, vectors, strict=True)
        kept = [(document, self._checked(document, rows)) for document, rows in given if rows is not None]
        self.folder.mkdir(exist_ok=True)
        path, digests = self._path(number), dict[str, str]()
        texts = path.with_suffix(".arrow")
        for place in (path, texts):
            if place.exists() and not place.is_file():
                remove(place)

        def rows() -> Iterator[dict[str, Any]]:
            for document, _ in kept:
                row = document.to_row()
                digests[document.id] = row["digest"]
                yield row

        with atomic_path(texts) as temporary:
            with pa.ipc.new_stream(str(temporary), SCHEMA) as writer:
                for batch in record_batches(rows(), self.limits):
                    writer.write_batch(batch)
            [entry] = entries_of(temporary)
        counts = [len(vectors) for _, vectors in kept]
        slices = [np.arange(count) if self.positions == "all" else np.array([-1]) for count in counts]
        tensors = {
            "vectors": np.concatenate([vectors for _, vectors in kept] or [np.zeros((0, self.dim), np.float32)]),
            "document": np.repeat(np.arange(len(kept), dtype=np.int32), counts),
            "slice": np.concatenate([*slices, np.zeros(0)]).astype(np.int32),
        }
        header = {
            "key": _part_key(documents, digests),
            "texts": entry.sha256,
            "texts_size": str(entry.size),
            "skipped": json.dumps([vars(error) for error in skipped]),
            "write": self.write,
        }
        header["digest"] = _part_digest(tensors, header)
        with atomic_path(path) as temporary:
            write_tensors(temporary, tensors, header)

    def numbers(self) -> list[int]:
        """Return the numbers of the parts on disk."""
        names = (_PART.fullmatch(path.name) for path in self.folder.glob("part-*.safetensors"))
        return sorted(int(match[1]) for match in names if match)

    def read(self, number: int, key: str | None = None) -> PendingPart:
        """Open a part; one of these documents, if a key is given."""
        path, numbers = self._path(number), (np.int32, (None,))
        forms = {"vectors": (np.float32, (None, self.dim)), "document": numbers, "slice": numbers}
        try:
            tensors, header = read_tensors(path, forms)
            if header["write"] != self.write or header["key"] != (key or header["key"]):
                raise ValueError("it is a part of another write")
            if _part_digest(tensors, header) != header["digest"]:
                raise ValueError("it was changed")
            skipped = [BadSampleError(**values) for values in json.loads(header["skipped"])]
            texts = FileEntry(path.with_suffix(".arrow").name, int(header["texts_size"]), header["texts"])
            return PendingPart(path, map_table(self.folder / texts.name, texts)["id"].to_pylist(), skipped)
        except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
            remove(path)
            raise DamagedIndexError(
                f"part {number} of the write is missing or damaged ({error}). Repeat the same call: damaged parts are "
                "embedded again."
            ) from error

    def _path(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.safetensors"

    def _checked(self, document: Document, vectors: np.ndarray) -> np.ndarray:
        """Return the vectors of a document, (S, d) float32."""
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
        if (wrong := first_not_unit(rows)) is not None:
            length = np.linalg.norm(rows[wrong])
            raise ValueError(
                f"{where}: its vector has the length {length:.4g} instead of 1. Divide vectors by their length, if "
                "cosines are what you want."
            )
        return rows


def _part_digest(tensors: dict[str, np.ndarray], header: Mapping[str, str]) -> str:
    """Return the SHA-256 over the tensors of a part and the rest of its header."""
    sha256 = hashlib.sha256(json.dumps(sorted(item for item in header.items() if item[0] != "digest")).encode())
    for name in sorted(tensors):
        sha256.update(np.ascontiguousarray(tensors[name]).data)
    return sha256.hexdigest()


def _part_key(documents: Sequence[Document], digests: Mapping[str, str] | None = None) -> str:
    """Return the digest over some documents, which reads the image files of those whose digests are not given."""
    sha256 = hashlib.sha256()
    for document in documents:
        try:
            sha256.update(f"{(digests or {}).get(document.id) or document.digest}\n".encode())
        except BadSampleError as error:  # it is going to be skipped, or to stop the write
            sha256.update(f"{document.id!r} {error}\n".encode())
    return sha256.hexdigest()


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """Read the plan of the write in progress; `None` if there is none that can be resumed."""
    try:
        if folder.is_symlink() or any(path.is_symlink() for path in folder.iterdir()):
            return None
        plan = json.loads((folder / _PLAN).read_bytes())
        IndexSpec.from_dict(plan["head"])
        is_plan = all(isinstance(plan[key], str) for key in ("kind", "uid", "write")) and type(plan["base"]) is int
    except Exception:  # whatever is wrong with it: nothing but work is lost
        return None
    return plan if is_plan and plan["write"] else None


def _is_same_plan(found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether the parts of a write that was stopped can be used: the same work, with an equal model."""
    ours, theirs = dict(plan["head"]), dict(found["head"])
    prints = [values.pop("fingerprint") for values in (ours, theirs)]
    for values in (ours, theirs):
        values["settings"] = {**(values["settings"] or {}), "model": "", "dtype": ""}
    return ours == theirs and all(plan[key] == found[key] for key in ("kind", "uid", "base")) and are_equal(*prints)


# ---- The write ----


def holds_index(folder: Path) -> bool:
    """Whether a folder is one of an index."""
    return (folder / CURRENT).is_file()


def create_index(folder: Path, spec: IndexSpec, *, may_exist: bool = False) -> int:
    """Write an index without documents. Returns the number of documents of one that is there and may be.

    Raises:
        FileExistsError: The folder holds an index, or other files.
        LockedIndexError: Another process is writing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if holds_index(folder):
        if may_exist:
            return read_settled(folder, lambda: read_current(folder)).documents
        raise FileExistsError(
            f"{folder} holds an index. Open it with SugarIndex.load, or pass overwrite=True to replace it."
        )
    others = sorted(path.name for path in folder.iterdir() if not _LEFT_BEHIND.fullmatch(path.name))
    if others:
        raise FileExistsError(f"{folder} holds {others[0]!r} and no index. Give an empty or a new folder.")
    with write_lock(folder):
        if not holds_index(folder):
            write_current(folder, Manifest(uuid.uuid4().hex[:12], 0, 0, spec))
    return 0


@contextmanager
def open_writer(store: IndexStore, kind: str = "add", spec: IndexSpec | None = None) -> Iterator["IndexWriter"]:
    """Begin the one write of an index, for the time of a block. Arguments are those of [`IndexWriter`].

    Raises:
        LockedIndexError: Another process is writing.
        PermissionError: The folder cannot be written.
    """
    with write_lock(store.folder):
        store.refresh()  # what others wrote
        clean(store.folder, store.snapshot.manifest)
        plan = _read_plan(store.folder / "pending")
        if plan is None or plan["write"] == store.snapshot.manifest.write:
            remove(store.folder / "pending")  # a kill came after the commit
        yield IndexWriter(store, kind, spec)


class IndexWriter:
    """The one write in progress of an index; made by `SugarIndex.writer`.

    ```python
    with index.writer() as writer:
        writer.pending.stage(0, documents, vectors)  # `pending` may be sent to other processes
        writer.commit()
    ```

    Without a commit nothing changes, and parts that are staged are kept for the next write of the same kind.

    Args:
        store: The store of the index.
        kind: `"add"` adds to the documents, `"build"` replaces them; other names are kinds of adding whose parts are
            not to be mixed.
        spec: How the index will be made; for `"build"`.
    """

    def __init__(self, store: IndexStore, kind: str = "add", spec: IndexSpec | None = None) -> None:
        self._store = store
        self._kind = kind
        self._spec = spec or store.spec
        self._pending: PendingParts | None = None

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot."""
        return self._store.snapshot

    @property
    def pending(self) -> PendingParts:
        """The parts of this write. From the first use on, others join it; parts of another write are removed."""
        if self._pending is None:
            folder, manifest = self._store.folder / "pending", self.snapshot.manifest
            plan = {"kind": self._kind, "uid": manifest.uid, "base": manifest.base, "head": asdict(self._spec)}
            found = _read_plan(folder)
            if found is None or not _is_same_plan(found, plan):
                remove(folder)
                found = {**plan, "write": uuid.uuid4().hex}
                folder.mkdir(exist_ok=True)
                atomic_write(folder / _PLAN, as_json(found))
                fsync(folder.parent)
            limits = self._store.limits
            self._pending = PendingParts(folder, self._spec.dim, self._spec.positions, found["write"], limits)
        return self._pending

    def commit(self, numbers: Sequence[int] | None = None, *, on_duplicate: str = "raise") -> AddReport:
        """Add the documents of parts, all or none of them.

        Args:
            numbers: The parts, in the order of the documents; all on disk when `None`.
            on_duplicate: `"raise"` if the index has an id already, or `"update"` that document.

        Raises:
            DuplicateIdError: The index has an id, or it comes twice in the parts.
            DamagedIndexError: A part is missing or damaged; the index stays as it was.
        """
        pending, folder = self.pending, self._store.folder
        parts = [pending.read(number) for number in (pending.numbers() if numbers is None else numbers)]
        report = AddReport(skipped=[error for part in parts for error in part.skipped])
        parts = [part for part in parts if part.ids]
        is_build = self._kind == "build"
        old = self.snapshot.manifest
        replaced = _replaced_documents(parts, None if is_build else self.snapshot, on_duplicate)
        count = sum(len(part.ids) for part in parts)
        report.added, report.updated = count - len(replaced), len(replaced)
        if not count and not is_build:
            self._clear()
            return report
        codec, clipped = None if is_build else self.snapshot.codec, 0
        if codec is not None:
            clipped = sum(codec.clipped(part.vectors) for part in parts)
        elif parts:
            codec = Codec.fit(self._spec.vectors, (part.vectors for part in parts))
        kept, tail = ((), ()) if is_build else self._small_tail(self.snapshot.segments)
        (folder / "segments").mkdir(exist_ok=True)
        batches = chain(_stored_batches(folder, tail), *(part.batches(codec) for part in parts))
        written = write_segments(folder / "segments", old.next_segment, batches, self._store.limits)
        new = replace(
            old,
            generation=old.generation + 1,
            base=old.base + is_build,
            spec=self._spec,
            codec=None if codec is None else codec.to_dict(),
            segments=(*(segment.entry for segment in kept), *written),
            next_segment=old.next_segment + len(written),
            deleted=None if is_build else self._deleted(replaced),
            graph=None if is_build else old.graph,
            clipped=clipped + (0 if is_build else old.clipped),
            write=pending.write,
        )
        self._swap(new)
        self._clear()
        if replaced:
            self._advise()
        if clipped:  # the codec is that of the rows before
            warnings.warn(
                f"{clipped} of {new.rows - old.rows} new vectors lie outside of the ranges that the codec was fitted "
                "to at the first write, and lose precision. If that is a large share, build the index again, or use "
                "vectors='float16'.",
                stacklevel=3,
            )
        return report

    def delete(self, numbers: Sequence[DocumentNumber]) -> None:
        """Delete documents by their numbers."""
        if len(numbers):
            old = self.snapshot.manifest
            self._swap(replace(old, generation=old.generation + 1, deleted=self._deleted(numbers)))
            self._advise()

    def compact(self) -> None:
        """Write all documents that are not deleted anew, with their vectors as they are."""
        old, folder = self.snapshot.manifest, self._store.folder
        batches = _stored_batches(folder, self.snapshot.segments, self.snapshot.live)
        written = write_segments(folder / "segments", old.next_segment, batches, self._store.limits)
        new = replace(old, segments=tuple(written), next_segment=old.next_segment + len(written))
        self._swap(replace(new, generation=old.generation + 1, base=old.base + 1, deleted=None, graph=None))

    def _advise(self) -> None:
        share = 1 - len(self.snapshot.live_numbers) / self.snapshot.manifest.documents
        if share > MUCH_DELETED:
            warnings.warn(
                f"{share:.0%} of the documents in {self._store.folder} are deleted and still take space: compact() "
                "gives it back.",
                stacklevel=4,
            )

    def _clear(self) -> None:
        """Remove the parts, which are committed."""
        remove(self._store.folder / "pending")
        self._pending = None

    def _small_tail(self, segments: Sequence[Segment]) -> tuple[Sequence[Segment], Sequence[Segment]]:
        """Split off the small segments at the end, if there are many."""
        limits, start = self._store.limits, len(segments)
        while start and segments[start - 1].entry.documents < limits.small_segment:
            start -= 1
        if len(segments) - start < limits.most_small_segments:
            return segments, ()
        return segments[:start], segments[start:]

    def _deleted(self, numbers: Sequence[DocumentNumber]) -> Deleted | None:
        """Write the numbers of the documents that are deleted in the next snapshot."""
        old = self.snapshot
        documents = np.concatenate([old.deleted, np.sort(np.asarray(numbers, np.int64))])
        if not documents.size:
            return None
        path = self._store.folder / f"deleted-{old.manifest.generation + 1:06d}.safetensors"
        write_tensors(path, {"documents": documents})
        return Deleted(entries_of(path)[0], documents.size, old.deleted.size)

    def _swap(self, manifest: Manifest) -> None:
        """Make a manifest current. Its segments must already be on disk. If that fails, the old one is searched."""
        store, folder, old = self._store, self._store.folder, self.snapshot
        with store.guard:
            try:
                new = Snapshot.open(folder, manifest, old, verify=False, options=store.secrets, is_writer=True)
                new = replace(new, manifest=_with_graph(folder, new))
                fsync(*(place for place in (folder / "segments", folder) if place.is_dir()))
                _make_current(folder, new.manifest)
            except BaseException:
                if old.backend is not None:
                    old.backend.trim(len(old.row_document))
                store.refresh()  # it may be current all the same, if the error came late
                raise
            store.snapshot, shares = new, new.backend is old.backend
            gone = old.deleted[old.manifest.deleted.before :] if shares and old.manifest.deleted else ()
            with suppress(Exception):  # the write is done; rows that stay take space and are not found
                if new.backend is not None and len(gone):
                    # those that the snapshot before, which is still kept, did without already
                    new.backend.remove(np.flatnonzero(np.isin(old.row_document, gone)))
                if not shares and old.backend is not None:
                    old.backend.drop()
                    old.backend.close()
        clean(folder, new.manifest, old.manifest)


def _make_current(folder: Path, manifest: Manifest) -> None:
    """Write CURRENT. An error after it was replaced does not undo the write, and becomes a warning."""
    try:
        write_current(folder, manifest)
    except OSError as error:
        try:
            is_current = read_current(folder) == manifest
        except (OSError, DamagedIndexError):
            is_current = False
        if not is_current:
            raise
        warnings.warn(
            f"{folder} was written, but the disk has not confirmed it ({error}): after a power cut it may be as it "
            "was before.",
            stacklevel=5,
        )


def clean(folder: Path, *kept: Manifest) -> None:
    """Remove files that neither the given snapshots nor the one before the last need.

    What cannot be removed is left for the next write.
    """
    names = names_of(kept)
    if len(kept) == 1:
        path = folder / f"manifest-{kept[0].generation - 1:06d}.json"
        with suppress(OSError, DamagedIndexError):  # what a damaged one kept is of no use
            names |= names_of([Manifest.read(path, path.read_bytes())])
    for pattern in _OLD:
        with suppress(OSError):
            for path in folder.glob(pattern):
                if path.relative_to(folder).as_posix() not in names and not is_held(path):
                    remove(path)


def _with_graph(folder: Path, snapshot: Snapshot) -> Manifest:
    """Let the backend save what it built, unless nine of ten rows are saved already."""
    manifest, backend = snapshot.manifest, snapshot.backend
    if backend is None or (manifest.graph is not None and 10 * manifest.graph.rows >= 9 * manifest.rows):
        return manifest
    place = folder / f"graph-{manifest.generation:06d}"
    remove(place)
    place.mkdir()
    names = backend.save(place)
    if not names:
        place.rmdir()
        return manifest
    files = entries_of(*(place / name for name in names))
    fsync(place)
    return replace(manifest, graph=Graph(place.name, manifest.rows, files))


def _replaced_documents(
    parts: Sequence[PendingPart], known: Snapshot | None, on_duplicate: str
) -> list[DocumentNumber]:
    """Return the numbers of the documents that the parts replace."""
    seen: set[str] = set()
    twice: list[str] = []
    replaced: list[DocumentNumber] = []
    for part in parts:
        for name in part.ids:
            number = None if known is None else known.number(name)
            if name in seen or (number is not None and on_duplicate != "update"):
                twice.append(name)
            elif number is not None:
                replaced.append(number)
            seen.add(name)
    check_duplicates(twice)
    return replaced


def check_duplicates(names: Sequence[str]) -> None:
    """Raise an error that names the first few ids, if there are any, and the remedy."""
    if not names:
        return
    shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    raise DuplicateIdError(
        f"{len(names)} id{'s are' if len(names) > 1 else ' is'} in the index already or given twice: {shown}. Give "
        "every document an id of its own; to replace documents use update() or on_duplicate='update' (each id once), "
        "to leave them out on_duplicate='skip'."
    )


def _stored_batches(folder: Path, segments: Sequence[Segment], live: np.ndarray | None = None) -> Iterator[Batch]:
    """Yield the documents of segments with their codes; with `live` only those that are not deleted.

    Raises:
        DamagedIndexError: A file is not as it was written, which its copy would hide for ever.
    """
    start = 0
    for segment in segments:
        segment.entry.check(folder, verify=True)
        first = 0
        for batch in segment.table.to_batches():
            low, high = np.searchsorted(segment.document, [first, first + batch.num_rows]).tolist()
            codes = segment.tensors.get_slice("codes")[low:high]
            document, slices = segment.document[low:high] - first, segment.slice[low:high]
            kept = None if live is None else live[start + first : start + first + batch.num_rows]
            first += batch.num_rows
            if kept is not None:
                if not kept.any():
                    continue
                rows = kept[document]
                renumbered = np.cumsum(kept) - 1
                batch, codes = batch.take(np.flatnonzero(kept)), codes[rows]
                document, slices = renumbered[document[rows]], slices[rows]
            yield batch, codes, document, slices
        start += segment.entry.documents
