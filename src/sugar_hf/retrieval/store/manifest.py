"""What an index says about itself: the manifest of each generation, and CURRENT, which names the one that counts."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..._files import atomic_write
from .index_errors import DamagedIndexError, MissingFileError
from .layout import MEND, FileEntry, as_json, checked_name, inside, reading

FORMAT = "sugar-index"
VERSION = 1
CURRENT = "CURRENT"


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

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        files = {"texts": self.texts.to_dict(), "vectors": self.vectors.to_dict()}
        return {"documents": self.documents, "rows": self.rows, **files}

    @classmethod
    def from_dict(cls, values: Any) -> "SegmentEntry":
        """Read `to_dict` back."""
        files = [FileEntry.from_dict(values[key]) for key in ("texts", "vectors")]
        return cls(_count(values["documents"]), _count(values["rows"]), *files)


@dataclass(frozen=True)
class Deleted:
    """Which documents are deleted.

    Args:
        file: Holds their numbers in the order in which they were deleted.
        count: How many.
        before: How many of them the generation before had deleted already.
    """

    file: FileEntry
    count: int
    before: int


@dataclass(frozen=True)
class Graph:
    """What the backend saved.

    Args:
        folder: Its folder.
        rows: How many rows the index had.
        files: The files in it.
    """

    folder: str
    rows: int
    files: tuple[FileEntry, ...]


@dataclass(frozen=True)
class Head:
    """How an index is made; the same for all generations of a base.

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
    def from_dict(cls, values: Mapping[str, Any]) -> "Head":
        """Read `vars` of one back, from a dict that may hold more.

        Raises:
            ValueError: A value is of another type.
            KeyError: One is missing.
        """
        head = cls(**{name: values[name] for name in cls.__dataclass_fields__})
        if not _count(head.dim):
            raise ValueError("dim is 0")
        for name in ("positions", "vectors", "backend"):
            if not isinstance(values[name], str):
                raise ValueError(f"{name} is no text")
        if not isinstance(head.backend_options, dict):
            raise ValueError("backend_options are no options")
        for name in ("settings", "fingerprint"):
            if not isinstance(values[name], dict | None):
                raise ValueError(f"{name} is neither null nor an object")
        return head


@dataclass(frozen=True)
class Manifest:
    """One generation of an index.

    Args:
        uid: Drawn when the index was made.
        generation: Counts the writes.
        base: Counts how often all documents were written anew; document and row numbers belong to a base.
        head: How the index is made.
        codec: `Codec.to_dict()`; `None` as long as there are no vectors.
        segments: In the order of their documents.
        next_segment: Number of the next segment.
        deleted: Which documents are deleted.
        graph: What the backend saved.
        clipped: How many vectors had numbers outside of the codec's ranges.
        write: Drawn for the write whose parts came last, by which parts are known that count already.
    """

    uid: str
    generation: int
    base: int
    head: Head
    codec: dict[str, Any] | None = None
    segments: tuple[SegmentEntry, ...] = ()
    next_segment: int = 0
    deleted: Deleted | None = None
    graph: Graph | None = None
    clipped: int = 0
    write: str = ""

    @property
    def documents(self) -> int:
        """Documents, deleted ones among them."""
        return sum(entry.documents for entry in self.segments)

    @property
    def rows(self) -> int:
        """Vectors, those of deleted documents among them."""
        return sum(entry.rows for entry in self.segments)

    @property
    def name(self) -> str:
        """Name of its file."""
        return f"manifest-{self.generation:06d}.json"

    def names(self) -> set[str]:
        """The names of all that it needs in the folder of the index; files of segments with `segments/` before."""
        names = {self.name}
        names |= {f"segments/{file.name}" for entry in self.segments for file in (entry.texts, entry.vectors)}
        names |= {self.deleted.file.name} if self.deleted else set()
        names |= {self.graph.folder} if self.graph else set()
        return names | {f"milvus-{self.base:06d}"}

    def after(self, **changes: Any) -> "Manifest":
        """Return the manifest of the next generation."""
        return replace(self, generation=self.generation + 1, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        deleted, graph = self.deleted, self.graph
        return {
            "format": FORMAT,
            "version": VERSION,
            "uid": self.uid,
            "generation": self.generation,
            "base": self.base,
            **vars(self.head),
            "codec": self.codec,
            "segments": [entry.to_dict() for entry in self.segments],
            "next_segment": self.next_segment,
            "deleted": deleted and {"file": deleted.file.to_dict(), "count": deleted.count, "before": deleted.before},
            "graph": graph
            and {"folder": graph.folder, "rows": graph.rows, "files": [file.to_dict() for file in graph.files]},
            "clipped": self.clipped,
            "write": self.write,
        }

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
            Head.from_dict(values),
            codec,
            tuple(SegmentEntry.from_dict(entry) for entry in values["segments"]),
            _count(values["next_segment"]),
            deleted,
            graph,
            _count(values["clipped"]),
            str(values["write"]),
        )


def holds_index(folder: Path) -> bool:
    """Whether a folder is one of an index."""
    return (folder / CURRENT).is_file()


def read_current(folder: Path) -> Manifest:
    """Read the manifest that counts.

    Raises:
        FileNotFoundError: The folder holds no index.
        MissingFileError: CURRENT names a manifest that is not there.
        DamagedIndexError: CURRENT or the manifest is damaged, or of another version.
    """
    current = folder / CURRENT
    try:
        data = inside(folder, CURRENT).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_dir() and next(folder.glob("manifest-*.json"), None):
            raise MissingFileError(f"{current} is missing. {MEND}.") from error
        raise FileNotFoundError(f"{folder} holds no index. Make one with SugarIndex.build or create.") from error
    with reading(current):
        values = json.loads(data)
        if as_json(values) != data:
            raise ValueError("it is not as it was written")
        name, digest, generation = checked_name(values["manifest"]), values["sha256"], values["generation"]
    path = inside(folder, name)
    with reading(path):
        data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise DamagedIndexError(f"{path} was changed: its content is not what {CURRENT} says. {MEND}.")
    manifest = read_manifest(path, data)
    if (manifest.generation, manifest.name) != (generation, name):
        raise DamagedIndexError(f"{current} is damaged: it does not fit {name}. {MEND}.")
    return manifest


def read_manifest(path: Path, data: bytes) -> Manifest:
    """Read a manifest from the content of its file.

    Raises:
        DamagedIndexError: It cannot be read.
    """
    try:
        return Manifest.from_dict(json.loads(data))
    except Exception as error:  # any, as the content may be somebody else's
        raise DamagedIndexError(f"{path} cannot be read: {type(error).__name__}, {error!s:.300}. {MEND}.") from error


def write_current(folder: Path, manifest: Manifest) -> None:
    """Let a generation count, all of whose files are on the disk. A kill leaves this one or the one before."""
    data = as_json(manifest.to_dict())
    atomic_write(folder / manifest.name, data)
    current = {"generation": manifest.generation, "manifest": manifest.name}
    atomic_write(folder / CURRENT, as_json({**current, "sha256": hashlib.sha256(data).hexdigest()}))


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError(f"{value!r:.40} is no count")
    return value
