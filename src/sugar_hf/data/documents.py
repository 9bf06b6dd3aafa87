"""Documents: samples with an id and metadata, made of whatever a user has, and the form in which they are stored."""

import hashlib
import io
import json
import math
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ..model.images_sugar import BadImageError, read_images
from ..model.samples_sugar import Part, Place, Sample, SampleError, is_chat, is_image_struct, parse_sample
from .containers import ID_KEYS, ColumnChoice
from .errors import BadSampleError
from .formats import (
    IMAGE_KEYS,
    PAIR_TEXT_KEYS,
    PARSERS,
    Flat,
    GivenImages,
    Images,
    decode_base64,
    detect,
    form_columns,
    read_flat,
)
from .pair_columns import is_pair_row
from .schema import CHAT_ROLES, DOCUMENT_ROLE, MAYBE_IMAGE_KEYS, is_empty, load_image, refuse_unused, validate_row
from .schema import FEATURES as SAMPLE_FEATURES

#: What an image of a document is taken from.
ImageGiven = Path | Image.Image | bytes

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

FORMS = (
    "A document is a text, an image, a list of both, chat messages, a row with `messages` and `images`, or "
    '{"id": ..., "document": any of these, "metadata": {...}}'
)
_PART_TYPES = ("text", "image")
_PART_KEYS = {"type", "text", "image", "path", "url", "base64", "index"}
_SAMPLE_KEYS = ("document", "sample")
# Columns that are no metadata where they are empty.
_EMPTY_KEYS = {"messages", *_SAMPLE_KEYS, *IMAGE_KEYS, *PAIR_TEXT_KEYS} - set(MAYBE_IMAGE_KEYS)
# Columns of web documents that say where things came from, place by place.
_OWN_COLUMNS = {
    "mmc4": ("text_list", "image_info", "similarity_matrix"),
    "obelics": ("texts", "images", "metadata"),
}


@dataclass(frozen=True)
class Content:
    """A sample in the common schema: messages, and what was given for each image, in reading order."""

    messages: list[dict[str, Any]]
    images: list[ImageGiven]

    def load(self) -> list[Any]:
        """Return the sample as the processor takes it, its images decoded. The one way from a row or document there.

        Returns:
            A list of strings and RGB images in reading order, or chat messages.

        Raises:
            BadSampleError: An image is missing, corrupt, too large or of size 0; the error names the field.
        """
        try:
            images = iter(read_images(self.images))
        except BadImageError as error:
            raise BadSampleError(error.reason, field=f"images[{error.number}]", mend=error.mend) from error
        messages = [
            {
                "role": message["role"],
                "content": [
                    {"type": "image", "image": next(images)}
                    if part["type"] == "image"
                    else {"type": "text", "text": part["text"]}
                    for part in message["content"]
                ],
            }
            for message in self.messages
        ]
        if messages[0]["role"] != DOCUMENT_ROLE:
            return messages
        return [part["image"] if part["type"] == "image" else part["text"] for part in messages[0]["content"]]

    @classmethod
    def of(cls, sample: Sample) -> "Content":
        """Bring a sample to the common schema.

        Raises:
            BadSampleError: It is empty or malformed; the error names the field.
        """
        try:
            parsed = parse_sample(sample, "")
        except SampleError as error:
            field = _field(error.place, is_chat(sample))
            raise BadSampleError(error.reason, field=field, mend=error.mend or None) from error
        messages, images = [], []
        for i, message in enumerate(parsed):
            role = DOCUMENT_ROLE if message.role is None else message.role
            if role not in (*CHAT_ROLES, DOCUMENT_ROLE):
                mend = f"Use {', '.join(CHAT_ROLES)}"
                raise BadSampleError(f"unknown role {role!r:.80}", field=f"messages[{i}].role", mend=mend)
            if role == DOCUMENT_ROLE and len(parsed) > 1:
                raise BadSampleError("a document must be the only message", field=f"messages[{i}].role")
            number = None if message.role is None else i
            sources = [_image_of(part, _field(Place("", number, j))) for j, part in enumerate(message.parts)]
            images += [source for source in sources if source is not None]
            content = [
                {"type": "image", "text": None} if part.is_image else {"type": "text", "text": part.text}
                for part in message.parts
            ]
            messages.append({"role": role, "content": content})
        return cls(messages, images)


def _field(place: Place, chat: bool = False) -> str:
    if place.message is None:
        name = "messages" if chat else "document"
        return name if place.part is None else f"{name}[{place.part}]"
    message = f"messages[{place.message}]"
    return message if place.part is None else f"{message}.content[{place.part}]"


def _image_of(part: Part, where: str) -> ImageGiven | None:
    """What the image of a part is taken from, `None` for a text; a URL is never fetched."""
    if not isinstance(part.image, str):
        return part.image
    where = f"{where}.{part.image_key}"
    if part.image_key == "base64":
        return decode_base64(part.image, where)
    if part.image_key == "url":
        raise _is_url(part.image, where)
    return as_image(part.image, where)


def _is_url(value: str, where: str) -> BadSampleError:
    mend = "Download the image first and give its path"
    return BadSampleError(f"{value[:200]!r} is a URL, which is not fetched", field=where, mend=mend)


def as_image(value: Any, where: str) -> ImageGiven:
    """What an image is taken from. A str is a path here: the caller knows that an image is meant."""
    if isinstance(value, Mapping) and value and value.keys() <= {"bytes", "path"}:
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        if "://" in value or value.startswith("data:"):
            raise _is_url(value, where)
        value = Path(value)
    if isinstance(value, bytearray | memoryview):
        value = bytes(value)
    if isinstance(value, Image.Image | Path | bytes):
        return value
    raise BadSampleError(f"{type(value).__name__} is neither text nor image", field=where, mend=FORMS)


def from_schema(messages: Any, images: Any) -> list[Any]:
    """Messages of the common schema with their images put in place: a document's parts, or a chat."""
    if not is_chat(messages):
        raise BadSampleError("expected a list of messages with a role", field="messages")
    if not isinstance(images, list | tuple):
        raise BadSampleError(f"expected a list, got {type(images).__name__}", field="images")
    left = list(enumerate(images))
    chat = []
    for message in messages:
        content = message.get("content")
        parts = []
        for part in content if isinstance(content, list | tuple) else [content]:
            if (
                isinstance(part, Mapping)
                and part.get("type") == "image"
                and all(part.get(key) is None for key in ("image", "path", "base64", "url"))
            ):
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


def is_part(item: Any) -> bool:
    """Whether an item is a text or image part of a message."""
    # a row of a table may well have a column `type`, and others beside it
    return (
        isinstance(item, Mapping)
        and item.get("type") in _PART_TYPES
        and all(key in _PART_KEYS or value is None for key, value in item.items())
    )


@dataclass(frozen=True)
class Document:
    """A sample with an id and metadata, as an index holds it. Images are decoded each time they are needed.

    Args:
        id: Its name, unique in an index: up to 512 bytes in UTF-8, without control characters.
        sample: What it says; see [`Sample`].
        metadata: What is known about it: str, int, float, bool, None, or a list of those, under str keys.

    Raises:
        BadSampleError: The id or the metadata are none of the above. The sample is looked at when it is first needed.
    """

    id: str
    sample: Sample
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
            return Content.of(self.sample)
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
        return self._digest_with(self._stored(i, source) for i, source in enumerate(self.content.images))

    def load(self) -> list[Any]:
        """Return the sample as the processor takes it, its images decoded; see [`Content.load`].

        Raises:
            BadSampleError: The sample is malformed, or an image is missing, corrupt, too large or of size 0.
        """
        try:
            return self.content.load()
        except BadSampleError as error:
            error.at(sample=self.id)
            raise

    def with_bytes(self) -> "Document":
        """Return the document with the bytes of its image files, so that each is opened once for all that follows.

        Raises:
            BadSampleError: The sample is malformed or an image file cannot be read.
        """
        if not any(isinstance(source, Path) for source in self.content.images):
            return self
        images: list[ImageGiven] = [
            self._stored(i, source) if isinstance(source, Path) else source
            for i, source in enumerate(self.content.images)
        ]
        read = Document(self.id, self.sample, self.metadata)
        vars(read)["content"] = Content(self.content.messages, images)
        return read

    def to_row(self) -> dict[str, Any]:
        """Return the stored form, a row of `DOCUMENT_FEATURES`. It holds the images themselves and never a path.

        Files and bytes are kept as they are, without decoding; PIL images become PNG.

        Raises:
            BadSampleError: The sample is malformed or an image file cannot be read.
        """
        images = [self._stored(i, source) for i, source in enumerate(self.content.images)]
        vars(self)["digest"] = self._digest_with(images)  # of what is stored; the files are not read once more for it
        return {
            "id": self.id,
            "messages": self.content.messages,
            "images": [{"bytes": data, "path": None} for data in images],
            "metadata": self._metadata_text(),
            "digest": self.digest,
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

    def _metadata_text(self) -> str:
        return json.dumps(self.metadata, ensure_ascii=False, sort_keys=True)

    def _digest_with(self, images: Iterable[bytes]) -> str:
        written = hashlib.sha256()
        texts = (self.id, json.dumps(self.content.messages, ensure_ascii=False), self._metadata_text())
        for data in chain((text.encode() for text in texts), images):
            written.update(len(data).to_bytes(8, "little"))
            written.update(data)
        return written.hexdigest()

    def _stored(self, number: int, source: ImageGiven) -> bytes:
        """The bytes of an image: those of its file as they are, or a PNG of a PIL image."""
        if isinstance(source, bytes):
            return source
        try:
            if isinstance(source, Image.Image):
                buffer = io.BytesIO()
                load_image(source).save(buffer, format="PNG", compress_level=1)
                return buffer.getvalue()
            if not os.path.isfile(source):  # a named pipe or a device would block or never end
                raise BadSampleError(f"no file {str(source)!r}", mend="Check the path")
            return Path(source).read_bytes()
        except BadSampleError as error:
            error.field = f"images[{number}]"
            raise error.at(sample=self.id) from error.__cause__
        except (OSError, ValueError) as error:
            reason = f"cannot read {str(source)!r} ({error})"
            field = f"images[{number}]"
            raise BadSampleError(reason, field=field, sample=self.id, mend="Check the path") from error


def as_document(
    item: Any, number: int, prefix: str = "", *, choice: ColumnChoice | None = None, images: Images | None = None
) -> Document:
    """Make a document of whatever a user has.

    Args:
        item: A [`Document`]; a row of any of the forms that [`row_document`] reads; or a sample itself.
        number: Its number, which is the id of an item that has none.
        prefix: Put before such an id.
        choice: The columns of a row that are read; all if None.
        images: What takes the images of a row. As they are, if None: names start where the program runs.

    Raises:
        BadSampleError: The item cannot be read; the error names it and the field.
    """
    if isinstance(item, BadSampleError):  # of a stream that continues after what it could not read
        raise item
    if isinstance(item, Document):
        document = item
    else:
        try:
            if not isinstance(item, Mapping) or is_part(item) or is_image_struct(item):
                document = Document(f"{prefix}{number}", item)
            else:
                row = item if choice is None else choice.of_row(item)
                document = row_document(row, f"{prefix}{number}", images or GivenImages())
        except BadSampleError as error:
            error.at(row=number)
            raise
        except RecursionError as error:
            raise BadSampleError("it is nested too deeply", row=number) from error
    _ = document.content  # read now: a malformed sample shows itself here and not hours later
    return document


def row_document(
    row: Mapping[str, Any], name: str, images: Images, text_field: str | None = None, id_field: str | None = None
) -> Document:
    """The document of a row: the one way for rows of all files, data sets and programs.

    | a row | the document |
    |---|---|
    | `conversations`, `messages`, `query` and `response`, ... | a chat (see `sugar_hf.data.formats`) |
    | `text_list` and `image_info`, `texts` and `images` | a web document, as MMC4 and OBELICS have them |
    | `document` or `sample` | that sample |
    | anything else | its images, then its text (see `sugar_hf.data.formats.read_flat`) |

    The id stands under `id`, `key` or `file_name`. `metadata` (a dict, or JSON), and all other columns that hold
    scalars or lists of strings, become metadata; dates become texts in ISO form, durations seconds.

    Args:
        row: The row.
        name: The id if the row has none.
        images: Takes its images.
        text_field: The column of the text, if it is none of `text`, `caption` and `txt`.
        id_field: The column of the id, if it is none of the above.

    Raises:
        BadSampleError: The row is broken, or has a picture, film or sound that nothing uses.
    """
    name = row_id(row, name, id_field)
    try:
        sample, used = row_sample(row, images, text_field)
        return Document(name, sample, _row_metadata(row, used, text_field))
    except BadSampleError as error:
        error.at(sample=name)
        raise


def row_sample(row: Mapping[str, Any], images: Images, text_field: str | None = None) -> tuple[Sample, set[str]]:
    """Return what a row says, and the columns that say it; see [`row_document`]."""
    if text_field is not None:
        if text_field not in row:
            raise BadSampleError(f"the row has no such column; it has {', '.join(map(str, row))}", field=text_field)
        text = None if is_empty(row[text_field]) else row[text_field]
        others = {key: value for key, value in row.items() if key not in (*PAIR_TEXT_KEYS, "messages")}
        flat = read_flat(others, images, also=(text_field,))
        if text is None and not flat.images:
            raise BadSampleError("the text is empty", field=text_field, mend="Fill it in or leave it out")
        return _flat_sample(flat, text), {*flat.used, text_field}
    kind = detect(row)
    if kind in ("llava", "chat", "mmc4", "obelics"):
        messages, stored = PARSERS[kind](row, images)
        return from_schema(messages, stored), {"images", *_OWN_COLUMNS.get(kind, ()), *(form_columns(row))}
    said = [key for key in _SAMPLE_KEYS if row.get(key) is not None]
    if said:
        named = (key for key in (*IMAGE_KEYS, *PAIR_TEXT_KEYS) if key not in MAYBE_IMAGE_KEYS)
        also = [key for key in named if not is_empty(row.get(key))]
        if len(said) + len(also) > 1:
            both = [*said, *also][:2]
            raise BadSampleError(f"{' and '.join(both)} both say what the document is", field=both[1], mend="Keep one")
        refuse_unused(row, set(said), [row[said[0]]])
        return row[said[0]], set(said)
    flat = read_flat(row, images)
    if not flat.images and flat.text_key is None:
        empty = next((key for key in PAIR_TEXT_KEYS if isinstance(row.get(key), str)), None)
        if empty is not None:
            raise BadSampleError("the text is empty", field=empty, mend="Fill it in or leave it out")
        mend = "Give `text`, `image`, `document` or `messages`, or name the text's column with text_field"
        if row.get("url") is not None:
            mend = "Only a URL is given, which is not fetched: download the image first. " + mend
        raise BadSampleError("the row has neither text nor image, so it says nothing that could be found", mend=mend)
    return _flat_sample(flat, None if flat.text_key is None else row[flat.text_key]), set(flat.used)


def _flat_sample(flat: Flat, text: Any) -> list[Any]:
    texts = [] if text is None else text if isinstance(text, list | tuple) else [text]
    return [*(as_image(image, f"image {i}") for i, image in enumerate(flat.images)), *texts]


def _row_metadata(row: Mapping[str, Any], used: set[str], text_field: str | None) -> dict[str, Any]:
    metadata = dict(_parse_metadata(row.get("metadata"))) if "metadata" not in used else {}
    used = used | {"id", "metadata"}
    if row.keys() >= DOCUMENT_FEATURES.keys():  # a document as an index stores it
        used.add("digest")
    for key in row.keys() - used:
        value = row[key]
        if key in _EMPTY_KEYS and is_empty(value):
            continue
        if isinstance(value, list | tuple | dict | np.ndarray) and not _is_list_of_strings(value):
            raise BadSampleError(
                f"expected a scalar or a list of strings, got {type(value).__name__}",
                field=key,
                mend="Leave the column out with drop_columns, or put what is to be kept into `metadata`",
            )
        if isinstance(value, bytes | bytearray):
            mend = "Leave the column out with drop_columns"
            raise BadSampleError("bytes are neither a scalar nor a list of strings", field=key, mend=mend)
        name = f"{key} column" if text_field is not None and key in (*PAIR_TEXT_KEYS, "messages") else key
        value = None if is_empty(value) and not isinstance(value, str | list | tuple) else value
        if name in metadata and metadata[name] != value:
            raise BadSampleError("`metadata` and a column both give it", field=key, mend="Keep one of them")
        metadata[name] = value
    return dict(sorted(metadata.items()))


def row_id(row: Mapping[str, Any], default: str, id_field: str | None = None) -> str:
    """The id of a row: under `id_field`, else under the first of `id`, `key` and `file_name` that is there.

    Raises:
        BadSampleError: It is neither a string nor a whole number, or there is none under `id_field`.
    """
    if id_field is not None and is_empty(row.get(id_field)):
        raise BadSampleError(f"the row has no id there; it has {', '.join(map(str, row))}", field=id_field)
    for key in ID_KEYS if id_field is None else (id_field,):
        value = row.get(key)
        if value is None or (not isinstance(value, str) and is_empty(value)):
            continue
        if isinstance(value, bool | float) or not isinstance(value, str | int | np.integer):
            raise BadSampleError(f"expected a string or a whole number, got {type(value).__name__}", field=key)
        if key != "id" and isinstance(value, str) and not value.strip():
            continue
        return check_id(str(value))
    return default


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


# ---- Rows as training takes them ----


def to_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Bring a row to the common schema, whichever of the forms that readers know it has.

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
        elif is_pair_row(row):
            raise BadSampleError("the row is a pair, which is several samples", mend="Use sugar_hf.data.to_samples")
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
    """Turn a row into what the processor takes, with decoded images in their places.

    Args:
        row: A row of the common schema or of another form that [`to_row`] takes; entries of `images` may be anything
            that `load_image` takes.

    Returns:
        For a document a list of strings and PIL images in reading order. For turns the list of chat messages
        `{"role", "content": [{"type": "text", "text"} | {"type": "image", "image": PIL image}]}`.

    Raises:
        BadSampleError: The row breaks the schema or an image cannot be decoded; it names sample and field.
    """
    return read_row(row)[1]


def read_row(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """Return a row in the common schema, and what the processor takes; see [`to_row`] and [`to_sample`]."""
    row = to_row(row)
    try:
        return row, Content(row["messages"], row["images"]).load()
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
            and all(isinstance(part, Mapping) and part.keys() == {"type", "text"} for part in message["content"])
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


def sample_digest(sample: Mapping[str, Any]) -> str:
    """Return 32 letters that are the same for equal samples: equal roles and texts, and the same images.

    An image is known by its bytes or by the name of its file, so that no file is opened. White space around a text
    does not count.

    Args:
        sample: `messages` and `images` of the common schema.
    """
    said: Any = sample["messages"]
    if said and isinstance(said[0], Mapping):
        said = [(turn["role"], [part["text"] and part["text"].strip() for part in turn["content"]]) for turn in said]
    digest = hashlib.blake2b(repr(said).encode("utf-8", "backslashreplace"), digest_size=16)
    for image in sample["images"]:
        if isinstance(image, Mapping):
            image = image["bytes"] if image.get("bytes") is not None else image.get("path")
        digest.update(hashlib.blake2b(_bytes_of(image), digest_size=16).digest())
    return digest.hexdigest()


def _bytes_of(image: Any) -> bytes:
    if isinstance(image, bytes | bytearray):
        return bytes(image)
    if isinstance(image, Image.Image):
        return repr((image.mode, image.size)).encode() + image.tobytes()
    return str(image).encode("utf-8", "backslashreplace")


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


def _checked_text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadSampleError(f"the text is not valid Unicode ({error})", field=where, mend="Clean the text") from error
    return text


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
            _checked_text(key, where)
            if isinstance(value, np.ndarray):
                value = value.tolist()
            is_list = isinstance(value, list | tuple)
            checked[key] = [_scalar(item, where) for item in value] if is_list else _scalar(value, where)
    except BadSampleError as error:
        error.at(sample=name)
        raise
    return checked


def _scalar(value: Any, where: str) -> Any:
    value = _plain(value)
    if isinstance(value, str) and value.strip():
        return _checked_text(value, where)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadSampleError(f"{value} is no number that can be compared", field=where, mend="Use None")
    if isinstance(value, int) and not -INT64 < value < INT64:
        raise BadSampleError(f"{value} does not fit 64 bits", field=where, mend="Keep it as a string")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise BadSampleError(
        f"{type(value).__name__} is not allowed",
        field=where,
        mend="Use str, int, float, bool, None, or a list of those; nothing nested",
    )


def _plain(value: Any) -> Any:
    """Return values of tables as metadata holds them.

    Dates become ISO texts (in UTC where they have a zone), durations seconds, decimals numbers if a float holds them.
    """
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else str(np.datetime_as_string(value))
    if isinstance(value, np.timedelta64):
        return None if np.isnat(value) else float(value / np.timedelta64(1, "s"))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal) and value.is_finite():
        if value == value.to_integral_value():
            return int(value)
        return float(value) if Decimal(repr(float(value))) == value else value
    return value


def _parse_metadata(value: Any) -> Mapping[str, Any]:
    """Metadata as a dict, or as JSON, in which it is stored."""
    if isinstance(value, str):
        if not value.strip():
            return {}
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f"invalid JSON ({error})", field="metadata") from error
    elif value is None or is_empty(value):
        return {}
    if not isinstance(value, Mapping):
        raise BadSampleError(f"expected a dict, got {type(value).__name__}", field="metadata")
    return value
