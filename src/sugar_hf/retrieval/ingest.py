"""From a stream of whatever a user has to the parts of a write."""

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from ..data import BadSampleError, SkippedRowsWarning
from ..data.columns import ColumnChoice
from .documents import Document, as_document
from .embedder import SugarEmbedder
from .reading import stored_rows
from .store.index_writer import AddReport, duplicate_error
from .store.manifest import Head
from .store.process_group import Ranks
from .store.snapshot import Generation
from .store.staging import Staging

if TYPE_CHECKING:
    from .index import SugarIndex

ON_DUPLICATE = ("raise", "skip", "update")


class _Stream:
    """Cuts documents into parts, and looks at their ids on the way.

    Args:
        documents: What the user gave.
        known: What is there already; `None` if it is going to be replaced.
        on_duplicate: See `SugarIndex.add`.
        must_exist: Whether every id has to be there.
        on_error: Whether items that are no documents are skipped.
        choice: The columns of rows that are read.
    """

    def __init__(
        self,
        documents: Iterable[Any],
        known: Generation | None,
        on_duplicate: str,
        must_exist: bool,
        on_error: str,
        choice: ColumnChoice | None = None,
    ) -> None:
        if on_duplicate not in ON_DUPLICATE:
            raise ValueError(f"on_duplicate={on_duplicate!r}: give one of {', '.join(map(repr, ON_DUPLICATE))}.")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: give 'raise' or 'skip'.")
        if isinstance(documents, str | bytes | dict):
            raise ValueError(f"documents must be a list or another iterable of documents, got {documents!r:.60}.")
        self._choice = choice or ColumnChoice()
        self._documents = stored_rows(documents, self._choice)
        self._known = known
        self._on_duplicate = on_duplicate
        self._must_exist = must_exist
        self._on_error = on_error
        self._seen: set[str] = set()
        self.duplicates = 0
        self.skipped: list[BadSampleError] = []

    def parts(self, size: int) -> Iterator[list[tuple[int, Document]]]:
        """Yield parts of `size` documents, each with its place in the stream.

        Raises:
            DuplicateIdError: A part has ids that it must not have.
            KeyError: A part has ids that are not there and have to be.
        """
        if size < 1:
            raise ValueError(f"part_documents={size}: give 1 or more.")
        part: list[tuple[int, Document]] = []
        twice: list[str] = []
        for place, item in enumerate(self._documents):
            try:
                document = as_document(item, place, choice=self._choice)
            except BadSampleError as error:
                if self._on_error == "raise":
                    raise
                self.skipped.append(error)
                continue
            is_there = self._known is not None and self._known.number(document.id) is not None
            if self._must_exist and not is_there:
                raise KeyError(f"no document of id {document.id!r}; nothing was changed. Use add() for new ones.")
            if document.id in self._seen or (is_there and self._on_duplicate != "update"):
                if self._on_duplicate == "skip":
                    self.duplicates += 1
                    continue
                twice.append(document.id)
            self._seen.add(document.id)
            part.append((place, document))
            if len(part) == size:
                _check(twice)
                yield part
                part = []
        self._choice.check()
        _check(twice)
        if part:
            yield part


def add_documents(
    index: "SugarIndex",
    documents: Iterable[Any],
    embedder: SugarEmbedder,
    *,
    on_error: str,
    on_duplicate: str,
    must_exist: bool = False,
    part_documents: int,
    show_progress: bool,
    kind: str = "add",
    head: Head | None = None,
    choice: ColumnChoice | None = None,
) -> AddReport:
    """Embed documents part by part, skipping parts that are staged already, and commit; see `SugarIndex.add`.

    In a process group part p is embedded by the process p modulo the number of processes; the first one commits.
    """
    start, ranks = time.perf_counter(), Ranks()
    writer = index.writer(kind, head)
    report = AddReport()
    with ExitStack() as stack:
        with ranks.together():
            if ranks.is_first:
                stack.enter_context(writer).prepare()
            else:
                index.refresh()
        with ranks.together():
            staging = Staging.open(index.folder)
            known = None if kind == "build" else index.generation
            stream = _Stream(documents, known, on_duplicate, must_exist, on_error, choice)
            total = len(documents) if isinstance(documents, Sized) else None
            hidden = not (show_progress and ranks.is_first)
            count = 0
            with tqdm(total=total, desc="Embedding", unit=" documents", delay=1, disable=hidden) as bar:
                for number, part in enumerate(stream.parts(part_documents)):
                    if number % ranks.count == ranks.rank:
                        _embed(staging, number, [document for _, document in part], embedder, on_error)
                    bar.update(part[-1][0] + 1 - bar.n)
                    count = number + 1
        with ranks.together():
            if ranks.is_first:
                report = writer.commit(range(count), on_duplicate=on_duplicate)
                report.duplicates = stream.duplicates
                report.skipped = stream.skipped + report.skipped
    if not ranks.is_first:
        index.refresh()
    report.seconds = time.perf_counter() - start
    return ranks.from_first(report)


def add_vectors(
    index: "SugarIndex",
    documents: Iterable[Any],
    vectors: Iterable[np.ndarray],
    *,
    on_duplicate: str,
    part_documents: int,
) -> AddReport:
    """Add documents with vectors from elsewhere; see `SugarIndex.add_embedded`."""
    start = time.perf_counter()
    with index.writer("add_embedded") as writer:
        stream = _Stream(documents, writer.generation, on_duplicate, False, "raise")
        given = enumerate(vectors)
        number = place = -1
        count = 0
        for count, part in enumerate(stream.parts(part_documents), start=1):
            rows = []
            for wanted, document in part:
                while place < wanted:  # the vectors of documents that were left out are passed over
                    place, row = next(given, (wanted + 1, None))
                if row is None:
                    raise ValueError(f"document {document.id!r} has no vector: {number + 1} vectors were given.")
                number = place
                rows.append(row)
            writer.staging.stage(count - 1, [document for _, document in part], rows)
        if next(given, None) is not None and not stream.duplicates:
            raise ValueError(f"more vectors than documents were given: {number + 1} documents.")
        report = writer.commit(range(count), on_duplicate=on_duplicate)
    report.duplicates = stream.duplicates
    report.seconds = time.perf_counter() - start
    return report


def report_skipped(report: AddReport) -> AddReport:
    """Warn of documents that were left out."""
    if report.skipped:
        shown = "\n".join(f"  {error}" for error in report.skipped[:5])
        warnings.warn(f"{len(report.skipped)} documents were left out:\n{shown}", SkippedRowsWarning, stacklevel=3)
    return report


def _embed(
    staging: Staging, number: int, documents: Sequence[Document], embedder: SugarEmbedder, on_error: str
) -> None:
    if staging.holds(number, documents):
        return
    skipped: list[BadSampleError] = []
    vectors = embedder.embed_documents(documents, on_error=on_error, skipped=skipped)
    staging.stage(number, documents, vectors, skipped)


def _check(twice: list[str]) -> None:
    if twice:
        raise duplicate_error(twice)
