"""ViDoRe: pages of documents as pictures, found by questions."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset

from ....data import BadSampleError, Document
from ...examples import Lazy
from ...relevance_evaluator import RelevanceEvaluator
from ..qrels import INSTRUCTION, Qrels, Rows, documents, own_instruction, read_rows, relevance_evaluator, row_id
from ..sources import Source, get
from .task import Task

SUBSETS = {1: "docvqa_test_subsampled", 2: "esg_reports_v2", 3: "vidore_v3_hr_mteb_format"}
PRIMARY = {1: "ndcg@5", 2: "ndcg@5", 3: "ndcg@10"}
INSTRUCTIONS = {
    1: "Find a screenshot that relevant to the user's question.",
    2: "Find a screenshot that relevant to the user's question.",
    3: "Find a screenshot that is relevant to the user's question.",
}


def load_vidore(source: Source, version: int) -> RelevanceEvaluator:
    """ViDoRe (Faysse et al., 2024; Macé et al., 2025; Loison et al., 2026): rows of the Hub. A page is one image.

    Version 1 has rows with `query`, `image` and `image_filename`, as illuin-tech/vidore-benchmark@e0885ea scores them
    (`vidore_evaluator_qa.py`): the pages of one file name are one, equal queries are one, and of several pages that
    answer a query only the last one counts. Its copies that end with `_beir`, and version 2, have `queries`, `corpus`
    and `qrels` (`vidore_evaluator_beir.py`); there, all of them count. Version 3 has these for each language, as
    `english-queries` and so on. Primary metrics and instructions are those of embeddings-benchmark/mteb@a905523
    (`mteb/tasks/retrieval`), where the leaderboard is kept.
    """
    subset, split = source.option("subset", SUBSETS[version]), source.split or "test"
    there, hub_id = source.inside(subset), f"vidore/{subset}"
    configs = there.configs(hub_id)
    languages = sorted(name.removesuffix("-queries") for name in configs if name.endswith("-queries"))
    language: str | None = None
    groups: dict[str, str] = {}
    counts: dict[str, int] = {}
    if languages or {"query", "queries"} & set(configs):
        if languages:
            usual = "english" if "english" in languages else languages[0]
            language = source.option("language", usual, languages)
            rows = read_rows(there, hub_id, split, f"{language}-")
        else:
            rows, language, groups = _of_language(source, read_rows(there, hub_id, split))
        queries = documents(rows.queries, "query", _question)
        corpus = documents(rows.corpus, "corpus", lambda row, name: [get(row, "image", name)])
        qrels = rows.qrels
    else:
        queries, corpus, qrels, counts = _pairs(source, there.rows(hub_id, None, split))
    if language is None and "language" in source.options:
        raise ValueError(f"{source.task}: language={source.options['language']!r}: queries of {subset} name none.")
    instruction = own_instruction(source, INSTRUCTIONS[version])
    return relevance_evaluator(
        source,
        queries,
        corpus,
        qrels,
        primary_metric=PRIMARY[version],
        instruction=lambda query: instruction,
        groups=groups,
        counts=counts,
        settings={
            "dataset": subset,
            "hub_id": hub_id,
            "split": split,
            "language": language,
            "instruction": instruction,
        },
    )


def _question(row: Mapping[str, Any], name: str) -> list[Any]:
    return [get(row, "query" if "query" in row else "text", name)]


def _pairs(source: Source, rows: Dataset) -> tuple[Lazy[Document], Lazy[Document], Qrels, dict[str, int]]:
    """Queries, pages and judgements of rows of a page and a question, and what is left out."""
    pages: dict[str, int] = {}  # the first row of each page
    asked: dict[str, str] = {}  # ids of queries by their texts
    answers: dict[str, str] = {}
    counts = {"pages without a query": 0, "pages that another row of the query replaces": 0}
    for i, row in enumerate(rows.select_columns(["query", "image_filename"])):
        page = str(get(row, "image_filename", f"row {i} of {source.task}"))
        if page in pages and _bytes(rows[pages[page]]) != _bytes(rows[i]):
            raise BadSampleError(
                f"{page!r} is another picture in row {pages[page]}",
                field="image_filename",
                sample=f"row {i} of {source.task}",
                mend="Take the copy of the data set that ends with _beir: --option subset=NAME_beir",
            )
        pages.setdefault(page, i)
        if row["query"] is None:
            counts["pages without a query"] += 1
            continue
        query = asked.setdefault(row["query"], str(i))
        counts["pages that another row of the query replaces"] += answers.get(query, page) != page
        answers[query] = page
    texts, names = list(asked), list(pages)
    return (
        Lazy(len(texts), lambda i: Document(asked[texts[i]], [texts[i]])),
        Lazy(len(names), lambda i: Document(names[i], [get(rows[pages[names[i]]], "image", names[i])])),
        {query: {page: 1.0} for query, page in answers.items()},
        counts,
    )


def _bytes(row: Mapping[str, Any]) -> bytes | None:
    image = row["image"] or {}
    return Path(image["path"]).read_bytes() if image.get("bytes") is None and image.get("path") else image.get("bytes")


def _of_language(source: Source, rows: Rows) -> tuple[Rows, str | None, dict[str, str]]:
    """Rows with the queries of the chosen language or of all; the language; and those of queries, if several."""
    if "language" not in rows.queries.column_names:
        return rows, None, {}
    plain = list(rows.queries.select_columns([name for name in rows.queries.column_names if name != "image"]))
    found = {row_id(row, "query", f"row {i} of the query"): str(row["language"]) for i, row in enumerate(plain)}
    there = sorted(set(found.values()))
    wanted = source.option("language", "all", ("all", *there))
    if wanted == "all":
        return rows, wanted, found if len(there) > 1 else {}
    kept = [i for i, row in enumerate(plain) if row["language"] == wanted]
    # judgements of other languages go; those of unknown queries stay, and are refused
    qrels = {query: judged for query, judged in rows.qrels.items() if found.get(query, wanted) == wanted}
    return Rows(rows.queries.select(kept), rows.corpus, qrels), wanted, {}


def _vidore(version: int) -> Task:
    load: Callable[[Source], RelevanceEvaluator] = partial(load_vidore, version=version)
    options = {"subset": f"which of its data sets; {SUBSETS[version]} by default", **INSTRUCTION}
    if version > 1:
        first = "all" if version == 2 else "english"
        options["language"] = f"language of the queries; {first} by default"
    name = f"vidore-v{version}"
    return Task(
        name, f"ViDoRe V{version}", "embed", load, PRIMARY[version], f"vidore/{SUBSETS[version]}", options=options
    )


TASKS = {task.name: task for task in map(_vidore, SUBSETS)}
