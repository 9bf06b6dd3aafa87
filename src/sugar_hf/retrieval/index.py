"""The index on disk: add, delete and search interleaved documents."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.columns import ColumnChoice
from .embedder import SugarEmbedder
from .filters import Filter
from .index_hub import pull, push
from .ingest import add_documents, add_vectors, report_skipped
from .results import Hit
from .searching import SearchableIndex
from .store.index_errors import IndexMismatchError
from .store.index_store import create_folder, make_head, open_folder, settled
from .store.index_writer import AddReport, IndexWriter
from .store.manifest import Head, holds_index, read_current
from .store.process_group import Ranks

__all__ = ["AddReport", "Hit", "SugarIndex"]

PART_DOCUMENTS = 1024


class SugarIndex(SearchableIndex):
    """Interleaved documents and their embeddings in a folder.

    ```python
    index = SugarIndex.build("photos.index", documents, SugarEmbedder.from_pretrained("sugar"))
    index.search(["a story about", image], top_k=5)  # [Hit(id="7", score=0.83, ...), ...]
    ```

    Every change is on the disk when its call returns, as a whole; a kill leaves the state before it. Any number of
    processes may search while one writes. What was opened stays as it is until `refresh`.

    Args:
        folder: Where it is. Use `create`, `build`, `load` or `from_hub` instead of the constructor.
        generation: What was opened.
        embedder: Embeds queries and documents.
        secrets: Options of the backend that are not written to disk.
    """

    # ---- Making and opening ----

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
        """Make an empty index.

        Args:
            folder: Where to; made if it is not there.
            embedder: Embeds documents and queries; `None` for vectors from elsewhere.
            dim: Width of the vectors, if there is no embedder.
            backend: `"faiss"` or `"milvus"`.
            vectors: How they are stored: `"float32"`, `"float16"`, `"int8"` or `"binary"`.
            positions: `"last"`: a vector for each document, `"all"`: for each of its slices; the embedder's, or
                `"last"`, when `None`.
            backend_options: See `FaissOptions` and `MilvusOptions`; a token is not written to disk.
            overwrite: Empty an index that is there.

        Raises:
            FileExistsError: The folder holds an index, or other files.
            ValueError: An argument has a value that it cannot have.
        """
        folder, ranks = Path(folder), Ranks()
        head, secrets = make_head(embedder, dim, backend, vectors, positions, backend_options)
        with ranks.together():
            if ranks.is_first and overwrite and holds_index(folder):
                there = cls(folder, open_folder(folder, None, True), None, secrets)
                with there.writer("build", head) as writer:
                    writer.commit(())
            elif ranks.is_first:
                create_folder(folder, head)
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
            folder: Where it is.
            embedder: Embeds queries and documents; without one only embeddings can be searched.
            verify: Compare the content of every file with what was written; else only the sizes.
            backend_options: Options that go before those the index was made with, such as `token` or `ef_search`.

        Raises:
            FileNotFoundError: There is no index.
            DamagedIndexError: A file is missing or damaged, or the format is a newer one.
            IndexMismatchError: The embedder's embeddings are not those of the index; says what differs.
        """
        folder = Path(folder)
        generation = open_folder(folder, None, verify, backend_options or {})
        return cls(folder, generation, embedder, backend_options)

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
        """Make an index of documents. If it is killed, the same call goes on from the last part that was embedded.

        Args:
            folder: Where to.
            documents: Anything that `as_document` takes, from a list, a data set or a generator. They are read once
                and never all at the same time.
            embedder: Embeds them.
            backend: See [`create`].
            vectors: See [`create`].
            backend_options: See [`create`].
            overwrite: Replace an index that is there, once the new one is whole.
            columns: Read these columns of rows alone.
            drop_columns: Read all columns of rows but these.
            on_error: `"raise"` at the first document that cannot be embedded, or `"skip"` those, with a warning.
            part_documents: How many documents are embedded between two points from which a killed call goes on.
            show_progress: Show a bar.

        Raises:
            FileExistsError: The folder holds an index with documents.
            ValueError: `columns` or `drop_columns` names a column that no row has, or both are given.
            DuplicateIdError: Two documents have the same id.
            BadSampleError: A document cannot be embedded.
        """
        folder, ranks = Path(folder), Ranks()
        choice = ColumnChoice.of(columns, drop_columns)
        head, secrets = make_head(embedder, None, backend, vectors, None, backend_options)
        with ranks.together():
            if ranks.is_first:
                if not holds_index(folder):
                    create_folder(folder, head)
                elif not overwrite and (there := settled(folder, lambda: read_current(folder)).documents):
                    raise FileExistsError(
                        f"{folder} holds an index of {there} documents. Pass overwrite=True to replace it, or use "
                        "SugarIndex.load(folder, embedder).add(documents)."
                    )
        index = cls(folder, open_folder(folder, None, True, secrets), None, secrets)
        report_skipped(
            add_documents(
                index,
                documents,
                embedder,
                on_error=on_error,
                kind="build",
                head=head,
                choice=choice,
                on_duplicate="raise",
                part_documents=part_documents,
                show_progress=show_progress,
            )
        )
        index.embedder = embedder
        return index

    # ---- Writing ----

    def writer(self, kind: str = "add", head: Head | None = None) -> IndexWriter:
        """Begin a write of which several processes stage the parts; see [`IndexWriter`].

        Raises:
            LockedIndexError: On entering: another process is writing.
            PermissionError: On entering: the folder cannot be written.
        """
        return IndexWriter(self, kind, head)

    def add(
        self,
        documents: Iterable[Any],
        *,
        columns: Sequence[str] | None = None,
        drop_columns: Sequence[str] | None = None,
        on_error: str = "raise",
        on_duplicate: str = "raise",
        part_documents: int = PART_DOCUMENTS,
        show_progress: bool = True,
    ) -> AddReport:
        """Embed and add documents, all or none of them. A killed call is gone on with by the same call.

        In a process group (torchrun, accelerate) every process makes the same call, each embeds its share, and the
        result is that of one process.

        Args:
            documents: See [`build`].
            columns: See [`build`].
            drop_columns: See [`build`].
            on_error: `"raise"`, or `"skip"` documents that cannot be embedded, with a warning.
            on_duplicate: What an id does that is there already: `"raise"`, `"skip"` the new document (also the second
                of one call), or `"update"` the old one.
            part_documents: See [`build`].
            show_progress: Show a bar.

        Raises:
            DuplicateIdError: An id is there already or comes twice; nothing was added.
            BadSampleError: A document cannot be embedded; nothing was added.
            LockedIndexError: Another process is writing.
        """
        choice = ColumnChoice.of(columns, drop_columns)
        return self._add(documents, on_error, on_duplicate, part_documents, show_progress, choice=choice)

    def update(self, documents: Iterable[Any], **options: Any) -> AddReport:
        """Replace documents by others of the same ids; options are those of `add`.

        Raises:
            KeyError: An id is not there; nothing was changed.
        """
        options = {"on_error": "raise", "part_documents": PART_DOCUMENTS, "show_progress": True, **options}
        options["choice"] = ColumnChoice.of(options.pop("columns", None), options.pop("drop_columns", None))
        return self._add(documents, on_duplicate="update", must_exist=True, **options)

    def _add(
        self,
        documents: Iterable[Any],
        on_error: str,
        on_duplicate: str,
        part_documents: int,
        show_progress: bool,
        must_exist: bool = False,
        choice: ColumnChoice | None = None,
    ) -> AddReport:
        embedder = self._checked_embedder()
        positions = self._generation.manifest.head.positions
        if embedder.positions != positions:
            raise IndexMismatchError(
                f"{self.folder} holds embeddings of positions={positions!r}, the embedder gives those of "
                f"{embedder.positions!r}. Use SugarEmbedder(..., positions={positions!r})."
            )
        return report_skipped(
            add_documents(
                self,
                documents,
                embedder,
                on_error=on_error,
                on_duplicate=on_duplicate,
                must_exist=must_exist,
                choice=choice,
                part_documents=part_documents,
                show_progress=show_progress,
            )
        )

    def add_embedded(
        self, documents: Iterable[Any], vectors: Iterable[np.ndarray], *, on_duplicate: str = "raise"
    ) -> AddReport:
        """Add documents with vectors of your own, all or none of them.

        Args:
            documents: See [`build`].
            vectors: For each document its unit vector (dim,), or its vectors (S, dim) with positions `"all"`.
            on_duplicate: See [`add`].

        Raises:
            IndexMismatchError: Vectors have another width.
            ValueError: Vectors are not finite or not of length 1, or there are more or fewer than documents.
        """
        return add_vectors(self, documents, vectors, on_duplicate=on_duplicate, part_documents=PART_DOCUMENTS)

    def delete(self, ids: str | Iterable[str] | None = None, *, where: Mapping[str, Any] | None = None) -> int:
        """Delete documents.

        Args:
            ids: An id, or several.
            where: Instead: a filter on metadata, see `Filter`.

        Returns:
            How many.

        Raises:
            KeyError: An id is not there; nothing was deleted.
            ValueError: Neither or both of the arguments are given, or the filter cannot be read.
        """
        condition = Filter.parse(where)
        if (ids is None) == (condition is None):
            raise ValueError("give ids, or a filter with where=.")
        with self.writer() as writer:
            generation = writer.generation
            if condition is not None:
                numbers = generation.matching(condition).tolist()
            else:
                names = dict.fromkeys([ids] if isinstance(ids, str) else ids or ())
                found = {name: generation.number(name) for name in names}
                if missing := [name for name, number in found.items() if number is None]:
                    raise KeyError(f"no document of id {', '.join(map(repr, missing[:5]))}; nothing was deleted.")
                numbers = [number for number in found.values() if number is not None]
            writer.delete(numbers)
        return len(numbers)

    def compact(self) -> None:
        """Give back the space of deleted documents, and join small files. Nothing is embedded anew."""
        with self.writer() as writer:
            writer.compact()

    # ---- Hub ----

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the index as a data set repository; see `sugar_hf.retrieval.index_hub.push` for the options.

        Returns:
            The address of the commit.
        """
        return push(self, repo_id, **options)

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
