"""The sample schema, safe images, and readers for the formats that people have."""

from ..model.samples_sugar import Sample
from .documents import Document, as_document, to_row, to_sample
from .errors import BadSampleError, SkippedRowsWarning
from .pair_rows import PAIR_FEATURES, read_pair, to_samples
from .readers import (
    ReadOptions,
    load_dataset_file,
    read_chat,
    read_documents,
    read_llava,
    read_mmc4,
    read_obelics,
    read_pairs,
)
from .relevance import RetrievalSet
from .schema import CHAT_ROLES, DOCUMENT_ROLE, FEATURES, image_part, load_image, resolve_image, text_part, validate_row

__all__ = [
    "CHAT_ROLES",
    "DOCUMENT_ROLE",
    "FEATURES",
    "PAIR_FEATURES",
    "BadSampleError",
    "Document",
    "ReadOptions",
    "RetrievalSet",
    "Sample",
    "SkippedRowsWarning",
    "as_document",
    "image_part",
    "load_dataset_file",
    "load_image",
    "read_chat",
    "read_documents",
    "read_llava",
    "read_mmc4",
    "read_obelics",
    "read_pair",
    "read_pairs",
    "resolve_image",
    "text_part",
    "to_row",
    "to_sample",
    "to_samples",
    "validate_row",
]
