"""The store of an index: its folder, and the snapshot that is searched."""

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from ..filters import Filter
from .layout import IndexSpec, Manifest, holds_index, read_current, read_settled, write_current, write_lock
from .segments import Limits
from .snapshot import Matches, Snapshot

# Files left behind when creating an index was interrupted.
_LEFT_BEHIND = re.compile(r"LOCK|LOCK\.owner|manifest-000000\.json(\.\d+\.tmp)?|CURRENT\.\d+\.tmp")


class IndexStore:
    """Documents and vectors in a folder: crash safe, with one writer and many readers.

    ```python
    store = IndexStore.open(folder)
    store.search(vectors, 10)
    with open_writer(store) as writer:  # see [`IndexWriter`]
        ...
    ```

    Args:
        folder: The folder.
        snapshot: The snapshot that is searched; it stays as it is until `refresh`, or until a write here.
        secrets: Options of the backend that are not written to disk.
    """

    def __init__(self, folder: Path, snapshot: Snapshot, secrets: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.snapshot = snapshot
        self.secrets = dict(secrets or {})
        self.limits = Limits()
        self.guard = RLock()  # a backend is not searched while rows are added to it

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, secrets: Mapping[str, Any] | None = None) -> "IndexStore":
        """Open the newest snapshot of a folder.

        Args:
            folder: The folder.
            verify: Compare the digest of every file, not only its size.
            secrets: Options of the backend that take precedence over those on disk.

        Raises:
            FileNotFoundError: There is no index.
            DamagedIndexError: A file is missing or damaged.
        """
        return cls(folder, _open_snapshot(folder, None, verify, secrets), secrets)

    @staticmethod
    def create(folder: Path, spec: IndexSpec) -> None:
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
        others = sorted(path.name for path in folder.iterdir() if not _LEFT_BEHIND.fullmatch(path.name))
        if others:
            raise FileExistsError(f"{folder} holds {others[0]!r} and no index. Give an empty or a new folder.")
        with write_lock(folder):
            if not holds_index(folder):
                write_current(folder, Manifest(uuid.uuid4().hex[:12], 0, 0, spec))

    @property
    def spec(self) -> IndexSpec:
        """How the index is made."""
        return self.snapshot.manifest.spec

    def refresh(self) -> bool:
        """Open the newest snapshot, if it is another. Returns whether it is.

        Raises:
            DamagedIndexError: A file is missing or damaged.
        """
        with self.guard:
            old = self.snapshot
            self.snapshot = _open_snapshot(self.folder, old, True, self.secrets)
            return self.snapshot is not old

    def search(self, vectors: np.ndarray, top_k: int, where: Filter | None = None) -> tuple[Snapshot, Matches]:
        """Search the snapshot; see [`Snapshot.search`]. Returns it, too, as a write may replace it meanwhile."""
        with self.guard:
            return self.snapshot, self.snapshot.search(vectors, top_k, where)

    def close(self) -> None:
        """Close files and connections."""
        if self.snapshot.backend is not None:
            self.snapshot.backend.close()


def _open_snapshot(
    folder: Path, previous: Snapshot | None, verify: bool, secrets: Mapping[str, Any] | None
) -> Snapshot:
    """Open the newest snapshot; `previous` itself if that is it."""

    def read() -> Snapshot:
        manifest = read_current(folder)
        if previous is not None and manifest == previous.manifest:
            return previous
        return Snapshot.open(folder, manifest, previous, verify=verify, options=secrets)

    return read_settled(folder, read)
