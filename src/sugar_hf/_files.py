"""Atomic files: whoever reads one, also after a crash, finds its old content or its new one, never a part of it.

Standard library only, as every package but `model` may import this one.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync(*paths: Path) -> None:
    """Wait until each file's content, or folder's list of names, is on the disk, one after the other."""
    for path in paths:
        if path.is_dir() and os.name == "nt":  # folders cannot be opened there
            continue
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fsync_tree(folder: Path) -> None:
    """Wait until all that a folder holds is on the disk, its files before the folders that name them."""
    for path, _, files in os.walk(folder, topdown=False):
        for name in files:
            fsync(Path(path, name))
        fsync(Path(path))


def replace(source: Path, path: Path) -> None:
    """Give a finished file or folder its name, on the disk before this returns. A file of that name is replaced."""
    if source.is_file():
        fsync(source)
    else:
        fsync_tree(source)
    os.replace(source, path)
    fsync(path.parent)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which becomes `path` when the block ends without an error.

    The temporary file lies beside it and is named after the process, as another process may write the same file.

    Args:
        path: The file. Its folder is created where needed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write(path: Path, content: str | bytes, *then: tuple[Path, str | bytes]) -> None:
    """Write a file atomically, and others after it, one by one; text is written as UTF-8."""
    for place, data in ((path, content), *then):
        with atomic_path(place) as temporary:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
