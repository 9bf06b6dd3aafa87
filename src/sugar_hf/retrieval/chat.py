"""A conversation in which a turn retrieves or generates."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..model import RetrievalIndex, SugarForConditionalGeneration, SugarProcessor
from ..model.samples_sugar import is_chat
from .embedder import SugarEmbedder
from .index import SugarIndex
from .prompts import Question
from .rag import SugarRag
from .results import Hit

#: What a turn may be: documents are shown; the model answers; it answers with documents in its prompt.
TASKS = ("retrieve", "generate", "answer")
QUERY_FORMS = ("turn", "conversation")
_WISH = re.compile(r"\b(find|retrieve|search|look for|show me|give me|get me|recommend)\b", re.IGNORECASE)

Message = dict[str, Any]
Router = Callable[[Sequence[Mapping[str, Any]]], str]


def route_by_words(messages: Sequence[Mapping[str, Any]]) -> str:
    """Decide what the last turn wants, by its words alone: a simple default for English.

    "find", "retrieve", "search", "look for", "show me", "give me", "get me" and "recommend" want documents;
    everything else an answer without any.

    >>> route_by_words([{"role": "user", "content": "Show me a red boat."}])
    'retrieve'
    >>> route_by_words([{"role": "user", "content": "What is this?"}])
    'generate'
    """
    parts = Question.read(list(messages)).parts
    return "retrieve" if any(isinstance(part, str) and _WISH.search(part) for part in parts) else "generate"


class SugarChat:
    """Retrieve and generate in one conversation, a list of messages in the format of HF chats.

    ```python
    chat = SugarChat.from_pretrained("sugar", "photos.index")
    talk = chat([{"role": "user", "content": "Show me a boat."}])
    talk = chat([*talk, {"role": "user", "content": "What colour is the second one?"}])
    ```

    What a turn is: its `"task"`, if the message has one (`"retrieve"`, `"generate"`, or `"answer"`, with documents in
    the prompt, see [`SugarRag`]), else what the router says. A reply that retrieved is an assistant's message whose
    content holds the documents' texts and images, so that the next turn can ask about them, and whose `"retrieved"`
    lists their ids, scores and slices.

    Args:
        model: A Sugar model; put into evaluation mode.
        processor: Its processor.
        index: See [`SugarRag`].
        router: Says `"retrieve"`, `"generate"` or `"answer"` of a conversation that ends with the user's turn.
        top_k: How many documents a turn retrieves.
        query: What a turn that retrieves is searched with: `"turn"`, its own parts, or `"conversation"`, all turns up
            to it, embedded as a chat at the last slice.
        **options: Those of [`SugarRag`], for turns of the task `"answer"`; `min_score` counts for all.

    Raises:
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        model: SugarForConditionalGeneration,
        processor: SugarProcessor,
        index: SugarIndex | RetrievalIndex | str | Path | Iterable[Any],
        *,
        router: Router = route_by_words,
        top_k: int = 3,
        query: str = "turn",
        **options: Any,
    ) -> None:
        if query not in QUERY_FORMS:
            raise ValueError(f"query={query!r}: give one of {', '.join(QUERY_FORMS)}.")
        self.rag = SugarRag(model, processor, index, top_k=top_k, **options)
        self.router = router
        self.query = query

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        index: SugarIndex | RetrievalIndex | str | Path | Iterable[Any],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "SugarChat":
        """Load model and processor; `device` and `dtype` are those of `SugarEmbedder.from_pretrained`."""
        loaded = SugarEmbedder.from_pretrained(name_or_path, device=device, dtype=dtype)
        return cls(loaded.model, loaded.processor, index, **options)

    def __call__(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        top_k: int | None = None,
        where: Mapping[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> list[Message]:
        """Reply to a conversation.

        Args:
            messages: A chat that ends with the user's turn.
            top_k: As for the constructor, here for this turn.
            where: A filter on the documents' metadata.
            **generate_kwargs: Passed to `generate`.

        Returns:
            The conversation and the reply, `{"role": "assistant", "content": parts, "task": ...}`, with `"retrieved"`
            where documents were found.

        Raises:
            ValueError: The conversation is none, or ends otherwise; a task is none of the three.
        """
        if not is_chat(messages):
            raise ValueError(f"messages has to be a list of {{'role', 'content'}}, got {messages!r:.80}")
        question = Question.read(list(messages))
        task = messages[-1].get("task") or self.router(messages)
        if task not in TASKS:
            raise ValueError(f"the last message: task {task!r} is none of {', '.join(TASKS)}.")
        if task == "retrieve":
            hits = self.rag.find(question.parts if self.query == "turn" else list(messages), top_k=top_k, where=where)
            reply = {"content": shown(hits), "retrieved": [as_entry(hit) for hit in hits]}
        elif task == "answer":
            answer = self.rag.answer(list(messages), top_k=top_k, where=where, **generate_kwargs)
            used = [hit for hit in answer.hits if hit.used]
            reply = {"content": [_text(answer.text)], "retrieved": [as_entry(hit) for hit in used]}
        else:
            reply = {"content": [_text(self.rag.generate(list(messages), **generate_kwargs))]}
        return [*map(dict, messages), {"role": "assistant", **reply, "task": task}]


def as_entry(hit: Hit) -> dict[str, Any]:
    """What a message says of a document that was found."""
    return {"id": hit.id, "score": hit.score, "slice": hit.slice, "metadata": hit.metadata}


def shown(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Return the texts and images of documents, one after the other, as a message's content."""
    parts: list[dict[str, Any]] = []
    for hit in hits:
        sample = hit.document.load()
        if isinstance(sample[0], dict) and "role" in sample[0]:
            parts += [part for message in sample for part in message["content"]]
        else:
            parts += [_text(part) if isinstance(part, str) else {"type": "image", "image": part} for part in sample]
    return parts or [_text("Nothing was found.")]


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text or "…"}  # an empty turn could not be a part of the next prompt
