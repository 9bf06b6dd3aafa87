"""What is shown, and where: results on the standard output, all else on the standard error output.

Whatever is written passes through [`visible`]: texts, ids and errors may come from anywhere.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer

_SHOWN = 5  # broken documents that are named
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # of the categories of Unicode
_JOINERS = "\u200c\u200d"
_is_silent = False  # one of several processes speaks for all


def be_silent() -> None:
    """Leave speaking to another process."""
    global _is_silent
    _is_silent = True


def visible(text: str) -> str:
    """Write characters that a terminal or an editor obeys instead of showing them as escapes, as \\x1b.

    These are control characters (ESC and all of C0 and C1), marks that turn the direction of writing, other invisible
    ones but the joiners that emoji and scripts need, line and paragraph separators, and halves of surrogate pairs.
    Line breaks and tabs stay.

    >>> visible("a\\x1b]0;b\\x07")
    'a\\\\x1b]0;b\\\\x07'
    """
    return _replaced(text, lambda c: c if c in "\n\t" else f"\\x{ord(c):02x}" if ord(c) < 0x80 else _json_escape(c))


def _replaced(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable():  # most are, and this is fast
        return text
    return "".join(escape(c) if unicodedata.category(c) in _UNSEEN and c not in _JOINERS else c for c in text)


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]  # \u and four digits, twice where one does not do


def show(text: str, end: str = "\n") -> None:
    """Write a result to the standard output."""
    if not _is_silent:
        typer.echo(visible(text) + end, nl=False)


def emit(value: Any) -> None:
    """Write one JSON document, on one line, to the standard output; what [`visible`] escapes is escaped."""
    if not _is_silent:
        typer.echo(_replaced(json.dumps(value, ensure_ascii=False), _json_escape))


def say(text: str) -> None:
    """Tell the user something that is no result."""
    if not _is_silent:
        typer.echo(visible(text), err=True)


def name_skipped(errors: list[Any]) -> None:
    """Say which documents were left out, and why."""
    for error in errors[:_SHOWN]:
        say(f"skipped: {error}")
    if len(errors) > _SHOWN:
        say(f"skipped: {len(errors) - _SHOWN} more")


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """End with 130 after Ctrl-C, and say how things stand."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"\ninterrupted: {hint}")
        raise typer.Exit(130) from None
