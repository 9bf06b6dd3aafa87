"""LLaVA-Bench (in the wild) and MM-Vet: free answers that a language model marks."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...examples import Example, Lazy, Record
from ...generation_evaluator import Submission
from ..judged_evaluator import JudgedEvaluator, Marking
from ..scorers.judge_scorers import (
    LLAVA_BENCH_RULE,
    llava_bench_prompt,
    llava_bench_scores,
    mm_vet_prompt,
    mm_vet_scores,
    parse_mm_vet_score,
    parse_two_scores,
)
from ..sources import Source, get, image_in, read_json, read_json_lines
from .task import Task

OWN_WORDS = "this project's own, so figures are not comparable with published ones"


def answer_settings(source: Source, split: str) -> dict[str, Any]:
    """Return the settings of the data for a result, without options of the judge, on which answers do not depend."""
    options = {key: value for key, value in source.options.items() if not key.startswith("judge_")}
    return replace(source, options=options).settings(split=split)


def _words_of_judge(source: Source) -> tuple[Any, str]:
    """The contents of the file with a judge's words, if one is named, and what the result says of it.

    Raises:
        ValueError: The file is not there, or no object of JSON.
    """
    name = source.options.get("judge_words")
    if not name:
        return None, OWN_WORDS
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{source.task}: no file {name!r}, which judge_words names.")
    words = read_json(path)
    if not isinstance(words, dict):
        raise ValueError(f"{path}: the judge's words are an object of JSON; `sugar-hf evaluate --list` says which.")
    return words, path.name


# ---- LLaVA-Bench ----

LLAVA_W_SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
LLAVA_W_FAILED = (10.0, 0.0)


def load_llava_w(source: Source) -> JudgedEvaluator:
    """Load LLaVA-Bench (in the wild).

    Takes rows of the Hub, or the official `questions.jsonl`, `context.jsonl`, `answers_gpt4.jsonl` and `images`.
    """
    split = source.split or "train"
    words, whose = _words_of_judge(source)
    raw = source.find("questions.jsonl") is not None
    return JudgedEvaluator(
        "llava-w",
        _raw_llava_w(source) if raw else _hub_llava_w(source, split),
        Marking(
            _llava_w_prompt(words, whose),
            lambda record, reply: parse_two_scores(reply),
            score_llava_w,
            system=LLAVA_W_SYSTEM,
            temperature=0.2,
            words=whose,
        ),
        source.judge,
        primary_metric="detail",
        submission=Submission(".jsonl", _write_llava_w, "LLaVA's llava/eval/eval_gpt_review_bench.py"),
        seed=source.seed,
        settings=answer_settings(source, split),
    )


def _hub_llava_w(source: Source, split: str) -> Sequence[Example]:
    rows = source.limited(source.rows(TASKS["llava-w"].hub_id, None, split))

    def build(i: int) -> Example:
        row = rows[i]
        id = str(get(row, "question_id", f"row {i}"))
        return _llava_w(id, row["image"], row, "question", get(row, "caption", id), get(row, "gpt_answer", id))

    return Lazy(len(rows), build)


def _raw_llava_w(source: Source) -> Sequence[Example]:
    file = source.need("questions.jsonl")
    questions, answers = read_json_lines(file), read_json_lines(source.need("answers_gpt4.jsonl"))
    context = source.need("context.jsonl")
    captions = {get(row, "image", str(context)): get(row, "caption", str(context)) for row in read_json_lines(context)}
    if len(answers) != len(questions):
        raise ValueError(f"llava-w: {len(questions)} questions, but {len(answers)} answers in answers_gpt4.jsonl.")
    for question, answer in zip(questions, answers, strict=True):  # the official script pairs them by line, too
        if answer.get("question_id", question.get("question_id")) != question.get("question_id"):
            raise ValueError(
                f"llava-w: question {question.get('question_id')} has the answer to {answer['question_id']} in its "
                "line of answers_gpt4.jsonl. Put both files into one order."
            )
    items = source.limited(list(zip(questions, answers, strict=True)))
    folder = source.need("images")

    def build(i: int) -> Example:
        row, answer = items[i]
        id = str(get(row, "question_id", f"row {i} of {file}"))
        name = get(row, "image", id)
        if name not in captions:
            raise ValueError(f"{context}: no caption of {name}, which question {id} is about.")
        image = image_in(folder, name, id)
        return _llava_w(id, image, row, "text", captions[name], get(answer, "text", f"answer {id}"))

    return Lazy(len(items), build)


def _llava_w(id: str, image: Any, row: Any, field: str, captions: str | list[str], answer: str) -> Example:
    reference = {
        "question": get(row, field, id),
        "context": captions if isinstance(captions, str) else "\n".join(captions),
        "answer": answer,
        "category": get(row, "category", id),
    }
    return Example.of(id, [image, reference["question"]], reference)


def _llava_w_prompt(rules: Any, file: str) -> Callable[[Record], str]:
    def prompt(record: Record) -> str:
        known, rule = record.reference, LLAVA_BENCH_RULE
        if rules is not None:
            key = f"llava_bench_{known['category']}"
            rule = get(get(rules, key, file), "prompt", f"{file}, {key}")
        return llava_bench_prompt(known["question"], known["context"], known["answer"], record.text, rule)

    return prompt


def score_llava_w(records: Sequence[Record], marks: Sequence[tuple[float, float] | None]) -> dict[str, float]:
    """The relative scores: `all`, and `conv`, `detail` and `complex`.

    A reply of the judge that cannot be read counts as -1 for both answers, as it does officially. A sample that
    failed was not judged: it counts as 0, against the full 10 for the reference.
    """
    pairs = [
        LLAVA_W_FAILED if record.prediction is None else mark for record, mark in zip(records, marks, strict=True)
    ]
    found = llava_bench_scores(pairs, [record.reference["category"] for record in records])
    return {"all" if key == "score" else key.removeprefix("score, "): value for key, value in found.items()}


def _write_llava_w(records: Sequence[Record], path: Path) -> None:
    """The answers as LLaVA's `model_vqa.py` writes them; a sample that failed has an empty one."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            id = int(record.id) if record.id.isdecimal() else record.id
            row = {"question_id": id, "prompt": record.reference["question"], "text": record.text}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


# ---- MM-Vet ----

MM_VET_SERVER = "https://huggingface.co/spaces/whyu/MM-Vet_Evaluator"


def load_mm_vet(source: Source) -> JudgedEvaluator:
    """MM-Vet: rows of the Hub, or the official `mm-vet.json` and `images`. The prompt is the question alone."""
    split = source.split or "test"
    words, whose = _words_of_judge(source)
    runs = source.option("judge_runs", "1")
    if not runs.isdecimal() or not int(runs):
        raise ValueError(f"mm-vet: judge_runs={runs!r} is no number of runs, such as 5.")
    raw = source.find("mm-vet.json") is not None
    return JudgedEvaluator(
        "mm-vet",
        _raw_mm_vet(source) if raw else _hub_mm_vet(source, split),
        Marking(
            _mm_vet_prompt(words, whose),
            lambda record, reply: parse_mm_vet_score(reply),
            score_mm_vet,
            max_tokens=16,  # officially 3, which is a grade in GPT-4's tokens; other models need more
            tries=5,  # up to a temperature of 2
            words=whose,
        ),
        source.judge,
        primary_metric="total",
        runs=int(runs),
        submission=Submission(".json", _write_mm_vet, MM_VET_SERVER),
        seed=source.seed,
        settings=answer_settings(source, split),
    )


def _hub_mm_vet(source: Source, split: str) -> Sequence[Example]:
    rows = source.limited(source.rows(TASKS["mm-vet"].hub_id, None, split))

    def build(i: int) -> Example:
        row = rows[i]
        id = str(get(row, "question_id", f"row {i}"))
        id = id if id.startswith("v1_") else f"v1_{id}"
        capabilities = [name.strip() for name in get(row, "capability", id).split(",")]
        return _mm_vet(id, row["image"], row, capabilities)

    return Lazy(len(rows), build)


def _raw_mm_vet(source: Source) -> Sequence[Example]:
    file, folder = source.need("mm-vet.json"), source.need("images")
    items = source.limited(list(read_json(file).items()))

    def build(i: int) -> Example:
        id, row = items[i]
        return _mm_vet(id, image_in(folder, get(row, "imagename", id), id), row, list(get(row, "capability", id)))

    return Lazy(len(items), build)


def _mm_vet(id: str, image: Any, row: Any, capabilities: list[str]) -> Example:
    reference = {"question": get(row, "question", id), "answer": get(row, "answer", id), "capability": capabilities}
    return Example.of(id, [image, reference["question"]], reference)


def _mm_vet_prompt(words: Any, file: str) -> Callable[[Record], str]:
    given: dict[str, Any] = {}
    if words is not None:
        given = {name: get(words, name, file) for name in ("instruction", "examples")}

    def prompt(record: Record) -> str:
        return mm_vet_prompt(record.reference["question"], record.reference["answer"], record.text, **given)

    return prompt


def score_mm_vet(records: Sequence[Record], marks: Sequence[float | None]) -> dict[str, float]:
    """Return means in percent: `total`, and by capability.

    Replies of the judge that cannot be read count as 0, as they do officially. So does a sample that failed, which is
    not judged.
    """
    grades = [0.0 if record.prediction is None else mark for record, mark in zip(records, marks, strict=True)]
    found = mm_vet_scores(grades, [record.reference["capability"] for record in records])
    return {"total" if key == "score" else key.removeprefix("score, "): value for key, value in found.items()}


def _write_mm_vet(records: Sequence[Record], path: Path) -> None:
    rows = {record.id: record.text for record in records}
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


TASKS = {
    task.name: task
    for task in (
        Task(
            "llava-w",
            "LLaVA-Bench (in the wild)",
            "generate",
            load_llava_w,
            "detail",
            hub_id="lmms-lab/llava-bench-in-the-wild",
            split="train",
            options={"judge_words": "LLaVA's rule.json, for the official words to the judge"},
            paper={"detail": "table1/LLaVA-W"},
        ),
        Task(
            "mm-vet",
            "MM-Vet",
            "generate",
            load_mm_vet,
            "total",
            hub_id="lmms-lab/MMVet",
            split="test",
            options={
                "judge_runs": "how often everything is judged, 1 if not given; the paper has 5",
                "judge_words": 'JSON file {"instruction": text, "examples": [[question, truth, prediction, grade]]}',
            },
            paper={"total": "table1/MM-Vet"},
        ),
    )
}
