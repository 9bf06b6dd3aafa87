"""What a process that only reads an index does with it: search, get, refresh."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

from ..model.pipeline_sugar import split_inputs
from .documents import Document
from .embedder import SugarEmbedder
from .explain import Explanation, explain
from .filters import Filter
from .fingerprint import ModelFingerprint
from .results import Hit, Samples, describe
from .store.backends.base import check_top_k
from .store.index_errors import IndexMismatchError
from .store.index_store import check_embedder, open_folder
from .store.snapshot import Generation


class SearchableIndex:
    """An index that is open, as its readers see it; the base of `SugarIndex`.

    Args:
        folder: Where it is. Use `create`, `build`, `load` or `from_hub` instead of the constructor.
        generation: What was opened.
        embedder: Embeds queries and documents.
        secrets: Options of the backend that are not written to disk.
    """

    def __init__(
        self,
        folder: Path,
        generation: Generation,
        embedder: SugarEmbedder | None = None,
        secrets: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.secrets = dict(secrets or {})
        self.guard = RLock()  # a backend is not searched while rows are added to it
        self._generation = generation
        self._embedder: SugarEmbedder | None = None
        self._agrees_with: ModelFingerprint | None = None
        self.embedder = embedder

    def refresh(self) -> bool:
        """Take over what other processes have written.

        Returns:
            Whether there was something new.

        Raises:
            DamagedIndexError: A file is missing or damaged.
        """
        with self.guard:
            new = open_folder(self.folder, self._generation, True, self.secrets)
            changed = new is not self._generation
            self.replace_generation(new)
            return changed

    def replace_generation(self, new: Generation) -> None:
        """Search another generation from now on."""
        old, self._generation = self._generation, new
        if old.manifest.head.fingerprint != new.manifest.head.fingerprint:
            self._agrees_with = None

    def close(self) -> None:
        """Let go of files and connections."""
        if self._generation.backend is not None:
            self._generation.backend.close()

    # ---- The model ----

    @property
    def embedder(self) -> SugarEmbedder | None:
        """What embeds queries and documents; one whose embeddings are not those of the index is refused."""
        return self._embedder

    @embedder.setter
    def embedder(self, embedder: SugarEmbedder | None) -> None:
        self._agrees_with = None
        if embedder is not None:
            self._check(embedder)
        self._embedder = embedder

    def _checked_embedder(self) -> SugarEmbedder:
        if self._embedder is None:
            raise ValueError(
                f"{self.folder} was opened without a model. Open it with SugarIndex.load(folder, embedder), or use "
                "search_embeddings and add_embedded."
            )
        self._check(self._embedder)
        return self._embedder

    def _check(self, embedder: SugarEmbedder) -> None:
        if embedder.fingerprint is not self._agrees_with:  # the model, or what adapters it has on, changed
            check_embedder(self._generation.manifest.head, embedder, self.folder)
            self._agrees_with = embedder.fingerprint

    # ---- Reading ----

    @property
    def generation(self) -> Generation:
        """What is searched."""
        return self._generation

    @property
    def documents(self) -> Sequence[Any]:
        """The documents as samples, at the places that `search_embeddings` gives."""
        return Samples(self._generation)

    def __len__(self) -> int:
        return len(self._generation.places)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._generation.number(name) is not None

    def __iter__(self) -> Iterator[Document]:
        """Read all documents, in the order in which they were added."""
        generation = self._generation
        return (generation.document(int(number)) for number in generation.places)

    def get(self, name: str) -> Document:
        """Read the document of an id.

        Raises:
            KeyError: There is none.
        """
        generation = self._generation
        number = generation.number(name)
        if number is None:
            raise KeyError(f"no document of id {name!r} in {self.folder}.")
        return generation.document(number)

    def search(
        self,
        queries: Any,
        top_k: int = 10,
        *,
        where: Mapping[str, Any] | Filter | None = None,
        return_vectors: bool = False,
    ) -> Any:
        """Find the documents nearest to samples.

        Args:
            queries: One query (str, PIL image, Path, chat, or `{"query": interleaved list}`), or a list of queries,
                interleaved ones as lists.
            top_k: How many documents.
            where: A filter on metadata, such as `{"kind": "story", "year": {"$gte": 2000}}`; see `Filter`.
            return_vectors: Whether hits have the embedding that matched, as it is stored.

        Returns:
            For one query a list of [`Hit`], best first; for a list of queries a list of those.

        Raises:
            ValueError: A query or the filter cannot be read, or there is no embedder.
            IndexMismatchError: The embedder's model was changed since it was given.
        """
        embedder = self._checked_embedder()
        condition = Filter.parse(where)
        samples, is_single = split_inputs(queries)
        embeddings = embedder.encode(samples, names=[f"query {i}" for i in range(len(samples))])
        hits = self.find(embeddings, top_k, where=condition, return_vectors=return_vectors)
        return hits[0] if is_single else hits

    def find(
        self,
        embeddings: np.ndarray,
        top_k: int = 10,
        *,
        where: Mapping[str, Any] | Filter | None = None,
        return_vectors: bool = False,
    ) -> list[list[Hit]]:
        """Find the documents nearest to embeddings that are already there.

        Args:
            embeddings: (q, dim) float32 unit vectors.
            top_k: See [`search`].
            where: See [`search`].
            return_vectors: See [`search`].

        Returns:
            For each embedding a list of [`Hit`], best first.

        Raises:
            ValueError: The embeddings are not finite or of another width, or `top_k` is no whole number of 1 or more.
        """
        generation, (scores, numbers, rows) = self._search(embeddings, top_k, Filter.parse(where))
        return [
            [
                Hit(
                    (document := generation.document(int(number))).id,
                    float(score),
                    int(generation.row_slice[row]),
                    document,
                    generation.vectors([int(row)])[0] if return_vectors else None,
                )
                for score, number, row in zip(*line, strict=True)
                if number >= 0
            ]
            for line in zip(scores, numbers, rows, strict=True)
        ]

    def explain(self, query: Any, hit: Hit | str, **options: Any) -> Explanation:
        """Say why a document was found: its slices and the query's, compared as this index embeds them.

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

    def search_embeddings(
        self, embeddings: np.ndarray, top_k: int, *, where: Mapping[str, Any] | Filter | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the documents nearest to embeddings.

        Args:
            embeddings: (q, dim) float32 unit vectors.
            top_k: How many documents.
            where: See [`search`].

        Returns:
            Scores (q, k) float32, best first, and places (q, k) int64 in `documents`; -inf and -1 fill up short
            results. k is `top_k`, unless that is over 128 and over the number of documents: then the larger of these.

        Raises:
            ValueError: The embeddings are not finite or of another width, or `top_k` is no whole number of 1 or more.
        """
        generation, (scores, numbers, _) = self._search(embeddings, top_k, Filter.parse(where))
        places = np.searchsorted(generation.places, numbers)
        return scores, np.where(numbers < 0, -1, places)

    def _search(
        self, embeddings: np.ndarray, top_k: int, where: Filter | None
    ) -> tuple[Generation, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        embeddings = np.asarray(embeddings, np.float32)
        dim = self._generation.manifest.head.dim
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise IndexMismatchError(f"expected embeddings of the shape (q, {dim}), got {embeddings.shape}.")
        if not np.isfinite(embeddings).all():
            raise ValueError("the embeddings have NaN or infinite numbers.")
        check_top_k(top_k)
        with self.guard:
            return self._generation, self._generation.search(embeddings, top_k, where)

    def info(self) -> dict[str, Any]:
        """What the index holds and how it was made, fit for JSON."""
        return {"folder": str(self.folder), **describe(self._generation)}
