"""The one write in progress of an index: documents are staged in parts, and a commit adds all of them or none."""

import hashlib
import json
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..._files import atomic_path, atomic_write, fsync
from ...data import BadSampleError
from ...data.documents import Document
from ...model.embedding_sugar import first_not_unit
from ..fingerprint import ModelFingerprint
from .codecs import Codec
from .index_errors import DamagedIndexError, DuplicateIdError, IndexMismatchError
from .index_store import IndexStore
from .layout import (
    SCHEMA,
    Deleted,
    FileEntry,
    Graph,
    IndexSpec,
    Manifest,
    as_json,
    checked_read,
    inside,
    is_held,
    map_table,
    open_tensors,
    read_current,
    read_tensor,
    remove,
    write_current,
    write_lock,
    write_tensors,
)
from .segments import Limits, Segment, SegmentWriter, record_batches
from .snapshot import DocumentNumber, Snapshot

#: From this share of deleted documents on, compaction is advised.
MUCH_DELETED = 1 / 3
_PLAN = "plan.json"
_PART = re.compile(r"part-(\d+)\.safetensors")
_OLD = ("manifest-*.json", "deleted-*.safetensors", "graph-*", "milvus-*", "*.tmp", "segments/*")


@dataclass
class AddReport:
    """The outcome of a write.

    Args:
        added: Number of new documents.
        updated: Number of documents that replaced one of the same id.
        duplicates: Number of documents that were left out because the index has their id.
        skipped: Why documents were left out that could not be embedded.
        seconds: How long it took.
    """

    added: int = 0
    updated: int = 0
    duplicates: int = 0
    skipped: list[BadSampleError] = field(default_factory=list)
    seconds: float = 0.0


# ---- Parts that are not committed yet ----


@dataclass(frozen=True)
class PendingPart:
    """A part on disk. Its files are opened when they are needed, as there may be very many parts.

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


@dataclass(frozen=True)
class PendingParts:
    """The parts of the write in progress, in the folder `pending` of an index.

    A part is some consecutive documents with their vectors. It is staged atomically, by any process, and a write that
    was killed keeps the parts it has. They only save work: a part with which anything is wrong is treated as missing.

    ```python
    with index.writer() as writer:
        pending = writer.pending  # may be sent to other processes
        if not pending.holds(7, documents):
            pending.stage(7, documents, vectors)
    ```

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
        if not self._path(number).is_file():
            return False
        try:
            self._read(number, _part_key(documents))
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
        checked = [self._checked(*row) for row in zip(documents, vectors, strict=True)]
        kept = [(document, rows) for document, rows in zip(documents, checked, strict=True) if rows is not None]
        self.folder.mkdir(exist_ok=True)
        path, digests = self._path(number), dict[str, str]()
        for place in (path, path.with_suffix(".arrow")):
            if place.exists() and not place.is_file():
                remove(place)

        def rows() -> Iterator[dict[str, Any]]:
            for document, _ in kept:
                row = document.to_row()
                digests[document.id] = row["digest"]
                yield row

        with atomic_path(path.with_suffix(".arrow")) as temporary:
            with pa.ipc.new_stream(str(temporary), SCHEMA) as writer:
                for batch in record_batches(rows(), self.limits):
                    writer.write_batch(batch)
            entry = FileEntry.of(temporary)
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

    def read(self, number: int) -> PendingPart:
        """Open a part.

        Raises:
            DamagedIndexError: It is missing or damaged.
        """
        try:
            return self._read(number)
        except (DamagedIndexError, OSError) as error:
            remove(self._path(number))
            raise DamagedIndexError(
                f"part {number} of the write is missing or damaged ({error}) Start the same write again: what is "
                "damaged is made anew."
            ) from error

    def clear(self) -> None:
        """Remove all parts."""
        remove(self.folder)

    def _read(self, number: int, key: str | None = None) -> PendingPart:
        """Open a part; one of these documents, if a key is given.

        Raises:
            MissingFileError: It is missing.
            DamagedIndexError: Anything else is wrong with it.
        """
        path = self._path(number)
        with checked_read(path), open_tensors(path) as file:
            header = file.metadata()
            if header["write"] != self.write or header["key"] != (key or header["key"]):
                raise ValueError("it is a part of another write")
            count = file.get_slice("vectors").get_shape()[0]
            forms = {"vectors": (np.float32, (count, self.dim)), "document": (np.int32, (count,))}
            forms["slice"] = forms["document"]
            tensors = {name: read_tensor(file, name, *form) for name, form in forms.items()}
            if _part_digest(tensors, header) != header["digest"]:
                raise ValueError("it was changed")
            skipped = [BadSampleError(**values) for values in json.loads(header["skipped"])]
            texts = FileEntry(path.with_suffix(".arrow").name, int(header["texts_size"]), header["texts"])
        ids = map_table(texts.check(self.folder, verify=True))["id"].to_pylist()
        return PendingPart(path, ids, skipped)

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
    if ours != theirs or any(plan[key] != found[key] for key in ("kind", "uid", "base")):
        return False
    if None in prints:
        return prints[0] == prints[1]
    try:
        return ModelFingerprint.from_dict(prints[0]).difference(ModelFingerprint.from_dict(prints[1])) is None
    except ValueError:
        return False


# ---- The write ----


@contextmanager
def open_writer(store: IndexStore, kind: str = "add", spec: IndexSpec | None = None) -> Iterator["IndexWriter"]:
    """Begin the one write of an index, for the time of a block.

    Args:
        store: The store of the index.
        kind: See [`IndexWriter`].
        spec: See [`IndexWriter`].

    Raises:
        LockedIndexError: Another process is writing.
        PermissionError: The folder cannot be written.
    """
    folder = store.folder
    with write_lock(folder):
        store.refresh()  # what others wrote
        clean(folder, store.snapshot.manifest)
        plan = _read_plan(folder / "pending")
        if plan is None or plan["write"] == store.snapshot.manifest.write:
            remove(folder / "pending")  # a kill came after the commit
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
        """Add the documents of all parts.

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
        codec = None if is_build or old.codec is None else Codec.from_dict(old.codec)
        if codec is None and parts:
            codec = Codec.fit(self._spec.vectors, (part.vectors for part in parts))
        clipped = 0 if codec is None else sum(codec.clipped(part.vectors) for part in parts)
        kept, tail = ((), ()) if is_build else self._small_tail(self.snapshot.segments)
        (folder / "segments").mkdir(exist_ok=True)
        writer = SegmentWriter(inside(folder, "segments"), old.next_segment, self._store.limits)
        new_batches = () if codec is None else _coded_batches(parts, codec)
        for batch in chain(_stored_batches(folder, tail), new_batches):
            writer.add(*batch)
        new = old.after(
            base=old.base + is_build,
            spec=self._spec,
            codec=None if codec is None else codec.to_dict(),
            segments=tuple(segment.entry for segment in kept) + tuple(writer.finish()),
            next_segment=writer.number,
            deleted=None if is_build else self._deleted(replaced),
            graph=None if is_build else old.graph,
            clipped=clipped + (0 if is_build else old.clipped),
            write=pending.write,
        )
        self._swap(new)
        self._clear()
        if replaced:
            self._advise()
        if clipped:
            rows = new.rows - (0 if is_build else old.rows)
            warnings.warn(
                f"{clipped} of {rows} new vectors lie outside of the ranges that the {self._spec.vectors} codec was"
                " fitted to at the first write, and lose precision. If that is a large "
                "share, build the index again, or use vectors='float16'.",
                stacklevel=3,
            )
        return report

    def delete(self, numbers: Sequence[DocumentNumber]) -> None:
        """Delete documents by their numbers."""
        if len(numbers):
            self._swap(self.snapshot.manifest.after(deleted=self._deleted(numbers)))
            self._advise()

    def compact(self) -> None:
        """Write all documents that are not deleted anew, with their vectors as they are."""
        old, folder = self.snapshot.manifest, self._store.folder
        writer = SegmentWriter(folder / "segments", old.next_segment, self._store.limits)
        for batch in _stored_batches(folder, self.snapshot.segments, self.snapshot.live):
            writer.add(*batch)
        segments = tuple(writer.finish()) if old.segments else ()
        self._swap(
            old.after(base=old.base + 1, segments=segments, next_segment=writer.number, deleted=None, graph=None)
        )

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
        self.pending.clear()
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
        return Deleted(FileEntry.of(path), documents.size, old.deleted.size)

    def _swap(self, manifest: Manifest) -> None:
        """Make a manifest current. Its segments must already be on disk. If that fails, the old one is searched."""
        store, folder, old = self._store, self._store.folder, self.snapshot
        shares = old.is_beginning_of(manifest)
        with store.guard:
            try:
                new = Snapshot.open(folder, manifest, old, verify=False, options=store.secrets, is_writer=True)
                new = replace(new, manifest=_with_graph(folder, new))
                if (folder / "segments").is_dir():
                    fsync(folder / "segments")
                fsync(folder)
                _make_current(folder, new.manifest)
            except BaseException:
                if shares and old.backend is not None:
                    old.backend.trim(old.manifest.rows)
                store.refresh()  # it may be current all the same, if the error came late
                raise
            store.snapshot = new
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
    names = {name for manifest in kept for name in manifest.names()}
    if len(kept) == 1:
        path = folder / f"manifest-{kept[0].generation - 1:06d}.json"
        with suppress(OSError, DamagedIndexError):  # what a damaged one kept is of no use
            names |= Manifest.read(path, path.read_bytes()).names()
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
    files = tuple(FileEntry.of(place / name) for name in names)
    fsync(place)
    return replace(manifest, graph=Graph(place.name, manifest.rows, files))


def _replaced_documents(
    parts: Sequence[PendingPart], known: Snapshot | None, on_duplicate: str
) -> list[DocumentNumber]:
    """Return the numbers of the documents that the parts replace.

    Raises:
        DuplicateIdError: An id comes twice, or is known and not to be updated.
    """
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


def _stored_batches(
    folder: Path, segments: Sequence[Segment], live: np.ndarray | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the documents of segments with their codes; with `live` only those that are not deleted.

    Raises:
        DamagedIndexError: A file is not as it was written, which its copy would hide for ever.
    """
    start = 0
    for segment in segments:
        for file in (segment.entry.texts, segment.entry.vectors):
            file.check(inside(folder, "segments"), verify=True)
        first = 0
        for batch in segment.table.to_batches():
            low, high = np.searchsorted(segment.document, [first, first + batch.num_rows]).tolist()
            codes = segment.codes(low, high)
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


def _coded_batches(parts: Sequence[PendingPart], codec: Codec) -> Iterator[tuple[Any, ...]]:
    for part in parts:
        for batch, vectors, document, slices in part.batches():
            yield batch, codec.encode(vectors), document, slices
