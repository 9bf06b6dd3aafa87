"""Files of an index: names that stay inside, contents that are on the disk before they count, one writer at a time."""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ..._files import digest, fsync
from .index_errors import DamagedIndexError, LockedIndexError, MissingFileError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9]+)?")
MEND = "Restore the file from a copy, or build the index again"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong while a file is read that the file is damaged, or missing, and which it is.

    Raises:
        MissingFileError: It is not there.
        DamagedIndexError: Its content is not what it should be.
        OSError: The disk, or the rights to it, are at fault and not the content.
        MemoryError: There is too little memory.
    """
    try:
        yield
    except (DamagedIndexError, MemoryError):
        raise
    except Exception as error:  # libraries have many ways to say it
        if not path.exists():
            raise MissingFileError(f"{path} is missing. {MEND}.") from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedIndexError(f"{path} cannot be read ({type(error).__name__}: {error!s:.300}). {MEND}.") from error


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
        """Look at a file, and see to it that it is on the disk."""
        fsync(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return cls(path.name, file.tell(), sha256)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return {"name": self.name, "size": self.size, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, values: Any) -> "FileEntry":
        """Read `to_dict` back.

        Raises:
            ValueError: It is no such entry, or its name is none that an index gives.
        """
        name, size, sha256 = values["name"], values["size"], values["sha256"]
        if type(size) is not int or not 0 <= size < 2**63 or not isinstance(sha256, str):
            raise ValueError(f"the entry of {name!r} has no size and digest")
        return cls(checked_name(name), size, sha256)

    def check(self, folder: Path, verify: bool) -> Path:
        """Return the file's path if the file is as the manifest says.

        Args:
            folder: Where it is.
            verify: Compare the content, not only the size.

        Raises:
            MissingFileError: It is not there.
            DamagedIndexError: It is not as it was written.
        """
        path = inside(folder, self.name)
        try:
            if not path.is_file():
                raise MissingFileError(f"{path} is missing, or is no file. {MEND}.")
            size = path.stat().st_size
            if size != self.size:
                raise DamagedIndexError(f"{path} has {size} bytes instead of {self.size}. {MEND}.")
            if verify and digest(path) != self.sha256:
                raise DamagedIndexError(f"{path} was changed: its content is not what was written. {MEND}.")
        except FileNotFoundError as error:
            raise MissingFileError(f"{path} is missing. {MEND}.") from error
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
    """Refuse an index with links in its place that lead out of it: reading, writing and cleaning would follow them.

    Raises:
        DamagedIndexError: There is one.
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
    """Remove a file, a link or a folder, which may be gone. What cannot be removed now is left for the next write."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def held_folder(place: Path | None) -> Iterator[Path]:
    """Make a folder that is there for the time of a block; after a kill the next write of the index removes it.

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


class WriteLock:
    """Held while an index is written. It goes with its process, however that ends.

    Args:
        folder: The folder of the index.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / "LOCK", timeout=0)

    def __enter__(self) -> "WriteLock":
        check_links(self._folder)
        owner = self._folder / "LOCK.owner"
        try:
            self._lock.acquire()
        except Timeout as error:
            try:
                who = owner.read_text("utf-8")
            except OSError:
                who = "another process"
            raise LockedIndexError(
                f"{self._folder} is being written by {who}. Wait until it is done, or end that process."
            ) from error
        except OSError as error:
            raise PermissionError(
                f"{self._folder} cannot be written ({error}). It can be searched; to change it, copy it to a folder "
                "of yours."
            ) from error
        try:
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}", "utf-8")
        except OSError:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()
