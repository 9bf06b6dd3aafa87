"""Which characters of a written sample belong to which of its images.

Most processors replace an image's placeholder in one place of transformers, which tells what stands where. What it
tells is checked. Where it tells nothing (a processor that replaces placeholders by its own code, a version of
transformers that works otherwise), each image is written out alone, and its tokens are counted.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

from PIL import Image
from transformers import ProcessorMixin

from .rendering_sugar import MARK, Rendered, control_tokens, image_placeholder, image_token, mark, placeholder_token

Span = tuple[int, int]  # first character, past the last


class ImagesNotFoundError(ValueError):
    """A processor does not write images in a way in which their tokens could be told."""


def refuse_images(backbone: ProcessorMixin, where: str, reason: str) -> NoReturn:
    """Say in one sentence that images cannot be used, and what to do.

    Raises:
        ImagesNotFoundError: Always.
    """
    raise ImagesNotFoundError(
        f"{where}: no images can be used with {type(backbone).__name__}: {reason}. Leave images out, or take a "
        "backbone whose processor writes the tokens of an image in the place of its placeholder."
    )


def recorded_spans(text: str, record: list[Any], count: int) -> list[Span] | None:
    """Read where a processor has put images from what transformers notes about it.

    Args:
        text: The string with the images written out.
        record: Notes of one sample: type, span and replacement of each placeholder.
        count: Number of images.

    Returns:
        The span of each image; `None` if the notes are not such, or do not fit the string.
    """
    try:
        images = [(entry["new_span"], entry["replacement"]) for entry in record if entry["type"] == "image"]
        spans = [(int(start), int(end)) for (start, end), _ in images]
    except (KeyError, TypeError, ValueError):
        return None
    fits = all(text[start:end] == written != "" for (start, end), (_, written) in zip(spans, images, strict=True))
    return spans if len(spans) == count and fits and spans == sorted(spans) else None


class ImageCounter:
    """Tells where images are by writing each of them out alone.

    Args:
        backbone: The backbone's processor.
        options: Of its call.
    """

    def __init__(self, backbone: ProcessorMixin, options: dict[str, Any]) -> None:
        self._backbone, self._options = backbone, options
        self._placeholder = image_placeholder(backbone)
        self._token = placeholder_token(backbone, self._placeholder)
        self._controls = re.compile("|".join(map(re.escape, sorted(control_tokens(backbone), key=len, reverse=True))))
        self._written: dict[tuple[int, int], tuple[str, int]] = {}  # by the size of an image

    def spans(self, text: str, sample: Rendered) -> list[Span]:
        """Find the span of each image of a sample, from its first image token to its last.

        Raises:
            ImagesNotFoundError: If the string does not hold the tokens that the images have alone, between the same
                texts.
        """
        found = [self._alone(image, sample.where) for image in sample.images]
        tokens = {token for token, _ in found}
        if len(tokens) > 1:
            refuse_images(self._backbone, sample.where, f"it writes images with different tokens, {sorted(tokens)}")
        (token,) = tokens
        wanted, images = [0], iter(count for _, count in found)
        for match in re.finditer(f"{MARK.pattern}|{re.escape(self._token)}", sample.template):
            if match[1] is None:
                wanted[-1] += next(images, 0)
            else:
                wanted.append(0)
        places: list[list[Span]] = [[]]
        for match in re.finditer(f"{MARK.pattern}|{re.escape(token)}", text):
            if match[1] is None:
                places[-1].append(match.span())
            else:
                places.append([])
        if [len(between) for between in places] != wanted:
            refuse_images(
                self._backbone,
                sample.where,
                f"it writes {sum(map(len, places))} tokens {token!r} for images that have {sum(wanted)} when alone, "
                "or not in their places",
            )
        flat, start, spans = [place for between in places for place in between], 0, []
        for _, count in found:
            spans.append((flat[start][0], flat[start + count - 1][1]))
            start += count
        return spans

    def check(self, where: str) -> None:
        """Raise if not even a plain grey image is written in the place of its placeholder.

        Raises:
            ImagesNotFoundError: If so.
        """
        self._alone(Image.new("RGB", (64, 48), "grey"), where)

    def _alone(self, image: Image.Image, where: str) -> tuple[str, int]:
        """Return the token of an image that stands between two texts, and how many of them it has."""
        if image.size not in self._written:
            try:
                text = self._write(image)
            except Exception as error:
                reason = f"it does not write an image in the place of {self._token!r} ({error})"
                refuse_images(self._backbone, where, reason)
            match = re.search(f"{mark(0)}(.*){mark(1)}", text, re.DOTALL)
            counts = Counter(self._controls.findall(match[1] if match else ""))
            if not counts:
                refuse_images(self._backbone, where, "it writes no control token for an image between two texts")
            named = image_token(self._backbone)
            self._written[image.size] = max(counts.items(), key=lambda item: (item[1], item[0] == named))
        return self._written[image.size]

    def _write(self, image: Image.Image) -> str:
        """Return the string that the processor makes of an image between two marks, before it is tokenised."""
        processor: Any = without_checks(self._backbone)
        processor.tokenizer = _Reader(self._backbone.tokenizer)
        text = f"{mark(0)}{self._placeholder.strip()}{mark(1)}"
        try:
            processor(images=[[image]], text=[text], return_tensors="pt", **self._options)
        except _Written as written:
            return str(written)
        raise ValueError("it tokenises no string")


class _Written(Exception):  # noqa: N818
    """What a processor was about to tokenise."""


class _Reader:
    """Stands in for a tokenizer to read what it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> NoReturn:
        raise _Written(text if isinstance(text, str) else text[0])


def without_checks(backbone: ProcessorMixin) -> ProcessorMixin:
    """Copy a processor that takes samples with and without images together: they have been checked."""
    processor = copy.copy(backbone)
    check: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    processor.validate_inputs = check  # type: ignore[method-assign]
    return processor
