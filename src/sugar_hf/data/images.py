"""Safe images for the readers, and the way from a name in a data file to a path.

How an image is decoded, and what is refused, is written in `model.images_sugar`: the model's own files travel to the
Hub alone, so the one loader that all share lies there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from ..model.images_sugar import BadImageError, read_image
from .errors import BadSampleError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".jp2", ".avif")


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
        BadSampleError: The file is missing, is no image or of a format that is not opened, is truncated or corrupt,
            has no pixels or more than `PIL.Image.MAX_IMAGE_PIXELS`, or the type of `source` is none of the above.
    """
    try:
        return read_image(source)
    except BadImageError as error:
        raise BadSampleError(error.reason, field=field, mend=error.mend) from error


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
