"""HTML to sections: headings, paragraphs, lists, tables and pictures in reading order; nothing is fetched.

The page is read as a stream of tags, so that neither deep nesting nor a huge attribute costs more than its bytes.
"""

from __future__ import annotations

import codecs
import html
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from .errors import BadSampleError
from .formats import ImageSource, decode_base64
from .sections import Notes, Section, slug

#: Elements that are left out: they are no content, or lead to other pages.
LEFT_OUT = frozenset({"script", "style", "template", "noscript", "nav", "select", "button", "textarea"})
#: Classes of elements that lead to other pages, of DocBook and Sphinx.
LEFT_OUT_CLASSES = frozenset({"navheader", "navfooter", "toc", "headerlink", "sphinxsidebar"})
LEFT_OUT_ROLES = frozenset({"navigation", "search", "contentinfo"})

_MEDIA = frozenset({"svg", "video", "audio", "iframe", "canvas"})
_ALSO_MEDIA = frozenset({"object", "embed"})  # what stands in an object is its alternative, and is read
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_LISTS = frozenset({"ul", "ol", "dl"})
_ITEMS = frozenset({"li", "dt", "dd"})
_BLOCKS = frozenset(
    {
        "p",
        "div",
        "section",
        "article",
        "aside",
        "main",
        "header",
        "footer",
        "figure",
        "figcaption",
        "blockquote",
        "pre",
    }
    | {"address", "details", "summary", "form", "fieldset", "legend", "center", "hr", "caption", "body"}
)
_ANCHORED = frozenset({"section", "div", "article", "a", "span", "main"})
_VECTORS = (".svg", ".svgz")

_SPACE = re.compile(r"[ \t\r\n\f\xa0]+")
_CELL, _BREAK = "\x1f", "\x1e"
_CDATA = "<![CDATA["
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f]")
_CHARSET = re.compile(
    rb"""<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_:.+-]+)""", re.IGNORECASE
)
_HEAD = 4096  # bytes in which a page may say its encoding
_END = "sugar-hf-end-of-page"
_DEEPEST = 1000
_CHUNK = 2**14
_LONGEST_HEADING = 300
_LONGEST_NAME = 4096
_LONG_LIST = 1000  # characters behind which a list or table goes on in another slice

# Codecs of the encodings that pages are in. Python's others would unpack or rewrite what they are given.
_ENCODINGS = re.compile(
    r"utf-8|utf-16(-[lb]e)?|iso8859-\d+|cp(125\d|866|874|93[26]|949|950)|koi8-[ru]|gb2312|gbk|gb18030|big5(hkscs)?"
    r"|euc_(jp|kr|jis_2004)|shift_jis(_2004|x0213)?|iso2022_jp|mac-(roman|cyrillic)|tis-620"
)
_AS_BROWSERS = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "gb2312": "gb18030", "gbk": "gb18030"}


def html_sections(
    text: str, images: ImageSource, folder: str, notes: Notes, where: str, *, slugs: bool = False
) -> tuple[str | None, list[Section]]:
    """Read a page.

    | in the page | what becomes of it |
    |---|---|
    | heading | begins a section, whose path it ends |
    | paragraph, preformatted text | a slice |
    | list, table | a slice with a line for each item or row; further slices where it is long |
    | `<img>` of a local file, or with base64 in it | a slice; its `alt` is left out, because the picture is there |
    | `<img>` at an address, or a drawing (SVG) | its `alt`, in its place; counted in `notes` |
    | `<img>` that is missing, broken or outside the image root | the fault of its section; or, if the source drops
      broken images, its `alt`, and the error is noted in `images.dropped` |
    | video, audio, frame, drawing in the page | its label, if it has one; counted in `notes` |
    | script, style, navigation, form fields, hidden elements | left out |

    Args:
        text: The page.
        images: Takes its pictures.
        folder: Where relative names of pictures start. Names with a `/` in front start at the image root.
        notes: Counts what is left out.
        where: The page's name in these.
        slugs: Give headings without an anchor the one that GitHub would make of their text.

    Returns:
        The title, if there is one, and the sections.

    Raises:
        BadSampleError: The page breaks off within a tag, comment or script, or is nested too deeply.
        ImportError: lxml is not installed.
    """
    try:
        from lxml import etree
    except ImportError as error:
        raise ImportError("HTML and Markdown need lxml: pip install 'sugar-hf[documents]'") from error

    reader = _Reader(_Pictures(images, folder, notes, where), slugs)
    parser = etree.HTMLParser(target=reader, encoding="utf-8", huge_tree=True, no_network=True)
    text = _without_cdata(text) + f'<p id="{_END}"></p>'
    # half a surrogate pair, which a program may give, has no bytes
    data = text.encode("utf-8", "replace")
    for start in range(0, len(data), _CHUNK):  # an error of the reader ends the parser between two of them
        parser.feed(data[start : start + _CHUNK])
    parser.close()
    if not reader.is_whole:
        mend = "Close it, or fetch the file again"
        raise BadSampleError("the page breaks off within a tag, comment, script or navigation", mend=mend)
    return reader.title, [
        section for section in reader.sections if section.blocks or section.headings or section.fault
    ]


def _without_cdata(text: str) -> str:
    """The page with what stands in CDATA escaped. An expression would look for the end anew from each beginning."""
    parts, at = [], 0
    while (begin := text.find(_CDATA, at)) >= 0 and (end := text.find("]]>", begin)) >= 0:
        parts += [text[at:begin], html.escape(text[begin + len(_CDATA) : end])]
        at = end + 3
    return "".join([*parts, text[at:]])


def decode_html(data: bytes) -> str:
    """Decode a page as its byte order mark says, else as it says itself, else as UTF-8.

    Raises:
        BadSampleError: It says no encoding and is not UTF-8, or is not in the encoding that it names.
    """
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if data.startswith(mark):
            return _decoded(data, name, "its byte order mark names")
    said = _CHARSET.search(data[:_HEAD])
    if said is None:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            mend = 'Convert it to UTF-8, or write its encoding into it: <meta charset="...">'
            raise BadSampleError(f"not UTF-8, and it names no encoding ({error})", field="text", mend=mend) from error
    label = said[1].decode("ascii")
    try:
        name = codecs.lookup(label).name
    except LookupError:
        name = ""
    name = _AS_BROWSERS.get(name, name)
    if not _ENCODINGS.fullmatch(name):
        mend = "Convert the file to UTF-8"
        raise BadSampleError(f"unknown encoding {label[:40]!r}", field="charset", mend=mend)
    # what was read as ASCII to find this is not UTF-16, whatever it says
    return _decoded(data, "utf-8" if name.startswith("utf-16") else name, "it names")


def _decoded(data: bytes, name: str, why: str) -> str:
    try:
        return data.decode(name)
    except UnicodeDecodeError as error:
        mend = "Convert the file to UTF-8"
        raise BadSampleError(f"not in the encoding that {why} ({error})", field="charset", mend=mend) from error


class _Pictures:
    """Takes the pictures of a page, by whatever their elements say."""

    def __init__(self, images: ImageSource, folder: str, notes: Notes, where: str) -> None:
        self.images, self.folder, self.notes, self.where = images, folder, notes, where
        self.base = ""

    def take(self, src: str | None) -> Path | bytes | None:
        """What a picture is taken from; None if it is none that is read.

        Raises:
            BadSampleError: It is broken.
        """
        src = (src or "").strip()
        if not src:
            self.notes.add("pictures without a source: their alt texts stand in their places", self.where)
            return None
        if src[:5].lower() == "data:":
            return self._of_data(src)
        field = "img"
        if len(src) > _LONGEST_NAME:
            raise BadSampleError(
                f"the name has {len(src)} characters", field=field, mend="Replace or remove the picture"
            )
        try:
            address = urlsplit(urljoin(self.base, src))
        except ValueError as error:
            raise BadSampleError(f"{src[:200]!r} is no address ({error})", field=field) from error
        if address.scheme.lower() == "file":
            mend = "Name it relative to the page"
            raise BadSampleError(
                f"{src[:200]!r} is an address, and files are not read by address", field=field, mend=mend
            )
        if address.scheme or address.netloc:
            what = "pictures at addresses, which are not fetched: their alt texts stand in their places"
            self.notes.add(what, f"{self.where}: {src[:200]}")
            return None
        name = unquote(address.path)
        if name.lower().endswith(_VECTORS):
            self._drawing(src[:200])
            return None
        start = self.images.root if name.startswith("/") else self.folder
        return _given(self.images.take(os.path.join(start, name.lstrip("/")), field))

    def _of_data(self, src: str) -> Path | bytes | None:
        kind, _, content = src.partition(",")
        if "svg" in kind.lower():
            self._drawing(kind[:80])
            return None
        if not kind.lower().endswith(";base64"):
            raise BadSampleError(f"{kind[:80]!r} holds no base64", field="img", mend="Replace or remove the picture")
        return _given(self.images.take(decode_base64("".join(unquote(content).split()), "img"), "img"))

    def _drawing(self, src: str) -> None:
        what = "drawings (SVG), which are not drawn: their alt texts stand in their places"
        self.notes.add(what, f"{self.where}: {src}")


def _given(stored: dict[str, Any]) -> Path | bytes:
    return Path(stored["path"]) if stored["bytes"] is None else stored["bytes"]


class _Reader:
    """Takes the events of lxml's parser, and makes sections of them."""

    def __init__(self, pictures: _Pictures, slugs: bool) -> None:
        self.pictures, self.slugs = pictures, slugs
        self.title: str | None = None
        self.sections = [Section()]
        self.is_whole = False
        self._path: list[tuple[int, str]] = []
        self._depth = self._skipped = self._preformatted = 0
        self._lists: list[int | None] = []  # for each list that is open the number of its next item, if it has such
        self._tables = self._cells = 0  # tables that are open, and cells of the row
        self._prefix = ""
        self._run: list[str] = []  # texts of the line
        self._lines: list[str] = []  # lines of the slice
        self._heading: _Heading | None = None
        self._title: list[str] = []
        self._in_title = False
        self._anchor: str | None = None  # the last one that nothing but a heading may follow

    # ---- lxml's target ----

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise BadSampleError(f"tags are nested more than {_DEEPEST} deep", mend="Mend or remove the page")
        self.is_whole = attributes.get("id") == _END and not self._skipped
        if self._skipped:
            self._skipped += 1
            return
        if tag in _MEDIA or tag in _ALSO_MEDIA:
            what = "films, sounds, drawings and frames: their labels stand in their places"
            self.pictures.notes.add(what, f"{self.pictures.where}: <{tag}>")
            self._say(attributes.get("aria-label") or attributes.get("title"))
        if tag in LEFT_OUT or tag in _MEDIA or _is_hidden(attributes):
            self._skipped = 1
            return
        if self._heading is not None and tag in _HEADINGS:  # the one before was not closed
            self._end_heading()
        if tag == "title":
            self._in_title = not self._title
        elif tag == "base" and attributes.get("href"):
            self.pictures.base = attributes["href"].strip()
        elif tag == "img":
            self._picture(attributes)
        elif self._heading is not None:
            self._heading.texts.append(" " if tag == "br" or tag in _BLOCKS else "")
            self._heading.anchor = self._heading.anchor or attributes.get("id") or attributes.get("name")
        elif tag == "br":
            self._run.append("\n" if self._preformatted else _BREAK)
        elif tag in _HEADINGS:
            self._end_block()
            self._heading = _Heading(_HEADINGS[tag], attributes.get("id"), self._anchor)
        else:
            if tag in _ANCHORED and (name := attributes.get("id") or (tag == "a" and attributes.get("name"))):
                self._anchor = name
            self._open(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        if self._skipped:
            self._skipped -= 1
            return
        if tag == "title":
            self._in_title = False
        elif self._heading is not None:
            if tag in _HEADINGS:
                self._end_heading()
        else:
            self._close(tag)

    def data(self, data: str) -> None:
        if self._skipped:
            return
        data = _CONTROL.sub("\ufffd", data)
        if self._in_title:
            self._title.append(data)
        elif self._heading is not None:
            self._heading.texts.append(data)
        else:
            self._run.append(data)
            if self._anchor is not None and data.strip():
                self._anchor = None

    def close(self) -> None:
        if self._heading is not None:
            self._end_heading()
        self._end_block()
        self.title = _SPACE.sub(" ", "".join(self._title)).strip() or None
        if self.title is not None and len(self.title) > _LONGEST_HEADING:
            self.sections[0].blocks.insert(0, self.title)
            self.title = None

    # ---- Elements ----

    def _open(self, tag: str, attributes: dict[str, str]) -> None:
        if tag in _LISTS:
            self._end_line() if self._lists or self._tables else self._end_block()
            start = attributes.get("start", "")
            self._lists.append(
                (int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 1) if tag == "ol" else None
            )
        elif tag in _ITEMS:
            self._end_line()
            self._end_long_block()
            indent = "  " * (len(self._lists) - 1 + (tag == "dd"))
            mark = "" if tag != "li" else "- "
            if tag == "li" and self._lists and (number := self._lists[-1]) is not None:
                mark, self._lists[-1] = f"{number}. ", number + 1
            self._prefix = indent + mark
        elif tag == "table":
            self._end_line() if self._lists or self._tables else self._end_block()
            self._tables += 1
        elif tag == "tr":
            self._end_line()
            self._end_long_block()
            self._cells = 0
        elif tag in ("td", "th"):
            if self._cells:
                self._run.append(_CELL)
            self._cells += 1
        elif tag in _BLOCKS:
            self._between()
        if tag == "pre":
            self._end_line()
            self._preformatted += 1

    def _close(self, tag: str) -> None:
        if tag == "pre" and self._preformatted:
            self._end_line()
            self._preformatted -= 1
        if tag in _LISTS and self._lists:
            self._end_line()
            self._lists.pop()
            if not self._lists and not self._tables:
                self._end_block()
        elif tag == "table" and self._tables:
            self._end_line()
            self._tables -= 1
            if not self._tables and not self._lists:
                self._end_block()
        elif tag in _ITEMS or tag == "tr":
            self._end_line()
        elif tag in ("td", "th"):
            self._run.append(" ")
        elif tag in _BLOCKS:
            self._between()

    def _picture(self, attributes: dict[str, str]) -> None:
        alt = _SPACE.sub(" ", attributes.get("alt") or attributes.get("title") or "").strip()
        try:
            picture = self.pictures.take(attributes.get("src"))
        except BadSampleError as error:
            picture = None
            if self.pictures.images.drop_broken:
                self.pictures.images.dropped.append(error)
            else:
                mend = "pass drop_broken_images=True, which puts its alt text in its place"
                error.mend = f"{error.mend}, or {mend}" if error.mend else mend[0].upper() + mend[1:]
                fault = self._heading or self.sections[-1]
                fault.fault = fault.fault or error
        if self._heading is not None:
            self._heading.alts.append(alt)
            if picture is not None:
                self._heading.pictures.append(picture)
        elif picture is None:
            self._say(alt)
        else:
            self._end_block()
            self.sections[-1].blocks.append(picture)
            self._anchor = None

    def _say(self, text: str | None) -> None:
        if text:
            self.data(f" {text} ")

    def _end_heading(self) -> None:
        heading, self._heading, self._anchor = self._heading, None, None
        assert heading is not None
        text = _SPACE.sub(" ", "".join(heading.texts)).strip(" ¶").strip()
        text = text or " ".join(alt for alt in heading.alts if alt)
        if not text or len(text) > _LONGEST_HEADING:  # a picture, or a whole page in large letters
            section = self.sections[-1]
            section.blocks += [*heading.pictures, *([text] if text else [])]
            section.fault = section.fault or heading.fault
            return
        while self._path and self._path[-1][0] >= heading.level:
            self._path.pop()
        self._path.append((heading.level, text))
        anchor = heading.own or heading.anchor or heading.before or (slug(text) if self.slugs else None)
        section = Section([each for _, each in self._path], anchor, list(heading.pictures), heading.fault)
        self.sections.append(section)

    # ---- Lines and slices ----

    def _between(self) -> None:
        """Between two paragraphs: another slice, or another line of an item, or a space in a cell."""
        if self._tables:
            if sum(map(len, self._run)) > _LONG_LIST:  # a table that lays out a page
                self._end_block()
            elif self._run:
                self._run.append(" ")
        elif self._lists:
            self._end_line()
        else:
            self._end_block()

    def _end_line(self) -> None:
        text, self._run = "".join(self._run), []
        if self._preformatted:
            if text.strip():
                self._lines.append(self._prefix + text.replace(_CELL, "\t").strip("\r\n").rstrip())
                self._prefix = ""
            return
        cells = [_SPACE.sub(" ", cell).strip() for cell in text.split(_CELL)]
        filled = [cell for cell in cells if cell.strip(_BREAK)]
        if not filled:
            return
        line = filled[0] if len(filled) == 1 else " | ".join(cells)
        lines = [each.strip() for each in line.split(_BREAK)]
        self._lines.append(self._prefix + "\n".join(each for each in lines if each))
        self._prefix = " " * len(self._prefix) if self._lists else ""

    def _end_long_block(self) -> None:
        if sum(map(len, self._lines)) > _LONG_LIST:
            self._end_block()

    def _end_block(self) -> None:
        self._end_line()
        if self._lines:
            self.sections[-1].blocks.append("\n".join(self._lines))
            self._lines = []


class _Heading:
    """A heading that is being read."""

    def __init__(self, level: int, own: str | None, before: str | None) -> None:
        self.level, self.own, self.before = level, own, before
        self.anchor: str | None = None
        self.texts: list[str] = []
        self.alts: list[str] = []
        self.pictures: list[Path | bytes] = []
        self.fault: BadSampleError | None = None


def _is_hidden(attributes: dict[str, str]) -> bool:
    return (
        "hidden" in attributes
        or attributes.get("role") in LEFT_OUT_ROLES
        or not LEFT_OUT_CLASSES.isdisjoint(attributes.get("class", "").split())
    )
