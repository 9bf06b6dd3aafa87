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
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import ge, gt, le, lt
from typing import Any

import numpy as np

_ORDERS = {"$gt": (gt, ">"), "$gte": (ge, ">="), "$lt": (lt, "<"), "$lte": (le, "<=")}
_OPERATORS = ("$eq", "$ne", *_ORDERS, "$in", "$nin", "$contains", "$exists")
_GROUPS = ("$and", "$or", "$not")
_DEEPEST = 32  # nested filters; more is no filter that somebody wrote
_INT64 = 2**63 - 1
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
        return _parse(where, "where", 0) if where else None

    @abstractmethod
    def matches(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the condition holds for a document's metadata."""

    @abstractmethod
    def milvus(self, field: str) -> str:
        """The condition as an expression of Milvus, over a JSON field that holds `typed_metadata`.

        Args:
            field: The name of the JSON field.
        """

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
            raise ValueError(f"Metadata field {key!r}: {value!r} is neither text, number, flag nor a list of those.")
        if kind == "number" and isinstance(value, int) and abs(value) > _INT64:
            raise ValueError(f"Metadata field {key!r}: {value} does not fit into 64 bits. Store it as a text.")
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
class _All(Filter):
    parts: tuple[Filter, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return all(part.matches(metadata) for part in self.parts)

    def milvus(self, field: str) -> str:
        return "(" + " and ".join(part.milvus(field) for part in self.parts) + ")"


@dataclass(frozen=True)
class _Any(Filter):
    parts: tuple[Filter, ...]

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return any(part.matches(metadata) for part in self.parts)

    def milvus(self, field: str) -> str:
        return "(" + " or ".join(part.milvus(field) for part in self.parts) + ")"


@dataclass(frozen=True)
class _Not(Filter):
    part: Filter

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return not self.part.matches(metadata)

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
class _Nothing(Filter):
    """Holds never: `{"$in": []}`."""

    key: str

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return False

    def milvus(self, field: str) -> str:
        place = _place(field, "text", self.key)
        return f"(exists {place} and not exists {place})"


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

    def milvus(self, field: str) -> str:
        place = _place(field, str(_kind(self.value)), self.key)
        sign = "==" if self.operator == "$eq" else _ORDERS[self.operator][1]
        # a comparison with a missing field is neither true nor false there, and its reverse too
        return f"(exists {place} and {place} {sign} {_literal(self.value)})"


@dataclass(frozen=True)
class _Contains(Filter):
    key: str
    value: str | float | bool

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        found = metadata.get(self.key)
        if _kind(found) != "list":
            return False
        return any(_kind(each) == _kind(self.value) and each == self.value for each in found or ())

    def milvus(self, field: str) -> str:
        place = _place(field, "list", self.key)
        return f"(exists {place} and json_contains({place}, {milvus_string(_tagged(self.value))}))"


# ---- Reading ----


def _parse(where: Any, place: str, depth: int) -> Filter:
    """A filter from a dict that is not empty."""
    if not isinstance(where, Mapping) or not where:
        raise ValueError(f'{place}: a filter is a dict such as {{"kind": "story"}}; got {where!r}.')
    if depth > _DEEPEST:
        raise ValueError(f"{place}: filters nest more than {_DEEPEST} deep.")
    parts: list[Filter] = []
    for key, value in where.items():
        here = f"{place}[{key!r}]"
        if key in ("$and", "$or"):
            if not isinstance(value, (list, tuple)) or not value:
                raise ValueError(f"{here}: give a list of at least one filter; got {value!r}.")
            some = tuple(_parse(each, f"{here}[{n}]", depth + 1) for n, each in enumerate(value))
            parts.append(_All(some) if key == "$and" else _Any(some))
        elif key == "$not":
            parts.append(_Not(_parse(value, here, depth + 1)))
        elif not isinstance(key, str) or not key or key.startswith("$"):
            raise ValueError(f"{here}: unknown operator; give the name of a field or one of {', '.join(_GROUPS)}.")
        else:
            parts += _field_conditions(_checked_text(key, here), value, here)
    return parts[0] if len(parts) == 1 else _All(tuple(parts))


def _field_conditions(key: str, value: Any, place: str) -> list[Filter]:
    """The conditions on one field."""
    if not isinstance(value, Mapping):
        value = {"$eq": value}
    if not value:
        raise ValueError(f"{place}: no condition; give a value or operators such as {{'$gte': 2000}}.")
    return [_condition(key, operator, operand, f"{place}[{operator!r}]") for operator, operand in value.items()]


def _condition(key: str, operator: Any, operand: Any, place: str) -> Filter:
    if operator == "$exists":
        if not isinstance(operand, bool):
            raise ValueError(f"{place}: give True or False; got {operand!r}.")
        return _Exists(key) if operand else _Not(_Exists(key))
    if operator in ("$eq", "$ne"):
        equal = _equal(key, operand, place)
        return equal if operator == "$eq" else _Not(equal)
    if operator in ("$in", "$nin"):
        if not isinstance(operand, (list, tuple, set, frozenset)):
            raise ValueError(f"{place}: give a list of values; got {operand!r}.")
        some = tuple(_equal(key, each, place) for each in operand)
        found = _Any(some) if some else _Nothing(key)
        return found if operator == "$in" else _Not(found)
    if operator == "$contains":
        return _Contains(key, _scalar(operand, place))
    if operator in _ORDERS:
        bound = _scalar(operand, place)
        if isinstance(bound, bool):
            raise ValueError(f"{place}: flags have no order; give a number or a text.")
        return _Compared(key, operator, bound)
    raise ValueError(f"{place}: unknown operator; give one of {', '.join(_OPERATORS)}. Metadata is never nested.")


def _equal(key: str, value: Any, place: str) -> Filter:
    return _Not(_Exists(key)) if value is None else _Compared(key, "$eq", _scalar(value, place))


def _scalar(value: Any, place: str) -> str | float | bool:
    """A checked operand."""
    if isinstance(value, np.generic):
        value = value.item()
    kind = _kind(value)
    if kind == "text":
        return _checked_text(value, place)
    if kind == "number":
        if not math.isfinite(value) or (isinstance(value, int) and abs(value) > _INT64):
            raise ValueError(f"{place}: {value} is not a finite number that fits into 64 bits.")
        return value
    if kind == "flag":
        return value
    raise ValueError(
        f"{place}: compare with a text, a number or a flag; got {value!r}. For lists there are $contains and $in."
    )


def _checked_text(text: str, place: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{place}: {text!r} is no valid Unicode text (it has half of a surrogate pair).") from None
    return text


# ---- Values ----


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
