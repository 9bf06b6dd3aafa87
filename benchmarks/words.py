"""Full-text search of an index beside tantivy and SQLite's FTS5, in one run: time, size, results, damaged files.

    pip install tantivy                            # optional
    python benchmarks/words.py                     # 20,000 and 100,000 documents, three minutes on 2 cores
    python benchmarks/words.py --sizes 2000        # a minute

Words are drawn by Zipf's law from 100,000; a document has about 100, a query five. For each engine: seconds until all
documents are on disk, bytes a document, the median time of a query for 100 documents, and the share of the best ten
that it has in common with ours. Then one bit of its files is flipped, 30 times, and a process of its own searches the
folder. The digests of ours, which an index compares when it is opened, are left out here.
"""

import argparse
import json
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from sugar_hf.data import Document
from sugar_hf.retrieval.store.index_writer import write_tensors
from sugar_hf.retrieval.store.layout import SCHEMA, open_tensors
from sugar_hf.retrieval.store.postings import VERSION, Postings, TextSearch, split_words

TOP_K, QUERIES, FLIPS = 100, 100, 30
FLIPPED_SIZE = 1000  # documents of a folder that is damaged
Process = get_context("fork").Process
Search = Callable[[str], list[int]]


def draw(count: int) -> tuple[list[str], list[str]]:
    """Texts of documents, and queries."""
    generator = np.random.default_rng(0)
    share = (1 / np.arange(1, 100_001)).cumsum()

    def text(length: int) -> str:
        return " ".join(f"w{number:x}" for number in np.searchsorted(share / share[-1], generator.random(length)))

    return [text(max(5, int(generator.lognormal(4.4, 0.6)))) for _ in range(count)], [text(5) for _ in range(QUERIES)]


def write_ours(folder: Path, texts: list[str]) -> None:
    rows = [Document(str(i), text).to_row() for i, text in enumerate(texts)]
    batches = [pa.RecordBatch.from_pylist(rows[i : i + 256], schema=SCHEMA) for i in range(0, len(rows), 256)]
    start = time.perf_counter()
    write_tensors(folder / "words.safetensors", Postings.of(batches).tensors(), {"version": VERSION})
    print(f"(words alone: {time.perf_counter() - start:.1f} s)", end=" ")


def open_ours(folder: Path, count: int) -> Search:
    path = folder / "words.safetensors"
    words = Postings.read(open_tensors(path), path, count)
    assert words is not None
    everything = np.ones(count, bool)
    search = TextSearch([words], everything)
    return lambda query: search.search(split_words(query), TOP_K, everything)[0].tolist()


def write_tantivy(folder: Path, texts: list[str]) -> None:
    import tantivy

    builder = tantivy.SchemaBuilder()
    builder.add_integer_field("number", stored=True)
    builder.add_text_field("text", index_option="freq")
    writer = tantivy.Index(builder.build(), path=str(folder)).writer(heap_size=100_000_000, num_threads=1)
    for number, text in enumerate(texts):
        writer.add_document(tantivy.Document(number=number, text=text))
    writer.commit()
    writer.wait_merging_threads()


def open_tantivy(folder: Path, count: int) -> Search:
    import tantivy

    index = tantivy.Index.open(str(folder))
    searcher = index.searcher()

    def search(query: str) -> list[int]:
        terms = [tantivy.Query.term_query(index.schema, "text", word) for word in query.split()]
        found = tantivy.Query.boolean_query([(tantivy.Occur.Should, term) for term in terms])
        return [searcher.doc(place)["number"][0] for _, place in searcher.search(found, TOP_K).hits]

    return search


def write_fts5(folder: Path, texts: list[str]) -> None:
    database = sqlite3.connect(folder / "words.db")
    database.execute("CREATE VIRTUAL TABLE words USING fts5(text, content='')")
    database.executemany("INSERT INTO words(rowid, text) VALUES (?, ?)", enumerate(texts))
    database.commit()
    database.execute("INSERT INTO words(words) VALUES ('optimize')")
    database.commit()
    database.close()


def open_fts5(folder: Path, count: int) -> Search:
    database = sqlite3.connect(folder / "words.db")

    def search(query: str) -> list[int]:
        words = " OR ".join(f'"{word}"' for word in query.split())
        rows = database.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank LIMIT ?", (words, TOP_K))
        return [row[0] for row in rows]

    return search


ENGINES = {"ours": (write_ours, open_ours), "tantivy": (write_tantivy, open_tantivy), "fts5": (write_fts5, open_fts5)}


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.stat().st_size and path.suffix not in (".json", ".lock"))


def measure(size: int) -> dict[str, dict[str, Any]]:
    """Figures of each engine."""
    texts, queries = draw(size)
    figures: dict[str, dict[str, Any]] = {}
    expected: list[list[int]] = []
    for name, (write, opened) in ENGINES.items():
        with tempfile.TemporaryDirectory() as place:
            folder, start = Path(place), time.perf_counter()
            try:
                write(folder, texts)
            except ImportError:
                continue
            seconds = time.perf_counter() - start
            search, times, found = opened(folder, size), [], []
            for query in queries:
                start = time.perf_counter()
                found.append(search(query))
                times.append(time.perf_counter() - start)
            expected = expected or found
            same = [len(set(a[:10]) & set(b[:10])) / len(b[:10]) for a, b in zip(found, expected, strict=True) if b]
            disk = sum(path.stat().st_size for path in files(folder)) / size
            figures[name] = {
                "write_s": seconds,
                "bytes_a_document": disk,
                "query_ms": 1000 * median(times),
                "same": float(np.mean(same)),
            }
            print(f"{size:,} {name}: {figures[name]}", flush=True)
    return figures


def answer(name: str, folder: Path) -> str:
    """All results in JSON, or what went wrong."""
    try:
        search = ENGINES[name][1](folder, FLIPPED_SIZE)
        return json.dumps([search(query) for query in draw(FLIPPED_SIZE)[1]])
    except Exception:
        return "error"
    except BaseException:  # as a panic of Rust is
        return "panic"


def flip(name: str) -> Counter[str]:
    """What becomes of flipped bits: an error, a panic, a crash, the same results, or wrong ones."""
    outcomes: Counter[str] = Counter()
    generator = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        ENGINES[name][0](folder, draw(FLIPPED_SIZE)[0])
        expected, some = answer(name, folder), files(folder)
        sizes = np.array([path.stat().st_size for path in some])
        for _ in range(FLIPS):
            path = some[generator.choice(len(some), p=sizes / sizes.sum())]
            whole = path.read_bytes()
            data = bytearray(whole)
            data[generator.integers(len(data))] ^= 1 << int(generator.integers(8))
            path.write_bytes(data)
            process = Process(target=lambda: (folder.parent / f"{folder.name}.txt").write_text(answer(name, folder)))
            process.start()
            process.join()
            found = (folder.parent / f"{folder.name}.txt").read_text() if not process.exitcode else "crash"
            outcomes[("same" if found == expected else "wrong") if found.startswith("[") else found] += 1
            path.write_bytes(whole)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000], help="numbers of documents")
    options = parser.parse_args()
    for size in options.sizes:
        measure(size)
    for name in ENGINES:
        try:
            print(f"{FLIPS} flipped bits, {name}: {dict(flip(name))}", flush=True)
        except ImportError:
            print(f"{name} is not installed")


if __name__ == "__main__":
    main()
