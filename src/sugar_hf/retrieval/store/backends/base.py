"""The interface between an index and the backend that searches its vectors."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from ...filters import Filter
from ..codecs import Codec

# Short results are filled up to so many columns, however few rows there are; to more only if there are more rows.
FILLED_UP = 128
MOST = 2**20  # of any count: without an upper bound an option could take all memory

#: Which rows may be found: `allowed`, `excluded` and `where` of [`VectorBackend.search`].
Choice = tuple[np.ndarray | None, np.ndarray | None, Filter | None]
#: Scores (q, k), best first, and row numbers (q, k).
Found = tuple[np.ndarray, np.ndarray]


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


@dataclass(frozen=True)
class BackendOptions:
    """Options that all backends have.

    Args:
        kind: `"flat"`: all rows are compared, results are exact. `"hnsw"`: a graph leads to the nearest rows.
        m: Neighbours of a row in the graph (twice as many in its lowest layer).
        ef_construction: Candidates that are looked at when a row joins the graph.
        ef_search: Candidates that a search looks at. More find more and take longer.
    """

    bounds: ClassVar[dict[str, tuple[int, int]]] = {"ef_construction": (1, MOST), "ef_search": (1, MOST)}

    kind: str = "flat"
    m: int = 32
    ef_construction: int = 200
    ef_search: int = 128

    def __post_init__(self) -> None:
        if self.kind not in ("flat", "hnsw"):
            raise ValueError(f"kind={self.kind!r}: give 'flat' or 'hnsw'.")
        for name, (least, most) in self.bounds.items():
            value = vars(self)[name]
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name}={value!r:.40}: give a whole number of {least} or more, {most} at most.")

    @classmethod
    def read(cls, values: Mapping[str, Any], backend: str) -> Self:
        """Make the options of a backend from a dict."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(names)):
            raise ValueError(f"Unknown option {unknown[0]!r} of the {backend} backend; there are {', '.join(names)}.")
        return cls(**values)


class VectorBackend(ABC):
    """Finds the nearest rows by inner product.

    An index commits by writing its manifest; a backend may hold rows that no manifest knows yet, after a crash. The
    index therefore names the rows that exist in each search, and calls `trim` before it writes.

    Args:
        codec: How the index stores vectors.
        options: Options of the backend.
        folder: Where its files are: FAISS: what `save` wrote. Milvus without a `uri`: its local files.

    Raises:
        ValueError: An unknown option, or a codec that the backend does not take.
    """

    #: Whether rows are kept where the backend keeps them, so that the index stores no vectors of its own.
    holds_vectors: ClassVar[bool] = False
    #: Whether the backend filters by metadata itself. If not, the index evaluates filters and passes `allowed`.
    filters_metadata: ClassVar[bool] = False

    codec: Codec

    @abstractmethod
    def __init__(self, codec: Codec, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> None: ...

    @classmethod
    @abstractmethod
    def check_options(cls, options: Mapping[str, Any], vectors: str) -> Any:
        """Return the options of the backend, for vectors that are stored so.

        Raises:
            ValueError: There is no such option, or it has a value that it cannot have; names it.
        """

    def check_rows(self) -> None:
        """Refuse what was saved if it is not of the rows that were added."""
        return

    @abstractmethod
    def add(self, rows: Iterator[Rows]) -> None:
        """Add rows, in order."""

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
                filter by themselves, without the deleted ones.
            excluded: Sorted row numbers that may not be found (deleted ones), for backends that filter by themselves.
            where: The filter on metadata, for backends that filter by themselves.

        Returns:
            Scores (q, k) float32, best first, and row numbers (q, k) int64; row -1 with score -inf fills up short
            results. k is `top_k`, unless that is over 128 and over `row_count`: then the larger of these two.

        Raises:
            ValueError: Queries of another width or with NaN, a `top_k` below 1, or a choice that it does not take.
        """
        queries = np.asarray(queries)
        if queries.ndim != 2 or queries.shape[1] != self.codec.dim:
            raise ValueError(
                f"Queries must have the shape (q, {self.codec.dim}), as the index has; got {queries.shape}."
            )
        top_k = cut_top_k(top_k, row_count)
        if not np.isfinite(queries).all():
            raise ValueError(f"Query {int(np.argmax(~np.isfinite(queries).all(1)))} has NaN or infinite numbers.")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, rows = self._search(queries, top_k, row_count, (allowed, excluded, where))
        missing = ((0, 0), (0, top_k - rows.shape[1]))
        rows = np.pad(rows.astype(np.int64), missing, constant_values=-1)
        scores = np.pad(scores.astype(np.float32), missing)
        return np.where(rows < 0, np.float32(-np.inf), scores), rows

    @abstractmethod
    def _search(self, queries: np.ndarray, top_k: int, row_count: int, choice: Choice) -> Found:
        """Do what `search` says with arguments that are checked; short results need not be filled up."""

    @abstractmethod
    def remove(self, rows: np.ndarray) -> None:
        """Give back the space of rows that no search will allow again, where that can be done; else do nothing."""

    def trim(self, row_count: int) -> None:
        """Drop rows from number `row_count` on, left over by a write that was never committed."""
        return

    def save(self, folder: Path) -> list[str]:
        """Write what should not be built again at the next opening into an empty folder. Returns the file names."""
        return []

    def drop(self) -> None:
        """Delete all rows where the backend keeps them itself, when the index does without them for good."""
        return

    def close(self) -> None:
        """Let go of files and connections."""
        return


def check_top_k(top_k: Any) -> int:
    """Return how many results are wanted."""
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer):
        raise ValueError(f"top_k={top_k!r:.40}: give a whole number of 1 or more, not a {type(top_k).__name__}.")
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: give 1 or more, ask for at least one result.")
    return int(top_k)


def cut_top_k(top_k: int, count: int) -> int:
    """Return how many columns results have where there are `count` rows or documents."""
    return min(check_top_k(top_k), max(count, FILLED_UP))
