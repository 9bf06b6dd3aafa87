"""wikiHow-TIIR and MRMR in small, in the official formats."""

import functools
import json

from benchmark_tools import scene, write_image, write_rows

#: Columns of images in MRMR's rows.
PICTURES = ("image", "image 1", "image 2", "vision")


def write_lines(path, rows):
    """Write JSON lines, and the folders above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


# ---- wikiHow-TIIR ----


def tiir_rows():
    """Queries, documents and judgements: of six documents, three answer a query; one is not in the judgements."""
    queries = [
        {
            "qid": n,
            "data": [f"how: {scene(n)[1]}", f"query_images/{n}_0.png", scene(n + 1)[1], f"query_images/{n}_1.png"],
        }
        for n in range(3)
    ]
    docs = [{"id": n, "data": [scene(n)[1], f"doc_images/{n}.png", "then", scene((n + 1) % 12)[1]]} for n in range(7)]
    qrels = [{"did": n, "qid": n if n < 3 else None} for n in range(6)]
    return queries, docs, qrels


def write_tiir(folder):
    """The three files, and the images of queries and documents."""
    queries, docs, qrels = tiir_rows()
    for name, rows in (("queries", queries), ("docs", docs), ("qrels", qrels)):
        write_lines(folder / f"{name}.jsonl", rows)
    for n in range(7):
        write_image(folder / "doc_images" / f"{n}.png", scene(n)[0])
    for n in range(3):
        for k in (0, 1):
            write_image(folder / "query_images" / f"{n}_{k}.png", scene(n + k)[0])


# ---- MRMR ----


def mrmr_row(id, modality, text, images=(), **more):
    """A row with one image (`image`) or several (`image 1` and so on)."""
    row = {"id": id, "modality": modality, "text": text, **more, **dict.fromkeys(PICTURES)}
    names = ["image"] if len(images) == 1 else ["image 1", "image 2"]
    return row | dict(zip(names, (scene(n)[0] for n in images), strict=False)) | {"vision": scene(0)[0]}


def mrmr_rows(subset):
    """Queries, corpus and judgements of a subset."""
    pair = ("query_id", "corpus_id") if subset in ("knowledge", "theorem") else ("query-id", "corpus-id")
    if subset == "negation":
        queries = [mrmr_row(str(n), "image", None, [n]) for n in range(3)]
        corpus = [mrmr_row(f"{n}_{k}", "text", scene((n + k) % 12)[1]) for n in range(3) for k in range(1, 5)]
        judged = [(str(n), f"{n}_{n + 1}", 1) for n in range(3)]
    else:
        place = "<image 1>" if subset in ("knowledge", "theorem") else "<image>"
        more = {"category": None} if subset in ("knowledge", "theorem") else {}
        queries = [
            mrmr_row(f"test_{n}", "image,text", f"What of {place} is {scene(n)[1]}?", [n], **more) for n in range(3)
        ]
        if more:
            for row, category in zip(queries, ("Physics", "Energy_and_Power", "Pharmacy"), strict=True):
                row["category"] = category
            queries.append(mrmr_row("test_3", "image,text", "<image 1> or <image 2>", [3, 4], category="Physics"))
        corpus = [mrmr_row(f"{n}", "text", scene(n)[1]) for n in range(3)]
        corpus += [
            mrmr_row(f"{n}", "image,text", f"{scene(n)[1]} <image 1> and <image 2>", [n, n + 1]) for n in (3, 4)
        ]
        corpus += [mrmr_row("5", "image", None, [5])]
        judged = [("test_0", "0", 2), ("test_0", "3", 1), ("test_1", "1", 1), ("test_2", "5", 1), ("test_2", "2", 0)]
        judged += [("test_3", "4", 1)] if more else []
    qrels = [{pair[0]: query, pair[1]: document, "score": score} for query, document, score in judged]
    return queries, corpus, qrels


def write_mrmr(folder, subset, change=lambda queries, corpus, qrels: None):
    """Rows as `MRMRbenchmark/{subset}` has them."""
    queries, corpus, qrels = mrmr_rows(subset)
    change(queries, corpus, qrels)
    write_rows(folder, queries, config="query", images=PICTURES)
    write_rows(folder, corpus, config="corpus", images=PICTURES)
    write_rows(folder, qrels, config="qrels", images=())


MRMR = ("knowledge", "theorem", "design", "traffic", "negation")
HUB = {f"mrmr-{subset}": functools.partial(write_mrmr, subset=subset) for subset in MRMR}
RAW = {"wikihow-tiir": write_tiir, **HUB}
