"""wikiHow-TIIR, MRMR, M-BEIR and ViDoRe in small, in the official formats."""

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


# ---- M-BEIR ----

#: The instructions of two kinds of OVEN's queries, and of another data set.
INSTRUCTIONS = (
    ("query_modality", "cand_modality", "dataset_name", "dataset_id", "prompt_1", "prompt_2", "prompt_3", "prompt_4"),
    ("image,text", "image,text", "OVEN", "5", "Find the page that answers this.", "Which page helps?", "", ""),
    ("image,text", "text", "OVEN", "5", "Find the article that answers this.", "", "", ""),
    ("text", "image", "MSCOCO", "9", "Find the picture of this.", "Which image is described?", "Show it.", "Look."),
)


def mbeir_query(n, positives, modality="image,text", data_set=5):
    """A line of a query file. The image and the text are there as the modality says."""
    return {
        "qid": f"{data_set}:{n}",
        "query_txt": f"What is this, {scene(n)[1]}?" if "text" in modality else None,
        "query_img_path": f"mbeir_images/oven_images/{n}.jpg" if "image" in modality else None,
        "query_modality": modality,
        "query_src_content": json.dumps({"data_id": f"oven_{n}"}),
        "pos_cand_list": positives,
        "neg_cand_list": [],
        "task_id": 8,
    }


def mbeir_candidate(n, modality, data_set=5):
    """A line of a pool."""
    return {
        "txt": scene(n)[1] if "text" in modality else None,
        "img_path": f"mbeir_images/oven_images/{n}.jpg" if "image" in modality else None,
        "modality": modality,
        "did": f"{data_set}:{n}",
        "src_content": json.dumps({"wikidata_id": f"Q{n}"}),
    }


def mbeir_rows():
    """Queries of OVEN, its pool, and what the global pool has beside it."""
    queries = [
        mbeir_query(0, ["5:0", "6:7"]),  # the article of InfoSeek is in the global pool only
        mbeir_query(1, ["5:1", "5:4"]),
        mbeir_query(2, ["5:2"]),
    ]
    pool = [mbeir_candidate(n, "image,text") for n in range(5)] + [mbeir_candidate(5, "text")]
    others = [mbeir_candidate(7, "image,text", 6), mbeir_candidate(8, "image", 9), mbeir_candidate(9, "text", 2)]
    return queries, pool, others


def write_mbeir(folder):
    """A clone of TIGER-Lab/M-BEIR: OVEN's task 8 and MSCOCO's task 0, which has a pool for each split."""
    queries, pool, others = mbeir_rows()
    write_lines(folder / "query/test/mbeir_oven_task8_test.jsonl", queries)
    write_lines(folder / "cand_pool/local/mbeir_oven_task8_cand_pool.jsonl", pool)
    write_lines(folder / "cand_pool/global/mbeir_union_test_cand_pool.jsonl", pool + others)
    coco = [mbeir_query(n, [f"9:{n}"], "text", 9) for n in (8, 9)]
    write_lines(folder / "query/test/mbeir_mscoco_task0_test.jsonl", coco)
    pictures = [mbeir_candidate(n, "image", 9) for n in (8, 9, 10)]
    write_lines(folder / "cand_pool/local/mbeir_mscoco_task0_test_cand_pool.jsonl", pictures)
    table = folder / "instructions/query_instructions.tsv"
    table.parent.mkdir(parents=True)
    table.write_text("".join("\t".join(line) + "\n" for line in INSTRUCTIONS), encoding="utf-8")
    for n in range(11):
        write_image(folder / f"mbeir_images/oven_images/{n}.jpg", scene(n)[0])


def write_mbeir_hub(folder):
    """Rows as MRBench/mbeir_oven_task8 has them: the corpus is a split of its own name."""
    queries, pool, _ = mbeir_rows()
    rows = [
        {"id": row["qid"], "modality": "image,text", "text": row["query_txt"], "image": scene(n)[0]}
        for n, row in enumerate(queries)
    ]
    write_rows(folder, rows, config="query")
    corpus = [
        {"id": row["did"], "modality": row["modality"], "text": row["txt"]}
        | {"image": scene(n)[0] if row["img_path"] else None}
        for n, row in enumerate(pool)
    ]
    write_rows(folder, corpus, config="corpus", split="corpus")
    qrels = [
        {"query-id": row["qid"], "Q0": "0", "corpus-id": did, "score": 1}
        for row in queries
        for did in row["pos_cand_list"]
        if did.startswith("5:")
    ]
    write_rows(folder, qrels, config="qrels", images=())


# ---- ViDoRe ----


def vidore_rows():
    """Rows of version 1: a page without a query, one page twice, and a query that two pages answer."""
    asked = [(0, "A"), (1, "B"), (1, "C"), (2, None), (3, "A"), (4, "D")]
    return [
        {
            "questionId": str(i),
            "query": None if name is None else f"{name}: {scene(page)[1]}" if name != "A" else f"A: {scene(0)[1]}",
            "image": scene(page)[0],
            "docId": page,
            "image_filename": f"documents/page_{page}.png",
            "page": str(page),
            "source": "docvqa",
        }
        for i, (page, name) in enumerate(asked)
    ]


def write_vidore(folder, change=lambda rows: None):
    """`vidore/docvqa_test_subsampled`."""
    rows = vidore_rows()
    change(rows)
    write_rows(folder, rows)


def write_vidore_beir(folder, languages=()):
    """`vidore/docvqa_test_subsampled_beir`, or with languages `vidore/esg_reports_v2`."""
    corpus = [{"corpus-id": n, "image": scene(n)[0]} for n in range(5)]
    queries = [{"query-id": n, "query": scene(n)[1]} for n in range(4)]
    qrels = [(0, 0, 1), (0, 3, 1), (1, 1, 2), (1, 2, 1), (2, 2, 1), (3, 4, 1)]
    for n, row in enumerate(queries if languages else ()):
        row["language"] = languages[n % len(languages)]
    write_rows(folder, corpus, config="corpus")
    write_rows(folder, queries, config="queries", images=())
    judged = [{"query-id": query, "corpus-id": page, "score": score} for query, page, score in qrels]
    write_rows(folder, judged, config="qrels", images=())


def write_vidore_languages(folder):
    """`vidore/vidore_v3_hr_mteb_format`: queries, pages and judgements for each language."""
    for k, language in enumerate(("english", "french")):
        corpus = [{"image": scene(n)[0], "id": f"corpus-test-{n}"} for n in range(5)]
        queries = [{"language": language, "id": f"query-test-{n}", "text": scene(n)[1]} for n in range(3 + k)]
        qrels = [(0, 0, 2), (0, 3, 1), (1, 1, 1), (2, 2, 1), *([(3, 4, 1)] if k else [])]
        judged = [
            {"query-id": f"query-test-{query}", "corpus-id": f"corpus-test-{page}", "score": score}
            for query, page, score in qrels
        ]
        write_rows(folder, corpus, config=f"{language}-corpus")
        write_rows(folder, queries, config=f"{language}-queries", images=())
        write_rows(folder, judged, config=f"{language}-qrels", images=())


HUB = {f"mrmr-{subset}": functools.partial(write_mrmr, subset=subset) for subset in MRMR}
HUB |= {
    "vidore-v1": write_vidore,
    "vidore-v2": functools.partial(write_vidore_beir, languages=("english", "french")),
    "vidore-v3": write_vidore_languages,
}
RAW = {"wikihow-tiir": write_tiir, "mbeir": write_mbeir, **HUB}
