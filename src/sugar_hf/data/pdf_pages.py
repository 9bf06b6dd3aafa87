"""PDF to documents: each page is a picture of itself, and its text."""

from __future__ import annotations

import io
import re
import threading
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .documents import Document
from .errors import BadSampleError
from .sections import Block, Notes, cut_text, page_document

_PDFIUM = threading.RLock()  # PDFium may be used by one thread at a time
_PASSWORD = 4  # FPDF_ERR_PASSWORD
_SECURITY = 5  # FPDF_ERR_SECURITY
_QUALITY = 90
_SIDE = 16_384  # pixels: a page may be much longer than wide
_LONGEST_TITLE = 1000
_MOST_BOOKMARKS = 100_000
_MOST_UNREADABLE = 0.1  # share of a page's characters
_HYPHEN = re.compile("[\ufffe\x02]\n?")  # as PDFium writes one at the end of a line
_BAD_CATEGORIES = ("Co", "Cn", "Cs", "Cc")


def pdf_documents(
    file: Path, name: str, notes: Notes, *, pixels: int, length: int
) -> Iterator[Document | BadSampleError]:
    """Read the pages of a PDF, one at a time.

    A page's document is a JPEG of the page, then its text, if it has any. Text whose font does not say which letters
    its shapes are is left out, and counted in `notes`. A page with more text than a document may have becomes several
    documents, each with the picture.

    Args:
        file: The PDF.
        name: What to call it.
        notes: Counts the pages whose text is left out.
        pixels: Pixels of the picture of a page, about.
        length: Characters of text of a document.

    Yields:
        A document of id `name#p1`, `name#p2`, ..., with `page` among its metadata, and under `headings` the path of
        the bookmark under which the page stands, if the PDF has an outline; or why a page, or all of them, cannot be
        read.

    Raises:
        ImportError: pypdfium2 is not installed.
    """
    try:
        import pypdfium2
    except ImportError as error:
        raise ImportError("PDF needs pypdfium2: pip install 'sugar-hf[documents]'") from error

    try:
        with _PDFIUM:
            pdf = pypdfium2.PdfDocument(file)
            pdf.init_forms()  # so that what was filled in is drawn
    except (pypdfium2.PdfiumError, OSError) as error:
        yield _unread(error)
        return
    try:
        with _PDFIUM:
            count, title, outline = len(pdf), _title(pdf), _outline(pdf, name, notes)
        if not count:
            yield BadSampleError("the PDF has no pages", mend="Fetch the file again")
        for number in range(1, count + 1):
            try:
                with _PDFIUM:
                    picture, text = _read_page(pdf, number - 1, pixels)
            except (pypdfium2.PdfiumError, BadSampleError, ValueError, OSError, MemoryError) as error:
                fault = (
                    error if isinstance(error, BadSampleError) else BadSampleError(f"the page is damaged ({error})")
                )
                fault.mend = fault.mend or "Mend the PDF, or leave the page out"
                yield fault.at(sample=f"{name}#p{number}")
                continue
            if text is None:
                what = "pages whose fonts do not say which letters they show: their text is left out"
                notes.add(what, f"{name}#p{number}")
            pieces: list[str | None] = [*cut_text(text or "", length)] or [None]
            for part, piece in enumerate(pieces, start=1):
                sample: list[Block] = [picture, *([piece] if piece else [])]
                metadata = {"file": name, "page": number, "title": title, "headings": outline.path(number)}
                metadata |= {"part": part} if part > 1 else {}
                yield page_document(f"{name}#p{number}" + (f"-part-{part}" if part > 1 else ""), sample, metadata)
    finally:
        with _PDFIUM:
            pdf.close()


def _unread(error: Exception) -> BadSampleError:
    code = vars(error).get("err_code")
    if code == _PASSWORD:
        mend = "Save it without one (qpdf --decrypt --password=... in.pdf out.pdf)"
        return BadSampleError("the PDF is encrypted, and opens with a password alone", mend=mend)
    if code == _SECURITY:
        return BadSampleError("the PDF is encrypted in a way that is not known", mend="Save it without encryption")
    return BadSampleError(f"the PDF is damaged, or none ({error})", mend="Fetch the file again")


def _title(pdf: Any) -> str | None:
    try:
        title = pdf.get_metadata_value("Title").replace("\0", "").strip()
    except ValueError:  # half a surrogate pair
        return None
    return title if 0 < len(title) <= _LONGEST_TITLE else None


class _Outline:
    """The bookmarks of a PDF that lead to a page of it, in the order of pages.

    Args:
        places: Page and path of each: its parents' titles, and its own.
    """

    def __init__(self, places: list[tuple[int, list[str]]]) -> None:
        self._places = sorted(places, key=lambda place: place[0])
        self._pages = [page for page, _ in self._places]

    def path(self, page: int) -> list[str]:
        """Return the path of the first bookmark on a page, else of the last one before it.

        Where its own first part begins on the same page, the path goes on to that.
        """
        first, behind = bisect_left(self._pages, page), bisect_right(self._pages, page)
        path = self._places[first - 1][1] if first == behind and first else []
        for _, other in self._places[first:behind]:
            if other[: len(path)] != path:
                break
            path = other
        return path


def _outline(pdf: Any, name: str, notes: Notes) -> _Outline:
    """The outline of a PDF; what cannot be read of it is left out, and counted."""
    places: list[tuple[int, list[str]]] = []
    path: list[str] = []
    what = "outlines of PDF that are damaged: what can be read of them is used"
    try:
        for number, bookmark in enumerate(islice(pdf.get_toc(), _MOST_BOOKMARKS + 1)):
            if number == _MOST_BOOKMARKS:
                notes.add(f"outlines of more than {_MOST_BOOKMARKS} bookmarks: the others are left out", name)
                break
            try:
                title = bookmark.get_title()
            except UnicodeDecodeError:  # half a surrogate pair
                notes.add(what, name)
                title = ""
            title = " ".join("".join(each for each in title if each.isspace() or not _is_bad(each)).split())
            path = [*path[: bookmark.level], title[:_LONGEST_TITLE]]
            place = bookmark.get_dest()
            index = None if place is None else place.get_index()
            if index is not None and index < len(pdf):
                places.append((index + 1, [each for each in path if each]))
    except (ValueError, OSError, RuntimeError):  # of PDFium, too
        notes.add(what, name)
    return _Outline(places)


def _read_page(pdf: Any, index: int, pixels: int) -> tuple[bytes, str | None]:
    """The picture of a page, and its text; None if that cannot be read."""
    page = pdf[index]
    try:
        width, height = page.get_size()
        if not (width > 0 and height > 0):
            raise BadSampleError(f"the page has the size {width:g} x {height:g}")
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

    text = _HYPHEN.sub("", textpage.get_text_bounded(errors="replace").replace("\r\n", "\n").replace("\r", "\n"))
    said = [character for character in text if not character.isspace()]
    bad = {character for character in set(said) if _is_bad(character)}
    unknown = sum(character in bad for character in said)
    # fonts without a table of their characters: PDFium then gives the numbers of their shapes, which look like letters
    unmapped = sum(
        raw.FPDFText_HasUnicodeMapError(textpage, index) == 1 and raw.FPDFText_IsGenerated(textpage, index) == 0
        for index in range(textpage.count_chars())
    )
    if max(unknown, unmapped) > _MOST_UNREADABLE * len(said):
        return None
    return "".join(character for character in text if character not in bad).strip()


def _is_bad(character: str) -> bool:
    return character == "\ufffd" or unicodedata.category(character) in _BAD_CATEGORIES
