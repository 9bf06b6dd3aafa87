"""The one form in which samples of every source are kept, and what may stand in a row.

A row is `{"id", "source", "messages", "images"}`. `messages` is a list of turns, each with a role and a list of
content parts; a part is a text, or an image that stands for the next entry of `images` in reading order. A document
without turns (an article, a caption pair, a story) is a single message of role `document`. TRL's vision trainers read
the same form.

Pictures in rows are read safely, found by the names that data files give them, and none is dropped silently. How an
image is decoded, and what is refused, is written in `model.images_sugar`, which travels to the Hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from datasets import Features, List, Value
from datasets import Image as ImageFeature
from PIL import Image

from ..model.images_sugar import BadImageError, read_image
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

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")
#: Columns that name an image where it is the name of an image file, and something else where not.
MAYBE_IMAGE_KEYS = ("file_name", "filepath", "path")
#: Columns that no reader takes for content: they say which row it is.
NAMING_KEYS = frozenset({"id", "key", "source", "metadata"})

_OTHER_SUFFIXES = (".mp4", ".webm", ".avi", ".mov", ".mkv", ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".svg", ".heic")
_PICTURES = frozenset(
    {"image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos"}
    | {"jpg", "jpeg", "png", "webp", "gif", "bmp", "pixel", "pixels"}
)
_OTHERS = frozenset(
    {"video", "videos", "audio", "audios", "sound", "sounds", "speech"}
    | {"mp4", "webm", "avi", "mov", "mkv", "wav", "mp3", "flac"}
)
# Words beside those of media that leave the column one of media: `image_path`, `inputImages`, `video_file_1`.
_NAMES = frozenset(
    ["path", "paths", "file", "files", "filename", "filepath", "name", "names", "url", "urls", "uri", "src"]
)
_FORMS = _NAMES | frozenset(["bytes", "base64", "b64", "data", "list", "input", "inputs", "source", "values"])
_WORDS = re.compile(r"[^a-z0-9]+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*")
_ADDRESSES = ("data:image", "data:video", "data:audio")
_LONGEST_NAME = 4096


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
    """Check a row against the schema without decoding its images.

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
    """Check a message and return the number of its image parts."""
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
    """Return the text without the white space around it.

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


# ---- Pictures, films and sounds in rows ----


def is_empty(value: Any) -> bool:
    """Whether a value of a cell says nothing: None, white space, NaN, an image without bytes and path, or only such.

    >>> is_empty(" "), is_empty([None, ""]), is_empty({"bytes": None, "path": None}), is_empty(0)
    (True, True, True, False)
    """
    if value is None:
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, float | np.floating | datetime):
        return bool(value != value)  # NaN, and pandas' NaT
    if isinstance(value, Mapping):
        is_struct = bool(value) and value.keys() <= {"bytes", "path"}
        return is_struct and all(each is None or each == "" for each in value.values())
    return isinstance(value, list | tuple) and all(map(is_empty, value))


def filled(row: Mapping[str, Any]) -> set[str]:
    """The columns of a row whose cells say something; see [`is_empty`]."""
    return {key for key, value in row.items() if not is_empty(value)}


def names_media(key: str) -> bool:
    """Whether a column is one of pictures, films or sounds by its name.

    >>> names_media("image_path"), names_media("videos"), names_media("image_id"), names_media("path")
    (True, True, False, False)
    """
    words = _words(key)
    return bool(words & (_PICTURES | _OTHERS)) and words <= _PICTURES | _OTHERS | _FORMS


def looks_like_media(value: Any) -> bool:
    """Whether a value holds a picture, film or sound, or is the name or address of one."""
    if isinstance(value, str):
        name = value.strip().lower()
        if name.startswith(_ADDRESSES):
            return True
        return len(name) <= _LONGEST_NAME and name.partition("?")[0].endswith((*IMAGE_SUFFIXES, *_OTHER_SUFFIXES))
    if isinstance(value, bytes | bytearray):
        return value.startswith(_SIGNATURES) or value[8:12] == b"WEBP"
    if isinstance(value, Mapping):
        return any(map(looks_like_media, value.values())) or bool(value.keys() == {"bytes", "path"} and value["bytes"])
    return isinstance(value, Image.Image) or (isinstance(value, list | tuple) and any(map(looks_like_media, value)))


def refuse_unused(
    row: Mapping[Any, Any], used: Collection[str], images: Iterable[Any] = (), where: str | None = None
) -> None:
    """Refuse a row with pictures, films or sounds that nothing uses.

    Args:
        row: The row, or a turn or part of one.
        used: The columns that were read.
        images: What the row gave for the images that were taken. The name of one of them under another column, or
            any name beside images without names, is where it comes from and not another picture.
        where: The place of `row`, if it is not the row itself.

    Raises:
        BadSampleError: A column names media, or its value does, and it was not read. It names the column.
    """
    taken = list(images)
    for key, value in row.items():
        if not isinstance(key, str) or key in used or key in NAMING_KEYS or is_empty(value) or value is False:
            continue
        looks = looks_like_media(value)
        words = _words(key)
        is_media = names_media(key) or (looks and key in MAYBE_IMAGE_KEYS)
        if not is_media and not (looks and (words & (_PICTURES | _OTHERS) or not taken)):
            continue
        if taken and not words & _OTHERS and is_origin(key, value, taken):
            continue
        medium = "a video or a sound" if words & _OTHERS else "an image"
        mend = (
            "Name images under `image` or `images`, or leave the column out with drop_columns"
            if medium == "an image"
            else "Only images and texts are taken: leave the column out with drop_columns, or the row"
        )
        raise BadSampleError(
            f"it names {medium} that is not used", field=key if where is None else f"{where}.{key}", mend=mend
        )


def _words(key: str) -> set[str]:
    words = _WORDS.split(_HUMP.sub("_", key).lower())
    return {name for word in words if (name := word if word in _OTHERS else word.rstrip("0123456789"))}


def is_origin(key: str, value: Any, taken: list[Any]) -> bool:
    """Whether a value only says where images come from that were taken from other columns."""
    given = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(each, str) and not each.startswith("data:") for each in given):
        return False
    words = _words(key)
    if words & {"url", "urls", "uri"} or all("://" in each for each in given):
        return True
    names = [_name(image) for image in taken]
    if all(any(name is not None and _is_end_of(each.strip(), name) for name in names) for each in given):
        return True
    return bool(words & _NAMES) and all(name is None for name in names)


def _name(image: Any) -> str | None:
    """The file name of what was given for an image, if it has one."""
    if isinstance(image, Mapping):
        image = image.get("path")
    return os.fspath(image) or None if isinstance(image, str | os.PathLike) else None


def _is_end_of(one: str, other: str) -> bool:
    """Whether one of two paths is the end of the other, so that both may name one file."""
    shorter, longer = sorted(([*PurePath(each).parts] for each in (one, other)), key=len)
    return longer[-len(shorter) :] == shorter


# ---- Safe images ----


def load_image(source: Any, *, field: str = "image") -> Image.Image:
    """Decode an image completely and return it as a new RGB image; see `read_image` of `sugar_hf.model.images_sugar`.

    Args:
        source: A path (`str` or `pathlib.Path`), the bytes of a file, a PIL image, or the `{"bytes", "path"}` struct
            that `datasets.Image(decode=False)` yields (`bytes` wins).
        field: The name that an error gives to the image.

    Raises:
        BadSampleError: The image cannot be used.
    """
    try:
        return read_image(source)
    except BadImageError as error:
        raise BadSampleError(error.reason, field=field, mend=error.mend) from error


def resolve_image(name: str, root: str | Path, *, allow_outside_root: bool = False, field: str = "image") -> str:
    """Turn an image name of a data file into the absolute path of an existing file.

    The path must lie inside `root`, absolute names too, so that a data file from elsewhere cannot name any file of
    this machine. The test is on the name, after `..` is resolved; links inside `root` are followed, because they
    belong to whoever set up the folder and not to whoever wrote the data file.

    Args:
        name: The name as the data file has it.
        root: The image root.
        allow_outside_root: Accept a path outside `root`.
        field: The name that an error gives to the image.

    Returns:
        The absolute path.

    Raises:
        BadSampleError: The name is empty, a URL, leads out of `root`, or no regular file is there.
    """
    if not name or "\0" in name:
        raise BadSampleError("the image name is empty or has a NUL byte", field=field, mend="Give a file name")
    if "://" in name or name.startswith("data:"):
        raise BadSampleError(
            f"{name[:200]!r} is a URL, and readers do not download",
            field=field,
            mend="Download the images first and give their file names",
        )
    folder = os.path.abspath(root)
    path = os.path.normpath(os.path.join(folder, name))
    if not allow_outside_root and path != folder and os.path.commonpath([folder, path]) != folder:
        raise BadSampleError(
            f"{name!r} lies outside the image root {folder!r}",
            field=field,
            mend="Set image_root to a folder that holds all images, or pass allow_outside_root=True",
        )
    if not os.path.isfile(path):
        raise BadSampleError(f"no file {path!r}", field=field, mend="Check the name and image_root, or remove the row")
    return path
