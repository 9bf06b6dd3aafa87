"""What an index asks of the place where its vectors are searched."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..filters import Filter


@dataclass(frozen=True)
class Rows:
    """Rows to be added. Row numbers are dense, grow for ever and are never used twice.

    Args:
        first: The number of the first row; the others follow.
        codes: (n, w) vectors as the index's codec stores them.
        vectors: (n, d) float32 unit vectors.
        document_ids: The document of each row, n of them.
        slices: (n,) int32, the slice of the document at which the row's embedding was taken.
        metadata: The metadata of each row's document, n dicts.
    """

    first: int
    codes: np.ndarray
    vectors: np.ndarray
    document_ids: list[str]
    slices: np.ndarray
    metadata: list[dict[str, Any]]


class VectorBackend(ABC):
    """Finds the nearest rows by inner product.

    An index commits by writing its manifest; a backend may hold rows that no manifest knows yet, after a crash. The
    index therefore names the rows that count in each search, and calls `trim` before it writes.
    """

    #: Whether rows are kept where the backend keeps them, so that the index stores no vectors of its own.
    holds_vectors: ClassVar[bool] = False
    #: Whether the backend filters by metadata itself. If not, the index evaluates filters and passes `allowed`.
    filters_metadata: ClassVar[bool] = False

    @abstractmethod
    def add(self, rows: Iterator[Rows]) -> None:
        """Add rows, in order."""

    @abstractmethod
    def search(
        self,
        queries: np.ndarray,
        top_k: int,
        *,
        row_count: int,
        allowed: np.ndarray | None = None,
        excluded: np.ndarray | None = None,
        where: Filter | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the rows of the largest inner products.

        Args:
            queries: (q, d) float32 unit vectors.
            top_k: How many rows for each query.
            row_count: Rows from this number on do not exist for this search.
            allowed: (row_count,) bool, the rows that may be found; all when `None`. Given to backends that do not
                filter by themselves, deleted rows already taken out.
            excluded: Sorted row numbers that may not be found (deleted ones), for backends that filter by themselves.
            where: The filter on metadata, for backends that filter by themselves.

        Returns:
            Scores (q, top_k) float32, best first, and row numbers (q, top_k) int64; -1 fills up short results.
        """

    @abstractmethod
    def remove(self, rows: np.ndarray) -> None:
        """Give back the space of rows that no search will allow again, where that can be done; else do nothing."""

    def trim(self, row_count: int) -> None:
        """Drop rows from number `row_count` on, left over by a write that was never committed."""

    def save(self, folder: Path) -> list[str]:
        """Write what should not be built again at the next opening into an empty folder. Returns the file names."""
        return []

    def close(self) -> None:
        """Let go of files and connections."""
