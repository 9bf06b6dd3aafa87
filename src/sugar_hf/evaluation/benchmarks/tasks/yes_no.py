"""POPE and MME: questions to be answered by yes or no."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....data import BadSampleError
from ...examples import Example, Lazy, Record
from ...generation_evaluator import GenerationEvaluator
from ..scorers.yes_no_scorers import MME_COGNITION, MME_PERCEPTION, binary_scores, mme_scores, pope_answer
from ..sources import Source, get, image_in, read_json_lines
from .question_groups import whole_groups
from .short_answers import SHORT
from .task import Task

# ---- POPE ----

POPE_SPLITS = ("adversarial", "popular", "random")


def load_pope(source: Source) -> GenerationEvaluator:
    """POPE: rows of the Hub, or the official `coco_pope_{split}.json` and the images of COCO's val2014.

    The split `test` is all three. How many questions each has is in the settings: the official files were changed,
    and `random` has 2,910 in the version that LLaVA uses, 3,000 in others.
    """
    split = source.split or "test"
    if split not in ("test", *POPE_SPLITS):
        raise ValueError(f"pope: no split {split!r}; there are test (all), {', '.join(POPE_SPLITS)}.")
    wanted = POPE_SPLITS if split == "test" else (split,)
    examples: Sequence[Example]
    if source.find("coco_pope_*.json"):
        found = [(name, row) for name in wanted for row in read_json_lines(source.need(f"coco_pope_{name}.json"))]
        items = source.limited(found)
        folder = source.need("val2014")
        categories = [name for name, _ in items]

        def build_raw(i: int) -> Example:
            name, row = items[i]
            id = f"{name}/{get(row, 'question_id', f'row {i}')}"
            return _pope(id, image_in(folder, get(row, "image", id), id), row, "text", "label", name)

        examples = Lazy(len(items), build_raw)
    else:
        rows: Any = source.rows(TASKS["pope"].hub_id, None, "test")
        rows = source.limited(rows.select([i for i, name in enumerate(rows["category"]) if name in wanted]))
        categories = list(rows["category"])

        def build(i: int) -> Example:
            row = rows[i]
            id = f"{row['category']}/{row['question_id']}"
            return _pope(id, row["image"], row, "question", "answer", row["category"])

        examples = Lazy(len(rows), build)
    return GenerationEvaluator(
        "pope",
        examples,
        score_pope,
        primary_metric="f1",
        seed=source.seed,
        settings=source.settings(split=split, questions=dict(sorted(Counter(categories).items()))),
    )


def _pope(id: str, image: Any, row: Any, question: str, label: str, category: str) -> Example:
    reference = {"label": _yes_no(get(row, label, id), label, id), "category": category}
    return Example.of(id, [image, get(row, question, id) + SHORT], reference)


def _yes_no(value: Any, field: str, id: str) -> str:
    said = str(value).strip().lower().rstrip(".")
    if said not in ("yes", "no"):
        raise BadSampleError(f"{value!r} is neither yes nor no", field=field, sample=id)
    return said


def score_pope(records: Sequence[Record]) -> dict[str, float]:
    """Return the scores of each split, and their means `f1`, `accuracy` and `yes_ratio`.

    LLaVA's headline is `f1`. It is the mean over those splits that are there: see `questions` in the settings.
    """
    figures: dict[str, dict[str, float]] = {}
    for name in sorted({record.reference["category"] for record in records}):
        own = [record for record in records if record.reference["category"] == name]
        said = [None if record.prediction is None else pope_answer(record.text) for record in own]
        figures[name] = binary_scores(said, [record.reference["label"] for record in own])
    names = ("f1", "accuracy", "yes_ratio")
    means = {key: sum(own[key] for own in figures.values()) / len(figures) for key in names}
    each = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    return {**means, **{f"{key}, {name}": own[key] for name, own in figures.items() for key in each}}


# ---- MME ----

MME_SUBTASKS = (*MME_PERCEPTION, *MME_COGNITION)
YES_OR_NO = " Please answer yes or no."
SUFFIXES = (".jpg", ".png", ".jpeg")


def load_mme(source: Source) -> GenerationEvaluator:
    """MME: rows of the Hub, or the official folder with one folder for each subtask.

    A subtask has a text file for each image, `question<tab>answer` in two lines, beside the images or in
    `questions_answers_YN` beside `images`; or text files with `image<tab>question<tab>answer`. The request to answer
    yes or no is taken off the question, and LLaVA's request for a short answer put there.
    """
    examples: Sequence[Example]
    folders = [found for name in MME_SUBTASKS if (found := source.find(name)) is not None and found.is_dir()]
    if folders and source.find("*.txt"):
        items = [row for folder in folders for row in _raw_mme(folder)]
        keys = [(category, name) for category, name, *_ in items]
        chosen = whole_groups(_pairs(keys), source.limit)
        numbers = _numbered(keys)

        def build_raw(i: int) -> Example:
            place = chosen[i]
            category, name, folder, question, answer = items[place]
            id = f"{category}/{name}"
            image = image_in(folder, name, id)
            return _mme(id, numbers[place], image, question, answer, category)

        examples = Lazy(len(chosen), build_raw)
    else:
        rows = source.rows(TASKS["mme"].hub_id, None, source.split or "test")
        keys = list(zip(rows["category"], rows["question_id"], strict=True))
        chosen = whole_groups(_pairs(keys), source.limit)
        numbers = _numbered(keys)

        def build(i: int) -> Example:
            row = rows[chosen[i]]
            category, id = row["category"], row["question_id"]
            question, answer = get(row, "question", id), get(row, "answer", id)
            return _mme(id, numbers[chosen[i]], row["image"], question, answer, category)

        examples = Lazy(len(chosen), build)
    return GenerationEvaluator(
        "mme",
        examples,
        score_mme,
        primary_metric="perception",
        seed=source.seed,
        settings=source.settings(split=source.split or "test"),
    )


def _raw_mme(folder: Path) -> list[tuple[str, str, Path, str, str]]:
    """Subtask, image name, its folder, question and answer, by file and line."""
    images, texts = folder / "images", folder / "questions_answers_YN"
    if not images.is_dir():
        images = texts = folder
    if not (files := sorted(texts.glob("*.txt"))):
        raise FileNotFoundError(f"mme: no questions (*.txt) in {texts}. docs/benchmarks.md says what to get.")
    pictures = {path.stem: path.name for path in sorted(images.iterdir()) if path.suffix.lower() in SUFFIXES}
    rows = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if not line.strip():
                continue
            parts = line.strip().split("\t")
            if len(parts) == 2:
                parts = [pictures.get(file.stem, f"{file.stem}{SUFFIXES[0]}"), *parts]
            if len(parts) != 3:
                raise BadSampleError(
                    f"{len(parts)} fields between tabs",
                    file=str(file),
                    line=number,
                    mend="Write question and answer, or image, question and answer",
                )
            rows.append((folder.name, parts[0], images, parts[1], parts[2]))
    return rows


def _pairs(keys: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same, if each is there twice."""
    for (category, name), count in Counter(keys).items():
        if category not in MME_SUBTASKS:
            raise ValueError(f"mme: {category!r} is no subtask; there are {', '.join(MME_SUBTASKS)}.")
        if count != 2:
            raise ValueError(f"mme: {category}, image {name}: {count} questions, and there should be two.")
    return keys


def _numbered(keys: list[tuple[str, str]]) -> list[int]:
    """For each key, the how many-th of its kind it is, from 1."""
    seen: Counter[tuple[str, str]] = Counter()
    numbers = []
    for key in keys:
        seen[key] += 1
        numbers.append(seen[key])
    return numbers


def _mme(image_id: str, number: int, image: Any, question: str, answer: str, category: str) -> Example:
    id = f"{image_id} {number}"
    reference = {"category": category, "image": image_id, "answer": _yes_no(answer, "answer", id)}
    return Example.of(id, [image, question.strip().replace(YES_OR_NO, "") + SHORT], reference)


def score_mme(records: Sequence[Record]) -> dict[str, float]:
    """See `mme_scores`; sums are over the subtasks that are there."""
    return mme_scores(
        [record.reference["category"] for record in records],
        [record.reference["image"] for record in records],
        [record.prediction for record in records],
        [record.reference["answer"] for record in records],
    )


TASKS = {
    task.name: task
    for task in (
        Task(
            "pope",
            "POPE",
            "generate",
            load_pope,
            "f1",
            hub_id="lmms-lab/POPE",
            split="test",
            paper={"f1": "table1/POPE"},
        ),
        Task(
            "mme",
            "MME",
            "generate",
            load_mme,
            "perception",
            hub_id="lmms-lab/MME",
            split="test",
            paper={"perception": "table1/MME-P", "cognition": "table1/MME-C"},
        ),
    )
}
