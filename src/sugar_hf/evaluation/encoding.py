"""What encoders share: documents in batches of one kind, texts within a limit, and what becomes of bad documents."""

import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    BatchEncoding,
    BatchFeature,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..data import BadSampleError, Document
from ..model.backbone_sugar import evaluation_mode
from ..model.embedding_sugar import Faults, distinct, embed_in_batches
from ..retrieval.embedder import checked_size, full_name, of_document, short_name
from ..retrieval.fingerprint import weights_digest

logger = logging.getLogger(__name__)

BATCH_SIZE = 8
T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What an encoder uses of a document: its text, empty if it uses none, and its decoded images."""

    text: str
    images: list[Image.Image]


class BatchEncoder(ABC):
    """A model that embeds texts and images, with its image processor and its tokenizer.

    Args:
        model: The model; left as it is.
        image_processor: Its image processor.
        tokenizer: Its tokenizer.
        mode: How a document becomes vectors, one of `modes`.
        most: The most tokens of a text that tokenizer and model can take.
        max_length: The most tokens of a text, `most` when `None`. Longer ones are cut, and counted in `truncated`.
        checkpoint: Where the model came from; what its configuration says when `None`.

    Attributes:
        name: Checkpoint and mode.
        truncated: The documents whose text was cut so far.
        dtype: Data type of the image tower.

    Raises:
        ValueError: There is no such mode, or texts cannot have `max_length` tokens.
    """

    modes: tuple[str, ...]

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        mode: str,
        most: int,
        max_length: int | None,
        checkpoint: str | None,
    ) -> None:
        if mode not in self.modes:
            raise ValueError(f"mode={mode!r}: a {type(self).__name__} has {', '.join(self.modes)}.")
        if max_length is not None and not 1 <= max_length <= most:
            raise ValueError(f"max_length={max_length}: give 1 to {most}, the most tokens that the model takes.")
        self.model = model
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.mode = mode
        self.max_length = max_length or most
        self.truncated = 0
        self.dtype = model.dtype
        self.checkpoint = full_name(checkpoint or str(model.config.name_or_path))
        self.name = f"{short_name(self.checkpoint)} ({mode})"

    def embed_documents(
        self,
        documents: Sequence[Document],
        *,
        batch_size: int | None = None,
        skipped: list[BadSampleError] | None = None,
        progress: tqdm | None = None,
    ) -> list[np.ndarray | None]:
        """Embed documents; one that is there several times is processed once.

        Documents of one kind (images, text, both) share batches, those with texts of similar lengths first. The images
        of one batch only are in memory.

        Args:
            documents: Some documents. The texts of system messages are left out.
            batch_size: Documents, and images, in one forward pass; 8 when `None`.
            skipped: A list to which the error of each document that cannot be embedded is appended, in the order of
                the documents.
            progress: A bar that is moved by the number of documents.

        Returns:
            For each document (V, dim) float32 unit vectors; `None` if it was skipped.

        Raises:
            BadSampleError: A document cannot be embedded and `skipped` is `None`; the error names document and field.
            ValueError: `batch_size` is less than 1.
        """
        size = checked_size(BATCH_SIZE if batch_size is None else batch_size)
        documents, places = distinct(documents)
        errors: dict[int, BadSampleError] = {}
        texts: dict[int, str] = {}
        kinds: dict[tuple[bool, bool], list[int]] = defaultdict(list)

        def report(faults: Faults, count: int) -> None:
            for i, error in sorted(faults.items()):
                errors[i] = of_document(error, documents[i])
                if skipped is None:
                    raise errors[i] from error.__cause__
            if progress is not None and count:
                progress.update(count)

        def prepare(numbers: list[int]) -> tuple[list[Parts], Faults]:
            use_images, use_text = uses[numbers[0]]
            batch: list[Parts] = []
            faults: dict[int, ValueError] = {}
            for i in numbers:
                try:
                    images = document_images(documents[i]) if use_images else []
                    batch.append(Parts(texts[i] if use_text else "", images))
                except BadSampleError as error:
                    faults[i] = error
            return batch, faults

        def run(numbers: list[int], batch: list[Parts]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
            if batch[0].text:
                self._count_truncated([parts.text for parts in batch])
            yield numbers, self._embed(batch, size)

        for i, document in enumerate(documents):
            try:
                texts[i] = document_text(document)
                kinds[self._kind(bool(document.content.images), bool(texts[i]))].append(i)
            except BadSampleError as error:
                report({i: error}, 1)
        uses = {i: kind for kind, numbers in kinds.items() for i in numbers}
        windows = [
            list(chunk)
            for numbers in kinds.values()
            for chunk in cut(sorted(numbers, key=lambda i: -len(texts[i])), size)
        ]
        with evaluation_mode(self.model), torch.inference_mode():
            found = embed_in_batches(windows, prepare, run, report, ahead=self.model.device.type != "cpu")
        if progress is not None and len(places) > len(documents):
            progress.update(len(places) - len(documents))
        if skipped is not None:
            skipped.extend(errors[i] for i in sorted(errors))
        return [found.get(i) for i in places]

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on, for JSON: checkpoint, digest of its weights, mode, dtype, limit of texts."""
        return {
            "encoder": type(self).__name__,
            "checkpoint": self.checkpoint,
            "weights": weights_digest(self.model),
            "mode": self.mode,
            "dtype": str(self.dtype).removeprefix("torch."),
            "max_text_tokens": self.max_length,
        }

    def notes(self) -> dict[str, Any]:
        """What a reader of results should know: how many documents had their text cut so far, and at what length."""
        return {"truncated": self.truncated, "max_text_tokens": self.max_length}

    @abstractmethod
    def _embed(self, batch: list[Parts], batch_size: int) -> list[np.ndarray]:
        """Embed documents of one kind, at most `batch_size` images at once. (V, dim) for each."""

    def _kind(self, images: bool, text: bool) -> tuple[bool, bool]:
        """Whether the images and the text of a document are used, of one that has images or text."""
        return images, text

    def _count_truncated(self, texts: list[str]) -> None:
        lengths = [len(self.tokenizer(text, verbose=False)["input_ids"]) for text in texts]
        count = sum(length > self.max_length for length in lengths)
        if count and not self.truncated:
            logger.warning(
                f"{self.name}: texts of more than {self.max_length} tokens are cut; `truncated` counts the documents."
            )
        self.truncated += count

    def _tokens(self, texts: list[str], padding: bool | str = True) -> BatchEncoding:
        """Tokens on the model's device, padded and no more than `max_length`."""
        tokens = self.tokenizer(
            texts, padding=padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return tokens.to(self.model.device)

    def _pixels(self, images: list[Image.Image]) -> BatchFeature:
        features = self.image_processor(images=images, return_tensors="pt")
        return features.to(self.model.device, dtype=self.dtype)  # whole numbers stay what they are


def load_parts(
    model_class: Any, name: str | Path, device: str | torch.device | None, dtype: str | torch.dtype | None, mend: str
) -> tuple[Any, BaseImageProcessor, PreTrainedTokenizerBase]:
    """Load a model, its image processor and its tokenizer.

    Args:
        model_class: What loads the model.
        name: Hub name or folder.
        device: Where it runs; the accelerator if there is one.
        dtype: Data type of the weights; the checkpoint's when `None`.
        mend: What to do about a checkpoint that lacks weights.

    Raises:
        ValueError: The checkpoint lacks weights, which would be random.
        RuntimeError: Weights are of another shape than its configuration says.
    """
    dtype = "auto" if dtype is None else dtype
    model, report = model_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    lacking = sorted(report["missing_keys"])
    if lacking:
        shown = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise ValueError(f"{name} lacks {len(lacking)} weights, which would be random: {shown}. {mend}")
    if device is None:
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    return model.to(device), AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def document_text(document: Document) -> str:
    """The texts of a document, but those of system messages, joined by one space; empty if there are none.

    Raises:
        BadSampleError: The document is malformed.
    """
    messages = [message for message in document.content.messages if message["role"] != "system"]
    parts = chain.from_iterable(message["content"] for message in messages)
    return " ".join(part["text"].strip() for part in parts if part["type"] == "text")


def document_images(document: Document) -> list[Image.Image]:
    """The images of a document, decoded, in reading order.

    Raises:
        BadSampleError: The document is malformed, or an image is missing or broken.
    """
    loaded = document.load()
    if isinstance(loaded[0], dict):
        parts = chain.from_iterable(message["content"] for message in loaded)
        return [part["image"] for part in parts if part["type"] == "image"]
    return [part for part in loaded if isinstance(part, Image.Image)]


def cut(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Pieces of `size` items; the last may be shorter."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def to_arrays(vectors: Iterable[Tensor]) -> list[np.ndarray]:
    """(V, dim) float32 arrays of tensors on any device."""
    return [rows.float().cpu().numpy() for rows in vectors]
