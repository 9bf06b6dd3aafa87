"""The files of an index: names that stay inside, the manifest that lists them, CURRENT that names it, and locks."""

import hashlib
import json
import os
import re
import shutil
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..._files import atomic_write, digest, fsync
from ...data.documents import DOCUMENT_FEATURES
from .index_errors import DamagedIndexError, LockedIndexError, MissingFileError

SCHEMA: pa.Schema = DOCUMENT_FEATURES.arrow_schema
CURRENT = "CURRENT"
FORMAT = "sugar-index"
VERSION = 1
FIX = "Restore the file from a copy, or build the index again"
_TRIES = 50
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)?")


T = TypeVar("T")


# ---- One file ----


@contextmanager
def checked_read(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into an error that names the file.

    Raises:
        MissingFileError: The file is missing.
        DamagedIndexError: Its content is not what it should be.
        OSError: The disk or the permissions are at fault, not the content.
        MemoryError: There is too little memory.
    """
    try:
        yield
    except (DamagedIndexError, MemoryError):
        raise
    except Exception as error:  # libraries have many ways to say it
        if not path.exists():
            raise MissingFileError(f"{path} is missing. {FIX}.") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedIndexError(f"{path} cannot be read ({type(error).__name__}: {error!s:.300}). {FIX}.") from error


@dataclass(frozen=True)
class FileEntry:
    """A file as the manifest knows it.

    Args:
        name: Its name in its folder.
        size: Bytes.
        sha256: Digest of its content.
    """

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Describe a file, once its content is on the disk."""
        fsync(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(path.name, file.tell(), sha256)

    @classmethod
    def from_dict(cls, values: Any) -> "FileEntry":
        """Read an entry of a manifest.

        Raises:
            ValueError: It is no entry, or its name is none that an index gives.
        """
        name, size, sha256 = values["name"], values["size"], values["sha256"]
        if type(size) is not int or not 0 <= size < 2**63 or not isinstance(sha256, str):
            raise ValueError(f"the entry of {name!r} has no size and digest")
        return cls(checked_name(name), size, sha256)

    def check(self, folder: Path, verify: bool) -> Path:
        """Return the path of the file, if it is as the manifest says.

        Args:
            folder: Where it is.
            verify: Compare the content, not only the size.

        Raises:
            MissingFileError: It is missing.
            DamagedIndexError: It is not as it was written.
        """
        path = inside(folder, self.name)
        try:
            if not path.is_file():
                raise MissingFileError(f"{path} is missing, or is no file. {FIX}.")
            size = path.stat().st_size
            if size != self.size:
                raise DamagedIndexError(f"{path} has {size} bytes instead of {self.size}. {FIX}.")
            if verify and digest(path) != self.sha256:
                raise DamagedIndexError(f"{path} was changed: its content is not what was written. {FIX}.")
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} is missing. {FIX}.") from error
        return path


def checked_name(name: Any) -> str:
    """Return a file name that an index may have given: no path, nothing hidden.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a file of an index")
    return name


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder.

    Raises:
        DamagedIndexError: The file is a link that leads out of the folder.
    """
    path = folder / checked_name(name)
    if path.is_symlink():
        _check_link(path, folder)
    return path


def check_links(folder: Path) -> None:
    """Refuse an index that holds links which lead out of it.

    Raises:
        DamagedIndexError: There is one. Reading, writing and cleaning would follow it.
    """
    for place in (folder, folder / "segments"):
        try:
            links = [path for path in place.iterdir() if path.is_symlink() and path.name != "pending"]
        except (FileNotFoundError, NotADirectoryError):  # a writer may have just cleaned up
            continue
        for link in links:
            _check_link(link, folder)


def _check_link(path: Path, folder: Path) -> None:
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DamagedIndexError(f"{path} is a link that leads out of the index. Put the file itself there.")


def as_json(values: Any) -> bytes:
    """Return JSON as an index writes it."""
    return (json.dumps(values, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists. What cannot be removed now is left for the next write."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


# ---- Documents in Arrow files, vectors in safetensors files ----


def map_table(path: Path) -> pa.Table:
    """Open an Arrow file of documents without copying it; it stays readable when its name is gone.

    Whoever wrote it: Arrow follows the offsets in a file wherever they lead, so all of them are checked first. Nothing
    is decompressed, which could take any amount of memory.

    Raises:
        MissingFileError: It is not there.
        DamagedIndexError: It is no such file.
    """
    with checked_read(path):
        source = pa.memory_map(str(path))
        _check_messages(source)
        source.seek(0)
        with pa.ipc.open_stream(source) as reader:
            if reader.schema.names != SCHEMA.names or reader.schema.types != SCHEMA.types:
                raise ValueError(f"it holds no documents: it has the columns {', '.join(reader.schema.names):.200}")
            table = reader.read_all()
        table.validate(full=True)
        _check_nulls(table)
    return table


def _check_messages(source: Any) -> None:
    """Refuse a stream of other messages than a schema and plain record batches."""
    messages = pa.ipc.MessageReader.open_stream(source)
    for number, message in enumerate(messages):
        if message.type != ("record batch" if number else "schema"):
            raise ValueError(f"it has a message of the type {message.type}")
        if not number:
            continue
        data = message.metadata.to_pybytes()
        (root,) = struct.unpack_from("<I", data)
        # fields of a message: 2 is the batch, 4 could hold the compression of an old version; of a batch: 3
        batch = _field(data, root, 2)
        if batch is None or _field(data, root, 4) is not None or _field(data, batch, 3) is not None:
            raise ValueError("it is compressed")


def _field(data: bytes, table: int, number: int) -> int | None:
    """Return where the table begins that a field of a table refers to, in FlatBuffers; `None` if not set."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, fields)
    if size < 6 + 2 * number:
        return None
    (offset,) = struct.unpack_from("<H", data, fields + 4 + 2 * number)
    return table + offset + struct.unpack_from("<I", data, table + offset)[0] if offset else None


def _check_nulls(table: pa.Table) -> None:
    """Refuse documents that lack something."""
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"a document has no {name}")
    for chunk in table["messages"].chunks:
        messages = chunk.flatten()
        if messages.null_count or messages.field("role").null_count or messages.field("content").null_count:
            raise ValueError("a message has no role or no content")
        parts = messages.field("content").flatten()
        if parts.null_count or parts.field("type").null_count:
            raise ValueError("a part of a message has no type")
    for chunk in table["images"].chunks:
        if chunk.flatten().null_count or chunk.flatten().field("bytes").null_count:
            raise ValueError("an image has no bytes")


def write_tensors(path: Path, tensors: dict[str, np.ndarray], header: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: It cannot be written; the disk may be full.
    """
    try:
        save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, path, metadata=header)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), str(error), str(path)) if number else OSError(f"{path}: {error}")) from error


def open_tensors(path: Path) -> Any:
    """Open a safetensors file without reading it.

    Raises:
        MissingFileError: It is not there.
        DamagedIndexError: It is none.
    """
    with checked_read(path):
        return safe_open(path, framework="numpy")


def read_tensor(tensors: Any, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Read a tensor of a file that is open.

    Raises:
        ValueError: There is none of this name, type and shape.
    """
    check_tensor(tensors, name, dtype, shape)
    return tensors.get_tensor(name)


def check_tensor(tensors: Any, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Refuse a file that does not have a tensor of this name, type and shape.

    Raises:
        ValueError: It does not.
    """
    if name not in set(tensors.keys()):
        raise ValueError(f"it has no {name}")
    found = tensors.get_slice(name)
    kind = np.dtype(dtype)
    wanted = f"{kind.kind.upper()}{8 * kind.itemsize}"  # F32, I64, U8
    if found.get_dtype() != wanted or tuple(found.get_shape()) != shape:
        raise ValueError(f"{name} does not fit: type {found.get_dtype()} and shape {found.get_shape()}")


# ---- The manifest ----


@dataclass(frozen=True)
class SegmentEntry:
    """Some documents and their vectors, written once.

    Args:
        documents: How many documents.
        rows: How many vectors.
        texts: The file of the documents.
        vectors: The file of the vectors.
    """

    documents: int
    rows: int
    texts: FileEntry
    vectors: FileEntry

    @classmethod
    def from_dict(cls, values: Any) -> "SegmentEntry":
        """Read an entry of a manifest."""
        files = [FileEntry.from_dict(values[key]) for key in ("texts", "vectors")]
        return cls(_count(values["documents"]), _count(values["rows"]), *files)


@dataclass(frozen=True)
class Deleted:
    """The deleted documents.

    Args:
        file: Holds their numbers in the order in which they were deleted.
        count: How many.
        before: How many of them the snapshot before had deleted already.
    """

    file: FileEntry
    count: int
    before: int


@dataclass(frozen=True)
class Graph:
    """The files that the backend saved.

    Args:
        folder: Their folder.
        rows: How many rows the index had.
        files: The files.
    """

    folder: str
    rows: int
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class IndexSpec:
    """How an index is made; the same for all snapshots of a base.

    Args:
        dim: Width of the vectors.
        positions: `"last"` or `"all"`.
        vectors: Name of the codec.
        backend: Name of the backend.
        backend_options: Its options, without secrets.
        settings: `EmbeddingSettings.to_dict()`; `None` for an index of vectors from elsewhere.
        fingerprint: `ModelFingerprint.to_dict()`; likewise.
    """

    dim: int
    positions: str
    vectors: str
    backend: str
    backend_options: dict[str, Any]
    settings: dict[str, Any] | None
    fingerprint: dict[str, Any] | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "IndexSpec":
        """Read `vars` of a specification back, from a dict that may hold more.

        Raises:
            ValueError: A value is of another type.
            KeyError: One is missing.
        """
        spec = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        if not _count(spec.dim):
            raise ValueError("dim is 0")
        for name in ("positions", "vectors", "backend"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is no text")
        if not isinstance(spec.backend_options, dict):
            raise ValueError("backend_options are no options")
        for name in ("settings", "fingerprint"):
            if not isinstance(values[name], dict | None):
                raise ValueError(f"{name} is neither null nor an object")
        return spec


@dataclass(frozen=True)
class Manifest:
    """The files of one snapshot of an index, and what they mean.

    Args:
        uid: Drawn when the index was made; part of the names of collections in Milvus.
        generation: Number of the snapshot; each write makes the next.
        base: Number of the base. Within one, rows and documents are only added, and keep their numbers.
        spec: How the index is made.
        codec: `Codec.to_dict()`; `None` as long as there are no vectors.
        segments: In the order of their documents.
        next_segment: Number of the next segment.
        deleted: The deleted documents.
        graph: The files that the backend saved.
        clipped: How many vectors had numbers outside of the codec's ranges.
        write: Drawn for the write that came last. Its parts are known by it as committed.
    """

    uid: str
    generation: int
    base: int
    spec: IndexSpec
    codec: dict[str, Any] | None = None
    segments: tuple[SegmentEntry, ...] = ()
    next_segment: int = 0
    deleted: Deleted | None = None
    graph: Graph | None = None
    clipped: int = 0
    write: str = ""

    @property
    def documents(self) -> int:
        """Number of documents, deleted ones among them."""
        return sum(entry.documents for entry in self.segments)

    @property
    def rows(self) -> int:
        """Number of vectors, those of deleted documents among them."""
        return sum(entry.rows for entry in self.segments)

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"manifest-{self.generation:06d}.json"

    def names(self) -> set[str]:
        """Return the names of all that it needs in the folder of the index; segments with `segments/` before."""
        names = {self.name, f"milvus-{self.base:06d}"}
        names |= {f"segments/{file.name}" for entry in self.segments for file in (entry.texts, entry.vectors)}
        names |= {self.deleted.file.name} if self.deleted else set()
        return names | ({self.graph.folder} if self.graph else set())

    def after(self, **changes: Any) -> "Manifest":
        """Return the manifest of the next snapshot."""
        return replace(self, generation=self.generation + 1, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        values = asdict(self)
        return {"format": FORMAT, "version": VERSION, **values.pop("spec"), **values}

    @classmethod
    def read(cls, path: Path, data: bytes) -> "Manifest":
        """Read a manifest from the content of its file.

        Raises:
            DamagedIndexError: It cannot be read, or is of another version.
        """
        try:
            return cls.from_dict(json.loads(data))
        except Exception as error:  # any, as the content may be somebody else's
            raise DamagedIndexError(
                f"{path} cannot be read: {type(error).__name__}, {error!s:.300}. {FIX}."
            ) from error

    @classmethod
    def from_dict(cls, values: Any) -> "Manifest":
        """Read `to_dict` back.

        Raises:
            ValueError: The version is another one.
            KeyError: Something is missing.
            TypeError: Something is of another type.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError("it is no manifest of an index")
        if values["version"] != VERSION:
            raise ValueError(
                f"it has version {values['version']!r} of the format, and this sugar-hf reads version {VERSION}. "
                "Upgrade sugar-hf (a newer one reads older versions)"
            )
        deleted, graph = values["deleted"], values["graph"]
        if deleted is not None:
            file = FileEntry.from_dict(deleted["file"])
            deleted = Deleted(file, _count(deleted["count"]), _count(deleted["before"]))
        if graph is not None:
            files = tuple(FileEntry.from_dict(file) for file in graph["files"])
            graph = Graph(checked_name(graph["folder"]), _count(graph["rows"]), files)
        codec = values["codec"]
        if not isinstance(codec, dict | None):
            raise ValueError("the codec is neither null nor an object")
        return cls(
            checked_name(values["uid"]),
            _count(values["generation"]),
            _count(values["base"]),
            IndexSpec.from_dict(values),
            codec,
            tuple(SegmentEntry.from_dict(entry) for entry in values["segments"]),
            _count(values["next_segment"]),
            deleted,
            graph,
            _count(values["clipped"]),
            str(values["write"]),
        )


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value


# ---- CURRENT ----


def holds_index(folder: Path) -> bool:
    """Whether a folder is one of an index."""
    return (folder / CURRENT).is_file()


def read_current(folder: Path) -> Manifest:
    """Read the newest manifest.

    Raises:
        FileNotFoundError: The folder holds no index.
        MissingFileError: CURRENT names a manifest that is missing.
        DamagedIndexError: CURRENT or the manifest is damaged, or of another version.
    """
    current = folder / CURRENT
    try:
        data = inside(folder, CURRENT).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_dir() and next(folder.glob("manifest-*.json"), None):
            raise MissingFileError(f"{current} is missing. {FIX}.") from error
        raise FileNotFoundError(f"{folder} holds no index. Make one with SugarIndex.build or create.") from error
    with checked_read(current):
        values = json.loads(data)
        if as_json(values) != data:
            raise ValueError("it is not as it was written")
        name, sha256, generation = checked_name(values["manifest"]), values["sha256"], values["generation"]
    path = inside(folder, name)
    with checked_read(path):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedIndexError(f"{path} was changed: its content is not what {CURRENT} says. {FIX}.")
    manifest = Manifest.read(path, data)
    if (manifest.generation, manifest.name) != (generation, name):
        raise DamagedIndexError(f"{current} is damaged: it does not fit {name}. {FIX}.")
    return manifest


def write_current(folder: Path, manifest: Manifest) -> None:
    """Make a manifest the newest. Its files must already be on disk. A kill leaves it or the one before."""
    data = as_json(manifest.to_dict())
    atomic_write(folder / manifest.name, data)
    current = {"generation": manifest.generation, "manifest": manifest.name}
    atomic_write(folder / CURRENT, as_json({**current, "sha256": hashlib.sha256(data).hexdigest()}))


def read_settled(folder: Path, read: Callable[[], T]) -> T:
    """Read a folder into which another process may write: again, if what was read was replaced meanwhile.

    A writer removes what the snapshot before the last one needs. Whatever error that gives on the way, from CURRENT to
    the last file that is opened, it is one of the index only if CURRENT is still the same.

    Args:
        folder: The folder of the index.
        read: Reads; begins with `read_current`.

    Raises:
        LockedIndexError: Something was written at each of many tries.
        Exception: What `read` raises while nothing is written.
    """
    for _ in range(_TRIES):
        before = _current_bytes(folder)
        try:
            return read()
        except Exception as error:
            if _current_bytes(folder) == before:
                raise
            last = error
    raise LockedIndexError(
        f"{folder} is written faster than it can be read ({_TRIES} tries). Try again when less is written."
    ) from last


def _current_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / CURRENT).read_bytes()
    except OSError:
        return None


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
            f"{folder} cannot be written ({error}). It can be searched; to change it, copy it to a folder of yours."
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def held_folder(place: Path | None) -> Iterator[Path]:
    """Make a folder for the time of a block. If the process is killed, the next write of the index removes it.

    Args:
        place: The folder of the index, on whose disk it is to be; another temporary place when `None`.
    """
    with TemporaryDirectory(prefix="export-", suffix=".tmp", dir=place) as name, FileLock(Path(name) / "LOCK"):
        inner = Path(name) / "files"
        inner.mkdir()
        yield inner


def is_held(path: Path) -> bool:
    """Whether a temporary folder is in use by a process that lives."""
    if not (path / "LOCK").is_file():
        return False
    lock = FileLock(path / "LOCK", timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    lock.release()
    return False
