"""Files of images without what does not belong to their pixels.

Pillow reads text, colour profiles and camera data with the pixels, and fails as a whole where they are broken or huge.
"""

import struct
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = (b"tRNS",)  # beside the chunks that a reader must know, whose names begin with a capital
_ADOBE = 0xEE  # says what the channels are, as a JFIF block does
_TIFF_KEPT = range(254, 533)  # fields of the pixels; names and dates among them are left out by their type
_TIFF_TEXT = 2
_TIFF_ORIENTATION = 274


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
