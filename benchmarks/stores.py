"""Our store beside LanceDB and plain FAISS, in one run: time of a query, recall, and damaged files.

    pip install lancedb                            # optional; without it only ours and FAISS are compared
    python benchmarks/stores.py                    # 100,000 x 256, about ten minutes on 2 cores
    python benchmarks/stores.py --quick            # 5,000 x 256, about a minute
    python benchmarks/stores.py --json stores.json

For each store: the median time of one exact query, of one approximate query and its recall, and the outcome when one
bit of its file of vectors is flipped: an error when it is opened or searched, the same results, or wrong results
without an error. All return ids and scores; ours also whole documents. Ratios are those to plain FAISS, measured in
the same run.
"""

import argparse
import json
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import faiss
import numpy as np
from retrieval_vectors import unit

from sugar_hf.retrieval import SugarIndex

TOP_K = 10
QUERIES = 64
FLIPPED_SIZE = 2000  # vectors of a store whose file is damaged


class Store(ABC):
    """Vectors in a folder.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def write(self, vectors: np.ndarray, approximate: bool = False) -> None:
        """Write vectors (n, d), with a structure for approximate search or without."""

    @abstractmethod
    def open(self) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        """Open what was written; returns a search of one query (d,) for `top_k` rows: rows and scores."""


class Ours(Store):
    """`SugarIndex`."""

    def write(self, vectors: np.ndarray, approximate: bool = False) -> None:
        options = {"kind": "hnsw" if approximate else "flat"}
        index = SugarIndex.create(self.folder, dim=vectors.shape[1], backend_options=options)
        index.add(({"id": str(i), "text": f"document {i}"} for i in range(len(vectors))), vectors)

    def open(self) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        index = SugarIndex.load(self.folder)

        def search(query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            scores, rows = index.search_embeddings(query[None], top_k)
            return rows[0], scores[0]

        return search


class OursWithDocuments(Ours):
    """`SugarIndex`, with the documents that are found."""

    def open(self) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        index = SugarIndex.load(self.folder)

        def search(query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            hits = index.search_vectors(query[None], top_k)[0]
            return np.array([int(hit.id) for hit in hits]), np.array([hit.score for hit in hits])

        return search


class PlainFaiss(Store):
    """An index of FAISS in one file."""

    def write(self, vectors: np.ndarray, approximate: bool = False) -> None:
        inner = faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexFlatIP(vectors.shape[1])
        if approximate:
            index = faiss.IndexHNSWFlat(vectors.shape[1], 32, inner)
            index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
        index.add(vectors)
        self.folder.mkdir()
        faiss.write_index(index, str(self.folder / "index.faiss"))

    def open(self) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        index = faiss.read_index(str(self.folder / "index.faiss"))

        def search(query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            scores, rows = index.search(query[None], top_k)
            return rows[0], scores[0]

        return search


class Lance(Store):
    """A table of LanceDB, by default with its index IVF_HNSW_SQ where the search is approximate."""

    options: ClassVar[dict[str, int]] = {}

    def write(self, vectors: np.ndarray, approximate: bool = False) -> None:
        import lancedb
        import pyarrow as pa

        numbers = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        rows = pa.table({"id": pa.array(range(len(vectors)), pa.int64()), "vector": numbers})
        table = lancedb.connect(self.folder).create_table("vectors", rows)
        if approximate:
            table.create_index("vector", config=lancedb.index.HnswSq(distance_type="dot"))

    def open(self) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
        import lancedb

        table = lancedb.connect(self.folder).open_table("vectors")

        def search(query: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
            asked = table.search(query, vector_column_name="vector").distance_type("dot").limit(top_k)
            for name, value in self.options.items():
                asked = getattr(asked, name)(value)
            found = asked.select(["id", "_distance"]).to_arrow()
            return found["id"].to_numpy(), 1 - found["_distance"].to_numpy()

        return search


class LanceRefined(Lance):
    """The same with settings that find nearly all. Only the approximate search is measured."""

    options: ClassVar[dict[str, int]] = {"nprobes": 64, "ef": 512, "refine_factor": 10}


def has_lance() -> bool:
    """Whether LanceDB is installed; else says how to install it."""
    try:
        import lancedb  # noqa: F401
    except ImportError:
        print("LanceDB is left out; to compare with it: pip install lancedb", flush=True)
        return False
    return True


def timed(store: Store, queries: np.ndarray, wanted: np.ndarray | None) -> dict[str, float]:
    """Median seconds of one query, and the share of the wanted rows (q, k) that are found."""
    search = store.open()
    search(queries[0], TOP_K)
    seconds, found = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(search(query, TOP_K)[0])
        seconds.append(time.perf_counter() - start)
    wanted = np.array(found) if wanted is None else wanted
    hits = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(found, wanted, strict=True)]
    return {"milliseconds": 1000 * median(seconds), "recall": sum(hits) / wanted.size}


def flipped(store: Store, vectors: np.ndarray, flips: int) -> dict[str, int]:
    """Flip one bit of the largest file, many times, and count what becomes of a search of all rows."""
    store.write(vectors)
    query, draw, outcomes = vectors[0], np.random.default_rng(1), Counter[str]()
    rows, scores = store.open()(query, len(vectors))
    path = max((path for path in store.folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = path.read_bytes()
    for place in draw.integers(0, len(data), flips).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 64]) + data[place + 1 :])
        try:
            found, others = store.open()(query, len(vectors))
        except KeyboardInterrupt:
            raise
        except BaseException:  # a panic of Rust is no Exception
            outcomes["error"] += 1
            continue
        same = np.array_equal(np.sort(rows), np.sort(found)) and np.array_equal(np.sort(scores), np.sort(others))
        outcomes["same results" if same else "wrong results without an error"] += 1
    return {name: outcomes[name] for name in ("error", "same results", "wrong results without an error")}


def measure(size: int, dim: int, flips: int) -> dict[str, dict[str, Any]]:
    """Measure all stores, in turn."""
    draw = np.random.default_rng(0)
    centres = unit(draw.standard_normal((max(1, size // 200), dim), dtype=np.float32))

    def make(count: int) -> np.ndarray:
        noise = unit(draw.standard_normal((count, dim), dtype=np.float32))
        return unit(centres[draw.integers(0, len(centres), count)] + np.float32(0.7) * noise)

    vectors, queries = make(size), make(QUERIES)
    kinds: list[type[Store]] = [PlainFaiss, Ours, OursWithDocuments]
    kinds += [Lance, LanceRefined] if has_lance() else []
    exact = np.argsort(-queries @ vectors.T, axis=1)[:, :TOP_K]
    figures: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        entry: dict[str, Any] = {}
        with tempfile.TemporaryDirectory() as folder:
            for name, approximate in (("exact", False), ("approximate", True)):
                if kind is LanceRefined and not approximate:
                    continue
                store = kind(Path(folder, name))
                store.write(vectors, approximate)
                entry[name] = timed(store, queries, exact)
                shutil.rmtree(store.folder)
            if kind not in (LanceRefined, OursWithDocuments):
                entry["flipped"] = flipped(kind(Path(folder, "flipped")), make(min(size, FLIPPED_SIZE)), flips)
        figures[kind.__name__] = entry
        print(line(kind.__name__, entry, figures["PlainFaiss"]), flush=True)
    return figures


def line(name: str, entry: dict[str, Any], beside: dict[str, Any]) -> str:
    """Write the figures of a store, with ratios to those of plain FAISS."""
    parts = []
    for kind in ("exact", "approximate"):
        if kind in entry:
            took, ratio = entry[kind]["milliseconds"], entry[kind]["milliseconds"] / beside[kind]["milliseconds"]
            parts.append(f"{kind} {took:.3g} ms ({ratio:.1f} x FAISS), recall {entry[kind]['recall']:.3f}")
    if "flipped" in entry:
        parts.append("flipped bits: " + ", ".join(f"{count} {what}" for what, count in entry["flipped"].items()))
    return f"{name}: {'; '.join(parts)}"


def main(command: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--flips", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="5,000 vectors")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(command)
    figures = measure(5000 if options.quick else options.size, options.dim, options.flips)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
