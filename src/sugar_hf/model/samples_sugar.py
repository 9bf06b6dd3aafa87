"""Interleaved samples as people write them, brought to one form: messages made of text and image parts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from .images_sugar import BadImageError, read_image_part

# Instructions to the model rather than content of the sample: their text makes no slice.
INSTRUCTION_ROLES = ("system", "developer")
_IMAGE_KEYS = ("image", "path", "url", "base64")
# A run of marks is looked at once, from its start, and gives nothing back: anything else would be quadratic.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s)|[。！？]++[”’」』）]*+|\n")
# A chat template writes a role out as it is, so that it must not hold a control token or a line break.
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

Span = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """One text or one image of a sample.

    Args:
        where: The part's place in words, for error messages.
        text: The text; empty for an image.
        image: A PIL image, or the path or address of one; `None` for a text.
        image_key: What the image is said to be: `image`, `path`, `url` or `base64`.
        spans: Character spans of the slices in `text`; empty for an image and for instructions.
    """

    where: str
    text: str = ""
    image: Any = None
    image_key: str = "image"
    spans: tuple[Span, ...] = ()

    @property
    def is_image(self) -> bool:
        """Whether the part is an image."""
        return self.image is not None

    @property
    def slice_count(self) -> int:
        """Number of slices: one for an image, one for each span of a text."""
        return 1 if self.is_image else len(self.spans)

    def load(self) -> Image.Image:
        """Return the image in RGB, as [`read_image`] makes it of every source.

        Raises:
            ValueError: If it cannot be read as an image, naming the part.
        """
        try:
            return read_image_part(self.image_key, self.image)
        except BadImageError as error:
            raise ValueError(f"{self.where}: cannot use the image: {error}") from error


@dataclass(frozen=True)
class Message:
    """Parts that belong together; `role` is `None` for a plain interleaved sample."""

    role: str | None
    parts: tuple[Part, ...]


def sentence_spans(text: str) -> tuple[Span, ...]:
    """Split a text into sentences by rule.

    A sentence ends at `.`, `!`, `?` or `…` (with closing quotes and brackets) before whitespace, at `。`, `！` or
    `？`, and at a line break. Abbreviations are not known: "Dr. Who" makes two.

    Returns:
        Character spans without the surrounding whitespace; empty sentences are left out.

    >>> sentence_spans("A cat sits. It sleeps!")
    ((0, 11), (12, 22))
    """
    ends = [match.end() for match in _SENTENCE_END.finditer(text)] + [len(text)]
    starts = [0, *ends[:-1]]
    return tuple(span for start, end in zip(starts, ends, strict=True) if (span := _strip(text, start, end)))


def _strip(text: str, start: int, end: int) -> Span | None:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end -= len(piece) - len(piece.rstrip())
    return (start, end) if start < end else None


def parse_sample(sample: Any, where: str, split_sentences: bool = False) -> list[Message]:
    """Bring a sample of any accepted form to messages.

    Args:
        sample: A str, a PIL image, a `pathlib.Path` of an image, a part (`{"type": "text", "text": ...}` or
            `{"type": "image", "image"|"path"|"url"|"base64": ...}`), a list mixing these, or chat messages: a list
            of `{"role": ..., "content": str or list of parts}`. Nothing is downloaded but what stands under `url`.
        where: Name of the sample for error messages.
        split_sentences: Make one slice of each sentence instead of each text.

    Returns:
        The chat's messages, or one message without role.

    Raises:
        ValueError: If the sample is empty or holds something else.
    """
    if is_chat(sample):
        messages = [
            _parse_message(message, f"{where}, message {i}", split_sentences) for i, message in enumerate(sample)
        ]
    else:
        items = list(sample) if isinstance(sample, list | tuple) else [sample]
        messages = [Message(None, _parse_parts(items, where, split_sentences))]
    if not sum(part.slice_count for message in messages for part in message.parts):
        raise ValueError(f"{where}: has neither text nor image. Give it one or leave it out.")
    return messages


def is_chat(sample: Any) -> bool:
    """Whether a sample is a list of chat messages."""
    return (
        isinstance(sample, list | tuple)
        and len(sample) > 0
        and all(isinstance(message, dict) and "role" in message for message in sample)
    )


def _parse_message(message: dict[str, Any], where: str, split_sentences: bool) -> Message:
    role, content = message["role"], message.get("content")
    if isinstance(content, str):
        content = [content]
    if not isinstance(role, str) or not isinstance(content, list | tuple) or not content:
        raise ValueError(
            f"{where}: needs a `role` (a str) and a `content` (a str or a list of parts), got {message!r:.80}"
        )
    if not _ROLE.fullmatch(role):
        raise ValueError(f"{where}: {role!r:.80} is no name of a role. Use user, assistant or system.")
    parts = _parse_parts(content, where, split_sentences)
    if role in INSTRUCTION_ROLES:
        parts = tuple(replace(part, spans=()) for part in parts)
    return Message(role, parts)


def _parse_parts(items: Sequence[Any], where: str, split_sentences: bool) -> tuple[Part, ...]:
    return tuple(_parse_part(item, f"{where}, part {i}", split_sentences) for i, item in enumerate(items))


def _parse_part(item: Any, where: str, split_sentences: bool) -> Part:
    if isinstance(item, dict) and item.get("type") == "image":
        keys = [key for key in _IMAGE_KEYS if item.get(key) is not None]
        if len(keys) != 1:
            raise ValueError(f"{where}: an image part needs one of {', '.join(_IMAGE_KEYS)}, got {item!r:.80}")
        item = item[keys[0]]
        if isinstance(item, str):
            return Part(where, image=item, image_key=keys[0])
    elif isinstance(item, dict) and item.get("type") == "text":
        item = item.get("text")
    if isinstance(item, str):
        if not item.strip():
            raise ValueError(f"{where}: the text is empty. Remove it or fill it in.")
        try:
            item.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can hold
            raise ValueError(f"{where}: the text is not valid Unicode ({error}). Clean it.") from error
        start = len(item) - len(item.lstrip())
        spans = sentence_spans(item) if split_sentences else ((start, len(item.rstrip())),)
        return Part(where, text=item, spans=spans)
    if isinstance(item, Image.Image | Path):
        return Part(where, image=item)
    raise ValueError(
        f"{where}: {type(item).__name__} is neither text nor image. Give a str, a PIL image, a pathlib.Path, "
        '{"type": "text", "text": ...} or {"type": "image", "path": ...}.'
    )


def first_slices(messages: list[Message], count: int) -> list[Message]:
    """Cut messages after their first `count` slices; a text ends with its last slice that is kept."""
    kept = []
    for message in messages:
        parts = []
        for part in message.parts:
            taken = min(part.slice_count, count)
            if taken == part.slice_count:
                parts.append(part)
            elif taken:
                parts.append(replace(part, text=part.text[: part.spans[taken - 1][1]], spans=part.spans[:taken]))
            count -= taken
            if count == 0 and part.slice_count:
                break
        if parts:
            kept.append(replace(message, parts=tuple(parts)))
        if count == 0 and any(part.slice_count for part in message.parts):
            break
    return kept


def sample_size(sample: Any, where: str) -> tuple[int, int]:
    """Measure a sample without loading an image: by its number of images, then of characters."""
    parts = [part for message in parse_sample(sample, where) for part in message.parts]
    return sum(part.is_image for part in parts), sum(len(part.text) for part in parts)


def longest_first(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Order samples so that similar lengths share a batch, and memory runs out at once or never."""
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
