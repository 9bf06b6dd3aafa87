"""Codecs of vectors: as they are, at half precision, as bytes, or as signs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np


@dataclass(frozen=True, eq=False)
class Codec:
    """Turns unit vectors into codes and back; made by `Codec.fit` or `Codec.from_dict`.

    | name | codes of d numbers | bytes |
    |---|---|---|
    | `float32` | the numbers | 4 d |
    | `float16` | the numbers, rounded | 2 d |
    | `int8` | the place of each number in its dimension's range, in 256 steps | d |
    | `binary` | the signs, eight to a byte, to be searched, then the `int8` code, to score what is found | d / 8 + d |

    The ranges of `int8` come from the first vectors of an index, and stay. Later numbers outside of them are clipped,
    which `clipped` counts.

    Args:
        dim: Width d of the vectors.
    """

    name: ClassVar[str]
    code_dtype: ClassVar[np.dtype[Any]]
    dim: int

    @staticmethod
    def fit(name: str, vectors: Iterable[np.ndarray]) -> Codec:
        """Make a codec for vectors like these.

        Args:
            name: One of the names above.
            vectors: Batches (n, d) float32; all are read for the ranges of `int8` and `binary`, else only the first.

        Raises:
            ValueError: An unknown name, no vectors at all, or vectors that are no finite numbers of one width.
        """
        if name not in CODECS:
            raise ValueError(f"vectors={name!r}: give one of {', '.join(map(repr, CODECS))}.")
        has_ranges = issubclass(_KINDS[name], Int8Codec)
        low = high = None
        for batch in vectors:
            batch = _checked(batch, None if low is None else len(low))
            if len(batch):
                low = batch.min(0) if low is None else np.minimum(low, batch.min(0))
                high = batch.max(0) if high is None else np.maximum(high, batch.max(0))
                if not has_ranges:
                    break
        if low is None or high is None:
            raise ValueError(f"vectors={name!r} is fitted to vectors, but there are none.")
        # a dimension that never changes still has a range to be divided by
        ranges = (low, np.maximum(high - low, np.float32(1e-6))) if has_ranges else ()
        return _KINDS[name](len(low), *ranges)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Codec:
        """Read `to_dict` back."""
        name, dim = values.get("name"), values.get("dim")
        if name not in CODECS or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"Not the description of a codec: name {name!r}, dim {dim!r}.")
        if not issubclass(_KINDS[name], Int8Codec):
            return _KINDS[name](dim)
        low, span = (np.asarray(values.get(key), dtype=np.float32) for key in ("low", "span"))
        if low.shape != (dim,) or span.shape != (dim,) or not np.isfinite(low + span).all() or not (span > 0).all():
            raise ValueError(f"The ranges of the {name} codec are not {dim} finite numbers each.")
        return _KINDS[name](dim, low, span)

    def to_dict(self) -> dict[str, Any]:
        """Return the codec as plain values, fit for JSON."""
        return {"name": self.name, "dim": self.dim}

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Turn vectors (n, d) float32 into codes (n, w) of `code_dtype`."""
        return _checked(vectors, self.dim).astype(self.code_dtype, copy=False)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Turn codes (n, w) into vectors (n, d) float32, as near as the codes allow; not normalised again."""
        return np.asarray(codes, dtype=np.float32)

    def clipped(self, vectors: np.ndarray) -> int:
        """Count the vectors (n, d) that have a number outside of the ranges, which is clipped."""
        return 0

    @cached_property
    def code_width(self) -> int:
        """How many numbers a code has."""
        return self.dim

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a code."""
        return self.code_width * self.code_dtype.itemsize


class Float32Codec(Codec):
    """The vectors as they are."""

    name, code_dtype = "float32", np.dtype(np.float32)


class Float16Codec(Codec):
    """The vectors at half precision."""

    name, code_dtype = "float16", np.dtype(np.float16)


@dataclass(frozen=True, eq=False)
class Int8Codec(Codec):
    """A byte for each number: floor(255 (x - low) / span), read as the middle of its step.

    It is FAISS's 8-bit scalar quantizer to the bit, so that FAISS searches the codes as they are.

    Args:
        dim: Width d of the vectors.
        low: (d,) float32, the least value of each dimension.
        span: (d,) float32, from the least to the largest value of each dimension.
    """

    name, code_dtype = "int8", np.dtype(np.uint8)
    low: np.ndarray
    span: np.ndarray

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        steps = (_checked(vectors, self.dim) - self.low) / self.span * np.float32(255)
        return np.clip(steps, 0, 255).astype(np.uint8)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        share = (np.asarray(codes).astype(np.float32) + np.float32(0.5)) / np.float32(255)
        return self.low + share * self.span

    def clipped(self, vectors: np.ndarray) -> int:
        vectors = _checked(vectors, self.dim)
        slack = self.span / 255  # what is off by less than a step loses no more than others
        outside = (vectors < self.low - slack) | (vectors > self.low + self.span + slack)
        return int(outside.any(1).sum())

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim, "low": self.low.tolist(), "span": self.span.tolist()}


class BinaryCodec(Int8Codec):
    """The signs of the numbers, to be searched by Hamming distance, and the `Int8Codec` code, to score what is found.

    Only the signs need to be in memory: d / 8 bytes for each vector.
    """

    name = "binary"

    @property
    def sign_width(self) -> int:
        """Bytes that the signs take."""
        return -(-self.dim // 8)

    def signs(self, vectors: np.ndarray) -> np.ndarray:
        """Return the signs of vectors (n, d), eight to a byte: (n, sign_width) uint8. Zeros fill up the last byte."""
        return np.packbits(_checked(vectors, self.dim) > 0, axis=1)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return np.concatenate([self.signs(vectors), super().encode(vectors)], axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return super().decode(np.asarray(codes)[:, self.sign_width :])

    @cached_property
    def code_width(self) -> int:
        return self.sign_width + self.dim


_KINDS: dict[str, Any] = {kind.name: kind for kind in (Float32Codec, Float16Codec, Int8Codec, BinaryCodec)}
CODECS = tuple(_KINDS)


def _checked(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """Return vectors as float32, if they are finite numbers of width `dim`."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.shape[1] or (dim is not None and vectors.shape[1] != dim):
        wanted = "d" if dim is None else dim
        raise ValueError(f"Vectors must have the shape (n, {wanted}); got {vectors.shape}.")
    vectors = vectors.astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        row = int(np.argmax(~np.isfinite(vectors).all(1)))
        raise ValueError(f"Vector {row} has NaN or infinite numbers.")
    return vectors
