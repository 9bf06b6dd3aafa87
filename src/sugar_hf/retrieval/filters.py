"""Filters on metadata: one language for indexes that look at metadata themselves and for Milvus.

A filter is a dict, as in MongoDB and Chroma: `{"kind": "story", "year": {"$gte": 2000}}`. All its conditions have to
hold. Metadata is flat: text, numbers, flags and lists of those.

| condition | holds where the field |
|---|---|
| `{"kind": "story"}`, `{"kind": {"$eq": "story"}}` | has this value; with None: has none |
| `{"kind": {"$ne": "story"}}` | does not have this value, or none at all |
| `{"year": {"$gt": 1999, "$lte": 2010}}`, `$gte`, `$lt` | is a number (or a text, for text) in this range |
| `{"kind": {"$in": ["a", "b"]}}`, `$nin` | has one of these values; the reverse |
| `{"tags": {"$contains": "sea"}}` | is a list that holds this value |
| `{"year": {"$exists": True}}` | has a value at all |
| `{"$and": [...]}`, `{"$or": [...]}`, `{"$not": {...}}` | filters of filters |

Values of different kinds are never equal: `True` is not 1, `"1"` is not 1 (1 and 1.0 are). A field of value None
counts as missing. Every condition holds or does not, there is no third: `$not` is the exact reverse.
"""

from __future__ import annotations

import math
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any

import numpy as np

_ORDERS = {"$gt": (gt, ">"), "$gte": (ge, ">="), "$lt": (lt, "<"), "$lte": (le, "<=")}
_OPERATORS = ("$eq", "$ne", *_ORDERS, "$in", "$nin", "$contains", "$exists")
_GROUPS = ("$and", "$or", "$not")
_DEEPEST = 32  # nested filters; more is no filter that somebody wrote
_MOST = 1024  # conditions, each of which is tried on every document; `$in` is one, whatever it lists
_INT64 = 2**63
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 80, 80, 80
_ESCAPES = str.maketrans({'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})


class Filter(ABC):
    """A condition on the metadata of a document; made by `Filter.parse`."""

    @staticmethod
    def parse(where: Mapping[str, Any] | Filter | None) -> Filter | None:
        """Read a filter from a dict.

        Args:
            where: The filter as a dict, see above; None and {} are no filter. A `Filter` is returned as it is.

        Raises:
            ValueError: It is not a filter; says where and what would be one.

        Example:
            >>> found = Filter.parse({"kind": "story", "year": {"$gte": 2000}})
            >>> found.mask([{"kind": "story", "year": 1999}, {"kind": "story", "year": 2001}, {"year": 2001}])
            array([False,  True, False])
        """
        if where is None or isinstance(where, Filter):
            return where
        if isinstance(where, Mapping) and not where:
            return None
        found = _parse(where, "where", 0)
        if (count := sum(1 for _ in found.conditions())) > _MOST:
            raise ValueError(
                f"where: {count} conditions, but at most {_MOST} are tried. For many values of one field use $in."
            )
        return found

    @abstractmethod
    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the condition holds for a document's metadata."""

    @abstractmethod
    def milvus(self, field: str) -> str:
        """The condition as an expression of Milvus, over a JSON field that holds `typed_metadata`.

        Args:
            field: The name of the JSON field.
        """

    def conditions(self) -> Iterator[Filter]:
        """Yield the conditions on single fields that it is made of."""
        yield self

    def needs(self) -> tuple[str, frozenset[str]] | None:
        """The field and the kinds of value without one of which the condition never holds; `None` if it may."""
        return None

    def hopeless(self, kinds: Mapping[str, Collection[str]]) -> list[str]:
        """Say which conditions hold for no document, as the field has values of other kinds in all that have it.

        Args:
            kinds: The kinds of value of each field, `"text"`, `"number"`, `"flag"` or `"list"`.
        """
        found = []
        for condition in self.conditions():
            needed = condition.needs()
            if needed is None or not needed[1] or not kinds.get(needed[0]) or needed[1] & set(kinds[needed[0]]):
                continue
            key, wanted = needed
            there = " and ".join(f"{kind}s" for kind in sorted(kinds[key]))
            mend = "For lists there is $contains" if "list" in kinds[key] else "Compare with one of those"
            if kinds[key] == {"text"} and wanted == {"number"}:
                mend = "Store numbers as numbers, or compare with a text"
            found.append(
                f"{key!r} is compared with a {' or a '.join(sorted(wanted))}, but has {there} in all documents that "
                f"have it, which are never equal, less or more. {mend}."
            )
        return found

    def mask(self, metadata: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """Whether the condition holds, for the metadata of each of n documents.

        Shape:
            returns `(n,)` bool.
        """
        return np.fromiter((self.matches(each) for each in metadata), dtype=bool, count=len(metadata))


def typed_metadata(metadata: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Metadata sorted by kind of value, as `Filter.milvus` expects it.

    Engines disagree on whether `true == 1` in JSON and on texts that look like lists; with a place for each kind there
    is nothing to disagree on. The elements of lists become texts that begin with their kind.

    Raises:
        ValueError: A value is none of text, number, flag and list, or a whole number that does not fit into 64 bits;
            names the field.

    Example:
        >>> typed_metadata({"kind": "story", "year": 1999, "tags": ["sea", 3]})
        {'text': {'kind': 'story'}, 'number': {'year': 1999}, 'list': {'tags': ['text:sea', 'number:3']}}
    """
    typed: dict[str, dict[str, Any]] = {}
    for key, value in metadata.items():
        kind = _kind(value)
        if kind is None:
            continue
        if kind == "other":
            raise ValueError(
                f"Metadata field {key!r}: {_shown(value)} is neither text, number, flag nor a list of those."
            )
        if kind == "number" and isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise ValueError(f"Metadata field {key!r}: {_shown(value)} does not fit into 64 bits. Store it as a text.")
        known = [_tagged(each) for each in value if each is not None] if kind == "list" else value
        typed.setdefault(kind, {})[key] = known
    return typed


def milvus_string(text: str) -> str:
    """A text as a literal in an expression of Milvus, whatever it contains.

    Example:
        >>> print(milvus_string('say "no" or 1 == 1'))
        "say \\"no\\" or 1 == 1"
    """
    return f'"{text.translate(_ESCAPES)}"'


# ---- Conditions ----


@dataclass(frozen=True)
class _Group(Filter):
    """All, or any, of some conditions."""

    parts: tuple[Filter, ...]
    word: str = "and"

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return (all if self.word == "and" else any)(part.matches(metadata) for part in self.parts)

    def conditions(self) -> Iterator[Filter]:
        for part in self.parts:
            yield from part.conditions()

    def milvus(self, field: str) -> str:
        return "(" + f" {self.word} ".join(part.milvus(field) for part in self.parts) + ")"


@dataclass(frozen=True)
class _Not(Filter):
    part: Filter

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return not self.part.matches(metadata)

    def conditions(self) -> Iterator[Filter]:
        return self.part.conditions()

    def milvus(self, field: str) -> str:
        return f"(not {self.part.milvus(field)})"


@dataclass(frozen=True)
class _Exists(Filter):
    key: str

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return metadata.get(self.key) is not None

    def milvus(self, field: str) -> str:
        places = (_place(field, kind, self.key) for kind in ("text", "number", "flag", "list"))
        return "(" + " or ".join(f"exists {place}" for place in places) + ")"


@dataclass(frozen=True)
class _Compared(Filter):
    """The field has a value of the operand's kind that compares so with it; `==` or an order."""

    key: str
    operator: str
    value: str | float | bool

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        found: Any = metadata.get(self.key)
        if _kind(found) != _kind(self.value):
            return False
        return bool(found == self.value if self.operator == "$eq" else _ORDERS[self.operator][0](found, self.value))

    def needs(self) -> tuple[str, frozenset[str]]:
        return self.key, frozenset({str(_kind(self.value))})

    def milvus(self, field: str) -> str:
        place = _place(field, str(_kind(self.value)), self.key)
        sign = "==" if self.operator == "$eq" else _ORDERS[self.operator][1]
        # a comparison with a missing field is neither true nor false there, and its reverse too
        return f"(exists {place} and {place} {sign} {_literal(self.value)})"


@dataclass(frozen=True)
class _In(Filter):
    """The field has one of some values, which are kept by kind; it holds never if there are none."""

    key: str
    values: Mapping[str, frozenset[str | float | bool]]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        found = metadata.get(self.key)
        kind = _kind(found)
        return kind is not None and found in self.values.get(kind, ())

    def needs(self) -> tuple[str, frozenset[str]]:
        return self.key, frozenset(self.values)

    def milvus(self, field: str) -> str:
        some = []
        for kind, values in self.values.items():
            place = _place(field, kind, self.key)  # milvus-lite knows `in` for plain fields only
            equal = " or ".join(f"{place} == {literal}" for literal in sorted(map(_literal, values)))
            some.append(f"(exists {place} and ({equal}))")
        if not some:
            place = _place(field, "text", self.key)
            return f"(exists {place} and not exists {place})"
        return "(" + " or ".join(some) + ")"


@dataclass(frozen=True)
class _Contains(Filter):
    key: str
    value: str | float | bool

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        found = metadata.get(self.key)
        if _kind(found) != "list":
            return False
        return any(_kind(each) == _kind(self.value) and each == self.value for each in found or ())

    def needs(self) -> tuple[str, frozenset[str]]:
        return self.key, frozenset({"list"})

    def milvus(self, field: str) -> str:
        place = _place(field, "list", self.key)
        return f"(exists {place} and json_contains({place}, {milvus_string(_tagged(self.value))}))"


# ---- Reading ----


def _parse(where: Any, place: str, depth: int) -> Filter:
    """A filter from a dict that is not empty."""
    if not isinstance(where, Mapping) or not where:
        raise ValueError(f'{place}: a filter is a dict such as {{"kind": "story"}}; got {_shown(where)}.')
    if depth > _DEEPEST:
        raise ValueError(f"{place}: filters nest more than {_DEEPEST} deep.")
    parts: list[Filter] = []
    for key, value in where.items():
        here = f"{place}[{_shown(key)}]"
        if key in ("$and", "$or"):
            if not isinstance(value, (list, tuple)) or not value:
                raise ValueError(f"{here}: give a list of at least one filter; got {_shown(value)}.")
            some = tuple(_parse(each, f"{here}[{n}]", depth + 1) for n, each in enumerate(value))
            parts.append(_Group(some, key[1:]))
        elif key == "$not":
            parts.append(_Not(_parse(value, here, depth + 1)))
        elif not isinstance(key, str) or not key or key.startswith("$"):
            raise ValueError(f"{here}: unknown operator; give the name of a field or one of {', '.join(_GROUPS)}.")
        else:
            operators = value if isinstance(value, Mapping) else {"$eq": value}
            if not operators:
                raise ValueError(f"{here}: no condition; give a value or operators such as {{'$gte': 2000}}.")
            _checked_text(key, here)
            parts += [_condition(key, name, operand, f"{here}[{_shown(name)}]") for name, operand in operators.items()]
    return parts[0] if len(parts) == 1 else _Group(tuple(parts))


def _condition(key: str, operator: Any, operand: Any, place: str) -> Filter:
    """Read one condition on one field."""
    if operator in ("$ne", "$nin"):
        return _Not(_condition(key, {"$ne": "$eq", "$nin": "$in"}[operator], operand, place))
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise ValueError(f"{place}: give True or False; got {_shown(operand)}.")
        return _Exists(key) if operand else _Not(_Exists(key))
    if operator == "$eq":
        return _Not(_Exists(key)) if operand is None else _Compared(key, "$eq", _scalar(operand, place))
    if operator == "$in":
        if not isinstance(operand, (list, tuple, set, frozenset)):
            raise ValueError(f"{place}: give a list of values; got {_shown(operand)}.")
        return _among(key, operand, place)
    if operator == "$contains":
        return _Contains(key, _scalar(operand, place))
    if operator in _ORDERS:
        bound = _scalar(operand, place)
        if isinstance(bound, bool):
            raise ValueError(f"{place}: flags have no order; give a number or a text.")
        return _Compared(key, operator, bound)
    raise ValueError(f"{place}: unknown operator; give one of {', '.join(_OPERATORS)}. Metadata is never nested.")


def _among(key: str, operand: Collection[Any], place: str) -> Filter:
    values: dict[str, set[str | float | bool]] = {}
    for each in operand:
        if each is not None:
            value = _scalar(each, place)
            values.setdefault(str(_kind(value)), set()).add(value)
    some: list[Filter] = [_Not(_Exists(key))] if any(each is None for each in operand) else []
    if values or not some:
        some.append(_In(key, {kind: frozenset(found) for kind, found in values.items()}))
    return some[0] if len(some) == 1 else _Group(tuple(some), "or")


def _scalar(value: Any, place: str) -> str | float | bool:
    """A checked operand."""
    if isinstance(value, np.generic):
        value = value.item()
    kind = _kind(value)
    if kind == "text":
        return _checked_text(value, place)
    if kind == "number":
        if not -_INT64 <= value < _INT64 if isinstance(value, int) else not math.isfinite(value):
            raise ValueError(f"{place}: {_shown(value)} is not a finite number that fits into 64 bits.")
        return value
    if kind == "flag":
        return value
    raise ValueError(
        f"{place}: compare with a text, a number or a flag; got {_shown(value)}. For lists there are $contains and "
        "$in."
    )


def _checked_text(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: {text!r:.80} is not valid Unicode (it has half of a surrogate pair).") from None
    return text


# ---- Values ----


def kinds_of(metadata: Sequence[Mapping[str, Any]], kinds: dict[str, set[str]]) -> None:
    """Add the kinds of value that each field of some documents has."""
    for each in metadata:
        for key, value in each.items():
            if value is not None:
                kinds.setdefault(key, set()).add(str(_kind(value)))


def _shown(value: Any) -> str:
    """A value as an error shows it: a few words, however long or deeply nested it is."""
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a whole number of {value.bit_length()} bits"
    return _SHORT.repr(value)


def _kind(value: Any) -> str | None:
    """The kind of a metadata value; None for no value."""
    if value is None:
        return None
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "text"
    return "list" if isinstance(value, (list, tuple)) else "other"


def _tagged(value: str | float | bool) -> str:
    """An element of a list as a text; equal for equal values of one kind only."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{_kind(value)}:{value}"


def _place(field: str, kind: str, key: str) -> str:
    return f'{field}["{kind}"][{milvus_string(key)}]'


def _literal(value: str | float | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return milvus_string(value) if isinstance(value, str) else repr(value)
