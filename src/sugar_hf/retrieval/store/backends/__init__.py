"""Where vectors are searched: FAISS in this process, or Milvus."""

from .base import Rows, VectorBackend
from .registry import BACKENDS, open_backend

__all__ = ["BACKENDS", "Rows", "VectorBackend", "open_backend"]
