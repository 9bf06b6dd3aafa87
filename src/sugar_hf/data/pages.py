"""Documents of the files that people write and read: PDF, HTML and Markdown, each page or section by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .containers import decode_text
from .documents import Document
from .errors import BadSampleError
from .formats import ImageSource
from .html_pages import decode_html, html_sections
from .markdown_pages import markdown_html
from .pdf_pages import pdf_documents
from .sections import Notes, Section, section_documents

HTML_SUFFIXES = (".html", ".htm", ".xhtml")
MARKDOWN_SUFFIXES = (".md", ".markdown")
PAGE_SUFFIXES = (".pdf", *HTML_SUFFIXES, *MARKDOWN_SUFFIXES)

SECTION_LENGTH = 4000
PAGE_PIXELS = 1_000_000
MAX_FILE_BYTES = 64 * 2**20  # of a file that is read whole
_SHORTEST = 200
_LEAST_PIXELS = 10_000


@dataclass(frozen=True)
class PageOptions:
    """How files become documents.

    Args:
        section_length: Characters of a document, a picture counting for 1,000 of them. What is longer becomes several.
        page_pixels: Pixels of the picture of a page of a PDF, about; at most Pillow's limit.
    """

    section_length: int = SECTION_LENGTH
    page_pixels: int = PAGE_PIXELS

    def checked(self) -> PageOptions:
        """Return them.

        Raises:
            ValueError: One of them has a value that it cannot have.
        """
        if self.section_length < _SHORTEST:
            raise ValueError(f"section_length={self.section_length}: give {_SHORTEST} characters or more.")
        if self.page_pixels < _LEAST_PIXELS:
            raise ValueError(f"page_pixels={self.page_pixels}: give {_LEAST_PIXELS} or more.")
        return self


def read_page_file(
    file: Path, name: str, images: ImageSource, options: PageOptions, notes: Notes
) -> Iterator[Document | BadSampleError]:
    """Read a PDF, an HTML page or Markdown.

    | file | a document | its id | its metadata |
    |---|---|---|---|
    | PDF | the picture of a page, then its text | `name#p3` | `file`, `page`, `title` |
    | others | the path of headings, then paragraphs and pictures | `name#anchor` | `file`, `title`, `headings` |

    A section without an anchor has its number in the id. What stands in front of the first heading has the id `name`.
    What is longer than `section_length` becomes several documents: `name#anchor-part-2`, with its number under `part`.

    Args:
        file: The file.
        name: What to call it.
        images: Takes the pictures that it shows.
        options: How it becomes documents.
        notes: Counts what is left out by design.

    Yields:
        A document, or why a section, a page or the whole file is none.

    Raises:
        ImportError: The package that reads it is not installed.
    """
    for found in _documents(file, name, images, options, notes):
        yield found.at(file=str(file)) if isinstance(found, BadSampleError) else found


def _documents(
    file: Path, name: str, images: ImageSource, options: PageOptions, notes: Notes
) -> Iterator[Document | BadSampleError]:
    if not file.is_file():  # a named pipe or a device would block or never end
        yield BadSampleError("no regular file", mend="Check the path")
    elif file.suffix.lower() == ".pdf":
        pixels = min(options.page_pixels, Image.MAX_IMAGE_PIXELS or options.page_pixels)
        yield from pdf_documents(file, name, notes, pixels=pixels, length=options.section_length)
    else:
        try:
            title, sections = _sections(file, name, images, notes)
        except BadSampleError as error:
            yield error
            return
        if not sections:
            mend = "Leave it out, or pass on_error='skip'"
            yield BadSampleError("the page has neither text nor picture", field="text", mend=mend)
        yield from section_documents(sections, name, title, options.section_length)


def _sections(file: Path, name: str, images: ImageSource, notes: Notes) -> tuple[str | None, list[Section]]:
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            reason = f"it has {size} bytes, and pages of up to {MAX_FILE_BYTES} are read"
            raise BadSampleError(reason, mend="Split it")
        data = file.read_bytes()
    except OSError as error:
        raise BadSampleError(f"cannot read {file.name} ({error})", field="text") from error
    folder = os.path.abspath(file.parent)
    if file.suffix.lower() in HTML_SUFFIXES:
        return html_sections(decode_html(data), images, folder, notes, name)
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        mend = "Convert the file to UTF-8"
        raise BadSampleError(f"{file.name} is not UTF-8 ({error})", field="text", mend=mend) from error
    given, page = markdown_html(text)
    title, sections = html_sections(page, images, folder, notes, name, slugs=True)
    if given is None and title is None and sections and sections[0].headings:
        given = sections[0].headings[0]
    return given or title, sections
