"""From what a request holds to samples, within limits. No file is opened, and no address unless that is allowed."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image

from ..model.images_sugar import IMAGE_FORMATS, BadImageError, fetch_image, read_image
from ..model.samples_sugar import Sample, parse_sample
from .api_errors import invalid
from .schemas import ImagePart, Message, TextAndImage, TextPart

_DATA = re.compile(r"data:[\w.+/;=-]{0,100};base64,", re.IGNORECASE)
_WEB = ("http://", "https://")


@dataclass(frozen=True)
class Limits:
    """How much a request may hold.

    Args:
        body_bytes: Bytes of its body.
        pixels: Pixels of all of its images together. Pillow's own limit for one image holds as well.
        samples: Inputs, or documents to be put into order.
        slices: Texts and images of one input.
        input_tokens: Tokens of one input or prompt; what the model can take when `None`.
        new_tokens: Tokens of an answer.
        allow_urls: Whether addresses of images are fetched. Those of private networks are not, unless the environment
            variable `SUGAR_HF_URLS` says so.
    """

    body_bytes: int = 32 * 2**20
    pixels: int = 100_000_000
    samples: int = 2048
    slices: int = 256
    input_tokens: int | None = None
    new_tokens: int = 2048
    allow_urls: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < (name != "allow_urls"):
                raise ValueError(f"{name}={value}: give 1 or more.")


class Contents:
    """Reads the samples of one request.

    Args:
        limits: How much it may hold.
        split_sentences: Whether a sentence is a slice, or a text.
    """

    def __init__(self, limits: Limits, split_sentences: bool = False) -> None:
        self.limits = limits
        self.split_sentences = split_sentences
        self._pixels = 0

    def samples(self, items: Sequence[Any], param: str) -> list[Sample]:
        """Read several inputs.

        Raises:
            ApiError: One cannot be used; names it.
        """
        if len(items) > self.limits.samples:
            raise invalid(
                f"{param}: {len(items)} inputs, {self.limits.samples} are allowed.", param, "too_many_inputs"
            )
        return [self.sample(item, f"{param}[{number}]") for number, item in enumerate(items)]

    def sample(self, item: Any, param: str) -> Sample:
        """Read one input: a text, a text and an image, a list of texts and parts, or a chat.

        Raises:
            ApiError: It cannot be used; names the field.
        """
        if isinstance(item, str):
            sample: Any = item
        elif isinstance(item, TextAndImage):
            sample = [] if item.image is None else [self._image(item.image, f"{param}.image")]
            sample += [] if item.text is None else [item.text]
        elif isinstance(item[0], Message):
            sample = [self._message(message, f"{param}[{number}]") for number, message in enumerate(item)]
        else:
            sample = [self._part(part, f"{param}[{number}]") for number, part in enumerate(item)]
        self._check(sample, param)
        return sample

    def _message(self, message: Message, param: str) -> dict[str, Any]:
        if isinstance(message.content, str):
            return {"role": message.role, "content": message.content}
        parts = [self._part(part, f"{param}.content[{number}]") for number, part in enumerate(message.content)]
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
            for part in parts
        ]
        return {"role": message.role, "content": content}

    def _part(self, part: str | TextPart | ImagePart, param: str) -> str | Image.Image:
        if isinstance(part, ImagePart):
            return self._image(part.image_url.url, f"{param}.image_url.url")
        text = part if isinstance(part, str) else part.text
        if not text.strip():
            raise invalid(f"{param}: the text is empty.", param)
        return text

    def _image(self, address: str, param: str) -> Image.Image:
        try:
            data = self._bytes(address, param)
            self._count(data, param)
            return read_image(data)
        except BadImageError as error:
            raise invalid(f"{param}: {error}", param, "invalid_image") from error

    def _bytes(self, address: str, param: str) -> bytes:
        if found := _DATA.match(address):
            try:
                return base64.b64decode(address[found.end() :], validate=True)
            except (binascii.Error, ValueError) as error:
                raise invalid(f"{param}: the base64 is damaged ({error}).", param, "invalid_image") from error
        if not address.lower().startswith(_WEB):
            raise invalid(f"{param}: give an image as data:image/png;base64,...", param, "invalid_image")
        if not self.limits.allow_urls:
            raise invalid(
                f"{param}: this server opens no addresses (--allow-urls). Send the image as data:image/png;base64,...",
                param,
                "urls_not_allowed",
            )
        return fetch_image(address, default="public")  # what others send names no machine of our own network

    def _count(self, data: bytes, param: str) -> None:
        """Refuse too many pixels before any is decoded."""
        Image.init()
        try:
            with Image.open(BytesIO(data), formats=[name for name in IMAGE_FORMATS if name in Image.OPEN]) as image:
                pixels = image.width * image.height
        except Exception:  # Pillow raises whatever a broken header leads it into; decoding will say it better
            return
        self._pixels += pixels
        if self._pixels > self.limits.pixels:
            raise invalid(
                f"{param}: with it the images of the request have {self._pixels} pixels, {self.limits.pixels} are "
                "allowed. Make them smaller.",
                param,
                "too_many_pixels",
            )

    def _check(self, sample: Sample, param: str) -> None:
        try:
            messages = parse_sample(sample, param, self.split_sentences)
        except ValueError as error:
            raise invalid(str(error), param) from error
        count = sum(part.slice_count for message in messages for part in message.parts)
        if count > self.limits.slices:
            raise invalid(f"{param}: {count} slices, {self.limits.slices} are allowed.", param, "too_many_slices")
