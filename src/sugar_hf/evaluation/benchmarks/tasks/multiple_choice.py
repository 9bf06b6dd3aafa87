"""ScienceQA and MMBench: questions with lettered options."""

import base64
import binascii
import csv
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from ....data import BadSampleError
from ...examples import Example, Lazy, Record
from ...generation_evaluator import GenerationEvaluator, Submission
from ..judged_evaluator import JudgedEvaluator, Marking
from ..scorers.choice_scorers import circular_accuracy, mmbench_choice, science_qa_choice
from ..sources import Source, get, image_in, read_json
from .question_groups import whole_groups
from .short_answers import LETTER, LETTERS, options
from .task import Evaluator, Task
from .vqa import HIDDEN, by_group, mean

# ---- ScienceQA ----

SCIENCE_QA_SPLITS = {"validation": "val"}  # as the official file has it


def load_scienceqa(source: Source) -> GenerationEvaluator:
    """Load ScienceQA, the questions with an image.

    Takes rows of the Hub, or the official `problems.json`, `pid_splits.json` and `images/{split}/{id}/image.png`. The
    prompt is lmms-eval's; LLaVA's lies in its own question file.
    """
    split = source.split or "test"
    examples = _raw_science_qa(source, split) if source.find("problems.json") else _hub_science_qa(source, split)
    return GenerationEvaluator(
        "scienceqa",
        examples,
        score_science_qa,
        primary_metric="accuracy",
        seed=source.seed,
        settings=source.settings(split=split),
    )


def _hub_science_qa(source: Source, split: str) -> Sequence[Example]:
    rows: Any = source.rows(TASKS["scienceqa"].hub_id, "ScienceQA-IMG", "validation" if split == "val" else split)
    rows = source.limited(rows)

    def build(i: int) -> Example:
        row = rows[i]
        return _science_qa(str(i), row["image"], row)  # the rows have no id

    return Lazy(len(rows), build)


def _raw_science_qa(source: Source, split: str) -> Sequence[Example]:
    file = source.need("problems.json")
    problems, splits = read_json(file), read_json(source.need("pid_splits.json"))
    short = SCIENCE_QA_SPLITS.get(split, split)
    if short not in splits:
        raise ValueError(f"scienceqa: no split {split!r}; there are {', '.join(splits)}.")
    ids = [str(id) for id in splits[short]]
    if lacking := [id for id in ids if id not in problems]:
        raise ValueError(f"{file}: no problem {lacking[0]}, which pid_splits.json has in {short}. Are both complete?")
    ids = list(source.limited([id for id in ids if problems[id].get("image")]))
    folder = source.need("images")

    def build(i: int) -> Example:
        row = problems[ids[i]]
        # splits such as minitest are parts of others, in whose folders the images lie
        name = f"{row.get('split') or short}/{ids[i]}/{row['image']}"
        return _science_qa(ids[i], image_in(folder, name, ids[i]), row)

    return Lazy(len(ids), build)


def _science_qa(id: str, image: Any, row: Any) -> Example:
    choices, answer = list(get(row, "choices", id)), int(get(row, "answer", id))
    if not 0 <= answer < len(choices) <= len(LETTERS):
        raise BadSampleError(
            f"{answer} names none of {len(choices)} choices", field="answer", sample=id, mend="Count from 0"
        )
    hint = f"Context: {row['hint']}\n" if row.get("hint") else ""
    prompt = f"{hint}{get(row, 'question', id)}\n{options(choices)}{LETTER}"
    reference = {"answer": LETTERS[answer], "subject": row.get("subject"), "grade": row.get("grade")}
    return Example.of(id, [image, prompt], reference)


def score_science_qa(records: Sequence[Record]) -> dict[str, float]:
    """Share of right letters by LLaVA's rules, over all and by subject and grade."""
    hits = [float(science_qa_choice(record.text) == record.reference["answer"]) for record in records]
    subjects = [record.reference["subject"] for record in records]
    grades = [record.reference["grade"] for record in records]
    return {
        "accuracy": mean(hits),
        **by_group(hits, subjects, "accuracy, subject"),
        **by_group(hits, grades, "accuracy, grade"),
    }


# ---- MMBench ----

MMBENCH_SERVER = "https://mmbench.opencompass.org.cn"
NO_OPENPYXL = (
    '; it takes .xlsx, and openpyxl is not installed (pip install "sugar-hf[eval]"): this is a .tsv to convert'
)
MMBENCH_COLUMNS = ("index", "question", "A", "B", "C", "D", "prediction")
REFERENCED = 64  # characters: an image field that is not longer is the index of another row, as the official files say
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")  # which .xlsx cannot hold


def load_mmbench(source: Source) -> Evaluator:
    """MMBench: rows of the Hub, or the official table `mmbench_{split}_20230712.tsv` with images in base64.

    The rows of the official table are read from an Arrow file that `datasets` makes of it; images stay on disk.
    """
    split = source.split or "dev"
    form = source.option("prompt", "llava", ("llava", "lmms"))
    is_hidden = split in HIDDEN
    file = source.find(f"mmbench_{split}_20230712.tsv", f"mmbench_{split}*.tsv", f"MMBench_{split.upper()}*.tsv")
    rows = _mmbench_table(file) if file is not None else source.rows(TASKS["mmbench"].hub_id, "en", split)
    where = str(file or source.data or TASKS["mmbench"].hub_id)
    if missing := {"index", "question", "image", "A", "B"} - set(rows.column_names):
        raise ValueError(f"{where}: there is no column {', '.join(sorted(missing))}.")
    places = {str(index): place for place, index in enumerate(rows["index"])}
    chosen = whole_groups([int(index) % 10**6 for index in places], source.limit)
    if len(places) < len(rows):
        raise ValueError(f"{where}: {len(rows)} rows have only {len(places)} different values of index.")

    def build(i: int) -> Example:
        row = rows[chosen[i]]
        return _mmbench(row, _mmbench_image(rows, row, places), form, is_hidden)

    examples = Lazy(len(chosen), build)
    suffix, note = (".xlsx", "") if find_spec("openpyxl") else (".tsv", NO_OPENPYXL)
    common: dict[str, Any] = {
        "primary_metric": "accuracy",
        "submission": Submission(suffix, _write_mmbench, MMBENCH_SERVER + note),
        "seed": source.seed,
        "settings": source.settings(split=split, prompt=form),
    }
    if is_hidden or source.judge is None:
        score = None if is_hidden else lambda records: score_mmbench(records, [None] * len(records))
        return GenerationEvaluator("mmbench", examples, score, **common)
    marking = Marking(mmbench_matcher_prompt, _read_match, score_mmbench, max_tokens=256, words="this project's own")
    return JudgedEvaluator("mmbench", examples, marking, source.judge, max_new_tokens=16, **common)


def _mmbench_table(file: Path) -> Dataset:
    """The official table; all cells are texts, since numbers would lose their form, and an option may say "None"."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        names = next(csv.reader(opened, delimiter="\t"), [])
    if not names:
        raise ValueError(f"{file}: the file is empty.")
    features = Features({name: Value("string") for name in names})
    return Dataset.from_csv(str(file), sep="\t", features=features, keep_default_na=False, encoding="utf-8-sig")


def is_blank(value: Any) -> bool:
    """Whether a cell of the table has nothing in it, as the table and its copies say it."""
    return value is None or str(value).strip().lower() in ("", "nan")


def _mmbench_image(rows: Dataset, row: Mapping[str, Any], places: Mapping[str, int]) -> Any:
    """The image of a row, which may be that of another row."""
    image, id = row["image"], str(row["index"])
    if not isinstance(image, str):  # the Hub's
        return image
    seen = {id}
    while 0 < len(image) <= REFERENCED and image in places and image not in seen:
        seen.add(image)
        image = rows[places[image]]["image"]
    if len(image) <= REFERENCED:
        raise BadSampleError(
            f"{image!r} is neither an image nor the index of a row that has one", field="image", sample=id
        )
    try:
        return base64.b64decode(image)
    except binascii.Error:
        return image.encode()  # no image either: the sample is counted as failed when it is asked


def _mmbench(row: Mapping[str, Any], image: Any, form: str, is_hidden: bool) -> Example:
    id = str(row["index"])
    texts: dict[str, str] = {}
    for letter in "ABCD":
        if is_blank(row.get(letter)):
            break
        texts[letter] = str(row[letter])
    question = str(get(row, "question", id))
    lines = options(list(texts.values()))
    hint = None if is_blank(row.get("hint")) else str(row["hint"])
    if form == "llava":
        prompt = "\n".join(part for part in (hint, question, lines) if part is not None) + LETTER
    else:
        prompt = f"{'' if hint is None else f'{hint} '}{question} There are several options:\n{lines}\n{LETTER}"
    reference: dict[str, Any] = {"index": int(id), "question": question, "options": texts}
    if not is_hidden:
        reference["answer"] = str(get(row, "answer", id)).strip()
        if reference["answer"] not in texts:
            raise BadSampleError(f"{reference['answer']!r} is none of {', '.join(texts)}", field="answer", sample=id)
        reference["category"] = row.get("category")
        reference["l2-category"] = row.get("l2-category", row.get("L2-category"))
    return Example.of(id, [image, prompt], reference)


def _choice(record: Record) -> str | None:
    return mmbench_choice(record.text, record.reference["options"]) if record.prediction is not None else None


def score_mmbench(records: Sequence[Record], matched: Sequence[str | None]) -> dict[str, float]:
    """CircularEval, over all and by category and L2 category.

    A reply of which no letter can be inferred is wrong where the judge has not matched it with one; the official
    script draws a letter at random then. `uninferable` counts such replies before a judge was asked, `unmatched`
    after.

    Args:
        records: The replies, those of all rotations.
        matched: The judge's letters.
    """
    inferred = [_choice(record) for record in records]
    letters = [letter or match for letter, match in zip(inferred, matched, strict=True)]
    hits = [letter == record.reference["answer"] for letter, record in zip(letters, records, strict=True)]
    indices = [record.reference["index"] for record in records]
    result = dict(circular_accuracy(indices, hits))
    for name in ("category", "l2-category"):
        groups = [record.reference[name] for record in records]
        if all(group is not None for group in groups):
            found = circular_accuracy(indices, hits, groups)
            result |= {
                key.replace("accuracy", f"accuracy, {name}", 1): value
                for key, value in found.items()
                if key.startswith("accuracy, ")
            }
    answered = [record.prediction is not None for record in records]
    return {
        **result,
        "uninferable": sum(letter is None and said for letter, said in zip(inferred, answered, strict=True)),
        "unmatched": sum(letter is None and said for letter, said in zip(letters, answered, strict=True)),
    }


def mmbench_matcher_prompt(record: Record) -> str | None:
    """What the judge is asked of a reply of which no letter can be inferred; `None` of another.

    It asks what the official prompt asks, in our words: the letter of the option that the reply comes closest to,
    `E` if it means none of them, after two examples.
    """
    if _choice(record) is not None:
        return None
    question, texts = record.reference["question"], record.reference["options"]
    rows = [
        ("What is the largest thing on the table?", {"A": "vase", "B": "teapot", "C": "lamp"}, "a pot for tea", "B"),
        ("What is the largest thing on the table?", {"A": "vase", "B": "teapot", "C": "lamp"}, "a bicycle", "E"),
        (question, texts, record.text, ""),
    ]
    shown = [
        f"Question: {asked}\nOptions: {' '.join(f'{letter}. {text}' for letter, text in given.items())}\n"
        f"Answer: {reply}\nLetter: {letter_said}"
        for asked, given, reply, letter_said in rows
    ]
    task = (
        "A question has lettered options, and somebody has answered it in free words. Which option means the same as "
        "the answer, or comes closest to it? Write its letter and nothing else. If the answer means something else "
        "than every option, write E."
    )
    return "\n\n".join([task, *shown]).rstrip()


def _read_match(record: Record, reply: str) -> str | None:
    return mmbench_choice(reply, record.reference["options"])


def _write_mmbench(records: Sequence[Record], path: Path) -> None:
    """The table of OpenCompass; a sample that failed has an empty prediction."""
    table: list[list[Any]] = [list(MMBENCH_COLUMNS)]
    for record in records:
        known = record.reference
        texts = [known["options"].get(letter, "") for letter in "ABCD"]
        table.append([known["index"], known["question"], *texts, record.text])
    if path.suffix == ".tsv":
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows(table)
        return
    from openpyxl import Workbook

    book = Workbook()
    for number, row in enumerate(table, start=1):
        for column, value in enumerate(row, start=1):
            text = isinstance(value, str)
            cell = book.active.cell(number, column, CONTROLS.sub("", value) if text else value)
            if text:
                cell.data_type = "s"  # a text that starts with "=" is no formula
    book.save(path)


TASKS = {
    task.name: task
    for task in (
        Task(
            "scienceqa",
            "ScienceQA-IMG",
            "generate",
            load_scienceqa,
            "accuracy",
            hub_id="lmms-lab/ScienceQA",
            split="test",
            paper={"accuracy": "table1/SQA-I"},
        ),
        Task(
            "mmbench",
            "MMBench",
            "generate",
            load_mmbench,
            "accuracy",
            hub_id="lmms-lab/MMBench",
            split="dev",
            options={"prompt": "llava or lmms: hint and question on lines of their own, or lmms-eval's sentence"},
            paper={"accuracy": "table1/MMB"},
        ),
    )
}
