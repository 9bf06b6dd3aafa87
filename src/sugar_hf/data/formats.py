"""One pure parser for each format: a raw row in, the messages and images of the common schema out.

A parser knows neither files nor lines; it raises a [`BadSampleError`] that names the field, and the reader adds the
place. Conversations are read in all the forms that tools of fine-tuning write:

| form | a row |
|---|---|
| LLaVA, ShareGPT | `conversations` of `{"from", "value"}` or `{"role", "content"}` |
| TRL, LLaMA-Factory, ms-swift | `messages` of `{"role", "content"}`; `prompt` and `completion` of such messages |
| ms-swift, Alpaca | `query` and `response`; `instruction`, `input` and `output`; `history` and `system` beside them |

Images stand under `image` or `images` of the row, or in the image parts of a turn.
"""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from .errors import BadSampleError
from .schema import (
    CHAT_ROLES,
    DOCUMENT_ROLE,
    MAYBE_IMAGE_KEYS,
    PLACEHOLDER,
    check_text,
    filled,
    image_part,
    is_empty,
    is_origin,
    kind,
    load_image,
    looks_like_media,
    lost_placeholder,
    refuse_unused,
    resolve_image,
    text_part,
)

Row = Mapping[str, Any]
Part = dict[str, str | None]
StoredImage = dict[str, Any]
Parsed = tuple[list[dict[str, Any]], list[Any]]

#: Names of columns of images, in the order in which their images come, and of the text.
IMAGE_KEYS = ("image", "images", "image_path", "jpg", "png", "webp", *MAYBE_IMAGE_KEYS)
PAIR_TEXT_KEYS = ("text", "caption", "txt")

#: Columns with the turns of each form; those of a form are all there, or it is another.
FORMS = {
    "conversations": ("conversations",),
    "messages": ("messages",),
    "prompt": ("prompt", "completion"),
    "query": ("query", "response"),
    "instruction": ("instruction", "output"),
}
_BESIDE = {"query": ("history",), "instruction": ("history", "input")}
_ROLES = {
    "human": "user",
    "observation": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    **{role: role for role in CHAT_ROLES},
}
_IMAGE_SOURCES = ("image", "path", "base64")
# Beside any of these, a question and an answer are only known about a document.
_OTHER_CONTENT = ("text", "caption", "txt", "document", "sample")
# Columns that change what a conversation says or teaches, and have no place in the common schema.
_UNTAKEN = (
    *("tools", "objects", "chosen", "rejected", "rejected_response", "rejected_messages"),
    *("positive_messages", "negative_messages"),
)
# Other tools' marks of an image; with any of them in a text nobody can tell where the images belong.
_FOREIGN_MARK = re.compile(
    r"<\|?(?:image|img|video|audio)[ _]?(?:pad|start|here|\d+)?\|?>|<img>[^<]+</img>", re.IGNORECASE
)


class Images(Protocol):
    """What turns a row's words for images into what is stored."""

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
    """

    root: str
    allow_outside_root: bool = False
    validate: bool = True
    drop_broken: bool = False
    dropped: list[BadSampleError] = field(default_factory=list)
    intact: set[str] = field(default_factory=set)

    def take(self, value: Any, name: str) -> StoredImage:
        """Store a path, bytes, or a `{"bytes", "path"}` struct.

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


class GivenImages:
    """Takes images as they are, where a program gives them and no file: nothing is looked up or decoded."""

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
    """An image and its caption, or several, as COYO, webdataset tools and ImageFolder metadata name them.

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
        for key in PAIR_TEXT_KEYS:
            if row.get(key) is not None:
                _captions(row[key], key)
        raise BadSampleError("no caption", field="text", mend=f"Give it under one of {', '.join(PAIR_TEXT_KEYS)}")
    captions = _captions(row[flat.text_key], flat.text_key)
    return _document([*(image_part() for _ in flat.images), *captions]), flat.images


def _captions(value: Any, key: str) -> list[Part]:
    if not isinstance(value, list | tuple):
        return [text_part(check_text(value, key))]
    return [text_part(check_text(text, f"{key}[{i}]")) for i, text in enumerate(value)]


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
    """Find images and text of a row under all names that they may have; the one place where these are known.

    Images stand under `image`, `image_path`, `jpg`, `png`, `webp` (one or a list), `images` (a list), or, if there is
    none, under `file_name`, `filepath` or `path`. Empty cells are no images and no texts.

    Raises:
        BadSampleError: An image cannot be taken, two columns hold different texts, or one holds a picture, a film or
            a sound that nothing uses.
    """
    given: list[Any] = []
    stored: list[Any] = []
    full = filled(row)
    used = {key for key in IMAGE_KEYS if key in row and key not in full}
    for key in [key for key in IMAGE_KEYS if key in full]:
        value = row[key]
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
    texts = [key for key in PAIR_TEXT_KEYS if key in full]
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
    full = filled(row)
    if _form(row, full) is not None:
        return "chat"
    if full.intersection(PAIR_TEXT_KEYS) and ("url" in row or full.intersection(IMAGE_KEYS)):
        return "pairs"
    return None


# ---- Conversations ----


@dataclass(frozen=True)
class Turn:
    """One turn as the row has it, and where its content stands."""

    role: str
    content: Any
    field: str


def form_of(row: Row) -> str | None:
    """The form of a conversation by its keys, or None."""
    return _form(row, filled(row))


def _form(row: Row, full: set[str]) -> str | None:
    for form, keys in FORMS.items():
        if (
            row.get(keys[0]) is not None
            if len(keys) == 1
            else full.issuperset(keys) and full.isdisjoint(_OTHER_CONTENT)
        ):
            return form
    return None


def form_columns(row: Row) -> set[str]:
    """The columns that a conversation is read from."""
    form = form_of(row)
    return set() if form is None else {*FORMS[form], *_BESIDE.get(form, ()), "system", "image", "images"}


def parse_conversation(row: Row, images: Images, form: str) -> Parsed:
    """Messages and images of a row of one of the forms.

    Without image parts, each `<image>` in a turn stands for the next of the row's images and stays where it is in the
    turn; there have to be as many as images. Where the row has image parts, these alone stand for images.

    Raises:
        BadSampleError: A turn or an image is broken, images and their places are not equally many, a question has a
            placeholder that no image fills, or the row has pictures, films or sounds that nothing uses.
    """
    turns, used = _turns(row, form)
    for key in _UNTAKEN:
        if not is_empty(row.get(key)) and row[key] not in ("[]", "{}"):
            mend = "Leave the column out with drop_columns if the conversation is whole without it"
            raise BadSampleError("the conversation needs it, and it cannot be taken", field=key, mend=mend)
    key, listed = _listed(row)
    given: list[Any] = []
    if any(_is_image(part) for turn in turns for part in _parts(turn)):
        messages, stored = _from_parts(turns, listed, images, given)
    else:
        messages, stored = _from_marks(turns, key, row, listed, images, given, form)
    refuse_unused(row, {*used, "image", "images"}, given)
    return messages, stored


# ---- Turns ----


def _turns(row: Row, form: str) -> tuple[list[Turn], set[str]]:
    """The turns, and the columns that they were read from."""
    used = {*FORMS[form], *_BESIDE.get(form, ()), "system"}
    if form in ("conversations", "messages"):
        turns = _of_list(row, form)
    elif form == "prompt":
        turns = [*_of_list(row, "prompt"), *_of_list(row, "completion")]
        if any(turn.role == "assistant" for turn in turns if turn.field.startswith("prompt")):
            raise BadSampleError(
                "it has an answer, and here every answer is learnt, not the completion alone",
                field="prompt",
                mend="Join both as `messages` if all answers may be learnt",
            )
    else:
        question, answer = FORMS[form]
        turns = []
        for i, pair in enumerate(row.get("history") or []):
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise BadSampleError(f"expected a question and an answer, got {kind(pair)}", field=f"history[{i}]")
            turns += [Turn("user", pair[0], f"history[{i}][0]"), Turn("assistant", pair[1], f"history[{i}][1]")]
        asked = row[question]
        if form == "instruction" and not is_empty(row.get("input")):
            asked = f"{asked}\n{row['input']}"
        turns += [Turn("user", asked, question), Turn("assistant", row[answer], answer)]
    system = row.get("system")
    if not is_empty(system) and not (turns and turns[0].role == DOCUMENT_ROLE):
        if turns and turns[0].role == "system":
            raise BadSampleError("there is a turn of the system already", field="system", mend="Keep one of them")
        turns.insert(0, Turn("system", system, "system"))
    return turns, used


def _of_list(row: Row, name: str) -> list[Turn]:
    value = row.get(name)
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f"invalid JSON ({error})", field=name) from error
    if not isinstance(value, list | tuple) or not value:
        if name in ("prompt", "completion"):
            mend = 'Write it as messages: [{"role": "user", "content": ...}]'
            raise BadSampleError(f"expected a list of messages, got {kind(value)}", field=name, mend=mend)
        raise BadSampleError(f"expected a list of at least one, got {kind(value)}", field=name)
    return [_turn(turn, f"{name}[{i}]") for i, turn in enumerate(value)]


def _turn(turn: Any, at: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise BadSampleError(f"expected a dict, got {kind(turn)}", field=at)
    speaker, said = ("from", "value") if turn.get("role") is None and "from" in turn else ("role", "content")
    named = turn.get(speaker)
    role = _ROLES.get(named) if isinstance(named, str) else None
    if named == DOCUMENT_ROLE and speaker == "role":
        role = DOCUMENT_ROLE
    if role is None and speaker == "from":
        raise BadSampleError(f"unknown speaker {named!r:.80}", field=f"{at}.from", mend="Use human or gpt")
    if role is None:
        mend = f"Use {', '.join((*CHAT_ROLES, DOCUMENT_ROLE))}"
        raise BadSampleError(f"unknown role {named!r:.80}", field=f"{at}.role", mend=mend)
    if turn.get("loss") is False or turn.get("loss") == 0 or turn.get("weight") == 0:
        mend = "Leave the turn out, or the key if it may be learnt"
        raise BadSampleError("a turn that is not to be learnt cannot be marked as such here", field=at, mend=mend)
    if not is_empty(turn.get("tool_calls")):
        raise BadSampleError("calls of tools are not taken", field=f"{at}.tool_calls", mend="Write them as text")
    refuse_unused(turn, {speaker, said}, where=at)
    return Turn(role, turn.get(said), f"{at}.{said}")


def _parts(turn: Turn) -> list[Any]:
    if isinstance(turn.content, str):
        return [turn.content]
    if isinstance(turn.content, list | tuple):
        return list(turn.content)
    if _is_image(turn.content):
        return [turn.content]
    expected = "a string" if turn.field.endswith(".value") else "a string or a list"
    raise BadSampleError(f"expected {expected}, got {kind(turn.content)}", field=turn.field)


def _is_image(part: Any) -> bool:
    if isinstance(part, Mapping):
        named = any(not is_empty(part.get(key)) for key in _IMAGE_SOURCES) or not is_empty(part.get("bytes"))
        return part.get("type") == "image" or ("type" not in part and named)
    return isinstance(part, Path | Image.Image | bytes | bytearray)


# ---- Images in their places ----


def _listed(row: Row) -> tuple[str, list[tuple[Any, str]]]:
    """The column that names the row's images, and each with its field. Empty entries are no images."""
    found = [key for key in ("image", "images") if not is_empty(row.get(key))]
    if len(found) == 2 and _as_list(row["image"]) != _as_list(row["images"]):
        raise BadSampleError("both `image` and `images` name images", field="images", mend="Keep one of them")
    if not found:
        return "images" if row.get("images") is not None else "image", []
    key, value = found[0], row[found[0]]
    if not isinstance(value, list | tuple):
        return key, [(value, key)]
    return key, [(each, f"{key}[{i}]") for i, each in enumerate(value) if not is_empty(each)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _from_parts(turns: list[Turn], listed: list[tuple[Any, str]], images: Images, given: list[Any]) -> Parsed:
    """Image parts name their image, or stand for the next of the row's."""
    messages, stored, used = [], [], 0
    for turn in turns:
        content: list[Part] = []
        for j, part in enumerate(_parts(turn)):
            name = turn.field if isinstance(turn.content, str) else f"{turn.field}[{j}]"
            if not _is_image(part):
                content.append(_text_of(part, name, turn))
                continue
            source, value = _source(part, name)
            if value is None:
                if used == len(listed):
                    raise BadSampleError(
                        f"no image left for it: there are {len(listed)}, but more image parts",
                        field=name,
                        mend="Name its file under `image`, or add it to `images`",
                    )
                index = part.get("index")
                if isinstance(index, int) and index != used:
                    mend = "Order the images as their parts are"
                    raise BadSampleError(f"it asks for image {index}, but is image part {used}", field=name, mend=mend)
                value, source = listed[used]
                used += 1
            given.append(value)
            stored.append(images.take(value, source))
            content.append(image_part())
        messages.append(_message(turn, content))
    if used < len(listed):
        raise BadSampleError(
            f"{len(listed)} images, but {used} image parts that stand for them",
            field="images",
            mend="Every image needs a part, but fewer image parts are given",
        )
    _refuse_lost(turns, messages)
    return messages, stored


def _source(part: Any, name: str) -> tuple[str, Any]:
    """The field and value of the image that a part names itself; no value if it names none."""
    if not isinstance(part, Mapping):
        return name, part
    if part.keys() <= {"bytes", "path"}:
        return name, part
    named = [key for key in _IMAGE_SOURCES if not is_empty(part.get(key))]
    url = part.get("url") or part.get("image_url")
    if url:
        mend = "Download the image first and give its path"
        raise BadSampleError(f"{url!r:.200} is a URL, which is not fetched", field=f"{name}.url", mend=mend)
    if len(named) > 1:
        raise BadSampleError("an image part needs one of image, path, base64", field=name)
    if not is_empty(part.get("text")):
        raise BadSampleError("an image part with a text", field=f"{name}.text", mend="Make the text a part of its own")
    refuse_unused(part, {"type", "index", *named}, where=name)
    if not named:
        return name, None
    [key] = named
    return f"{name}.{key}", decode_base64(part[key], f"{name}.{key}") if key == "base64" else part[key]


def _from_marks(
    turns: list[Turn],
    key: str,
    row: Row,
    listed: list[tuple[Any, str]],
    images: Images,
    given: list[Any],
    form: str,
) -> Parsed:
    """Each `<image>` stands for the next of the row's images."""
    messages: list[dict[str, Any]] = []
    marks = 0
    for turn in turns:
        content = []
        for j, part in enumerate(_parts(turn)):
            name = turn.field if isinstance(turn.content, str) else f"{turn.field}[{j}]"
            text = _text_of(part, name, turn)
            marks += (text["text"] or "").count(PLACEHOLDER)
            content += _split(text["text"] or "") if listed else [text]
        messages.append(_message(turn, content))
    if not listed:
        if marks and row.get(key) is not None:
            what = f"it is {kind(row[key])}" if isinstance(row[key], list) else "it is empty"
            fault = f"{what}, but the conversation has {marks} {PLACEHOLDER}"
            raise BadSampleError(fault, field=key, mend="Fill it in")
    elif not marks and form != "conversations":  # as TRL and ms-swift read them
        _put_in_front(turns, messages, len(listed))
    elif marks != len(listed):
        raise BadSampleError(
            f"the conversation has {marks} {PLACEHOLDER}, but `{key}` names {len(listed)}",
            field=key,
            mend=f"Write one {PLACEHOLDER} for each image; every image needs a part, but fewer image parts are given",
        )
    _refuse_lost(turns, messages)
    given += [value for value, _ in listed]
    return messages, [images.take(value, field) for value, field in listed]


def _put_in_front(turns: list[Turn], messages: list[dict[str, Any]], count: int) -> None:
    """Put images that nothing gives a place in front of the first question."""
    for turn, message in zip(turns, messages, strict=True):
        if message["role"] != "user":
            continue
        if mark := next((m for p in message["content"] if (m := _FOREIGN_MARK.search(p["text"]))), None):
            mend = f"Write {PLACEHOLDER} where each image belongs"
            raise BadSampleError(f"{mark[0]!r:.80} is no place that is known", field=turn.field, mend=mend)
        message["content"] = [image_part() for _ in range(count)] + message["content"]
        return
    raise BadSampleError("there are images, but no question that they could belong to", field="images")


def _refuse_lost(turns: list[Turn], messages: list[dict[str, Any]]) -> None:
    has_images = any(part["type"] == "image" for message in messages for part in message["content"])
    for turn, message in zip(turns, messages, strict=True):
        for part in message["content"] if message["role"] == "user" else []:
            if mark := lost_placeholder(part["text"] or ""):
                which = "that no image fills" if has_images else "in a row without `image`"
                raise BadSampleError(f"{mark} {which}", field=turn.field, mend="Add the image or remove it")
            if not has_images and PLACEHOLDER in part["text"]:
                warnings.warn(
                    f"{PLACEHOLDER} inside a sentence of a row without images is read as text. Name the image under "
                    "`image` if it stands for one.",
                    stacklevel=2,
                )


def _text_of(part: Any, name: str, turn: Turn) -> Part:
    if isinstance(part, str):
        at = name if name.endswith(("]", ".value")) or "." not in name else f"{name}[0].text"
        return text_part(check_text(part, at))
    if not isinstance(part, Mapping):
        raise BadSampleError(f"expected a dict, got {kind(part)}", field=name)
    part_type = part.get("type", "text" if "text" in part else None)
    if part_type != "text":
        raise BadSampleError(f"unknown part type {part_type!r:.80}", field=f"{name}.type", mend="Use text or image")
    refuse_unused(part, {"type", "text"}, where=name)
    return text_part(check_text(part.get("text"), f"{name}.text"))


def _message(turn: Turn, content: list[Part]) -> dict[str, Any]:
    if not content:
        mend = "Fill it in or leave it out"
        raise BadSampleError("it is empty: neither text nor image", field=turn.field, mend=mend)
    return {"role": turn.role, "content": content}


def _split(text: str) -> list[Part]:
    parts: list[Part] = []
    for i, piece in enumerate(text.split(PLACEHOLDER)):
        if i:
            parts.append(image_part())
        if piece.strip():
            parts.append(text_part(piece.strip()))
    return parts


def decode_base64(text: Any, field: str) -> bytes:
    """The bytes of an image that is written in base64, with a `data:` address in front or without.

    Raises:
        BadSampleError: It is no base64.
    """
    if not isinstance(text, str):
        raise BadSampleError(f"expected a string, got {kind(text)}", field=field)
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except ValueError as error:  # binascii.Error is one; so is what letters beyond ASCII give
        raise BadSampleError(f"invalid base64 ({error})", field=field) from error
