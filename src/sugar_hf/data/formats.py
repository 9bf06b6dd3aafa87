"""One pure parser for each format: a raw row in, the messages and images of the common schema out.

A parser knows neither files nor lines; it raises a :class:`BadSampleError` that names the field, and the reader adds
the place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BadSampleError
from .images import load_image, resolve_image
from .schema import CHAT_ROLES, DOCUMENT_ROLE, check_text, image_part, kind, text_part

Row = Mapping[str, Any]
Part = dict[str, str | None]
StoredImage = dict[str, Any]
Parsed = tuple[list[dict[str, Any]], list[StoredImage]]

PLACEHOLDER = "<image>"
_OWN_LINE = re.compile(rf"^[ \t]*{PLACEHOLDER}[ \t]*$", re.MULTILINE)
_LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

PAIR_IMAGE_KEYS = ("image", "image_path", "file_name", "filepath", "path", "jpg", "png", "webp")
PAIR_TEXT_KEYS = ("text", "caption", "txt")


@dataclass
class ImageSource:
    """Turns what a row says of an image into what is stored, checking it on the way.

    Attributes:
        root: The folder that relative names start from.
        allow_outside_root: Accept paths outside `root`.
        validate: Decode every image completely.
        drop_broken: Leave a broken image out of a document instead of refusing the document.
        dropped: The errors of the images left out of the present row.
        intact: The paths that were decoded before; many rows may show one image.
    """

    root: str
    allow_outside_root: bool = False
    validate: bool = True
    drop_broken: bool = False
    dropped: list[BadSampleError] = field(default_factory=list)
    intact: set[str] = field(default_factory=set)

    def take(self, value: Any, name: str) -> StoredImage:
        """Stores a path, bytes, or a `{"bytes", "path"}` struct.

        Raises:
            BadSampleError: See `resolve_image` and `load_image`.
        """
        if isinstance(value, Mapping):
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str):
            path = resolve_image(value, self.root, allow_outside_root=self.allow_outside_root, field=name)
            image: StoredImage = {"bytes": None, "path": path}
        elif isinstance(value, bytes):
            # No path beside bytes: `datasets` would prefer a file of that name to the bytes.
            image = {"bytes": value, "path": None}
        else:
            raise BadSampleError(f"expected a file name, got {kind(value)}", field=name, mend="Give a file name")
        if self.validate and image["path"] not in self.intact:
            load_image(image, field=name)
            if image["path"] is not None:
                self.intact.add(image["path"])
        return image

    def take_or_drop(self, value: Any, name: str) -> StoredImage | None:
        """`take`, or None for a broken image where those are left out."""
        try:
            return self.take(value, name)
        except BadSampleError as error:
            if not self.drop_broken:
                raise
            self.dropped.append(error)
            return None


def parse_llava(row: Row, images: ImageSource) -> Parsed:
    """LLaVA instruction data: `conversations` of `{"from", "value"}`, `image` a name or a list of names.

    Where the row has images, every `<image>` in a turn stands for the next of them, and stays where it is in the turn
    (LLaVA's own code moves it to the front). Where it has none, `<image>` is plain text, but a human turn with it on a
    line of its own is refused, because that is how a row looks that lost its image.
    """
    names = row.get("image")
    names = [] if names is None else names if isinstance(names, list) else [names]
    if isinstance(row.get("image"), list) and not names:
        raise BadSampleError("an empty list", field="image", mend="Leave the key out of rows without images")
    messages, placeholders = [], 0
    for i, turn in enumerate(_list(row, "conversations")):
        at = f"conversations[{i}]"
        _mapping(turn, at)
        role = _LLAVA_ROLES.get(turn["from"]) if isinstance(turn.get("from"), str) else None
        if role is None:
            raise BadSampleError(f"unknown speaker {turn.get('from')!r}", field=f"{at}.from", mend="Use human or gpt")
        text = check_text(turn.get("value"), f"{at}.value")
        if names:
            content = _split_placeholders(text)
            placeholders += text.count(PLACEHOLDER)
        elif role == "user" and _OWN_LINE.search(text):
            raise BadSampleError(
                f"{PLACEHOLDER} in a row without `image`", field=f"{at}.value", mend="Add `image` or remove it"
            )
        else:
            content = [text_part(text)]
        messages.append({"role": role, "content": content})
    if placeholders != len(names):
        raise BadSampleError(
            f"the conversation has {placeholders} {PLACEHOLDER}, but `image` names {len(names)}",
            field="image",
            mend=f"Write one {PLACEHOLDER} for each image",
        )
    fields = [f"image[{i}]" if isinstance(row.get("image"), list) else "image" for i in range(len(names))]
    return messages, [images.take(name, at) for name, at in zip(names, fields, strict=True)]


def _split_placeholders(text: str) -> list[Part]:
    parts: list[Part] = []
    for i, piece in enumerate(text.split(PLACEHOLDER)):
        if i:
            parts.append(image_part())
        if piece.strip():
            parts.append(text_part(piece.strip()))
    return parts


def parse_mmc4(row: Row, images: ImageSource) -> Parsed:
    """MMC4: sentences in `text_list`, images in `image_info`, each placed before the sentence it was matched to.

    `image_name` is looked up in the image root, where MMC4's download script puts it.
    """
    sentences = _list(row, "text_list")
    before: dict[int, list[StoredImage]] = {}
    for i, info in enumerate(_list(row, "image_info", empty=True)):
        at = f"image_info[{i}]"
        index = _mapping(info, at).get("matched_text_index")
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(sentences):
            raise BadSampleError(
                f"expected the number of one of the {len(sentences)} sentences, got {index!r}",
                field=f"{at}.matched_text_index",
            )
        image = images.take_or_drop(info.get("image_name"), f"{at}.image_name")
        if image is not None:
            before.setdefault(index, []).append(image)
    content: list[Part] = []
    stored: list[StoredImage] = []
    for j, sentence in enumerate(sentences):
        here = before.get(j, [])
        stored += here
        content += [image_part() for _ in here]
        content.append(text_part(check_text(sentence, f"text_list[{j}]")))
    return _document(content), stored


def parse_obelics(row: Row, images: ImageSource) -> Parsed:
    """OBELICS: `texts` and `images` of one length, at each place a text or an image and None in the other list.

    The images of the published files are URLs; put the names of the downloaded files (or their bytes) in their stead.
    """
    texts, entries = _list(row, "texts"), _list(row, "images")
    if len(texts) != len(entries):
        raise BadSampleError(f"{len(entries)} entries, but `texts` has {len(texts)}", field="images")
    content: list[Part] = []
    stored: list[StoredImage] = []
    for i, (text, entry) in enumerate(zip(texts, entries, strict=True)):
        if (text is None) == (entry is None):
            raise BadSampleError(
                "expected a text or an image, got " + ("neither" if text is None else "both"), field=f"texts[{i}]"
            )
        if text is not None:
            content.append(text_part(check_text(text, f"texts[{i}]")))
            continue
        image = images.take_or_drop(entry, f"images[{i}]")
        if image is not None:
            content.append(image_part())
            stored.append(image)
    return _document(content), stored


def parse_pair(row: Row, images: ImageSource) -> Parsed:
    """An image and its caption, as COYO, webdataset tools and ImageFolder metadata name them.

    The image comes first, so that the caption is what a language model learns to say.
    """
    image_key, text_key = _first_key(row, PAIR_IMAGE_KEYS), _first_key(row, PAIR_TEXT_KEYS)
    if image_key is None:
        mend = f"Give a file name under one of {', '.join(PAIR_IMAGE_KEYS)}"
        if row.get("url") is not None:
            mend = "Only a URL is given, and readers do not download: fetch the images first. " + mend
        raise BadSampleError("no image", field="image", mend=mend)
    if text_key is None:
        raise BadSampleError("no caption", field="text", mend=f"Give it under one of {', '.join(PAIR_TEXT_KEYS)}")
    text = check_text(row[text_key], text_key)
    return _document([image_part(), text_part(text)]), [images.take(row[image_key], image_key)]


def parse_chat(row: Row, images: ImageSource) -> Parsed:
    """Chat messages: `messages` of `{"role", "content"}`, `content` a string or a list of text and image parts.

    An image part names its file under `image` or `path`, or stands for the next entry of the row's `images`. A literal
    `<image>` in a text is text.
    """
    listed = row.get("images")
    listed = [] if listed is None else listed
    if not isinstance(listed, list):
        raise BadSampleError(f"expected a list, got {kind(listed)}", field="images")
    messages, stored, used = [], [], 0
    for i, message in enumerate(_list(row, "messages")):
        at = f"messages[{i}]"
        role, value = _mapping(message, at).get("role"), message.get("content")
        if role not in (*CHAT_ROLES, DOCUMENT_ROLE):
            raise BadSampleError(
                f"unknown role {role!r}", field=f"{at}.role", mend=f"Use {', '.join((*CHAT_ROLES, DOCUMENT_ROLE))}"
            )
        if isinstance(value, str):
            value = [text_part(value)]
        if not isinstance(value, list):
            raise BadSampleError(f"expected a string or a list, got {kind(value)}", field=f"{at}.content")
        content: list[Part] = []
        for j, part in enumerate(value):
            name = f"{at}.content[{j}]"
            part_type = _mapping(part, name).get("type")
            if part_type == "text":
                content.append(text_part(check_text(part.get("text"), f"{name}.text")))
                continue
            if part_type != "image":
                raise BadSampleError(
                    f"unknown part type {part_type!r}", field=f"{name}.type", mend="Use text or image"
                )
            key = _first_key(part, ("image", "path"))
            if key is not None:
                stored.append(images.take(part[key], f"{name}.{key}"))
            elif used < len(listed):
                stored.append(images.take(listed[used], f"images[{used}]"))
                used += 1
            else:
                raise BadSampleError(
                    f"no image left for it: `images` has {len(listed)}", field=name, mend="Name its file under `image`"
                )
            content.append(image_part())
        messages.append({"role": role, "content": content})
    if used < len(listed):
        raise BadSampleError(
            f"{len(listed)} images, but {used} image parts that stand for them",
            field="images",
            mend="Write an image part for each",
        )
    return messages, stored


def _document(content: list[Part]) -> list[dict[str, Any]]:
    return [{"role": DOCUMENT_ROLE, "content": content}]


def _list(row: Row, name: str, empty: bool = False) -> list[Any]:
    value = row.get(name)
    if not isinstance(value, list) or (not value and not empty):
        raise BadSampleError(f"expected a list{'' if empty else ' of at least one'}, got {kind(value)}", field=name)
    return value


def _mapping(value: Any, name: str) -> Row:
    if not isinstance(value, Mapping):
        raise BadSampleError(f"expected a dict, got {kind(value)}", field=name)
    return value


def _first_key(row: Row, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)


Parser = Callable[[Row, ImageSource], Parsed]

#: The parser of each format.
PARSERS: dict[str, Parser] = {
    "llava": parse_llava,
    "mmc4": parse_mmc4,
    "obelics": parse_obelics,
    "chat": parse_chat,
    "pairs": parse_pair,
}

#: Keys by which `format="auto"` knows a row; pairs are told by `detect` itself, from any of their names.
_SIGNATURES = {
    "llava": ("conversations",),
    "mmc4": ("text_list", "image_info"),
    "obelics": ("texts", "images"),
    "chat": ("messages",),
}


def detect(row: Any) -> str | None:
    """The format of a raw row by its keys, or None."""
    if not isinstance(row, Mapping):
        return None
    for name, keys in _SIGNATURES.items():
        if all(key in row for key in keys):
            return name
    if _first_key(row, PAIR_TEXT_KEYS) and (_first_key(row, PAIR_IMAGE_KEYS) or "url" in row):
        return "pairs"
    return None
