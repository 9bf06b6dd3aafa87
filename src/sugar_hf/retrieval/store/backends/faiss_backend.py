"""FAISS in this process: exact search over the codes, or a graph (HNSW) over them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from ..codecs import BinaryCodec, Codec, Int8Codec
from ..layout import checked_read
from .base import MOST, BackendOptions, Choice, Found, Rows, VectorBackend
from .equal_rows import MOST_COMPARED, MOST_SHARE, NEAR_SCORE, NEAR_SQUARE, EqualRows, first_equal

#: A graph of all rows, and one without those that are nearly equal to others, which an older sugar-hf builds anew.
GRAPH_FILE, DISTINCT_FILE = "graph.faiss", "distinct.faiss"
LOOKED_AT = 32  # candidates of a search for a node to which a new row is nearly equal
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

    **Nearly equal rows.** The graph has one of them, its node; the others stand in a list at it. A search finds nodes
    and then compares the rows of their lists. Numbers of nodes and of listed rows are their places in `_storage` and
    in `_equal.storage`; both are in the order of rows.

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
        self._equal = EqualRows(None if self._signs is not None else _storage(codec))
        self._nodes: np.ndarray | None = None  # the row of each node; `None` until it is needed
        if folder is not None and self.options.kind == "hnsw":
            if (folder / DISTINCT_FILE).is_file():
                self._graph = self._read_graph(folder / DISTINCT_FILE)
                self._equal = EqualRows.read(folder, self._equal.storage, self._graph.ntotal)
            elif (folder / GRAPH_FILE).is_file():
                self._graph = self._read_graph(folder / GRAPH_FILE)

    @classmethod
    def check_options(cls, options: Mapping[str, Any], vectors: str) -> FaissOptions:
        """Return the options; see [`FaissOptions`]."""
        read = FaissOptions.read(options, "FAISS")
        if read.kind == "hnsw" and vectors == BinaryCodec.name:
            raise ValueError("kind='hnsw' takes vectors='float32', 'float16' or 'int8'; binary is searched flat.")
        return read

    def __len__(self) -> int:
        if self._signs is not None:
            return int(self._signs.ntotal)
        return int(self._storage.ntotal + self._equal.storage.ntotal)

    def check_rows(self) -> None:
        """Refuse a graph of other rows."""
        if self._graph is not None and self._rows_of_graph() != len(self):
            raise ValueError(
                f"The saved graph is of {self._rows_of_graph()} rows, but {len(self)} are there: it is of another "
                "state."
            )

    def _rows_of_graph(self) -> int:
        return int(self._graph.ntotal) + len(self._equal)

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
        codes, start = parts[0] if len(parts) == 1 else np.concatenate(parts), len(self)
        known = min(len(codes), max(0, self._rows_of_graph() - start)) if self._graph is not None else len(codes)
        self._store(codes[:known], start)
        self._nodes = None
        if known < len(codes):
            self._enter(codes[known:], start + known)
        elif self._graph is None and self.options.kind == "hnsw" and len(self) > self._scanned(self.options.ef_search):
            self._build_graph()

    def _store(self, codes: np.ndarray, start: int) -> None:
        """Add codes of rows from number `start` on that the graph has already, or that need none."""
        is_equal = np.isin(np.arange(start, start + len(codes)), self._equal.rows)
        self._equal.store(codes[is_equal])
        if not is_equal.all():
            raw = np.ascontiguousarray(codes[~is_equal]).view(np.uint8)
            self._storage.add_sa_codes(raw.reshape(len(raw), -1))

    def _enter(self, codes: np.ndarray, start: int) -> None:
        """Add rows from number `start` on to the graph, or to the lists at its nodes."""
        vectors = np.ascontiguousarray(self.codec.decode(codes))
        first = first_equal(vectors)
        firsts = np.flatnonzero(first == np.arange(len(first)))
        node = np.full(len(codes), -1)
        if self._graph.ntotal:
            params = faiss.SearchParametersHNSW(efSearch=LOOKED_AT)
            nearest = self._graph.search(vectors[firsts], 1, params=params)[1][:, 0]
            known, nearest = firsts[nearest >= 0], nearest[nearest >= 0]
            squares = np.square(vectors[known] - self._storage.reconstruct_batch(nearest)).sum(1)
            node[known[squares <= NEAR_SQUARE]] = nearest[squares <= NEAR_SQUARE]
        new = firsts[node[firsts] < 0]
        node[new] = self._graph.ntotal + np.arange(len(new))
        if len(new):
            self._graph.add(vectors[new])  # FAISS makes the same codes of the decoded vectors again
        others = np.delete(np.arange(len(codes)), new)
        self._equal.add(codes[others], start + others, node[first[others]])

    def _build_graph(self) -> None:
        """A graph of all rows."""
        codes = self._flatten()
        self._storage.reset()
        self._graph = faiss.IndexHNSW(self._storage, self.options.m)
        self._graph.hnsw.efConstruction = self.options.ef_construction
        for start in range(0, len(codes), BLOCK):
            self._enter(codes[start : start + BLOCK], start)

    def _flatten(self) -> np.ndarray:
        """Put the codes of all rows into the storage, in order. Returns them."""
        width, codec = self._storage.sa_code_size(), self.codec
        codes = faiss.vector_to_array(self._storage.codes).reshape(-1, width)
        if len(self._equal):
            listed = faiss.vector_to_array(self._equal.storage.codes).reshape(-1, width)
            every = np.empty((len(self), width), np.uint8)
            every[self._node_rows()], every[self._equal.rows] = codes, listed
            codes = every
            self._equal.trim(0)
            self._storage.reset()
            self._storage.add_sa_codes(codes)
        self._nodes = None
        return codes.view(codec.code_dtype)

    def _node_rows(self) -> np.ndarray:
        """(nodes,) int64, the row of each node."""
        if self._nodes is None:
            self._nodes = np.delete(np.arange(len(self)), self._equal.rows)
        return self._nodes

    def remove(self, rows: np.ndarray) -> None:
        """Nothing: rows keep their numbers, and searches leave deleted ones out until the index is compacted."""

    def trim(self, row_count: int) -> None:
        """Drop rows from number `row_count` on. A graph that has them is built anew."""
        if len(self) <= row_count:
            return
        if self._signs is not None:
            self._signs.remove_ids(faiss.IDSelectorRange(row_count, len(self)))
            self._blocks.trim(row_count)
            return
        kept = int(np.searchsorted(self._node_rows(), row_count))
        self._storage.remove_ids(faiss.IDSelectorRange(kept, max(kept, self._storage.ntotal)))
        self._equal.trim(row_count)
        self._nodes = None
        if self._graph is not None and self._graph.ntotal > kept:
            self._graph = None
            self._flatten()
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
        if isinstance(self.codec, BinaryCodec):
            return self._search_signs(self.codec, queries, found, count, self._selector(row_count, allowed))
        return self._search_codes(queries, found, count, row_count, allowed)

    def _scanned(self, ef: int) -> int:
        """About how many rows a search of the graph compares."""
        return 2 * self.options.m * ef

    def _selector(self, row_count: int, allowed: np.ndarray | None) -> Any:
        """What FAISS asks whether a row may be found; None if all may."""
        if allowed is not None:
            return _bitmap(allowed)
        return faiss.IDSelectorRange(0, row_count) if row_count < len(self) else None

    def _search_codes(
        self, queries: np.ndarray, top_k: int, count: int, row_count: int, allowed: np.ndarray | None
    ) -> Found:
        ef = -(-max(self.options.ef_search, top_k) * len(self) // count)  # rounded up
        if self._graph is None or self._scanned(ef) >= count:
            return self._compare_all(queries, top_k, row_count, allowed)
        masks = self._masks(row_count, allowed) if len(self._equal) else None
        reached = self._selector(row_count, allowed)
        if masks is not None:
            has_any = masks[0].copy()
            has_any[self._equal.nodes[masks[1]]] = True
            reached = _bitmap(has_any)
        elif len(self._equal):
            reached = None
        wide = faiss.SearchParametersHNSW(efSearch=ef, sel=reached)
        some = min(count, max(ef, 2 * top_k), int(self._storage.ntotal))
        found, candidates = self._graph.search(queries, some, params=wide)
        if len(self._equal):
            scores, rows = self._with_lists(queries, top_k, found, candidates, masks)
        else:
            scores, rows = found[:, :top_k].copy(), candidates[:, :top_k].copy()
        # The graph led nowhere, or it ended among rows that are so nearly equal that it leads to few of them: those of
        # the first sentence of many documents, say. Then only a comparison with all rows tells which are the best.
        step = max(1, some // 4)
        unsure = (rows < 0).any(1) | (scores[:, -1] - found[:, -1] <= NEAR)
        found[candidates < 0] = np.finfo(np.float32).min
        unsure |= ((found[:, :-step] - found[:, step:] <= NEAR) & (candidates[:, step:] >= 0)).any(1)
        if some >= 2 * top_k:
            unsure |= found[:, top_k - 1] - found[:, 2 * top_k - 1] <= EQUAL
        again = np.flatnonzero(unsure)
        if len(again):
            scores[again], rows[again] = self._compare_all(queries[again], top_k, row_count, allowed)
        return scores, rows

    def _masks(self, row_count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray] | None:
        """Which nodes and which listed rows may be found; `None` if all may."""
        if allowed is None and row_count == len(self):
            return None
        mask = np.zeros(len(self), bool)
        mask[:row_count] = True if allowed is None else allowed
        return mask[self._node_rows()], mask[self._equal.rows]

    def _compare_all(self, queries: np.ndarray, top_k: int, row_count: int, allowed: np.ndarray | None) -> Found:
        """Compare all rows that may be found."""
        if not len(self._equal):
            selector = self._selector(row_count, allowed)
            params = None if selector is None else faiss.SearchParameters(sel=selector)
            return self._storage.search(queries, top_k, params=params)
        masks = self._masks(row_count, allowed) or (None, None)
        found = []
        for storage, mask, names in zip(
            (self._storage, self._equal.storage), masks, (self._node_rows(), self._equal.rows), strict=True
        ):
            params = None if mask is None else faiss.SearchParameters(sel=_bitmap(mask))
            scores, places = storage.search(queries, min(top_k, len(names)), params=params)
            found.append((np.where(places < 0, -np.inf, scores), np.where(places < 0, -1, names[places])))
        scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
        best = np.lexsort((rows, -scores))[:, :top_k]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    def _with_lists(
        self,
        queries: np.ndarray,
        top_k: int,
        found: np.ndarray,
        candidates: np.ndarray,
        masks: tuple[np.ndarray, np.ndarray] | None,
    ) -> Found:
        """Compare the rows in the lists of nodes that were found, too. Gives no rows if there are too many of them."""
        scores = np.full((len(queries), top_k), -np.inf, np.float32)
        rows = np.full((len(queries), top_k), -1, np.int64)
        node_rows, equal = self._node_rows(), self._equal
        for i, query in enumerate(queries):
            nodes = candidates[i][candidates[i] >= 0]
            near = found[i, : len(nodes)]
            listed, at = equal.of(nodes)
            if masks is not None:
                listed, at = listed[masks[1][listed]], at[masks[1][listed]]
                nodes, own = nodes[masks[0][nodes]], near[masks[0][nodes]]
            else:
                own = near
            about = np.concatenate([own, near[at]])
            if len(about) > top_k:  # a listed row is not far from its node
                least = np.partition(about, -top_k)[-top_k] - 2 * NEAR_SCORE
                listed = listed[near[at] >= least]
            if len(listed) > min(MOST_COMPARED, MOST_SHARE * len(self)):
                continue
            line = np.concatenate([own, equal.score(query, listed)]) if len(listed) else own
            names = np.concatenate([node_rows[nodes], equal.rows[listed]])
            best = np.lexsort((names, -line))[:top_k]
            scores[i, : len(best)], rows[i, : len(best)] = line[best], names[best]
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
        name = DISTINCT_FILE if len(self._equal) else GRAPH_FILE
        try:
            faiss.write_index(self._graph, str(folder / name), faiss.IO_FLAG_SKIP_STORAGE)
        except RuntimeError as error:  # as it says that a disk is full
            raise OSError(f"{folder / name} cannot be written ({error})") from error
        return [name, self._equal.save(folder)] if len(self._equal) else [name]

    def _read_graph(self, path: Path) -> Any:
        graph = read_graph(path, self.codec.dim)
        graph.storage, graph.own_fields = self._storage, False
        graph.hnsw.efConstruction = self.options.ef_construction
        return graph


def _bitmap(mask: np.ndarray) -> Any:
    """What FAISS asks whether it may find something."""
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))


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
