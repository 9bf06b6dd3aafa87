"""Retrieval of interleaved documents by interleaved queries: wikiHow-TIIR and MRMR."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ....data import BadSampleError, Document
from ...examples import Lazy
from ...relevance_evaluator import RelevanceEvaluator
from ..qrels import INSTRUCTION, documents, own_instruction, read_rows, relevance_evaluator, row_id, rows_by_id
from ..sources import Source, get, image_in, read_json_lines
from .task import Task

# ---- wikiHow-TIIR ----

TIIR_COMMAND = "hf download vec-ai/wikiHow-TIIR --repo-type dataset --local-dir data/wikihow-tiir"
TIIR_INSTRUCTION = "Find a wikiHow tutorial that matches the given query."


def load_tiir(source: Source) -> RelevanceEvaluator:
    """wikiHow-TIIR (Zhang et al., ACL 2025) from `queries.jsonl`, `docs.jsonl`, `qrels.jsonl` and the images.

    The form is that of vec-ai/wikiHow-TIIR@c1cd2da (`src/gen_embeddings_multigpu.py`, `src/retrieval.py`). A query is
    `{"qid", "data"}` or `{"id", "data"}`, a document `{"id", "data"}`. `data` is a list of strings in reading order;
    one that ends with `.png` is an image file. A line of the judgements, `{"did", "qid"}`, is a document and the query
    that it answers, null if there is none. The corpus is the documents of these lines, as there. The instruction is
    the one that the authors give to GME; each of their models has another.
    """
    qrels_file = source.need("qrels.jsonl", command=TIIR_COMMAND)
    folder = qrels_file.parent
    docs = rows_by_id(source.need("docs.jsonl", command=TIIR_COMMAND), "id")
    asked = rows_by_id(source.need("queries.jsonl", command=TIIR_COMMAND), "qid", "id")
    images = Path(source.option("images", str(folder)))
    if not images.is_dir():
        raise ValueError(f"{source.task}: images={str(images)!r} is no folder. Give the one that paths start from.")
    corpus: dict[str, None] = {}
    qrels: dict[str, dict[str, float]] = {}
    for i, row in enumerate(read_json_lines(qrels_file), start=1):
        where = f"{qrels_file}, line {i}"
        document = str(get(row, "did", where))
        if document not in docs:
            mend = "Get docs.jsonl and qrels.jsonl of one version"
            raise BadSampleError(f"{document!r} is not in docs.jsonl", field="did", sample=where, mend=mend)
        corpus[document] = None
        if row.get("qid") is not None:
            qrels.setdefault(str(row["qid"]), {})[document] = 1.0

    def sequence(rows: Mapping[str, Mapping[str, Any]], names: list[str], place: str) -> Lazy[Document]:
        def build(i: int) -> Document:
            return Document(names[i], _tiir_parts(rows[names[i]], names[i], images, place))

        return Lazy(len(names), build)

    instruction = own_instruction(source, TIIR_INSTRUCTION)
    return relevance_evaluator(
        source,
        sequence(asked, list(asked), "query_images"),
        sequence(docs, list(corpus), "doc_images"),
        qrels,
        primary_metric="ndcg@10",
        ks=(1, 5, 10, 20, 100),
        instruction=lambda query: instruction,
        counts={"documents outside the corpus": len(docs) - len(corpus)},
        settings={"split": "test", "instruction": instruction},
    )


def _tiir_parts(row: Mapping[str, Any], name: str, root: Path, place: str) -> list[Any]:
    """Texts, and images by their paths, which start from the data's folder, its parent, or the folder of its kind."""
    data = get(row, "data", name)
    if not isinstance(data, list) or not data or not all(isinstance(part, str) for part in data):
        mend = "Get the file again"
        raise BadSampleError("a list of strings is expected", field="data", sample=name, mend=mend)
    parts: list[Any] = []
    for part in data:
        if not part.endswith(".png"):
            parts += [part] if part.strip() else []
            continue
        path = part.removeprefix("./").removeprefix("data/")
        inside = root / place
        there = inside if (inside / path).exists() and not (root / path).exists() else root
        parts.append(image_in(there, path, name))
    return parts


# ---- MRMR ----

_PLACEHOLDER = re.compile(r"(<image(?: \d+)?>)")
MRMR_INSTRUCTIONS = {
    "knowledge": "Retrieve relevant documents that help answer the question.",
    "theorem": "Retrieve relevant theorems that are involved in solving the problem.",
    "design": "Given a vehicle design, retrieve the design requirements that it violates.",
    "traffic": "Given a traffic case, retrieve the driving rule documents that it violates.",
    "negation": "Given an image caption, retrieve descriptions that have contradictory information with the image.",
}
#: The disciplines of categories, as the authors count them.
DISCIPLINES = {
    "Art": ("Art", "Art_Theory", "Design", "Music"),
    "Humanities": ("Sociology", "Literature", "History", "Psychology"),
    "Medicine": ("Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Basic_Medical_Science", "Pharmacy"),
    "Science": ("Biology", "Chemistry", "Geography", "Agriculture"),
    "Business": ("Accounting", "Finance", "Manage", "Marketing", "Economics"),
    "Engineering": (
        "Electronics",
        "Computer_Science",
        "Mechanical_Engineering",
        "Materials",
        "Architecture_and_Engineering",
    ),
    "Math": ("Math",),
    "Physics": ("Physics", "Energy_and_Power"),
}
_DISCIPLINE_OF = {category: discipline for discipline, some in DISCIPLINES.items() for category in some}


def load_mrmr(source: Source, subset: str) -> RelevanceEvaluator:
    """MRMR (Zhang et al., ICLR 2026): rows of the Hub with the configurations `query`, `corpus` and `qrels`.

    The form is that of the cards of MRMRbenchmark/theorem@2a4b0d3 and MRMRbenchmark/traffic@5de2aa1, and of
    rebeccaz4/MRMR@0bb5529 (`mteb/tasks/Image/Any2AnyRetrieval/eng`), whose instructions and disciplines these are.
    A row has `id`, `text`, `image` and up to four more images, `image 1` to `image 4`. Where the text has `<image>` or
    `<image 1>` that image stands there; images that it does not name stand before it. The authors give their models
    `image` beside the text, with the placeholders in it: there, no place of an image is known. `vision`, a
    picture of a text, is not used. A placeholder without an image stays text, and is counted.

    In `negation` each query has four candidates, whose ids begin with its own.
    """
    hub_id, split = f"MRMRbenchmark/{subset}", source.split or "test"
    rows = read_rows(source, hub_id, split)
    unfilled: dict[str, int] = {}

    def parts(row: Mapping[str, Any], name: str, kind: str) -> list[Any]:
        found, left = mrmr_parts(row)
        if left:
            unfilled[f"{kind} {name}"] = left
        return found

    queries = documents(rows.queries, "query", partial(parts, kind="query"))
    corpus = documents(rows.corpus, "corpus", partial(parts, kind="corpus"))
    plain = rows.queries.select_columns([name for name in rows.queries.column_names if "image" not in name])
    told: dict[str, str | None] = {}
    groups: dict[str, str] = {}
    for i, row in enumerate(plain):
        name = row_id(row, "query", f"row {i} of the query")
        told[name] = own_instruction(source, row.get("instruction") or MRMR_INSTRUCTIONS[subset])
        if (category := row.get("category") or row.get("domain")) is not None:
            groups[name] = _DISCIPLINE_OF.get(str(category), str(category))
    among = _own_candidates(source, list(told), [document.id for document in corpus]) if subset == "negation" else {}
    evaluator = relevance_evaluator(
        source,
        queries,
        corpus,
        rows.qrels,
        primary_metric="hit@1" if subset == "negation" else "ndcg@10",
        instruction=lambda query: told[query],
        groups=groups,
        among=among,
        settings={"split": split, "instruction": source.option("instruction", "") or "own"},
    )
    evaluator.counts["placeholders without an image"] = sum(unfilled.values())
    evaluator.settings |= {"unfilled placeholders": dict(sorted(unfilled.items()))} if unfilled else {}
    return evaluator


def mrmr_parts(row: Mapping[str, Any]) -> tuple[list[Any], int]:
    """Texts and images of a row in reading order, and how many placeholders have no image.

    >>> mrmr_parts({"text": "Is <image 1> like <image 2>?", "image 1": b"1", "image 2": b"2"})
    (['Is ', b'1', ' like ', b'2', '?'], 0)
    """
    text = row.get("text") or ""
    images = {name: value for name, value in row.items() if re.fullmatch(r"image( \d+)?", name) and value is not None}
    numbered = sorted(name for name in images if name != "image")
    # `image` is the one image, or all of them in one picture
    wanted = ["image"] if "image" in images and ("<image>" in text or not numbered) else numbered
    parts: list[Any] = []
    used, left = set(), 0
    for piece in _PLACEHOLDER.split(text):
        name = piece[1:-1] if _PLACEHOLDER.fullmatch(piece) else ""
        name = "image" if name == "image 1" and name not in images else name
        if name in images:
            parts.append(images[name])
            used.add(name)
        elif piece.strip():
            parts.append(piece)
            left += bool(name)
    return [images[name] for name in wanted if name not in used] + parts, left


def _own_candidates(source: Source, queries: list[str], corpus: list[str]) -> dict[str, list[str]]:
    """By the id of a query the documents whose ids are its own and a number: `150224_1` to `150224_4`."""
    if source.option("candidates", "own", ("own", "all")) == "all":
        return {}
    found: dict[str, list[str]] = {query: [] for query in queries}
    for name in corpus:
        query = name.rpartition("_")[0]
        if query in found:
            found[query].append(name)
    if without := [query for query, some in found.items() if not some]:
        raise ValueError(
            f"{source.task}: the query {without[0]!r} has no candidates of its own, {without[0]}_1 and so on. Get "
            "queries and corpus of one version, or give --option candidates=all."
        )
    return found


def _mrmr(subset: str, title: str, **options: str) -> Task:
    load: Callable[[Source], RelevanceEvaluator] = partial(load_mrmr, subset=subset)
    primary = "hit@1" if subset == "negation" else "ndcg@10"
    name = f"mrmr-{subset}"
    return Task(name, title, "embed", load, primary, f"MRMRbenchmark/{subset}", options={**INSTRUCTION, **options})


TASKS = {
    task.name: task
    for task in (
        Task(
            "wikihow-tiir",
            "wikiHow-TIIR",
            "embed",
            load_tiir,
            "ndcg@10",
            options={"images": "folder that paths of images start from; the data's by default", **INSTRUCTION},
        ),
        _mrmr("knowledge", "MRMR knowledge"),
        _mrmr("theorem", "MRMR theorem"),
        _mrmr("design", "MRMR vehicle design"),
        _mrmr("traffic", "MRMR traffic"),
        _mrmr("negation", "MRMR negation", candidates="own (the default): the query's four; or all"),
    )
}
