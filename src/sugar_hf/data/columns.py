"""Which columns of a table are read, and of which type the cells of a table of texts are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}
_INT64 = 2**63
# What stands for nothing in a column of numbers, in pandas and so in `datasets`.
_ABSENT = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
    | {"NULL", "NaN", "None", "n/a", "nan", "null"}
)


@dataclass
class ColumnChoice:
    """The columns that are read; all others are left alone, as if they were not there.

    Attributes:
        keep: These alone; all if None.
        drop: All but these.
        seen: Which of the named ones were found so far.
    """

    keep: frozenset[str] | None = None
    drop: frozenset[str] = frozenset()
    seen: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, columns: Sequence[str] | None, drop_columns: Sequence[str] | None) -> ColumnChoice:
        """The choice that two options make.

        Raises:
            ValueError: Both are given, or one is a str.
        """
        for name, value in (("columns", columns), ("drop_columns", drop_columns)):
            if isinstance(value, str):
                raise ValueError(f"{name} is a list of names, not {value!r}: give [{value!r}].")
        if columns is not None and drop_columns:
            raise ValueError("give columns or drop_columns, not both.")
        return cls(None if columns is None else frozenset(columns), frozenset(drop_columns or ()))

    def __call__(self, name: Any) -> bool:
        """Whether a column is read."""
        if name in self.drop or (self.keep is not None and name in self.keep):
            self.seen.add(name)
        return name not in self.drop if self.keep is None else name in self.keep

    def of_row(self, row: Any) -> Any:
        """A row without the columns that are not read; what is no row is returned as it is."""
        if not isinstance(row, Mapping) or (self.keep is None and not self.drop):
            return row
        return {name: value for name, value in row.items() if self(name)}

    def check(self) -> None:
        """Says so where a named column is in no row, once all rows were seen.

        Raises:
            ValueError: Names the columns.
        """
        if missing := sorted((self.drop if self.keep is None else self.keep) - self.seen):
            option = "drop_columns" if self.keep is None else "columns"
            raise ValueError(f"{option}: no row has the column {', '.join(map(repr, missing))}. Check the names.")


class ColumnType:
    """Learns from all cells of a column of texts of which type they are, as `datasets` tells it.

    A column is one of whole numbers, of numbers, of truth values or of texts, all of it. What would not come back as
    it was (leading zeros, more than 64 bits) is text. An empty cell is absent; `NA`, `null` and their like are so in
    a column of numbers, and words in one of texts.
    """

    def __init__(self) -> None:
        self.is_integer = self.is_float = self.is_boolean = True
        self.is_blank = True

    def see(self, cell: str | None) -> None:
        """Looks at a cell."""
        if cell is None or not (text := cell.strip()) or text in _ABSENT:
            return
        self.is_blank = False
        if self.is_boolean and text.lower() not in _BOOLEANS:
            self.is_boolean = False
        if self.is_integer and not (len(text) <= 20 and _INTEGER.fullmatch(text) and -_INT64 < int(text) < _INT64):
            self.is_integer = False
        if self.is_float and not (_FLOAT.fullmatch(text) and _fits_float(text)):
            self.is_float = False

    def convert(self, cell: str | None) -> Any:
        """The value of a cell, None if it is absent."""
        if cell is None or not (text := cell.strip()):
            return None
        if self.is_blank or not (self.is_boolean or self.is_integer or self.is_float):
            return cell
        if text in _ABSENT:
            return None
        if self.is_boolean:
            return _BOOLEANS[text.lower()]
        return int(text) if self.is_integer else float(text)


def _fits_float(text: str) -> bool:
    """Whether a number is one that a float can hold: a long row of digits is a name and not a number."""
    digits = text.lstrip("+-")
    return len(digits) <= 15 if digits.isdigit() else abs(float(text)) != float("inf")


def column_types(rows: Iterable[Mapping[str, str | None]], names: Iterable[str]) -> dict[str, ColumnType]:
    """The types of columns.

    Args:
        rows: All rows of a table of texts.
        names: Its columns.
    """
    types = {name: ColumnType() for name in names}
    for row in rows:
        for name, kind in types.items():
            kind.see(row.get(name))
    return types
