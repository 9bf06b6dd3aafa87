"""Samples as users write them, brought to the common schema; no image is decoded here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import CHAT_ROLES, DOCUMENT_ROLE, BadSampleError, image_part, text_part
from ..data.conversations import decode_base64

FORMS = (
    "A document is a text, an image, a list of both, chat messages, a row with `messages` and `images`, or "
    '{"id": ..., "document": any of these, "metadata": {...}}'
)
_PART_TYPES = ("text", "image")
_PART_KEYS = {"type", "text", "image", "path", "url", "base64", "index"}


@dataclass(frozen=True)
class Content:
    """Messages of the common schema, and what was given for each image, in reading order."""

    messages: list[dict[str, Any]]
    images: list[Any]


def read_sample(sample: Any) -> Content:
    """Bring a sample to the common schema.

    Raises:
        BadSampleError: It is empty or malformed; the error names the field.
    """
    images: list[Any] = []
    if _is_chat(sample):
        messages = []
        for i, message in enumerate(sample):
            role, content = message["role"], message.get("content")
            if role not in (*CHAT_ROLES, DOCUMENT_ROLE):
                mend = f"Use {', '.join(CHAT_ROLES)}"
                raise BadSampleError(f"unknown role {role!r:.80}", field=f"messages[{i}].role", mend=mend)
            if role == DOCUMENT_ROLE and len(sample) > 1:
                raise BadSampleError("a document must be the only message", field=f"messages[{i}].role")
            items = content if isinstance(content, list | tuple) else [content]
            messages.append({"role": role, "content": _read_parts(items, f"messages[{i}].content", images)})
    else:
        items = sample if isinstance(sample, list | tuple) else [sample]
        messages = [{"role": DOCUMENT_ROLE, "content": _read_parts(items, "document", images)}]
    if all(message["role"] == "system" for message in messages):
        raise BadSampleError("nothing but system messages, which are not searched", field="messages")
    return Content(messages, images)


def _read_parts(items: Any, where: str, images: list[Any]) -> list[dict[str, Any]]:
    if not len(items):
        raise BadSampleError("it is empty: neither text nor image", field=where, mend="Fill it in or leave it out")
    parts = []
    for i, item in enumerate(items):
        name = f"{where}[{i}]"
        if isinstance(item, Mapping) and item.get("type") == "text":
            item = item.get("text")
            if not isinstance(item, str):
                raise BadSampleError(f"expected a string, got {type(item).__name__}", field=f"{name}.text")
        if isinstance(item, str):
            parts.append(text_part(checked_text(item, name)))
            continue
        images.append(_image_of_part(item, name) if is_part(item) else as_image(item, name))
        parts.append(image_part())
    return parts


def checked_text(text: str, where: str) -> str:
    """Return a text as it is.

    Raises:
        BadSampleError: It has nothing but white space, or half a surrogate pair.
    """
    if not text.strip():
        raise BadSampleError("the text is empty", field=where, mend="Fill it in or leave it out")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadSampleError(f"the text is not valid Unicode ({error})", field=where, mend="Clean the text") from error
    return text


def _image_of_part(part: Mapping[str, Any], where: str) -> Any:
    """What an image part names: `image` or `path` (a path), `base64`; a URL is never fetched."""
    given = {key: part[key] for key in ("image", "path", "base64", "url") if part.get(key) is not None}
    if len(given) != 1:
        raise BadSampleError("an image part needs one of image, path, base64", field=where)
    [(key, value)] = given.items()
    if key == "base64" and isinstance(value, str):
        return decode_base64(value, f"{where}.base64")
    return as_image(value, f"{where}.{key}")


def as_image(value: Any, where: str) -> Any:
    """What an image is taken from. A str is a path here: the caller knows that an image is meant."""
    if isinstance(value, Mapping) and is_struct(value):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        if "://" in value or value.startswith("data:"):
            mend = "Download the image first and give its path"
            raise BadSampleError(f"{value[:200]!r} is a URL, which is not fetched", field=where, mend=mend)
        value = Path(value)
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if isinstance(value, Image.Image | Path | bytes):
        return value
    raise BadSampleError(f"{type(value).__name__} is neither text nor image", field=where, mend=FORMS)


def from_schema(messages: Any, images: Any) -> list[Any]:
    """Messages of the common schema with their images put in place: a document's parts, or a chat."""
    if not _is_chat(messages):
        raise BadSampleError("expected a list of messages with a role", field="messages")
    if not isinstance(images, list | tuple):
        raise BadSampleError(f"expected a list, got {type(images).__name__}", field="images")
    left = list(enumerate(images))
    chat = []
    for message in messages:
        content = message.get("content")
        parts = []
        for part in content if isinstance(content, list | tuple) else [content]:
            bare = isinstance(part, Mapping) and part.get("type") == "image"
            if bare and all(part.get(key) is None for key in ("image", "path", "base64", "url")):
                if not left:
                    raise BadSampleError(f"there are {len(images)}, but more image parts", field="images")
                number, image = left.pop(0)
                part = {"type": "image", "image": as_image(image, f"images[{number}]")}
            parts.append(part)
        chat.append({"role": message["role"], "content": parts})
    if left:
        mend = "Write an image part for each"
        raise BadSampleError(f"there are {len(images)}, but fewer image parts", field="images", mend=mend)
    return chat


def _is_chat(sample: Any) -> bool:
    return (
        isinstance(sample, list | tuple)
        and len(sample) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in sample)
    )


def is_part(item: Any) -> bool:
    """Whether an item is a text or image part of a message."""
    # a row of a table may well have a column `type`, and others beside it
    return (
        isinstance(item, Mapping)
        and item.get("type") in _PART_TYPES
        and all(key in _PART_KEYS or value is None for key, value in item.items())
    )


def is_struct(item: Mapping[str, Any]) -> bool:
    """Whether an item is what `datasets` makes of an image that it does not decode."""
    return bool(item) and item.keys() <= {"bytes", "path"}
