"""One pure parser for each format: a raw row in, the messages and images of the common schema out.

A parser knows neither files nor lines; it raises a :class:`BadSampleError` that names the field, and the reader adds
the place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from .conversations import form_of, parse_conversation
from .errors import BadSampleError
from .images import load_image, resolve_image
from .media import MAYBE_IMAGE_KEYS, is_empty, is_origin, looks_like_media, refuse_unused
from .schema import DOCUMENT_ROLE, check_text, image_part, kind, text_part

Row = Mapping[str, Any]
Part = dict[str, str | None]
StoredImage = dict[str, Any]
Parsed = tuple[list[dict[str, Any]], list[Any]]

#: Names of columns of images, in the order in which their images come, and of the text.
IMAGE_KEYS = ("image", "images", "image_path", "jpg", "png", "webp", *MAYBE_IMAGE_KEYS)
PAIR_TEXT_KEYS = ("text", "caption", "txt")


class Images(Protocol):
    """What turns a row's words for images into what is stored."""

    #: Whether images that nothing gives a place to stand in front of the first question (TRL, ms-swift).
    front: bool

    def take(self, value: Any, name: str) -> Any:
        """What is stored for an image; raises a `BadSampleError` that names the field."""
        ...

    def hole(self) -> AbstractContextManager[None]:
        """A context in which a fault costs only its place in a web document, where that was asked for."""
        ...


@dataclass
class ImageSource:
    """Turns what a row says of an image into what is stored, checking it on the way.

    Attributes:
        root: The folder that relative names start from.
        allow_outside_root: Accept paths outside `root`.
        validate: Decode every image completely.
        drop_broken: Leave a broken place out of a web document instead of refusing the document.
        dropped: The errors of the places left out of the present row.
        intact: The paths that were decoded before; many rows may show one image.
        front: See `Images`.
    """

    root: str
    allow_outside_root: bool = False
    validate: bool = True
    drop_broken: bool = False
    dropped: list[BadSampleError] = field(default_factory=list)
    intact: set[str] = field(default_factory=set)

    front: bool = True

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
        elif isinstance(value, bytes | bytearray):
            # No path beside bytes: `datasets` would prefer a file of that name to the bytes.
            image = {"bytes": bytes(value), "path": None}
        else:
            raise BadSampleError(f"expected a file name, got {kind(value)}", field=name, mend="Give a file name")
        if self.validate and image["path"] not in self.intact:
            load_image(image, field=name)
            if image["path"] is not None:
                self.intact.add(image["path"])
        return image

    @contextmanager
    def hole(self) -> Iterator[None]:
        """A context in which a fault costs only its place in a document, where broken images are dropped."""
        try:
            yield
        except BadSampleError as error:
            if not self.drop_broken:
                raise
            self.dropped.append(error)


@dataclass
class GivenImages:
    """Takes images as they are, where they come from a program and not from a file: nothing is looked up or decoded.

    Attributes:
        front: See `Images`.
    """

    front: bool = True

    def take(self, value: Any, name: str) -> Any:
        """The image as it was given.

        Raises:
            BadSampleError: It is none of the things that `load_image` takes.
        """
        if isinstance(value, str | Path | bytes | bytearray | Image.Image):
            return value
        if isinstance(value, Mapping) and value.keys() <= {"bytes", "path"} and not is_empty(value):
            return value
        mend = "Give a path, bytes, a PIL image or a {'bytes', 'path'} struct"
        raise BadSampleError(f"expected an image, got {kind(value)}", field=name, mend=mend)

    def hole(self) -> AbstractContextManager[None]:
        """No fault is forgiven."""
        return nullcontext()


def parse_llava(row: Row, images: Images) -> Parsed:
    """LLaVA and ShareGPT: `conversations` of `{"from", "value"}`.

    Images are names, or a list of them, under `image` or `images`.

    Where the row has images, every `<image>` in a turn stands for the next of them, and stays where it is in the turn
    (LLaVA's own code moves it to the front). Where it has none, `<image>` inside a sentence is plain text, but a human
    turn with it at either end of a line is refused, because that is how a row looks that lost its image.
    """
    return parse_conversation(row, images, "conversations")


def parse_mmc4(row: Row, images: Images) -> Parsed:
    """MMC4: sentences in `text_list`, images in `image_info`, each placed before the sentence it was matched to.

    `image_name` is looked up in the image root, where MMC4's download script puts it.
    """
    sentences = _list(row, "text_list")
    before: dict[int, list[Any]] = {}
    given = []
    for i, info in enumerate(_list(row, "image_info", empty=True)):
        at = f"image_info[{i}]"
        with images.hole():
            index = _mapping(info, at).get("matched_text_index")
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(sentences):
                raise BadSampleError(
                    f"expected the number of one of the {len(sentences)} sentences, got {index!r}",
                    field=f"{at}.matched_text_index",
                )
            given.append(info.get("image_name"))
            before.setdefault(index, []).append(images.take(info.get("image_name"), f"{at}.image_name"))
    content: list[Part] = []
    stored: list[Any] = []
    for j, sentence in enumerate(sentences):
        here = before.get(j, [])
        stored += here
        content += [image_part() for _ in here]
        with images.hole():
            content.append(text_part(check_text(sentence, f"text_list[{j}]")))
    refuse_unused(row, {"text_list", "image_info"}, given)
    return _document(content), stored


def parse_obelics(row: Row, images: Images) -> Parsed:
    """OBELICS: `texts` and `images` of one length, at each place a text or an image and None in the other list.

    The images of the published files are URLs; put the names of the downloaded files (or their bytes) in their stead.
    """
    texts, entries = _list(row, "texts"), _list(row, "images")
    if len(texts) != len(entries):
        raise BadSampleError(f"{len(entries)} entries, but `texts` has {len(texts)}", field="images")
    content: list[Part] = []
    stored: list[Any] = []
    for i, (text, entry) in enumerate(zip(texts, entries, strict=True)):
        if not is_empty(text) and not is_empty(entry):
            raise BadSampleError("expected a text or an image, got both", field=f"texts[{i}]")
        with images.hole():
            if is_empty(text) and is_empty(entry):
                raise BadSampleError("expected a text or an image, got neither", field=f"texts[{i}]")
            if is_empty(entry):
                content.append(text_part(check_text(text, f"texts[{i}]")))
            else:
                stored.append(images.take(entry, f"images[{i}]"))
                content.append(image_part())
    refuse_unused(row, {"texts", "images"}, [entry for entry in entries if not is_empty(entry)])
    return _document(content), stored


def parse_pair(row: Row, images: Images) -> Parsed:
    """An image and its caption, as COYO, webdataset tools and ImageFolder metadata name them.

    The image comes first, so that the caption is what a language model learns to say.
    """
    if all(is_empty(row.get(key)) for key in IMAGE_KEYS):
        mend = f"Give a file name under one of {', '.join(IMAGE_KEYS)}"
        if row.get("url") is not None:
            mend = "Only a URL is given, and readers do not download: fetch the images first. " + mend
        raise BadSampleError("no image", field="image", mend=mend)
    flat = read_flat(row, images)
    if not flat.images:
        raise BadSampleError("no image", field="image", mend=f"Give it under one of {', '.join(IMAGE_KEYS)}")
    if flat.text_key is None:
        if any(key in row and row[key] is not None for key in PAIR_TEXT_KEYS):
            key = next(key for key in PAIR_TEXT_KEYS if row.get(key) is not None)
            check_text(row[key], key)
        raise BadSampleError("no caption", field="text", mend=f"Give it under one of {', '.join(PAIR_TEXT_KEYS)}")
    text = check_text(row[flat.text_key], flat.text_key)
    return _document([*(image_part() for _ in flat.images), text_part(text)]), flat.images


@dataclass(frozen=True)
class Flat:
    """What a row of plain columns says.

    Attributes:
        images: What is stored for each image.
        text_key: The column of the text; None if there is none.
        used: The columns that were read.
    """

    images: list[Any]
    text_key: str | None
    used: frozenset[str]


def read_flat(row: Row, images: Images, also: Collection[str] = ()) -> Flat:
    """Finds images and text of a row under all names that they may have; the one place where these are known.

    Images stand under `image`, `image_path`, `jpg`, `png`, `webp` (one or a list), `images` (a list), or, if there is
    none, under `file_name`, `filepath` or `path`. Empty cells are no images and no texts.

    Raises:
        BadSampleError: An image cannot be taken, two columns hold different texts, or one holds a picture, a film or
            a sound that nothing uses.
    """
    given: list[Any] = []
    stored: list[Any] = []
    used: set[str] = set()
    for key in IMAGE_KEYS:
        value = row.get(key)
        if is_empty(value):
            if key in row:
                used.add(key)
            continue
        if key in MAYBE_IMAGE_KEYS and (given or not looks_like_media(value)):
            continue
        if given and key == "image_path" and is_origin(key, value, given):
            continue
        if isinstance(value, list | tuple):
            fields = {f"{key}[{i}]": each for i, each in enumerate(value) if not is_empty(each)}
        elif key == "images":
            mend = "Use `image` for one"
            raise BadSampleError(f"expected a list, got {kind(value)}", field=key, mend=mend)
        else:
            fields = {key: value}
        for name, each in fields.items():
            given.append(each)
            stored.append(images.take(each, name))
        used.add(key)
    texts = [key for key in PAIR_TEXT_KEYS if not is_empty(row.get(key))]
    if any(row[key] != row[texts[0]] for key in texts):
        mend = "Name the text's column with text_field, or leave the other out with drop_columns"
        raise BadSampleError(f"{' and '.join(texts)} say different things", field=texts[1], mend=mend)
    used |= {key for key in PAIR_TEXT_KEYS if key in row}
    refuse_unused(row, used.union(also), given)
    return Flat(stored, texts[0] if texts else None, frozenset(used))


def parse_chat(row: Row, images: Images) -> Parsed:
    """Chat messages: `messages` of `{"role", "content"}`, `content` a string or a list of text and image parts.

    An image part names its file under `image` or `path`, or stands for the next entry of the row's `images`. Beside
    image parts a literal `<image>` in a text is text; without any, each stands for the next of the row's images. The
    other forms of [`parse_conversation`] are read as well.
    """
    return parse_conversation(row, images, form_of(row) or "messages")


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


Parser = Callable[[Row, Images], Parsed]

#: The parser of each format.
PARSERS: dict[str, Parser] = {
    "llava": parse_llava,
    "mmc4": parse_mmc4,
    "obelics": parse_obelics,
    "chat": parse_chat,
    "pairs": parse_pair,
}


def detect(row: Any) -> str | None:
    """The format of a raw row by its keys, or None."""
    if not isinstance(row, Mapping):
        return None
    if row.get("conversations") is not None:
        return "llava"
    for name, keys in (("mmc4", ("text_list", "image_info")), ("obelics", ("texts", "images"))):
        if all(key in row for key in keys):
            return name
    if form_of(row) is not None:
        return "chat"
    has_text = any(not is_empty(row.get(key)) for key in PAIR_TEXT_KEYS)
    if has_text and ("url" in row or any(not is_empty(row.get(key)) for key in IMAGE_KEYS)):
        return "pairs"
    return None
