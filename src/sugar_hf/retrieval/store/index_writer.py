"""A write: documents are staged in parts, and one commit lets them count, all or none of them."""

import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._files import fsync
from ...data import BadSampleError
from ..fingerprint import ModelFingerprint
from ..results import MUCH_DELETED
from .backends import VectorBackend
from .codecs import Codec
from .index_errors import DamagedIndexError, DuplicateIdError
from .layout import FileEntry, WriteLock, inside, is_held, remove
from .manifest import Deleted, Graph, Head, Manifest, read_current, read_manifest, write_current
from .segments import Segment, SegmentWriter, write_tensors
from .snapshot import Generation
from .staging import StagedPart, Staging, read_plan, write_plan

if TYPE_CHECKING:
    from ..index import SugarIndex

# Once so many small segments stand at the end, the next write puts them together.
SMALL_SEGMENT = 1024
MOST_SMALL_SEGMENTS = 32
_OLD = ("manifest-*.json", "deleted-*.safetensors", "graph-*", "milvus-*", "*.tmp", "segments/*")


@dataclass
class AddReport:
    """What a write did.

    Args:
        added: Documents that are new.
        updated: Documents that replace one of the same id.
        duplicates: Documents that were left out because their id is there.
        skipped: Why documents were left out that could not be embedded.
        seconds: How long it took.
    """

    added: int = 0
    updated: int = 0
    duplicates: int = 0
    skipped: list[BadSampleError] = field(default_factory=list)
    seconds: float = 0.0


class IndexWriter:
    """The one write in progress of an index; made by `SugarIndex.writer`.

    ```python
    with index.writer() as writer:
        writer.staging.stage(0, documents, vectors)  # here, or in any process with Staging.open(index.folder)
        writer.commit()
    ```

    Without a commit nothing changes, and what is staged is kept for the next write of the same kind.

    Args:
        index: The index.
        kind: `"add"` keeps what is there, `"build"` replaces it; other names are kinds of adding whose parts are not
            to be mixed.
        head: How the index will be made; for `"build"`.
    """

    def __init__(self, index: "SugarIndex", kind: str = "add", head: Head | None = None) -> None:
        self._index = index
        self._kind = kind
        self._head = head
        self._lock = WriteLock(index.folder)
        self._staging: Staging | None = None

    def __enter__(self) -> "IndexWriter":
        self._lock.__enter__()
        try:
            self._index.refresh()  # what others wrote
            clean(self._index.folder, self.generation.manifest)
            plan = read_plan(self._index.folder / "pending")
            if plan is None or plan["write"] == self.generation.manifest.write:
                remove(self._index.folder / "pending")  # a kill came after the commit
        except BaseException:
            self._lock.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._lock.__exit__(*error)

    @property
    def generation(self) -> Generation:
        """The generation that counts now."""
        return self._index.generation

    @property
    def head(self) -> Head:
        """How the index will be made."""
        return self._head or self.generation.manifest.head

    @property
    def staging(self) -> Staging:
        """The parts of this write."""
        return self.prepare()

    def prepare(self) -> Staging:
        """Let other processes stage parts, with `Staging.open`. Parts of another write are thrown away."""
        if self._staging is not None:
            return self._staging
        folder = self._index.folder / "pending"
        manifest = self.generation.manifest
        plan = {"kind": self._kind, "uid": manifest.uid, "base": manifest.base, "head": asdict(self.head)}
        found = read_plan(folder)
        if found is None or not _is_same_plan(found, plan):
            remove(folder)
            found = {**plan, "write": uuid.uuid4().hex}
            write_plan(folder, found)
        self._staging = Staging(folder, self.head.dim, self.head.positions, found["write"])
        return self._staging

    def commit(self, numbers: Sequence[int] | None = None, *, on_duplicate: str = "raise") -> AddReport:
        """Let what is staged count.

        Args:
            numbers: The parts, in the order of the documents; all that are there when `None`.
            on_duplicate: `"raise"` if ids are there already, or `"update"` these documents.

        Raises:
            DuplicateIdError: Ids are there already, or twice in the parts.
            DamagedIndexError: A part is missing or damaged; what is there stays as it was.
        """
        staging, folder = self.staging, self._index.folder
        parts = [staging.read(number) for number in (staging.numbers() if numbers is None else numbers)]
        report = AddReport(skipped=[error for part in parts for error in part.skipped])
        parts = [part for part in parts if part.ids]
        is_build = self._kind == "build"
        old = self.generation.manifest
        replaced = _check_ids(parts, None if is_build else self.generation, on_duplicate)
        count = sum(len(part.ids) for part in parts)
        report.added, report.updated = count - len(replaced), len(replaced)
        if not count and not is_build:
            self._forget()
            return report
        codec = None if is_build or old.codec is None else Codec.from_dict(old.codec)
        if codec is None and parts:
            codec = Codec.fit(self.head.vectors, (part.vectors for part in parts))
        clipped = 0 if codec is None else sum(codec.clipped(part.vectors) for part in parts)
        kept, tail = ((), ()) if is_build else _small_tail(self.generation.segments)
        (folder / "segments").mkdir(exist_ok=True)
        writer = SegmentWriter(inside(folder, "segments"), old.next_segment)
        new_batches = () if codec is None else _part_batches(parts, codec)
        for batch in chain(_old_batches(folder, tail), new_batches):
            writer.add(*batch)
        new = old.after(
            base=old.base + is_build,
            head=self.head,
            codec=None if codec is None else codec.to_dict(),
            segments=tuple(segment.entry for segment in kept) + tuple(writer.finish()),
            next_segment=writer.number,
            deleted=None if is_build else self._deleted(replaced),
            graph=None if is_build else old.graph,
            clipped=clipped + (0 if is_build else old.clipped),
            write=staging.write,
        )
        self._swap(new)
        self._forget()
        if replaced:
            self._advise()
        if clipped:
            rows = new.rows - (0 if is_build else old.rows)
            warnings.warn(
                f"{clipped} of {rows} new vectors lie outside of the ranges that the {self.head.vectors} codec was"
                " fitted to at the first write, and lose precision. If that is a large "
                "share, build the index again, or use vectors='float16'.",
                stacklevel=3,
            )
        return report

    def delete(self, numbers: Sequence[int]) -> None:
        """Delete documents by their numbers."""
        if not len(numbers):
            return
        self._swap(self.generation.manifest.after(deleted=self._deleted(numbers)))
        self._advise()

    def compact(self) -> None:
        """Write all documents that are there anew, with their vectors as they are."""
        old, folder = self.generation.manifest, self._index.folder
        writer = SegmentWriter(folder / "segments", old.next_segment)
        for batch in _old_batches(folder, self.generation.segments, self.generation.live):
            writer.add(*batch)
        segments = tuple(writer.finish()) if old.segments else ()
        self._swap(
            old.after(base=old.base + 1, segments=segments, next_segment=writer.number, deleted=None, graph=None)
        )

    def _advise(self) -> None:
        manifest = self.generation.manifest
        share = 1 - len(self.generation.places) / manifest.documents
        if share > MUCH_DELETED:
            warnings.warn(
                f"{share:.0%} of the documents in {self._index.folder} are deleted and still take space: compact() "
                "gives it back.",
                stacklevel=4,
            )

    def _forget(self) -> None:
        """Throw away what is staged, as it counts now."""
        self.staging.clear()
        self._staging = None

    def _deleted(self, numbers: Sequence[int]) -> Deleted | None:
        """Write which documents are deleted in the next generation."""
        old = self.generation
        before = old.deleted.size
        documents = np.concatenate([old.deleted, np.sort(np.asarray(numbers, np.int64))])
        if not documents.size:
            return None
        path = self._index.folder / f"deleted-{old.manifest.generation + 1:06d}.safetensors"
        write_tensors(path, {"documents": documents})
        return Deleted(FileEntry.of(path), documents.size, before)

    def _swap(self, manifest: Manifest) -> None:
        """Let a manifest count, whose segments are written. What is searched stays as it was if that fails."""
        folder, old = self._index.folder, self.generation
        shares = old.is_beginning_of(manifest)
        with self._index.guard:
            try:
                new = Generation.open(
                    folder,
                    manifest,
                    old,
                    verify=False,
                    options=self._index.secrets,
                    is_writer=True,
                )
                manifest = _with_graph(folder, manifest, new.backend)
                if (folder / "segments").is_dir():
                    fsync(folder / "segments")
                fsync(folder)
                _let_count(folder, manifest)
            except BaseException:
                if shares and old.backend is not None:
                    old.backend.trim(old.manifest.rows)
                self._index.refresh()  # it may count all the same, if the error came late
                raise
            self._index.replace_generation(replace(new, manifest=manifest))
            gone = old.deleted[old.manifest.deleted.before :] if shares and old.manifest.deleted else ()
            with suppress(Exception):  # the write counts; rows that stay take space and are not found
                if new.backend is not None and len(gone):
                    # those that the generation before, which is still kept, did without already
                    new.backend.remove(np.flatnonzero(np.isin(old.row_document, gone)))
                if not shares and old.backend is not None:
                    old.backend.drop()
                    old.backend.close()
        clean(folder, manifest, old.manifest)


def _let_count(folder: Path, manifest: Manifest) -> None:
    """Write CURRENT. An error that comes after it was replaced is no reason to say that nothing was written."""
    try:
        write_current(folder, manifest)
    except OSError as error:
        if not _counts(folder, manifest):
            raise
        warnings.warn(
            f"{folder} was written, but the disk has not confirmed it ({error}): after a power cut it may be as it "
            "was before.",
            stacklevel=5,
        )


def _counts(folder: Path, manifest: Manifest) -> bool:
    try:
        return read_current(folder) == manifest
    except (OSError, DamagedIndexError):
        return False


def clean(folder: Path, *kept: Manifest) -> None:
    """Remove files that neither the given generations nor the one before the last need: left over, or outdated.

    What cannot be removed is left for the next write.
    """
    names = {name for manifest in kept for name in manifest.names()}
    if len(kept) == 1:
        path = folder / f"manifest-{kept[0].generation - 1:06d}.json"
        with suppress(OSError, DamagedIndexError):  # what a damaged one kept is of no use
            names |= read_manifest(path, path.read_bytes()).names()
    for pattern in _OLD:
        with suppress(OSError):
            for path in folder.glob(pattern):
                if path.relative_to(folder).as_posix() not in names and not is_held(path):
                    remove(path)


def _with_graph(folder: Path, manifest: Manifest, backend: VectorBackend | None) -> Manifest:
    """Let the backend save what it built, unless what is saved has nine of ten rows already."""
    graph = manifest.graph
    if backend is None or (graph is not None and 10 * graph.rows >= 9 * manifest.rows):
        return manifest
    place = folder / f"graph-{manifest.generation:06d}"
    remove(place)
    place.mkdir()
    names = backend.save(place)
    if not names:
        place.rmdir()
        return manifest
    files = tuple(FileEntry.of(place / name) for name in names)
    fsync(place)
    return replace(manifest, graph=Graph(place.name, manifest.rows, files))


def _is_same_plan(found: Mapping[str, Any], plan: Mapping[str, Any]) -> bool:
    """Whether parts of a write that was stopped can be used: the same work, with an equal model."""
    ours, theirs = dict(plan["head"]), dict(found["head"])
    prints = [values.pop("fingerprint") for values in (ours, theirs)]
    for values in (ours, theirs):
        values["settings"] = {**(values["settings"] or {}), "model": "", "dtype": ""}
    if ours != theirs or any(plan[key] != found[key] for key in ("kind", "uid", "base")):
        return False
    if None in prints:
        return prints[0] == prints[1]
    try:
        return ModelFingerprint.from_dict(prints[0]).difference(ModelFingerprint.from_dict(prints[1])) is None
    except ValueError:
        return False


def _check_ids(parts: Sequence[StagedPart], known: Generation | None, on_duplicate: str) -> list[int]:
    """Return the numbers of the documents that are replaced."""
    seen: set[str] = set()
    twice: list[str] = []
    replaced: list[int] = []
    for part in parts:
        for name in part.ids:
            number = None if known is None else known.number(name)
            if name in seen or (number is not None and on_duplicate != "update"):
                twice.append(name)
            elif number is not None:
                replaced.append(number)
            seen.add(name)
    if twice:
        raise duplicate_error(twice)
    return replaced


def duplicate_error(names: Sequence[str]) -> DuplicateIdError:
    """Name the first few ids, and what to do."""
    shown = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    return DuplicateIdError(
        f"{len(names)} id{'s are' if len(names) > 1 else ' is'} in the index already or given twice: {shown}. Give "
        "every document an id of its own; to replace documents use update() or on_duplicate='update' (each id once), "
        "to leave them out on_duplicate='skip'."
    )


def _small_tail(segments: Sequence[Segment]) -> tuple[Sequence[Segment], Sequence[Segment]]:
    """Split off the small segments at the end, if there are many."""
    place = len(segments)
    while place and segments[place - 1].entry.documents < SMALL_SEGMENT:
        place -= 1
    if len(segments) - place < MOST_SMALL_SEGMENTS:
        return segments, ()
    return segments[:place], segments[place:]


def _old_batches(
    folder: Path, segments: Sequence[Segment], live: np.ndarray | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the documents of segments with their codes; only those that are there, if it is said which are.

    Raises:
        DamagedIndexError: A file is not as it was written, which its copy would hide for ever.
    """
    start = 0
    for segment in segments:
        for file in (segment.entry.texts, segment.entry.vectors):
            file.check(inside(folder, "segments"), verify=True)
        first = 0
        for batch in segment.table.to_batches():
            low, high = np.searchsorted(segment.document, [first, first + batch.num_rows]).tolist()
            codes = segment.codes(low, high)
            document, slices = segment.document[low:high] - first, segment.slice[low:high]
            if live is not None:
                kept = live[start + first : start + first + batch.num_rows]
                first += batch.num_rows
                if not kept.any():
                    continue
                rows = kept[document]
                renumbered = np.cumsum(kept) - 1
                batch, codes = batch.take(np.flatnonzero(kept)), codes[rows]
                document, slices = renumbered[document[rows]], slices[rows]
            else:
                first += batch.num_rows
            yield batch, codes, document, slices
        start += segment.entry.documents


def _part_batches(parts: Sequence[StagedPart], codec: Codec) -> Iterator[tuple[Any, ...]]:
    for part in parts:
        for batch, vectors, document, slices in part.batches():
            yield batch, codec.encode(vectors), document, slices
