"""Milvus: a folder of its own with milvus-lite, or a server or cluster by its address."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...filters import typed_metadata
from ..codecs import Codec
from .base import MOST, BackendOptions, Choice, Found, Rows, VectorBackend

LOCAL_NAME = "milvus.db"
TOKEN_VARIABLE = "MILVUS_TOKEN"
# Rows and row numbers of one call; a message may have 64 MiB.
BLOCK = 1000
LONGEST_ID = 2048  # bytes


@dataclass(frozen=True, repr=False)
class MilvusOptions(BackendOptions):
    """Options of the Milvus backend, beside [`BackendOptions`]. `kind` is `"hnsw"` by default.

    Args:
        uri: Address of a server, such as `"http://localhost:19530"`. None: files in the index's folder, with
            milvus-lite, for one process at a time.
        collection: Name of the collection.
        token: Key of the server, `"user:password"` for one; by default the environment's MILVUS_TOKEN. It is never
            written to disk.
    """

    bounds: ClassVar[dict[str, tuple[int, int]]] = {"m": (1, MOST), **BackendOptions.bounds}

    kind: str = "hnsw"
    uri: str | None = None
    collection: str = "sugar"
    token: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.collection, str) or not isinstance(self.uri, str | None):
            raise ValueError("uri and collection: give texts.")

    def __repr__(self) -> str:
        uri = self.uri and public_address(self.uri)
        return f"MilvusOptions(uri={uri!r}, collection={self.collection!r}, kind={self.kind!r})"  # no token


class MilvusBackend(VectorBackend):
    """Keeps rows in a Milvus collection, with document, slice and metadata beside the vector.

    The collection's fields are `row` (primary key), `vector`, `document`, `slice` and `metadata` (as `typed_metadata`
    sorts it). Rows are written with upsert, so that a write may be repeated.

    Args:
        codec: Has to be float32: Milvus compresses by itself.
        options: See [`MilvusOptions`].
        folder: Where the files are when there is no `uri`.

    Raises:
        ImportError: pymilvus or milvus-lite is not installed.
        ValueError: Unknown options, another codec, neither `uri` nor `folder`, or a collection of other vectors.
    """

    holds_vectors = True
    filters_metadata = True

    def __init__(self, codec: Codec, options: Mapping[str, Any] | None = None, folder: Path | None = None) -> None:
        self.options = self.check_options(options or {}, codec.name)
        if self.options.uri is None and folder is None:
            raise ValueError("The Milvus backend needs a uri, or a folder for local files.")
        self.codec = codec
        self._milvus = _import_milvus(local=self.options.uri is None)
        if self.options.uri is None and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._path = None if folder is None else str((folder / LOCAL_NAME).resolve())
        token = self.options.token or os.environ.get(TOKEN_VARIABLE, "")
        self._client = self._milvus.MilvusClient(uri=self.options.uri or self._path, token=token)
        self._open_collection()

    @classmethod
    def check_options(cls, options: Mapping[str, Any], vectors: str) -> MilvusOptions:
        """Return the options; see [`MilvusOptions`]."""
        read = MilvusOptions.read(options, "Milvus")
        if vectors != "float32":
            raise ValueError(f"vectors={vectors!r}: Milvus takes vectors='float32'.")
        return read

    def _open_collection(self) -> None:
        name, client = self.options.collection, self._client
        if client.has_collection(name):
            found = {field["name"]: field for field in client.describe_collection(name)["fields"]}
            dim = int(found["vector"]["params"]["dim"]) if "vector" in found else None
            if dim != self.codec.dim or not {"row", "document", "slice", "metadata"} <= set(found):
                raise ValueError(
                    f"The Milvus collection {name!r} is not one of this index: it has the fields {', '.join(found)}, "
                    f"and vectors of {dim} dimensions instead of {self.codec.dim}. Give another `collection`."
                )
        else:
            types = self._milvus.DataType
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("row", types.INT64, is_primary=True)
            schema.add_field("vector", types.FLOAT_VECTOR, dim=self.codec.dim)
            schema.add_field("document", types.VARCHAR, max_length=LONGEST_ID)
            schema.add_field("slice", types.INT64)
            schema.add_field("metadata", types.JSON)
            graph = {"M": self.options.m, "efConstruction": self.options.ef_construction}
            index = client.prepare_index_params()
            if self.options.kind == "hnsw":
                index.add_index("vector", index_type="HNSW", metric_type="IP", params=graph)
            else:
                index.add_index("vector", index_type="FLAT", metric_type="IP", params={})
            # a search sees what was written before it
            client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
        client.load_collection(name)

    # ---- Writing ----

    def add(self, rows: Iterator[Rows]) -> None:
        """Add rows, in order; a row that is there already is replaced."""
        for some in rows:
            if some.vectors.ndim != 2 or some.vectors.shape[1] != self.codec.dim:
                raise ValueError(f"Vectors must have the shape (n, {self.codec.dim}); got {some.vectors.shape}.")
            data = [
                {
                    "row": some.first + number,
                    "vector": vector,
                    "document": document,
                    "slice": int(place),
                    "metadata": typed_metadata(metadata),
                }
                for number, (vector, document, place, metadata) in enumerate(
                    zip(some.vectors.tolist(), some.document_ids, some.slices, some.metadata, strict=True)
                )
            ]
            for start in range(0, len(data), BLOCK):
                self._client.upsert(self.options.collection, data[start : start + BLOCK])

    def remove(self, rows: np.ndarray) -> None:
        """Delete rows."""
        for start in range(0, len(rows), BLOCK):
            self._client.delete(self.options.collection, ids=rows[start : start + BLOCK].tolist())

    def trim(self, row_count: int) -> None:
        """Delete rows from number `row_count` on."""
        self._client.delete(self.options.collection, filter=f"row >= {int(row_count)}")

    # ---- Searching ----

    def _search(self, queries: np.ndarray, top_k: int, row_count: int, choice: Choice) -> Found:
        """Search. Refuses `allowed`, which would have to list rows."""
        allowed, excluded, where = choice
        if allowed is not None:
            raise ValueError("Milvus filters by itself: give `where` and `excluded` instead of `allowed`.")
        conditions = [f"row < {int(row_count)}"]
        if excluded is not None and len(excluded):
            conditions.append(f"row not in [{', '.join(map(str, excluded.tolist()))}]")
        if where is not None:
            conditions.append(where.milvus("metadata"))
        if not len(queries) or not row_count:
            return np.empty((len(queries), 0)), np.empty((len(queries), 0))
        hits = self._client.search(
            self.options.collection,
            queries.tolist(),
            filter=" and ".join(conditions),
            limit=top_k,
            anns_field="vector",
            search_params={"metric_type": "IP", "params": self._search_parameters(top_k)},
        )
        scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
        rows = np.full((len(queries), top_k), -1, dtype=np.int64)
        for number, found in enumerate(hits):
            for rank, hit in enumerate(found):
                scores[number, rank], rows[number, rank] = hit["distance"], hit["row"]
        return scores, rows

    def _search_parameters(self, top_k: int) -> dict[str, int]:
        return {"ef": max(self.options.ef_search, top_k)} if self.options.kind == "hnsw" else {}

    def drop(self) -> None:
        """Delete the collection."""
        self._client.drop_collection(self.options.collection)

    def close(self) -> None:
        """Close the connection, and local files."""
        self._client.close()
        if self.options.uri is None:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(str(self._path))


def public_address(uri: Any) -> str:
    """Return the address of a server without what is secret in it: user, password and parameters.

    Raises:
        ValueError: It is no address of which that can be told.

    >>> public_address("https://user:password@example.org:19530/stories?token=secret")
    'https://example.org:19530/stories'
    """
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*://)?([^/?#]*@)?([^/?#@]*)(/[^?#@]*)?([?#][^@]*)?", str(uri), re.S)
    if not isinstance(uri, str) or not found or not (found[3] or found[4]):
        raise ValueError(
            "uri: this is no address of a server such as 'http://localhost:19530' (it is not shown, as it may hold a "
            "password). Give user and password as token='user:password'."
        )
    return "".join(found[part] or "" for part in (1, 3, 4))


def _import_milvus(local: bool) -> Any:
    """The module pymilvus."""
    try:
        import pymilvus

        if local:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ImportError(f'The Milvus backend needs {error.name}: pip install "sugar-hf[milvus]"') from error
    return pymilvus
