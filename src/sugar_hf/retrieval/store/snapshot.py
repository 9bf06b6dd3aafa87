"""One generation of an index, open: its documents, which of them count, and where their vectors are searched."""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..documents import Document
from ..embedder import POSITIONS
from ..filters import Filter, kinds_of
from ..fingerprint import ModelFingerprint
from ..settings import EmbeddingSettings
from .backends import BACKENDS, Rows, VectorBackend, open_backend
from .backends.base import cut_top_k
from .backends.milvus_backend import public_address
from .codecs import Codec
from .index_errors import DamagedIndexError
from .layout import MEND, check_links, inside, reading
from .manifest import Manifest
from .segments import Segment, open_tensors, read_tensor

#: Names the server that an index may connect to.
URI_VARIABLE = "MILVUS_URI"
BLOCK = 16384  # rows that a backend gets at once
MOST_RESULTS = 16384  # that a Milvus server gives


class Catalogue:
    """Ids and metadata of the documents of a base, read when they are first asked for. All its generations share it.

    A document has its number for ever, so that what is known of it never changes.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._named = 0
        self._metadata: list[dict[str, Any]] = []
        self._kinds: dict[str, set[str]] = {}
        self._lock = Lock()

    def number(self, name: str, segments: Sequence[Segment], count: int) -> int | None:
        """The number of the last document of this id among the first `count`."""
        with self._lock:
            if self._named < count:
                for first, segment in _from_document(segments, self._named):
                    for id_ in segment.ids(first):
                        self._numbers[id_] = self._named
                        self._named += 1
        found = self._numbers.get(name)
        return found if found is not None and found < count else None

    def metadata(self, segments: Sequence[Segment], count: int) -> Sequence[dict[str, Any]]:
        """Metadata of the first `count` documents."""
        with self._lock:
            if len(self._metadata) < count:
                for first, segment in _from_document(segments, len(self._metadata)):
                    new = segment.metadata(first)
                    kinds_of(new, self._kinds)
                    self._metadata += new
        return self._metadata if len(self._metadata) == count else self._metadata[:count]

    def warn_of(self, where: Filter) -> None:
        """Say of conditions that no document can meet that it is for the kind of their values."""
        with self._lock:
            found = where.hopeless(self._kinds)
        for text in found:
            warnings.warn(f"where: {text}", stacklevel=2)


@dataclass(frozen=True)
class Generation:
    """An open generation; it stays as it is whatever is written afterwards.

    Args:
        manifest: What it consists of.
        segments: Its segments.
        codec: How vectors are stored; `None` as long as there are none.
        backend: Searches the vectors; may hold rows of later generations; `None` without vectors.
        row_document: (rows,) int32, the document of each row.
        row_slice: (rows,) int32, the slice of each row.
        deleted: Numbers of deleted documents, in the order in which they were deleted.
        catalogue: Ids and metadata.
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
        previous: "Generation | None" = None,
        *,
        verify: bool,
        options: Mapping[str, Any] | None = None,
        is_writer: bool = False,
    ) -> "Generation":
        """Open a generation.

        Args:
            folder: The folder of the index.
            manifest: Its manifest.
            previous: One that is open; what it shares with this one is not read again.
            verify: Compare the digests of all files.
            options: Options of the backend that go before the manifest's.
            is_writer: Whether rows that are new go to a backend that keeps them where others find them.

        Raises:
            DamagedIndexError: A file is missing or damaged.
        """
        check_links(folder)
        codec = _codec(folder, manifest)
        shared = previous if previous and previous.is_beginning_of(manifest) else None
        # a segment was looked at with the codec and the positions of its base
        known = {segment.entry: segment for segment in previous.segments} if previous and shared else {}
        segments = tuple(
            known[entry]
            if entry in known
            else Segment.open(inside(folder, "segments"), entry, codec, manifest.head.positions, verify)
            for entry in manifest.segments
        )
        deleted = np.zeros(0, np.int64)
        if manifest.deleted is not None:
            path = manifest.deleted.file.check(folder, verify)
            tensors = open_tensors(path)
            with reading(path):
                deleted = read_tensor(tensors, "documents", np.int64, (manifest.deleted.count,))
                outside = deleted.size and not 0 <= deleted.min() <= deleted.max() < manifest.documents
                if outside or len(np.unique(deleted)) != len(deleted):
                    raise ValueError(f"it does not fit {manifest.name}")
        first = shared.manifest.rows if shared else 0
        found = list(_new_rows(segments, first))
        row_document = np.concatenate(
            [shared.row_document if shared else np.zeros(0, np.int32), *(x[0] for x in found)]
        )
        row_slice = np.concatenate([shared.row_slice if shared else np.zeros(0, np.int32), *(x[1] for x in found)])
        graph_folder = _checked_graph(folder, manifest, verify)
        backend = shared.backend if shared else None
        catalogue = shared.catalogue if shared else Catalogue()
        opened = cls(manifest, segments, codec, backend, row_document, row_slice, deleted, catalogue)
        if codec is None:
            return opened
        must_add = is_writer or not BACKENDS[manifest.head.backend].holds_vectors
        if backend is None:
            values = {**manifest.head.backend_options, **(options or {})}
            if BACKENDS[manifest.head.backend].holds_vectors:
                values["uri"] = _checked_address(manifest, options or {})
                # a name of its own: a base numbers its rows anew, and other indexes may be on the same server
                values["collection"] = f"{values.get('collection', 'sugar')}_{manifest.uid}_{manifest.base}"
                place: Path | None = folder / f"milvus-{manifest.base:06d}"
                must_add = must_add or (values.get("uri") is None and place is not None and not place.exists())
            else:
                place = graph_folder
            backend = open_backend(
                manifest.head.backend, dim=manifest.head.dim, codec=codec, options=values, folder=place
            )
            first = 0
            opened = replace(opened, backend=backend)
        if must_add and first < manifest.rows:
            if is_writer:
                backend.trim(first)
            backend.add(opened._rows(first, backend.holds_vectors))
        if graph_folder is not None:
            with reading(graph_folder):
                backend.check_rows()
        return opened

    def is_beginning_of(self, manifest: Manifest) -> bool:
        """Whether the rows of a later manifest begin with this generation's."""
        mine = self.manifest
        is_same = (mine.uid, mine.base, mine.head) == (manifest.uid, manifest.base, manifest.head)
        is_same = is_same and mine.codec in (None, manifest.codec)
        return is_same and mine.rows <= manifest.rows and mine.documents <= manifest.documents

    # ---- Documents, by their number in the base ----

    @cached_property
    def live(self) -> np.ndarray:
        """(documents,) bool, whether a document is there."""
        live = np.ones(self.manifest.documents, bool)
        live[self.deleted] = False
        return live

    @cached_property
    def places(self) -> np.ndarray:
        """Numbers of the documents that are there, ascending."""
        return np.flatnonzero(self.live)

    def number(self, name: str) -> int | None:
        """The number of the document of this id; `None` if there is none."""
        number = self.catalogue.number(name, self.segments, self.manifest.documents)
        return number if number is not None and self.live[number] else None

    def document(self, number: int) -> Document:
        """Read a document."""
        place = int(np.searchsorted(self._ends, number, side="right"))
        return self.segments[place].read(number - int(self._ends[place]) + self.segments[place].entry.documents)

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """Decode the vectors of rows, (n, d) float32."""
        assert self.codec is not None
        ends = np.cumsum([segment.entry.rows for segment in self.segments])
        codes = []
        for row in rows:
            place = int(np.searchsorted(ends, row, side="right"))
            first = row - int(ends[place]) + self.segments[place].entry.rows
            codes.append(self.segments[place].codes(first, first + 1))
        return self.codec.decode(np.concatenate(codes))

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([segment.entry.documents for segment in self.segments])

    def matching(self, where: Filter) -> np.ndarray:
        """Numbers of the documents that are there and that a filter finds."""
        return np.flatnonzero(self.live & self._mask(where))

    def _mask(self, where: Filter) -> np.ndarray:
        metadata = self.catalogue.metadata(self.segments, self.manifest.documents)
        self.catalogue.warn_of(where)
        return where.mask(metadata)

    # ---- Search ----

    def search(
        self, queries: np.ndarray, top_k: int, where: Filter | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the nearest documents.

        With a vector at each slice, a document counts by its best; the search is widened until `top_k` documents are
        found or there are no more.

        Args:
            queries: (q, d) float32 unit vectors.
            top_k: How many.
            where: A filter on metadata.

        Returns:
            Scores (q, k) float32, document numbers and rows (q, k) int64; -inf and -1 fill up short results. k is
            `top_k`, unless that is over 128 and over the number of documents: then the larger of these two.

        Raises:
            ValueError: `top_k` is no whole number of 1 or more, or more than the backend can give.
        """
        top_k = cut_top_k(top_k, len(self.places))
        shape = (len(queries), top_k)
        scores = np.full(shape, -np.inf, np.float32)
        documents, rows = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
        count = self.manifest.rows
        if self.backend is None or not count or not len(self.places) or not len(queries):
            return scores, documents, rows
        choice = self._choice(self.backend, where)
        is_grouped = self.manifest.head.positions == "all"
        limit = min(count, MOST_RESULTS) if self.backend.filters_metadata else count
        if min(top_k, len(self.places)) > limit:
            raise ValueError(f"top_k={top_k}: this backend gives {limit} results at the most. Ask for fewer.")
        width = min(limit, 4 * top_k if is_grouped else top_k)
        while True:
            found_scores, found = self.backend.search(queries, width, row_count=count, **choice)
            found = np.where(np.isfinite(found_scores), found, -1)
            picks = [self._best_rows(line, top_k) for line in found]
            is_done = all(len(pick) == top_k or line[-1] < 0 for pick, line in zip(picks, found, strict=True))
            if is_done or width == limit:
                break
            width = min(limit, 4 * width)
        if not is_done and limit < count:
            warnings.warn(
                f"{limit} vectors are as many as this backend gives, and they are of fewer than {top_k} documents: "
                "there may be more.",
                stacklevel=2,
            )
        if where is not None and self.backend.filters_metadata and not any(len(pick) for pick in picks):
            self.catalogue.metadata(self.segments, self.manifest.documents)
            self.catalogue.warn_of(where)  # otherwise metadata need not be read here
        for i, pick in enumerate(picks):
            scores[i, : len(pick)] = found_scores[i, pick]
            rows[i, : len(pick)] = found[i, pick]
            documents[i, : len(pick)] = self.row_document[found[i, pick]]
        return scores, documents, rows

    def _choice(self, backend: VectorBackend, where: Filter | None) -> dict[str, Any]:
        """The rows that may be found, as the backend wants to be told."""
        if backend.filters_metadata:
            return {"where": where, "excluded": None if self._live_rows is None else np.flatnonzero(~self._live_rows)}
        if where is None:
            return {"allowed": self._live_rows}
        return {"allowed": (self.live & self._mask(where))[self.row_document]}

    @cached_property
    def _live_rows(self) -> np.ndarray | None:
        return self.live[self.row_document] if len(self.deleted) else None

    def _best_rows(self, found: np.ndarray, top_k: int) -> np.ndarray:
        """Places of the first row of each document in a line of rows, best first."""
        found = found[found >= 0]
        _, first = np.unique(self.row_document[found], return_index=True)
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
                codes, document = segment.codes(low, high), segment.document[low:high].tolist()
                if codes.dtype.kind == "f" and not np.isfinite(codes).all():
                    raise DamagedIndexError(f"{segment.entry.vectors.name} has NaN or infinite numbers. {MEND}.")
                yield Rows(
                    first=start + low,
                    codes=codes,
                    vectors=self.codec.decode(codes) if with_documents else np.zeros((0, self.codec.dim), np.float32),
                    document_ids=[ids[i] for i in document] if with_documents else [],
                    slices=segment.slice[low:high],
                    metadata=[metadata[i] for i in document] if with_documents else [],
                )
            start += segment.entry.rows


def _from_document(segments: Sequence[Segment], number: int) -> Iterator[tuple[int, Segment]]:
    """Yield the segments with documents from this number on, and the first such document of each."""
    start = 0
    for segment in segments:
        if number < start + segment.entry.documents:
            yield max(0, number - start), segment
        start += segment.entry.documents


def _checked_address(manifest: Manifest, options: Mapping[str, Any]) -> str | None:
    """The server to connect to: only one that this user named, as whoever wrote the folder may have named another."""
    given, recorded = options.get("uri"), manifest.head.backend_options.get("uri")
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
    """Yield document and slice of the rows from number `first` on."""
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


def _codec(folder: Path, manifest: Manifest) -> Codec | None:
    """The codec, after a look at what else the manifest says of how the index is made.

    Raises:
        DamagedIndexError: It says something that no index is.
    """
    head = manifest.head
    with reading(folder / manifest.name):
        if head.backend not in BACKENDS:
            raise ValueError(f"backend {head.backend!r:.40}: there are {', '.join(BACKENDS)}")
        if head.positions not in POSITIONS:
            raise ValueError(f"positions {head.positions!r:.40}: there are {', '.join(POSITIONS)}")
        BACKENDS[head.backend].check_options(head.backend_options, head.vectors)
        if head.settings is not None:
            EmbeddingSettings.from_dict(head.settings)
        if head.fingerprint is not None:
            ModelFingerprint.from_dict(head.fingerprint)
        if manifest.codec is None:
            return None
        codec = Codec.from_dict(manifest.codec)
        if (codec.name, codec.dim) != (head.vectors, head.dim):
            raise ValueError(
                f"the codec is {codec.name} of {codec.dim} dimensions, the index {head.vectors!r:.40} of {head.dim}"
            )
    return codec
