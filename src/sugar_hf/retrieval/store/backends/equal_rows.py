"""Rows that are nearly equal to a row of a graph, and stay out of it."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
from safetensors.numpy import save_file

from ..layout import checked_read, open_tensors

FILE = "equal.safetensors"
# Square of the distance up to which rows are nearly equal. FAISS drops a neighbor that is nearer to another one than
# to the row itself. Below about this distance single precision tells no product from another, and all of them stay.
NEAR_SQUARE = 2e-7
#: So far the score of a row can be from that of a row that is nearly equal.
NEAR_SCORE = NEAR_SQUARE**0.5
#: Nearly equal rows that are compared for a query one by one: at most so many, and this share of all rows. Beyond, a
#: comparison with all is faster.
MOST_COMPARED, MOST_SHARE = 4096, 1 / 64
_CHUNK = 4096


class EqualRows:
    """Rows that stand in lists at the node of a graph to which they are nearly equal.

    In a graph each of them would be among the neighbors of all others, and leave no room for links that lead
    elsewhere: a search then loses its way. Documents that begin alike have such rows, if each slice has a vector.

    Args:
        storage: An empty FAISS index for their codes.
        rows: (c,) int64, their numbers, ascending. Their codes are to be added.
        nodes: (c,) int64, the node of each.
    """

    def __init__(self, storage: Any, rows: np.ndarray | None = None, nodes: np.ndarray | None = None) -> None:
        self.storage = storage
        self.rows = np.zeros(0, np.int64) if rows is None else rows
        self.nodes = np.zeros(0, np.int64) if nodes is None else nodes
        self._lists: tuple[np.ndarray, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def store(self, codes: np.ndarray) -> None:
        """Add codes of rows that are known."""
        if len(codes):
            self.storage.add_sa_codes(np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1))

    def add(self, codes: np.ndarray, rows: np.ndarray, nodes: np.ndarray) -> None:
        """Add rows; their numbers are larger than those that are there."""
        self.store(codes)
        self.rows, self.nodes = np.concatenate([self.rows, rows]), np.concatenate([self.nodes, nodes])
        self._lists = None

    def trim(self, row_count: int) -> None:
        """Drop rows from number `row_count` on."""
        kept = int(np.searchsorted(self.rows, row_count))
        self.storage.remove_ids(faiss.IDSelectorRange(kept, max(kept, self.storage.ntotal)))
        self.rows, self.nodes, self._lists = self.rows[:kept], self.nodes[:kept], None

    def of(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which of these rows stand at some nodes, and for each where its node is in `nodes`."""
        if self._lists is None:
            order = np.argsort(self.nodes, kind="stable")
            self._lists = order, self.nodes[order]
        order, sorted_nodes = self._lists
        low, high = (np.searchsorted(sorted_nodes, nodes, side=side) for side in ("left", "right"))
        counts = high - low
        inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return order[np.repeat(low, counts) + inner], np.repeat(np.arange(len(nodes)), counts)

    def score(self, query: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Compare a query with some of these rows."""
        vectors: np.ndarray = self.storage.reconstruct_batch(places)
        return vectors @ query

    def save(self, folder: Path) -> str:
        """Write which rows stand where, without their codes. Returns the name of the file."""
        save_file({"rows": self.rows, "nodes": self.nodes}, folder / FILE)
        return FILE

    @classmethod
    def read(cls, folder: Path, storage: Any, node_count: int) -> "EqualRows":
        """Read what `save` wrote, after a check that every number leads to a row and a node."""
        with checked_read(folder / FILE):
            tensors = open_tensors(folder / FILE)
            rows, nodes = (tensors.get_tensor(name) for name in ("rows", "nodes"))
            if rows.dtype != np.int64 or nodes.dtype != np.int64 or rows.ndim != 1 or rows.shape != nodes.shape:
                raise ValueError("it holds no lists of rows")
            if not len(rows) or rows[0] < 0 or rows[-1] >= len(rows) + node_count or (np.diff(rows) <= 0).any():
                raise ValueError("its rows do not ascend to those that there are")
            if nodes.min() < 0 or nodes.max() >= node_count:
                raise ValueError("it has nodes that there are not")
        return cls(storage, rows, nodes)


def first_equal(vectors: np.ndarray) -> np.ndarray:
    """Return for each vector the first that it is nearly equal to, itself if there is none.

    Nearly equal vectors are next to each other when all are sorted by their projection on one direction. A few are
    missed where others stand between them.

    Args:
        vectors: (n, d) float32.

    Returns:
        (n,) int64, each at most its own place; the first of equal ones is its own.
    """
    count, dim = vectors.shape
    direction = np.random.default_rng(0).standard_normal(dim, dtype=np.float32)
    order = np.argsort(vectors @ direction, kind="stable")
    starts = np.ones(count, bool)
    starts[1:] = _squares(vectors, order[1:], order[:-1]) > NEAR_SQUARE
    firsts = np.minimum.reduceat(order, np.flatnonzero(starts))[np.cumsum(starts) - 1] if count else order
    found = np.arange(count)
    found[order] = firsts
    far = _squares(vectors, found, np.arange(count)) > NEAR_SQUARE  # a chain may lead far
    found[far] = np.flatnonzero(far)
    return found


def _squares(vectors: np.ndarray, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of vectors."""
    found = np.zeros(len(some), np.float32)
    for start in range(0, len(some), _CHUNK):
        part = slice(start, start + _CHUNK)
        found[part] = np.square(vectors[some[part]] - vectors[others[part]]).sum(1)
    return found
