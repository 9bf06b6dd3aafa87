"""An index that is only read, and follows what other processes write into its folder."""

import logging
import threading
from typing import Any

import numpy as np

from ..retrieval.embedder import SugarEmbedder
from ..retrieval.index import Hit, SugarIndex
from ..retrieval.store import DamagedIndexError, IndexMismatchError
from .api_errors import ApiError
from .server_metrics import Metrics

_LOG = logging.getLogger(__name__)


class ServedIndex(SugarIndex):
    """The index of a server.

    Args:
        index: What was opened.
        embedder: Embeds queries.
        metrics: Is told of new snapshots.

    Attributes:
        fault: Why it is not searched: another model has made what lies in the folder now.

    Raises:
        IndexMismatchError: The index was made with another model.
    """

    def __init__(self, index: SugarIndex, embedder: SugarEmbedder, metrics: Metrics) -> None:
        super().__init__(index.store, embedder)
        self.fault: str | None = None
        self._metrics = metrics
        self._following = threading.RLock()  # no search between a new snapshot and the look at its model

    def check(self) -> None:
        """Refuse to be used.

        Raises:
            ApiError: There is a fault.
        """
        if self.fault is not None:
            raise ApiError(503, self.fault, code="index_changed")

    def search_vectors(self, vectors: np.ndarray, top_k: int = 10, **options: Any) -> list[list[Hit]]:
        """Search as [`SugarIndex.search_vectors`] does.

        Raises:
            ApiError: There is a fault.
        """
        with self._following:
            self.check()
            return super().search_vectors(vectors, top_k, **options)

    def search(self, queries: Any, top_k: int = 10, **options: Any) -> Any:
        """Search as [`SugarIndex.search`] does.

        Raises:
            ApiError: There is a fault.
        """
        with self._following:
            self.check()
            return super().search(queries, top_k, **options)

    def follow(self) -> None:
        """Take over what was written. What cannot be read leaves what was read before."""
        with self._following:
            try:
                if not self.refresh():
                    return
                self.embedder = self.embedder  # compares the model that made it
            except IndexMismatchError as error:
                self.fault = f"the index on disk was replaced by one of another model: {error}"
            except (DamagedIndexError, OSError) as error:
                self._metrics.refreshes.labels("failed").inc()
                _LOG.warning("the index cannot be read again; the old one is still searched: %s", error)
                return
            else:
                self.fault = None
            self._metrics.refreshes.labels("changed" if self.fault is None else "refused").inc()
