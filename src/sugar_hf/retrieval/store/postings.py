"""Full-text search: the words of a segment's documents, in a file that is written once, and BM25 over all segments."""

import json
import re
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ...model.samples_sugar import INSTRUCTION_ROLES, Sample, parse_sample
from .layout import checked_read

K1, B = 1.2, 0.75
#: Changes when words are made of texts in another way.
VERSION = "1"
MOST_TIMES = 2**16 - 1  # that a word is counted in a document
_TYPES = {
    "words": np.uint8,
    "word_ends": np.int64,
    "posting_ends": np.int64,
    "documents": np.int32,
    "times": np.uint16,
    "lengths": np.int32,
}

# ---- Words ----

_ASCII = re.compile(r"[a-z0-9]+")
_ACCENTS = re.compile("[\u0300-\u036f]")
# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, the Japanese ones, Chinese; and Korean, which
# writes particles and words together.
_JOINED = (
    "\u0e01-\u0e4e\u0e81-\u0ece\u1000-\u104f\u1780-\u17d3\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa"
    "\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U000323af"
)


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Return what a word is, a run of characters of one kind in it, and a character with its marks."""
    # `\w` knows no combining marks, of which Hindi and others make their vowels; two characters join such letters
    marks = "".join(map(chr, filter(lambda code: unicodedata.category(chr(code))[0] == "M", range(0x300, 0x12000))))
    marks = re.escape(marks) + "\u200c\u200d"
    joined = f"[{_JOINED}][{marks}]*"
    return (
        re.compile(rf"[^\W_](?:[^\W_]|[{marks}])*"),
        re.compile(rf"(?:{joined})+|[^{_JOINED}]+"),
        re.compile(joined),
    )


def split_words(text: str) -> list[str]:
    """Return the words of a text, as they are compared: without case and accents, in compatible characters.

    Runs of letters and digits are words; nothing is a syntax. In scripts without spaces between words, each character
    and each pair of neighbours counts as a word.

    ```python
    >>> split_words('Café "AND" B-52')
    ['cafe', 'and', 'b', '52']
    >>> split_words("黒猫")
    ['黒', '猫', '黒猫']

    ```
    """
    if text.isascii():
        return _ASCII.findall(text.lower())
    text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFC", _ACCENTS.sub("", text))
    word, run, character = _patterns()
    found: list[str] = []
    for each in word.findall(text):
        for part in run.findall(each):
            if character.match(part):
                single = character.findall(part)
                found += single
                found += map("".join, pairwise(single))
            else:
                found.append(part)
    return found


def words_of(sample: Sample, name: str) -> list[str]:
    """Return the words of a query's texts, without instructions.

    Args:
        sample: The query.
        name: What to call it in errors.
    """
    messages = parse_sample(sample, name)
    parts = [part for message in messages if message.role not in INSTRUCTION_ROLES for part in message.parts]
    return [word for part in parts if not part.is_image for word in split_words(part.text)]


def _texts(messages: Iterable[dict[str, Any]], metadata: str) -> Iterator[str]:
    """Yield the texts of a stored document: those of its messages but for instructions, and its title."""
    for message in messages:
        if message["role"] not in INSTRUCTION_ROLES:
            yield from (part["text"] for part in message["content"] if part["type"] == "text" and part["text"])
    if '"title"' in metadata:
        with suppress(ValueError, RecursionError):  # what is no JSON is told of where metadata are read
            values = json.loads(metadata)
            title = values.get("title") if isinstance(values, dict) else None
            if isinstance(title, str):
                yield title


# ---- The words of a segment ----


@dataclass(frozen=True)
class Postings:
    """Which documents of a segment have which words, and how often.

    Args:
        words: All words in UTF-8, sorted, one behind the other.
        word_ends: (w,) int64, where each word ends.
        posting_ends: (w,) int64, where the documents of each word end.
        documents: (p,) int32, the documents of each word, counted from the first of the segment, ascending.
        times: (p,) uint16, how often each has the word.
        lengths: (n,) int32, the number of words of each document.
    """

    words: np.ndarray
    word_ends: np.ndarray
    posting_ends: np.ndarray
    documents: np.ndarray
    times: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, batches: Iterable[pa.RecordBatch]) -> "Postings":
        """Take the words of stored documents."""
        builder = PostingsBuilder()
        for batch in batches:
            builder.add(batch)
        return builder.postings()

    @classmethod
    def read(cls, tensors: Any, path: Path, count: int) -> "Postings | None":
        """Read what is in a file, after a check that no number in it leads nowhere.

        Args:
            tensors: The open file.
            path: Its path, for errors.
            count: How many documents the segment has.

        Returns:
            `None` if it holds words as another version of sugar-hf makes them.

        Raises:
            DamagedIndexError: The content is not what it should be.
        """
        with checked_read(path):
            if (tensors.metadata() or {}).get("version") != VERSION:
                return None
            arrays = {name: tensors.get_tensor(name) for name in _TYPES}
            for name, type_ in _TYPES.items():
                if arrays[name].dtype != type_ or arrays[name].ndim != 1:
                    raise ValueError(f"{name} is no list of {np.dtype(type_)}")
            read = cls(**arrays)
            read._check(count)
        return read

    def _check(self, count: int) -> None:
        for name, ends, length in (
            ("word_ends", self.word_ends, len(self.words)),
            ("posting_ends", self.posting_ends, len(self.documents)),
        ):
            # no word and no list is empty
            if (np.diff(ends, prepend=0) < 1).any() or (ends[-1] if len(ends) else 0) != length:
                raise ValueError(f"{name} do not ascend to {length}")
        documents, lengths = self.documents, self.lengths
        if len(self.word_ends) != len(self.posting_ends) or len(documents) != len(self.times):
            raise ValueError("it has lists of different lengths")
        if len(lengths) != count or (count and lengths.min() < 0):
            raise ValueError(f"it does not have the lengths of {count} documents")
        if not len(documents):
            return
        if documents.min() < 0 or documents.max() >= count or not lengths[documents].min() or not self.times.min():
            raise ValueError("it has documents that there are not, or that do not have the word")
        falls = np.flatnonzero(np.diff(documents) <= 0) + 1
        if not np.isin(falls, self.posting_ends).all():
            raise ValueError("the documents of a word do not ascend")

    def tensors(self) -> dict[str, np.ndarray]:
        """Return what a file of them holds."""
        return {name: vars(self)[name] for name in _TYPES}

    def find(self, word: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents that have a word, and how often each has it."""
        at = bisect_left(_Words(self), word)
        if at == len(self.word_ends) or _Words(self)[at] != word:
            return self.documents[:0], self.times[:0]
        part = slice(self.posting_ends[at - 1] if at else 0, self.posting_ends[at])
        return self.documents[part], self.times[part]


@dataclass(frozen=True)
class _Words(Sequence[bytes]):
    """The words of a segment as a sequence, for bisection."""

    postings: Postings

    def __len__(self) -> int:
        return len(self.postings.word_ends)

    def __getitem__(self, at: Any) -> Any:
        ends = self.postings.word_ends
        return self.postings.words[ends[at - 1] if at else 0 : ends[at]].tobytes()


class PostingsBuilder:
    """Collects the words of documents, batch by batch."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words, self._times = array("i"), array("H")
        self._counts: list[int] = []
        self._lengths: list[int] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Add the documents of a batch."""
        numbers = self._numbers
        messages, metadata = (batch.column(name).to_pylist() for name in ("messages", "metadata"))
        for values in zip(messages, metadata, strict=True):
            found = Counter(word for text in _texts(*values) for word in split_words(text))
            self._words.extend(numbers.setdefault(word, len(numbers)) for word in found)
            self._times.extend(min(times, MOST_TIMES) for times in found.values())
            self._counts.append(len(found))
            self._lengths.append(found.total())

    def postings(self) -> Postings:
        """Return what was collected."""
        words = sorted((word.encode(), number) for word, number in self._numbers.items())
        place = np.empty(len(words), np.int64)
        place[[number for _, number in words]] = np.arange(len(words))
        word = place[np.frombuffer(self._words, np.int32)] if self._words else np.zeros(0, np.int64)
        order = np.argsort(word, kind="stable")
        documents = np.repeat(np.arange(len(self._counts), dtype=np.int32), self._counts)
        return Postings(
            np.frombuffer(b"".join(name for name, _ in words), np.uint8),
            np.cumsum([len(name) for name, _ in words], dtype=np.int64),
            np.cumsum(np.bincount(word, minlength=len(words)), dtype=np.int64),
            documents[order],
            np.array(self._times, np.uint16)[order],
            np.array(self._lengths, np.int32),
        )


# ---- Search ----


class TextSearch:
    """BM25 over the segments of an index, as Lucene computes it.

    A word that a query has q times gives a document of length l the score

        q * ln(1 + (N - n + 0.5) / (n + 0.5)) * f / (f + k1 * (1 - b + b * l / L))

    where the document has it f times, n of the N documents with words have it, L is their mean length, k1 = 1.2 and
    b = 0.75. N, n and L are of all documents that are not deleted. So a score depends neither on the segments of an
    index nor on what was deleted from it.

    Args:
        segments: The words of each segment.
        live: (documents,) bool, which documents of all segments are not deleted.
    """

    def __init__(self, segments: Sequence[Postings], live: np.ndarray) -> None:
        ends = np.cumsum([len(segment.lengths) for segment in segments], dtype=np.int64).tolist()
        starts = [0, *ends][:-1]
        self._segments = [
            (start, segment, live[start:end]) for start, segment, end in zip(starts, segments, ends, strict=True)
        ]
        lengths = [segment.lengths[kept] for _, segment, kept in self._segments]
        self._count = sum(int(np.count_nonzero(some)) for some in lengths)
        self._mean = sum(int(some.sum(dtype=np.int64)) for some in lengths) / max(1, self._count)

    def search(self, words: Sequence[str], top_k: int, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find the documents that have any of some words.

        Args:
            words: The words of a query.
            top_k: How many documents.
            allowed: (documents,) bool, which may be found.

        Returns:
            Numbers of documents (k,) int64, best first and then in the order of adding, and scores (k,) float64.
        """
        found = [[segment.find(word) for _, segment, _ in self._segments] for word in _encoded(words)]
        weights = []
        for lists, times in zip(found, _encoded(words).values(), strict=True):
            n = sum(
                int(np.count_nonzero(kept[documents]))
                for (documents, _), (*_, kept) in zip(lists, self._segments, strict=True)
            )
            weights.append(times * np.log(1 + (self._count - n + 0.5) / (n + 0.5)))
        numbers, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
        for i, (start, segment, _) in enumerate(self._segments):
            total = np.zeros(len(segment.lengths))
            for lists, weight in zip(found, weights, strict=True):
                documents, f = lists[i]
                norm = K1 * (1 - B + B * segment.lengths[documents] / self._mean) if len(documents) else 0
                total[documents] += weight * (f / (f + norm))
            total *= allowed[start : start + len(total)]
            best = _best(total, top_k)
            numbers.append(best + start)
            scores.append(total[best])
        numbers_, scores_ = np.concatenate(numbers), np.concatenate(scores)
        order = np.argsort(-scores_, kind="stable")[:top_k]
        return numbers_[order], scores_[order]


def _encoded(words: Sequence[str]) -> Counter[bytes]:
    return Counter(word.encode() for word in words)


def _best(scores: np.ndarray, top_k: int) -> np.ndarray:
    """Return where the largest scores over 0 are, ascending; more than `top_k` if some are equal."""
    least = np.partition(scores, -top_k)[-top_k] if top_k < len(scores) else 0.0
    return np.flatnonzero((scores >= least) & (scores > 0))
