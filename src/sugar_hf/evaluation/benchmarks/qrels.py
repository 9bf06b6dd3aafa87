"""Retrieval benchmarks of queries, a corpus and judgements: the rows of the Hub, and an evaluator of what was read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from ...data import BadSampleError, Document, RetrievalSet
from ...data.relevance import with_instruction
from ..examples import Lazy
from ..relevance_evaluator import RelevanceEvaluator
from .sources import Source, get, read_json_lines

#: By the id of a query, how relevant documents are, by their ids.
Qrels = Mapping[str, Mapping[str, float]]
#: The option of tasks whose queries have an instruction.
INSTRUCTION = {"instruction": "what a query is told to look for: the benchmark's own (the default), none, or a text"}
_QUERIES, _QRELS = ("query", "queries"), ("qrels", "default")


@dataclass(frozen=True)
class Rows:
    """The rows of a retrieval benchmark.

    Args:
        queries: A row a query.
        corpus: A row a document.
        qrels: Judgements.
    """

    queries: Dataset
    corpus: Dataset
    qrels: Qrels


def read_rows(source: Source, hub_id: str | None, split: str, prefix: str = "") -> Rows:
    """Read the configurations `query` or `queries`, `corpus`, and `qrels` or `default`.

    This is mteb's form (embeddings-benchmark/mteb@a905523, `mteb/abstasks/retrieval_dataset_loaders.py`). Copies of
    M-BEIR, MRMR and ViDoRe have it, too. A configuration without the split may have one other, as corpora often do.

    Args:
        source: Where they are.
        hub_id: The benchmark's name on the Hub.
        split: The split.
        prefix: Before each name of a configuration, such as `english-`.

    Raises:
        ValueError: A configuration is missing or cannot be loaded, or a document has two grades for a query.
        BadSampleError: A judgement lacks a field.
    """
    there = source.configs(hub_id)

    def load(*names: str) -> Dataset:
        config = next((prefix + name for name in names if prefix + name in there), None)
        if config is None:
            wanted = " or ".join(prefix + name for name in names)
            raise ValueError(
                f"{source.task}: {source.data or hub_id} has no configuration {wanted}, only {', '.join(there)}. "
                "docs/benchmarks.md says what to get."
            )
        return source.rows(hub_id, config, source.split_of(hub_id, config, split))

    qrels: dict[str, dict[str, float]] = {}
    for i, row in enumerate(load(*_QRELS)):
        where = f"judgement {i} of {source.task}"
        query, document = row_id(row, "query", where, own=False), row_id(row, "corpus", where, own=False)
        grade = float(get(row, "score", where))
        if qrels.setdefault(query, {}).setdefault(document, grade) != grade:
            raise ValueError(f"{where}: {document!r} has two grades for the query {query!r}. Get the data again.")
    return Rows(load(*_QUERIES), load("corpus"), qrels)


def row_id(row: Mapping[str, Any], kind: str, where: str, *, own: bool = True) -> str:
    """The id of a query or document: under `id` or `_id` in its own row, else under `{kind}-id` or `{kind}_id`.

    Args:
        row: A row.
        kind: `query` or `corpus`.
        where: For the error.
        own: Whether the row is that of the query or document, and no judgement.

    Raises:
        BadSampleError: It has none.
    """
    names = [*(("id", "_id") if own else ()), f"{kind}-id", f"{kind}_id"]
    return str(get(row, next((name for name in names if row.get(name) is not None), names[-1]), where))


def rows_by_id(file: Path, *names: str) -> dict[str, dict[str, Any]]:
    """The lines of a JSON Lines file by their ids.

    Args:
        file: The file.
        *names: What the id may be called; the first that a line has.

    Raises:
        BadSampleError: A line has no id, or that of a line before.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, row in enumerate(read_json_lines(file), start=1):
        where = f"{file}, line {i}"
        field = next((name for name in names if row.get(name) is not None), names[0])
        name = str(get(row, field, where))
        if name in found:
            mend = "Get the file again"
            raise BadSampleError(f"{name!r} stands in a line before", field=field, sample=where, mend=mend)
        found[name] = row
    return found


def documents(rows: Dataset, kind: str, parts: Callable[[Mapping[str, Any], str], list[Any]]) -> Lazy[Document]:
    """Queries or documents of rows, read when they are needed.

    Args:
        rows: Rows with an id.
        kind: `query` or `corpus`.
        parts: The texts and images of a row, by the row and its id.
    """

    def build(i: int) -> Document:
        row = rows[i]
        name = row_id(row, kind, f"row {i} of the {kind}")
        return Document(name, parts(row, name))

    return Lazy(len(rows), build)


def own_instruction(source: Source, own: str | None) -> str | None:
    """The instruction of a query: its benchmark's own, unless the option `instruction` says otherwise."""
    given = source.option("instruction", "")
    return own if not given else None if given == "none" else given


def relevance_evaluator(
    source: Source,
    queries: Sequence[Document],
    corpus: Sequence[Document],
    qrels: Qrels,
    *,
    primary_metric: str,
    ks: Sequence[int] = (1, 5, 10),
    instruction: Callable[[str], str | None] = lambda query: None,
    groups: Mapping[str, str] | None = None,
    among: Mapping[str, Sequence[str]] | None = None,
    counts: Mapping[str, int] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> RelevanceEvaluator:
    """Make the evaluator of a benchmark. Queries that nobody judged are left out, counted and named.

    Args:
        source: Whose limit and seed count.
        queries: All queries.
        corpus: All documents.
        qrels: Judgements of some or all queries.
        primary_metric: See `RelevanceEvaluator`.
        ks: Where rankings are cut off.
        instruction: What the query of an id is told to look for. It becomes a system message.
        groups: See `RelevanceEvaluator`.
        among: See `RelevanceEvaluator`.
        counts: See `RelevanceEvaluator`.
        settings: What the result should say beside the source's.

    Raises:
        ValueError: An id stands twice, a judgement names an unknown query or document, a judged query has no
            relevant document, or no query is judged.
    """
    names = [query.id for query in queries]
    if unknown := sorted(set(qrels) - set(names)):
        raise ValueError(
            f"{source.task}: {unknown[0]!r} is judged, but is none of the {len(names)} queries; there are "
            f"{len(unknown)} such ids. Get queries and judgements of one version."
        )
    judged = [i for i, name in enumerate(names) if name in qrels]
    unjudged = {name: "nobody judged it" for name in names if name not in qrels}
    asked = source.limited(judged)
    if not asked:
        raise ValueError(
            f"{source.task}: none of the {len(names)} queries is judged. Get the judgements of this split."
        )
    prompted = Lazy(len(asked), lambda i: with_instruction(queries[asked[i]], instruction(names[asked[i]])))
    try:
        task = RetrievalSet(prompted, corpus, {names[i]: qrels[names[i]] for i in asked}, tuple(ks))
    except BadSampleError:
        raise
    except ValueError as error:
        raise ValueError(f"{source.task}: {error} Get queries, corpus and judgements of one version.") from error
    chosen = {names[i] for i in asked}
    skipped = {"skipped": unjudged} if unjudged else {}
    return RelevanceEvaluator(
        source.task,
        task,
        primary_metric=primary_metric,
        groups=groups,
        among={query: allowed for query, allowed in (among or {}).items() if query in chosen},
        seed=source.seed,
        settings=source.settings(**skipped, **(settings or {})),
        counts={"unjudged queries": len(unjudged), **(counts or {})},
    )
