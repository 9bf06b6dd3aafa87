"""Interleaved samples as people write them, brought to one form: messages made of text and image parts."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from PIL import Image

from .images_sugar import BadImageError, read_image_part

# Instructions to the model rather than content of the sample: their text makes no slice.
INSTRUCTION_ROLES = ("system", "developer")
#: What the image of a part may stand under; an address under `url` alone.
IMAGE_KEYS = ("image", "path", "base64", "url")
_EMPTY = "has neither text nor image"
# A run of marks is looked at once, from its start, and gives nothing back: anything else would be quadratic.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s)|[。！？]++[”’」』）]*+|\n")
# A chat template writes a role out as it is, so that it must not hold a control token or a line break.
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

#: A text, or an image as a PIL image, its path, the bytes of its file, a part, or the struct of `datasets.Image`.
Item: TypeAlias = str | Image.Image | Path | bytes | Mapping[str, Any]
#: An item; items in reading order; or the messages of a chat, each with a `role` and a `content`.
Sample: TypeAlias = Item | Sequence[Item]
Span = tuple[int, int]


class Place(NamedTuple):
    """Where in a sample something is.

    Args:
        sample: The sample's name.
        message: The number of the message; `None` in a sample without roles.
        part: The number of the part; `None` for the message, or the sample, as a whole.
    """

    sample: str
    message: int | None = None
    part: int | None = None

    def __str__(self) -> str:
        message = "" if self.message is None else f", message {self.message}"
        return f"{self.sample}{message}" + ("" if self.part is None else f", part {self.part}")


class SampleError(ValueError):
    """A sample that cannot be read.

    Args:
        place: Where it is.
        reason: What is wrong, in words.
        mend: What to do about it, if the reason does not say it.
    """

    def __init__(self, place: Place, reason: str, mend: str = "") -> None:
        self.place, self.reason, self.mend = place, reason, mend
        super().__init__(place, reason, mend)

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}" + (f". {self.mend}." if self.mend else "")


@dataclass(frozen=True)
class Part:
    """One text or one image of a sample.

    Args:
        where: The part's place in words, for error messages.
        text: The text; empty for an image.
        image: A PIL image, the bytes of one, or its path or address; `None` for a text.
        image_key: Which of `IMAGE_KEYS` it stands under.
        spans: Character spans of the slices in `text`; empty for an image and for instructions.

    Attributes:
        is_image: Whether the part is an image.
        slice_count: Number of slices: one for an image, one for each span of a text.
    """

    where: str
    text: str = ""
    image: str | Image.Image | Path | bytes | None = None
    image_key: str = "image"
    spans: tuple[Span, ...] = ()

    is_image: bool = field(init=False, repr=False)
    slice_count: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_image", self.image is not None)
        object.__setattr__(self, "slice_count", 1 if self.is_image else len(self.spans))

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


def parse_sample(sample: Sample, where: str, split_sentences: bool = False) -> list[Message]:
    """Bring a sample of any accepted form to messages. This is the one parser of samples.

    Args:
        sample: See [`Sample`]. A str is a text. A part is `{"type": "text", "text": ...}` or
            `{"type": "image", "image"|"path"|"base64"|"url": ...}`. Nothing is downloaded but what stands under `url`.
        where: Name of the sample for error messages.
        split_sentences: Make one slice of each sentence instead of each text.

    Returns:
        The chat's messages, or one message without role.

    Raises:
        SampleError: If the sample is empty or holds something else.
    """
    if is_chat(sample):
        messages = [_parse_message(message, Place(where, i), split_sentences) for i, message in enumerate(sample)]
    else:
        messages = [Message(None, _parse_parts(sample_items(sample), Place(where), split_sentences))]
    if not sum(part.slice_count for message in messages for part in message.parts):
        has_parts = any(message.parts for message in messages)
        reason = "has nothing but system messages, so neither text nor image" if has_parts else _EMPTY
        raise SampleError(Place(where), reason, "Give it one or leave it out")
    return messages


def is_chat(sample: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether a sample is a list of chat messages."""
    return (
        isinstance(sample, list | tuple)
        and len(sample) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in sample)
    )


def sample_items(sample: Sample) -> list[Any]:
    """Return the items of a sample in reading order, one for an item alone."""
    return list(sample) if isinstance(sample, list | tuple) else [sample]


def is_image_struct(item: Mapping[Any, Any]) -> bool:
    """Whether an item is what `datasets` makes of an image that it does not decode."""
    return bool(item) and item.keys() <= {"bytes", "path"}


def _parse_message(message: Mapping[str, Any], place: Place, split_sentences: bool) -> Message:
    role, content = message["role"], message.get("content")
    if isinstance(content, str | bytes | Path | Image.Image):
        content = [content]
    if not isinstance(role, str) or not isinstance(content, list | tuple) or not content:
        raise SampleError(
            place,
            f"needs a `role` (a str) and a `content` (a str or a list of parts), got {message!r:.80}",
        )
    if not _ROLE.fullmatch(role):
        raise SampleError(place, f"{role!r:.80} is no name of a role", "Use user, assistant or system")
    parts = _parse_parts(content, place, split_sentences)
    if role in INSTRUCTION_ROLES:
        parts = tuple(replace(part, spans=()) for part in parts)
    return Message(role, parts)


def _parse_parts(items: Sequence[Any], place: Place, split_sentences: bool) -> tuple[Part, ...]:
    return tuple(_parse_part(item, place._replace(part=i), split_sentences) for i, item in enumerate(items))


def _parse_part(item: Any, place: Place, split_sentences: bool) -> Part:
    key = "image"
    if isinstance(item, Mapping) and item.get("type") == "image":
        keys = [key for key in IMAGE_KEYS if item.get(key) is not None]
        if len(keys) != 1:
            raise SampleError(place, f"an image part needs one of {', '.join(IMAGE_KEYS)}, got {item!r:.80}")
        key = keys[0]
        item = item[key]
        if isinstance(item, str):
            return Part(str(place), image=item, image_key=key)
    elif isinstance(item, Mapping) and item.get("type") == "text":
        item = item.get("text")
    if isinstance(item, str):
        if not item.strip():
            raise SampleError(place, "the text is empty", "Remove it or fill it in")
        try:
            item.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can hold
            raise SampleError(place, f"the text is not valid Unicode ({error})", "Clean it") from error
        start = len(item) - len(item.lstrip())
        spans = sentence_spans(item) if split_sentences else ((start, len(item.rstrip())),)
        return Part(str(place), text=item, spans=spans)
    if isinstance(item, Mapping) and is_image_struct(item):
        path = item.get("path")
        item = item["bytes"] if item.get("bytes") is not None else Path(path) if isinstance(path, str) else path
    if isinstance(item, bytearray | memoryview):
        item = bytes(item)
    if isinstance(item, Image.Image | Path | bytes):
        return Part(str(place), image=item)
    raise SampleError(
        place,
        f"{type(item).__name__} is neither text nor image",
        "Give a str, a PIL image, a pathlib.Path, the bytes of an image, "
        '{"type": "text", "text": ...} or {"type": "image", "path": ...}',
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


def sample_size(sample: Sample, where: str) -> tuple[int, int]:
    """Measure a sample without loading an image: by its number of images, then of characters."""
    parts = [part for message in parse_sample(sample, where) for part in message.parts]
    return sum(part.is_image for part in parts), sum(len(part.text) for part in parts)


def longest_first(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Order samples so that similar lengths share a batch, and memory runs out at once or never."""
    return sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
