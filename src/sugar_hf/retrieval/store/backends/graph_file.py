"""Reads the file of a graph, of which nothing is believed: FAISS itself follows whatever numbers a file holds."""

import struct
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ..layout import reading

_KINDS = (b"IH00", b"IHNf", b"IHNs")
_HEADER = struct.Struct("<4siqqq?i")  # kind, d, rows, two that are not used, is trained, metric
_TAIL = struct.Struct("<iiiii4s")  # entry point, top level, two options, one that is not used, kind of the storage
_TYPES = (np.float64, np.int32, np.int32, np.uint64, np.int32)


def read_graph(path: Path, dim: int) -> Any:
    """Read what FAISS wrote of an HNSW graph without its vectors, after a look at every number in it.

    Args:
        path: The file.
        dim: Width of the vectors.

    Raises:
        MissingFileError: It is not there.
        DamagedIndexError: It is no graph of such vectors.
    """
    with reading(path):
        data = path.read_bytes()
        _check(data, dim)
        reader = faiss.VectorIOReader()  # what was checked, and not the file again
        faiss.copy_array_to_vector(np.frombuffer(data, np.uint8), reader.data)
        graph = faiss.read_index(reader, faiss.IO_FLAG_SKIP_STORAGE)
        if not isinstance(graph, faiss.IndexHNSW):
            raise ValueError("it is no graph")
    return graph


def _check(data: bytes, dim: int) -> None:
    kind, width, count, _, _, _, metric = _HEADER.unpack_from(data)
    if kind not in _KINDS:
        raise ValueError(f"{kind!r} is no graph")
    if width != dim:
        raise ValueError(f"it is no graph of vectors of {dim} dimensions")
    if metric != faiss.METRIC_INNER_PRODUCT or count < 1:
        raise ValueError("it is no graph of inner products")
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
