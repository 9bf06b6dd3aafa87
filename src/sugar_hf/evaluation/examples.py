"""What evaluators hold: questions with what their answers are compared with, built when they are needed."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from PIL import Image

from ..data import Document

T = TypeVar("T")


@dataclass(frozen=True)
class Example:
    """A question.

    Args:
        document: Its id, unique in the task, and its prompt: texts and images in reading order, or a chat.
        reference: What the metric needs beside the prediction; JSON values. It is written beside the prediction.
        info: What else its record should say, such as what was retrieved for it; JSON values.
        fault: Why it cannot be asked, if the data is at fault; it fails then, and is counted and listed.
    """

    document: Document
    reference: Any = None
    info: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None

    @classmethod
    def of(cls, id: str | int, prompt: Sequence[Any], reference: Any = None) -> "Example":
        """Make an example of an id and the parts of a prompt.

        A part is a str, `pathlib.Path`, PIL image, bytes, or the `{"bytes", "path"}` struct of
        `datasets.Image(decode=False)`.
        """
        return cls(Document(str(id), list(prompt)), reference)

    @property
    def id(self) -> str:
        """The document's id."""
        return self.document.id


@dataclass
class Record:
    """A prediction.

    Args:
        id: The example's.
        prediction: What the model said; `None` if it could not be asked, and that counts as a wrong answer.
        reference: The example's.
        error: Why there is no prediction.
        info: What else is worth keeping, such as what was retrieved.
    """

    id: str
    prediction: str | None
    reference: Any = None
    error: str | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prediction, empty if there is none."""
        return self.prediction or ""


class Lazy(Sequence[T], Generic[T]):
    """A sequence whose items are built each time they are asked for, so that images of one batch only are in memory.

    Args:
        size: How many there are.
        build: Makes the item of a number, 0 to size - 1.
    """

    def __init__(self, size: int, build: Callable[[int], T]) -> None:
        self.size, self.build = size, build

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self.build(i) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        return self.build(index % self.size)

    def __iter__(self) -> Iterator[T]:
        return map(self.build, range(self.size))


def digest_of(document: Document, reference: Any = None) -> str:
    """Digest by which a prediction or an embedding is known to belong to this document as it is now.

    Images in memory count by their bytes, files by name and size, so that no file is read.
    """
    written = hashlib.sha256(json.dumps([document.id, reference], sort_keys=True, ensure_ascii=False).encode())
    written.update(json.dumps(document.content.messages, ensure_ascii=False).encode())
    for source in document.content.images:
        written.update(_image_key(source))
    return written.hexdigest()[:16]


def _image_key(source: Any) -> bytes:
    if isinstance(source, Mapping):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        return f"{source.mode} {source.size}".encode() + source.tobytes()
    path = Path(source)
    size = path.stat().st_size if path.is_file() else -1
    return f"{path.name} {size}".encode()
