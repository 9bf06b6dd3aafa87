"""The way from a row, of the common schema or of a form that readers know, to a processor's input."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

from .documents import Content
from .errors import BadSampleError
from .formats import PARSERS, GivenImages, detect
from .media import refuse_unused
from .schema import validate_row

_PART_KEYS = {"type", "text"}


def to_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Brings a row to the common schema, whichever of the forms that readers know it has.

    What the row has besides stays. A row without `id` gets one that its content decides, one without `source` the
    source "row".

    Args:
        row: A row of the common schema, of TRL's vision trainers (`messages` or `prompt` and `completion`, with
            `images`), or of any format of [`load_dataset_file`]. Images are anything that [`load_image`] takes; none
            is opened.

    Raises:
        BadSampleError: The row is of no such form, is broken, or has pictures, films or sounds that nothing uses.
    """
    try:
        found = dict(row)
        if _is_in_schema(row):
            refuse_unused(row, {"messages", "images"}, row["images"])
        else:
            name = detect(row)
            if name is None:
                raise BadSampleError(
                    f"the row is of no known form: it has {', '.join(map(str, row))}",
                    mend="Give `messages` and `images`; sugar_hf.data.to_row lists the forms",
                )
            found["messages"], found["images"] = PARSERS[name](row, GivenImages())
        if found.get("id") is None:
            found["id"] = _content_id(found)
        elif isinstance(found["id"], int) and not isinstance(found["id"], bool):
            found["id"] = str(found["id"])
        if found.get("source") is None:
            found["source"] = "row"
        validate_row(found)
    except BadSampleError as error:
        sample = row.get("id")
        raise error.at(sample=str(sample) if isinstance(sample, str | int) else None) from error.__cause__
    return found


def to_sample(row: Mapping[str, Any]) -> list[Any]:
    """Turns a row into what the processor takes, with decoded images in their places.

    Args:
        row: A row of the common schema or of another form that [`to_row`] takes; entries of `images` may be anything
            that `load_image` takes.

    Returns:
        For a document a list of strings and PIL images in reading order. For turns the list of chat messages
        `{"role", "content": [{"type": "text", "text"} | {"type": "image", "image": PIL image}]}`.

    Raises:
        BadSampleError: The row breaks the schema or an image cannot be decoded; it names sample and field.
    """
    row = to_row(row)
    try:
        return Content(row["messages"], row["images"]).load()
    except BadSampleError as error:
        error.at(file=row["source"], sample=row["id"])
        raise


def _is_in_schema(row: Mapping[str, Any]) -> bool:
    """Whether messages are lists of bare parts, as the common schema has them."""
    messages = row.get("messages")
    return (
        isinstance(messages, list)
        and isinstance(row.get("images"), list)
        and all(
            isinstance(message, Mapping)
            and message.keys() == {"role", "content"}
            and isinstance(message["content"], list)
            and all(isinstance(part, Mapping) and part.keys() == _PART_KEYS for part in message["content"])
            for message in messages
        )
    )


def _content_id(row: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(repr(row["messages"]).encode("utf-8", "backslashreplace"), digest_size=8)
    for image in row["images"]:
        if isinstance(image, Mapping):
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        digest.update(_bytes_of(image))
    return f"row-{digest.hexdigest()}"


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, Image.Image):
        return repr((image.mode, image.size)).encode() + image.tobytes()
    return str(image).encode("utf-8", "backslashreplace")
