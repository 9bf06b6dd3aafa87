"""The one form in which samples of every source are kept.

A row is `{"id", "source", "messages", "images"}`. `messages` is a list of turns, each with a role and a list of
content parts; a part is a text, or an image that stands for the next entry of `images` in reading order. A document
without turns (an article, a caption pair, a story) is a single message of role `document`. TRL's vision trainers read
the same form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from datasets import Features, List, Value
from datasets import Image as ImageFeature

from .errors import BadSampleError

FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "messages": List(
            {
                "role": Value("string"),
                "content": List({"type": Value("string"), "text": Value("string")}),
            }
        ),
        "images": List(ImageFeature(decode=False)),
    }
)

DOCUMENT_ROLE = "document"
CHAT_ROLES = ("system", "user", "assistant")

PLACEHOLDER = "<image>"
# Where tools put it: at either end of a line. Inside a sentence it is the word of somebody who speaks of it.
_LOST = re.compile(
    r"^[ \t]*(<(?:image|video|audio)>)|(<(?:image|video|audio)>)[ \t]*$|(<img>[^<\n]+</img>)", re.MULTILINE
)


def lost_placeholder(text: str) -> str | None:
    """The placeholder that stands where tools put one for an image (or film, or sound), if a text has one.

    >>> lost_placeholder("<image>what colour?"), lost_placeholder("Is <image> a tag?")
    ('<image>', None)
    """
    match = _LOST.search(text)
    return match[match.lastindex or 0] if match else None


def text_part(text: str) -> dict[str, str | None]:
    """A text part of a message."""
    return {"type": "text", "text": text}


def image_part() -> dict[str, str | None]:
    """An image part of a message: it stands for the next entry of the row's `images`."""
    return {"type": "image", "text": None}


def validate_row(row: Mapping[str, Any]) -> None:
    """Checks a row against the schema without decoding its images.

    Args:
        row: A row as `datasets` yields it, or as a reader builds it.

    Raises:
        BadSampleError: A field is missing or of the wrong type, a role or part type is unknown, a text is empty, a
            document is mixed with turns, or the number of image parts is not that of the images. It names the field.
    """
    try:
        _validate(row)
    except BadSampleError as error:
        sample, source = row.get("id"), row.get("source")
        error.at(file=source if isinstance(source, str) else None, sample=sample if isinstance(sample, str) else None)
        raise


def _validate(row: Mapping[str, Any]) -> None:
    for name in ("id", "source"):
        if not isinstance(row.get(name), str):
            raise BadSampleError(f"expected a string, got {kind(row.get(name))}", field=name)
    messages, images = row.get("messages"), row.get("images")
    if not isinstance(messages, list) or not messages:
        raise BadSampleError(f"expected a list of at least one message, got {kind(messages)}", field="messages")
    if not isinstance(images, list):
        raise BadSampleError(f"expected a list, got {kind(images)}", field="images", mend="Use [] for text alone")
    image_parts = 0
    for i, message in enumerate(messages):
        image_parts += _validate_message(message, f"messages[{i}]", alone=len(messages) == 1)
    if image_parts != len(images):
        raise BadSampleError(
            f"the messages have {image_parts} image parts, but there are {len(images)} images",
            field="images",
            mend="Give one image for each image part, in reading order",
        )


def _validate_message(message: Any, field: str, alone: bool) -> int:
    """Checks a message and returns the number of its image parts."""
    if not isinstance(message, Mapping):
        raise BadSampleError(f"expected a dict with role and content, got {kind(message)}", field=field)
    role, content = message.get("role"), message.get("content")
    if role == DOCUMENT_ROLE:
        if not alone:
            raise BadSampleError("a document must be the only message of its row", field=f"{field}.role")
    elif role not in CHAT_ROLES:
        raise BadSampleError(
            f"unknown role {role!r}", field=f"{field}.role", mend=f"Use {', '.join((*CHAT_ROLES, DOCUMENT_ROLE))}"
        )
    if not isinstance(content, list) or not content:
        raise BadSampleError(f"expected a list of at least one part, got {kind(content)}", field=f"{field}.content")
    images = 0
    for j, part in enumerate(content):
        name = f"{field}.content[{j}]"
        if not isinstance(part, Mapping):
            raise BadSampleError(f"expected a dict with type and text, got {kind(part)}", field=name)
        if part.get("type") == "image":
            images += 1
        elif part.get("type") == "text":
            mark = lost_placeholder(check_text(part.get("text"), f"{name}.text"))
            if mark and role == "user":
                mend = "Write an image part in its stead, and the image under `images`, or remove it"
                raise BadSampleError(f"{mark} that no image fills", field=f"{name}.text", mend=mend)
        else:
            raise BadSampleError(
                f"unknown part type {part.get('type')!r}", field=f"{name}.type", mend="Use text or image"
            )
    return images


def check_text(text: Any, field: str) -> str:
    """Returns the text without the white space around it.

    Raises:
        BadSampleError: It is no string, has nothing but white space, or half a surrogate pair.
    """
    if not isinstance(text, str):
        raise BadSampleError(f"expected a string, got {kind(text)}", field=field)
    if not text.strip():
        raise BadSampleError("the text is empty", field=field, mend="Fill it in or remove the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON may escape half a surrogate pair, which no Arrow column can hold
        raise BadSampleError(f"the text is not valid Unicode ({error})", field=field, mend="Clean the text") from error
    return text.strip()


def kind(value: Any) -> str:
    """Names the type of a value for an error."""
    if isinstance(value, list) and not value:
        return "an empty list"
    return "nothing" if value is None else type(value).__name__
