"""Samples written out as strings, with a mark in the place of every text, so that user text is never read as code."""

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from PIL import Image
from transformers import ProcessorMixin

from .samples_sugar import Message, Part, Span

# The names that any tokenizer may give to a token; a list of further ones has the name of the list.
_COMMON_NAMES = frozenset(
    {f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    | {"additional_special_tokens", "extra_special_tokens"}
)
# A mark is the number of a part between two private-use characters. Templates and backbone processors see marks only:
# text of the user can neither be taken for a placeholder or a control token, nor be altered on the way.
MARK = re.compile("\ue000(\\d+)\ue001")


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
        steers: Whether control tokens in it count as such, but for placeholders of images.
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


def image_token(backbone: ProcessorMixin) -> str | None:
    """Return the token that the backbone's processor names as that of images, if it names one."""
    token = getattr(backbone, "image_token", None)
    return None if token is None else str(token)


def image_placeholder(backbone: ProcessorMixin) -> str:
    """Return what the chat template writes for an image that stands before a text, e.g. `"<image>\\n"`.

    Found by rendering one message with and without an image; the bare image token where there is no template, and
    nothing if there is no such token.
    """
    token = image_token(backbone)
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
    return found if found.count(token) == 0 and len(_controls_in(backbone, found)) == 1 else token


def placeholder_token(backbone: ProcessorMixin, placeholder: str) -> str:
    """Return the token of a placeholder, from [`image_placeholder`], that the processor replaces."""
    token = image_token(backbone) or ""
    return token if token in placeholder else _controls_in(backbone, placeholder)[0]


def _controls_in(backbone: ProcessorMixin, text: str) -> list[str]:
    controls = sorted(control_tokens(backbone), key=len, reverse=True)
    return re.findall("|".join(map(re.escape, controls)) or "(?!)", text)


def render(
    backbone: ProcessorMixin,
    messages: list[Message],
    where: str,
    placeholder: str,
    *,
    add_generation_prompt: bool = False,
    return_labels: bool = False,
    answers_steer: bool = False,
) -> Rendered:
    """Write a sample out.

    A plain sample is its texts and images in order, stripped, one newline between them, no template. A chat goes
    through the template: as it is where this keeps the order of texts and images, else with each message's content
    as one text that holds the image placeholders in place.

    Args:
        backbone: The backbone's processor.
        messages: From `parse_sample`.
        where: Name of the sample for error messages.
        placeholder: From [`image_placeholder`].
        add_generation_prompt: End a chat with the start of the assistant's turn; a plain sample is a prompt as it is.
        return_labels: Make sure that a chat which ends with the assistant's text ends with an eos token.
        answers_steer: Whether control tokens in the assistant's texts count as such.

    Raises:
        ValueError: If the template cannot render the chat.
    """
    parts = [part for message in messages for part in message.parts]
    if image_token(backbone) is None and any(part.is_image for part in parts):
        raise ValueError(
            f"{where}: no images can be used with {type(backbone).__name__}: it names no token that stands for an "
            "image. Leave images out, or take a backbone whose processor writes the tokens of an image in the place "
            "of its placeholder."
        )
    is_plain = messages[0].role is None
    if is_plain:
        template = "\n".join(placeholder.strip() if p.is_image else mark(i) for i, p in enumerate(parts))
        add_special_tokens = True
    else:
        template = _render_chat(backbone, messages, where, placeholder, add_generation_prompt)
        bos = backbone.tokenizer.bos_token
        add_special_tokens = bos is None or not template.startswith(bos)
        if return_labels and messages[-1].role == "assistant":
            template = _with_eos(backbone, template)
    pieces, image_slices, count, number = {}, [], 0, 0
    for turn, message in enumerate(messages):
        for position, part in enumerate(message.parts):
            if part.is_image:
                image_slices.append(count + 1)
            else:
                text, spans = _trimmed(part, message, position, placeholder, is_plain)
                # In a plain sample no token reaches over the end of a slice (".\n" may be one token), so that a
                # prefix of it has the tokens it has on its own. A chat keeps the tokens the backbone knows.
                cuts = tuple(end for _, end in (spans if is_plain else spans[:-1]))
                slices = tuple((count + 1 + k, start, end) for k, (start, end) in enumerate(spans))
                is_last = position == len(message.parts) - 1
                is_target = message.role == "assistant" or (is_plain and not add_generation_prompt)
                is_answer = message.role == "assistant"
                learns = return_labels and is_answer
                lead = _lead(backbone, messages[:turn], where, placeholder, template, number) if learns else 0
                ends_turn = is_target and is_last and not is_plain
                steers = answers_steer and is_answer
                pieces[number] = TextPiece(text, slices, cuts, is_target, ends_turn, lead, steers)
            count += part.slice_count
            number += 1
    images = tuple(part.load() for part in parts if part.is_image)
    return Rendered(where, template, pieces, images, tuple(image_slices), count, add_special_tokens)


def _trimmed(
    part: Part, message: Message, position: int, placeholder: str, is_plain: bool
) -> tuple[str, tuple[Span, ...]]:
    """Drop the whitespace around a text, which templates write themselves, except between it and an image."""
    text = part.text
    before = position > 0 and message.parts[position - 1].is_image and not placeholder[-1].isspace()
    after = position + 1 < len(message.parts) and message.parts[position + 1].is_image
    start = 0 if before and not is_plain else len(text) - len(text.lstrip())
    end = len(text) if after and not is_plain else len(text.rstrip())
    return text[start:end], tuple((a - start, b - start) for a, b in part.spans)


def _render_chat(
    backbone: ProcessorMixin, messages: list[Message], where: str, placeholder: str, add_generation_prompt: bool
) -> str:
    parts = [part for message in messages for part in message.parts]
    wanted = [None if part.is_image else i for i, part in enumerate(parts)]
    tokens = re.compile(f"{MARK.pattern}|{re.escape(placeholder_token(backbone, placeholder)) or '(?!)'}")
    problem: Exception | None = None
    for write in (_as_parts, _as_one_text, _as_string):
        try:
            template = apply_template(backbone, write(messages), add_generation_prompt)
        except (TemplateError, TypeError) as error:
            problem = error
            continue
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if write is not _as_parts:
            template = MARK.sub(lambda m: placeholder if parts[int(m[1])].is_image else m[0], template)
        found = [None if match[1] is None else int(match[1]) for match in tokens.finditer(template)]
        if found == wanted:
            # two texts in a row would be glued together
            return template.replace("\ue001\ue000", "\ue001\n\ue000")
    reason = f" ({problem})" if problem is not None else ""
    raise ValueError(
        f"{where}: the model's chat template does not keep the texts and images of this chat{reason}. Use other roles "
        f"than {', '.join(str(message.role) for message in messages)}, or set another `processor.chat_template`."
    )


def _lead(
    backbone: ProcessorMixin, before: list[Message], where: str, placeholder: str, template: str, number: int
) -> int:
    """Count the whitespace between the generation prompt and the answer, which generation has to write itself.

    A template may write "ASSISTANT: Yes" for the answer, but "ASSISTANT:" to ask for it.
    """
    try:
        prompt = _render_chat(backbone, before, where, placeholder, add_generation_prompt=True)
    except ValueError:  # some templates do not render every beginning of a chat
        return 0
    between = template.removeprefix(prompt).partition(mark(number))[0] if template.startswith(prompt) else ""
    return len(between) if between.isspace() else 0


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


def _with_eos(backbone: ProcessorMixin, template: str) -> str:
    """End the chat with eos if its template ends the assistant's turn with no special token."""
    tail = template[max((match.end() for match in MARK.finditer(template)), default=0) :]
    eos = backbone.tokenizer.eos_token
    ends = any(token in tail for token in control_tokens(backbone))
    return template if ends or eos is None else template + eos


def control_tokens(backbone: ProcessorMixin) -> frozenset[str]:
    """Return the added tokens that steer the model: special ones, and those that the processor or template writes."""
    template = str(backbone.chat_template or backbone.tokenizer.chat_template or "")
    multimodal = multimodal_tokens(backbone)
    return frozenset(
        token.content
        for token in backbone.tokenizer.added_tokens_decoder.values()
        if token.content.strip() and (token.special or token.content in multimodal or token.content in template)
    )


def multimodal_tokens(backbone: ProcessorMixin) -> set[str]:
    """Return the tokens that the backbone's processor replaces by images, videos and sounds."""
    return {str(token) for token in backbone.all_special_multimodal_tokens}


def placeholder_tokens(backbone: ProcessorMixin) -> frozenset[str]:
    """Return the control tokens that stand for or around images, videos and sounds; no text may hold them.

    Those that the processor replaces, those that the template writes around an image, and those to which the tokenizer
    gives a name of their own (Gemma 3's `image_token` is not the one that its processor replaces).
    """
    tokenizer = backbone.tokenizer
    placeholder = image_placeholder(backbone)
    named = {str(value) for key, value in tokenizer.special_tokens_map.items() if key not in _COMMON_NAMES}
    written = {token for token in control_tokens(backbone) if token in placeholder}
    return frozenset({*multimodal_tokens(backbone), *named, *written})
