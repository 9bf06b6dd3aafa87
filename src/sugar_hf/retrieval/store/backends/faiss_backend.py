"""FAISS in this process: exact search over the codes, or a graph (HNSW) over them."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from ..codecs import BinaryCodec, Codec, Int8Codec
from ..layout import checked_read
from .base import MOST, BackendOptions, Choice, Found, Rows, VectorBackend

GRAPH_FILE = "graph.faiss"
# Rows that join the graph at once: each call costs time in proportion to all rows.
BLOCK = 65536
# Differences of scores. So far the last row that a search of the graph saw has to be from the last that it gives (and
# each from the one a quarter of all further down), and the row of twice that rank.
NEAR, EQUAL = 1e-3, 1e-5
# Numbers of decoded vectors at once while signs are rescored.
MOST_DECODED = 2**26

# The file of a graph: kind, d, rows, two that are not used, is trained, metric; then arrays; then entry point, top
# level, two options, one that is not used, kind of the storage.
_KINDS = (b"IH00", b"IHNf", b"IHNs")
_HEADER, _TAIL = struct.Struct("<4siqqq?i"), struct.Struct("<iiiii4s")
_TYPES = (np.float64, np.int32, np.int32, np.uint64, np.int32)


@dataclass(frozen=True)
class FaissOptions(BackendOptions):
    """Options of the FAISS backend, beside [`BackendOptions`]. `"hnsw"` takes the codecs float32, float16 and int8.

    Args:
        rescore: With the codec binary: this many times `top_k` rows are found by their signs and then scored by their
            int8 codes. 0: the share of equal signs is the score.
    """

    bounds: ClassVar[dict[str, tuple[int, int]]] = {"m": (2, 2048), **BackendOptions.bounds, "rescore": (0, MOST)}

    rescore: int = 10


class FaissBackend(VectorBackend):
    """Searches codes with FAISS.

    Codes are kept as they are stored, and compared without being decoded to single precision first. With `binary` the
    signs are searched, and codes are read from the arrays that were added (which may be mapped from a file).

    **When the graph is used.** A search that looks at `ef` candidates compares about `2 m ef` rows. With a filter
    that lets a share f of the rows through, only that share of the candidates counts, so the search needs `ef / f` of
    them to find as much. Comparing all allowed rows is exact; it is done where the graph would compare as many,
    `2 m ef / f >= allowed rows`. Without a filter and with the default options that is up to 8192 rows, so that a
    smaller index has no graph at all. All rows are compared, too, for a query whose best rows are nearly equal to so
    many others that the graph leads to few of them.

    Args:
        codec: How vectors are stored.
        options: See [`FaissOptions`].
        folder: What `save` wrote, to go on with its graph.

    Raises:
        ValueError: Unknown options, or a codec without a graph.
    """

    def __init__(self, codec: Codec, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> None:
        self.codec, self.options = codec, self.check_options(options or {}, codec.name)
        self._signs: Any = faiss.IndexBinaryFlat(8 * codec.sign_width) if isinstance(codec, BinaryCodec) else None
        self._blocks = _Blocks()
        self._storage: Any = None if self._signs is not None else _storage(codec)
        self._graph: Any = None
        if folder is not None and self.options.kind == "hnsw" and (folder / GRAPH_FILE).is_file():
            self._graph = self._read_graph(folder / GRAPH_FILE)

    @classmethod
    def check_options(cls, options: Mapping[str, Any], vectors: str) -> FaissOptions:
        """Return the options; see [`FaissOptions`]."""
        read = FaissOptions.read(options, "FAISS")
        if read.kind == "hnsw" and vectors == BinaryCodec.name:
            raise ValueError("kind='hnsw' takes vectors='float32', 'float16' or 'int8'; binary is searched flat.")
        return read

    def __len__(self) -> int:
        return int((self._storage if self._signs is None else self._signs).ntotal)

    def check_rows(self) -> None:
        """Refuse a graph of other rows."""
        if self._graph is not None and self._graph.ntotal != len(self):
            raise ValueError(
                f"The saved graph is of {self._graph.ntotal} rows, but {len(self)} are there: it is of another state."
            )

    # ---- Writing ----

    def add(self, rows: Iterator[Rows]) -> None:
        """Add rows, in order. Rows that a loaded graph already has are taken into it as they are.

        Raises:
            ValueError: Row numbers do not go on from the last one, or codes have another form.
        """
        waiting: list[np.ndarray] = []
        count = 0
        for some in rows:
            if some.first != len(self) + count:
                raise ValueError(f"Row {some.first} does not follow: {len(self) + count} rows are there.")
            waiting.append(self._checked_codes(some.codes))
            count += len(some.codes)
            if count >= BLOCK:
                self._add(waiting)
                waiting, count = [], 0
        if count:
            self._add(waiting)

    def _checked_codes(self, codes: np.ndarray) -> np.ndarray:
        codec = self.codec
        if codes.ndim != 2 or codes.shape[1] != codec.code_width or codes.dtype != codec.code_dtype:
            raise ValueError(
                f"Codes of {codec.name} have the shape (n, {codec.code_width}) and the type {codec.code_dtype}; "
                f"got {codes.shape} of {codes.dtype}."
            )
        return codes

    def _add(self, parts: list[np.ndarray]) -> None:
        if isinstance(self.codec, BinaryCodec):
            for part in parts:
                self._signs.add(np.ascontiguousarray(part[:, : self.codec.sign_width]))
                self._blocks.append(part)
            return
        codes = parts[0] if len(parts) == 1 else np.concatenate(parts)
        known = min(len(codes), max(0, self._graph.ntotal - len(self))) if self._graph is not None else len(codes)
        self._store(codes[:known])
        if known < len(codes):
            # FAISS makes the same codes of the decoded vectors again
            self._graph.add(np.ascontiguousarray(self.codec.decode(codes[known:])))
        elif self._graph is None and self.options.kind == "hnsw" and len(self) > self._scanned(self.options.ef_search):
            self._build_graph()

    def _store(self, codes: np.ndarray) -> None:
        if len(codes):
            raw = np.ascontiguousarray(codes).view(np.uint8).reshape(len(codes), -1)
            self._storage.add_sa_codes(raw)

    def _build_graph(self) -> None:
        """A graph of all rows."""
        codes = faiss.vector_to_array(self._storage.codes).reshape(len(self), -1)
        _warn_of_equal(codes, self.options.ef_search)
        self._storage.reset()
        self._graph = faiss.IndexHNSW(self._storage, self.options.m)
        self._graph.hnsw.efConstruction = self.options.ef_construction
        for start in range(0, len(codes), BLOCK):
            part = np.ascontiguousarray(codes[start : start + BLOCK]).view(self.codec.code_dtype)
            self._graph.add(np.ascontiguousarray(self.codec.decode(part)))

    def remove(self, rows: np.ndarray) -> None:
        """Nothing: rows keep their numbers, and searches leave deleted ones out until the index is compacted."""

    def trim(self, row_count: int) -> None:
        """Drop rows from number `row_count` on. A graph that has them is built anew."""
        if len(self) <= row_count:
            return
        last = faiss.IDSelectorRange(row_count, len(self))
        if self._signs is not None:
            self._signs.remove_ids(last)
            self._blocks.trim(row_count)
            return
        self._storage.remove_ids(last)
        if self._graph is not None and self._graph.ntotal > row_count:
            self._graph = None
            if row_count > self._scanned(self.options.ef_search):
                self._build_graph()

    # ---- Searching ----

    def _search(self, queries: np.ndarray, top_k: int, row_count: int, choice: Choice) -> Found:
        """Search. Refuses a filter on metadata, more rows than there are, and a graph of other rows."""
        allowed, excluded, where = choice
        if where is not None:
            raise ValueError("FAISS knows no metadata: evaluate the filter and give the allowed rows.")
        if row_count > len(self):
            raise ValueError(f"{row_count} rows are asked for, {len(self)} are there.")
        self.check_rows()
        if excluded is not None and len(excluded):
            allowed = np.ones(row_count, dtype=bool) if allowed is None else allowed.copy()
            allowed[excluded[excluded < row_count]] = False
        if allowed is not None and allowed.shape != (row_count,):
            raise ValueError(f"allowed must have the shape ({row_count},); got {allowed.shape}.")
        count = row_count if allowed is None else int(np.count_nonzero(allowed))
        found = min(top_k, count)
        if not found or not len(queries):
            return np.empty((len(queries), 0)), np.empty((len(queries), 0))
        selector = self._selector(row_count, allowed)
        if isinstance(self.codec, BinaryCodec):
            return self._search_signs(self.codec, queries, found, count, selector)
        return self._search_codes(queries, found, count, selector)

    def _scanned(self, ef: int) -> int:
        """About how many rows a search of the graph compares."""
        return 2 * self.options.m * ef

    def _selector(self, row_count: int, allowed: np.ndarray | None) -> Any:
        """What FAISS asks whether a row may be found; None if all may."""
        if allowed is not None:
            return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        return faiss.IDSelectorRange(0, row_count) if row_count < len(self) else None

    def _search_codes(
        self, queries: np.ndarray, top_k: int, count: int, selector: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        ef = -(-max(self.options.ef_search, top_k) * len(self) // count)  # rounded up
        exact = None if selector is None else faiss.SearchParameters(sel=selector)
        if self._graph is None or self._scanned(ef) >= count:
            return self._storage.search(queries, top_k, params=exact)
        wide = faiss.SearchParametersHNSW(efSearch=ef, sel=selector)
        some = min(count, max(ef, 2 * top_k))
        found, candidates = self._graph.search(queries, some, params=wide)
        scores, rows = found[:, :top_k].copy(), candidates[:, :top_k].copy()
        # The graph led nowhere, or it ended among rows that are so nearly equal that it leads to few of them: those of
        # the first sentence of many documents, say. Then only a comparison with all rows tells which are the best.
        step = max(1, some // 4)
        unsure = (rows < 0).any(1) | (found[:, top_k - 1] - found[:, -1] <= NEAR)
        found[candidates < 0] = np.finfo(np.float32).min
        unsure |= ((found[:, :-step] - found[:, step:] <= NEAR) & (candidates[:, step:] >= 0)).any(1)
        if some >= 2 * top_k:
            unsure |= found[:, top_k - 1] - found[:, 2 * top_k - 1] <= EQUAL
        again = np.flatnonzero(unsure)
        if len(again):
            scores[again], rows[again] = self._storage.search(queries[again], top_k, params=exact)
        return scores, rows

    def _search_signs(
        self, codec: BinaryCodec, queries: np.ndarray, top_k: int, count: int, selector: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        candidates = min(count, max(1, self.options.rescore) * top_k)
        params = None if selector is None else faiss.SearchParameters(sel=selector)
        distances, rows = self._signs.search(codec.signs(queries), candidates, params=params)
        if not self.options.rescore:
            return 1 - 2 * distances.astype(np.float32) / codec.dim, rows
        scores = np.empty(rows.shape, np.float32)
        step = max(1, MOST_DECODED // (candidates * codec.dim))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            vectors = codec.decode(self._blocks.take(some.ravel())).reshape(*some.shape, codec.dim)  # (q, c, d)
            scores[start : start + step] = np.einsum("qd,qcd->qc", queries[start : start + step], vectors)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    # ---- Files ----

    def save(self, folder: Path) -> list[str]:
        """Write the graph, without a second copy of the vectors."""
        if self._graph is None:
            return []
        try:
            faiss.write_index(self._graph, str(folder / GRAPH_FILE), faiss.IO_FLAG_SKIP_STORAGE)
        except RuntimeError as error:  # as it says that a disk is full
            raise OSError(f"{folder / GRAPH_FILE} cannot be written ({error})") from error
        return [GRAPH_FILE]

    def _read_graph(self, path: Path) -> Any:
        graph = read_graph(path, self.codec.dim)
        graph.storage, graph.own_fields = self._storage, False
        graph.hnsw.efConstruction = self.options.ef_construction
        return graph


def _warn_of_equal(codes: np.ndarray, many: int) -> None:
    """Say that a graph finds less where many rows are equal: their links leave no room for others."""
    rows = np.ascontiguousarray(codes).view(f"V{codes.shape[1]}").ravel()
    most = int(np.unique(rows, return_counts=True)[1].max())
    if most > many:
        warnings.warn(
            f"{most} of {len(rows)} vectors are equal, and a graph (kind='hnsw') finds fewer of the nearest then. "
            "Leave such documents or slices out, or use kind='flat', which is exact.",
            stacklevel=2,
        )


class _Blocks:
    """Codes as they were added, row after row, without a copy."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._ends: list[int] = []

    def append(self, codes: np.ndarray) -> None:
        self._parts.append(codes)
        self._ends.append(len(codes) + (self._ends[-1] if self._ends else 0))

    def trim(self, row_count: int) -> None:
        while self._ends and self._ends[-1] > row_count:
            self._ends.pop()
            part = self._parts.pop()
            kept = row_count - (self._ends[-1] if self._ends else 0)
            if kept > 0:
                self.append(part[:kept])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The codes (r, w) of rows (r,)."""
        ends = np.array(self._ends)
        place = np.searchsorted(ends, rows, side="right")
        found = np.empty((len(rows), self._parts[0].shape[1]), dtype=self._parts[0].dtype)
        for number in np.unique(place):
            part, where = self._parts[number], place == number
            found[where] = part[rows[where] - (ends[number] - len(part))]
        return found


def _storage(codec: Codec) -> Any:
    """The FAISS index that holds codes of this codec."""
    inner = faiss.METRIC_INNER_PRODUCT
    if codec.name == "float32":
        return faiss.IndexFlat(codec.dim, inner)
    if codec.name == "float16":
        return faiss.IndexScalarQuantizer(codec.dim, faiss.ScalarQuantizer.QT_fp16, inner)
    if isinstance(codec, Int8Codec):
        storage = faiss.IndexScalarQuantizer(codec.dim, faiss.ScalarQuantizer.QT_8bit, inner)
        faiss.copy_array_to_vector(np.concatenate([codec.low, codec.span]).astype(np.float32), storage.sq.trained)
        storage.is_trained = True
        return storage
    raise ValueError(f"FAISS holds no codes of {codec.name}.")


# ---- The file of a graph ----


def read_graph(path: Path, dim: int) -> Any:
    """Read the HNSW graph that FAISS wrote without its vectors, after a check of every number in the file.

    FAISS itself follows whatever numbers a file holds.

    Args:
        path: The file.
        dim: Width of the vectors.
    """
    with checked_read(path):
        data = path.read_bytes()
        _check_graph(data, dim)
        reader = faiss.VectorIOReader()  # what was checked, and not the file again
        faiss.copy_array_to_vector(np.frombuffer(data, np.uint8), reader.data)
        graph = faiss.read_index(reader, faiss.IO_FLAG_SKIP_STORAGE)
        if not isinstance(graph, faiss.IndexHNSW):
            raise ValueError("it is not a graph")
    return graph


def _check_graph(data: bytes, dim: int) -> None:
    """Raise a ValueError if any number in the file of a graph leads nowhere."""
    kind, width, count, _, _, _, metric = _HEADER.unpack_from(data)
    if kind not in _KINDS:
        raise ValueError(f"{kind!r} is not a graph")
    if width != dim:
        raise ValueError(f"it is not a graph of vectors of {dim} dimensions")
    if metric != faiss.METRIC_INNER_PRODUCT or count < 1:
        raise ValueError("it is not a graph of inner products")
    place = _HEADER.size
    arrays: list[np.ndarray] = []
    for type_ in _TYPES:
        (length,) = struct.unpack_from("<Q", data, place)
        if length > len(data):
            raise ValueError("a length is past its end")
        arrays.append(np.frombuffer(data, type_, length, place + 8))
        place += 8 + arrays[-1].nbytes
    entry, top, _, _, _, storage = _TAIL.unpack_from(data, place)
    if place + _TAIL.size != len(data) or storage != b"null":
        raise ValueError("it does not end where it should")
    shares, ends, levels, offsets, neighbors = arrays
    # `ends[l]` neighbors of a row are those of its levels below l
    is_ascending = len(ends) > 1 and not ends[0] and (ends[1:] > ends[:-1]).all() and ends[-1] < 2**20
    if len(ends) != len(shares) + 1 or not is_ascending:
        raise ValueError("its levels have no sizes")
    if not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError("its levels have no shares")
    if len(levels) != count or levels.min() < 1 or levels.max() >= len(ends):
        raise ValueError("rows are on levels that there are not")
    if not np.array_equal(offsets, np.concatenate([[0], np.cumsum(ends[levels].astype(np.uint64))]).astype(np.uint64)):
        raise ValueError("rows have other numbers of neighbors than their levels have")
    if len(neighbors) != offsets[-1] or neighbors.min() < -1 or neighbors.max() >= count:
        raise ValueError("rows have neighbors that there are not")
    for level in range(1, int(levels.max())):
        # a neighbor on a level has to be on that level itself, or what is read are another row's neighbors
        starts = offsets[:-1][levels > level].astype(np.int64)
        found = neighbors[(starts[:, None] + np.arange(ends[level], ends[level + 1])).ravel()]
        if (levels[found[found >= 0]] <= level).any():
            raise ValueError("rows have neighbors on other levels")
    if not 0 <= entry < count or not 0 <= top < levels[entry]:
        raise ValueError("it begins nowhere")
