"""Sections of pages: what stands under a heading, and how it becomes documents that are not too long."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .documents import Document
from .errors import BadSampleError

#: Characters for which a picture counts in the length of a section: some 250 tokens, as image processors have them.
PICTURE_LENGTH = 1000

Block = str | Path | bytes

# Where a text that is too long is cut: behind a paragraph, a line, a sentence, a word.
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?。！？]\s*"), re.compile(r"\s+"))
_NO_SLUG = re.compile(r"[^\w\- ]")
_BAD_ANCHOR = re.compile(r"[\s\x00-\x1f\x7f-\x9f#]")
_LONGEST_ANCHOR = 200


@dataclass
class Section:
    """What stands under a heading, up to the next one.

    Attributes:
        headings: The heading's path: those above it, and its own. Empty in front of the first.
        anchor: The name by which links find it, if it has one.
        blocks: Paragraphs, lists, tables and pictures, in reading order.
        fault: Why it cannot be used.
    """

    headings: list[str] = field(default_factory=list)
    anchor: str | None = None
    blocks: list[Block] = field(default_factory=list)
    fault: BadSampleError | None = None


class Notes:
    """Counts what is left out of pages by design, and says so once at the end."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, what: str, where: str) -> None:
        """Count something; `where` is shown for the first of its kind."""
        self._counts[what] += 1
        self._first.setdefault(what, where)

    def warn(self, path: Path) -> None:
        """Say what was left out, if anything was."""
        if self._counts:
            said = [f"{count} {what} (the first: {self._first[what]})" for what, count in self._counts.items()]
            warnings.warn(f"{path}: {'; '.join(said)}", stacklevel=3)
            self._counts.clear()


class Anchors:
    """Gives each section of a file a name of its own, the same in every run."""

    def __init__(self) -> None:
        self._used: dict[str, int] = {}  # with the number that was put behind it last

    def take(self, wanted: str) -> str:
        """Return a name, with `-1`, `-2`, ... behind it if it is taken already."""
        name, number = wanted, self._used.get(wanted, 0)
        while name in self._used:
            number += 1
            name = f"{wanted}-{number}"
        self._used[wanted] = number
        self._used.setdefault(name, 0)
        return name


def slug(heading: str) -> str:
    """The anchor of a heading in Markdown, as GitHub makes it.

    >>> slug("What's new in 2.0?")
    'whats-new-in-20'
    """
    return _NO_SLUG.sub("", heading.strip().lower()).replace(" ", "-")


def section_documents(
    sections: Iterable[Section], name: str, title: str | None, length: int
) -> Iterator[Document | BadSampleError]:
    """Make documents of the sections of a file.

    The first slice is the path of headings, or the title where there is none. A heading that nothing but headings of
    lower rank follow is no document: it stands in their paths.

    Args:
        sections: The sections, in reading order.
        name: What to call the file.
        title: Its title.
        length: Characters of a document; a section that is longer becomes several.

    Yields:
        A document of id `name#anchor`; `name#number` where a section has no anchor; `name` where it has no heading; or
        why a section is no document.
    """
    anchors = Anchors()
    given, number = list(sections), 0
    for section, next_one in zip_longest(given, given[1:]):
        number += bool(section.headings)
        after = [] if next_one is None else next_one.headings
        if section.fault is None and not section.blocks and after[: len(section.headings)] == section.headings:
            continue
        anchor = section.anchor or ""
        is_usable = 0 < len(anchor.encode("utf-8", "replace")) <= _LONGEST_ANCHOR and not _BAD_ANCHOR.search(anchor)
        anchor = anchors.take(anchor if is_usable else str(number)) if section.headings else ""
        if section.fault is not None:
            yield section.fault.at(sample=_id(name, anchor))
            continue
        front = " > ".join(section.headings) or title
        metadata = {"file": name, "title": title, "headings": section.headings}
        for part, blocks in enumerate(cut_blocks(section.blocks, length), start=1):
            key = anchor if part == 1 else anchors.take(f"{anchor}-part-{part}".lstrip("-"))
            sample = [*([front] if front else []), *blocks]
            yield page_document(_id(name, key), sample, metadata | ({"part": part} if part > 1 else {}))


def _id(name: str, key: str) -> str:
    return f"{name}#{key}" if key else name


def page_document(name: str, sample: list[Block], metadata: dict[str, Any]) -> Document | BadSampleError:
    """A document with what is known of it, or why it is none."""
    try:
        document = Document(name, sample, {key: value for key, value in metadata.items() if value not in (None, [])})
        _ = document.content
        return document
    except BadSampleError as error:
        return error.at(sample=name)


def cut_blocks(blocks: Iterable[Block], length: int) -> list[list[Block]]:
    """Put blocks together as long as they are not longer than a length; nothing is lost.

    A text that is longer by itself is cut at paragraphs, else lines, else sentences, else words. A picture counts
    for `PICTURE_LENGTH` characters.

    >>> cut_blocks(["One two three.", "Four five."], 12)
    [['One two'], ['three.'], ['Four five.']]
    """
    pieces: list[list[Block]] = [[]]
    size = 0
    for block in blocks:
        for each in cut_text(block, length) if isinstance(block, str) else [block]:
            cost = len(each) if isinstance(each, str) else PICTURE_LENGTH
            if pieces[-1] and size + cost > length:
                pieces.append([])
                size = 0
            pieces[-1].append(each)
            size += cost
    return pieces


def cut_text(text: str, length: int) -> list[str]:
    """Cut a text into pieces of at most a length, white space around them left out."""
    pieces = []
    start, text = 0, text.strip()
    while len(text) - start > length:
        end = start + length
        for pattern in _ENDS:
            found = [match.end() for match in pattern.finditer(text, start + 1, start + length + 1)]
            if found and found[-1] > start + length // 2:
                end = found[-1]
                break
        pieces.append(text[start:end].strip())
        start = end
    pieces.append(text[start:].strip())
    return [piece for piece in pieces if piece]
