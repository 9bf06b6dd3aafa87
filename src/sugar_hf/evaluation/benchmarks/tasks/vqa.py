"""VQAv2, GQA, VizWiz and TextVQA: short answers to questions about one image."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...examples import Example, Lazy, Record
from ...generation_evaluator import GenerationEvaluator, Submission
from ...metrics.exact_match import gqa_match
from ..scorers.vqa_scorers import evalai_accuracy, vqa_accuracy
from ..sources import Source, get, image_in, read_json
from .short_answers import SHORT, UNANSWERABLE
from .task import Task

HIDDEN = ("test", "testdev", "test-dev", "challenge")


def mean(values: Sequence[float]) -> float:
    """Mean of shares, in percent."""
    return 100.0 * sum(values) / len(values)


def by_group(values: Sequence[float], groups: Sequence[str | None], name: str) -> dict[str, float]:
    """The mean of each group, in percent, as `name, group`; values without group are left out."""
    found: dict[str, list[float]] = defaultdict(list)
    for value, group in zip(values, groups, strict=True):
        if group is not None:
            found[group].append(value)
    return {f"{name}, {group}": mean(of) for group, of in sorted(found.items())}


def score_answers(accuracy: Callable[[str, Sequence[str]], float]) -> Callable[[Sequence[Record]], dict[str, float]]:
    """Mean accuracy against ten answers each, and by type of answer where it is known."""

    def score(records: Sequence[Record]) -> dict[str, float]:
        values = [
            accuracy(record.prediction, record.reference["answers"]) if record.prediction is not None else 0.0
            for record in records
        ]
        kinds = [record.reference.get("answer_type") for record in records]
        return {"accuracy": mean(values), **by_group(values, kinds, "accuracy")}

    return score


def submit(name: str, server: str, key: Callable[[Record], Any] = lambda record: record.id) -> Submission:
    """A list of `{name: key, "answer": text}`; a sample that failed has an empty answer."""

    def write(records: Sequence[Record], path: Path) -> None:
        rows = [{name: key(record), "answer": record.text} for record in records]
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    return Submission(".json", write, server)


# ---- VQAv2 ----

VQAV2_SPLITS = {"validation": "val2014", "val": "val2014", "testdev": "test-dev2015", "test": "test2015"}
VQAV2_SERVER = "https://eval.ai/web/challenges/challenge-page/830"


def load_vqav2(source: Source) -> GenerationEvaluator:
    """VQAv2: rows of the Hub, or the official questions, annotations and COCO images."""
    split = source.split or "validation"
    if split not in VQAV2_SPLITS:
        raise ValueError(f"vqav2: no split {split!r}; there are {', '.join(VQAV2_SPLITS)}.")
    is_hidden = split in HIDDEN
    file = source.find(f"v2_OpenEnded_mscoco_{VQAV2_SPLITS[split]}_questions.json")
    examples: Sequence[Example]
    if file is not None:
        examples = _raw_vqav2(source, file, VQAV2_SPLITS[split], is_hidden)
    else:
        rows = source.limited(source.rows(TASKS["vqav2"].hub_id, None, "validation" if split == "val" else split))

        def build(i: int) -> Example:
            row = rows[i]
            reference = {} if is_hidden else _annotation(row)
            return Example.of(row["question_id"], [row["image"], row["question"] + SHORT], reference)

        examples = Lazy(len(rows), build)
    return GenerationEvaluator(
        "vqav2",
        examples,
        None if is_hidden else score_answers(vqa_accuracy),
        primary_metric="accuracy",
        submission=submit("question_id", VQAV2_SERVER, lambda record: int(record.id)),
        seed=source.seed,
        settings=source.settings(split=split),
    )


def _annotation(row: Any) -> dict[str, Any]:
    return {"answers": [answer["answer"] for answer in row["answers"]], "answer_type": row.get("answer_type")}


def _raw_vqav2(source: Source, file: Path, part: str, is_hidden: bool) -> Sequence[Example]:
    questions = source.limited(get(read_json(file), "questions", str(file)))
    annotations: dict[int, Any] = {}
    if not is_hidden:
        found = read_json(source.need(f"v2_mscoco_{part}_annotations.json"))["annotations"]
        annotations = {row["question_id"]: row for row in found}
    images = "test2015" if is_hidden else part
    folder = source.need(images)

    def build(i: int) -> Example:
        row = questions[i]
        id = get(row, "question_id", f"question {i}")
        image = image_in(folder, f"COCO_{images}_{row['image_id']:012d}.jpg", str(id))
        reference = {} if is_hidden else _annotation(get(annotations, id, f"annotations of {file.name}"))
        return Example.of(id, [image, row["question"] + SHORT], reference)

    return Lazy(len(questions), build)


# ---- GQA ----


def load_gqa(source: Source) -> GenerationEvaluator:
    """GQA: questions and images of the Hub, which lie in two configurations, or `{split}_questions.json`."""
    split = source.split or "testdev"
    file = source.find(f"{split}_balanced_questions.json")
    examples: Sequence[Example]
    if file is not None:
        folder = source.need("images")
        found = [(id, row) for id, row in read_json(file).items() if row.get("isBalanced", True)]
        items = source.limited(found)

        def build_raw(i: int) -> Example:
            id, row = items[i]
            return _gqa(id, image_in(folder, f"{row['imageId']}.jpg", id), row)

        examples = Lazy(len(items), build_raw)
    else:
        hub_id = TASKS["gqa"].hub_id
        rows = source.limited(source.rows(hub_id, f"{split}_balanced_instructions", split))
        pictures = source.rows(hub_id, f"{split}_balanced_images", split)
        places = {name: i for i, name in enumerate(pictures["id"])}

        def build(i: int) -> Example:
            row = rows[i]
            return _gqa(row["id"], pictures[get(places, row["imageId"], row["id"])]["image"], row)

        examples = Lazy(len(rows), build)
    return GenerationEvaluator(
        "gqa",
        examples,
        score_gqa,
        primary_metric="accuracy",
        submission=Submission(".json", _write_gqa, "the official eval.py"),
        seed=source.seed,
        settings=source.settings(split=split),
    )


def _gqa(id: str, image: Any, row: Any) -> Example:
    kind = (row.get("types") or {}).get("structural")
    reference = {"answer": row["answer"], "kind": None if kind is None else "open" if kind == "query" else "binary"}
    return Example.of(id, [image, row["question"] + SHORT], reference)


def score_gqa(records: Sequence[Record]) -> dict[str, float]:
    """Exact match, over all and over open and binary questions."""
    hits = [
        float(record.prediction is not None and gqa_match(record.text, record.reference["answer"]))
        for record in records
    ]
    return {"accuracy": mean(hits), **by_group(hits, [record.reference["kind"] for record in records], "accuracy")}


def _write_gqa(records: Sequence[Record], path: Path) -> None:
    rows = [{"questionId": record.id, "prediction": record.text.strip().rstrip(".").lower()} for record in records]
    path.write_text(json.dumps(rows), encoding="utf-8")


# ---- VizWiz ----

VIZWIZ_SERVER = "https://eval.ai/web/challenges/challenge-page/1911"


def load_vizwiz(source: Source) -> GenerationEvaluator:
    """VizWiz: rows of the Hub, or `{split}.json` of Annotations.zip and the images."""
    split = source.split or "val"
    is_hidden = split in HIDDEN
    examples: Sequence[Example]
    if (file := source.find(f"{split}.json")) is not None:
        folder, rows = source.need(split), source.limited(read_json(file))

        def build_raw(i: int) -> Example:
            row = rows[i]
            name = get(row, "image", f"row {i} of {file}")
            answers = [] if is_hidden else [answer["answer"] for answer in get(row, "answers", name)]
            reference = {"image": name, "answers": answers, "answer_type": row.get("answer_type")}
            return Example.of(name, [image_in(folder, name, name), vizwiz_prompt(row["question"])], reference)

        examples = Lazy(len(rows), build_raw)
    else:
        table = source.limited(source.rows(TASKS["vizwiz"].hub_id, None, split))

        def build(i: int) -> Example:
            row = table[i]
            reference = {"image": row["question_id"], "answers": [] if is_hidden else row["answers"]}
            reference["answer_type"] = row.get("category")
            return Example.of(row["question_id"], [row["image"], vizwiz_prompt(row["question"])], reference)

        examples = Lazy(len(table), build)
    return GenerationEvaluator(
        "vizwiz",
        examples,
        None if is_hidden else score_answers(evalai_accuracy),
        primary_metric="accuracy",
        submission=submit("image", VIZWIZ_SERVER, lambda record: record.reference["image"]),
        seed=source.seed,
        settings=source.settings(split=split),
    )


def vizwiz_prompt(question: str) -> str:
    """LLaVA's words around a question of VizWiz."""
    return question + UNANSWERABLE + SHORT


# ---- TextVQA ----


def load_textvqa(source: Source) -> GenerationEvaluator:
    """Load TextVQA: rows of the Hub, or `TextVQA_0.5.1_{split}.json` and `train_images`.

    If the option `ocr` is `on`, OCR tokens are in the prompt, as LLaVA and VILA have it. The official file has none:
    they are in the Rosetta file.
    """
    split = source.split or "validation"
    ocr = source.option("ocr", "on", ("on", "off")) == "on"
    is_hidden = split in HIDDEN
    short = {"validation": "val"}.get(split, split)
    examples: Sequence[Example]
    if (file := source.find(f"TextVQA_0.5.1_{short}.json")) is not None:
        rows = source.limited(read_json(file)["data"])
        folder = source.need("test_images" if is_hidden else "train_images")
        tokens: dict[str, list[str]] = {}
        if ocr:
            found = read_json(source.need(f"TextVQA_Rosetta_OCR_v0.2_{short}.json"))["data"]
            tokens = {row["image_id"]: row["ocr_tokens"] for row in found}

        def build_raw(i: int) -> Example:
            row = rows[i]
            id = get(row, "question_id", f"row {i} of {file}")
            hints = get(tokens, row["image_id"], str(id)) if ocr else []
            image = image_in(folder, f"{row['image_id']}.jpg", str(id))
            return _textvqa(id, image, row, hints if ocr else None, is_hidden)

        examples = Lazy(len(rows), build_raw)
    else:
        table = source.limited(source.rows(TASKS["textvqa"].hub_id, None, split))

        def build(i: int) -> Example:
            row = table[i]
            return _textvqa(row["question_id"], row["image"], row, row["ocr_tokens"] if ocr else None, is_hidden)

        examples = Lazy(len(table), build)
    return GenerationEvaluator(
        "textvqa",
        examples,
        None if is_hidden else score_answers(evalai_accuracy),
        primary_metric="accuracy",
        submission=submit("question_id", "https://eval.ai/web/challenges/challenge-page/874", lambda r: int(r.id)),
        seed=source.seed,
        settings=source.settings(split=split, ocr=ocr),
    )


def _textvqa(id: Any, image: Any, row: Any, tokens: Sequence[str] | None, is_hidden: bool) -> Example:
    hint = f"\nReference OCR token: {', '.join(tokens)}" if tokens is not None else ""
    return Example.of(id, [image, row["question"] + hint + SHORT], {"answers": [] if is_hidden else row["answers"]})


TASKS = {
    task.name: task
    for task in (
        Task(
            "vqav2",
            "VQAv2",
            "generate",
            load_vqav2,
            "accuracy",
            hub_id="lmms-lab/VQAv2",
            split="validation",
            paper={"accuracy": "table1/VQAv2"},
        ),
        Task(
            "gqa",
            "GQA",
            "generate",
            load_gqa,
            "accuracy",
            hub_id="lmms-lab/GQA",
            split="testdev",
            paper={"accuracy": "table1/GQA"},
        ),
        Task(
            "vizwiz",
            "VizWiz",
            "generate",
            load_vizwiz,
            "accuracy",
            hub_id="lmms-lab/VizWiz-VQA",
            split="val",
            paper={"accuracy": "table1/VizWiz"},
        ),
        Task(
            "textvqa",
            "TextVQA",
            "generate",
            load_textvqa,
            "accuracy",
            hub_id="lmms-lab/textvqa",
            split="validation",
            options={"ocr": "on (as LLaVA and VILA) or off: OCR tokens in the prompt"},
            paper={"accuracy": "table1/VQA-T"},
        ),
    )
}
