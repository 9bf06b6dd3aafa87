"""The one safe way from a file, bytes, a PIL image or an address to an RGB image.

Every image that the project takes passes through [`read_image`]. It decodes the whole image (a truncated file shows
itself only then), keeps Pillow's pixel limit and makes its warning an error, and opens only the raster formats of
photographs and drawings, so that data from elsewhere cannot reach Pillow's rarely used parsers. Of a file's metadata
the orientation alone counts, and none of it decides whether the pixels can be read. Nothing is downloaded but by
[`fetch_image`].
"""

import base64
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from .download_sugar import RefusedError, download

# Formats that are opened, all of them parsed in Pillow itself or in its codec libraries. EPS and PDF run programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
#: The longer side over the shorter. Image processors scale the shorter side to a fixed length, so that a file of a
#: hundred bytes, 1 x 10,000 pixels, would become gigabytes; with 336 pixels, 200 make 22 million. Panoramas have up to
#: about 10, receipts and banners 30, screenshots of whole pages 100.
MAX_ASPECT_RATIO = 200
MAX_DOWNLOAD_BYTES = 64 * 2**20
DOWNLOAD_SECONDS = 20.0

_REPLACE = "Replace or remove the image"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_DATA_ADDRESS = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
# Longer than most names of files, which also have a dot. No part gives back what it took: that would be quadratic.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}+=*+\s*+")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Modes of 16-bit greys, and formats whose pixels of mode I are such: elsewhere 255 may be their white, or anything.
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_16_FORMATS = ("PNG", "PPM")
_RGB_MODES = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")
_SETTING = threading.Lock()  # one thread at a time changes what Pillow does

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"tRNS",)  # beside the chunks that a reader must know, whose names begin with a capital
_ADOBE = 0xEE  # says what the channels are, as a JFIF block does
_TIFF_KEPT = range(254, 533)  # fields of the pixels; names and dates among them are left out by their type
_TIFF_TEXT = 2
_TIFF_ORIENTATION = 274


class BadImageError(ValueError):
    """An image that cannot be used.

    Args:
        reason: What is wrong, in words.
        mend: What to do about it.

    Attributes:
        number: Which of several images it is.
    """

    number: int = 0

    def __init__(self, reason: str, mend: str) -> None:
        self.reason = reason
        self.mend = mend
        super().__init__(reason, mend)

    def __str__(self) -> str:
        return f"{self.reason}. {self.mend}"


def read_image(source: Any) -> Image.Image:
    """Decode an image completely and return it as a new RGB image.

    The first frame stands for an animation. Transparent pixels are laid on white. The EXIF orientation is applied.
    16-bit greys are scaled to 8 bits (Pillow's own conversion would clip them). Pixels of modes whose range is unknown
    (`I`, `F`, `LAB`) are refused.

    Args:
        source: A path (`str` or `pathlib.Path`), the bytes of a file, a PIL image, or the `{"bytes", "path"}` struct
            that `datasets.Image(decode=False)` yields (`bytes` wins).

    Returns:
        A PIL image of mode `RGB`, loaded, with no file open behind it.

    Raises:
        BadImageError: The file is missing, is no image or of a format not in `IMAGE_FORMATS`, is truncated or corrupt,
            has no pixels or more than `PIL.Image.MAX_IMAGE_PIXELS`, is more than `MAX_ASPECT_RATIO` times as long as
            wide or wide as long, has pixels of an unknown range, or the type of `source` is none of the above.
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


def read_images(sources: Iterable[Any]) -> list[Image.Image]:
    """Decode images, each as [`read_image`] does.

    Raises:
        BadImageError: One cannot be used; `number` is its place among them.
    """
    images = []
    for number, source in enumerate(sources):
        try:
            images.append(read_image(source))
        except BadImageError as error:
            error.number = number
            raise
    return images


def read_image_parts(parts: Iterable[tuple[str, str, Any]]) -> list[Image.Image]:
    """Read the images of parts `{"type": "image", key: source}` of samples.

    An address is fetched under the key `url` alone, so that no text of a data file makes this machine call another.

    Args:
        parts: For each its place in words; its key: `image` (a PIL image, a path, a `data:` address or base64),
            `path`, `url` (http, https or a `data:` address) or `base64`; and its source, a PIL image, a path or a str.

    Returns:
        RGB images, as [`read_image`] makes them.

    Raises:
        ValueError: If one cannot be read, or an address stands where none may; it names the part.
    """
    images = []
    for where, key, source in parts:
        try:
            images.append(read_image(_source(key, source) if isinstance(source, str) else source))
        except BadImageError as error:
            raise ValueError(f"{where}: cannot use the image: {error}") from error
    return images


def _source(key: str, text: str) -> str | bytes:
    """Return the path that a part names, or the bytes that it holds or whose address it gives."""
    if key == "base64" or (key != "path" and _DATA_ADDRESS.match(text)):
        return _decode_base64(text)
    if key == "url":
        return fetch_image(text)
    if _ADDRESS.match(text):
        raise BadImageError(
            f"{text[:200]!r} is an address, and nothing is downloaded unless it is asked for",
            'Download the image, or ask with {"type": "image", "url": ...}',
        )
    if key == "image" and _BASE64.fullmatch(text) and not os.path.isfile(text):
        return _decode_base64(text)
    return text


def fetch_image(url: str, default: str | None = None) -> bytes:
    """Download the file of an image.

    The variable `SUGAR_HF_URLS` of the environment says what may be: `none`; `public`, what lies on the public
    internet; `any`. When it is not set, any host may be asked for, but a redirect may lead to another in the public
    internet only. A service that takes addresses from others sets `public` or `none`.

    Args:
        url: An address with http or https; redirects to those are followed.
        default: What the variable is taken to be where it is not set.

    Returns:
        The bytes, not decoded.

    Raises:
        BadImageError: If the address is of another kind or may not be reached, does not answer, answers with an error,
            or is not done, redirects and all, within `DOWNLOAD_SECONDS` and `MAX_DOWNLOAD_BYTES`.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise BadImageError(
            f"{url[:200]!r} is no http or https address", 'Give a file as {"type": "image", "path": ...}'
        )
    try:
        return download(url, DOWNLOAD_SECONDS, MAX_DOWNLOAD_BYTES, default)
    except RefusedError as error:
        raise BadImageError(f"{url[:200]!r} is not fetched: {error}", "Download the image first") from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a port that is no number, and the like
        raise BadImageError(f"cannot fetch {url[:200]!r} ({error})", "Check the address") from error


def _decode_base64(text: str) -> bytes:
    text = text[match.end() :] if (match := _DATA_ADDRESS.match(text)) else text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:  # binascii.Error is one
        raise BadImageError(f"the base64 of {len(text)} characters is damaged ({error})", _REPLACE) from error


def _open(file: Any, name: str) -> Image.Image:
    """Decode a file; if that fails, once more without the metadata that may have been in the way."""
    try:
        return _open_whole(file, name)
    except _CorruptError:
        file.seek(0)
        for data in without_metadata(file.read()):
            try:
                return _open_whole(BytesIO(data), name)
            except BadImageError:  # what the whole file gave says more
                continue
        raise


def _open_whole(file: Any, name: str) -> Image.Image:
    Image.init()
    formats = [image_format for image_format in IMAGE_FORMATS if image_format in Image.OPEN]
    try:
        with Image.open(file, formats=formats) as image:
            return _decode(image, name)
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise _CorruptError(
            f"{name} is not an image of a supported type", f"{_REPLACE}; supported are {', '.join(formats)}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, str(error)) from error
    except Exception as error:  # Pillow's parsers raise whatever a corrupt header leads them into.
        raise _corrupt(name, error) from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    """Load every pixel of the first frame and bring it to RGB."""
    # Compared here and not by turning Pillow's warning into an error: `warnings.catch_warnings` is not thread-safe.
    _check_size(image, name)
    try:
        _load(image)
        _check_size(image, name)  # some formats learn their true size only now
        turn = _TURNS.get(_orientation(image))
        rgb = _to_rgb(image if turn is None else image.transpose(turn), image.format, name)
        rgb.info.clear()  # the orientation, which is applied
        return rgb
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(name, str(error)) from error
    except Exception as error:  # Pillow's decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise _corrupt(name, error) from error


def _orientation(image: Image.Image) -> int:
    """How the camera was held, 1 to 8; 1 where the metadata does not say, or is broken."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parsers raise whatever broken metadata leads them into
        return 1
    return found if isinstance(found, int) else 1


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


def _to_rgb(image: Image.Image, image_format: str | None, name: str) -> Image.Image:
    if image.mode in _GREY_16 or (image.mode == "I" and image_format in _GREY_16_FORMATS):  # 65535 is white
        values = np.asarray(image)
        grey = (np.clip(values.astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode not in _RGB_MODES:
        raise BadImageError(
            f"{name} has pixels of mode {image.mode!r}, whose range is unknown",
            "Save it as 8-bit RGB or grey, or as 16-bit grey (mode I;16)",
        )
    # `convert` returns a copy even when the mode is RGB already, so the caller's image is never shared.
    return image.convert("RGB")


def _check_size(image: Image.Image, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    pixels = image.width * image.height
    size = f"{image.width} x {image.height} pixels"
    if limit is not None and pixels > limit:
        raise _bomb(name, f"{size}, the limit is {limit}")
    if not pixels:
        raise BadImageError(f"{name} has {size}", _REPLACE)
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise BadImageError(
            f"{name} has {size}, and the longer side may be {MAX_ASPECT_RATIO} times the shorter at most, since the "
            "shorter one is scaled up",
            "Cut it into pieces, or put it on a wider ground",
        )


class _CorruptError(BadImageError):
    """What may be due to a file's metadata."""


def _bomb(name: str, detail: str) -> BadImageError:
    return BadImageError(f"{name} may be a decompression bomb ({detail})", f"{_REPLACE}, or shrink it first")


def _corrupt(name: str, error: Exception) -> _CorruptError:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _CorruptError(f"{name} is truncated or corrupt ({detail})", _REPLACE)


# --- files without what does not belong to their pixels
#
# Pillow reads text, colour profiles and camera data with the pixels, and fails where these are broken or huge.


def without_metadata(data: bytes) -> Iterator[bytes]:
    """Yield a file without its metadata: first with the block that may hold its orientation, then without.

    Nothing that belongs to the pixels is changed: a file that was cut off stays so.

    Args:
        data: A PNG, JPEG or TIFF; nothing is yielded for others.
    """
    for keeps_exif in (True, False):
        try:
            if data.startswith(_PNG):
                yield _png(data, keeps_exif)
            elif data.startswith(b"\xff\xd8"):
                yield _jpeg(data, keeps_exif)
            elif data[:4] in (b"II*\0", b"MM\0*") and not keeps_exif:
                yield _tiff(data)
        except (struct.error, IndexError):  # too short to be taken apart
            return


def _png(data: bytes, keeps_exif: bool) -> bytes:
    kept = [_PNG]
    at = len(_PNG)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name = data[at + 4 : at + 8]
        end = at + 12 + length
        if name[:1].isupper() or name in _PNG_KEPT or (keeps_exif and name == b"eXIf"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _jpeg(data: bytes, keeps_exif: bool) -> bytes:
    kept = [data[:2]]
    at = 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:  # until the first scan, which has pixels
        (length,) = struct.unpack_from(">H", data, at + 2)
        kind, end = data[at + 1], at + 2 + length
        is_exif = kind == 0xE1 and data[at + 4 : at + 8] == b"Exif"
        is_jfif = kind == 0xE0 and length >= 16
        is_metadata = 0xE0 <= kind <= 0xEF or kind == 0xFE
        if not is_metadata or kind == _ADOBE or is_jfif or (is_exif and keeps_exif):
            kept.append(data[at:end])
        at = end
    return b"".join((*kept, data[at:]))


def _tiff(data: bytes) -> bytes:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    entries = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    kept = []
    for entry in entries:
        tag, kind, size = struct.unpack_from(f"{order}HHI", entry)
        if tag in _TIFF_KEPT and kind != _TIFF_TEXT and (tag != _TIFF_ORIENTATION or size == 1):
            kept.append(entry)
    # a new directory at the end of the file, of one image
    end = len(data) + len(data) % 2
    header = data[:4] + struct.pack(f"{order}I", end)
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return header + data[8:].ljust(end - 8, b"\0") + directory
