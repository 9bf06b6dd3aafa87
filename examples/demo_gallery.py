"""The pictures of `demo.py`: what the fine-tuned model retrieves and generates, and how two stories align.

The examples are the first ones of the test split, failures included.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sugar_hf.data import load_image
from sugar_hf.evaluation import Block, Card, Example, Section, write_gallery
from sugar_hf.picturebook.retrieval_tasks import RetrievalTask
from sugar_hf.retrieval import explain, plot_alignment
from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix

EXAMPLES = 3
ALIGNMENT_DELTA = 0.3


def write_demo_gallery(
    folder: Path,
    table: Sequence[Sequence[str]],
    tasks: Sequence[RetrievalTask],
    questions: Sequence[Example],
    retrieve: Any,
    generate: Any,
    teacher: Any,
    photos: Sequence[Path],
) -> Path:
    """Write `index.html`, `alignment.png` and `alignment_stories.png` to a folder and return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    alignments = draw_alignments(tasks[-1], retrieve, teacher)
    for name, picture in zip(("alignment.png", "alignment_stories.png"), alignments, strict=True):
        picture.save(folder / name)
    sections = [Section("Before and after", "Held-out combinations; each pool and its size as in the command.", table)]
    sections += [retrieval_section(task, retrieve) for task in tasks]
    sections += [positions_section(tasks[-1], retrieve), answers_section(questions, generate)]
    sections += [dialog_section(tasks[0], retrieve, generate)]
    if photos:
        sections += [photo_section(photos, tasks[0], retrieve, generate)]
    note = (
        "How often the soft alignment of two sequences, as the teachers see them, visits each pair of slices (darker: "
        "more often), their cosines, and the best path. First the sentences of a story against its own pictures, "
        "then a story against the one that the teachers find most like it."
    )
    sections += [Section("Alignment of two sequences", note, pictures=alignments)]
    return write_gallery(folder / "index.html", "Sugar on the picturebook", sections)


def retrieved(results: list[dict[str, Any]], target: int | None = None) -> list[Block]:
    blocks = []
    for place, result in enumerate(results, start=1):
        verdict = "" if target is None else " · right" if result["index"] == target else " · wrong"
        candidate = result["candidate"]
        parts = candidate if isinstance(candidate, list) else [candidate]
        blocks.append(Block("retrieved", parts, f"{place} of {len(results)}, score {result['score']:.2f}{verdict}"))
    return blocks


def retrieval_section(task: RetrievalTask, retrieve: Any) -> Section:
    queries = [{"query": query} for query in task.queries[:EXAMPLES]]
    found = retrieve(queries, candidates=task.candidates, top_k=3)
    cards = [
        Card([Block("given", query["query"]), *retrieved(results, target)])
        for query, results, target in zip(queries, found, task.targets, strict=False)
    ]
    return Section(f"Retrieval: {task.name}", f"Best 3 of {len(task.candidates)} candidates.", cards=cards)


def positions_section(task: RetrievalTask, retrieve: Any) -> Section:
    """One forward pass over a story, one search at the end of each of its slices."""
    query = task.queries[0]
    found = retrieve({"query": query}, candidates=task.candidates, top_k=1, return_positions=True)
    cards = [
        Card([Block("given", [part]), *retrieved(results, task.targets[0])])
        for part, results in zip(query, found, strict=True)
    ]
    return Section("Retrieval at different places", "The best picture after each slice of one story.", cards=cards)


def answers_section(questions: Sequence[Example], generate: Any) -> Section:
    cards = []
    chats = [question.document.load() for question in questions[: 2 * EXAMPLES]]
    for chat, reply, question in zip(chats, generate(chats), questions, strict=False):
        parts = [part.get("image") or part["text"] for part in chat[-1]["content"]]
        right = f"the right answer: {question.reference['answer']}"
        cards.append(Card([Block("given", parts), Block("generated", [reply[0]["generated_text"]], right)]))
    return Section("Questions about pictures", cards=cards)


def ask(image: Image.Image, question: str, generate: Any) -> Block:
    return Block("generated", [generate(question, images=image)[0]["generated_text"]], question)


def dialog_section(task: RetrievalTask, retrieve: Any, generate: Any) -> Section:
    cards = []
    for query in task.queries[EXAMPLES : 2 * EXAMPLES]:
        results = retrieve({"query": query}, candidates=task.candidates, top_k=1)
        image = results[0]["candidate"][0]
        asked = [
            ask(image, question, generate) for question in ("what is in the picture?", "how many things are there?")
        ]
        cards.append(Card([Block("given", query), *retrieved(results), *asked]))
    return Section("Retrieval, then a dialog about what was found", cards=cards)


def photo_section(photos: Sequence[Path], task: RetrievalTask, retrieve: Any, generate: Any) -> Section:
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


def draw_alignments(task: RetrievalTask, retrieve: Any, teacher: Any) -> list[Image.Image]:
    """The sentences of the first story against its pictures, and that story against its nearest other."""
    stories = [[*query, *candidate] for query, candidate in zip(task.queries, task.candidates, strict=True)]
    features = SliceFeatures.pad(teacher.embed(stories))
    ends = torch.tensor([[index, len(story) - 1] for index, story in enumerate(stories)])
    config = StructureLossConfig(label_kernel="aligned", delta=ALIGNMENT_DELTA)
    labels = label_matrix(features, ends, config)
    nearest = int(labels[0].index_fill(0, torch.tensor([0]), -torch.inf).argmax())
    pictures = []
    for query, document in ((stories[0][::2], stories[0][1::2]), (stories[0], stories[nearest])):
        explanation = explain(query, document, retrieve.model, retrieve.processor, teacher=teacher, config=config)
        buffer = io.BytesIO()
        plot_alignment(explanation, which="teacher").savefig(buffer, format="png")
        pictures.append(Image.open(buffer).convert("RGB"))
    return pictures
