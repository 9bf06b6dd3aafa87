"""WebQA: answers from images with captions that are found, and how much the place of the relevant one matters."""

import base64
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ....data import BadSampleError, Document
from ...examples import Example, Lazy, Record
from ...generation_evaluator import GenerationEvaluator
from ...knowledge_evaluator import KnowledgeEvaluator, Pool, View
from ..scorers.webqa_scorers import webqa_accuracy
from ..scorers.yes_no_scorers import first_yes_no, position_curve
from ..sources import Source, get
from .knowledge_vqa import (
    RETRIEVAL_OPTIONS,
    chosen_views,
    count_option,
    joined,
    knowledge_prompt,
    read_object,
    rouge_scores,
)
from .task import Task
from .vqa import by_group, mean

OTHERS = 5  # pairs beside the relevant one, in the position probe
_YES_NO = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


class ImageTable:
    """The images of `imgs.tsv`, each read when it is asked for.

    A line is the image's id, a tab, and the file in base64. Line n starts at the byte that line n of the index names;
    n is the id modulo 10 million.

    Args:
        table: `imgs.tsv`.
        index: `imgs.lineidx`.

    Raises:
        ValueError: The index is none.
    """

    def __init__(self, table: Path, index: Path) -> None:
        self.table = table
        try:
            self.offsets = np.array(index.read_text(encoding="ascii").split(), np.int64)
        except ValueError as error:
            raise ValueError(f"{index}: a number a line is expected ({error}). Get the file again.") from error

    def image(self, id: int) -> bytes | Path:
        """Return the image's file.

        One that is missing is a path to nothing: loading it fails, and is counted then.
        """
        line = int(id) % 10_000_000
        missing = self.table / f"image {id}"
        if line >= len(self.offsets):
            return missing
        with self.table.open("rb") as file:
            file.seek(int(self.offsets[line]))
            name, _, data = file.readline().partition(b"\t")
        try:
            return base64.b64decode(data, validate=False) if int(name) == int(id) else missing
        except ValueError:  # no number, or no base64
            return missing


def _clean(text: Any) -> str:
    """Questions and answers have literal double quotes around them."""
    return " ".join(str(text).replace('"', "").split())


def _answers(row: Mapping[str, Any], guid: str) -> list[str]:
    answers = get(row, "A", guid)
    if not isinstance(answers, list) or not answers:
        raise BadSampleError("a list of answers is expected", field="A", sample=guid, mend="Get the file again")
    return [_clean(answer) for answer in answers]


def _open(source: Source) -> tuple[list[tuple[str, dict[str, Any]]], ImageTable]:
    """The questions of a split that are answered from images, and the images. Those answered from texts have none."""
    split = source.split or "val"
    if split not in ("val", "train"):
        raise ValueError(f"{source.task}: no split {split!r}; val and train have answers, test is for the server.")
    items = [
        (guid, row)
        for guid, row in read_object(source.need("WebQA_train_val.json")).items()
        if get(row, "split", guid) == split and get(row, "img_posFacts", guid)
    ]
    return items, ImageTable(source.need("imgs.tsv"), source.need("imgs.lineidx"))


def _drawn(source: Source, items: Sequence[Any], default: int, prompts: int = 1) -> Sequence[Any]:
    """Draw as many questions as the option `samples` says, by the seed, in the order of the file.

    Of those, keep as many as the first `limit` prompts belong to, `prompts` of each.
    """
    value = source.option("samples", str(default))
    size = len(items) if value == "all" else count_option(source, "samples", default)
    if size < len(items):
        items = [items[i] for i in sorted(random.Random(source.seed).sample(range(len(items)), size))]
    return items if source.limit is None else items[: math.ceil(source.limit / prompts)]


def load_webqa(source: Source) -> KnowledgeEvaluator:
    """WebQA from its official files: `WebQA_train_val.json`, `imgs.tsv` and `imgs.lineidx`.

    A question that is answered from images searches among its own images with their captions, relevant ones and
    others. The view `image` compares its relevant images with captions, `text` its question with images. What is
    found goes before the question as an image with its caption. Candidates are in the order of image ids, so that
    equal similarities favour nothing. An image that is cut off is refused and listed, where the official code shows
    the part that is there.

    The paper gives 71 to 89 for this column and says ROUGE-L. Models that answer in sentences of their own rarely get
    there on WebQA's sentences; that may be another form of ROUGE-L, shorter references or a hint in the prompt, and
    the paper does not tell. Compare models under this protocol, not with that column.
    """
    items, table = _open(source)
    items = list(_drawn(source, items, 1000))
    top_k = count_option(source, "top_k", 1)
    facts = {(guid, kind): _facts(row, kind, guid) for guid, row in items for kind in ("img_posFacts", "img_negFacts")}
    pool = sorted({fact for of in facts.values() for fact in of})
    numbers = {fact: number for number, fact in enumerate(pool)}
    gold = [[numbers[fact] for fact in facts[guid, "img_posFacts"]] for guid, _ in items]
    allowed = [
        sorted({numbers[fact] for kind in ("img_posFacts", "img_negFacts") for fact in facts[guid, kind]})
        for guid, _ in items
    ]
    can_rate = find_spec("word2number") is not None
    if can_rate:
        for category in {get(row, "Qcate", guid) for guid, row in items}:
            webqa_accuracy("", "", category)  # a category that it does not know shows itself before hours of work

    def question(i: int) -> str:
        return _clean(get(items[i][1], "Q", items[i][0]))

    def build(i: int) -> Example:
        guid, row = items[i]
        keywords = row.get("Keywords_A")
        keywords = " ".join(keywords) if isinstance(keywords, list) else keywords
        reference = {"answers": _answers(row, guid), "category": row.get("Qcate")}
        return Example.of(guid, [question(i)], {**reference, "keywords": _clean(keywords) if keywords else None})

    def relevant(i: int) -> Document:
        return Document(items[i][0], [table.image(id) for id, _ in facts[items[i][0], "img_posFacts"]])

    def side(*which: str) -> Sequence[Document]:
        def entry(i: int) -> Document:
            id, caption = pool[i]
            parts = {"image": lambda: table.image(id), "caption": lambda: caption}
            return Document(str(id), [parts[name]() for name in which])

        return Lazy(len(pool), entry)

    views = {
        "image": View(Lazy(len(items), relevant), "captions"),
        "text": View(Lazy(len(items), lambda i: Document(items[i][0], [question(i)])), "images"),
    }
    sizes = [len(of) for of in allowed] or [0]
    counts = {"fewest": min(sizes), "mean": round(sum(sizes) / len(sizes), 1), "most": max(sizes)}
    return KnowledgeEvaluator(
        "webqa",
        Lazy(len(items), build),
        Pool(side("image", "caption"), {"images": side("image"), "captions": side("caption")}, allowed, gold),
        chosen_views(source, views),
        knowledge_prompt,
        lambda records: score_webqa(records, can_rate),
        primary_metric="rouge_l",
        top_k=top_k,
        seed=source.seed,
        settings=source.settings(split=source.split or "val", candidates=counts, qa_acc=can_rate),
    )


def _facts(row: Mapping[str, Any], kind: str, guid: str) -> list[tuple[int, str]]:
    found, where = [], f"{guid}, {kind}"
    for fact in get(row, kind, guid):
        id = str(get(fact, "image_id", where))
        if not id.isdecimal():
            raise BadSampleError(f"{id!r} is no number", field="image_id", sample=where, mend="Get the file again")
        found.append((int(id), _clean(get(fact, "caption", where))))
    return found


def score_webqa(records: Sequence[Record], can_rate: bool) -> dict[str, float]:
    """ROUGE-L and exact match, and QA-Acc, overall and by category, where word2number is installed."""
    figures = {name: mean(values) for name, values in rouge_scores(records).items()}
    if can_rate:
        values, categories = [], []
        for record in records:
            wanted = record.reference
            categories.append(wanted["category"])
            rated = (
                webqa_accuracy(record.text, answer, wanted["category"], wanted["keywords"])
                for answer in wanted["answers"]
            )
            values.append(max(rated))
        figures |= {"qa_acc": mean(values), **by_group(values, categories, "qa_acc")}
    return figures


# ---- The position probe ----


def load_position(source: Source) -> GenerationEvaluator:
    """Load the paper's probe of positions (app. F.1).

    Questions of WebQA are answered yes or no. Their relevant image and caption stand at each of six places among five
    others, which are the same at every place.

    Questions with another number of relevant images, with fewer than five others, or whose answer does not begin with
    yes or no, are left out, and counted in the settings.
    """
    items, table = _open(source)
    left_out: Counter[str] = Counter()
    eligible = []
    for guid, row in items:
        if row.get("Qcate") != "YesNo":
            continue
        answer = _YES_NO.match(_answers(row, guid)[0])
        relevant, others = (_facts(row, kind, guid) for kind in ("img_posFacts", "img_negFacts"))
        if answer is None:
            left_out["the answer does not begin with yes or no"] += 1
        elif len(relevant) != 1:
            left_out["several relevant images"] += 1
        elif len(others) < OTHERS:
            left_out[f"fewer than {OTHERS} other images"] += 1
        else:
            drawn = random.Random(f"{source.seed} {guid}").sample(others, OTHERS)
            eligible.append((guid, _clean(get(row, "Q", guid)), relevant[0], drawn, answer[1].lower()))
    places = OTHERS + 1
    asked = _drawn(source, eligible, 500, places)

    def build(i: int) -> Example:
        guid, question, relevant, others, answer = asked[i // places]
        place = i % places
        pairs = [*others[:place], relevant, *others[place:]]
        prompt = position_prompt(question, [(table.image(id), caption) for id, caption in pairs])
        return Example.of(f"{guid}@{place + 1}", prompt, {"answer": answer, "position": place + 1})

    return GenerationEvaluator(
        "webqa-position",
        Lazy(len(asked) * places, build),
        score_position,
        primary_metric="mean",
        seed=source.seed,
        settings=source.settings(
            split=source.split or "val", eligible=len(eligible), questions=len(asked), left_out=dict(left_out)
        ),
    )


def position_prompt(question: str, pairs: Sequence[tuple[Any, str]]) -> list[Any]:
    """Return the paper's prompt, in which an image stands before its caption, with one space between.

    The prompt is `{question}\\n{image-text pairs}.\\n please answer the question in Yes or No.\\n`.

    >>> position_prompt("Blue?", [(b"1", "A car"), (b"2", "A dog")])
    ['Blue?\\n', b'1', ' A car ', b'2', ' A dog.\\n please answer the question in Yes or No.\\n']
    """
    body = joined([part for pair in pairs for part in pair])
    end = ".\n please answer the question in Yes or No.\n"
    last = body.pop() if isinstance(body[-1], str) else ""
    return [f"{question}\n", *body, last + end]


def score_position(records: Sequence[Record]) -> dict[str, float]:
    """Return the accuracy with the relevant pair at each place, their mean, and the depth (ends minus middle).

    Further numbers are the share of questions with the answer yes, and that of replies with neither yes nor no, which
    are wrong.
    """
    said = [None if record.prediction is None else first_yes_no(record.prediction) for record in records]
    hits = np.array([one == record.reference["answer"] for one, record in zip(said, records, strict=True)])
    return {
        **position_curve(hits.reshape(-1, OTHERS + 1)),
        "labels yes": mean([float(record.reference["answer"] == "yes") for record in records]),
        "neither yes nor no": mean([float(one is None) for one in said]),
    }


TASKS = {
    task.name: task
    for task in (
        Task(
            "webqa",
            "WebQA",
            "both",
            load_webqa,
            "rouge_l",
            split="val",
            options={**RETRIEVAL_OPTIONS, "samples": "questions drawn (default 1000), or all"},
            paper={"rouge_l": "table7/WebQA"},
        ),
        Task(
            "webqa-position",
            "WebQA by position",
            "generate",
            load_position,
            "mean",
            split="val",
            options={"samples": "questions drawn (default 500), or all"},
            paper={f"position {place}": f"table5/{place}" for place in range(1, OTHERS + 2)},
            folder="webqa",
        ),
    )
}
