"""Making and opening the folder of an index."""

import uuid
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .backends import BACKENDS, open_backend
from .backends.milvus_backend import MilvusOptions
from .codecs import CODECS, Codec
from .embedder import POSITIONS, SugarEmbedder
from .errors import IndexMismatchError, MissingFileError
from .files import WriteLock
from .fingerprint import ModelFingerprint
from .generation import Generation
from .manifest import Head, Manifest, holds_index, read_current, write_current
from .settings import EmbeddingSettings

# What a making that was killed leaves behind.
_OWN = {"LOCK", "LOCK.owner", "manifest-000000.json", "manifest-000000.json.tmp", "CURRENT.tmp"}
_TRIES = 20


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
    if "uri" in options:
        secrets["uri"] = options["uri"]
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
    if not BACKENDS[backend].holds_vectors:
        open_backend(backend, dim=1, codec=Codec.fit(vectors, [np.ones((1, 1), np.float32)]), options=options)
        return
    MilvusOptions.read(options)
    if vectors != "float32":
        raise ValueError(f"vectors={vectors!r}: Milvus takes vectors='float32'.")
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


def open_folder(
    folder: Path, previous: Generation | None, verify: bool, options: Mapping[str, Any] | None = None
) -> Generation:
    """Open the generation that counts; `previous` itself if that is it.

    Raises:
        FileNotFoundError: There is no index.
        DamagedIndexError: A file is missing or damaged.
    """
    for attempt in range(_TRIES):
        manifest = read_current(folder)
        if previous is not None and manifest == previous.manifest:
            return previous
        try:
            return Generation.open(folder, manifest, previous, verify=verify, options=options)
        except MissingFileError:
            # a writer may have replaced this generation twice since CURRENT was read
            if attempt == _TRIES - 1 or read_current(folder) == manifest:
                raise
    raise AssertionError("the last attempt returns or raises")


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
