"""Draw pages of a PDF: a program of its own, so that a page made to take any time or memory can be stopped.

`pdf_pages` starts it and tells it the file in a line of JSON, then numbers of pages, a line each. It answers each with
a line of JSON and the bytes of the picture. It imports nothing of this package, and so starts in a tenth of a second.
"""

from __future__ import annotations

import io
import json
import re
import sys
import unicodedata
from itertools import islice
from typing import Any

_QUALITY = 90
_SIDE = 16_384  # pixels: a page may be much longer than wide
_LONGEST_TITLE = 1000
_MOST_TEXT = 10_000_000  # characters of a page
_MOST_BOOKMARKS = 100_000
_MOST_UNREADABLE = 0.1  # share of a page's characters
_HYPHEN = re.compile("[\ufffe\x02]\n?")  # as PDFium writes one at the end of a line
_BAD_CATEGORIES = ("Co", "Cn", "Cs", "Cc")


def main() -> None:
    """Answer until there are no more questions."""
    task = json.loads(sys.stdin.readline())
    sys.path[:] = task["path"]
    _limit_memory(task["memory"])
    try:
        import pypdfium2
    except ImportError as error:
        _answer({"error": str(error), "mend": "Install pypdfium2 anew"})
        return
    try:
        pdf = pypdfium2.PdfDocument(task["file"])
        pdf.init_forms()  # so that what was filled in is drawn
        about = {"count": len(pdf), "title": _title(pdf), "outline": _outline(pdf)}
    except (pypdfium2.PdfiumError, OSError) as error:
        _answer({"error": str(error), "code": vars(error).get("err_code")})
        return
    _answer(about)
    for line in sys.stdin:
        try:
            picture, text = _read_page(pdf, int(line), task["pixels"])
        except MemoryError:
            raise  # the end, as when PDFium finds no memory
        except (pypdfium2.PdfiumError, ValueError, OSError) as error:
            _answer({"error": str(error)})
        else:
            _answer({"text": text}, picture)


def _answer(said: dict[str, Any], picture: bytes = b"") -> None:
    out = sys.stdout.buffer
    out.write(json.dumps({**said, "bytes": len(picture)}).encode() + b"\n" + picture)
    out.flush()


def _limit_memory(count: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    count = count if most == resource.RLIM_INFINITY else min(count, most)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (count, count))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ValueError, OSError):  # macOS knows no such limit
        return


def _title(pdf: Any) -> str | None:
    try:
        title = pdf.get_metadata_value("Title").replace("\0", "").strip()
    except ValueError:  # half a surrogate pair
        return None
    return title if 0 < len(title) <= _LONGEST_TITLE else None


def _outline(pdf: Any) -> dict[str, Any]:
    """The bookmarks of a PDF, as level, title and index of the page; and what of them was left out."""
    found: list[tuple[int, str, int | None]] = []
    is_damaged = is_cut = False
    try:
        for number, bookmark in enumerate(islice(pdf.get_toc(), _MOST_BOOKMARKS + 1)):
            if number == _MOST_BOOKMARKS:
                is_cut = True
                break
            try:
                title = bookmark.get_title()
            except UnicodeDecodeError:  # half a surrogate pair
                is_damaged, title = True, ""
            title = " ".join("".join(each for each in title if each.isspace() or not _is_bad(each)).split())
            place = bookmark.get_dest()
            index = None if place is None else place.get_index()
            found.append((bookmark.level, title[:_LONGEST_TITLE], index))
    except (ValueError, OSError, RuntimeError):  # of PDFium, too
        is_damaged = True
    return {"bookmarks": found, "damaged": is_damaged, "most": _MOST_BOOKMARKS if is_cut else None}


def _read_page(pdf: Any, index: int, pixels: int) -> tuple[bytes, str | None]:
    """The picture of a page, and its text; None if that cannot be read."""
    page = pdf[index]
    try:
        width, height = page.get_size()
        if not (width > 0 and height > 0):
            raise ValueError(f"it has the size {width:g} x {height:g}")
        scale = min((pixels / (width * height)) ** 0.5, _SIDE / max(width, height))
        bitmap = page.render(scale=scale)
        try:
            image = bitmap.to_pil()
            image = image if image.mode in ("L", "RGB") else image.convert("RGB")
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
        finally:
            bitmap.close()
        textpage = page.get_textpage()
        try:
            text = _readable(textpage)
        finally:
            textpage.close()
    finally:
        page.close()
    return buffer.getvalue(), text


def _readable(textpage: Any) -> str | None:
    """The text of a page without what is no character; None if much of it is none."""
    from pypdfium2 import raw

    count = textpage.count_chars()
    if count > _MOST_TEXT:
        raise ValueError(f"it has {count} characters, and up to {_MOST_TEXT} are read")
    text = _HYPHEN.sub("", textpage.get_text_bounded(errors="replace").replace("\r\n", "\n").replace("\r", "\n"))
    said = [character for character in text if not character.isspace()]
    bad = {character for character in set(said) if _is_bad(character)}
    unknown = sum(character in bad for character in said)
    # fonts without a table of their characters: PDFium then gives the numbers of their shapes, which look like letters
    unmapped = sum(
        raw.FPDFText_HasUnicodeMapError(textpage, index) == 1 and raw.FPDFText_IsGenerated(textpage, index) == 0
        for index in range(count)
    )
    if max(unknown, unmapped) > _MOST_UNREADABLE * len(said):
        return None
    return "".join(character for character in text if character not in bad).strip()


def _is_bad(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) in _BAD_CATEGORIES


if __name__ == "__main__":
    main()
