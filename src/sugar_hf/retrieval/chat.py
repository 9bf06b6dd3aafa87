"""A conversation in which a turn retrieves or generates."""

import base64
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..model import RetrievalIndex, SugarForConditionalGeneration, SugarProcessor
from ..model.images_sugar import BadImageError, read_image
from ..model.samples_sugar import is_chat
from .embedder import SugarEmbedder
from .index import Hit, SugarIndex
from .rag import Question, SugarRag

#: What a turn may be: documents are shown; the model answers; it answers with documents in its prompt.
TASKS = ("retrieve", "generate", "answer")
QUERY_FORMS = ("turn", "conversation")
#: What a wish may begin with: "please", "can you", "I want you to", "hi", "now".
_LEAD = (
    r"(?:(?:please|kindly|now|then|and|so|but|or|ok|okay|hi|hello|hey|hey there|thanks|thank you|great|also|next|first"
    r"|instead|yes|no|just|go|again|maybe|well|quickly|let's|let us|help me|help me to|try to"
    r"|(?:can|could|will|would) you|(?:can|could|will|would) you please"
    r"|i(?: want|'d like| would like| need)(?: you)? to|we(?: want|'d like| would like| need)(?: you)? to"
    r"|i am trying to|i'm trying to|i wish to),? )"
)
#: What else may be wished for before: "describe it and then".
_FIRST = (
    r"(?:(?:describe|tell|look|read|take|explain|write|compare|say|name|see|open|check|count|use)\b"
    r"[^.!?;\n]{0,100}?\b(?:and|then) (?:then )?)?"
)
#: What is no wish for documents although a verb of one comes before it.
_NOT = (
    r"(?:out\b|how\b|why\b|whether\b|if\b|your\b"
    r"|(?:it|this|that|these|those|him|her|them|me) (?:very |so |too |quite |rather )?(?:hard|difficult|easy|funny"
    r"|odd|sad|strange|weird|interesting|boring|useful|helpful|confusing|beautiful|amusing|annoying|cute|ugly|nice|great)\b"
    r"|(?:(?:a|an|the|some|any|one|two|three|more|another|me|us|its|their|my|each|every) )?"
    r"(?:(?:short|brief|quick|clear|good|better|simple|single|main|last|right|correct|first|full|few) )?"
    r"(?:answers?|reasons?|hints?|names?|titles?|captions?|summary|summaries|explanations?|descriptions?|opinions?"
    r"|words?|sentences?|paragraphs?|ideas?|minutes?|moments?|seconds?(?! \w)|breaks?|hand|numbers?|counts?|lists?"
    r"|details|clues?|chance|translations?|definitions?|overview|advice|tips?|steps?|proof|mistakes?|errors?|bugs?|typos?"
    r"|differences?|solutions?|sum|value|root|area|meaning|way|time|code|yes|no|rest)\b)"
)
_WISH = re.compile(
    rf"(?:^|[.!?;\n])[ \t\"'“‘(]{{0,4}}{_LEAD}{{0,4}}{_FIRST}"
    r"(?:(?:find|fetch|look up|(?:show|give|get|bring|send) (?:me|us)|recommend(?! (?:this|that|it)\b))"
    rf" (?!{_NOT})"
    r"|search\b|retrieve\b|look for\b"
    r"|(?:i|we)(?:'m| am|'re| are) (?:looking|searching) for "
    r"|(?:do|have) you (?:have|know|got) (?:any|some|a|an|other|more) (?:other |more )?"
    r"(?:pictures?|photos?|photographs?|images?|documents?|articles?|pages?|stories|drawings?)\b"
    r"|(?:any|more|other) (?:pictures?|photos?|photographs?|images?|documents?|articles?) (?:of|with|about|like)\b)",
    re.IGNORECASE,
)
#: What the wish is about lies before the model already.
_HERE = re.compile(
    r"\b(?:in|on|from) (?:this|these|that|my|your|the (?:above|given|first|second|third|last))\b"
    r"|\b(?:in|on) the (?:picture|photo|photograph|image|text|drawing|table|document|article)s?\b",
    re.IGNORECASE,
)

Message = dict[str, Any]
Router = Callable[[Sequence[Mapping[str, Any]]], str]


def route_by_words(messages: Sequence[Mapping[str, Any]]) -> str:
    """Decide what the last turn wants, by its words alone: a simple default for English.

    A wish that a sentence or a part of it begins with wants documents: "find", "fetch", "look up", "retrieve",
    "search", "look for", "recommend", "show me", "give me", "get me" ("please", "can you", "I want you to" and the
    like may come first), "I am looking for", "do you have any pictures". Where the verb is of another kind ("I find
    this funny", "find out why", "give me a hint") or it is about what is there ("find the cat in this picture"), and
    everywhere else, an answer without documents is wanted.

    >>> route_by_words([{"role": "user", "content": "Show me a red boat."}])
    'retrieve'
    >>> route_by_words([{"role": "user", "content": "What is this?"}])
    'generate'
    >>> route_by_words([{"role": "user", "content": "I find this funny."}])
    'generate'
    """
    parts = Question.read(list(messages)).parts
    return "retrieve" if any(isinstance(part, str) and _wants_documents(part) for part in parts) else "generate"


def _wants_documents(text: str) -> bool:
    text = " ".join(text.replace("’", "'").split(" "))
    for match in _WISH.finditer(text):
        rest = text[match.end() : match.end() + 200]  # to the end of the sentence
        if not _HERE.search(re.split(r"[.!?;\n]", rest, maxsplit=1)[0]):
            return True
    return False


def chat_to_json(messages: Sequence[Mapping[str, Any]]) -> str:
    """Write a conversation as JSON, images and all.

    `json.loads` gives it back as messages that [`SugarChat`], the processor and the pipelines take, and so does
    `sugar-hf search --query-file`. Images become PNG in base64; paths stay paths.

    Raises:
        ValueError: It is no conversation, or an image cannot be read.
    """
    if not is_chat(messages):
        raise ValueError(f"messages has to be a list of {{'role', 'content'}}, got {messages!r:.80}")
    saved = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list | tuple) else [content]
        saved.append({**message, "content": [_as_json(part) for part in parts]})
    try:
        return json.dumps(saved)
    except TypeError as error:
        raise ValueError(f"the chat holds something that JSON cannot represent ({error})") from error


def _as_json(part: Any) -> Any:
    if isinstance(part, str):
        return _text(part)
    source = part.get("image") if isinstance(part, dict) else part
    if isinstance(source, Path):
        return {"type": "image", "path": str(source)}
    if not isinstance(source, Image.Image):
        return part
    buffer = io.BytesIO()
    try:
        read_image(source).save(buffer, "PNG")
    except BadImageError as error:
        raise ValueError(f"cannot use the image: {error}") from error
    return {"type": "image", "base64": base64.b64encode(buffer.getvalue()).decode()}


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
        **options: Those of [`SugarRag`], for turns of the task `"answer"`; `min_score`, `mode` and `prompt` count for
            all.

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
