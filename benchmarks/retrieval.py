"""Speed and recall of retrieval: graphs against exact search, milvus-lite, embedding, and smaller embeddings.

    python benchmarks/retrieval.py --json retrieval.json --cache graphs --update-docs     # about two hours on 2 cores
    python benchmarks/retrieval.py --parts vectors --size 100000                          # a few minutes
    python benchmarks/retrieval.py --parts sizes --sizes runs/plain runs/nested --json retrieval.json --update-docs

Parts: `vectors`, HNSW over vectors of 256 dimensions against exact search with FAISS and NumPy, on as many threads;
`folder`, an index on disk;
`milvus`, milvus-lite; `embedding`, `SugarEmbedder` against sentence-transformers with the same language model;
`sizes`, what cut and coarser embeddings of two models of `examples/demo.py` find, the second trained with
`--matryoshka-dims 128 64 32 16`. Ratios are of one run; with `--json` the parts that are not measured are kept from
the file as it was.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

from retrieval_embedding import POOL, SIZES, STORED, TASK, measure_embedding, measure_sizes
from retrieval_vectors import DIM, SETS, WANTED_RECALL, measure_folder, measure_milvus, measure_vectors

DOCUMENT = Path(__file__).parents[1] / "docs" / "costs.md"
PARTS = ("vectors", "folder", "milvus", "embedding", "sizes")
CODECS = ("float32", "float16", "int8")


# ---- Summary ----


def point(figures: dict[str, Any]) -> dict[str, Any]:
    """Where a graph reaches the wanted recall, or what it came to at the most."""
    return figures["curve"][-1]


def best_codec(by_codec: dict[str, dict[str, Any]]) -> str:
    """The codec that reaches the wanted recall at the most queries a second, or else comes closest to it."""

    def merit(name: str) -> tuple[bool, float]:
        last = point(by_codec[name])
        reached = last["recall"] >= WANTED_RECALL
        return reached, last["batch"] if reached else last["recall"]

    return max(by_codec, key=merit)


def summary(parts: dict[str, Any]) -> dict[str, Any]:
    """The figures that are watched, of the set for which they are worst."""
    found: dict[str, Any] = {}
    if "vectors" in parts:
        sets = parts["vectors"]["sets"]
        chosen = {kind: best_codec(by_codec) for kind, by_codec in sets.items()}
        points = {kind: point(sets[kind][codec]) for kind, codec in chosen.items()}
        found["hnsw_recall_at_10"] = min(each["recall"] for each in points.values())
        found["hnsw_over_flat_qps"] = min(each["batch"] for each in points.values())
        found["hnsw_by_set"] = {
            kind: {"codec": chosen[kind], **{name: each[name] for name in ("ef", "recall", "batch", "single")}}
            for kind, each in points.items()
        }
        default = next(iter(sets.values()))["float32"]
        found["bytes_per_vector"] = default["code_bytes"] + default["graph_bytes"]
    if "embedding" in parts:
        found["embed_over_sentence_transformers"] = parts["embedding"]["ratio"]
    return found


# ---- Documentation ----


def seconds(value: float) -> str:
    """Write a time in seconds; empty for one that was not taken."""
    return "" if math.isnan(value) else f"{value:,.0f}"


def vectors_table(part: dict[str, Any]) -> str:
    rows = [
        "| vectors | codes | recall@10 | `ef_search` | queries/s, HNSW / flat: batches of 512 | one at a time "
        "| build, s | bytes a vector: codes + graph |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind, by_codec in part["sets"].items():
        for name, figures in by_codec.items():
            last = point(figures)
            ratios = []
            for mode in ("batch", "single"):
                ours, theirs = last[f"qps_{mode}"]
                ratios.append(f"{ours:,.0f} / {theirs:,.0f} = **{last[mode]:.3g}**")
            rows.append(
                f"| {kind} | {name} | {last['recall']:.3f} | {last['ef']} | {ratios[0]} | {ratios[1]} | "
                f"{seconds(figures['build'])} | {figures['code_bytes']:,.0f} + {figures['graph_bytes']:,.0f} |"
            )
    numpy_qps = ", ".join(
        f"{kind} {next(iter(by_codec.values()))['numpy_qps']:.0f}" for kind, by_codec in part["sets"].items()
    )
    build = part["build"]
    rows.append(
        f"\n{part['size']:,} vectors of {DIM} dimensions, {part['threads']} threads, m {build['m']}, ef_construction "
        f"{build['ef_construction']}; the least `ef_search` of those tried, 16 to 8192, with a recall of "
        f"{WANTED_RECALL}, or the last. NumPy, queries/s in batches of 64: {numpy_qps}."
    )
    return "\n".join(rows) + "\n"


def milvus_table(part: dict[str, Any]) -> str:
    return (
        "| | milvus-lite |\n|---|---|\n"
        f"| vectors (clustered, {DIM} dimensions) | {part['size']:,} |\n"
        f"| rows inserted a second | {part['inserts']:,.0f} |\n"
        f"| recall@10 | {part['recall']:.3f} |\n"
        f"| first search after inserting, s | {part['first_search_seconds']:.1f} |\n"
        f"| queries a second, in batches of 512 | {part['qps_batch']:,.0f} |\n"
        f"| queries a second, one at a time | {part['qps_single']:,.1f} |\n"
        f"| queries a second, 16 at a time with a filter on metadata | {part['qps_filtered']:,.1f} |\n"
        f"| bytes on disk a vector, with its metadata | {part['disk_bytes']:,.0f} |\n"
    )


def embedding_table(part: dict[str, Any]) -> str:
    speeds = part["texts_a_second"]
    return (
        "| | texts a second |\n|---|---|\n"
        + "".join(f"| {name} | {value:,.0f} |\n" for name, value in speeds.items())
        + f"| ratio (median over rounds; wanted: at least 1.0) | **{part['ratio']:.2f}** |\n\n"
        f"The mini model's language model on {part['device']}, {part['threads']} threads, {part['texts']:,} texts in "
        f"batches of {part['batch_size']}.\n"
    )


def sizes_table(part: dict[str, Any]) -> str:
    rows = [
        f"| numbers | stored as | bytes | {' | '.join(f'{name}: R@1 / R@5' for name in part)} |",
        f"|---|---|---|{'---|' * len(part)}",
    ]
    for size in map(str, SIZES):
        for stored in STORED:
            cells = [figures[size][stored] for figures in part.values()]
            recalls = " | ".join(f"{cell['recall@1']:.1f} / {cell['recall@5']:.1f}" for cell in cells)
            rows.append(f"| {size} | {stored} | {cells[0]['bytes']:g} | {recalls} |")
    rows.append(f"\n*{TASK}*, {POOL:,} candidates, in %.")
    return "\n".join(rows) + "\n"


def folder_table(part: dict[str, Any]) -> str:
    kept = {name: value for name, value in part.items() if name not in ("size", "bytes_per_document")}
    head = f"{part['size']:,} documents, {DIM} dimensions, {part['bytes_per_document']:,.0f} bytes each on disk.\n\n"
    rows = [f"| {name} | {value:.3g} |" for name, value in kept.items()]
    return head + "\n".join(["| | seconds |", "|---|---|", *rows]) + "\n"


TABLES = {
    "vectors": vectors_table,
    "folder": folder_table,
    "milvus": milvus_table,
    "embedding": embedding_table,
    "sizes": sizes_table,
}


def update_document(parts: dict[str, Any]) -> None:
    """Writes each part's table between its marks."""
    text = DOCUMENT.read_text()
    for name, part in parts.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, rest = text.split(begin)
        text = before + begin + TABLES[name](part) + end + rest.split(end)[1]
    DOCUMENT.write_text(text)


# ---- Running ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, help="default: all but sizes, which needs --sizes")
    parser.add_argument("--size", type=int, default=1_000_000, help="number of vectors")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--m", type=int, default=32, help="neighbours of a vector in the graph")
    parser.add_argument("--ef-construction", type=int, default=200)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep graphs here, and take those that are there")
    parser.add_argument("--folder-size", type=int, default=100_000)
    parser.add_argument("--milvus-size", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=21, help="rounds of the embedding's comparison")
    parser.add_argument("--sizes", nargs=2, type=Path, metavar=("PLAIN", "NESTED"), help="folders of two models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--update-docs", action="store_true", help="write the tables of docs/costs.md")
    options = parser.parse_args()
    chosen = (
        options.parts if options.parts is not None else [part for part in PARTS if part != "sizes" or options.sizes]
    )
    if "sizes" in chosen and not options.sizes:
        parser.error("the part sizes needs --sizes PLAIN NESTED, folders that examples/demo.py wrote")
    parts = json.loads(options.json.read_text())["parts"] if options.json and options.json.is_file() else {}
    for name in chosen:
        parts[name] = measure(name, options)
        if options.json:
            options.json.write_text(json.dumps({**summary(parts), "parts": parts}, indent=1) + "\n")
    if options.update_docs:
        update_document(parts)
    print(json.dumps(summary(parts), indent=1))


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    if name == "vectors":
        build = {"m": options.m, "ef_construction": options.ef_construction}
        return measure_vectors(options.size, options.sets, options.codecs, build, options.cache)
    if name == "folder":
        return measure_folder(options.folder_size)
    if name == "milvus":
        return measure_milvus(options.milvus_size)
    if name == "embedding":
        return measure_embedding(options.rounds)
    plain, nested = options.sizes
    return measure_sizes({"plain": plain, "nested": nested})


if __name__ == "__main__":
    main()
