"""The index on disk: add, delete and search interleaved documents."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..data.containers import ColumnChoice
from ..data.documents import Document
from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.pipeline_sugar import split_inputs
from ..model.samples_sugar import Sample
from .embedder import ModelFingerprint, SugarEmbedder, origin_of, why_another
from .explain import Explanation, explain
from .filters import Filter
from .hits import FUSED, Hit, check_mode, hybrid_hits, score_slices, text_hits, vector_hits
from .index_hub import pull, push
from .ingest import AddOptions, ProcessGroup, add_documents, add_vectors, build_store
from .store import (
    MUCH_DELETED,
    AddReport,
    DocumentNumber,
    IndexMismatchError,
    IndexSpec,
    IndexStore,
    IndexWriter,
    Snapshot,
    check_top_k,
    checked_spec,
    create_index,
    holds_index,
    open_writer,
    words_of,
)

__all__ = ["Hit", "Reranker", "SugarIndex"]

PART_DOCUMENTS = 1024
DEFAULT_RERANK = 20
#: Settings of an index that are options of a `SugarEmbedder`.
_OPTIONS = ("truncate_dim", "split_sentences", "max_length", "truncation", "positions")


class Reranker(Protocol):
    """Puts hits in another order. Of the library, [`SugarReranker`] is one."""

    def rerank(self, query: Sample, hits: Sequence[Hit], top_k: int | None = None) -> list[Hit]:
        """Return the best `top_k` hits, best first, with scores of its own."""


def candidate_count(top_k: int, reranker: Reranker | None, rerank: int | None) -> int:
    """Return how many documents a search has to find, so that `top_k` are left after reranking."""
    if reranker is None:
        if rerank is not None:
            raise ValueError(f"rerank={rerank} needs a reranker: pass reranker=SugarReranker(model, processor).")
        return top_k
    if rerank is not None and rerank < top_k:
        raise ValueError(f"rerank={rerank} is less than top_k={top_k}. Give as many or more.")
    return max(top_k, DEFAULT_RERANK) if rerank is None else rerank


class SugarIndex:
    """Interleaved documents and their embeddings in a folder.

    ```python
    index = SugarIndex.build("photos.index", documents, SugarEmbedder.from_pretrained("sugar"))
    index.search(["a story about", image], top_k=5)  # [Hit(id="7", score=0.83, ...), ...]
    ```

    Every change is atomic and on disk when its call returns; a kill leaves the state before it. Any number of
    processes may search while one writes. An open index stays as it is until `refresh`.

    Use `create`, `build`, `load` or `from_hub` instead of the constructor.

    Args:
        store: Its files.
        embedder: Embeds queries and documents.
    """

    def __init__(self, store: IndexStore, embedder: SugarEmbedder | None = None) -> None:
        self.store = store
        self._embedder: SugarEmbedder | None = None
        self._agrees: tuple[ModelFingerprint, IndexSpec] | None = None  # a check that passed
        self.embedder = embedder

    # ---- Create and open ----

    @classmethod
    def create(
        cls,
        folder: str | Path,
        embedder: SugarEmbedder | None = None,
        *,
        dim: int | None = None,
        backend: str = "faiss",
        vectors: str = "float32",
        positions: str | None = None,
        backend_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> "SugarIndex":
        """Create an empty index.

        Args:
            folder: Its folder, which is created where needed.
            embedder: Embeds documents and queries; `None` for vectors from elsewhere.
            dim: Width of the vectors, if there is no embedder.
            backend: `"faiss"` or `"milvus"`.
            vectors: How they are stored: `"float32"`, `"float16"`, `"int8"` or `"binary"`.
            positions: `"last"`: a vector for each document, `"all"`: for each of its slices; the embedder's, or
                `"last"`, when `None`.
            backend_options: See `FaissOptions` and `MilvusOptions`; a token is not written to disk.
            overwrite: Empty an existing index.

        Raises:
            FileExistsError: The folder holds an index, or other files.
            ValueError: An argument has a value that it cannot have.
        """
        folder, group = Path(folder), ProcessGroup()
        spec, secrets = index_spec(embedder, dim, backend, vectors, positions, backend_options)
        with group.together():
            if group.is_first and overwrite and holds_index(folder):
                with open_writer(IndexStore.open(folder, secrets=secrets), "build", spec) as writer:
                    writer.commit(())
            elif group.is_first:
                create_index(folder, spec)
        return cls.load(folder, embedder, backend_options=secrets)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        embedder: SugarEmbedder | None = None,
        *,
        verify: bool = True,
        backend_options: Mapping[str, Any] | None = None,
    ) -> "SugarIndex":
        """Open an index.

        Args:
            folder: Its folder.
            embedder: Embeds queries and documents; without one only vectors can be searched.
            verify: Compare the content of every file with what was written; else only the sizes.
            backend_options: Options that take precedence over those on disk, such as `token` or `ef_search`.

        Raises:
            FileNotFoundError: There is no index.
            DamagedIndexError: A file is missing or damaged, or the format is a newer one.
            IndexMismatchError: The embedder's embeddings are not those of the index; names what differs.
        """
        return cls(IndexStore.open(Path(folder), verify=verify, secrets=backend_options), embedder)

    @classmethod
    def build(
        cls,
        folder: str | Path,
        documents: Iterable[Any],
        embedder: SugarEmbedder,
        *,
        backend: str = "faiss",
        vectors: str = "float32",
        backend_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        columns: Sequence[str] | None = None,
        drop_columns: Sequence[str] | None = None,
        on_error: str = "raise",
        part_documents: int = PART_DOCUMENTS,
        show_progress: bool = True,
    ) -> "SugarIndex":
        """Create an index of documents. If interrupted, repeat the call: it resumes at the last part.

        Args:
            folder: Its folder.
            documents: Anything that `as_document` takes, from a list, a data set or a generator. They are read once
                and never all at the same time.
            embedder: Embeds them.
            backend: See [`create`].
            vectors: See [`create`].
            backend_options: See [`create`].
            overwrite: Replace an existing index, once the new one is complete.
            columns: Read these columns of rows alone.
            drop_columns: Read all columns of rows but these.
            on_error: `"raise"` at the first document that cannot be embedded, or `"skip"` those, with a warning.
            part_documents: Documents that are embedded between two points from which an interrupted call resumes.
            show_progress: Show a bar.

        Raises:
            FileExistsError: The folder holds an index with documents.
            ValueError: `columns` or `drop_columns` names a column that no row has, or both are given.
            DuplicateIdError: Two documents have the same id.
            BadSampleError: A document cannot be embedded.
        """
        choice = ColumnChoice.of(columns, drop_columns)
        options = AddOptions(on_error, "raise", False, part_documents, show_progress, choice)
        spec, secrets = index_spec(embedder, None, backend, vectors, None, backend_options)
        store = build_store(Path(folder), spec, secrets, documents, embedder, options, overwrite=overwrite)
        return cls(store, embedder)

    @classmethod
    def from_hub(
        cls,
        repo_id: str,
        embedder: SugarEmbedder | None = None,
        *,
        folder: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        verify: bool = True,
    ) -> "SugarIndex":
        """Download an index; see `sugar_hf.retrieval.index_hub.pull`."""
        return cls.load(pull(repo_id, folder, revision=revision, token=token), embedder, verify=verify)

    # ---- The embedder ----

    @property
    def embedder(self) -> SugarEmbedder | None:
        """Embeds queries and documents. One whose embeddings are not those of the index is refused."""
        return self._embedder

    @embedder.setter
    def embedder(self, embedder: SugarEmbedder | None) -> None:
        if embedder is not None:
            self._check(embedder)
        self._embedder = embedder

    def _checked_embedder(self) -> SugarEmbedder:
        if self._embedder is None:
            raise ValueError(
                f"{self.folder} was opened without a model. Open it with SugarIndex.load(folder, embedder), or use "
                "search_vectors(vectors) and add(documents, vectors)."
            )
        self._check(self._embedder)
        return self._embedder

    def embedder_with(self, model: SugarForConditionalGeneration, processor: SugarProcessor) -> SugarEmbedder:
        """Return an embedder that has this model, and embeds as the documents were embedded.

        It is the index's own if that does so: then the fingerprint of the model need not be taken again.

        Raises:
            IndexMismatchError: The index was made with another model.
        """
        settings, own = self._spec.settings or {}, self._embedder
        options = {name: settings[name] for name in _OPTIONS if name in settings}
        is_same = isinstance(own, SugarEmbedder) and own.model is model and own.processor is processor
        if own is None or not is_same or any(vars(own)[name] != value for name, value in options.items()):
            own = SugarEmbedder(model, processor, **options)
        self._check(own)
        return own

    @property
    def _spec(self) -> IndexSpec:
        return self.store.snapshot.manifest.spec

    def _check(self, embedder: SugarEmbedder) -> None:
        spec = self._spec
        known = self._agrees[0] if self._agrees and self._agrees[1] is spec else None
        self._agrees = check_embedder(spec, embedder, self.folder, known), spec

    # ---- Write ----

    def add(
        self,
        documents: Iterable[Any],
        vectors: Iterable[np.ndarray] | None = None,
        *,
        columns: Sequence[str] | None = None,
        drop_columns: Sequence[str] | None = None,
        on_error: str = "raise",
        on_duplicate: str = "raise",
        part_documents: int = PART_DOCUMENTS,
        show_progress: bool = True,
    ) -> AddReport:
        """Embed and add documents, all or none of them. If interrupted, repeat the call: it resumes.

        In a process group (torchrun, accelerate) every process makes the same call, each embeds its share, and the
        result is that of one process.

        Args:
            documents: See [`build`].
            vectors: Vectors of your own, so that nothing is embedded: for each document its unit vector (dim,), or its
                vectors (S, dim) with positions `"all"`.
            columns: See [`build`].
            drop_columns: See [`build`].
            on_error: `"raise"`, or `"skip"` documents that cannot be embedded, with a warning.
            on_duplicate: What to do with an id that the index has: `"raise"`, `"skip"` the new document (also the
                second of one call), or `"update"` the old one.
            part_documents: See [`build`].
            show_progress: Show a bar.

        Raises:
            DuplicateIdError: The index has an id, or it comes twice; nothing was added.
            BadSampleError: A document cannot be embedded; nothing was added.
            IndexMismatchError: The vectors or the embedder are not those of the index.
            ValueError: Vectors are not finite or not of length 1, or there are more or fewer than documents.
            LockedIndexError: Another process is writing.
        """
        choice = ColumnChoice.of(columns, drop_columns)
        options = AddOptions(on_error, on_duplicate, False, part_documents, show_progress, choice)
        if vectors is not None:
            return add_vectors(self.store, documents, vectors, options)
        return add_documents(self.store, documents, self._embedder_of_documents(), options)

    def update(
        self,
        documents: Iterable[Any],
        *,
        columns: Sequence[str] | None = None,
        drop_columns: Sequence[str] | None = None,
        on_error: str = "raise",
        part_documents: int = PART_DOCUMENTS,
        show_progress: bool = True,
    ) -> AddReport:
        """Replace documents by others of the same ids. Arguments are those of [`add`].

        Raises:
            KeyError: The index does not have an id; nothing was changed.
        """
        choice = ColumnChoice.of(columns, drop_columns)
        options = AddOptions(on_error, "update", True, part_documents, show_progress, choice)
        return add_documents(self.store, documents, self._embedder_of_documents(), options)

    def _embedder_of_documents(self) -> SugarEmbedder:
        embedder, positions = self._checked_embedder(), self._spec.positions
        if embedder.positions != positions:
            raise IndexMismatchError(
                f"{self.folder} holds embeddings of positions={positions!r}, the embedder gives those of "
                f"{embedder.positions!r}. Use SugarEmbedder(..., positions={positions!r})."
            )
        return embedder

    def delete(self, ids: str | Iterable[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents.

        Args:
            ids: An id, or several.
            where: Instead: a filter on metadata, see `search`.

        Returns:
            How many.

        Raises:
            KeyError: The index does not have an id; nothing was deleted.
            ValueError: Neither or both of the arguments are given, or the filter cannot be read.
        """
        condition = Filter.parse(where)
        if (ids is None) == (condition is None):
            raise ValueError("give ids, or a filter with where=.")
        with self.writer() as writer:
            snapshot = writer.snapshot
            if condition is not None:
                numbers = snapshot.matching(condition).tolist()
            else:
                names = dict.fromkeys([ids] if isinstance(ids, str) else ids or ())
                known = {name: snapshot.number(name) for name in names}
                if missing := [name for name, number in known.items() if number is None]:
                    raise KeyError(f"no document of id {', '.join(map(repr, missing[:5]))}; nothing was deleted.")
                numbers = [number for number in known.values() if number is not None]
            writer.delete(numbers)
        return len(numbers)

    def compact(self) -> None:
        """Free the space of deleted documents, and join small files. Nothing is embedded anew."""
        with self.writer() as writer:
            writer.compact()

    def writer(self, kind: str = "add") -> AbstractContextManager[IndexWriter]:
        """Begin a write whose parts other processes stage. Advanced: `add` does this for torchrun and accelerate.

        ```python
        with index.writer() as writer:
            writer.pending.stage(0, documents, vectors)  # `pending` may be sent to other processes
            writer.commit()
        ```

        Raises:
            LockedIndexError: On entering: another process is writing.
            PermissionError: On entering: the folder cannot be written.
        """
        return open_writer(self.store, kind)

    # ---- Search ----

    def search(
        self,
        queries: Any,
        top_k: int = 10,
        *,
        mode: str = "vector",
        where: Mapping[str, Any] | Filter | None = None,
        return_vectors: bool = False,
        late_interaction: int | None = None,
        reranker: Reranker | None = None,
        rerank: int | None = None,
        prompt: str | None = None,
        vectors: np.ndarray | None = None,
        names: Sequence[str] | None = None,
    ) -> Any:
        """Find the documents that fit samples best.

        Args:
            queries: One query (str, PIL image, Path, chat, or `{"query": interleaved list}`), or a list of queries,
                interleaved ones as lists.
            top_k: How many documents.
            mode: `"vector"`: the nearest embeddings; `"text"`: the words of the query's texts, by BM25, without a
                model; `"hybrid"`: both, fused by reciprocal rank. Of a query without words, vectors alone then.
            where: A filter on metadata, such as `{"kind": "story", "year": {"$gte": 2000}}`; see
                `sugar_hf.retrieval.filters`.
            return_vectors: Whether hits have the embedding that matched, as it is stored.
            late_interaction: Of so many documents that `mode` finds, return those whose slices fit the slices of the
                query best, each its own; for an index with positions `"all"`.
            reranker: Puts what was found in another order, such as a [`SugarReranker`]. Scores are then its own.
            rerank: How many documents the reranker sees, `top_k` of which are returned; 20 when `None`.
            prompt: An instruction for the queries; see [`SugarEmbedder.encode`]. Its words are not searched.
            vectors: (q, dim) float32, embeddings of the queries, which are not embedded then.
            names: What to call the queries in errors; "query 0", ... when `None`.

        Returns:
            For one query a list of [`Hit`], best first; for a list of queries a list of those.

        Raises:
            ValueError: A query, the filter or the mode cannot be read, or there is no embedder. With `"text"`: a
                query has no words. With `late_interaction`: the index has one embedding for each document, or
                `vectors` are given. Or `rerank` is less than `top_k` or has no reranker.
            IndexMismatchError: The embedder's model was changed since it was given.
        """
        check_mode(mode)
        condition = None if where is None else Filter.parse(where)
        samples, is_single = split_inputs(queries)
        names = [f"query {i}" for i in range(len(samples))] if names is None else names
        wanted = candidate_count(top_k, reranker, rerank)
        count = self._first_count(wanted, late_interaction)
        slices: list[np.ndarray] = []
        if late_interaction is not None:
            if vectors is not None:
                raise ValueError("late_interaction embeds queries at all of their slices: leave out vectors=.")
            slices = self._checked_embedder().encode_slices(samples, names=names, prompt=prompt)
            vectors = np.stack([each[-1] for each in slices])
        elif mode == "text":
            vectors = np.zeros((len(samples), self._spec.dim), np.float32)
        elif vectors is None:
            vectors = self._checked_embedder().encode(samples, names=names, prompt=prompt)
        if len(vectors) != len(samples):
            raise ValueError(f"vectors: {len(vectors)} for {len(samples)} queries. Give one for each.")
        if mode == "vector":
            snapshot, matches = self.store.search(vectors, count, condition)
            hits = vector_hits(snapshot, matches, return_vectors)
        else:
            words = [words_of(sample, name) for sample, name in zip(samples, names, strict=True)]
            snapshot, hits = self._search_words(words, names, vectors, count, mode, condition, return_vectors)
        if slices:
            hits = [line[:wanted] for line in score_slices(snapshot, slices, hits)]
        if reranker is not None:
            hits = [reranker.rerank(*row, top_k) for row in zip(samples, hits, strict=True)]
        return hits[0] if is_single else hits

    def _first_count(self, top_k: int, late_interaction: int | None) -> int:
        """Return how many documents are found before late interaction."""
        if late_interaction is None:
            return top_k
        if self._spec.positions != "all":
            raise ValueError(
                f"late_interaction={late_interaction!r:.40} compares slices, and {self.folder} has one embedding for "
                "each document. Build it with SugarEmbedder(..., positions='all')."
            )
        if check_top_k(late_interaction) < check_top_k(top_k):
            raise ValueError(f"late_interaction={late_interaction} is less than top_k={top_k}. Give as many or more.")
        return late_interaction

    def _search_words(
        self,
        words: Sequence[Sequence[str]],
        names: Sequence[str],
        vectors: np.ndarray,
        top_k: int,
        mode: str,
        where: Filter | None,
        return_vectors: bool,
    ) -> tuple[Snapshot, list[list[Hit]]]:
        """Search for the words of queries, with `"hybrid"` for their vectors, too. Returns also what was searched."""
        if mode == "hybrid":
            most = max(check_top_k(top_k), FUSED)
            snapshot, matches = self.store.search(vectors, most, where)
            found = snapshot.search_text(words, most, where)
            return snapshot, hybrid_hits(snapshot, vectors, matches, found, top_k, return_vectors)
        if without := [name for name, some in zip(names, words, strict=True) if not some]:
            raise ValueError(f"{without[0]} has no words to search for. Use mode='vector' or 'hybrid'.")
        snapshot = self.store.snapshot
        return snapshot, text_hits(snapshot, snapshot.search_text(words, top_k, where), return_vectors)

    def search_vectors(
        self,
        vectors: np.ndarray,
        top_k: int = 10,
        *,
        where: Mapping[str, Any] | Filter | None = None,
        return_vectors: bool = False,
    ) -> list[list[Hit]]:
        """Find the documents nearest to vectors.

        Args:
            vectors: (q, dim) float32 unit vectors.
            top_k: See [`search`].
            where: See [`search`].
            return_vectors: See [`search`].

        Returns:
            For each vector a list of [`Hit`], best first.

        Raises:
            IndexMismatchError: The vectors are of another width.
            ValueError: They are not finite, or `top_k` is no whole number of 1 or more.
        """
        snapshot, matches = self.store.search(vectors, top_k, None if where is None else Filter.parse(where))
        return vector_hits(snapshot, matches, return_vectors)

    def explain(self, query: Sample, hit: Hit | str, **options: Any) -> Explanation:
        """Explain why a document was found: compare its slices with the query's, as this index embeds them.

        Args:
            query: The query, one sample; `{"query": ...}`, as for a search, is one, too.
            hit: What `search` gave, or the id of a document. Of a hit in an index with positions `"all"`, the slices
                up to the one that matched.
            **options: `teacher`, `embeddings`, `config` and `sigma` of [`sugar_hf.retrieval.explain`].

        Raises:
            KeyError: There is no document of this id.
            ValueError: The query or an option cannot be read, or there is no embedder.
        """
        embedder = self._checked_embedder()
        document = self.get(hit) if isinstance(hit, str) else hit.document
        return explain(
            query["query"] if isinstance(query, dict) and "query" in query else query,
            document,
            embedder.model,
            embedder.processor,
            document_slices=None if isinstance(hit, str) or hit.slice < 0 else hit.slice + 1,
            batch_size=embedder.batch_size,
            truncate_dim=embedder.truncate_dim,
            split_sentences=embedder.split_sentences,
            max_length=embedder.max_length,
            truncation=embedder.truncation,
            **options,
        )

    # ---- Read ----

    def get(self, name: str) -> Document:
        """Read the document of an id.

        Raises:
            KeyError: There is none.
        """
        snapshot = self.store.snapshot
        number = snapshot.number(name)
        if number is None:
            raise KeyError(f"no document of id {name!r} in {self.folder}.")
        return snapshot.document(number)

    def __len__(self) -> int:
        return len(self.store.snapshot.live_numbers)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.store.snapshot.number(name) is not None

    def __iter__(self) -> Iterator[Document]:
        """Read all documents, in the order in which they were added."""
        snapshot = self.store.snapshot
        return (snapshot.document(DocumentNumber(number)) for number in snapshot.live_numbers.tolist())

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.store.folder

    def refresh(self) -> bool:
        """Take over what other processes have written.

        Returns:
            Whether there was something new.

        Raises:
            DamagedIndexError: A file is missing or damaged.
        """
        return self.store.refresh()

    def close(self) -> None:
        """Close files and connections."""
        self.store.close()

    def info(self) -> dict[str, Any]:
        """Describe what the index holds and how it was made, fit for JSON."""
        snapshot, spec = self.store.snapshot, self._spec
        manifest = snapshot.manifest
        deleted = len(snapshot.deleted) / max(1, manifest.documents)
        files = [file for entry in manifest.segments for file in entry.files]
        return {
            "folder": str(self.folder),
            "documents": len(self),
            "rows": manifest.rows,
            "deleted_share": round(deleted, 4),
            "positions": spec.positions,
            "dim": spec.dim,
            "vectors": spec.vectors,
            "bytes_per_vector": None if snapshot.codec is None else snapshot.codec.bytes_per_vector,
            "bytes_on_disk": sum(file.size for file in files),
            "clipped": manifest.clipped,
            "backend": spec.backend,
            "backend_options": spec.backend_options,
            "generation": manifest.generation,
            "segments": len(manifest.segments),
            "model": None if spec.settings is None else spec.settings.get("model", ""),
            "settings": spec.settings,
            "advice": "compact() gives back the space of deleted documents" if deleted > MUCH_DELETED else None,
        }

    # ---- The interface of pipelines: `RetrievalIndex` ----

    @property
    def documents(self) -> Sequence[Any]:
        """The documents as samples, read when they are asked for, in the order of `__iter__`."""
        return _Samples(self.store.snapshot)

    def search_embeddings(
        self, embeddings: np.ndarray, top_k: int, *, where: Mapping[str, Any] | Filter | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the documents nearest to vectors, by where they stand in `documents`; see [`search_vectors`].

        Returns:
            Scores (q, k) float32, best first, and indices (q, k) int64 into `documents`; -inf and -1 fill up short
            results. k is `top_k`, unless that is over 128 and over the number of documents: then the larger of these.
        """
        snapshot, matches = self.store.search(embeddings, top_k, None if where is None else Filter.parse(where))
        at = np.searchsorted(snapshot.live_numbers, matches.documents)
        return matches.scores, np.where(matches.documents < 0, -1, at)

    # ---- Hub ----

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the index as a data set repository; see `sugar_hf.retrieval.index_hub.push` for the options.

        Returns:
            The address of the commit.
        """
        return push(self.store, repo_id, **options)


class _Samples(Sequence[Any]):
    """The documents of a snapshot as samples, read and decoded when they are asked for."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __len__(self) -> int:
        return len(self._snapshot.live_numbers)

    def __getitem__(self, at: Any) -> Any:
        return self._snapshot.document(DocumentNumber(int(self._snapshot.live_numbers[at]))).load()


def index_spec(
    embedder: SugarEmbedder | None,
    dim: int | None,
    backend: str,
    vectors: str,
    positions: str | None,
    backend_options: Mapping[str, Any] | None,
) -> tuple[IndexSpec, dict[str, Any]]:
    """Check how an index is to be made; for the arguments see `SugarIndex.create`.

    Returns:
        See `sugar_hf.retrieval.store.checked_spec`.

    Raises:
        ValueError: An argument has a value that it cannot have.
        ImportError: The backend needs a package that is not installed.
    """
    settings = fingerprint = None
    if embedder is not None:
        settings, fingerprint = origin_of(embedder)
        if dim is not None and dim != settings.dim:
            raise ValueError(
                f"dim={dim}: the embedder gives {settings.dim} dimensions. Use SugarEmbedder(..., truncate_dim={dim})."
            )
        dim, positions = settings.dim, settings.positions if positions is None else positions
    if type(dim) is not int or dim < 1:
        raise ValueError(f"dim={dim!r}: give an embedder, or the width of your vectors.")
    spec = IndexSpec(
        dim=dim,
        positions="last" if positions is None else positions,
        vectors=vectors,
        backend=backend,
        backend_options=dict(backend_options or {}),
        settings=None if settings is None else asdict(settings),
        fingerprint=fingerprint,
    )
    return checked_spec(spec)  # now, and not when documents are embedded already


def check_embedder(
    spec: IndexSpec, embedder: SugarEmbedder, folder: Path, known: ModelFingerprint | None = None
) -> ModelFingerprint:
    """Refuse an embedder whose embeddings cannot be compared with those of an index. Returns its model's fingerprint.

    `known` is the fingerprint of a model that was found to be right.
    """
    reason, fingerprint = why_another(embedder, known, spec.dim, spec.settings, spec.fingerprint)
    if reason is not None:
        raise IndexMismatchError(f"{folder} {reason}")
    return fingerprint
