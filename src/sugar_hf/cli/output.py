"""What is shown, and where: results on the standard output, all else on the standard error output."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer

_SHOWN = 5  # broken documents that are named
_is_silent = False  # one of several processes speaks for all


def be_silent() -> None:
    """Leave speaking to another process."""
    global _is_silent
    _is_silent = True


def emit(value: Any) -> None:
    """Write one JSON document, on one line, to the standard output."""
    if not _is_silent:
        typer.echo(json.dumps(value, ensure_ascii=False))


def say(text: str) -> None:
    """Tell the user something that is no result."""
    if not _is_silent:
        typer.echo(text, err=True)


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
