"""The store of an index: documents and their vectors in a folder, crash safe, with one writer and many readers.

`SugarIndex` has an [`IndexStore`]; nothing else outside of this package opens the files of an index.
"""

from .backends.base import check_top_k
from .index_writer import (
    MUCH_DELETED,
    AddReport,
    IndexWriter,
    PendingParts,
    check_duplicates,
    create_index,
    holds_index,
    open_writer,
    write_current,
)
from .layout import (
    DamagedIndexError,
    DuplicateIdError,
    FileEntry,
    IndexMismatchError,
    IndexSpec,
    LockedIndexError,
    Manifest,
    read_current,
)
from .postings import words_of
from .snapshot import DocumentNumber, IndexStore, Matches, RowId, Snapshot, checked_spec, read_settled

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
    "Matches",
    "PendingParts",
    "RowId",
    "Snapshot",
    "check_duplicates",
    "check_top_k",
    "checked_spec",
    "create_index",
    "holds_index",
    "open_writer",
    "read_current",
    "read_settled",
    "words_of",
    "write_current",
]
