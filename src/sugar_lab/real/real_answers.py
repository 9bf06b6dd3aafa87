"""Answers from documents: what retrieval adds to a small language model, and whether a paragraph's place counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from sugar_hf.data import Document
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.backbone_sugar import evaluation_mode

from .manuals import slices_of, text_of
from .short_questions import ShortQuestion, is_right

PLACES = 6
NEW_TOKENS = 24
LONGEST = 2000  # characters of a document in a prompt
PARAGRAPH = 60  # characters from which a text may be a distractor
ASK = "Answer the question in a few words."
READ = "Answer the question in a few words, with the help of this text.\n\n{documents}\n\nQuestion: {question}"

#: Of questions to the numbers of the documents that were found, best first.
Search = Callable[[Sequence[str]], Sequence[Sequence[int]]]


def prompt(question: str, documents: Sequence[str]) -> list[dict[str, Any]]:
    """Return the chat that asks a question, with texts in front of it if there are any."""
    content = f"{ASK}\n\nQuestion: {question}"
    if documents:
        content = READ.format(documents="\n\n".join(text[:LONGEST] for text in documents), question=question)
    return [{"role": "user", "content": content}]


@torch.inference_mode()
def answers(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    prompts: Sequence[list[dict[str, Any]]],
    batch_size: int = 8,
) -> list[str]:
    """Return what the model answers, greedily.

    Args:
        model: The model.
        processor: Its processor.
        prompts: The chats.
        batch_size: Chats at once.
    """
    said = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number][0]["content"]))
    with evaluation_mode(model):
        for start in tqdm(range(0, len(order), batch_size), desc="Answers", unit="batch"):
            part = order[start : start + batch_size]
            batch = processor(
                [prompts[number] for number in part], add_generation_prompt=True, padding_side="left"
            ).to(model.device)
            batch.pop("slice_map")
            tokens = model.generate(**batch, max_new_tokens=NEW_TOKENS, do_sample=False)
            texts = processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            for number, text in zip(part, texts, strict=True):
                said[number] = text.strip()
    return said


def ways(
    questions: Sequence[ShortQuestion], corpus: Sequence[Document], searches: dict[str, Search]
) -> dict[str, list[list[str]]]:
    """Return the texts that go into the prompt of each question, by the way they were found.

    Args:
        questions: The questions.
        corpus: The sections.
        searches: Ways to find sections, of which the first goes into the prompt.

    Returns:
        `none`, `right` (the section of the answer), and the names of the searches.
    """
    place = {document.id: number for number, document in enumerate(corpus)}
    texts = [text_of(slices_of(document)) for document in corpus]
    found: dict[str, list[list[str]]] = {
        "none": [[] for _ in questions],
        "right": [[texts[place[question.section]]] for question in questions],
    }
    for name, search in searches.items():
        hits = search([question.question for question in questions])
        found[name] = [[texts[numbers[0]]] for numbers in hits]
    return found


def places(
    questions: Sequence[ShortQuestion], corpus: Sequence[Document], search: Search
) -> dict[str, tuple[list[int], list[list[str]]]]:
    """Return, for each place, which questions are asked, and their paragraphs with the right one at the place.

    The distractors are the longest paragraphs of the sections that a search finds and that do not hold the answer.

    Args:
        questions: The questions.
        corpus: The sections.
        search: Finds sections that are like the question.
    """
    section = {document.id: document for document in corpus}
    hits = search([question.question for question in questions])
    asked: list[int] = []
    rows: list[tuple[str, list[str]]] = []
    for number, (question, numbers) in enumerate(zip(questions, hits, strict=True)):
        right = [
            part for part in slices_of(section[question.section]) if isinstance(part, str) and is_right(question, part)
        ]
        others = []
        for hit in numbers:
            parts = [part for part in slices_of(corpus[hit]) if isinstance(part, str) and len(part) >= PARAGRAPH]
            if corpus[hit].id != question.section and parts and not any(is_right(question, part) for part in parts):
                others.append(max(parts, key=len)[: LONGEST // PLACES])
            if len(others) == PLACES - 1:
                break
        if right and len(others) == PLACES - 1:
            asked.append(number)
            rows.append((right[0], others))
    return {
        f"place {place + 1}": (asked, [[*others[:place], right, *others[place:]] for right, others in rows])
        for place in range(PLACES)
    }


def hits_of(questions: Sequence[ShortQuestion], said: Sequence[str]) -> dict[str, float]:
    """Return 1 or 0 for each question, by its item."""
    return {question.item: float(is_right(question, text)) for question, text in zip(questions, said, strict=True)}


def ranked(scores: np.ndarray) -> list[list[int]]:
    """Return the 50 best documents for each question, best first, from scores (questions, documents)."""
    return [np.argsort(-row, kind="stable")[:50].tolist() for row in scores]


def kept(search: Search) -> Search:
    """Return a search that remembers what it has found."""
    known: dict[tuple[str, ...], Sequence[Sequence[int]]] = {}

    def found(questions: Sequence[str]) -> Sequence[Sequence[int]]:
        key = tuple(questions)
        if key not in known:
            known[key] = search(questions)
        return known[key]

    return found
