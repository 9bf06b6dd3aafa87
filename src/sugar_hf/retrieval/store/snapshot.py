"""An open index: its documents without the deleted ones, the backend that searches them, and newer states."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, RLock
from typing import Any, NamedTuple, NewType, TypeVar

import numpy as np

from ...data import BadSampleError
from ...data.documents import Document
from ..embedder import POSITIONS, check_origin
from ..filters import Filter, kinds_of
from .backends import BACKENDS, Rows, VectorBackend
from .backends.base import check_top_k, cut_top_k
from .backends.milvus_backend import public_address
from .codecs import CODECS, Codec
from .layout import (
    CURRENT,
    FIX,
    DamagedIndexError,
    IndexMismatchError,
    IndexSpec,
    Limits,
    LockedIndexError,
    Manifest,
    Segment,
    SegmentEntry,
    checked_read,
    inside,
    read_current,
    read_tensors,
    unreadable,
)
from .postings import Postings, TextSearch

#: Names the server that an index may connect to.
URI_VARIABLE = "MILVUS_URI"
BLOCK = 16384  # rows that a backend gets at once
MOST_RESULTS = 16384  # that a Milvus server gives
_TRIES = 50

T = TypeVar("T")

#: Number of a document in its base, in the order of adding. Deleted documents keep theirs.
DocumentNumber = NewType("DocumentNumber", int)
#: Number of a vector in its base. A document has one row, or one for each of its slices.
RowId = NewType("RowId", int)


class Matches(NamedTuple):
    """The documents nearest to some queries, best first.

    Args:
        scores: (q, k) float32; -inf fills up short results.
        documents: (q, k) int64, each a `DocumentNumber`; -1 fills up.
        rows: (q, k) int64, each the `RowId` that matched; -1 fills up.
    """

    scores: np.ndarray
    documents: np.ndarray
    rows: np.ndarray


class Catalogue:
    """Ids, metadata and words of the documents of a base, read when they are first asked for.

    All snapshots of the base share it, as what a document number stands for never changes.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, DocumentNumber] = {}
        self._named = 0
        self._metadata: list[dict[str, Any]] = []
        self._kinds: dict[str, set[str]] = {}
        self._postings: dict[SegmentEntry, Postings] = {}
        self._lock = Lock()

    def number(self, name: str, segments: Sequence[Segment], count: int) -> DocumentNumber | None:
        """Return the number of the last document of this id among the first `count`."""
        with self._lock:
            if self._named < count:
                for first, segment in _from_document(segments, self._named):
                    for id_ in segment.ids(first):
                        self._numbers[id_] = DocumentNumber(self._named)
                        self._named += 1
        number = self._numbers.get(name)
        return number if number is not None and number < count else None

    def metadata(self, segments: Sequence[Segment], count: int) -> Sequence[dict[str, Any]]:
        """Return the metadata of the first `count` documents."""
        with self._lock:
            if len(self._metadata) < count:
                for first, segment in _from_document(segments, len(self._metadata)):
                    new = segment.metadata(first)
                    kinds_of(new, self._kinds)
                    self._metadata += new
        return self._metadata if len(self._metadata) == count else self._metadata[:count]

    def postings(self, segments: Sequence[Segment]) -> list[Postings]:
        """Return the words of each segment. Where there is no file of them, they are taken from its documents."""
        missing = 0
        with self._lock:
            for segment in segments:
                if segment.entry in self._postings:
                    continue
                count, read = segment.entry.documents, None
                if segment.words is not None:
                    path, tensors = segment.words
                    read = Postings.read(tensors, path, count)
                missing += count if read is None else 0
                self._postings[segment.entry] = read or Postings.of(segment.table.to_batches())
            found = [self._postings[segment.entry] for segment in segments]
        if missing:
            warnings.warn(
                f"another version of sugar-hf wrote {missing} documents of this index without their words: these were "
                "taken from the texts, which is done anew each time it is opened. compact() writes them.",
                stacklevel=2,
            )
        return found

    def warn_of(self, where: Filter) -> None:
        """Warn of conditions that no document can meet because of the kind of their values."""
        with self._lock:
            texts = where.hopeless(self._kinds)
        for text in texts:
            warnings.warn(f"where: {text}", stacklevel=2)


@dataclass(frozen=True)
class Snapshot:
    """An open state of an index. It stays as it is whatever is written afterwards.

    Args:
        manifest: Its files.
        segments: Its segments.
        codec: How vectors are stored; `None` as long as there are none.
        backend: Searches the vectors; may hold rows of later snapshots; `None` without vectors.
        row_document: (rows,) int32, the document number of each row.
        row_slice: (rows,) int32, the slice of each row.
        deleted: Numbers of deleted documents, in the order in which they were deleted.
        catalogue: Ids, metadata and words.
    """

    manifest: Manifest
    segments: tuple[Segment, ...]
    codec: Codec | None
    backend: VectorBackend | None
    row_document: np.ndarray
    row_slice: np.ndarray
    deleted: np.ndarray
    catalogue: Catalogue

    @classmethod
    def open(
        cls,
        folder: Path,
        manifest: Manifest,
        previous: "Snapshot | None" = None,
        *,
        verify: bool,
        options: Mapping[str, Any] | None = None,
        is_writer: bool = False,
    ) -> "Snapshot":
        """Open a snapshot.

        Args:
            folder: The folder of the index.
            manifest: Its manifest.
            previous: An open snapshot. What both share is not read again.
            verify: Compare the digests of all files.
            options: Options of the backend that take precedence over the manifest's.
            is_writer: Whether new rows go to a backend that keeps them where others find them.

        Raises:
            DamagedIndexError: A file is missing or damaged.
        """
        spec = manifest.spec
        try:
            codec = _checked_codec(manifest, previous)
        except MemoryError:
            raise
        except Exception as error:  # any, as the content may be somebody else's
            raise unreadable(folder / manifest.name, error) from error
        shared = previous if previous and previous.is_beginning_of(manifest) else None
        # a segment was looked at with the codec and the positions of its base
        known = {segment.entry: segment for segment in shared.segments} if shared else {}
        segments = tuple(
            known.get(entry) or Segment.open(folder, entry, codec, spec.positions, verify)
            for entry in manifest.segments
        )
        first = shared.manifest.rows if shared else 0
        new = list(_new_rows(segments, first))
        empty = np.zeros(0, np.int32)
        graph_folder = _checked_graph(folder, manifest, verify)
        opened = cls(
            manifest,
            segments,
            codec,
            shared.backend if shared else None,
            np.concatenate([shared.row_document if shared else empty, *(document for document, _ in new)]),
            np.concatenate([shared.row_slice if shared else empty, *(slices for _, slices in new)]),
            _read_deleted(folder, manifest, verify),
            shared.catalogue if shared else Catalogue(),
        )
        if codec is None:
            return opened
        kind, backend = BACKENDS[spec.backend], opened.backend
        must_add = is_writer or not kind.holds_vectors
        if backend is None:
            place = graph_folder
            values = {**spec.backend_options, **(options or {})}
            if kind.holds_vectors:
                values["uri"] = _checked_address(manifest, options or {})
                # a name of its own: a base numbers its rows anew, and other indexes may be on the same server
                values["collection"] = f"{values.get('collection', 'sugar')}_{manifest.uid}_{manifest.base}"
                place = folder / f"milvus-{manifest.base:06d}"
                must_add = must_add or (values["uri"] is None and not place.exists())
            backend, first = kind(codec, values, place), 0
            opened = replace(opened, backend=backend)
        if must_add and first < len(opened.row_document):
            if is_writer:
                backend.trim(first)
            backend.add(opened._rows(first, backend.holds_vectors))
        if graph_folder is not None:
            with checked_read(graph_folder):
                backend.check_rows()
        return opened

    def is_beginning_of(self, manifest: Manifest) -> bool:
        """Whether the rows of a later manifest begin with this snapshot's."""
        mine = self.manifest
        is_same = (mine.uid, mine.base, mine.spec) == (manifest.uid, manifest.base, manifest.spec)
        is_same = is_same and mine.codec in (None, manifest.codec)
        return is_same and mine.rows <= manifest.rows and mine.documents <= manifest.documents

    # ---- Documents ----

    @cached_property
    def live(self) -> np.ndarray:
        """(documents,) bool, whether a document is not deleted."""
        live = np.ones(self.manifest.documents, bool)
        live[self.deleted] = False
        return live

    @cached_property
    def live_numbers(self) -> np.ndarray:
        """Document numbers of all documents that are not deleted, ascending."""
        return np.flatnonzero(self.live)

    def number(self, name: str) -> DocumentNumber | None:
        """Return the number of the document of this id; `None` if there is none."""
        number = self.catalogue.number(name, self.segments, self.manifest.documents)
        return number if number is not None and self.live[number] else None

    def document(self, number: DocumentNumber) -> Document:
        """Read a document."""
        ends = self._document_ends
        at = int(np.searchsorted(ends, number, side="right"))
        segment = self.segments[at]
        row = segment.table.slice(number - int(ends[at]) + segment.entry.documents, 1).to_pylist()[0]
        try:
            return Document.from_row(row)
        except (BadSampleError, RecursionError) as error:
            raise DamagedIndexError(
                f"{segment.entry.texts.name} holds something that is not a document ({error}). {FIX}."
            ) from error

    def documents(self, numbers: Sequence[DocumentNumber]) -> list[Document]:
        """Read several documents."""
        return [self.document(number) for number in numbers]

    def vectors(self, rows: Sequence[RowId]) -> np.ndarray:
        """Decode the vectors of rows, (n, d) float32."""
        assert self.codec is not None
        ends = np.cumsum([segment.entry.rows for segment in self.segments])
        codes = []
        for row in rows:
            at = int(np.searchsorted(ends, row, side="right"))
            first = row - int(ends[at]) + self.segments[at].entry.rows
            codes.append(self.segments[at].tensors.get_slice("codes")[first : first + 1])
        return self.codec.decode(np.concatenate(codes))

    @cached_property
    def _document_ends(self) -> np.ndarray:
        return np.cumsum([segment.entry.documents for segment in self.segments])

    def matching(self, where: Filter) -> np.ndarray:
        """Return the numbers of the documents that are not deleted and that a filter lets through."""
        return np.flatnonzero(self.live & self._mask(where))

    def _mask(self, where: Filter) -> np.ndarray:
        metadata = self.catalogue.metadata(self.segments, self.manifest.documents)
        self.catalogue.warn_of(where)
        return where.mask(metadata)

    def rows_of(self, number: DocumentNumber) -> tuple[RowId, np.ndarray]:
        """Return the first row of a document, and its vectors, (S, d) float32, decoded."""
        assert self.codec is not None
        at = int(np.searchsorted(self._document_ends, number, side="right"))
        segment = self.segments[at]
        inner = number - int(self._document_ends[at]) + segment.entry.documents
        low, high = np.searchsorted(segment.document, [inner, inner + 1]).tolist()
        first = RowId(sum(each.entry.rows for each in self.segments[:at]) + low)
        return first, self.codec.decode(segment.tensors.get_slice("codes")[low:high])

    # ---- Search ----

    @cached_property
    def _text(self) -> TextSearch:
        return TextSearch(self.catalogue.postings(self.segments), self.live)

    def search_text(
        self, queries: Sequence[Sequence[str]], top_k: int, where: Filter | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Find the documents that have any of some words, by BM25; see [`TextSearch`].

        Args:
            queries: The words of each query.
            top_k: How many.
            where: A filter on metadata.

        Returns:
            For each query numbers of documents (k,) int64, best first, and scores (k,) float64.

        Raises:
            ValueError: `top_k` is no whole number of 1 or more.
            DamagedIndexError: The words of a segment are not what they should be.
        """
        top_k = check_top_k(top_k)
        allowed = self.live if where is None else self.live & self._mask(where)
        return [self._text.search(words, top_k, allowed) for words in queries]

    def search(self, queries: np.ndarray, top_k: int, where: Filter | None = None) -> Matches:
        """Find the nearest documents.

        With a vector at each slice, the best one of a document is its score. The search is widened until `top_k`
        documents are found or there are no more.

        Args:
            queries: (q, d) float32 unit vectors.
            top_k: How many.
            where: A filter on metadata.

        Returns:
            (q, k) matches. k is `top_k`, unless that is over 128 and over the number of documents: then the larger of
            these two.

        Raises:
            ValueError: `top_k` is no whole number of 1 or more, or more than the backend can give.
        """
        top_k = cut_top_k(top_k, len(self.live_numbers))
        shape = (len(queries), top_k)
        matches = Matches(
            np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
        )
        count, backend = len(self.row_document), self.backend
        if backend is None or not count or not len(self.live_numbers) or not len(queries):
            return matches
        choice = self._choice(backend, where)
        limit = min(count, MOST_RESULTS) if backend.filters_metadata else count
        if min(top_k, len(self.live_numbers)) > limit:
            raise ValueError(f"top_k={top_k}: this backend gives at most {limit} results. Ask for fewer.")
        width = min(limit, 4 * top_k if self.manifest.spec.positions == "all" else top_k)
        while True:
            scores, rows = backend.search(queries, width, row_count=count, **choice)
            rows = np.where(np.isfinite(scores), rows, -1)
            picks = [self._best_rows(line, top_k) for line in rows]
            is_done = all(len(pick) == top_k or line[-1] < 0 for pick, line in zip(picks, rows, strict=True))
            if is_done or width == limit:
                break
            width = min(limit, 4 * width)
        if not is_done and limit < count:
            warnings.warn(
                f"{limit} vectors are as many as this backend gives, and they are of fewer than {top_k} documents: "
                "there may be more.",
                stacklevel=2,
            )
        if where is not None and backend.filters_metadata and not any(len(pick) for pick in picks):
            self.catalogue.metadata(self.segments, self.manifest.documents)
            self.catalogue.warn_of(where)  # otherwise metadata need not be read here
        for i, pick in enumerate(picks):
            matches.scores[i, : len(pick)] = scores[i, pick]
            matches.rows[i, : len(pick)] = rows[i, pick]
            matches.documents[i, : len(pick)] = self.row_document[rows[i, pick]]
        return matches

    def _choice(self, backend: VectorBackend, where: Filter | None) -> dict[str, Any]:
        """Return the arguments by which a backend knows which rows may be found."""
        if backend.filters_metadata:
            return {"where": where, "excluded": None if self._live_rows is None else np.flatnonzero(~self._live_rows)}
        if where is None:
            return {"allowed": self._live_rows}
        return {"allowed": (self.live & self._mask(where))[self.row_document]}

    @cached_property
    def _live_rows(self) -> np.ndarray | None:
        return self.live[self.row_document] if len(self.deleted) else None

    def _best_rows(self, rows: np.ndarray, top_k: int) -> np.ndarray:
        """Return where in a line of rows the first of each document stands, best first."""
        _, first = np.unique(self.row_document[rows[rows >= 0]], return_index=True)
        return np.sort(first)[:top_k]

    # ---- For the backend ----

    def _rows(self, first: int, with_documents: bool) -> Iterator[Rows]:
        """Yield rows from number `first` on. A backend that keeps codes only gets nothing but codes."""
        assert self.codec is not None
        start = 0
        for segment in self.segments:
            ids, metadata = (segment.ids(), segment.metadata()) if with_documents else ([], [])
            for low in range(max(0, first - start), segment.entry.rows, BLOCK):
                high = min(low + BLOCK, segment.entry.rows)
                codes = segment.tensors.get_slice("codes")[low:high]
                document = segment.document[low:high].tolist()
                if codes.dtype.kind == "f" and not np.isfinite(codes).all():
                    raise DamagedIndexError(f"{segment.entry.vectors.name} has NaN or infinite numbers. {FIX}.")
                yield Rows(
                    first=start + low,
                    codes=codes,
                    vectors=self.codec.decode(codes) if with_documents else np.zeros((0, self.codec.dim), np.float32),
                    document_ids=[ids[i] for i in document] if with_documents else [],
                    slices=segment.slice[low:high],
                    metadata=[metadata[i] for i in document] if with_documents else [],
                )
            start += segment.entry.rows


def check_spec(spec: IndexSpec) -> None:
    """Refuse a specification that no index can have."""
    for name, value, known in (
        ("backend", spec.backend, BACKENDS),
        ("vectors", spec.vectors, CODECS),
        ("positions", spec.positions, POSITIONS),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r:.40}: give one of {', '.join(map(repr, known))}.")
    BACKENDS[spec.backend].check_options(spec.backend_options, spec.vectors)


def checked_spec(spec: IndexSpec) -> tuple[IndexSpec, dict[str, Any]]:
    """Check the specification of a new index, and split off what is secret.

    Returns:
        The specification, and the options that are needed again at each opening: the token, which is not written to
        disk, and the address, which is, but is not trusted when it is read.

    Raises:
        ValueError: A field has a value that it cannot have.
        ImportError: The backend needs a package that is not installed.
    """
    check_spec(spec)
    options = dict(spec.backend_options)
    secrets = {"token": options.pop("token")} if "token" in options else {}
    if BACKENDS[spec.backend].holds_vectors:
        for name in ("pymilvus", *(() if options.get("uri") else ("milvus_lite",))):
            if find_spec(name) is None:
                raise ImportError(f'the Milvus backend needs {name}: pip install "sugar-hf[milvus]"')
    if options.get("uri") is not None:
        secrets["uri"] = options["uri"]
        options["uri"] = public_address(options["uri"])
    return replace(spec, backend_options=options), secrets


def _checked_codec(manifest: Manifest, previous: Snapshot | None) -> Codec | None:
    """Return the codec of a manifest. Refuses a manifest that says what no index can be."""
    spec = manifest.spec
    if previous is None or previous.manifest.spec != spec:
        check_spec(spec)
        check_origin(spec.settings, spec.fingerprint)
    codec = None if manifest.codec is None else Codec.from_dict(manifest.codec)
    if codec is not None and (codec.name, codec.dim) != (spec.vectors, spec.dim):
        raise ValueError(
            f"the codec is {codec.name} of {codec.dim} dimensions, the index {spec.vectors!r:.40} of {spec.dim}"
        )
    return codec


def _from_document(segments: Sequence[Segment], number: int) -> Iterator[tuple[int, Segment]]:
    """Yield the segments with documents from this number on, and the first such document of each."""
    start = 0
    for segment in segments:
        if number < start + segment.entry.documents:
            yield max(0, number - start), segment
        start += segment.entry.documents


def _checked_address(manifest: Manifest, options: Mapping[str, Any]) -> str | None:
    """The server to connect to: only one that this user named, as whoever wrote the folder may have named another."""
    given, recorded = options.get("uri"), manifest.spec.backend_options.get("uri")
    if given is not None or recorded is None:
        return given
    named = os.environ.get(URI_VARIABLE)
    if named is not None and public_address(named) == public_address(recorded):
        return named
    recorded = public_address(recorded)
    raise ValueError(
        f"the vectors of this index are on the Milvus server {recorded}. If you trust it, pass "
        f"backend_options={{'uri': {recorded!r}}}, or set {URI_VARIABLE}={recorded} in the environment."
    )


def _new_rows(segments: Sequence[Segment], first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield document number and slice of the rows from `first` on, segment by segment."""
    start = documents = 0
    for segment in segments:
        begin = max(0, first - start)
        if begin < segment.entry.rows:
            yield segment.document[begin:] + np.int32(documents), segment.slice[begin:]
        start += segment.entry.rows
        documents += segment.entry.documents


def _checked_graph(folder: Path, manifest: Manifest, verify: bool) -> Path | None:
    if manifest.graph is None:
        return None
    graph = inside(folder, manifest.graph.folder)
    for file in manifest.graph.files:
        file.check(graph, verify)
    return graph


def _read_deleted(folder: Path, manifest: Manifest, verify: bool) -> np.ndarray:
    """Read the numbers of the deleted documents."""
    if manifest.deleted is None:
        return np.zeros(0, np.int64)
    path = manifest.deleted.file.check(folder, verify)
    deleted = read_tensors(path, {"documents": (np.int64, (manifest.deleted.count,))})[0]["documents"]
    outside = deleted.size and not 0 <= deleted.min() <= deleted.max() < manifest.documents
    if outside or len(np.unique(deleted)) != len(deleted):
        raise unreadable(path, ValueError(f"it does not fit {manifest.name}"))
    return deleted


# ---- The store ----


def read_settled(folder: Path, read: Callable[[], T]) -> T:
    """Read a folder into which another process may write: again, if what was read was replaced meanwhile.

    A writer removes what the snapshot before the last one needs. Whatever error that gives on the way, from CURRENT to
    the last file that is opened, it is one of the index only if CURRENT is still the same.

    Args:
        folder: The folder of the index.
        read: Reads; begins with [`read_current`].

    Raises:
        LockedIndexError: Something was written at each of many tries.
        Exception: What `read` raises while nothing is written.
    """
    for _ in range(_TRIES):
        before = _current_bytes(folder)
        try:
            return read()
        except Exception as error:
            if _current_bytes(folder) == before:
                raise
            last = error
    raise LockedIndexError(
        f"{folder} is written faster than it can be read ({_TRIES} tries). Try again when less is written."
    ) from last


def _current_bytes(folder: Path) -> bytes | None:
    try:
        return (folder / CURRENT).read_bytes()
    except OSError:
        return None


class IndexStore:
    """Documents and vectors in a folder: crash safe, with one writer and many readers.

    ```python
    store = IndexStore.open(folder)
    store.search(vectors, 10)
    with open_writer(store) as writer:  # see [`IndexWriter`]
        ...
    ```

    Args:
        folder: The folder.
        snapshot: The snapshot that is searched; it stays as it is until `refresh`, or until a write here.
        secrets: Options of the backend that are not written to disk.
    """

    def __init__(self, folder: Path, snapshot: Snapshot, secrets: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.snapshot = snapshot
        self.secrets = dict(secrets or {})
        self.limits = Limits()
        self.guard = RLock()  # a backend is not searched while rows are added to it

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True, secrets: Mapping[str, Any] | None = None) -> "IndexStore":
        """Open the newest snapshot of a folder.

        Args:
            folder: The folder.
            verify: Compare the digest of every file, not only its size.
            secrets: Options of the backend that take precedence over those on disk.

        Raises:
            FileNotFoundError: There is no index.
            DamagedIndexError: A file is missing or damaged.
        """
        return cls(folder, _open_snapshot(folder, None, verify, secrets), secrets)

    @property
    def spec(self) -> IndexSpec:
        """How the index is made."""
        return self.snapshot.manifest.spec

    def refresh(self) -> bool:
        """Open the newest snapshot, if it is another. Returns whether it is."""
        with self.guard:
            old = self.snapshot
            self.snapshot = _open_snapshot(self.folder, old, True, self.secrets)
            return self.snapshot is not old

    def search(self, vectors: np.ndarray, top_k: int, where: Filter | None = None) -> tuple[Snapshot, Matches]:
        """Search the snapshot; see [`Snapshot.search`]. Returns it, too, as a write may replace it meanwhile.

        Raises:
            IndexMismatchError: The vectors are of another width.
            ValueError: They are not finite, or `top_k` is no whole number of 1 or more.
        """
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.spec.dim:
            raise IndexMismatchError(f"expected embeddings of the shape (q, {self.spec.dim}), got {vectors.shape}.")
        if not np.isfinite(vectors).all():
            raise ValueError("the embeddings have NaN or infinite numbers.")
        with self.guard:
            return self.snapshot, self.snapshot.search(vectors, top_k, where)

    def close(self) -> None:
        """Close files and connections."""
        if self.snapshot.backend is not None:
            self.snapshot.backend.close()


def _open_snapshot(
    folder: Path, previous: Snapshot | None, verify: bool, secrets: Mapping[str, Any] | None
) -> Snapshot:
    """Open the newest snapshot; `previous` itself if that is it."""

    def read() -> Snapshot:
        manifest = read_current(folder)
        if previous is not None and manifest == previous.manifest:
            return previous
        return Snapshot.open(folder, manifest, previous, verify=verify, options=secrets)

    return read_settled(folder, read)
