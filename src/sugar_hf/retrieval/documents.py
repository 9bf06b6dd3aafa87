"""What an index holds: interleaved documents with an id and metadata, and the form in which they are stored."""

import hashlib
import io
import json
import math
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ..data import DOCUMENT_ROLE, BadSampleError, load_image, text_part
from ..data import FEATURES as SAMPLE_FEATURES
from .content import FORMS, Content, as_image, checked_text, from_schema, is_part, is_struct, read_sample

MAX_ID_BYTES = 512
INT64 = 2**63
#: Columns of a stored document. `metadata` is a JSON object; `digest` is that of the document.
DOCUMENT_FEATURES = Features(
    {
        "id": Value("string"),
        "messages": SAMPLE_FEATURES["messages"],
        "images": List(ImageFeature(decode=False)),
        "metadata": Value("string"),
        "digest": Value("string"),
    }
)

_SAMPLE_KEYS = ("document", "sample")
_TEXT_AND_IMAGES = ("image", "images", "text")


@dataclass(frozen=True)
class Document:
    """A document of an index. Images are decoded when they are needed, each time anew.

    Args:
        id: Its name, unique in an index: up to 512 bytes in UTF-8, without control characters.
        sample: What it says: a str, a PIL image, a `pathlib.Path` of an image, the bytes of one, a
            `{"bytes", "path"}` struct, a list mixing these, or chat messages.
        metadata: What is known about it: str, int, float, bool, None, or a list of those, under str keys.

    Raises:
        BadSampleError: The id or the metadata are none of the above. The sample is looked at when it is first needed.
    """

    id: str
    sample: Any
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.id)
        object.__setattr__(self, "metadata", check_metadata(self.metadata, self.id))

    @cached_property
    def content(self) -> Content:
        """The sample in the common schema.

        Raises:
            BadSampleError: It is empty or malformed; the error names document and field.
        """
        try:
            return read_sample(self.sample)
        except BadSampleError as error:
            error.at(sample=self.id)
            raise

    @cached_property
    def size(self) -> tuple[int, int]:
        """Number of images and of characters, by which similar lengths are put together."""
        texts = (part["text"] for message in self.content.messages for part in message["content"] if part["text"])
        return len(self.content.images), sum(map(len, texts))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over id, roles, texts, the bytes of the images, and metadata; it reads image files."""
        return self.to_row()["digest"]

    def load(self) -> list[Any]:
        """Return the sample as the processor takes it, its images decoded.

        Returns:
            A list of strings and RGB images in reading order, or chat messages.

        Raises:
            BadSampleError: The sample is malformed, or an image is missing, corrupt, too large or of size 0.
        """
        images = iter([self._decoded(i, source) for i, source in enumerate(self.content.images)])
        messages = [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(images)} if part["type"] == "image" else text_part(part["text"])
                    for part in message["content"]
                ],
            }
            for message in self.content.messages
        ]
        if messages[0]["role"] != DOCUMENT_ROLE:
            return messages
        return [part["image"] if part["type"] == "image" else part["text"] for part in messages[0]["content"]]

    def to_row(self) -> dict[str, Any]:
        """Return the stored form, a row of `DOCUMENT_FEATURES`. It holds the images themselves and never a path.

        Files and bytes are kept as they are, without decoding; PIL images become PNG.

        Raises:
            BadSampleError: The sample is malformed or an image file cannot be read.
        """
        images = [self._stored(i, source) for i, source in enumerate(self.content.images)]
        metadata = json.dumps(self.metadata, ensure_ascii=False, sort_keys=True)
        written = hashlib.sha256()
        texts = (self.id, json.dumps(self.content.messages, ensure_ascii=False), metadata)
        for data in (*(text.encode() for text in texts), *images):
            written.update(len(data).to_bytes(8, "little"))
            written.update(data)
        return {
            "id": self.id,
            "messages": self.content.messages,
            "images": [{"bytes": data, "path": None} for data in images],
            "metadata": metadata,
            "digest": written.hexdigest(),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Document":
        """Read the stored form back. No path in it is followed.

        Raises:
            BadSampleError: The row breaks the schema; the error names document and field.
        """
        name = row["id"] if isinstance(row.get("id"), str) else None
        try:
            images = row["images"]
            for i, image in enumerate(images):
                if not isinstance(image, Mapping) or not isinstance(image.get("bytes"), bytes):
                    raise BadSampleError("the stored image has no bytes", field=f"images[{i}]")
            return cls(row["id"], from_schema(row["messages"], images), dict(_parse_metadata(row["metadata"])))
        except BadSampleError as error:
            error.at(sample=name)
            raise
        except KeyError as error:
            raise BadSampleError("the stored document lacks the field", field=error.args[0], sample=name) from error

    def _decoded(self, number: int, source: Any) -> Image.Image:
        try:
            return load_image(source, field=f"images[{number}]")
        except BadSampleError as error:
            error.at(sample=self.id)
            raise

    def _stored(self, number: int, source: Any) -> bytes:
        if isinstance(source, Mapping):
            source = source["bytes"] if source.get("bytes") is not None else Path(source["path"])
        if isinstance(source, bytes):
            return source
        if isinstance(source, Image.Image):
            buffer = io.BytesIO()
            self._decoded(number, source).save(buffer, format="PNG", compress_level=1)
            return buffer.getvalue()
        where = f"images[{number}]"
        try:
            if not os.path.isfile(source):  # a named pipe or a device would block or never end
                raise BadSampleError(f"no file {str(source)!r}", field=where, sample=self.id, mend="Check the path")
            return Path(source).read_bytes()
        except (OSError, ValueError) as error:
            if isinstance(error, BadSampleError):
                raise
            raise BadSampleError(
                f"cannot read {str(source)!r} ({error})", field=where, sample=self.id, mend="Check the path"
            ) from error


def as_document(item: Any, number: int, prefix: str = "") -> Document:
    """Make a document of whatever a user has.

    Args:
        item: A [`Document`]; a row of the common schema (`messages`, `images`), whose other columns, if they are
            scalars or lists of strings, become metadata; `{"id"?, "document" | "sample": any sample, "metadata"?}`;
            `{"id"?, "image"? | "images"?, "text"?, "metadata"?}`, images first, further keys as metadata; or a
            sample itself.
        number: Its number, which is the id of an item that has none.
        prefix: Put before such an id.

    Raises:
        BadSampleError: The item cannot be read; the error names it and the field.
    """
    if isinstance(item, Document):
        document = item
    else:
        try:
            document = _as_document(item, f"{prefix}{number}")
        except BadSampleError as error:
            error.at(row=number)
            raise
    _ = document.content  # read now: a malformed sample shows itself here and not hours later
    return document


def _as_document(item: Any, name: str) -> Document:
    if not isinstance(item, Mapping) or is_part(item) or is_struct(item):
        return Document(name, item)
    given = item.get("id")
    if given is not None:
        if isinstance(given, bool | float) or not isinstance(given, str | int | np.integer):
            raise BadSampleError(f"expected a string or a whole number, got {type(given).__name__}", field="id")
        name = check_id(str(given))
    try:
        return _from_mapping(item, name)
    except BadSampleError as error:
        error.at(sample=name)
        raise


def _from_mapping(item: Mapping[str, Any], name: str) -> Document:
    sample_keys = ("messages", *_SAMPLE_KEYS, *_TEXT_AND_IMAGES)
    keys = [key for key in sample_keys if item.get(key) is not None]
    used = {"id", "metadata", "digest", *(key for key in sample_keys if key not in keys)}
    if "messages" in keys:
        used |= {"messages", "images"}
        images = item.get("images")
        sample = from_schema(item["messages"], [] if images is None else images)
    elif found := [key for key in keys if key in _SAMPLE_KEYS]:
        used |= set(found)
        if len(keys) > 1:
            raise BadSampleError(f"{' and '.join(keys)} both say what the document is", field=keys[1], mend="Keep one")
        sample = item[found[0]]
    elif keys:
        used |= set(keys)
        images = [item["image"]] if "image" in keys else []
        images += _list_of(item["images"], "images") if "images" in keys else []
        texts = _list_of(item["text"], "text") if "text" in keys else []
        sample = [*(as_image(image, f"image {i}") for i, image in enumerate(images)), *texts]
    else:
        raise BadSampleError(f"{dict(item)!r:.80} says nothing that could be found", mend=FORMS)
    metadata = dict(_parse_metadata(item.get("metadata")))
    for key in item.keys() - used - metadata.keys():
        value = item[key]
        if isinstance(value, list | tuple | dict | np.ndarray) and not _is_list_of_strings(value):
            raise BadSampleError(
                f"expected a scalar or a list of strings, got {type(value).__name__}",
                field=key,
                mend="Remove the column, or put what is to be kept into `metadata`",
            )
        metadata[key] = value
    return Document(name, sample, dict(sorted(metadata.items())))


def _list_of(value: Any, where: str) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    if where == "images":
        raise BadSampleError(f"expected a list, got {type(value).__name__}", field=where, mend="Use `image` for one")
    return [value]


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


# ---- Ids and metadata ----


def check_id(name: Any) -> str:
    """Return an id that can be used.

    Raises:
        BadSampleError: It is no string, is empty, longer than 512 bytes, or has control characters.
    """
    if not isinstance(name, str):
        raise BadSampleError(f"expected a string, got {type(name).__name__}", field="id")
    if not name.strip():
        raise BadSampleError("the id is empty", field="id", mend="Give every document an id, or none")
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise BadSampleError(f"the id is not valid Unicode ({error})", field="id") from error
    if length > MAX_ID_BYTES:
        raise BadSampleError(f"{name[:40]!r}... has {length} bytes, {MAX_ID_BYTES} are allowed", field="id")
    if any(unicodedata.category(character) == "Cc" for character in name):
        raise BadSampleError(f"{name!r} has control characters", field="id")
    return name


def check_metadata(metadata: Any, name: str | None = None) -> dict[str, Any]:
    """Return metadata as plain Python values.

    Raises:
        BadSampleError: Something in it is nested, no number, too large, or of another type; the error names the key.
    """
    if not isinstance(metadata, Mapping):
        raise BadSampleError(f"expected a dict, got {type(metadata).__name__}", field="metadata", sample=name)
    checked: dict[str, Any] = {}
    try:
        for key, value in metadata.items():
            if not isinstance(key, str) or not key:
                raise BadSampleError(f"the key {key!r} is no string, or empty", field="metadata")
            where = f"metadata[{key!r}]"
            checked_text(key, where)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            is_list = isinstance(value, list | tuple)
            checked[key] = [_scalar(item, where) for item in value] if is_list else _scalar(value, where)
    except BadSampleError as error:
        error.at(sample=name)
        raise
    return checked


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str) and value.strip():
        return checked_text(value, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadSampleError(f"{value} is no number that can be compared", field=where, mend="Use None")
    if isinstance(value, int) and not -INT64 <= value < INT64:
        raise BadSampleError(f"{value} does not fit 64 bits", field=where, mend="Keep it as a string")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise BadSampleError(
        f"{type(value).__name__} is not allowed",
        field=where,
        mend="Use str, int, float, bool, None, or a list of those; nothing nested",
    )


def _parse_metadata(value: Any) -> Mapping[str, Any]:
    """Metadata as a dict, or as JSON, in which it is stored."""
    if value is None:
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadSampleError(f"invalid JSON ({error})", field="metadata") from error
    if not isinstance(value, Mapping):
        raise BadSampleError(f"expected a dict, got {type(value).__name__}", field="metadata")
    return value
