"""Frozen teachers of the triple kernel (eq. 4), and their slice embeddings as columns of a data set."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, is_caching_enabled
from datasets.fingerprint import Hasher
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    CLIPModel,
    Dinov2Model,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..model.images_sugar import BadImageError, read_image
from .labels import TEACHER_COLUMNS
from .teacher_cache import COUNTS, columns_in_parts
from .text_pooling import TextPooling, most_tokens, read_pooling

logger = logging.getLogger(__name__)

Slice = str | Image.Image

UNLIMITED = 10**9  # a tokenizer without a limit has one beyond this
# They name where a model or its files came from, or how it was run: not what it computes.
IGNORED_SETTINGS = {"_name_or_path", "architectures", "dtype", "transformers_version", "_attn_implementation"}
IGNORED_PREPROCESSING = {"image_processor_type", "processor_class", "_processor_class"}


class TripleTeacher:
    """CLIP for image-text pairs, DINOv2 for image pairs, a sentence encoder for text pairs.

    Args:
        clip: CLIP model, with its image processor and tokenizer.
        clip_image_processor: for ``clip``.
        clip_tokenizer: for ``clip``.
        dino: image encoder; its CLS vector is taken.
        dino_image_processor: for ``dino``.
        text: text encoder; its vector is made by ``text_pooling``.
        text_tokenizer: for ``text``.
        batch_size: slices embedded at once.
        show_progress: whether to show progress bars.
        text_pooling: from the states of the text encoder to its vector; the CLS vector when None.
    """

    def __init__(
        self,
        clip: CLIPModel,
        clip_image_processor: BaseImageProcessor,
        clip_tokenizer: PreTrainedTokenizerBase,
        dino: Dinov2Model,
        dino_image_processor: BaseImageProcessor,
        text: PreTrainedModel,
        text_tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 64,
        show_progress: bool = True,
        text_pooling: TextPooling | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more; got {batch_size}.")
        for role, model, kind in (("clip", clip, CLIPModel), ("dino", dino, Dinov2Model)):
            if not isinstance(model, kind):
                raise TypeError(f"The {role} teacher must be a {kind.__name__}; got a {type(model).__name__}.")
        if text.config.is_encoder_decoder:
            raise TypeError(
                f"The text teacher must be an encoder or a decoder; a {type(text).__name__} is both, and has no state "
                "of a text alone."
            )
        self.clip = clip.eval().requires_grad_(False)
        self.clip_image_processor = clip_image_processor
        self.clip_tokenizer = clip_tokenizer
        self.dino = dino.eval().requires_grad_(False)
        self.dino_image_processor = dino_image_processor
        self.text = text.eval().requires_grad_(False)
        self.text_tokenizer = text_tokenizer
        self.batch_size = batch_size
        self.show_progress = show_progress
        self.text_pooling = text_pooling or TextPooling()
        self._truncated = {"clip": 0, "text": 0}
        self._texts_seen = 0

    @classmethod
    def from_pretrained(
        cls,
        clip: str = "openai/clip-vit-large-patch14",
        dino: str = "facebook/dinov2-base",
        text: str = "BAAI/bge-base-en-v1.5",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 64,
        show_progress: bool = True,
        text_pooling: str | None = None,
    ) -> TripleTeacher:
        """Load the teachers from the Hub or from local folders.

        The text encoder is read as its sentence-transformers files say (pooling, length, default prompt), or by its
        CLS vector where it has none; ``text_pooling``, one of ``"cls"``, ``"mean"``, ``"max"`` and ``"lasttoken"``,
        wins over both.

        Raises:
            ValueError: when a checkpoint lacks weights, naming them; the teacher would be partly random. When the text
                encoder is to be read in a way that is not supported.
            TypeError: when ``clip`` or ``dino`` is another kind of model.
        """
        pooling = read_pooling(text, text_pooling)
        return cls(
            clip=_load(clip, "clip", dtype),
            clip_image_processor=AutoImageProcessor.from_pretrained(clip),
            clip_tokenizer=AutoTokenizer.from_pretrained(clip),
            dino=_load(dino, "dino", dtype),
            dino_image_processor=AutoImageProcessor.from_pretrained(dino),
            text=_load(text, "text", dtype, pooling.subfolder),
            text_tokenizer=AutoTokenizer.from_pretrained(text, subfolder=pooling.subfolder),
            batch_size=batch_size,
            show_progress=show_progress,
            text_pooling=pooling,
        ).to(device)

    def to(self, device: torch.device | str) -> TripleTeacher:
        """Move the teachers; returns self."""
        for model in (self.clip, self.dino, self.text):
            model.to(device)
        return self

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of the columns teacher_clip, teacher_dino and teacher_text."""
        return self.clip.config.projection_dim, self.dino.config.hidden_size, self.text.config.hidden_size

    @cached_property
    def fingerprint(self) -> str:
        """What the embeddings depend on, "clip=...,dino=...,text=...": settings, weights and preprocessing.

        The path of a checkpoint does not count, its contents do. So does the precision, which changes the weights.
        """
        preprocessing = {
            "clip": [_image_settings(self.clip_image_processor), _text_settings(self.clip_tokenizer)],
            "dino": [_image_settings(self.dino_image_processor)],
            "text": [_text_settings(self.text_tokenizer)],
        }
        if pooling := self.text_pooling.settings(self.text, self.text_tokenizer):
            preprocessing["text"].append(pooling)
        models = {"clip": self.clip, "dino": self.dino, "text": self.text}
        return ",".join(f"{role}={_digest(model, preprocessing[role])}" for role, model in models.items())

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
                f"The teacher vectors of {len(dataset)} rows will be lost with this process. Give TripleTeacher.cache "
                "a folder as cache_dir, and the next call finds them or resumes where this one was stopped."
            )

        def embed_rows(rows: list[dict[str, Any]], numbers: range) -> dict[str, list[Any]]:
            self._reset_truncation()
            columns = self._embed([slices(row) for row in rows], show_progress=False, numbers=numbers)
            counts = (self._texts_seen, self._truncated["clip"], self._truncated["text"])
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
        self._texts_seen, clip, text = (sum(columns.data[name].to_pylist()) for name in COUNTS)
        self._truncated = {"clip": clip, "text": text}
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
                elif isinstance(part, Image.Image):
                    images.append((position, place, part))
                else:
                    raise TypeError(
                        f"Sample {number}, slice {place} is a {type(part).__name__}; a slice is a str or a PIL image."
                    )
        texts.sort(key=lambda entry: len(entry[2]))  # batches of similar length need little padding
        columns = [
            {
                "teacher_clip": np.zeros((len(sample), self.clip.config.projection_dim), np.float16),
                "teacher_dino": np.zeros((len(sample), self.dino.config.hidden_size), np.float16),
                "teacher_text": np.zeros((len(sample), self.text.config.hidden_size), np.float16),
                "teacher_is_image": np.array([not isinstance(part, str) for part in sample]),
                "teacher_fingerprint": self.fingerprint,
            }
            for sample in samples
        ]
        with tqdm(total=len(images) + len(texts), desc="Teachers", unit="slice", disable=not show_progress) as bar:
            for batch in _batches(images, self.batch_size):
                pictures = [
                    _picture(image, position if numbers is None else numbers[position], place)
                    for position, place, image in batch
                ]
                _store(columns, "teacher_clip", batch, self._clip_images(pictures))
                _store(columns, "teacher_dino", batch, self._dino_images(pictures))
                bar.update(len(batch))
            for batch in _batches(texts, self.batch_size):
                strings = [text for _, _, text in batch]
                self._texts_seen += len(strings)
                _store(columns, "teacher_clip", batch, self._clip_texts(strings))
                _store(columns, "teacher_text", batch, self._text_texts(strings))
                bar.update(len(batch))
        return columns

    @torch.inference_mode()
    def _clip_images(self, images: list[Image.Image]) -> Tensor:
        pixels = self.clip_image_processor(images=images, return_tensors="pt")["pixel_values"]
        return self.clip.get_image_features(pixel_values=pixels.to(self.clip.device, self.clip.dtype)).pooler_output

    @torch.inference_mode()
    def _dino_images(self, images: list[Image.Image]) -> Tensor:
        pixels = self.dino_image_processor(images=images, return_tensors="pt")["pixel_values"]
        return self.dino(pixel_values=pixels.to(self.dino.device, self.dino.dtype)).last_hidden_state[:, 0]

    @torch.inference_mode()
    def _clip_texts(self, texts: list[str]) -> Tensor:
        tokens = self._tokens("clip", self.clip_tokenizer, texts, self._longest["clip"])
        return self.clip.get_text_features(
            input_ids=tokens["input_ids"].to(self.clip.device),
            attention_mask=tokens["attention_mask"].to(self.clip.device),
        ).pooler_output

    @torch.inference_mode()
    def _text_texts(self, texts: list[str]) -> Tensor:
        texts = [self.text_pooling.text(text) for text in texts]
        tokens = self._tokens("text", self.text_tokenizer, texts, self._longest["text"]).to(self.text.device)
        return self.text_pooling.pool(self.text(**tokens).last_hidden_state, tokens["attention_mask"])

    def _tokens(self, role: str, tokenizer: PreTrainedTokenizerBase, texts: list[str], longest: int) -> Any:
        """Padded tokens; texts over the length are truncated and counted."""
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        self._truncated[role] += sum(length > longest for length in lengths)
        limit = {"truncation": True, "max_length": longest} if longest < UNLIMITED else {}
        return tokenizer(texts, padding=True, return_tensors="pt", **limit)

    @cached_property
    def _longest(self) -> dict[str, int]:
        """The most tokens of a text by teacher."""
        text = most_tokens(self.text, self.text_tokenizer)
        own = self.text_pooling.longest
        return {
            "clip": self.clip.config.text_config.max_position_embeddings,
            "text": text if own is None else min(own, text),
        }

    def _reset_truncation(self) -> None:
        self._truncated = {"clip": 0, "text": 0}
        self._texts_seen = 0

    def _warn_truncation(self) -> None:
        limits = self._longest
        cut = [
            f"{count} for the {role} teacher (at {limits[role]} tokens)"
            for role, count in self._truncated.items()
            if count
        ]
        if cut:
            warnings.warn(
                f"Of {self._texts_seen} texts these were truncated: {', '.join(cut)}. Their labels know only the "
                "beginning; split long texts into sentences to avoid it.",
                stacklevel=3,
            )


def _load(name: str, role: str, dtype: torch.dtype, subfolder: str = "") -> Any:
    model, report = AutoModel.from_pretrained(name, dtype=dtype, subfolder=subfolder, output_loading_info=True)
    # A missing pooler is no harm: the CLS vector is read before it.
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(
            f"The {role} teacher {name!r} lacks {len(missing)} weights, which would be random: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}. Use a complete checkpoint."
        )
    return model


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


def _image_settings(processor: BaseImageProcessor) -> dict[str, Any]:
    return {key: value for key, value in processor.to_dict().items() if key not in IGNORED_PREPROCESSING}


def _text_settings(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocabulary": tokenizer.get_vocab(),
        "special_tokens": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "longest": tokenizer.model_max_length,
    }


def _digest(model: PreTrainedModel, preprocessing: list[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    settings = _without_ignored(model.config.to_dict())
    digest.update(json.dumps([settings, preprocessing], sort_keys=True, default=str).encode())
    for key, weight in sorted(model.state_dict().items()):
        if key.startswith("pooler."):
            continue  # not used, and random where the checkpoint has none
        digest.update(f"{key} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _without_ignored(settings: Any) -> Any:
    """Model settings without the ignored keys, in nested configurations too."""
    if isinstance(settings, dict):
        return {key: _without_ignored(value) for key, value in settings.items() if key not in IGNORED_SETTINGS}
    return settings
