"""M-BEIR: queries and candidates of text, image or both, in one form for ten data sets, OVEN among them."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....data import BadSampleError, Document
from ...examples import Lazy
from ...relevance_evaluator import RelevanceEvaluator
from ..qrels import INSTRUCTION, documents, own_instruction, read_rows, relevance_evaluator, rows_by_id
from ..sources import Source, get, image_in
from .task import Task

KS = (1, 5, 10, 20, 50)
POOLS = ("local", "global")
COMMAND = "hf download TIGER-Lab/M-BEIR --repo-type dataset --local-dir data/mbeir"
#: Fields of the modality, the image and the text.
QUERY = ("query_modality", "query_img_path", "query_txt")
CANDIDATE = ("modality", "img_path", "txt")


def load_mbeir(source: Source) -> RelevanceEvaluator:
    """M-BEIR (Wei et al., ECCV 2024): a clone of TIGER-Lab/M-BEIR, or rows of a copy such as MRBench/mbeir_oven_task8.

    The form is that of TIGER-AI-Lab/UniIR@98dc570 (`src/data/mbeir_dataset.py`, `src/common/mbeir_retriever.py`), and
    of the cards of TIGER-Lab/M-BEIR@3298f3a and MRBench/mbeir_oven_task6. A query is a line of
    `query/{split}/mbeir_{dataset}_{split}.jsonl`: `qid`, `query_txt`, `query_img_path`, `query_modality`,
    `pos_cand_list`. A candidate is a line of `cand_pool/local/mbeir_{dataset}_cand_pool.jsonl` or
    `cand_pool/global/mbeir_union_{split}_cand_pool.jsonl`: `did`, `txt`, `img_path`, `modality`. An image stands
    before its text. M-BEIR's recall@k is `hit@k` here: whether any positive is among the first k.

    A query's instruction is one of those that `instructions/query_instructions.tsv` has for its data set, its modality
    and that of its first positive. It is drawn by the seed and the query's id, where UniIR draws anew each time.
    """
    name, split = source.option("dataset", "oven_task8"), source.split or "test"
    primary = "hit@10" if name.startswith("fashion") else "hit@5"
    settings = {"dataset": name, "hub_id": "TIGER-Lab/M-BEIR", "split": split}
    settings["instruction"] = source.option("instruction", "") or "own"
    if source.find("cand_pool") is None:
        return _from_rows(source, name, split, primary, settings)
    file = source.need(f"query/{split}/mbeir_{name}_{split}.jsonl", f"mbeir_{name}_{split}.jsonl", command=COMMAND)
    pool = source.option("pool", "local", POOLS)
    candidates = rows_by_id(_pool(source, name, split, pool), "did")
    images = source.find("mbeir_images")
    root = images.parent if images is not None else file.parent
    given = source.option("instruction", "")
    prompts = {} if given else _instructions(source)
    rows = rows_by_id(file, "qid")
    qrels: dict[str, dict[str, float]] = {}
    told: dict[str, str | None] = {}
    outside = 0
    for query, row in rows.items():
        where = f"query {query} of {file}"
        positives = [str(each) for each in get(row, "pos_cand_list", where)]
        own = [each for each in positives if _data_set(each) == _data_set(query)]
        if not own or not candidates.keys() >= set(own):
            absent = next((each for each in own if each not in candidates), None)
            said = f"{absent!r} is not in the {pool} pool" if own else "none is of the query's data set"
            mend = "Get queries and pool of one version"
            raise BadSampleError(said, field="pos_cand_list", sample=where, mend=mend)
        # OVEN and InfoSeek share articles: a positive of the other one may be in the global pool only
        qrels[query] = {each: 1.0 for each in positives if each in candidates}
        outside += len(set(positives)) - len(qrels[query])
        drawn = None if given else _drawn(prompts, source.seed, query, row, candidates[own[0]], where)
        told[query] = own_instruction(source, drawn)
    asked, pooled = list(rows), list(candidates)
    return relevance_evaluator(
        source,
        Lazy(len(asked), lambda i: Document(asked[i], _parts(rows[asked[i]], QUERY, asked[i], root))),
        Lazy(len(pooled), lambda i: Document(pooled[i], _parts(candidates[pooled[i]], CANDIDATE, pooled[i], root))),
        qrels,
        primary_metric=primary,
        ks=KS,
        instruction=lambda query: told[query],
        counts={"positives outside the pool": outside},
        settings={**settings, "pool": pool},
    )


def _pool(source: Source, name: str, split: str, pool: str) -> Path:
    if pool == "global":
        return source.need(f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl", command=COMMAND)
    # MSCOCO has a pool for each split
    return source.need(
        f"cand_pool/local/mbeir_{name}_cand_pool.jsonl",
        f"cand_pool/local/mbeir_{name}_{split}_cand_pool.jsonl",
        command=COMMAND,
    )


def _data_set(name: str) -> str:
    return name.split(":")[0]


def _instructions(source: Source) -> dict[tuple[str, str, str], list[str]]:
    """Instructions by the number of the data set, the query's modality and the candidate's."""
    file = source.need("instructions/query_instructions.tsv", "query_instructions.tsv", command=COMMAND)
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n")[1:], start=2):
        cells = line.strip().split("\t")
        if line.strip() and len(cells) < 5:
            raise ValueError(f"{file}, line {number}: expected five columns or more with tabs between. Get it again.")
        if line.strip():
            found[cells[3], cells[0], cells[1]] = [text.strip() for text in cells[4:] if text.strip()]
    return found


def _drawn(
    prompts: Mapping[tuple[str, str, str], Sequence[str]],
    seed: int,
    query: str,
    row: Mapping[str, Any],
    positive: Mapping[str, Any],
    where: str,
) -> str:
    key = (_data_set(query), str(get(row, "query_modality", where)), str(get(positive, "modality", where)))
    if not prompts.get(key):
        raise BadSampleError(
            f"query_instructions.tsv has none for data set {key[0]}, {key[1]} to {key[2]}",
            field="query_modality",
            sample=where,
            mend="Add its line, or give --option instruction=TEXT or instruction=none",
        )
    return random.Random(f"{seed} {query}").choice(prompts[key])


def _parts(row: Mapping[str, Any], fields: tuple[str, str, str], where: str, root: Path | None) -> list[Any]:
    """The image and the text of a row, as its modality says: `text`, `image` or `image,text`."""
    modality, image, text = fields
    kinds = str(get(row, modality, where)).split(",")
    if set(kinds) - {"image", "text"}:
        mend = "Give text, image or image,text"
        raise BadSampleError(f"unknown modality {row[modality]!r}", field=modality, sample=where, mend=mend)
    parts: list[Any] = []
    if "image" in kinds:
        given = get(row, image, where)
        parts.append(given if root is None else image_in(root, given, where))
    if "text" in kinds:
        words = get(row, text, where)
        parts += [words] if words.strip() else []
    return parts


def _from_rows(source: Source, name: str, split: str, primary: str, settings: Mapping[str, Any]) -> RelevanceEvaluator:
    if "instruction" not in source.options:
        raise ValueError(
            f"{source.task}: the rows have no instructions, and there is no cand_pool, as M-BEIR's own files have. "
            "Give --option instruction=TEXT or instruction=none, or a clone of TIGER-Lab/M-BEIR with --data."
        )
    if source.option("pool", "local", POOLS) == "global":
        raise ValueError(f"{source.task}: the rows have the local pool. Clone TIGER-Lab/M-BEIR for pool=global.")
    there = source.inside(f"mbeir_{name}")
    rows = read_rows(there, f"MRBench/mbeir_{name}", split)

    def parts(row: Mapping[str, Any], where: str) -> list[Any]:
        return _parts(row, ("modality", "image", "text"), where, None)

    return relevance_evaluator(
        there,
        documents(rows.queries, "query", parts),
        documents(rows.corpus, "corpus", parts),
        rows.qrels,
        primary_metric=primary,
        ks=KS,
        instruction=lambda query: own_instruction(source, None),
        settings={**settings, "pool": "local"},
    )


TASKS = {
    "mbeir": Task(
        "mbeir",
        "M-BEIR",
        "embed",
        load_mbeir,
        "hit@5",
        options={
            "dataset": "oven_task8 (the default), or another of its data sets: oven_task6, infoseek_task8, ...",
            "pool": "local (the default): the candidates of the data set; or global: the 5.6 million of all",
            **INSTRUCTION,
        },
    )
}
