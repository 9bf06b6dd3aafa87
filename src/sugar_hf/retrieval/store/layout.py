"""The files of an index: their names, the manifest that lists them, CURRENT that names it, and how each is read."""

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import safe_open

from ...data.documents import DOCUMENT_FEATURES
from .codecs import Codec

SCHEMA: pa.Schema = DOCUMENT_FEATURES.arrow_schema
CURRENT = "CURRENT"
FORMAT = "sugar-index"
VERSION = 1
FIX = "Restore the file from a copy, or build the index again"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)?")


class DamagedIndexError(ValueError):
    """A file of an index is missing, truncated, changed, or of a format that cannot be read. The error names it."""


class MissingFileError(DamagedIndexError):
    """A file of an index is not there; a reader then looks whether a newer state has replaced the one it knew."""


class IndexMismatchError(ValueError):
    """An index and a model, or an index and vectors, do not belong together. The error says what differs."""


class DuplicateIdError(ValueError):
    """Documents have ids that are there already, or twice in one call. The error names the first few."""


class LockedIndexError(RuntimeError):
    """Another process is writing the index. The error names it."""


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
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DamagedIndexError:
    """Return the error that says that the content of a file is not what it should be."""
    return DamagedIndexError(f"{path} cannot be read ({type(error).__name__}: {error!s:.300}). {FIX}.")


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
    def from_dict(cls, values: Any) -> "FileEntry":
        """Read an entry of a manifest."""
        name, size, sha256 = values["name"], values["size"], values["sha256"]
        if type(size) is not int or not 0 <= size < 2**63 or not isinstance(sha256, str):
            raise ValueError(f"the entry of {name!r} has no size and digest")
        return cls(checked_name(name), size, sha256)

    def check(self, folder: Path, verify: bool) -> Path:
        """Return the path of the file, if it is as the manifest says.

        Args:
            folder: Where it is.
            verify: Compare the content, not only the size.
        """
        path = inside(folder, self.name)
        try:
            if not path.is_file():
                raise MissingFileError(f"{path} is missing, or is no file. {FIX}.")
            size = path.stat().st_size
            if size != self.size:
                raise DamagedIndexError(f"{path} has {size} bytes instead of {self.size}. {FIX}.")
            if verify:
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != self.sha256:
                        raise DamagedIndexError(f"{path} was changed: its content is not what was written. {FIX}.")
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} is missing. {FIX}.") from error
        return path


def checked_name(name: Any) -> str:
    """Return a file name that an index may have given: no path, nothing hidden. Others are refused."""
    if not isinstance(name, str) or len(name) > 100 or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of an index file")
    return name


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file in a folder; a link that leads out of it is refused."""
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


# ---- Documents in Arrow files, vectors in safetensors files ----


def map_table(path: Path, entry: FileEntry | None = None) -> pa.Table:
    """Open an Arrow file of documents without copying it; it stays readable when its name is gone.

    Whoever wrote it: Arrow follows the offsets in a file wherever they lead, so all of them are checked first. Nothing
    is decompressed, which could take any amount of memory.

    Args:
        path: The file.
        entry: What its content has to be; anything when `None`.
    """
    if entry is not None:
        entry.check(path.parent, verify=True)
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


def open_tensors(path: Path) -> Any:
    """Open a safetensors file without reading it."""
    with checked_read(path):
        return safe_open(path, framework="numpy")


def check_tensors(tensors: Any, forms: Mapping[str, tuple[Any, tuple[int | None, ...]]]) -> None:
    """Refuse a file that lacks a tensor, or has one of another form.

    Args:
        tensors: The file.
        forms: Type and shape of each tensor; `None` stands for the length of the first.
    """
    names = set(tensors.keys())
    length = None
    for name, (dtype, shape) in forms.items():
        if name not in names:
            raise ValueError(f"it has no {name}")
        found = tensors.get_slice(name)
        there = tuple(found.get_shape())
        length = there[0] if length is None and there else length
        kind = np.dtype(dtype)
        wanted = f"{kind.kind.upper()}{8 * kind.itemsize}"  # F32, I64, U8
        if found.get_dtype() != wanted or there != tuple(length if size is None else size for size in shape):
            raise ValueError(f"{name} does not fit: type {found.get_dtype()} and shape {found.get_shape()}")


def read_tensors(
    path: Path, forms: Mapping[str, tuple[Any, tuple[int | None, ...]]]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a safetensors file: its tensors, which have to be of these forms, see [`check_tensors`], and its header."""
    with checked_read(path), open_tensors(path) as file:
        check_tensors(file, forms)
        return {name: file.get_tensor(name) for name in forms}, file.metadata() or {}


# ---- The manifest ----


@dataclass(frozen=True)
class SegmentEntry:
    """Some documents and their vectors, written once.

    Args:
        documents: How many documents.
        rows: How many vectors.
        texts: The file of the documents.
        vectors: The file of the vectors.
        words: The file of the words for full-text search; `None` where an older sugar-hf wrote.
    """

    documents: int
    rows: int
    texts: FileEntry
    vectors: FileEntry
    words: FileEntry | None = None

    @classmethod
    def from_dict(cls, values: Any) -> "SegmentEntry":
        """Read an entry of a manifest."""
        keys = ("texts", "vectors") if values.get("words") is None else ("texts", "vectors", "words")
        files = [FileEntry.from_dict(values[key]) for key in keys]
        return cls(_count(values["documents"]), _count(values["rows"]), *files)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Its files: documents, vectors and, where there is one, words."""
        return (self.texts, self.vectors) if self.words is None else (self.texts, self.vectors, self.words)

    def check(self, folder: Path, verify: bool) -> list[Path]:
        """Return the paths of its files in the folder of an index; see [`FileEntry.check`]."""
        place = inside(folder, "segments")
        return [file.check(place, verify) for file in self.files]


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
        """Read `vars` of a specification back, from a dict that may hold more."""
        spec = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        if not _count(spec.dim):
            raise ValueError("dim is 0")
        for name in ("positions", "vectors", "backend"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is not a string")
        if not isinstance(spec.backend_options, dict):
            raise ValueError("backend_options is not an object")
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

    def written(self) -> tuple[str, bytes, bytes]:
        """Return the name of its file, the content of that, and the content of a CURRENT that names it."""
        values = asdict(self)
        data = as_json({"format": FORMAT, "version": VERSION, **values.pop("spec"), **values})
        current = {"generation": self.generation, "manifest": self.name, "sha256": hashlib.sha256(data).hexdigest()}
        return self.name, data, as_json(current)

    @classmethod
    def read(cls, path: Path, data: bytes) -> "Manifest":
        """Read a manifest from the content of its file."""
        try:
            return cls.from_dict(json.loads(data))
        except Exception as error:  # any, as the content may be somebody else's
            raise unreadable(path, error) from error

    @classmethod
    def from_dict(cls, values: Any) -> "Manifest":
        """Read the values of a manifest's file."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError("it is not the manifest of an index")
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
        raise ValueError(f"{value!r:.40} is not a count")
    return value


def names_of(manifests: Iterable[Manifest]) -> set[str]:
    """Return the names of all that snapshots need in the folder of the index; segments with `segments/` before."""
    names: set[str] = set()
    for each in manifests:
        names |= {each.name, f"milvus-{each.base:06d}"}
        names |= {f"segments/{file.name}" for entry in each.segments for file in entry.files}
        names |= {each.deleted.file.name} if each.deleted else set()
        names |= {each.graph.folder} if each.graph else set()
    return names


# ---- Segments ----


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


@dataclass(frozen=True)
class Segment:
    """A segment that is open.

    Args:
        entry: What the manifest says of it.
        table: Its documents.
        tensors: Its vectors: `codes` (n, w), `document` (n,) int32, its number in this segment, `slice` (n,) int32.
        words: The path of its words and their open file, if there is one; they are read when they are asked for.
    """

    entry: SegmentEntry
    table: pa.Table
    tensors: Any
    words: tuple[Path, Any] | None = None

    @classmethod
    def open(cls, folder: Path, entry: SegmentEntry, codec: Codec | None, positions: str, verify: bool) -> "Segment":
        """Open a segment. Its files are always checked so far that reading them is safe afterwards.

        Args:
            folder: The folder of the index.
            entry: What the manifest says of it.
            codec: How vectors are stored.
            positions: `"last"` or `"all"`.
            verify: Compare the digests, too.
        """
        texts, vectors, *words = entry.check(folder, verify)
        opened = (words[0], open_tensors(words[0])) if words else None  # readable when its name is gone
        segment = cls(entry, map_table(texts), open_tensors(vectors), opened)
        if segment.table.num_rows != entry.documents:
            raise DamagedIndexError(
                f"{texts} has {segment.table.num_rows} documents instead of {entry.documents}. {FIX}."
            )
        with checked_read(vectors):
            if codec is None:
                raise ValueError("the manifest does not say how its vectors are stored")
            lengths = {segment.tensors.get_slice(name).get_shape()[0] for name in ("codes", "document", "slice")}
            if lengths != {entry.rows}:
                raise ValueError(f"it has {sorted(lengths)} vectors instead of {entry.rows}")
            rows = (np.int32, (entry.rows,))
            codes = (codec.code_dtype, (entry.rows, codec.code_width))
            check_tensors(segment.tensors, {"codes": codes, "document": rows, "slice": rows})
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

    def ids(self, first: int = 0) -> list[str]:
        """Ids of the documents from `first` on."""
        return self.table["id"].slice(first).to_pylist()

    def metadata(self, first: int = 0) -> list[dict[str, Any]]:
        """Metadata of the documents from `first` on."""
        texts = self.table["metadata"].slice(first).to_pylist()
        try:
            found = [json.loads(text) for text in texts]
            if not all(isinstance(values, dict) for values in found):
                raise ValueError("it is not an object")
        except (ValueError, RecursionError) as error:
            raise DamagedIndexError(
                f"{self.entry.texts.name} has metadata that is not JSON ({error}). {FIX}."
            ) from error
        return found


# ---- CURRENT ----


def read_current(folder: Path) -> Manifest:
    """Read the newest manifest.

    Raises:
        FileNotFoundError: The folder holds no index.
        MissingFileError: CURRENT names a manifest that is missing.
        DamagedIndexError: CURRENT or the manifest is damaged, of another version, or a link that leads out.
    """
    check_links(folder)
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
