"""Making and opening the folder of an index."""

import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from ..embedder import POSITIONS, SugarEmbedder
from ..fingerprint import ModelFingerprint
from ..settings import EmbeddingSettings
from .backends import BACKENDS
from .backends.milvus_backend import public_address
from .codecs import CODECS
from .index_errors import IndexMismatchError, LockedIndexError
from .layout import WriteLock
from .manifest import CURRENT, Head, Manifest, holds_index, read_current, write_current
from .snapshot import Generation

# What a making that was killed leaves behind.
_OWN = {"LOCK", "LOCK.owner", "manifest-000000.json", "manifest-000000.json.tmp", "CURRENT.tmp"}
_TRIES = 50

T = TypeVar("T")


def make_head(
    embedder: SugarEmbedder | None,
    dim: int | None,
    backend: str,
    vectors: str,
    positions: str | None,
    backend_options: Mapping[str, Any] | None,
) -> tuple[Head, dict[str, Any]]:
    """Check how an index is to be made; for the arguments see `SugarIndex.create`.

    Returns:
        How it is made, and the options that are needed again at each opening: the token, which is not written to
        disk, and the address, which is, but is not trusted when it is read.

    Raises:
        ValueError: An argument has a value that it cannot have.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: give one of {', '.join(map(repr, BACKENDS))}.")
    if vectors not in CODECS:
        raise ValueError(f"vectors={vectors!r}: give one of {', '.join(map(repr, CODECS))}.")
    if embedder is None and (type(dim) is not int or dim < 1):
        raise ValueError(f"dim={dim!r}: give an embedder, or the width of your vectors.")
    width = dim if embedder is None else embedder.dim
    if dim is not None and dim != width:
        raise ValueError(
            f"dim={dim}: the embedder gives {width} dimensions. Use SugarEmbedder(..., truncate_dim={dim})."
        )
    if positions is None:
        positions = "last" if embedder is None else embedder.positions
    if positions not in POSITIONS:
        raise ValueError(f"positions={positions!r}: give one of {', '.join(map(repr, POSITIONS))}.")
    options = dict(backend_options or {})
    secrets = {"token": options.pop("token")} if "token" in options else {}
    _check_backend(backend, vectors, {**options, **secrets})
    if options.get("uri") is not None:
        secrets["uri"] = options["uri"]
        options["uri"] = public_address(options["uri"])
    head = Head(
        dim=int(width or 0),
        positions=positions,
        vectors=vectors,
        backend=backend,
        backend_options=options,
        settings=None if embedder is None else embedder.settings.to_dict(),
        fingerprint=None if embedder is None else embedder.fingerprint.to_dict(),
    )
    return head, secrets


def _check_backend(backend: str, vectors: str, options: Mapping[str, Any]) -> None:
    """Refuse options now that would be refused when documents are embedded already."""
    BACKENDS[backend].check_options(options, vectors)
    if not BACKENDS[backend].holds_vectors:
        return
    for name in ("pymilvus", *(() if options.get("uri") else ("milvus_lite",))):
        if find_spec(name) is None:
            raise ImportError(f'the Milvus backend needs {name}: pip install "sugar-hf[milvus]"')


def create_folder(folder: Path, head: Head) -> None:
    """Write an index without documents.

    Raises:
        FileExistsError: The folder holds an index, or other files.
        LockedIndexError: Another process is writing it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if holds_index(folder):
        raise FileExistsError(
            f"{folder} holds an index. Open it with SugarIndex.load, or pass overwrite=True to replace it."
        )
    others = sorted(path.name for path in folder.iterdir() if path.name not in _OWN)
    if others:
        raise FileExistsError(f"{folder} holds {others[0]!r} and no index. Give an empty or a new folder.")
    with WriteLock(folder):
        if not holds_index(folder):
            write_current(folder, Manifest(uuid.uuid4().hex[:12], 0, 0, head))


def settled(folder: Path, read: Callable[[], T]) -> T:
    """Read a folder into which another process may write: again, if what was read was replaced meanwhile.

    A writer removes what the generation before the last one needs. Whatever error that gives on the way, from CURRENT
    to the last file that is opened, it is one of the index only if CURRENT is still the same.

    Args:
        folder: The folder of the index.
        read: Reads; begins with CURRENT.

    Raises:
        LockedIndexError: Something was written at each of many tries.
        Exception: What `read` raises while nothing is written.
    """
    for _ in range(_TRIES):
        before = _current(folder)
        try:
            return read()
        except Exception as error:
            if _current(folder) == before:
                raise
            last = error
    raise LockedIndexError(
        f"{folder} is written faster than it can be read ({_TRIES} tries). Try again when less is written."
    ) from last


def _current(folder: Path) -> bytes | None:
    try:
        return (folder / CURRENT).read_bytes()
    except OSError:
        return None


def open_folder(
    folder: Path, previous: Generation | None, verify: bool, options: Mapping[str, Any] | None = None
) -> Generation:
    """Open the generation that counts; `previous` itself if that is it.

    Raises:
        FileNotFoundError: There is no index.
        DamagedIndexError: A file is missing or damaged.
    """

    def read() -> Generation:
        manifest = read_current(folder)
        if previous is not None and manifest == previous.manifest:
            return previous
        return Generation.open(folder, manifest, previous, verify=verify, options=options)

    return settled(folder, read)


def check_embedder(head: Head, embedder: SugarEmbedder, folder: Path) -> None:
    """Refuse an embedder whose embeddings cannot be compared with those of an index.

    Raises:
        IndexMismatchError: Says what differs.
    """
    if embedder.dim != head.dim:
        raise IndexMismatchError(
            f"{folder} holds embeddings of {head.dim} dimensions, the embedder gives {embedder.dim}. Open it with the "
            "model and the truncate_dim that made it, or build it again."
        )
    if head.settings is None or head.fingerprint is None:
        return  # vectors from elsewhere: who added them knows where they are from
    mine = EmbeddingSettings.from_dict(head.settings)
    difference = mine.difference(embedder.settings)
    difference = difference or ModelFingerprint.from_dict(head.fingerprint).difference(embedder.fingerprint)
    if difference:
        raise IndexMismatchError(
            f"{folder} was made with another model or other settings (by {mine.model or 'a model without a name'}); "
            f"the index's value first: {difference}. Open it with the model that made it, or build it again."
        )
