"""How vectors are stored: as they are, at half precision, as bytes, or as signs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

CODECS = ("float32", "float16", "int8", "binary")


class Codec(ABC):
    """Turns unit vectors into codes and back; made by `Codec.fit` or `Codec.from_dict`.

    | name | codes of d numbers | bytes |
    |---|---|---|
    | `float32` | the numbers | 4 d |
    | `float16` | the numbers, rounded | 2 d |
    | `int8` | the place of each number in its dimension's range, in 256 steps | d |
    | `binary` | the signs, eight to a byte, to be searched, then the `int8` code, to score what is found | d / 8 + d |

    The ranges of `int8` come from the vectors an index begins with, and stay: what lies outside later is clipped,
    which `clipped` counts.
    """

    name: ClassVar[str]
    dim: int

    @staticmethod
    def fit(name: str, vectors: Iterable[np.ndarray]) -> Codec:
        """A codec for vectors like these.

        Args:
            name: One of the names above.
            vectors: Batches of vectors; all are read for the ranges of `int8` and `binary`, of others only the first.

        Shape:
            vectors: each `(n, d)` float32.

        Raises:
            ValueError: An unknown name, no vectors at all, or vectors that are no finite numbers of one width.
        """
        if name not in CODECS:
            raise ValueError(f"vectors={name!r}: give one of {', '.join(map(repr, CODECS))}.")
        low = high = None
        for batch in vectors:
            batch = _checked(batch, None if low is None else len(low))
            if not len(batch):
                continue
            if low is None or high is None:
                low, high = batch.min(0), batch.max(0)
                if name in ("float32", "float16"):
                    break
            else:
                low, high = np.minimum(low, batch.min(0)), np.maximum(high, batch.max(0))
        if low is None or high is None:
            raise ValueError(f"vectors={name!r} needs vectors to be fitted to, and there is none.")
        if name == "float32":
            return Float32Codec(len(low))
        if name == "float16":
            return Float16Codec(len(low))
        # a dimension that never changes still has a range to be divided by
        span = np.maximum(high - low, np.float32(1e-6))
        return Int8Codec(len(low), low, span) if name == "int8" else BinaryCodec(len(low), low, span)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Codec:
        """The reverse of `to_dict`.

        Raises:
            ValueError: It does not describe a codec.
        """
        name, dim = values.get("name"), values.get("dim")
        if name not in CODECS or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"No description of a codec: name {name!r}, dim {dim!r}.")
        if name == "float32":
            return Float32Codec(dim)
        if name == "float16":
            return Float16Codec(dim)
        low, span = (np.asarray(values.get(key), dtype=np.float32) for key in ("low", "span"))
        if low.shape != (dim,) or span.shape != (dim,) or not np.isfinite(low + span).all() or not (span > 0).all():
            raise ValueError(f"The ranges of the {name} codec are no {dim} finite numbers each.")
        return Int8Codec(dim, low, span) if name == "int8" else BinaryCodec(dim, low, span)

    @abstractmethod
    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes of vectors.

        Shape:
            vectors `(n, d)` float32; returns `(n, w)`, of `code_dtype`.

        Raises:
            ValueError: The vectors are no finite numbers of width d.
        """

    @abstractmethod
    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors of codes, as near to the encoded ones as the codes allow; not normalised again.

        Shape:
            codes `(n, w)`; returns `(n, d)` float32.
        """

    def clipped(self, vectors: np.ndarray) -> int:
        """How many of the vectors (n, d) have a number outside of the ranges, which is clipped."""
        return 0

    @property
    @abstractmethod
    def code_dtype(self) -> np.dtype[Any]:
        """The type of the numbers of a code."""

    @property
    @abstractmethod
    def code_width(self) -> int:
        """How many numbers a code has."""

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a code."""
        return self.code_width * self.code_dtype.itemsize

    def to_dict(self) -> dict[str, Any]:
        """The codec as plain values, fit for JSON."""
        return {"name": self.name, "dim": self.dim}


@dataclass(frozen=True)
class Float32Codec(Codec):
    """The vectors as they are."""

    name = "float32"
    dim: int

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return _checked(vectors, self.dim)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.asarray(codes, dtype=np.float32)

    @property
    def code_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32)

    @property
    def code_width(self) -> int:
        return self.dim


@dataclass(frozen=True)
class Float16Codec(Codec):
    """The vectors at half precision."""

    name = "float16"
    dim: int

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return _checked(vectors, self.dim).astype(np.float16)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return np.asarray(codes, dtype=np.float32)

    @property
    def code_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16)

    @property
    def code_width(self) -> int:
        return self.dim


@dataclass(frozen=True, eq=False)
class Int8Codec(Codec):
    """A byte for each number: floor(255 (x - low) / span), read as the middle of its step.

    It is FAISS's 8-bit scalar quantizer to the bit, so that FAISS searches the codes as they are.

    Args:
        dim: Width d of the vectors.
        low: (d,) float32, the least value of each dimension.
        span: (d,) float32, from the least to the largest value of each dimension.
    """

    name = "int8"
    dim: int
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

    @property
    def code_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    @property
    def code_width(self) -> int:
        return self.dim

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim, "low": self.low.tolist(), "span": self.span.tolist()}


@dataclass(frozen=True, eq=False)
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
        """Signs of vectors (n, d), eight to a byte: (n, sign_width) uint8. The last byte is filled up with zeros."""
        return np.packbits(_checked(vectors, self.dim) > 0, axis=1)

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        return np.concatenate([self.signs(vectors), super().encode(vectors)], axis=1)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        return super().decode(np.asarray(codes)[:, self.sign_width :])

    @property
    def code_width(self) -> int:
        return self.sign_width + self.dim


def _checked(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """Vectors as float32, if they are finite numbers of width `dim`."""
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or not vectors.shape[1] or (dim is not None and vectors.shape[1] != dim):
        wanted = "d" if dim is None else dim
        raise ValueError(f"Vectors must have the shape (n, {wanted}); got {vectors.shape}.")
    vectors = vectors.astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        row = int(np.argmax(~np.isfinite(vectors).all(1)))
        raise ValueError(f"Vector {row} has NaN or infinite numbers.")
    return vectors
