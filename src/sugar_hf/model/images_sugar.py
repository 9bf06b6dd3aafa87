"""The one safe way from a file, bytes, a PIL image or an address to an RGB image.

Every image that the project takes passes through [`read_image`]. It decodes the whole image (a truncated file shows
itself only then), keeps Pillow's pixel limit and makes its warning an error, and opens only the raster formats of
photographs and drawings, so that data from elsewhere cannot reach Pillow's rarely used parsers. Nothing is downloaded
but by [`fetch_image`].
"""

import base64
import os
import re
import threading
import time
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib import request

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

# Formats that are opened, all of them parsed in Pillow itself or in its codec libraries. EPS and PDF run programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 20.0

_REPLACE = "Replace or remove the image"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_ADDRESS = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
# Longer than most names of files, which also have a dot.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}=*\s*")
_SETTING = threading.Lock()  # one thread at a time changes what Pillow does


class BadImageError(ValueError):
    """An image that cannot be used.

    Args:
        reason: What is wrong, in words.
        mend: What to do about it.
    """

    def __init__(self, reason: str, mend: str) -> None:
        self.reason = reason
        self.mend = mend
        super().__init__(reason, mend)

    def __str__(self) -> str:
        return f"{self.reason}. {self.mend}"


def read_image(source: Any) -> Image.Image:
    """Decode an image completely and return it as a new RGB image.

    The first frame stands for an animation. Transparent pixels are laid on white. The EXIF orientation is applied.
    16-bit greys are scaled to 8 bits (Pillow's own conversion would clip them).

    Args:
        source: A path (`str` or `pathlib.Path`), the bytes of a file, a PIL image, or the `{"bytes", "path"}` struct
            that `datasets.Image(decode=False)` yields (`bytes` wins).

    Returns:
        A PIL image of mode `RGB`, loaded, with no file open behind it.

    Raises:
        BadImageError: The file is missing, is no image or of a format not in `IMAGE_FORMATS`, is truncated or corrupt,
            has no pixels or more than `PIL.Image.MAX_IMAGE_PIXELS`, or the type of `source` is none of the above.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if source is None:
            raise BadImageError("the image has neither bytes nor a path", 'Give {"bytes": ...} or {"path": ...}')
    if isinstance(source, Image.Image):
        return _decode(source, "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _open(BytesIO(source), f"the image of {len(source)} bytes")
    if not isinstance(source, str | Path):
        raise BadImageError(
            f"an image cannot come from {type(source).__name__}",
            "Give a path, bytes, a PIL image or a {'bytes', 'path'} struct",
        )
    path = os.fspath(source)
    try:
        # Checked before opening: a named pipe or a device would block or never end.
        if not os.path.isfile(path):
            raise BadImageError(f"no file {path[:200]!r}", "Check the path or the image root")
        with open(path, "rb") as file:
            return _open(file, f"{path!r}")
    except BadImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        raise BadImageError(f"cannot read {path[:200]!r} ({error})", "Check the path") from error


def read_image_part(key: str, source: Any) -> Image.Image:
    """Read the image of a part `{"type": "image", key: source}` of a sample.

    An address is fetched under the key `url` alone, so that no text of a data file makes this machine call another.

    Args:
        key: `image` (a PIL image, a path, a `data:` address or base64), `path`, `url` (http, https or a `data:`
            address) or `base64`.
        source: A PIL image, a path or a str.

    Returns:
        An RGB image, as [`read_image`] makes it.

    Raises:
        BadImageError: If it cannot be read, or an address stands where none may.
    """
    if not isinstance(source, str):
        return read_image(source)
    if key == "base64" or (key != "path" and _DATA_ADDRESS.match(source)):
        return read_image(_decode_base64(source))
    if key == "url":
        return read_image(fetch_image(source))
    if _ADDRESS.match(source):
        raise BadImageError(
            f"{source[:200]!r} is an address, and nothing is downloaded unless it is asked for",
            'Download the image, or ask with {"type": "image", "url": ...}',
        )
    if key == "image" and _BASE64.fullmatch(source) and not os.path.isfile(source):
        return read_image(_decode_base64(source))
    return read_image(source)


def fetch_image(url: str) -> bytes:
    """Download the file of an image.

    Args:
        url: An address with http or https; redirects to those are followed.

    Returns:
        The bytes, not decoded.

    Raises:
        BadImageError: If the address is of another kind, does not answer, answers with an error, or is not done within
            `DOWNLOAD_SECONDS` and `MAX_DOWNLOAD_BYTES`.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise BadImageError(
            f"{url[:200]!r} is no http or https address", 'Give a file as {"type": "image", "path": ...}'
        )
    opener = request.OpenerDirector()  # not request.urlopen, which also opens file:// and ftp://, by redirects too
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    data = bytearray()
    start = time.monotonic()
    try:
        wanted = request.Request(url, headers={"User-Agent": "sugar-hf"})
        with opener.open(wanted, timeout=DOWNLOAD_SECONDS) as response:
            while chunk := response.read1(2**16):
                data += chunk
                if len(data) > MAX_DOWNLOAD_BYTES or time.monotonic() - start > DOWNLOAD_SECONDS:
                    limits = f"{MAX_DOWNLOAD_BYTES} bytes and {DOWNLOAD_SECONDS:.0f} s"
                    raise BadImageError(f"{url[:200]!r} sends more than {limits} allow", "Download the image first")
    except BadImageError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a port that is no number, and the like
        raise BadImageError(f"cannot fetch {url[:200]!r} ({error})", "Check the address") from error
    return bytes(data)


def _decode_base64(text: str) -> bytes:
    text = text[match.end() :] if (match := _DATA_ADDRESS.match(text)) else text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise BadImageError(f"the base64 of {len(text)} characters is damaged ({error})", _REPLACE) from error


def _open(file: Any, name: str) -> Image.Image:
    Image.init()
    formats = [image_format for image_format in IMAGE_FORMATS if image_format in Image.OPEN]
    try:
        with Image.open(file, formats=formats) as image:
            return _decode(image, name)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(
            f"{name} is not an image of a supported type", f"{_REPLACE}; supported are {', '.join(formats)}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, str(error)) from error
    except Exception as error:  # Pillow's parsers raise whatever a corrupt header leads them into.
        raise _corrupt(name, error) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Load every pixel of the first frame and bring it to RGB."""
    # Compared here and not by turning Pillow's warning into an error: `warnings.catch_warnings` is not thread-safe.
    _check_pixels(image, name)
    try:
        _load(image)
        _check_pixels(image, name)  # some formats learn their true size only now
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied twice
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image, name)
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, str(error)) from error
    except Exception as error:  # Pillow's decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise _corrupt(name, error) from error


def _load(image: Image.Image) -> None:
    """Load every pixel, and fail on a file that was cut off, whatever another library has told Pillow."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES and not _SETTING.locked():
        image.load()
        return
    with _SETTING:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and I: 16-bit greys, 65535 is white
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise BadImageError(
            f"{name} has pixels of mode {image.mode!r}, whose range is unknown", "Save it as 8-bit RGB or grey"
        )
    # `convert` returns a copy even when the mode is RGB already, so the caller's image is never shared.
    return image.convert("RGB")


def _check_pixels(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    if limit is not None and pixels > limit:
        raise _bomb(name, f"{image.width} x {image.height} pixels, the limit is {limit}")
    if not pixels:
        raise BadImageError(f"{name} has {image.width} x {image.height} pixels", _REPLACE)


def _bomb(name: str, detail: str) -> BadImageError:
    return BadImageError(f"{name} may be a decompression bomb ({detail})", f"{_REPLACE}, or shrink it first")


def _corrupt(name: str, error: Exception) -> BadImageError:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return BadImageError(f"{name} is truncated or corrupt ({detail})", _REPLACE)
