"""Interleaved samples: read into messages of text and image parts, and written out as strings."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from jinja2 import TemplateError
from PIL import Image
from transformers import ProcessorMixin

from .images_sugar import read_image_parts

# Instructions to the model rather than content of the sample: their text makes no slice.
INSTRUCTION_ROLES = ("system", "developer")
#: What the image of a part may stand under; an address under `url` alone.
IMAGE_KEYS = ("image", "path", "base64", "url")
_EMPTY = "has neither text nor image"
# A run of marks is looked at once, from its start, and gives nothing back: anything else would be quadratic.
_SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]++[\"'”’)\]]*+(?=\s)|[。！？]++[”’」』）]*+|\n")
# A chat template writes a role out as it is, so that it must not hold a control token or a line break.
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")

# The names that any tokenizer may give to a token; a list of further ones has the name of the list.
_COMMON_NAMES = frozenset(
    {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    | {"additional_special_tokens", "extra_special_tokens"}
)
# A mark is the number of a part between two private-use characters. Templates and backbone processors see marks only:
# text of the user can neither be taken for a placeholder or a control token, nor be altered on the way.
MARK = re.compile("\ue000(\\d+)\ue001")

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
        return load_images([self])[0]


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
            `{"type": "image", "image"|"path"|"base64"|"url": ...}`. Only what is under `url` is downloaded.
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


def parse_batch(
    samples: Any, names: Sequence[str] | None, split_sentences: bool
) -> tuple[Sequence[str], list[list[Message]]]:
    """Bring the samples of a batch to messages.

    Args:
        samples: A list of samples; a lone str, image or Path is a batch of one.
        names: What to call them in errors; "sample 0", ... when `None`.
        split_sentences: See [`parse_sample`].

    Returns:
        The names, and the messages of each sample.

    Raises:
        ValueError: If it is no such list; a [`SampleError`] for a sample.
    """
    if isinstance(samples, str | bytes | Image.Image | Path):
        samples = [samples]
    if is_chat(samples):
        raise ValueError("samples is one chat. Pass a list of samples: processor([messages]).")
    if not isinstance(samples, list | tuple) or not samples:
        raise ValueError(f"samples must be a list of at least one sample, got {samples!r:.80}")
    names = [f"sample {i}" for i in range(len(samples))] if names is None else names
    return names, [parse_sample(*row, split_sentences) for row in zip(samples, names, strict=True)]


def load_images(parts: Iterable[Part]) -> list[Image.Image]:
    """Return the images of parts in RGB.

    Raises:
        ValueError: If one cannot be read as an image, naming the part.
    """
    return read_image_parts([(part.where, part.image_key, part.image) for part in parts])


def is_chat(sample: Any) -> TypeGuard[Sequence[Mapping[str, Any]]]:
    """Whether a sample is a list of chat messages."""
    return (
        isinstance(sample, list | tuple)
        and len(sample) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in sample)
    )


def with_prompt(sample: Sample, prompt: str | None) -> Sample:
    """Put a prompt in front of a sample as a system message; the texts and images of one without roles are the user's.

    A prompt is an instruction, and makes no slice. Without one the sample stays as it is.

    >>> with_prompt("a cat", "Find the picture.")[1]
    {'role': 'user', 'content': ['a cat']}
    """
    if not prompt:
        return sample
    system = {"role": "system", "content": [{"type": "text", "text": prompt}]}
    return [system, *sample] if is_chat(sample) else [system, {"role": "user", "content": sample_items(sample)}]


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


def sample_sizes(samples: Iterable[Sample], names: Iterable[str]) -> list[tuple[int, int]]:
    """Measure samples without loading an image: by their number of images, then of characters."""
    sizes = []
    for sample, name in zip(samples, names, strict=True):
        parts = [part for message in parse_sample(sample, name) for part in message.parts]
        sizes.append((sum(part.is_image for part in parts), sum(len(part.text) for part in parts)))
    return sizes


# --- samples written out, with a mark in the place of every text, so that user text is never read as code


@dataclass(frozen=True)
class TextPiece:
    """A text that replaces its mark.

    Args:
        text: The text as it is written.
        slices: (number of the slice, start, end) in characters of `text`.
        cuts: Characters of `text` at which a token must end.
        is_target: Whether a model learns to write it.
        ends_turn: Whether the end-of-turn token after it is learnt too.
        lead: Characters before it that are learnt too: what the template writes after the generation prompt.
        steers: Whether control tokens in it count as such; placeholders of images never do.
    """

    text: str
    slices: tuple[tuple[int, int, int], ...]
    cuts: tuple[int, ...]
    is_target: bool
    ends_turn: bool
    lead: int = 0
    steers: bool = False


@dataclass(frozen=True)
class Rendered:
    """A sample written out.

    Args:
        where: Name of the sample for error messages.
        template: The string, with marks for texts and the backbone's placeholders for images.
        pieces: What the marks stand for.
        images: The images in reading order.
        image_slices: Their slice numbers.
        slice_count: Number of slices.
        add_special_tokens: Whether the tokenizer puts its own tokens (bos) around it.
    """

    where: str
    template: str
    pieces: dict[int, TextPiece]
    images: tuple[Image.Image, ...]
    image_slices: tuple[int, ...]
    slice_count: int
    add_special_tokens: bool


def mark(number: int) -> str:
    """Return the mark of a part."""
    return f"\ue000{number}\ue001"


class ControlTokens:
    """The tokens that steer the model in the strings of a backbone's processor, and what it writes for an image.

    They depend on the processor, its chat template and the added tokens of its tokenizer, and on no sample.

    Args:
        backbone: The backbone's processor.

    Attributes:
        image: The token that the processor names as that of images; `None` if it names none.
        all: The added tokens that steer the model: special ones, and those that the processor or template writes.
        placeholder: What the chat template writes for an image that stands before a text, e.g. `"<image>\\n"`. The
            bare image token where there is no template, and nothing if there is no such token.
        placeholder_token: The token in it that the processor replaces.
        of_media: The tokens of `all` that stand for or around images, videos and sounds; no text may hold them.
        marks: Matches the mark of a text, or `placeholder_token`.
    """

    def __init__(self, backbone: ProcessorMixin) -> None:
        self.image = image_token(backbone)
        tokenizer, replaced = backbone.tokenizer, {str(token) for token in backbone.all_special_multimodal_tokens}
        template = str(backbone.chat_template or tokenizer.chat_template or "")
        self.all = frozenset(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.content.strip() and (token.special or token.content in replaced or token.content in template)
        )
        self.placeholder = self._placeholder_of(backbone)
        token = self.image or ""
        self.placeholder_token = token if token in self.placeholder else self._in(self.placeholder)[0]
        # Those that the processor replaces, those that the template writes around an image, and those to which the
        # tokenizer gives a name of their own (Gemma 3's `image_token` is not the one that its processor replaces).
        named = {str(value) for key, value in tokenizer.special_tokens_map.items() if key not in _COMMON_NAMES}
        self.of_media = frozenset(
            token for token in self.all if token in replaced or token in named or token in self.placeholder
        )
        self.marks = re.compile(f"{MARK.pattern}|{re.escape(self.placeholder_token) or '(?!)'}")

    def _placeholder_of(self, backbone: ProcessorMixin) -> str:
        """Render one message with and without an image, and return the difference."""
        token = self.image
        if token is None or (backbone.chat_template is None and backbone.tokenizer.chat_template is None):
            return token or ""
        text = {"type": "text", "text": mark(0)}
        try:
            bare = apply_template(backbone, [{"role": "user", "content": [text]}], False)
            whole = apply_template(backbone, [{"role": "user", "content": [{"type": "image"}, text]}], False)
        except (TemplateError, TypeError):  # a template for strings only
            return token
        start = next((i for i, (a, b) in enumerate(zip(bare, whole, strict=False)) if a != b), 0)
        found = whole[start : whole.find(mark(0))]
        if found.count(token) == 1:
            return found
        # some templates write another token than the one that the processor names
        return found if found.count(token) == 0 and len(self._in(found)) == 1 else token

    def _in(self, text: str) -> list[str]:
        return any_of(self.all).findall(text)


def image_token(backbone: ProcessorMixin) -> str | None:
    """Return the token that the backbone's processor names as that of images, if it names one."""
    token = getattr(backbone, "image_token", None)
    return None if token is None else str(token)


def any_of(tokens: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of some tokens, the longest first."""
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def apply_template(backbone: ProcessorMixin, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    """Render HF chat messages with the chat template of the processor or, failing that, of its tokenizer.

    Raises:
        ValueError: If neither has one.
    """
    template = backbone.chat_template or backbone.tokenizer.chat_template
    if template is None:
        raise ValueError(
            "this model has no chat template. Set `processor.chat_template`, or give the sample without roles."
        )
    own = {} if backbone.chat_template is not None else {"chat_template": template}
    return backbone.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False, **own)


@dataclass(frozen=True)
class Renderer:
    """Write samples out for a backbone's processor.

    A plain sample is its texts and images in order, stripped, one newline between them, no template. A chat goes
    through the template: as it is where this keeps the order of texts and images, else with each message's content
    as one text that holds the image placeholders in place.

    Args:
        backbone: The backbone's processor.
        controls: Its control tokens.
        add_generation_prompt: End a chat with the start of the assistant's turn; a plain sample is a prompt as it is.
        return_labels: Make sure that a chat which ends with the assistant's text ends with an eos token.
        answers_steer: Whether control tokens in the assistant's texts count as such.
    """

    backbone: ProcessorMixin
    controls: ControlTokens
    add_generation_prompt: bool = False
    return_labels: bool = False
    answers_steer: bool = False

    def render(self, samples: Sequence[list[Message]], names: Sequence[str]) -> list[Rendered]:
        """Write a batch of samples out, and load their images.

        Args:
            samples: From `parse_sample`.
            names: Of the samples, for error messages.

        Raises:
            ValueError: If the template cannot render a chat, or an image cannot be read.
        """
        written = [self._written(*row) for row in zip(samples, names, strict=True)]
        images = [part for messages in samples for message in messages for part in message.parts if part.is_image]
        loaded = iter(load_images(images) if images else ())
        return [replace(sample, images=tuple(islice(loaded, len(sample.image_slices)))) for sample in written]

    def _written(self, messages: list[Message], where: str) -> Rendered:
        """Write a sample out, without its images."""
        parts = [part for message in messages for part in message.parts]
        if self.controls.image is None and any(part.is_image for part in parts):
            raise ValueError(
                f"{where}: no images can be used with {type(self.backbone).__name__}: it names no token that stands "
                "for an image. Leave images out, or take a backbone whose processor writes the tokens of an image in "
                "the place of its placeholder."
            )
        is_plain = messages[0].role is None
        if is_plain:
            placeholder = self.controls.placeholder.strip()
            template = "\n".join(placeholder if part.is_image else mark(i) for i, part in enumerate(parts))
            add_special_tokens = True
        else:
            template = self._chat(messages, where, self.add_generation_prompt)
            bos = self.backbone.tokenizer.bos_token
            add_special_tokens = bos is None or not template.startswith(bos)
            if self.return_labels and messages[-1].role == "assistant":
                template = self._with_eos(template)
        pieces, image_slices, count, number = {}, [], 0, 0
        for turn, message in enumerate(messages):
            is_answer = message.role == "assistant"
            for position, part in enumerate(message.parts):
                if part.is_image:
                    image_slices.append(count + 1)
                else:
                    text, spans = self._trimmed(message, position)
                    # In a plain sample no token reaches over the end of a slice (".\n" may be one token), so that a
                    # prefix of it has the tokens it has on its own. A chat keeps the tokens the backbone knows.
                    cuts = tuple(end for _, end in (spans if is_plain else spans[:-1]))
                    slices = tuple((count + 1 + k, start, end) for k, (start, end) in enumerate(spans))
                    learns = self.return_labels and is_answer
                    pieces[number] = TextPiece(
                        text,
                        slices,
                        cuts,
                        is_target=is_answer or (is_plain and not self.add_generation_prompt),
                        ends_turn=is_answer and position == len(message.parts) - 1,
                        lead=self._lead(messages[:turn], where, template, number) if learns else 0,
                        steers=self.answers_steer and is_answer,
                    )
                count += part.slice_count
                number += 1
        return Rendered(where, template, pieces, (), tuple(image_slices), count, add_special_tokens)

    def _trimmed(self, message: Message, position: int) -> tuple[str, tuple[Span, ...]]:
        """Drop the whitespace around a text, which templates write themselves, except between it and an image."""
        part, in_chat = message.parts[position], message.role is not None
        text = part.text
        before = position > 0 and message.parts[position - 1].is_image and not self.controls.placeholder[-1].isspace()
        after = position + 1 < len(message.parts) and message.parts[position + 1].is_image
        start = 0 if before and in_chat else len(text) - len(text.lstrip())
        end = len(text) if after and in_chat else len(text.rstrip())
        return text[start:end], tuple((a - start, b - start) for a, b in part.spans)

    def _chat(self, messages: list[Message], where: str, add_generation_prompt: bool) -> str:
        parts = [part for message in messages for part in message.parts]
        wanted = [None if part.is_image else i for i, part in enumerate(parts)]
        placeholder = self.controls.placeholder
        problem: Exception | None = None
        for write in (_as_parts, _as_one_text, _as_string):
            try:
                template = apply_template(self.backbone, write(messages), add_generation_prompt)
            except (TemplateError, TypeError) as error:
                problem = error
                continue
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            if write is not _as_parts:
                template = MARK.sub(lambda m: placeholder if parts[int(m[1])].is_image else m[0], template)
            found = [None if match[1] is None else int(match[1]) for match in self.controls.marks.finditer(template)]
            if found == wanted:
                # two texts in a row would be glued together
                return template.replace("\ue001\ue000", "\ue001\n\ue000")
        reason = f" ({problem})" if problem is not None else ""
        raise ValueError(
            f"{where}: the model's chat template does not keep the texts and images of this chat{reason}. Use other "
            f"roles than {', '.join(str(message.role) for message in messages)}, or set another "
            "`processor.chat_template`."
        )

    def _lead(self, before: list[Message], where: str, template: str, number: int) -> int:
        """Count the whitespace between the generation prompt and the answer, which generation has to write itself.

        A template may write "ASSISTANT: Yes" for the answer, but "ASSISTANT:" to ask for it.
        """
        try:
            prompt = self._chat(before, where, add_generation_prompt=True)
        except ValueError:  # some templates do not render every prefix of a chat
            return 0
        between = template.removeprefix(prompt).partition(mark(number))[0] if template.startswith(prompt) else ""
        return len(between) if between.isspace() else 0

    def _with_eos(self, template: str) -> str:
        """End the chat with eos if its template ends the assistant's turn with no special token."""
        tail = template[max((match.end() for match in MARK.finditer(template)), default=0) :]
        eos = self.backbone.tokenizer.eos_token
        ends = any(token in tail for token in self.controls.all)
        return template if ends or eos is None else template + eos


def _as_parts(messages: list[Message]) -> list[dict[str, Any]]:
    numbers = iter(range(sum(len(message.parts) for message in messages)))
    return [
        {
            "role": message.role,
            "content": [
                {"type": "image"} if part.is_image else {"type": "text", "text": mark(number)}
                for part, number in zip(message.parts, numbers, strict=False)
            ],
        }
        for message in messages
    ]


def _as_string(messages: list[Message]) -> list[dict[str, Any]]:
    numbers = iter(range(sum(len(message.parts) for message in messages)))
    return [
        {"role": message.role, "content": "".join(mark(next(numbers)) for _ in message.parts)} for message in messages
    ]


def _as_one_text(messages: list[Message]) -> list[dict[str, Any]]:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in _as_string(messages)]
