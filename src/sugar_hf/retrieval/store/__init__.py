"""The store of an index: documents and their vectors in a folder, crash safe, with one writer and many readers.

`SugarIndex` has an [`IndexStore`]; nothing else outside of this package opens the files of an index.
"""

from .index_errors import DamagedIndexError, DuplicateIdError, IndexMismatchError, LockedIndexError
from .index_store import IndexStore
from .index_writer import MUCH_DELETED, AddReport, IndexWriter, PendingParts, check_duplicates, open_writer
from .layout import (
    FileEntry,
    IndexSpec,
    Manifest,
    held_folder,
    holds_index,
    inside,
    read_current,
    read_settled,
    write_current,
)
from .snapshot import DocumentNumber, RowId, Snapshot, checked_spec

__all__ = [
    "MUCH_DELETED",
    "AddReport",
    "DamagedIndexError",
    "DocumentNumber",
    "DuplicateIdError",
    "FileEntry",
    "IndexMismatchError",
    "IndexSpec",
    "IndexStore",
    "IndexWriter",
    "LockedIndexError",
    "Manifest",
    "PendingParts",
    "RowId",
    "Snapshot",
    "check_duplicates",
    "checked_spec",
    "held_folder",
    "holds_index",
    "inside",
    "open_writer",
    "read_current",
    "read_settled",
    "write_current",
]
