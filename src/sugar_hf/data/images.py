"""The one safe way from bytes, a path or a PIL image to an RGB image, and from a name in a data file to a path.

Every image that the project takes from a user's data passes through :func:`load_image`. It decodes the whole image (a
truncated file shows itself only then), keeps Pillow's pixel limit and makes its warning an error, and opens only the
raster formats of photographs and drawings, so that a data file cannot reach Pillow's rarely used parsers.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadSampleError

#: Formats that are opened, all of them parsed in Pillow itself or in its codec libraries. EPS and PDF run programs.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")

_REPLACE = "Replace or remove the image"


def load_image(source: Any, *, field: str = "image") -> Image.Image:
    """Decodes an image completely and returns it as a new RGB image.

    The first frame stands for an animation. Transparent pixels are laid on white. The EXIF orientation is applied.
    16-bit greys are scaled to 8 bits (Pillow's own conversion would clip them).

    Args:
        source: A path (`str` or `pathlib.Path`), the bytes of a file, a PIL image, or the `{"bytes", "path"}` struct
            that `datasets.Image(decode=False)` yields (`bytes` wins).
        field: The name that an error gives to the image.

    Returns:
        A PIL image of mode `RGB`, loaded, with no file open behind it.

    Raises:
        BadSampleError: The file is missing, is no image or of a format not in `IMAGE_FORMATS`, is truncated or
            corrupt, has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, or the type of `source` is none of the above.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
        if source is None:
            raise BadSampleError(
                "the image has neither bytes nor a path",
                field=field,
                mend='Give {"bytes": ...} or {"path": ...}',
            )
    if isinstance(source, Image.Image):
        return _decode(source, field, "the image")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _open(BytesIO(source), field, f"the image of {len(source)} bytes")
    if isinstance(source, (str, Path)):
        path = os.fspath(source)
        try:
            # Checked before opening: a named pipe or a device would block or never end.
            if not os.path.isfile(path):
                raise BadSampleError(f"no file {path!r}", field=field, mend="Check the path or the image root")
            with open(path, "rb") as file:
                return _open(file, field, f"{path!r}")
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
            if isinstance(error, BadSampleError):
                raise
            raise BadSampleError(f"cannot read {path!r} ({error})", field=field, mend="Check the path") from error
    raise BadSampleError(
        f"an image cannot come from {type(source).__name__}",
        field=field,
        mend="Give a path, bytes, a PIL image or a {'bytes', 'path'} struct",
    )


def _open(file: Any, field: str, name: str) -> Image.Image:
    Image.init()
    formats = [image_format for image_format in IMAGE_FORMATS if image_format in Image.OPEN]
    try:
        with Image.open(file, formats=formats) as image:
            return _decode(image, field, name)
    except BadSampleError:
        raise
    except UnidentifiedImageError as error:
        raise BadSampleError(
            f"{name} is not an image of a supported type",
            field=field,
            mend=f"{_REPLACE}; supported are {', '.join(formats)}",
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(field, name, str(error)) from error
    except Exception as error:  # Pillow's parsers raise whatever a corrupt header leads them into.
        raise _corrupt(field, name, error) from error


def _decode(image: Image.Image, field: str, name: str) -> Image.Image:
    """Loads every pixel of the first frame and brings it to RGB."""
    # Compared here and not by turning Pillow's warning into an error: `warnings.catch_warnings` is not thread-safe.
    _check_pixels(image, field, name)
    try:
        image.load()
        _check_pixels(image, field, name)  # some formats learn their true size only now
        return _to_rgb(ImageOps.exif_transpose(image), field, name)
    except BadSampleError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _bomb(field, name, str(error)) from error
    except Exception as error:  # Pillow's decoders raise OSError, EOFError, SyntaxError, struct.error, ...
        raise _corrupt(field, name, error) from error


def _to_rgb(image: Image.Image, field: str, name: str) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and I: 16-bit greys, 65535 is white
        grey = np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode in ("F", "LAB"):
        raise BadSampleError(
            f"{name} has pixels of mode {image.mode!r}, whose range is unknown",
            field=field,
            mend="Save it as 8-bit RGB or grey",
        )
    # `convert` returns a copy even when the mode is RGB already, so the caller's image is never shared.
    return image.convert("RGB")


def _check_pixels(image: Image.Image, field: str, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _bomb(field, name, f"{image.width} x {image.height} pixels, the limit is {limit}")


def _bomb(field: str, name: str, detail: str) -> BadSampleError:
    return BadSampleError(
        f"{name} may be a decompression bomb ({detail})",
        field=field,
        mend=f"{_REPLACE}, or shrink it first",
    )


def _corrupt(field: str, name: str, error: Exception) -> BadSampleError:
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return BadSampleError(f"{name} is truncated or corrupt ({detail})", field=field, mend=_REPLACE)


def resolve_image(name: str, root: str | Path, *, allow_outside_root: bool = False, field: str = "image") -> str:
    """Turns an image name of a data file into the absolute path of an existing file.

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
