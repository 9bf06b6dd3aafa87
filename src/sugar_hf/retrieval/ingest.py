"""From documents of any form to a committed write: cut into parts, embedded, staged."""

import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch.distributed as dist
from tqdm.auto import tqdm

from ..data import BadSampleError, SkippedRowsWarning
from ..data.containers import ColumnChoice
from ..data.documents import Document, as_document
from ..data.readers import stored_rows
from .embedder import SugarEmbedder
from .store import (
    AddReport,
    IndexSpec,
    IndexStore,
    PendingParts,
    Snapshot,
    check_duplicates,
    create_index,
    open_writer,
)

READ_AHEAD = 256 * 2**20  # bytes of image files in memory
ON_DUPLICATE = ("raise", "skip", "update")

T = TypeVar("T")


@dataclass(frozen=True)
class AddOptions:
    """How documents are added; see `SugarIndex.add`.

    Args:
        on_error: `"raise"` or `"skip"`.
        on_duplicate: `"raise"`, `"skip"` or `"update"`.
        must_exist: Whether the index has to have every id.
        part_documents: Documents of a part.
        show_progress: Show a bar.
        choice: The columns of rows that are read.
    """

    on_error: str = "raise"
    on_duplicate: str = "raise"
    must_exist: bool = False
    part_documents: int = 1024
    show_progress: bool = True
    choice: ColumnChoice = field(default_factory=ColumnChoice)

    def __post_init__(self) -> None:
        if self.on_duplicate not in ON_DUPLICATE:
            raise ValueError(f"on_duplicate={self.on_duplicate!r}: give one of {', '.join(map(repr, ON_DUPLICATE))}.")
        if self.on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={self.on_error!r}: give 'raise' or 'skip'.")
        if self.part_documents < 1:
            raise ValueError(f"part_documents={self.part_documents}: give 1 or more.")


class _Stream:
    """Cuts documents into parts, and checks their ids on the way.

    Args:
        documents: Anything that `as_document` takes, in an iterable.
        known: The index that they are added to; `None` if it is going to be replaced.
        options: How they are added.
    """

    def __init__(self, documents: Iterable[Any], known: Snapshot | None, options: AddOptions) -> None:
        if isinstance(documents, str | bytes | dict):
            raise ValueError(f"documents must be a list or another iterable of documents, got {documents!r:.60}.")
        self._documents = stored_rows(documents, options.choice)
        self._known = known
        self._options = options
        self.duplicates = 0
        self.skipped: list[BadSampleError] = []

    def parts(self) -> Iterator[list[tuple[int, Document]]]:
        """Yield parts, each document with its number in the stream.

        Raises:
            DuplicateIdError: A part has ids that it must not have.
            KeyError: A part has ids that the index does not have, and has to.
        """
        options, known, seen = self._options, self._known, set[str]()
        part: list[tuple[int, Document]] = []
        twice: list[str] = []
        for number, item in enumerate(self._documents):
            try:
                document = as_document(item, number, choice=options.choice)
            except BadSampleError as error:
                if options.on_error == "raise":
                    raise
                self.skipped.append(error)
                continue
            is_known = known is not None and known.number(document.id) is not None
            if options.must_exist and not is_known:
                raise KeyError(f"no document of id {document.id!r}; nothing was changed. Use add() for new ones.")
            if document.id in seen or (is_known and options.on_duplicate != "update"):
                if options.on_duplicate == "skip":
                    self.duplicates += 1
                    continue
                twice.append(document.id)
            seen.add(document.id)
            part.append((number, document))
            if len(part) == options.part_documents:
                check_duplicates(twice)
                yield part
                part = []
        options.choice.check()
        if twice:
            check_duplicates(twice)
        if part:
            yield part


def build_store(
    folder: Path,
    spec: IndexSpec,
    secrets: Mapping[str, Any],
    documents: Iterable[Any],
    embedder: SugarEmbedder,
    options: AddOptions,
    *,
    overwrite: bool,
) -> IndexStore:
    """Make an index of documents; see `SugarIndex.build`.

    Raises:
        FileExistsError: The folder holds an index with documents, which is not to be replaced.
    """
    group = ProcessGroup()
    with group.together():
        if group.is_first and (count := create_index(folder, spec, may_exist=True)) and not overwrite:
            raise FileExistsError(
                f"{folder} holds an index of {count} documents. Pass overwrite=True to replace it, or use "
                "SugarIndex.load(folder, embedder).add(documents)."
            )
    store = IndexStore.open(folder, secrets=secrets)
    add_documents(store, documents, embedder, options, kind="build", spec=spec)
    return store


def add_documents(
    store: IndexStore,
    documents: Iterable[Any],
    embedder: SugarEmbedder,
    options: AddOptions,
    *,
    kind: str = "add",
    spec: IndexSpec | None = None,
) -> AddReport:
    """Embed documents part by part, without the parts that are staged already, and commit; see `SugarIndex.add`.

    In a process group part p is embedded by the process p modulo the number of processes; the first one commits.
    """
    start, group = time.perf_counter(), ProcessGroup()
    report = AddReport()
    with ExitStack() as stack:
        with group.together():
            if group.is_first:
                writer = stack.enter_context(open_writer(store, kind, spec))
                pending = writer.pending  # which the others join
            else:
                store.refresh()
        with group.together():
            if not group.is_first:
                pending = PendingParts.open(store.folder)
            stream = _Stream(documents, None if kind == "build" else store.snapshot, options)
            total = len(documents) if isinstance(documents, Sized) else None
            hidden = not (options.show_progress and group.is_first)
            count = 0
            with tqdm(total=total, desc="Embedding", unit=" documents", delay=1, disable=hidden) as bar:
                for number, part in enumerate(stream.parts()):
                    if number % group.count == group.rank:
                        _embed(pending, number, [document for _, document in part], embedder, options.on_error)
                    bar.update(part[-1][0] + 1 - bar.n)
                    count = number + 1
        with group.together():
            if group.is_first:
                report = writer.commit(range(count), on_duplicate=options.on_duplicate)
                report.duplicates = stream.duplicates
                report.skipped = stream.skipped + report.skipped
    if not group.is_first:
        store.refresh()
    report.seconds = time.perf_counter() - start
    report = group.from_first(report)
    if report.skipped:
        shown = "\n".join(f"  {error}" for error in report.skipped[:5])
        warnings.warn(f"{len(report.skipped)} documents were left out:\n{shown}", SkippedRowsWarning, stacklevel=3)
    return report


def add_vectors(
    store: IndexStore, documents: Iterable[Any], vectors: Iterable[np.ndarray], options: AddOptions
) -> AddReport:
    """Add documents with vectors from elsewhere; see `SugarIndex.add`."""
    start = time.perf_counter()
    with open_writer(store, "add_vectors") as writer:
        stream = _Stream(documents, writer.snapshot, options)
        given = enumerate(vectors)
        last = at = -1  # the last document of the stream that got a vector, and the last vector that was read
        count = 0
        for count, part in enumerate(stream.parts(), start=1):
            rows = []
            for number, document in part:
                while at < number:  # the vectors of documents that were left out are passed over
                    at, row = next(given, (number + 1, None))
                if row is None:
                    raise ValueError(f"document {document.id!r} has no vector: {last + 1} vectors were given.")
                last = number
                rows.append(row)
            writer.pending.stage(count - 1, [document for _, document in part], rows)
        if next(given, None) is not None and not stream.duplicates:
            raise ValueError(f"more vectors than documents were given: {last + 1} documents.")
        report = writer.commit(range(count), on_duplicate=options.on_duplicate)
    report.duplicates = stream.duplicates
    report.seconds = time.perf_counter() - start
    return report


def _embed(
    pending: PendingParts, number: int, documents: Sequence[Document], embedder: SugarEmbedder, on_error: str
) -> None:
    documents = _with_bytes(documents)
    if pending.holds(number, documents):
        return
    skipped: list[BadSampleError] = []
    vectors = embedder.embed_documents(documents, skipped=skipped if on_error == "skip" else None)
    pending.stage(number, documents, vectors, skipped)


def _with_bytes(documents: Sequence[Document]) -> list[Document]:
    """Read the image files of a part into memory, as long as they fit into `READ_AHEAD`.

    So each file is opened once, and what is stored is what was embedded. Other documents are returned as they are.
    """
    given, left = [], READ_AHEAD
    for document in documents:
        with suppress(BadSampleError):  # the embedder finds the same
            document = document.with_bytes() if left > 0 else document
        left -= sum(len(source) for source in document.content.images if isinstance(source, bytes))
        given.append(document)
    return given


class ProcessGroup:
    """This process among those that make the same call; without torch.distributed a group of one."""

    def __init__(self) -> None:
        is_group = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_group else 0
        self.count = dist.get_world_size() if is_group else 1
        self.is_first = self.rank == 0  # it opens and commits the write

    def together(self) -> AbstractContextManager[None]:
        """Wait at the end of a block for the others, and fail if one of them has failed in it.

        Raises:
            RuntimeError: Another process failed; says which, and with what.
        """
        return nullcontext() if self.count == 1 else self._together()

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}")
            raise
        failed = [(rank, text) for rank, text in enumerate(self._tell(None)) if text is not None]
        if failed:
            raise RuntimeError(f"process {failed[0][0]} failed: {failed[0][1]}")

    def from_first(self, value: T) -> T:
        """Return the first process's value in every process."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values[0]

    def _tell(self, text: str | None) -> list[str | None]:
        texts: list[str | None] = [text] * self.count
        dist.all_gather_object(texts, text)
        return texts
