"""Search in many vectors, measured by `retrieval.py`: FAISS graphs against exact search, and milvus-lite."""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np

from sugar_hf.retrieval import SugarIndex
from sugar_hf.retrieval.store.backends import Rows
from sugar_hf.retrieval.store.backends.faiss_backend import FaissBackend
from sugar_hf.retrieval.store.backends.milvus_backend import MilvusBackend
from sugar_hf.retrieval.store.codecs import Codec

DIM, TOP_K = 256, 10
BATCH, SINGLE = 512, 64  # queries of a batch, and queries that are asked one at a time
EF = (16, 18, 20, 22, 24, 28, 32, 48, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192)
WANTED_RECALL = 0.95
BLOCK = 65536
SETS = ("clustered", "random")


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_set(kind: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (size, DIM) and queries (BATCH, DIM), all of length 1.

    `random`: every direction is as likely, so that the nearest of a million (cosine 0.3) are hardly nearer than the
    rest: no data looks so, and no graph can be harder. `clustered`: around one centre for 200 vectors, at a cosine of
    about 0.8 to it, as the pictures of one topic; queries come from the same clusters.
    """
    draw = np.random.default_rng(0)

    def noise(count: int) -> np.ndarray:
        return unit(draw.standard_normal((count, DIM), dtype=np.float32))

    centres = noise(max(1, size // 200))

    def vectors(count: int) -> np.ndarray:
        if kind == "random":
            return noise(count)
        return unit(centres[draw.integers(0, len(centres), count)] + np.float32(0.7) * noise(count))

    return vectors(size), vectors(BATCH)


def as_rows(codec: Codec, vectors: np.ndarray, step: int = BLOCK) -> Iterator[Rows]:
    for first in range(0, len(vectors), step):
        part = vectors[first : first + step]
        names = [f"document-{first + number}" for number in range(len(part))]
        years = [{"year": 1900 + (first + number) % 100} for number in range(len(part))]
        yield Rows(first, codec.encode(part), part, names, np.zeros(len(part), np.int32), years)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, truth, strict=True)]))


def ratios(
    one: Callable[[np.ndarray], Any], other: Callable[[np.ndarray], Any], queries: np.ndarray
) -> dict[str, Any]:
    """Queries a second of one search over those of the other: rounds in turn, medians of their ratios."""
    found: dict[str, Any] = {}
    for mode, parts, rounds in (("batch", [queries], 3), ("single", np.split(queries[:SINGLE], SINGLE), 2)):
        times = []
        for _ in range(rounds):
            times.append([seconds(lambda parts=parts, f=f: [f(part) for part in parts]) for f in (one, other)])
        count = sum(map(len, parts))
        found[mode] = median(b / a for a, b in times)
        found[f"qps_{mode}"] = [count / median(column) for column in zip(*times, strict=True)]
    return found


def opened(codec: Codec, vectors: np.ndarray, kind: str, build: dict[str, int], cache: Path | None) -> dict[str, Any]:
    """A backend with a graph of the vectors, from the cache where it has one; its build time and size."""
    options = {"kind": "hnsw", **build}
    name = f"{kind}-{len(vectors)}-{codec.name}-{build['m']}-{build['ef_construction']}"
    folder = cache / name if cache else Path(tempfile.mkdtemp())
    is_known = (folder / "seconds.txt").is_file()
    backend = FaissBackend(codec, options, folder if is_known else None)
    taken = seconds(lambda: backend.add(as_rows(codec, vectors)))
    if not is_known:
        folder.mkdir(parents=True, exist_ok=True)
        backend.save(folder)
        (folder / "seconds.txt").write_text(str(taken))
    graph = sum(path.stat().st_size for path in folder.glob("*.faiss")) / len(vectors)
    return {"backend": backend, "build": float((folder / "seconds.txt").read_text()), "graph_bytes": graph}


def measure_set(
    kind: str, size: int, codecs: list[str], build: dict[str, int], cache: Path | None
) -> dict[str, dict[str, Any]]:
    """HNSW over each codec against exact search over float32: figures by codec."""
    vectors, queries = make_set(kind, size)
    codec = Codec.fit("float32", [vectors[:1]])
    flat = FaissBackend(codec)
    flat.add(as_rows(codec, vectors))

    def exact(some: np.ndarray) -> Any:
        return flat.search(some, TOP_K, row_count=size)

    def brute_force(some: np.ndarray) -> np.ndarray:
        scores = some @ vectors.T
        best = np.argpartition(-scores, TOP_K, axis=1)[:, :TOP_K]
        return np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1), 1)

    truth = exact(queries)[1]
    agreement = recall(brute_force(queries[:SINGLE]), truth[:SINGLE])
    numpy_seconds = seconds(lambda: brute_force(queries[:SINGLE]))
    print(f"{kind}, {size:,} vectors; NumPy {SINGLE / numpy_seconds:.0f} queries/s, finds {agreement:.4f} of the same")
    figures: dict[str, dict[str, Any]] = {}
    for name in codecs:
        codec = Codec.fit(name, (vectors[start : start + BLOCK] for start in range(0, size, BLOCK)))
        made = opened(codec, vectors, kind, build, cache)
        backend: FaissBackend = made.pop("backend")
        stored = codec.bytes_per_vector
        memory = backend.codec.bytes_per_vector + made["graph_bytes"]
        figures[name] = {**made, "code_bytes": stored, "memory_bytes": memory, "numpy_qps": SINGLE / numpy_seconds}
        curve = []
        for ef in EF:
            backend.options = replace(backend.options, ef_search=ef)
            found = recall(backend.search(queries, TOP_K, row_count=size)[1], truth)
            print(f"  {name} ef {ef}: recall@10 {found:.3f}", end="", flush=True)
            if found < WANTED_RECALL - 0.1 and ef != EF[-1]:
                print()
                curve.append({"ef": ef, "recall": found})
                continue
            point = {
                "ef": ef,
                "recall": found,
                **ratios(lambda q, b=backend: b.search(q, TOP_K, row_count=size), exact, queries),
            }
            print(f", {point['batch']:.1f} times flat in batches, {point['single']:.1f} one at a time", flush=True)
            curve.append(point)
            if found >= WANTED_RECALL:
                break
        figures[name]["curve"] = curve
        print(
            f"  {name}: built in {made['build']:.0f} s, {stored} + {made['graph_bytes']:.0f} bytes a vector",
            flush=True,
        )
        del backend
    return figures


def measure_vectors(
    size: int, sets: list[str], codecs: list[str], build: dict[str, int], cache: Path | None
) -> dict[str, Any]:
    """All sets; the points where the wanted recall is reached, or the last."""
    print(f"FAISS {faiss.__version__}, {faiss.omp_get_max_threads()} threads, {build}")
    figures = {kind: measure_set(kind, size, codecs, build, cache) for kind in sets}
    return {"size": size, "build": build, "threads": faiss.omp_get_max_threads(), "sets": figures}


def measure_milvus(size: int) -> dict[str, Any]:
    """milvus-lite in a folder of its own: rows inserted a second, recall, queries a second, with a filter too."""
    from sugar_hf.retrieval.filters import Filter

    vectors, queries = make_set("clustered", size)
    codec = Codec.fit("float32", [vectors[:1]])
    flat = FaissBackend(codec)
    flat.add(as_rows(codec, vectors))
    truth = flat.search(queries, TOP_K, row_count=size)[1]
    where = Filter.parse({"year": {"$lt": 1950}})
    with tempfile.TemporaryDirectory() as folder:
        backend = MilvusBackend(codec, {}, Path(folder))
        inserted = seconds(lambda: backend.add(as_rows(codec, vectors, 1000)))
        first = seconds(lambda: backend.search(queries[:1], TOP_K, row_count=size))
        found = backend.search(queries, TOP_K, row_count=size)[1]
        batch = seconds(lambda: backend.search(queries, TOP_K, row_count=size))
        single = seconds(lambda: [backend.search(each, TOP_K, row_count=size) for each in np.split(queries[:16], 16)])
        filtered = seconds(lambda: backend.search(queries[:16], TOP_K, row_count=size, where=where))
        backend.close()
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    figures = {
        "size": size,
        "recall": recall(found, truth),
        "inserts": size / inserted,
        "first_search_seconds": first,
        "qps_batch": len(queries) / batch,
        "qps_single": 16 / single,
        "qps_filtered": 16 / filtered,
        "disk_bytes": disk / size,
    }
    print("milvus-lite: " + ", ".join(f"{name} {value:,.3g}" for name, value in figures.items()), flush=True)
    return figures


def measure_folder(size: int) -> dict[str, Any]:
    """An index of so many documents on disk: what opening, searching and small changes take, in seconds."""
    vectors, queries = make_set("clustered", size)
    documents = ({"id": str(i), "text": f"document {i}", "metadata": {"year": 1900 + i % 100}} for i in range(size))
    few = [{"id": f"new {i}", "text": "one more"} for i in range(10)]
    with tempfile.TemporaryDirectory() as folder:
        index = SugarIndex.create(Path(folder, "index"), dim=DIM)
        figures = {"size": size, "add all": seconds(lambda: index.add(documents, vectors))}
        opened = SugarIndex.load(index.folder)
        calls: dict[str, Callable[[], Any]] = {
            "open": lambda: SugarIndex.load(index.folder),
            "open, sizes only": lambda: SugarIndex.load(index.folder, verify=False),
            "first search": lambda: opened.search_embeddings(queries[:1], TOP_K),
            "search": lambda: opened.search_embeddings(queries[:1], TOP_K),
            "first search with a filter": lambda: opened.search_embeddings(queries[:1], TOP_K, where={"year": 1950}),
            "search with a filter": lambda: opened.search_embeddings(queries[:1], TOP_K, where={"year": 1950}),
            "first document by id": lambda: opened.get("500"),
            "document by id": lambda: opened.get("501"),
            "add 10": lambda: opened.add(few, queries[:10]),
            "delete 2": lambda: opened.delete(["new 1", "7"]),
        }
        figures |= {name: seconds(call) for name, call in calls.items()}
        figures["bytes_per_document"] = opened.info()["bytes_on_disk"] / size
    print("folder: " + ", ".join(f"{name} {value:,.3g}" for name, value in figures.items()), flush=True)
    return figures
