"""What a teacher is: frozen encoders that give a vector to each slice, and these vectors as columns of a data set."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, is_caching_enabled
from datasets.fingerprint import Hasher
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from ..model.images_sugar import BadImageError, read_image
from .labels import TEACHER_COLUMNS, VECTOR_COLUMNS
from .teacher_cache import COUNTS, columns_in_parts

logger = logging.getLogger(__name__)

Slice = str | Image.Image

UNLIMITED = 10**9  # a tokenizer without a limit has one beyond this
# They name where a model or its files came from, or how it was run: not what it computes.
IGNORED_SETTINGS = {"_name_or_path", "architectures", "dtype", "transformers_version", "_attn_implementation"}
IGNORED_PREPROCESSING = {"image_processor_type", "processor_class", "_processor_class"}


class Teacher(Protocol):
    """What the collator, the trainer and `explain` ask of a teacher.

    [`TripleTeacher`] and [`EncoderTeacher`] are teachers. One of your own needs no more than this.

    Attributes:
        show_progress: Whether `embed` shows a bar.
    """

    show_progress: bool

    @property
    def fingerprint(self) -> str:
        """What the vectors depend on, "role=digest,role=digest"; it is stored with each row."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of the columns teacher_clip, teacher_dino and teacher_text."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    def embed(self, samples: Sequence[Sequence[Slice]]) -> list[dict[str, Any]]:
        """Return the teacher columns of each sample; see [`SliceTeacher.embed`]."""


class SliceTeacher(ABC):
    """Embed slices batch by batch, and store their vectors with a data set.

    Args:
        batch_size: slices embedded at once.
        show_progress: whether to show progress bars.
    """

    #: The two encoders that texts go through, as warnings name them.
    roles = ("clip", "text")
    takes_images = True

    def __init__(self, batch_size: int = 64, show_progress: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
        self.batch_size = batch_size
        self.show_progress = show_progress
        self._reset_truncation()

    @property
    @abstractmethod
    def widths(self) -> tuple[int, int, int]:
        """Widths of the columns teacher_clip, teacher_dino and teacher_text; 0 where the first takes its place."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """What the vectors depend on, "role=digest,role=digest"."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    @abstractmethod
    def longest(self) -> dict[str, int]:
        """The most tokens of a text by role."""

    @abstractmethod
    def _vectors(self, batch: list[Any]) -> dict[str, Tensor]:
        """Return vectors by column of a batch, which holds only texts or only RGB images."""

    def embed(self, samples: Sequence[Sequence[Slice]]) -> list[dict[str, Any]]:
        """Teacher columns of samples, each given as its slices in order.

        Args:
            samples: lists of slices, each a str or a PIL image.

        Returns:
            One dict per sample with ``TEACHER_COLUMNS``: "teacher_clip" (S, d_clip), "teacher_dino" (S, d_dino, zeros
            where text) and "teacher_text" (S, d_text, zeros where image) float16 unit vectors, "teacher_is_image"
            (S,) bool, and "teacher_fingerprint".

        Raises:
            ValueError: for a sample without slices or an empty text, naming the sample.
            TypeError: for a slice that is neither a str nor a PIL image.

        Warns:
            UserWarning: with the count of the texts that were too long for a teacher and truncated.
        """
        self._reset_truncation()
        columns = self._embed(samples, self.show_progress)
        self._warn_truncation()
        return columns

    def cache(
        self,
        dataset: Dataset,
        slices: Callable[[dict[str, Any]], Sequence[Slice]],
        batch_size: int = 64,
        load_from_cache_file: bool | None = None,
        cache_dir: str | Path | None = None,
        part_rows: int = 2048,
    ) -> Dataset:
        """Add the teacher columns to a data set, computed once; columns of other teachers are replaced.

        They are stored in parts as the work goes on, and a call that was killed resumes with the first part that is
        not there. Without ``cache_dir`` parts lie beside the data set's own files, as those of ``Dataset.map``; a data
        set in memory has none and keeps its parts in memory, and one that is read from its source anew by each process
        does not find them again. In ``cache_dir`` a part is found by the contents of its rows, however they were read.

        Args:
            dataset: the data set.
            slices: gives the slices of a row, exactly those that the model's processor makes of it.
            batch_size: rows per step; within it ``self.batch_size`` slices are embedded at once.
            load_from_cache_file: whether parts of an earlier call with the same data, slices and teachers are taken
                from disk. When None, they are with ``cache_dir``, and without it as ``datasets`` is set.
            cache_dir: a folder for the parts, which need about 2 kB a slice and 1,000 dimensions of the teachers.
                Images behind paths are known by their paths: empty the folder when they change.
            part_rows: rows of a part.

        Returns:
            The data set with ``TEACHER_COLUMNS``, vectors in float16.

        Warns:
            UserWarning: with the count of the texts that were too long for a teacher and truncated.
        """
        dataset = dataset.remove_columns([name for name in TEACHER_COLUMNS if name in dataset.column_names])
        form = dataset.format
        key = Hasher.hash([self.fingerprint, slices, form])
        folder = Path(cache_dir) if cache_dir is not None else None
        if folder is None and is_caching_enabled() and dataset.cache_files:
            folder = Path(dataset.cache_files[0]["filename"]).parent
        reuse = load_from_cache_file
        if reuse is None:
            reuse = cache_dir is not None or is_caching_enabled()
        lost = folder is None or (cache_dir is None and folder.is_relative_to(tempfile.gettempdir()))
        if lost and len(dataset) > 4 * part_rows:
            logger.warning(
                f"The teacher vectors of {len(dataset)} rows will be lost with this process. Give "
                f"{type(self).__name__}.cache a folder as cache_dir, and the next call finds them or resumes where "
                "this one was stopped."
            )

        def embed_rows(rows: list[dict[str, Any]], numbers: range) -> dict[str, list[Any]]:
            self._reset_truncation()
            columns = self._embed([slices(row) for row in rows], show_progress=False, numbers=numbers)
            counts = (self._texts_seen, *(self._truncated[role] for role in self.roles))
            return {name: [row[name] for row in columns] for name in TEACHER_COLUMNS} | {
                name: [count] + [0] * (len(rows) - 1) for name, count in zip(COUNTS, counts, strict=True)
            }

        if not len(dataset):
            return dataset
        columns = columns_in_parts(
            dataset,
            embed_rows,
            key,
            folder,
            by_content=cache_dir is not None,
            reuse=reuse,
            part_rows=part_rows,
            batch_size=batch_size,
            title="Embedding slices with the teachers" if self.show_progress else None,
        )
        self._texts_seen, *truncated = (sum(columns.data[name].to_pylist()) for name in COUNTS)
        self._truncated = dict(zip(self.roles, truncated, strict=True))
        self._warn_truncation()
        rows = dataset.with_format(None)
        if rows._indices is not None:  # else the vectors would be flattened too, which have no indices
            rows = rows.flatten_indices()
        cached = concatenate_datasets([rows, columns.remove_columns(list(COUNTS))], axis=1)
        # A deterministic fingerprint, so that `datasets` can reuse later caches.
        cached._fingerprint = Hasher.hash([dataset._fingerprint, key])
        narrow = set(form["columns"]) < set(dataset.column_names)  # the order may differ
        shown = form["columns"] if narrow else cached.column_names
        return cached.with_format(form["type"], shown, form["output_all_columns"], **form["format_kwargs"])

    def _embed(
        self, samples: Sequence[Sequence[Slice]], show_progress: bool, numbers: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        images: list[tuple[int, int, Image.Image]] = []
        texts: list[tuple[int, int, str]] = []
        for position, sample in enumerate(samples):
            number = position if numbers is None else numbers[position]
            if len(sample) == 0:
                raise ValueError(f"Sample {number} has no slices: leave it out of the data set.")
            for place, part in enumerate(sample):
                if isinstance(part, str):
                    if not part.strip():
                        raise ValueError(f"Sample {number}, slice {place} is an empty text: leave the slice out.")
                    texts.append((position, place, part))
                elif isinstance(part, Image.Image) and not self.takes_images:
                    raise ValueError(
                        f"Sample {number}, slice {place} is an image, and the teacher is an encoder of texts alone. "
                        "Give a multimodal one, such as a CLIP. A better encoder of texts can stand beside it: text=."
                    )
                elif isinstance(part, Image.Image):
                    images.append((position, place, part))
                else:
                    raise TypeError(
                        f"Sample {number}, slice {place} is a {type(part).__name__}; a slice is a str or a PIL image."
                    )
        texts.sort(key=lambda entry: len(entry[2]))  # batches of similar length need little padding
        widths = dict(zip(VECTOR_COLUMNS, self.widths, strict=True))
        columns = [
            {name: np.zeros((len(sample), width), np.float16) for name, width in widths.items()}
            | {
                "teacher_is_image": np.array([not isinstance(part, str) for part in sample]),
                "teacher_fingerprint": self.fingerprint,
            }
            for sample in samples
        ]
        with tqdm(total=len(images) + len(texts), desc="Teachers", unit="slice", disable=not show_progress) as bar:
            for entries in (images, texts):
                for batch in _batches(entries, self.batch_size):
                    numbered = [
                        (position if numbers is None else numbers[position], place) for position, place, _ in batch
                    ]
                    if entries is images:
                        parts = [_picture(part, *where) for (_, _, part), where in zip(batch, numbered, strict=True)]
                    else:
                        parts = [part for _, _, part in batch]
                        self._texts_seen += len(parts)
                    for name, vectors in self._vectors(parts).items():
                        _store(columns, name, batch, vectors)
                    bar.update(len(batch))
        return columns

    def _count_truncated(self, role: str, lengths: Iterable[int]) -> None:
        """Count the texts of more tokens than an encoder takes."""
        longest = self.longest[role]
        self._truncated[role] += sum(length > longest for length in lengths)

    def _reset_truncation(self) -> None:
        self._truncated = dict.fromkeys(self.roles, 0)
        self._texts_seen = 0

    def _warn_truncation(self) -> None:
        cut = [
            f"{count} for the {role} teacher (at {self.longest[role]} tokens)"
            for role, count in self._truncated.items()
            if count
        ]
        if cut:
            warnings.warn(
                f"Of {self._texts_seen} texts these were truncated: {', '.join(cut)}. Their labels know only the "
                "beginning; split long texts into sentences to avoid it.",
                stacklevel=3,
            )


def _batches(entries: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _picture(image: Image.Image, number: int, place: int) -> Image.Image:
    try:
        return read_image(image)
    except BadImageError as error:
        raise ValueError(f"Sample {number}, slice {place}: cannot use the image: {error}") from error


def _store(columns: list[dict[str, Any]], name: str, batch: list[tuple[int, int, Any]], vectors: Tensor) -> None:
    """Put unit vectors into the rows of their slices.

    Raises:
        ValueError: for a vector that is not finite, as float16 gives them where a model's states pass its range.
    """
    if not bool(vectors.isfinite().all()):
        raise ValueError(
            f"A vector of {name} is NaN or infinite: the teacher does not bear its precision. Load the teachers with "
            "dtype=torch.float32 or torch.bfloat16."
        )
    unit = normalize(vectors.float(), dim=-1).cpu().numpy().astype(np.float16)
    for (sample, place, _), vector in zip(batch, unit, strict=True):
        columns[sample][name][place] = vector


def image_settings(processor: BaseImageProcessor) -> dict[str, Any]:
    """What an image processor does to an image."""
    return {key: value for key, value in processor.to_dict().items() if key not in IGNORED_PREPROCESSING}


def text_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a tokenizer does to a text."""
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "longest": tokenizer.model_max_length,
    }


def digest(weights: nn.Module, settings: list[Any], ignored: tuple[str, ...] = ()) -> str:
    """Return a digest of all weights but those whose names start with an ignored prefix, and of JSON settings."""
    written = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, weight in sorted(weights.state_dict().items()):
        if key.startswith(ignored):
            continue
        written.update(f"{key} {tuple(weight.shape)} {weight.dtype}".encode())
        written.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return written.hexdigest()[:16]


def without_ignored(settings: Any) -> Any:
    """Model settings without the ignored keys, in nested configurations too."""
    if isinstance(settings, dict):
        return {key: without_ignored(value) for key, value in settings.items() if key not in IGNORED_SETTINGS}
    return settings
