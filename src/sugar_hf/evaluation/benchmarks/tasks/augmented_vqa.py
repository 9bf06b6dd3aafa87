"""VizWiz and ScienceQA with examples that are retrieved: similar questions, put before the question with answers."""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ....data import BadSampleError, Document, load_image
from ....model.samples_sugar import sample_items
from ...examples import Example, Lazy
from ...generation_evaluator import GenerationEvaluator
from ...knowledge_evaluator import Fill, KnowledgeEvaluator, Pool, View
from ..sources import Source, get, image_in, read_json
from .knowledge_vqa import count_option
from .multiple_choice import load_scienceqa
from .short_answers import LETTER, SHORT, UNANSWERABLE
from .task import Task
from .vqa import load_vizwiz

SFT_FILE = "llava_v1_5_mix665k.json"
_FOLDERS = {"vizwiz": ("vizwiz", "VizWiz", "VizWiz-VQA"), "scienceqa": ("scienceqa", "ScienceQA")}
_PLACEHOLDER = "<image>"


@dataclass(frozen=True)
class Shot:
    """A question with its answer, as it is put before another.

    Args:
        id: Its name.
        image: The image.
        prompt: The question, with what it says of the answer's form.
        answer: The answer.
    """

    id: str
    image: Any
    prompt: str
    answer: str

    def document(self, *which: str) -> Document:
        """What of it is compared: `image`, `question`, or both. Never the answer."""
        parts = {"image": self.image, "question": bare(self.prompt)}
        return Document(self.id, [parts[name] for name in which])


def bare(prompt: str) -> str:
    """A question without the words on the form of its answer, by which a task would be known rather than a topic.

    >>> bare("What is it?\\nAnswer the question using a single word or phrase.")
    'What is it?'
    """
    for words in (LETTER, SHORT, UNANSWERABLE):
        prompt = prompt.removesuffix(words)
    return prompt


def load_rag_vizwiz(source: Source) -> KnowledgeEvaluator:
    """VizWiz as in the task `vizwiz`, with examples from a pool; see [`load_rag`]."""
    return load_rag(source, "vizwiz", load_vizwiz)


def load_rag_scienceqa(source: Source) -> KnowledgeEvaluator:
    """ScienceQA as in the task `scienceqa`, with examples from a pool; see [`load_rag`]."""
    return load_rag(source, "scienceqa", load_scienceqa)


def load_rag(source: Source, name: str, load: Callable[[Source], GenerationEvaluator]) -> KnowledgeEvaluator:
    """A benchmark whose questions get similar ones before them (app. E.4).

    The pool is the training data of VizWiz and ScienceQA, mixed with LLaVA's instruction data, of each row with an
    image the first question. Image and question are compared, never an answer. An example that shows the same image as
    the question, pixel for pixel, is passed over. The paper does not say how examples are put into the prompt: here
    they are turns of the chat before the question, with their answers, best first.

    Args:
        source: A folder with both benchmarks, in folders `vizwiz` and `scienceqa` or side by side, and maybe the
            instruction data.
        name: `vizwiz` or `scienceqa`.
        load: Makes the benchmark's own evaluator.
    """
    view = source.option("view", "whole", ("whole", "image", "text", "average"))
    form = source.option("shots", "turns", tuple(_FILLS))
    which = source.option("pool", "both", ("both", "vizwiz", "scienceqa", "sft"))
    base = load(_of_benchmark(source, name))
    top_k = count_option(source, "top_k", 1)
    pools: dict[str, Sequence[Shot]] = {}
    notes: dict[str, Any] = {}
    if top_k:
        for benchmark, shots in (("vizwiz", _vizwiz_shots), ("scienceqa", _scienceqa_shots)):
            if which in ("both", benchmark):
                pools[benchmark] = shots(_of_benchmark(replace(source, split="train", limit=None), benchmark))
        file = _sft_file(source, is_needed=which == "sft")
        if file is not None:
            pools["sft"], notes = _sft_shots(source, file)
    shot = Lazy(sum(map(len, pools.values())), _chained(list(pools.values())))

    def side(*parts: str) -> Sequence[Document]:
        return Lazy(len(shot), lambda i: shot[i].document(*parts))

    def asked(*parts: str) -> Sequence[Document]:
        return Lazy(len(base.examples), lambda i: _as_shot(base.examples[i], "").document(*parts))

    def entry(i: int) -> Document:
        return Document(shot[i].id, [shot[i].image, shot[i].prompt, shot[i].answer])

    def is_same_image(question: int, number: int) -> bool:
        return _same_image(sample_items(base.examples[question].document.sample)[0], shot[number].image)

    views = {
        "whole": View(asked("image", "question"), "whole"),
        "image": View(asked("image"), "images"),
        "text": View(asked("question"), "questions"),
    }
    sides = {"whole": side("image", "question"), "images": side("image"), "questions": side("question")}
    return KnowledgeEvaluator(
        f"rag-{name}",
        base.examples,
        Pool(Lazy(len(shot), entry), sides, refuses=is_same_image),
        {each: views[each] for each in (("image", "text") if view == "average" else (view,))},
        _FILLS[form],
        base.score,
        primary_metric=base.primary_metric,
        top_k=top_k,
        max_new_tokens=base.max_new_tokens,
        submission=base.submission,
        seed=source.seed,
        settings={
            **base.settings,
            **source.settings(),
            "shots": form,
            "pools": {each: len(of) for each, of in pools.items()},
            **notes,
        },
    )


def _of_benchmark(source: Source, name: str) -> Source:
    """The data of one of the benchmarks: its folder, if the data has one of that name."""
    folder = source.find(*_FOLDERS[name])
    return source if folder is None or not folder.is_dir() else replace(source, data=str(folder))


def _chained(parts: Sequence[Sequence[Shot]]) -> Callable[[int], Shot]:
    ends = list(accumulate(map(len, parts)))

    def build(i: int) -> Shot:
        part = bisect_right(ends, i)
        return parts[part][i - (ends[part - 1] if part else 0)]

    return build


def _as_shot(example: Example, answer: str, prefix: str = "") -> Shot:
    image, prompt = sample_items(example.document.sample)
    return Shot(f"{prefix}{example.id}", image, prompt, answer)


def _vizwiz_shots(source: Source) -> Sequence[Shot]:
    """The training data of VizWiz; the answer is the one that most of the ten gave, the first of equals."""
    file = source.find("train.json")
    if file is None:
        raise FileNotFoundError(
            f"{source.task}: no train.json in {source.data or 'a folder given with --data'}. VizWiz's training data "
            "is not on the Hub: get train.json and the folder train from vizwiz.org, or choose pool=scienceqa."
        )
    examples = load_vizwiz(source).examples

    def build(i: int) -> Shot:
        example = examples[i]
        [(answer, _)] = Counter(example.reference["answers"]).most_common(1)
        return _as_shot(example, answer, "vizwiz ")

    return Lazy(len(examples), build)


def _scienceqa_shots(source: Source) -> Sequence[Shot]:
    examples = load_scienceqa(source).examples

    def build(i: int) -> Shot:
        return _as_shot(examples[i], examples[i].reference["answer"], "scienceqa ")

    return Lazy(len(examples), build)


# ---- LLaVA's instruction data ----


def _sft_file(source: Source, is_needed: bool) -> Path | None:
    said = source.option("sft", "")
    if said == "none":
        return None
    if not said:
        return source.need(SFT_FILE) if is_needed else source.find(SFT_FILE)
    if not Path(said).is_file():
        raise FileNotFoundError(f"{source.task}: sft={said!r}: there is no such file.")
    return Path(said)


def _sft_shots(source: Source, file: Path) -> tuple[Sequence[Shot], dict[str, Any]]:
    """The first question of each row with one image, or of as many rows as the option `sft_samples` says."""
    rows = read_json(file)
    if not isinstance(rows, list):
        raise ValueError(f"{file}: a list of rows with `image` and `conversations` is expected.")
    shown = [row for row in rows if isinstance(row.get("image"), str)]
    notes = {"sft rows left out, not one image": len(rows) - len(shown)}
    if source.option("sft_samples", "all") != "all":
        size = min(count_option(source, "sft_samples", 0), len(shown))
        shown = [shown[i] for i in sorted(random.Random(source.seed).sample(range(len(shown)), size))]
    folder = Path(source.option("sft_images", str(file.parent)))

    def build(i: int) -> Shot:
        row = shown[i]
        name = f"sft {row.get('id', i)}"
        turns = get(row, "conversations", name)
        if len(turns) < 2 or [turn.get("from") for turn in turns[:2]] != ["human", "gpt"]:
            raise BadSampleError(
                "a question and an answer are expected", field="conversations", sample=name, mend="Remove the row"
            )
        question = turns[0]["value"].replace(_PLACEHOLDER, "").strip()
        return Shot(name, image_in(folder, row["image"], name), question, turns[1]["value"])

    return Lazy(len(shown), build), notes


# ---- Prompts ----


def shots_as_turns(question: Sequence[Any], shots: Sequence[Sequence[Any]]) -> Any:
    """A chat: each example as a turn with its answer, then the question."""
    chat: list[dict[str, Any]] = []
    for image, prompt, answer in shots:
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        chat.append({"role": "user", "content": content})
        chat.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    image, prompt = question
    return [
        *chat,
        {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": prompt}]},
    ]


def shots_as_text(question: Sequence[Any], shots: Sequence[Sequence[Any]]) -> Any:
    """One turn, for models without chat template too."""
    lines = [part for image, prompt, answer in shots for part in (image, f"{prompt}\nAnswer: {answer}\n")]
    return [*lines, *question]


_FILLS: dict[str, Fill] = {"turns": shots_as_turns, "text": shots_as_text}


def _same_image(one: Any, other: Any) -> bool:
    """Whether two images have the same pixels; one that cannot be read is no reason to pass over an example."""
    try:
        first, second = load_image(one), load_image(other)
    except BadSampleError:
        return False
    return first.size == second.size and first.tobytes() == second.tobytes()


_OPTIONS = {
    "top_k": "examples put before the question (default 1); 0 asks without",
    "view": "what is compared: whole (image and question in one embedding; the default), image, text, or average "
    "(the mean of the last two; the paper's CLIP)",
    "pool": "both (the default), vizwiz, scienceqa or sft; the instruction data is added to the others if it is there",
    "sft": f"file of LLaVA's instruction data (default: {SFT_FILE} in the folder, if it is there), or none",
    "sft_images": "folder of its images (default: the file's)",
    "sft_samples": "rows of it that are drawn, or all (the default)",
    "shots": "turns (of a chat; the default) or text (in the question's turn)",
}

TASKS = {
    task.name: task
    for task in (
        Task(
            "rag-vizwiz",
            "VizWiz with retrieved examples",
            "both",
            load_rag_vizwiz,
            "accuracy",
            hub_id="lmms-lab/VizWiz-VQA",
            split="val",
            options=_OPTIONS,
            paper={"accuracy": "table4a/VizWiz"},
        ),
        Task(
            "rag-scienceqa",
            "ScienceQA-IMG with retrieved examples",
            "both",
            load_rag_scienceqa,
            "accuracy",
            hub_id="lmms-lab/ScienceQA",
            split="test",
            options=_OPTIONS,
            paper={"accuracy": "table4a/SQA-I"},
        ),
    )
}
