"""The pictures of `demo.py`: what the fine-tuned model retrieves and generates, and how two stories align.

The examples are the first ones of the test split, failures included.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from PIL import Image

from sugar_hf.data import load_image
from sugar_hf.evaluation import AnswerEvaluator, Block, Card, RetrievalEvaluator, Section, write_gallery
from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix, soft_alignment, triple_distance

EXAMPLES = 3
ALIGNMENT_DELTA = 0.3


def write_demo_gallery(
    folder: Path,
    table: Sequence[Sequence[str]],
    evaluators: Sequence[Any],
    retrieve: Any,
    generate: Any,
    teacher: Any,
    photos: Sequence[Path],
) -> Path:
    """Write `index.html` and `alignment.png` to a folder and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    *tasks, answers = evaluators
    alignment = draw_alignments(tasks[-1], teacher)
    alignment.save(folder / "alignment.png")
    sections = [Section("Before and after", "Held-out combinations; each pool and its size as in the command.", table)]
    sections += [retrieval_section(task, retrieve) for task in tasks]
    sections += [positions_section(tasks[-1], retrieve), answers_section(answers, generate)]
    sections += [dialog_section(tasks[0], retrieve, generate)]
    if photos:
        sections += [photo_section(photos, tasks[0], retrieve, generate)]
    note = (
        "How often the soft alignment of two sequences visits each pair of slices. Left: the sentences of a story "
        "against its own pictures. Right: a story against the one that the teachers find most like it."
    )
    sections += [Section("Alignment of two sequences", note, pictures=[alignment])]
    return write_gallery(folder / "index.html", "Sugar on the picturebook", sections)


def retrieved(results: list[dict[str, Any]], target: int | None = None) -> list[Block]:
    blocks = []
    for place, result in enumerate(results, start=1):
        verdict = "" if target is None else " · right" if result["index"] == target else " · wrong"
        candidate = result["candidate"]
        parts = candidate if isinstance(candidate, list) else [candidate]
        blocks.append(Block("retrieved", parts, f"{place} of {len(results)}, score {result['score']:.2f}{verdict}"))
    return blocks


def retrieval_section(task: RetrievalEvaluator, retrieve: Any) -> Section:
    queries = [{"query": query} for query in task.queries[:EXAMPLES]]
    found = retrieve(queries, candidates=task.candidates, top_k=3)
    cards = [
        Card([Block("given", query["query"]), *retrieved(results, target[0])])
        for query, results, target in zip(queries, found, task.targets, strict=False)
    ]
    return Section(f"Retrieval: {task.name}", f"Best 3 of {len(task.candidates)} candidates.", cards=cards)


def positions_section(task: RetrievalEvaluator, retrieve: Any) -> Section:
    """One forward pass over a story, one search at the end of each of its slices."""
    query = task.queries[0]
    found = retrieve({"query": query}, candidates=task.candidates, top_k=1, return_positions=True)
    cards = [
        Card([Block("given", [part]), *retrieved(results, task.targets[0][0])])
        for part, results in zip(query, found, strict=True)
    ]
    return Section("Retrieval at different places", "The best picture after each slice of one story.", cards=cards)


def answers_section(task: AnswerEvaluator, generate: Any) -> Section:
    conversations, answers = task.conversations[: 2 * EXAMPLES], task.answers
    cards = []
    for conversation, reply, answer in zip(conversations, generate(conversations), answers, strict=False):
        parts = [part.get("image") or part["text"] for part in conversation[-1]["content"]]
        generated = Block("generated", [reply[0]["generated_text"]], f"the right answer: {answer}")
        cards.append(Card([Block("given", parts), generated]))
    return Section("Questions about pictures", cards=cards)


def ask(image: Image.Image, question: str, generate: Any) -> Block:
    return Block("generated", [generate(question, images=image)[0]["generated_text"]], question)


def dialog_section(task: RetrievalEvaluator, retrieve: Any, generate: Any) -> Section:
    cards = []
    for query in task.queries[EXAMPLES : 2 * EXAMPLES]:
        results = retrieve({"query": query}, candidates=task.candidates, top_k=1)
        image = results[0]["candidate"][0]
        asked = [
            ask(image, question, generate) for question in ("what is in the picture?", "how many things are there?")
        ]
        cards.append(Card([Block("given", query), *retrieved(results), *asked]))
    return Section("Retrieval, then a dialog about what was found", cards=cards)


def photo_section(photos: Sequence[Path], task: RetrievalEvaluator, retrieve: Any, generate: Any) -> Section:
    images = [load_image(photo) for photo in photos]
    cards = []
    for photo, image in zip(photos, images, strict=True):
        results = retrieve(image, candidates=task.candidates, top_k=1)
        asked = [
            ask(image, question, generate)
            for question in ("what is in the picture?", "which colour is the background?")
        ]
        cards.append(Card([Block("given", [photo.name, image]), *retrieved(results), *asked]))
    note = "The mini model has seen nothing but drawn glyphs: do not expect it to know your photographs."
    return Section("Your own pictures", note, cards=cards)


def draw_alignments(task: RetrievalEvaluator, teacher: Any) -> Image.Image:
    """Two heat maps: sentences against pictures of the first story, and that story against its nearest other."""
    stories = [[*query, *candidate] for query, candidate in zip(task.queries, task.candidates, strict=True)]
    features = SliceFeatures.pad(teacher.embed(stories))
    ends = torch.tensor([[index, len(story) - 1] for index, story in enumerate(stories)])
    labels = label_matrix(features, ends, StructureLossConfig(label_kernel="aligned", delta=ALIGNMENT_DELTA))
    nearest = int(labels[0].index_fill(0, torch.tensor([0]), -np.inf).argmax())
    pairs = [(stories[0][::2], stories[0][1::2]), (stories[0], stories[nearest])]
    figure, axes = plt.subplots(1, 2, figsize=(17, 8), gridspec_kw={"width_ratios": [1, 1.2]})
    for axis, (rows, columns) in zip(axes, pairs, strict=True):
        first, second = (SliceFeatures.pad(teacher.embed([sample])) for sample in (rows, columns))
        distances = triple_distance(first, second)[0, 0]
        sigma = ALIGNMENT_DELTA * ((len(rows) + len(columns)) / 2) ** 0.5
        draw_heat_map(axis, soft_alignment(distances, sigma).numpy(), rows, columns)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return Image.open(buffer).convert("RGB")


def draw_heat_map(axis: Any, visits: np.ndarray, rows: list[Any], columns: list[Any]) -> None:
    shown = axis.imshow(visits, cmap="magma", vmin=0, vmax=1, aspect="auto")
    axis.figure.colorbar(shown, ax=axis, label="expected visits")
    axis.set_xticks(range(len(columns)), [label(part) for part in columns], rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(rows)), [label(part) for part in rows], fontsize=8)
    for index, part in enumerate(columns):
        if isinstance(part, Image.Image):
            put_picture(axis, part, (index, -0.5), (0, 24))
    for index, part in enumerate(rows):
        if isinstance(part, Image.Image):
            put_picture(axis, part, (-0.5, index), (-24, 0))


def label(part: Any) -> str:
    return "" if isinstance(part, Image.Image) else part if len(part) < 44 else f"{part[:41]}..."


def put_picture(axis: Any, picture: Image.Image, place: tuple[float, float], offset: tuple[int, int]) -> None:
    thumbnail = OffsetImage(np.asarray(picture), zoom=0.4)
    box = AnnotationBbox(
        thumbnail, place, xybox=offset, boxcoords="offset points", frameon=False, annotation_clip=False
    )
    axis.add_artist(box)
