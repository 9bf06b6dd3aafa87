"""Winoground and MMVP-VLM: two texts and two images, of which each text belongs to one."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....data import BadSampleError
from ...examples import Example, Lazy, Record
from ...generation_evaluator import GenerationEvaluator
from ...metrics.pair_metrics import pair_accuracy, pair_hits, winoground_scores
from ...ranking_evaluator import SCORINGS, Pair, PairsEvaluator
from ..scorers.choice_scorers import ab_choice
from ..sources import Source, get, image_in, read_json_lines, read_table
from .task import Task
from .vqa import by_group, mean

SCORING = "similarity of the embeddings (the default), or match: BLIP-2's matching head"

# ---- Winoground ----


def load_winoground(source: Source) -> PairsEvaluator:
    """Winoground: rows of the Hub, or `examples.jsonl` and the images."""
    items: Sequence[Pair]
    if (file := source.find("examples.jsonl")) is not None:
        folder, rows = source.need("images"), source.limited(read_json_lines(file))

        def build_raw(i: int) -> Pair:
            row, id = rows[i], str(get(rows[i], "id", f"row {i} of {file}"))
            return _winoground(row, [image_in(folder, f"{get(row, f'image_{k}', id)}.png", id) for k in (0, 1)])

        items = Lazy(len(rows), build_raw)
    else:
        table = source.limited(source.rows(TASKS["winoground"].hub_id, None, source.split or "test"))
        items = Lazy(len(table), lambda i: _winoground(row := table[i], [row["image_0"], row["image_1"]]))
    return PairsEvaluator(
        "winoground",
        items,
        lambda scores, groups: winoground_scores(scores),
        primary_metric="image",
        scoring=source.option("scoring", "similarity", SCORINGS),
        seed=source.seed,
        settings=source.settings(split=source.split or "test"),
    )


def _winoground(row: Any, images: Sequence[Any]) -> Pair:
    id = str(row["id"])
    return Pair(id, (get(row, "caption_0", id), get(row, "caption_1", id)), (images[0], images[1]))


# ---- MMVP-VLM ----


def mmvp_prompt(first: str, second: str) -> str:
    """The question of the paper's appendix; the image stands before it.

    >>> mmvp_prompt("a cat", "a dog")
    'which choice meets the first image:\\nA.a cat\\nB.a dog\\n.please answer in A or B'
    """
    return f"which choice meets the first image:\nA.{first}\nB.{second}\n.please answer in A or B"


def load_mmvp(source: Source) -> GenerationEvaluator:
    """MMVP-VLM as questions with two choices, as in the paper: `Questions.csv` and `MLLM_VLM Images`.

    With the option `swap`, all is asked a second time with the statements exchanged.
    """
    swap = source.option("swap", "off", ("on", "off")) == "on"
    return GenerationEvaluator(
        "mmvp",
        mmvp_examples(_mmvp(source), source.seed, swap),
        score_mmvp,
        primary_metric="mean accuracy",
        seed=source.seed,
        settings=source.settings(),
    )


def mmvp_examples(pairs: Sequence[Pair], seed: int, swap: bool = False) -> Lazy[Example]:
    """Questions with two choices about pairs of images, which `score_mmvp` scores.

    Each image of a pair is asked with both statements. Which of the two is A is drawn for each pair and is the same
    for both its images: A is right for one of them and B for the other, so a model that always gives one letter gets
    half of the questions and none of the pairs.

    Args:
        pairs: The pairs; their texts are the statements.
        seed: Draws the letters.
        swap: Ask all a second time with the statements exchanged.
    """
    draw = random.Random(seed)
    first = [draw.randrange(2) for _ in range(len(pairs))]  # the number of the statement that is A

    def build(i: int) -> Example:
        order, number, side = i // (2 * len(pairs)), i // 2 % len(pairs), i % 2
        pair, a = pairs[number], first[number] ^ order
        prompt = mmvp_prompt(pair.texts[a], pair.texts[1 - a])
        reference = {"answer": "A" if side == a else "B", "type": pair.group, "swapped": bool(order)}
        id = f"{pair.id}/{side + 1}{', swapped' if order else ''}"
        return Example.of(id, [pair.images[side], prompt], reference)

    return Lazy((4 if swap else 2) * len(pairs), build)


def score_mmvp(records: Sequence[Record]) -> dict[str, float]:
    """Accuracy of the questions: of all, of each type, and the mean over types, which is the paper's; and of pairs."""
    figures: dict[str, float] = {}
    for swapped in (False, True):
        mine = [record for record in records if record.reference["swapped"] is swapped]
        if not mine:
            continue
        hits = [float(ab_choice(record.text) == record.reference["answer"]) for record in mine]
        types = [record.reference["type"] for record in mine]
        by_type = by_group(hits, types, "accuracy")
        pairs = pair_hits(np.array(hits).reshape(-1, 2), types[::2])
        found = {
            "mean accuracy": float(np.mean(list(by_type.values()))),
            "accuracy": mean(hits),
            **by_type,
            **{f"pair {key}": value for key, value in pairs.items()},
        }
        figures |= {f"swapped {key}" if swapped else key: value for key, value in found.items()}
    return figures


def load_mmvp_embed(source: Source) -> PairsEvaluator:
    """MMVP-VLM by embeddings, as its authors measure CLIP: `a photo of {statement}` should prefer its image."""
    pairs = [
        Pair(pair.id, (f"a photo of {pair.texts[0]}", f"a photo of {pair.texts[1]}"), pair.images, pair.group)
        for pair in _mmvp(source)
    ]
    return PairsEvaluator(
        "mmvp-embed",
        pairs,
        pair_accuracy,
        primary_metric="accuracy",
        scoring=source.option("scoring", "similarity", SCORINGS),
        seed=source.seed,
        settings=source.settings(),
    )


def _mmvp(source: Source) -> list[Pair]:
    """The pairs: each is an odd row and the even one after it."""
    file, folder = source.need("Questions.csv"), source.need("MLLM_VLM Images")
    rows = [{str(key).strip().lower(): value for key, value in row.items()} for row in read_table(file)]
    if len(rows) % 2:
        raise ValueError(f"{file}: {len(rows)} rows are no pairs. Get the file again.")
    pairs = [_mmvp_pair(rows[i], rows[i + 1], folder, f"row {i + 2} of {file}") for i in range(0, len(rows), 2)]
    return list(source.limited(pairs))


def _mmvp_pair(odd: dict[str, str], even: dict[str, str], folder: Path, where: str) -> Pair:
    ids = [get(row, "question id", where).strip() for row in (odd, even)]
    kinds = [get(row, "type", where).strip() for row in (odd, even)]
    texts = [get(row, "statement", where).strip() for row in (odd, even)]
    if [id.isdigit() and int(id) % 2 for id in ids] != [1, 0] or kinds[0] != kinds[1]:
        said = f"{ids[0]} ({kinds[0]}) and {ids[1]} ({kinds[1]}) are no pair"
        mend = "An odd number and an even one of one type follow each other in the official file; keep its order"
        raise BadSampleError(said, field="Question ID", sample=where, mend=mend)
    images = [image_in(folder, f"{kinds[0]}/{id}.jpg", id) for id in ids]
    return Pair(ids[0], (texts[0], texts[1]), (images[0], images[1]), kinds[0])


TASKS = {
    task.name: task
    for task in (
        Task(
            "winoground",
            "Winoground",
            "embed",
            load_winoground,
            "image",
            hub_id="facebook/winoground",
            options={"scoring": SCORING},
            paper={name: f"table3c/{name}" for name in ("text", "image", "group")},
        ),
        Task(
            "mmvp",
            "MMVP-VLM",
            "generate",
            load_mmvp,
            "mean accuracy",
            options={"swap": "on: ask all a second time, with the statements exchanged; off is the default"},
            paper={"mean accuracy": "table6/mean"},
        ),
        Task(
            "mmvp-embed",
            "MMVP-VLM by embeddings",
            "embed",
            load_mmvp_embed,
            "accuracy",
            options={"scoring": SCORING},
            paper={"accuracy": "table6/pair"},
            folder="mmvp",
        ),
    )
}
