"""PDF to documents: each page is a picture of itself, and its text."""

from __future__ import annotations

import json
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Timer
from typing import Any

from . import pdf_process
from .documents import Document
from .errors import BadSampleError
from .sections import Block, Notes, cut_text, page_document

_PASSWORD = 4  # FPDF_ERR_PASSWORD
_SECURITY = 5  # FPDF_ERR_SECURITY
_LEAVE_OUT = "Leave it out, or make a picture of it with another program"


@dataclass(frozen=True)
class PdfLimits:
    """What a page of a PDF may take.

    Args:
        seconds: For the page; and for opening the file.
        memory: Bytes of the process that draws it. Windows and macOS have no such limit.
        pages: Pages of a file that may fail for these reasons, behind which the rest of it is not tried.
    """

    seconds: float = 60.0
    memory: int = 2 * 2**30
    pages: int = 3


def pdf_documents(
    file: Path, name: str, notes: Notes, *, pixels: int, length: int, limits: PdfLimits | None = None
) -> Iterator[Document | BadSampleError]:
    """Read the pages of a PDF, one at a time.

    A page's document is a JPEG of the page, then its text, if it has any. Text whose font does not say which letters
    its shapes are is left out, and counted in `notes`. A page with more text than a document may have becomes several
    documents, each with the picture. Another process draws them, which is stopped at a page that takes too much.

    Args:
        file: The PDF.
        name: What to call it.
        notes: Counts the pages whose text is left out.
        pixels: Pixels of the picture of a page, about.
        length: Characters of text of a document.
        limits: What a page may take.

    Yields:
        A document of id `name#p1`, `name#p2`, ..., with `page` among its metadata, and under `headings` the path of
        the bookmark under which the page stands, if the PDF has an outline; or why a page, or all of them, cannot be
        read.

    Raises:
        ImportError: pypdfium2 is not installed.
    """
    if find_spec("pypdfium2") is None:
        raise ImportError("PDF needs pypdfium2: pip install 'sugar-hf[documents]'")
    limits = limits or PdfLimits()
    process = _Process(file, pixels, limits)
    try:
        about = process.start()
        if "error" in about:
            yield _unread(about)
            return
        count, outline, stopped = about["count"], _outline(about, name, notes), 0
        if not count:
            yield BadSampleError("the PDF has no pages", mend="Fetch the file again")
        for number in range(1, count + 1):
            said, picture = process.ask(number - 1)
            if "error" in said:
                yield _page_fault(said).at(sample=f"{name}#p{number}")
                stopped += "mend" in said
                if stopped == limits.pages and number < count:
                    reason = f"pages {number + 1} to {count} are not read, as {stopped} before them took too much"
                    yield BadSampleError(reason, mend=_LEAVE_OUT).at(sample=name)
                    return
                continue
            if said["text"] is None:
                what = "pages whose fonts do not say which letters they show: their text is left out"
                notes.add(what, f"{name}#p{number}")
            pieces: list[str | None] = [*cut_text(said["text"] or "", length)] or [None]
            for part, piece in enumerate(pieces, start=1):
                sample: list[Block] = [picture, *([piece] if piece else [])]
                metadata = {"file": name, "page": number, "title": about["title"], "headings": outline.path(number)}
                metadata |= {"part": part} if part > 1 else {}
                yield page_document(f"{name}#p{number}" + (f"-part-{part}" if part > 1 else ""), sample, metadata)
    finally:
        process.end()


def _page_fault(said: dict[str, Any]) -> BadSampleError:
    if "mend" in said:
        return BadSampleError(f"the page cannot be drawn: {said['error']}", mend=said["mend"])
    return BadSampleError(f"the page is damaged ({said['error']})", mend="Mend the PDF, or leave the page out")


def _unread(about: dict[str, Any]) -> BadSampleError:
    if "mend" in about:
        return BadSampleError(f"the PDF cannot be opened: {about['error']}", mend=about["mend"])
    if about["code"] == _PASSWORD:
        mend = "Save it without one (qpdf --decrypt --password=... in.pdf out.pdf)"
        return BadSampleError("the PDF is encrypted, and opens with a password alone", mend=mend)
    if about["code"] == _SECURITY:
        return BadSampleError("the PDF is encrypted in a way that is not known", mend="Save it without encryption")
    return BadSampleError(f"the PDF is damaged, or none ({about['error']})", mend="Fetch the file again")


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


def _outline(about: dict[str, Any], name: str, notes: Notes) -> _Outline:
    """The outline of a PDF; what could not be read of it is counted."""
    if about["outline"]["damaged"]:
        notes.add("outlines of PDF that are damaged: what can be read of them is used", name)
    if (most := about["outline"]["most"]) is not None:
        notes.add(f"outlines of more than {most} bookmarks: the others are left out", name)
    places: list[tuple[int, list[str]]] = []
    path: list[str] = []
    for level, title, index in about["outline"]["bookmarks"]:
        path = [*path[:level], title]
        if index is not None and index < about["count"]:
            places.append((index + 1, [each for each in path if each]))
    return _Outline(places)


class _Process:
    """The process that draws the pages of a file. One that was stopped is started again for the next page."""

    def __init__(self, file: Path, pixels: int, limits: PdfLimits) -> None:
        self._task = {"file": str(file.absolute()), "pixels": pixels, "memory": limits.memory, "path": sys.path}
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> dict[str, Any]:
        """Open the file, and return what is in it, or `error`."""
        # -I and -S: what stands in `task["path"]` can be imported, and nothing else
        command = [sys.executable, "-I", "-S", pdf_process.__file__]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        except OSError as error:
            return {"error": f"no process starts to read it ({error})", "mend": "Run this in a program of Python"}
        return self._say(json.dumps(self._task))[0]

    def ask(self, index: int) -> tuple[dict[str, Any], bytes]:
        """Return the text of a page and its picture, or `error`; with `mend`, if the process was stopped or ended."""
        if self._process is None and "error" in (about := self.start()):
            return about, b""
        return self._say(str(index))

    def end(self) -> None:
        """Stop it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _say(self, line: str) -> tuple[dict[str, Any], bytes]:
        process, is_late = self._process, Event()
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = Timer(self._limits.seconds, stop)
        timer.daemon = True
        timer.start()
        said, picture = b"", b""
        try:
            process.stdin.write(line.encode() + b"\n")
            process.stdin.flush()
            said = process.stdout.readline()
            if said.endswith(b"\n"):
                answer = json.loads(said)
                picture = process.stdout.read(answer["bytes"])
                if len(picture) == answer["bytes"] and not is_late.is_set():
                    return answer, picture
        except BrokenPipeError:
            pass
        finally:
            timer.cancel()
        self.end()
        error = f"it takes more than {self._limits.seconds:g} s"
        if not is_late.is_set():
            memory = f"{self._limits.memory // 2**20} MiB"
            error = f"the process ended with status {process.returncode}, as it does where {memory} are too little"
        return {"error": error, "mend": _LEAVE_OUT}, b""
