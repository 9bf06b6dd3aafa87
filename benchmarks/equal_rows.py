"""A graph over vectors of which many are nearly equal, as those of documents that begin alike.

    python benchmarks/equal_rows.py                # 50,000 x 64, five minutes on 2 cores

Documents of five slices; the first of each is one of a few sentences, with some noise. Recall@10 of queries for other
slices and for first ones, with all rows in the graph and with nearly equal ones in lists at its nodes; the share of
queries for which all rows were compared; and the time of a batch of queries over that of exact search.
"""

import argparse
import time
from unittest.mock import patch

import numpy as np
from retrieval_vectors import as_rows, unit

from sugar_hf.retrieval.store.backends import faiss_backend
from sugar_hf.retrieval.store.backends.faiss_backend import FaissBackend
from sugar_hf.retrieval.store.codecs import Codec

DIM, SLICES, QUERIES, TOP_K = 64, 5, 500, 10


def draw(size: int, firsts: int, noise: float) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vectors, and queries for other slices and for first ones."""
    generator = np.random.default_rng(0)

    def normal(count: int) -> np.ndarray:
        return generator.standard_normal((count, DIM), dtype=np.float32)

    centres = unit(normal(max(1, size // 200)))

    def near(count: int) -> np.ndarray:
        return unit(centres[generator.integers(0, len(centres), count)] + np.float32(0.7) * unit(normal(count)))

    vectors = near(size).reshape(-1, SLICES, DIM)
    first = near(firsts)
    chosen = first[generator.integers(0, firsts, len(vectors))]
    vectors[:, 0] = unit(chosen + np.float32(noise) * normal(len(vectors)))
    asked = first[generator.integers(0, firsts, QUERIES)]
    return vectors.reshape(-1, DIM), {
        "others": near(QUERIES),
        "first": unit(asked + np.float32(0.03) * normal(QUERIES)),
    }


def measure(backend: FaissBackend, vectors: np.ndarray, queries: np.ndarray) -> str:
    scores = queries @ vectors.T
    least = -np.partition(-scores, TOP_K - 1, axis=1)[:, TOP_K - 1 : TOP_K]
    asked, compare = [], backend._compare_all
    with patch.object(backend, "_compare_all", lambda some, *rest: asked.append(len(some)) or compare(some, *rest)):
        rows = backend.search(queries, TOP_K, row_count=len(vectors))[1]
    times = []
    for search in (
        lambda: backend.search(queries, TOP_K, row_count=len(vectors)),
        lambda: compare(queries, TOP_K, len(vectors), None),
    ):
        start = time.perf_counter()
        search()
        times.append(time.perf_counter() - start)
    # whichever of equal ones it is
    recall = ((np.take_along_axis(scores, np.maximum(rows, 0), 1) >= least - 1e-6) & (rows >= 0)).mean()
    return f"{recall:.3f} | {sum(asked) / len(queries):.0%} | {times[0] / times[1]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=50_000, help="number of vectors")
    parser.add_argument("--firsts", type=int, default=20, help="number of first sentences")
    options = parser.parse_args()
    print("| noise | nearly equal rows | queries | recall@10 | all rows compared | time / exact |")
    print("|---|---|---|---|---|---|")
    codec = Codec.fit("float32", [np.zeros((1, DIM), np.float32)])
    for noise in (0, 1e-6, 1e-5, 1e-3):
        vectors, queries = draw(options.size, options.firsts, noise)
        for way in ("in the graph", "in lists"):
            backend = FaissBackend(codec, {"kind": "hnsw"})
            if way == "in lists":
                backend.add(as_rows(codec, vectors))
            else:
                with (
                    patch.object(faiss_backend, "NEAR_SQUARE", -1.0),
                    patch.object(faiss_backend, "first_equal", lambda some: np.arange(len(some))),
                ):
                    backend.add(as_rows(codec, vectors))
            for name, some in queries.items():
                print(f"| {noise:g} | {way} | {name} | {measure(backend, vectors, some)} |", flush=True)


if __name__ == "__main__":
    main()
