"""DEMON-Core: 29 tasks with several images in text, in seven categories."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ....data import BadSampleError, Document
from ...examples import Example, Record
from ...generation_evaluator import finish, predict
from ...generators import as_generator
from ...predictions import PredictionFile
from ..scorers.choice_scorers import demon_clean, demon_image_choice, demon_text_choice
from ..scorers.rouge import rouge_l_demon
from ..sources import Source, get, image_in, read_json
from .task import Task

OPEN, CHOICE = "open-ended", "multi-choice"

#: Categories under the names of the paper's table 2, with their tasks under the names of the official folders.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "MMD": ("MMCoQA", "ALFRED"),
    "VST": ("AESOP", "DiDeMoSV", "FlintstonesSV", "PororoSV", "VIST"),
    "VRI": ("IEdit", "Spot-the-Diff", "Birds-to-Words", "CLEVR-Change"),
    "MMC": ("COMICS_Dialogue", "COMICS_Panel", "RecipeQA_VisualCloze", "RecipeQA_TextCloze"),
    "KGQA": ("WebQA", "TQA", "MultiModalQA"),
    "TRQA": ("SlideVQA", "OCR-VQA", "DocVQA"),
    "MMR": (
        "Fashion200K",
        "NLVR2",
        "nuscenes",
        "VizWiz",
        "MIT-States_StateCoherence",
        "MIT-States_PropertyCoherence",
        "VISION",
        "RecipeQA_ImageCoherence",
    ),
}
OPEN_CATEGORIES = ("MMD", "VST", "VRI")
#: Their choices are `Image A` to `Image D` and stand in the context.
IMAGE_CHOICE = ("COMICS_Panel", "RecipeQA_VisualCloze", "RecipeQA_ImageCoherence")
ALL = tuple(name for names in CATEGORIES.values() for name in names)

#: The longest answers, a choice of ours: neither DEMON's paper nor Sugar's gives any.
MAX_NEW_TOKENS = {OPEN: 512, CHOICE: 128}

_PLACE = re.compile(r"\{(?:image|table)#(\d+)\}")


def question_type(task: str) -> str:
    """Whether a task is open-ended, and scored by ROUGE-L, or multi-choice, and scored by accuracy."""
    return OPEN if any(task in CATEGORIES[name] for name in OPEN_CATEGORIES) else CHOICE


class DemonEvaluator:
    """Holds the samples of DEMON's tasks and measures models on them.

    Args:
        examples: The samples of each task, by its name.
        asked: The tasks that were asked for; those without samples are reported as missing.
        settings: What else the result should say; JSON values.
        seed: Written into the result.
    """

    name = "demon"

    def __init__(
        self,
        examples: Mapping[str, Sequence[Example]],
        asked: Sequence[str] = ALL,
        *,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.examples, self.missing = dict(examples), [name for name in asked if name not in examples]
        self.settings, self.seed = dict(settings or {}), seed
        self.primary_metric: str | None = "mean" if len(self.examples) == len(ALL) else "mean, partial"

    def __call__(
        self, model: Any, processor: Any = None, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model. Arguments and errors are those of [`GenerationEvaluator`].

        Returns:
            In percent, `{category}, {task}` for each task, `{category}` for each category with all its tasks, and
            `mean`, the unweighted mean of the seven categories. A category that lacks tasks gives
            `{category}, partial` instead, and then the mean of what there is is called `mean, partial`;
            `missing tasks` names what was asked for and is not there. Also `n`, `seed`, `failed` (they count as
            wrong) and `settings`.
        """
        generator = as_generator(model, processor)
        size = sum(map(len, self.examples.values()))
        settings = {"task": self.name, "n": size, **self.settings, "seed": self.seed}
        settings |= {"max_new_tokens": MAX_NEW_TOKENS, **generator.settings()}
        records = []
        with PredictionFile(output, settings) as file:
            for name, examples in self.examples.items():
                longest = MAX_NEW_TOKENS[question_type(name)]
                records += predict(examples, generator, file, longest, batch_size, f"demon, {name}")
        missing = {"missing tasks": ", ".join(self.missing)} if self.missing else {}
        return finish(records, score_demon, self.seed, settings) | missing


def score_demon(records: Sequence[Record]) -> dict[str, float]:
    """Scores of tasks, categories and all, as `DemonEvaluator` returns them.

    As in the official scripts, a category is the mean of its tasks' scores, rounded to five places, times 100.
    """
    values: dict[str, list[float]] = {}
    for record in records:
        values.setdefault(record.reference["task"], []).append(sample_score(record))
    tasks = {name: sum(found) / len(found) for name, found in values.items()}
    figures: dict[str, float] = {}
    categories: dict[str, float] = {}
    for category, names in CATEGORIES.items():
        found = {name: tasks[name] for name in names if name in tasks}
        if not found:
            continue
        categories[category] = round(100 * round(sum(found.values()) / len(found), 5), 3)
        figures[category if len(found) == len(names) else f"{category}, partial"] = categories[category]
        figures |= {f"{category}, {name}": 100 * value for name, value in found.items()}
    whole = len(tasks) == len(ALL)
    return {"mean" if whole else "mean, partial": sum(categories.values()) / len(categories), **figures}


def sample_score(record: Record) -> float:
    """The score of a sample, 0 to 1: ROUGE-L, or whether the right choice was made."""
    if record.prediction is None:
        return 0.0
    task, answer = record.reference["task"], record.reference["answer"]
    if question_type(task) == OPEN:
        return rouge_l_demon(record.text, answer)
    if task in IMAGE_CHOICE:
        return float(demon_image_choice(record.text, answer))
    return float(demon_text_choice(record.text, record.reference["choices"], answer))


def load_demon(source: Source) -> DemonEvaluator:
    """DEMON-Core from its official folders, `{task}/core/core.json` and `{task}/core/images`."""
    asked = _asked(source)
    if source.folder is None:
        raise ValueError("demon: it is not on the Hub. Give the folder with --data; see docs/benchmarks.md.")
    folders = _folders(source.folder)
    examples = {name: _examples(source, name, folders[name]) for name in asked if name in folders}
    if not examples:
        looked = f"{{task}}/core/core.json of {', '.join(asked)}"
        raise FileNotFoundError(f"demon: no {looked} in {source.folder}. docs/benchmarks.md says what to get.")
    return DemonEvaluator(examples, asked, settings=source.settings(tasks=list(examples)), seed=source.seed)


def _asked(source: Source) -> list[str]:
    """The tasks that the options `tasks` and `categories` name, in the official order; all if there are none."""
    tasks = {_plain(name): name for name in ALL}
    categories = {name.lower(): names for name, names in CATEGORIES.items()}
    chosen: set[str] = set()
    for name in _listed(source.option("tasks", "")):
        if _plain(name) not in tasks:
            raise ValueError(f"demon: no task {name!r}; there are {', '.join(ALL)}.")
        chosen.add(tasks[_plain(name)])
    for name in _listed(source.option("categories", "")):
        if name.lower() not in categories:
            raise ValueError(f"demon: no category {name!r}; there are {', '.join(CATEGORIES)}.")
        chosen.update(categories[name.lower()])
    return [name for name in ALL if name in chosen or not chosen]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()


def _folders(folder: Path) -> dict[str, Path]:
    """The folder `core` of each task that is there; names may differ in case, `-`, `_` and spaces."""
    names = {_plain(name): name for name in ALL}
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("core/core.json")):
        name = names.get(_plain(path.parent.parent.name))
        if name is None:
            continue
        if name in found:
            raise ValueError(f"demon: {found[name]} and {path.parent} are both of {name}. Keep one.")
        found[name] = path.parent
    return found


def _examples(source: Source, task: str, folder: Path) -> list[Example]:
    """The samples of a task. They are all looked at before the first is asked; image files are opened later."""
    file = folder / "core.json"
    content = read_json(file)
    metadata, rows = get(content, "metadata", str(file)), get(content, "data", str(file))
    kind = metadata.get("question_type")
    if kind and kind != question_type(task):  # ALFRED's is empty
        raise ValueError(f"{file}: question_type is {kind!r}, and {question_type(task)!r} in the benchmark.")
    instructions = get(metadata, "task_instruction", str(file))
    if not rows:
        raise ValueError(f"{file}: there are no samples.")
    return [
        _example(task, row, instructions, folder / "images", f"{task}/{row.get('sample_id', f'row {i}')}")
        for i, row in enumerate(source.limited(rows))
    ]


def _example(task: str, row: Any, instructions: Sequence[str], folder: Path, where: str) -> Example:
    instance, number = get(row, "task_instance", where), int(get(row, "task_instruction_id", where))
    if not 0 <= number < len(instructions):
        raise BadSampleError(
            f"{number} is none of the {len(instructions)} instructions", field="task_instruction_id", sample=where
        )
    images = [image_in(folder, name, where) for name in get(instance, "images_path", where)]
    choices = [str(choice) for choice in instance.get("choice_list") or []]
    answer = str(get(row, "response", where))
    text = instructions[number] + get(instance, "context", where) + choice_text(choices)
    reference = {"task": task, "answer": answer, **({"choices": choices} if choices else {})}
    id = f"{task}/{get(row, 'sample_id', where)}"
    is_text_choice = question_type(task) == CHOICE and task not in IMAGE_CHOICE
    try:
        if is_text_choice and demon_clean(answer) not in map(demon_clean, choices):
            said = f"the response {answer!r:.80} is none of the {len(choices)} choices"
            raise BadSampleError(said, field="task_instance.choice_list", sample=where, mend="Get the file again")
        return Example.of(id, interleave(text, images, where), reference)
    except BadSampleError as error:  # a sample that is at odds with itself must not stop the others
        return Example(Document(id, text), reference, fault=str(error))


def choice_text(choices: Sequence[str]) -> str:
    """The choices as the official script puts them behind the context; nothing if there are none.

    >>> choice_text(["a cat", "a dog"])
    "Choice list:['a cat', 'a dog']. Your answer is:"
    """
    listed = "', '".join(choices)
    return f"Choice list:['{listed}']. Your answer is:" if choices else ""


def interleave(text: str, images: Sequence[Path], where: str) -> list[str | Path]:
    """Put images in the place of `{image#i}` and `{table#i}`, i from 1; white space alone between two is left out.

    >>> interleave("See {image#1} {table#2}.", [Path("a"), Path("b")], "x")
    ['See ', PosixPath('a'), PosixPath('b'), '.']

    Raises:
        BadSampleError: An image has no place, or a place no image.
    """
    pieces = _PLACE.split(text)  # text, number, text, number, ..., text
    numbers = {int(number) for number in pieces[1::2]}
    if numbers != set(range(1, len(images) + 1)):
        said = f"{len(images)} images, but places for {sorted(numbers)}"
        raise BadSampleError(said, field="task_instance.context", sample=where, mend="Get the file again")
    parts: list[str | Path] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append(images[int(piece) - 1])
        elif piece.strip():
            parts.append(piece)
    return parts


TASKS = {
    "demon": Task(
        "demon",
        "DEMON-Core",
        "generate",
        load_demon,
        "mean",
        split="core",
        options={
            "tasks": f"some of the tasks, with commas between: {', '.join(ALL)}",
            "categories": f"some of the categories, with commas between: {', '.join(CATEGORIES)}",
        },
        paper={name: f"table2/{name}" for name in CATEGORIES},
    )
}
