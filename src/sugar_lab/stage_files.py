"""Marks of finished work, so that a run that was stopped does only what is missing."""

import json
from pathlib import Path
from typing import Any

from sugar_hf._files import atomic_write

MARK, CLAIM = "whole.json", "begun.json"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def mark_whole(folder: Path, facts: dict[str, Any]) -> None:
    """Note in a folder that its work is finished, and what it was made with; to be called last."""
    write_json(folder / MARK, facts)


def is_whole(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether a folder's work is finished.

    Raises:
        ValueError: if it was made with other facts: results of both must not be mixed.
    """
    return agrees(folder / MARK, facts)


def claim(folder: Path, facts: dict[str, Any]) -> None:
    """Note what a folder's unfinished work is made with, before it begins.

    Raises:
        ValueError: if what lies there was begun with other facts.
    """
    if not agrees(folder / CLAIM, facts):
        write_json(folder / CLAIM, facts)


def agrees(path: Path, facts: dict[str, Any], field: str | None = None) -> bool:
    """Whether a JSON file has these facts, as a whole or in a field; false if there is no such file.

    Raises:
        ValueError: it has other ones.
    """
    if not path.is_file():
        return False
    found = json.loads(path.read_text(encoding="utf-8"))
    found = found if field is None else found[field]
    if found != json.loads(json.dumps(facts)):
        differ = sorted(key for key in found.keys() | facts.keys() if found.get(key) != facts.get(key))
        raise ValueError(f"{path} was made with other {', '.join(differ)}. Delete it, or take another work folder.")
    return True
