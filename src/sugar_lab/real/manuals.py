"""Manuals of real programs: their sections as documents, cleaned up, and split by page."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from sugar_hf.data import Document, SkippedRowsWarning, read_documents

Split = Literal["train", "validation", "test"]
Slices = list[str | Path]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
#: Shares of the pages, in percent, that training and validation get.
_TRAIN, _VALIDATION = 50, 15

_ICON = 32  # pixels of the shorter side, below which a picture is none
_MARK = 64  # the same for one that many pages show
_MANY_PAGES, _ALL_PAGES = 5, 100
_SHORTEST = 40  # characters of the text of a section without a picture
_NUMBER = re.compile(r"^(?:(?:Chapter|Part|Appendix)\s+\w+|\d+(?:\.\d+)*|[A-Z](?:\.\d+)+)\.\s+")
_FIGURE = re.compile(r"^([ \t]*)Figure\s+[\dA-Z]+\.\d+\.\s+", re.MULTILINE)


@dataclass(frozen=True)
class ManualForm:
    """Where a manual lies, and what of its pages is no text of it.

    Args:
        package: The package that holds it.
        folders: Its folders in the package's content.
        pages: Matches the names of pages that are left out.
        headings: Matches the last headings of sections that are left out; "" is that of text in front of any.
        blocks: Matches texts that are left out.
        title: What is cut off the titles of pages; `None` where the first heading says the same.
        summary: The heading of the sections that begin the next one of their page.
    """

    package: str
    folders: tuple[str, ...] = (".",)
    pages: str = "$."
    headings: str = "$."
    blocks: str = "$."
    title: str | None = None
    summary: str | None = None


_GRASS_LISTS = (
    "raster|vector|display|database|general|imagery|miscellaneous|postscript|raster3d|temporal|guimodules|index|"
    "full_index|graphical_index|keywords|topics|manual_gallery|parser_standard_options|.*_graphical|topic_.*"
)
_GRASS_TWINS = (  # the same pages as g.gui.*
    "animation|datacatalog|dbmgr|gcp|gmodeler|iclass|image2target|mapswipe|photo2image|psmap|rdigit|rlisetup|timeline|"
    "tplot|vdigit"
)
FORMS = {
    "gimp": ManualForm(
        "gimp-help-en", pages=r"(gfdl-.*|legal|index|bibliography|apcs.*)\.html", blocks=r"(Note|Tip|Warning|Caution)"
    ),
    "grass": ManualForm(
        "grass-doc",
        pages=rf"({_GRASS_LISTS}|wxGUI\.({_GRASS_TWINS}))\.html",
        headings=r"|KEYWORDS|SYNOPSIS|Flags:|Parameters:|SEE ALSO|See also|SOURCE CODE|AUTHORS?|REFERENCES?|TODO",
        blocks=r"Main index \|.*|© \d+.*|Last changed:.*|Available at:.*|Accessed:.*|Figure:?|Table of contents",
        title=r"\s+-\s+GRASS GIS (M|m)anual",
        summary="NAME",
    ),
    "kicad": ManualForm(
        "kicad-doc-en",
        blocks=r"Table of contents|Reference manual|Copyright|Contributors|Feedback|The KiCad Team.*|Last updated.*",
    ),
    "gnucash": ManualForm(
        "gnucash-docs", folders=("gnucash-guide-en", "gnucash-help-en"), pages=r"(fdl.*|index|legal.*|gfdl.*)\.html"
    ),
}
#: Those that have tasks; the others are more text to train on.
STUDIED = ("gimp", "grass")


@dataclass(frozen=True)
class Manual:
    """A manual.

    Attributes:
        name: What it is called, and what its ids begin with.
        sections: Its sections, without their headings, as `name/page#section`. Metadata: `manual`, `file` (the page),
            `headings` (the path, without numbers), and `part` where a section was too long for one.
        counts: What was read and what was left out.
    """

    name: str
    sections: list[Document]
    counts: Counter[str] = field(default_factory=Counter)

    def split(self, *names: Split) -> list[Document]:
        """The sections of the pages of these splits."""
        return [section for section in self.sections if page_split(self.name, page_of(section)) in names]


def page_split(manual: str, page: str) -> Split:
    """The split to which a page belongs: half train, 15 % validate, 35 % test, by a digest of its name.

    >>> page_split("gimp", "gimp-tool-crop.html")
    'train'
    """
    place = int.from_bytes(hashlib.sha256(f"{manual}/{page}".encode()).digest()[:8], "big") % 100
    return "train" if place < _TRAIN else "validation" if place < _TRAIN + _VALIDATION else "test"


def slices_of(document: Document) -> Slices:
    """The texts and pictures of a document of this study, in the order of reading."""
    return cast(Slices, document.sample)


def page_of(section: Document) -> str:
    """The name of the page that a section stands on."""
    return section.metadata["file"]


def title_of(section: Document) -> str:
    """The path of headings of a section."""
    return " > ".join(section.metadata["headings"])


def plain(text: str) -> str:
    """A text without differences of white space and case.

    >>> plain("The  Crop\\n tool")
    'the crop tool'
    """
    return " ".join(text.split()).casefold()


def text_of(sample: Sequence[str | Path]) -> str:
    """The texts of a sample, in the order of reading."""
    return "\n\n".join(each for each in sample if isinstance(each, str))


@cache
def picture_digest(picture: Path) -> str:
    """SHA-256 of a picture's file."""
    return hashlib.sha256(picture.read_bytes()).hexdigest()


def content_key(sample: Sequence[str | Path]) -> str:
    """What two samples share that say the same: plain texts, and the bytes of pictures."""
    return "\n".join(plain(each) if isinstance(each, str) else picture_digest(each) for each in sample)


def read_manual(name: str, content: Path) -> Manual:
    """Read the sections of a manual.

    Left out, and counted: pages that list other pages, sections that a program wrote, lines that lead elsewhere,
    icons, sections of hardly any text, and those that stand word for word on an earlier page.

    Args:
        name: Of `FORMS`.
        content: The folder of its package's content.

    Raises:
        FileNotFoundError: The folder is not there.
        ValueError: No section is left.
    """
    form = FORMS[name]
    read = [(folder, each) for folder in form.folders for each in _read(content / folder)]
    counts = Counter(
        {"sections read": len(read), "pages read": len({(folder, page_of(each)) for folder, each in read})}
    )
    shown_on = {(folder, page_of(each), shown) for folder, each in read for shown in _pictures(slices_of(each))}
    pages_with = Counter(picture for _, _, picture in shown_on)
    sections: list[Document] = []
    known: dict[str, str] = {}
    summary: tuple[str, Slices] | None = None
    for folder, found in read:
        page = page_of(found)
        if re.fullmatch(form.pages, page):
            counts["sections on pages left out"] += 1
            continue
        headings = _headings(found, form)
        last = found.metadata.get("headings", [""])[-1]
        if re.fullmatch(form.headings, last):
            counts["sections left out by heading"] += 1
            continue
        blocks = list(_cleaned(slices_of(found)[1:], form, pages_with, counts))
        if last == form.summary:
            summary = (page, blocks)
            counts["sections that begin no other"] += 1
            continue
        if summary is not None and summary[0] == page:
            blocks = [*summary[1], *blocks]
            counts["sections that begin no other"] -= 1
            counts["sections put in front of the next"] += 1
        summary = None
        if len(text_of(blocks)) < _SHORTEST and not _pictures(blocks):
            counts["sections without text"] += 1
            continue
        key = content_key(blocks)
        if key in known:
            counts["sections that stand elsewhere"] += 1
            continue
        where = page if folder == "." else f"{folder}/{page}"
        identity = f"{name}/{found.id}" if folder == "." else f"{name}/{folder}/{found.id}"
        known[key] = identity
        part = {"part": found.metadata["part"]} if "part" in found.metadata else {}
        sections.append(Document(identity, blocks, {"manual": name, "file": where, "headings": headings} | part))
    if not sections:
        raise ValueError(
            f"{str(content)!r} holds no section of the manual {name!r}: give the content of {form.package}."
        )
    counts["sections"] = len(sections)
    counts["pictures"] = sum(len(_pictures(slices_of(section))) for section in sections)
    return Manual(name, sections, counts)


def training_documents(
    manuals: Iterable[Manual],
    *,
    splits: Sequence[Split] = ("train",),
    titles: bool = False,
    headings: bool = False,
) -> list[Document]:
    """The sections of the training pages, of manuals without tasks all, as interleaved samples.

    Args:
        manuals: The manuals.
        splits: The pages.
        titles: Put the path of headings in front of each, as the first slice.
        headings: Add a sample `[path, first slices]` for each, of id `...#...@heading`.
    """
    found = []
    for manual in manuals:
        chosen = manual.split(*splits) if manual.name in STUDIED else manual.sections if "train" in splits else []
        for section in chosen:
            title, blocks = title_of(section), slices_of(section)
            found.append(Document(section.id, [title, *blocks] if titles else list(blocks), section.metadata))
            if headings:
                found.append(Document(f"{section.id}@heading", [title, *blocks[:1]], section.metadata))
    return found


def _read(folder: Path) -> Iterator[Document]:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: give the content of the manual's package.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*left alone.*|.*left out.*")
        warnings.filterwarnings("ignore", category=SkippedRowsWarning)
        for document in read_documents(folder, on_error="skip"):
            if str(document.metadata.get("file", "")).endswith((".html", ".htm")):
                yield document


def _pictures(sample: Sequence[Any]) -> list[Path]:
    return [each for each in sample if isinstance(each, Path)]


def _headings(found: Document, form: ManualForm) -> list[str]:
    own = [_NUMBER.sub("", each) for each in found.metadata.get("headings", [])]
    title = str(found.metadata.get("title") or "")
    if form.title is not None:
        title = re.sub(form.title, "", title)
    first = _NUMBER.sub("", title) if form.title is not None or not own else ""
    return ([first] if first and first not in own[:1] else []) + own


def _cleaned(
    blocks: Iterable[str | Path], form: ManualForm, pages_with: Mapping[Path, int], counts: Counter[str]
) -> Iterator[str | Path]:
    for block in blocks:
        if isinstance(block, Path):
            side = _side(block)
            if side < _ICON or (side < _MARK and pages_with[block] >= _MANY_PAGES) or pages_with[block] > _ALL_PAGES:
                counts["icons left out"] += 1
                continue
            yield block
        elif re.fullmatch(form.blocks, block.strip(), re.DOTALL):
            counts["lines left out"] += 1
        else:
            yield _FIGURE.sub(r"\1Figure: ", block)


@cache
def _side(picture: Path) -> int:
    with Image.open(picture) as image:
        return min(image.size)
