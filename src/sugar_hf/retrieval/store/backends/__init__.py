"""Where vectors are searched: FAISS in this process, or Milvus."""

from .base import Rows, VectorBackend
from .faiss_backend import FaissBackend
from .milvus_backend import MilvusBackend

__all__ = ["BACKENDS", "FaissBackend", "MilvusBackend", "Rows", "VectorBackend"]

BACKENDS: dict[str, type[VectorBackend]] = {"faiss": FaissBackend, "milvus": MilvusBackend}
