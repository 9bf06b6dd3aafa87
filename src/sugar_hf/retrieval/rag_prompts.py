"""From a question and the documents that were found for it to the prompt of an answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.samples_sugar import Sample, first_slices, is_chat, parse_sample
from .hits import Hit
from .prefix_cache import Features

Parts = list[str | Image.Image]
_PLACE = re.compile(r"\{(documents|question)\}")


# ---- Questions, and the words around them ----


@dataclass(frozen=True)
class RagTemplate:
    """The words around a question and what was found for it.

    Args:
        text: Has `{documents}` and `{question}`, each once; their order is that of the prompt. With the question
            first, what the model computes of it for the search is used again for the answer.
        without: The prompt if nothing was found; has `{question}`.
        is_numbered: Put `[1]`, `[2]`, ... before the documents, so that an answer can cite them.

    Raises:
        ValueError: A place is missing, comes twice, or is another one.
    """

    text: str
    without: str = "{question}"
    is_numbered: bool = False

    def __post_init__(self) -> None:
        for name, text, places in (
            ("text", self.text, ["documents", "question"]),
            ("without", self.without, ["question"]),
        ):
            if sorted(_PLACE.findall(text)) != places:
                wanted = " and ".join(f"{{{place}}}" for place in places)
                raise ValueError(f"template, {name}: needs {wanted}, once each and no other, got {text!r}.")

    @property
    def is_question_first(self) -> bool:
        """Whether the prompt begins with the question itself."""
        return self.text.lstrip().startswith("{question}")

    def fill(self, question: Parts, documents: Sequence[Parts]) -> Parts:
        """Return the parts of the prompt in order."""
        if self.is_numbered:
            documents = [_numbered(parts, number) for number, parts in enumerate(documents, 1)]
        found: dict[str, Parts] = {"question": question, "documents": [part for parts in documents for part in parts]}
        filled: Parts = []
        for number, piece in enumerate(_PLACE.split(self.text if documents else self.without)):
            if number % 2:  # the name of a place
                filled += found[piece]
            elif piece.strip():
                filled.append(piece.strip())
        return filled


#: The paper's prompt for knowledge VQA.
KNOWLEDGE_VQA = RagTemplate(
    "Please answer the questions based on the pictures. If the reference information is useful, please use it. "
    "Otherwise, please ignore the reference information. Reference information: {documents} {question}"
)
#: The same with the question first.
QUESTION_FIRST = RagTemplate(
    "{question} Please answer the question. If the reference information is useful, please use it. Otherwise, please "
    "ignore the reference information. Reference information: {documents}"
)
#: With numbered documents, which the answer cites.
CITING = RagTemplate(
    "Please answer the question with the numbered reference information. After each statement, name the reference it "
    "rests on by its number, such as [1]. Reference information: {documents} {question}",
    is_numbered=True,
)


def _numbered(parts: Parts, number: int) -> Parts:
    """Put the number of a document before its first part."""
    first, *rest = parts
    return [f"[{number}] {first}", *rest] if isinstance(first, str) else [f"[{number}]", first, *rest]


@dataclass(frozen=True)
class RagHit(Hit):
    """A document that was found for a question.

    Args:
        used: How many of its slices are in the prompt, from its first; 0 if it was left out.
        slices: How many it has.
    """

    used: int = 0
    slices: int = 0


@dataclass(frozen=True)
class Question:
    """A question, and the conversation that it belongs to.

    Args:
        parts: Texts and images of the user's last turn.
        history: The turns before it.
        name: What errors call it.
    """

    parts: Parts
    history: tuple[Mapping[str, Any], ...] = ()
    name: str = "question"

    @classmethod
    def read(cls, sample: Sample | Mapping[str, Any], name: str = "question") -> "Question":
        """Read a sample of any form, or a chat that ends with the user's turn.

        Raises:
            ValueError: It is empty or malformed, or the chat ends otherwise.
        """
        if isinstance(sample, Mapping) and "query" in sample:
            sample = sample["query"]
        messages = parse_sample(sample, name)
        role = messages[-1].role  # of a chat only
        if role not in (None, "user"):
            raise ValueError(f"{name}: the chat ends with the turn of {role}. End it with the user's.")
        parts: Parts = [part.load() if part.is_image else part.text for part in messages[-1].parts]
        return cls(parts, tuple(sample[:-1]) if is_chat(sample) else (), name)

    @property
    def sample(self) -> Sample:
        """The question as one sample."""
        return [*self.history, {"role": "user", "content": self.parts}] if self.history else self.parts


def split_questions(questions: Any) -> tuple[list[Any], bool]:
    """Tell one question from several.

    A list is several questions, but for a chat, and for a flat list of texts and images, which is one question.

    Returns:
        The questions, and whether there was one.
    """
    is_several = isinstance(questions, list | tuple) and len(questions) > 0 and not is_chat(questions)
    if not is_several or {_kind(item) for item in questions} == {"text", "image"}:
        return [questions], True
    return list(questions), False


def _kind(item: Any) -> str:
    """Whether an item of a list is a question of its own, or a text or image, which may be a part of one."""
    if isinstance(item, list | tuple) or (isinstance(item, Mapping) and "query" in item):
        return "question"
    return "text" if isinstance(item, str) or (isinstance(item, Mapping) and item.get("type") == "text") else "image"


# ---- Prompts ----


def fit(
    hits: Sequence[Hit], processor: SugarProcessor, most_tokens: int | None, split_sentences: bool = False
) -> tuple[list[RagHit], list[Parts]]:
    """Take documents in the order of their scores until a budget of tokens is used up, never cut inside a slice.

    Of a document that does not fit as a whole the first slices that do are taken, and what comes after it is tried as
    well: a short one may fit.

    Args:
        hits: What was found, best first.
        processor: Counts the tokens, those of images included, of each document alone.
        most_tokens: The budget; `None` for no limit.
        split_sentences: Whether a sentence is a slice, or a text.

    Returns:
        All hits with the number of slices that are used, and the parts of those that are.
    """
    noted: list[RagHit] = []
    taken: list[Parts] = []
    left = most_tokens
    for hit in hits:
        sample = hit.document.load()
        messages = parse_sample(sample, f"document {hit.id!r}", split_sentences)
        used = total = sum(part.slice_count for message in messages for part in message.parts)
        if left is not None:
            if messages[0].role is not None:  # what its roles add is not part of the context
                sample = [part for message in sample for part in message["content"]]
            ends = _slice_ends(sample, processor, split_sentences)
            used = sum(end <= left for end in ends)
            left -= ends[used - 1] if used else 0
        if used < total:
            messages = first_slices(messages, used)
        if used:
            parts = [part for message in messages for part in message.parts]
            taken.append([part.load() if part.is_image else part.text for part in parts])
        noted.append(RagHit(**vars(hit), used=used, slices=total))
    return noted, taken


def _slice_ends(sample: Sample, processor: SugarProcessor, split_sentences: bool) -> list[int]:
    """Count the tokens of a sample up to the end of each of its slices."""
    found = processor([sample], split_sentences=split_sentences)["slice_map"][0].abs()
    marked = found.nonzero()[:, 0]
    return [int(marked[found[marked] == number].max()) + 1 for number in range(1, int(found.max()) + 1)]


def prepared(
    model: SugarForConditionalGeneration, processor: SugarProcessor, prompts: list[Any], **options: Any
) -> Features:
    """Process prompts for generation, padded on the left, on the model's device."""
    options = {"padding_side": "left", "add_generation_prompt": True, **options}
    return dict(processor(prompts, **options).to(model.device, dtype=model.dtype))


def as_prompt(processor: SugarProcessor, parts: list[Any], history: list[dict[str, Any]] | None = None) -> Any:
    """Make a sample of the user's turn: a chat, or the bare parts where the model has no chat template."""
    if processor.chat_template is None:
        return parts
    return [*(history or []), {"role": "user", "content": parts}]
