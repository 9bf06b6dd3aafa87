"""The encoders that Sugar is compared with: CLIP-type dual encoders and BLIP-2."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    BaseImageProcessor,
    BatchEncoding,
    BatchFeature,
    Blip2ForImageTextRetrieval,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Siglip2Model,
    SiglipModel,
)

from ..data import BadSampleError, Document
from ..model.backbone_sugar import evaluation_mode
from ..model.embedding_sugar import Faults, embed_in_batches
from ..retrieval.embedder import DocumentRun, checked_size, distinct, full_name, short_name, weights_digest

__all__ = ["Blip2Encoder", "DualEncoder"]

logger = logging.getLogger(__name__)

BATCH_SIZE = 8
T = TypeVar("T")
#: They take the state of the last position, and were trained with texts padded to one length.
PADDED = (SiglipModel, Siglip2Model)


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
        run = DocumentRun(documents, skipped, progress)
        texts = run.each(document_text)
        uses = {i: self._kind(bool(run.documents[i].content.images), bool(text)) for i, text in texts.items()}

        def prepare(numbers: list[int]) -> tuple[list[Parts], Faults]:
            use_images, use_text = uses[numbers[0]]
            batch: list[Parts] = []
            faults: dict[int, ValueError] = {}
            for i in numbers:
                try:
                    images = document_images(run.documents[i]) if use_images else []
                    batch.append(Parts(texts[i] if use_text else "", images))
                except BadSampleError as error:
                    faults[i] = error
            return batch, faults

        def embed(numbers: list[int], batch: list[Parts]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
            if batch[0].text:
                self._count_truncated([parts.text for parts in batch])
            yield numbers, self._embed(batch, size)

        windows = [
            list(chunk)
            for kind in dict.fromkeys(uses.values())
            for chunk in cut(sorted((i for i in uses if uses[i] == kind), key=lambda i: -len(texts[i])), size)
        ]
        with evaluation_mode(self.model), torch.inference_mode():
            found = embed_in_batches(windows, prepare, embed, run.report, ahead=self.model.device.type != "cpu")
        return run.finish(found)

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


class DualEncoder(BatchEncoder):
    """An image tower and a text tower with one space: CLIP, SigLIP and their like. One vector a document.

    The image vector of a document is the normalised mean of its images' unit vectors, its text vector the unit vector
    of its texts joined by one space.

    - `"image"`: the image vector, or the text vector of a document without images.
    - `"text"`: the text vector, or the image vector of a document without texts.
    - `"average"`: both side by side, divided by sqrt(2); what a document lacks is replaced by what it has. The dot
      product of two documents that have both is the mean of their image-image and text-text similarities; with a
      document that has text alone it is the mean of image-text and text-text.

    These are the rows "CLIP image", "CLIP text" and "CLIP average" of the paper's retrieval-augmented FVQA.

    Args:
        model: A model with `get_image_features` and `get_text_features`.
        image_processor: Its image processor.
        tokenizer: Its tokenizer.
        mode: `"average"`, `"image"` or `"text"`.
        max_length: The most tokens of a text; what the tokenizer and the model can take when `None`.
        checkpoint: Where the model came from; what its configuration says when `None`.

    Raises:
        ValueError: There is no such mode, or texts cannot have `max_length` tokens.
    """

    modes = ("average", "image", "text")

    def __init__(
        self,
        model: PreTrainedModel,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        mode: str = "average",
        max_length: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        most = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
        if isinstance(model, PADDED) and max_length not in (None, most):
            raise ValueError(f"max_length={max_length}: the model knows texts padded to {most} tokens. Leave it out.")
        super().__init__(model, image_processor, tokenizer, mode, most, max_length, checkpoint)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        mode: str = "average",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
    ) -> "DualEncoder":
        """Load model, image processor and tokenizer.

        Args:
            name_or_path: Hub name or folder.
            mode: As above.
            device: Where it runs; the accelerator if there is one.
            dtype: Data type of the weights; the checkpoint's when `None`.
            max_length: As above.

        Raises:
            ValueError: The checkpoint lacks weights, or `mode` or `max_length` cannot be.
        """
        parts = load_parts(AutoModel, name_or_path, device, dtype, "Use a complete checkpoint.")
        return cls(*parts, mode, max_length, str(name_or_path))

    def _kind(self, images: bool, text: bool) -> tuple[bool, bool]:
        if self.mode == "image":
            return images, not images
        if self.mode == "text":
            return not text, text
        return images, text

    def _embed(self, batch: list[Parts], batch_size: int) -> list[np.ndarray]:
        image = self._image_vectors([parts.images for parts in batch], batch_size) if batch[0].images else None
        text = self._text_vectors([parts.text for parts in batch]) if batch[0].text else None
        sides = [vectors for vectors in (image, text) if vectors is not None]
        vectors = torch.cat([sides[0], sides[-1]], dim=-1) / math.sqrt(2) if self.mode == "average" else sides[0]
        return to_arrays(vectors.unsqueeze(1))  # (B, 1, dim)

    def _image_vectors(self, images: list[list[Image.Image]], batch_size: int) -> Tensor:
        """The image vectors of documents. (B, d) float32."""
        flat = [image for some in images for image in some]
        units = torch.cat([self._unit_images(chunk) for chunk in cut(flat, batch_size)])
        return torch.stack(
            [normalize(some.mean(dim=0), dim=-1) for some in units.split([len(some) for some in images])]
        )

    def _unit_images(self, images: Sequence[Image.Image]) -> Tensor:
        features: Any = self.model.get_image_features(**self._pixels(list(images)))
        return self._units(features.pooler_output)

    def _text_vectors(self, texts: list[str]) -> Tensor:
        tokens = self._tokens(texts, padding="max_length" if isinstance(self.model, PADDED) else True)
        return self._units(self.model.get_text_features(**tokens).pooler_output)

    def _units(self, features: Tensor) -> Tensor:
        if features.ndim != 2:
            raise ValueError(
                f"{self.name}: features of shape {tuple(features.shape)}, where (samples, width) is expected. "
                "Use a model with one vector for an image and for a text, such as CLIP or SigLIP."
            )
        return normalize(features.float(), dim=-1)


class Blip2Encoder(BatchEncoder):
    """BLIP-2's first stage: its image tower and Q-Former, without a language model.

    - `"itc"`, image-text contrast, several vectors a document: the 32 queries of each image, each a unit vector, and
      one unit vector of the texts joined by one space; a document with both has all of them. The similarity of two
      documents is the largest dot product of their vectors, as in the model's own score of an image and a text.
    - `"multimodal"`, one vector a document: the first output of the Q-Former, made a unit vector, that has seen an
      image and the texts together ("multimodal" in LAVIS's `extract_features`), an image alone, or the texts alone.
      The model takes one image; of several, each is seen with the texts, and the vector is the normalised mean.

    Args:
        model: The model.
        image_processor: Its image processor.
        tokenizer: Its tokenizer.
        mode: `"itc"` or `"multimodal"`.
        max_length: The most tokens of a text; what the tokenizer and the model can take when `None`.
        checkpoint: Where the model came from; what its configuration says when `None`.

    Raises:
        ValueError: There is no such mode, or texts cannot have `max_length` tokens.
    """

    modes = ("itc", "multimodal")
    model: Blip2ForImageTextRetrieval

    def __init__(
        self,
        model: Blip2ForImageTextRetrieval,
        image_processor: BaseImageProcessor,
        tokenizer: PreTrainedTokenizerBase,
        mode: str = "itc",
        max_length: int | None = None,
        checkpoint: str | None = None,
    ) -> None:
        most = min(tokenizer.model_max_length, model.config.qformer_config.max_position_embeddings)
        super().__init__(model, image_processor, tokenizer, mode, most, max_length, checkpoint)
        self.dtype = model.vision_model.dtype  # queries and Q-Former stay in float32

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        mode: str = "itc",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        max_length: int | None = None,
    ) -> "Blip2Encoder":
        """Load model, image processor and tokenizer; arguments are those of [`DualEncoder.from_pretrained`].

        Raises:
            ValueError: The checkpoint lacks weights, as one for generation does, or `mode` or `max_length` cannot be.
        """
        mend = "Use a checkpoint of BLIP-2 for image-text retrieval, such as Salesforce/blip2-itm-vit-g."
        parts = load_parts(Blip2ForImageTextRetrieval, name_or_path, device, dtype, mend)
        return cls(*parts, mode, max_length, str(name_or_path))

    def match(self, pairs: Sequence[tuple[Document, Document]], batch_size: int = 8) -> np.ndarray:
        """Probabilities that texts and images belong together, by the image-text matching head.

        Args:
            pairs: A document with text and a document with one image each. Only the text of the one and the image of
                the other are looked at.
            batch_size: Pairs in one forward pass.

        Returns:
            (pairs,) float32.

        Raises:
            BadSampleError: A document has no text, not one image, or a broken one; the error names it.
            ValueError: `batch_size` is less than 1, or a probability is not a number.
        """
        checked_size(batch_size)
        texts, text_places = distinct([text for text, _ in pairs])
        images, image_places = distinct([image for _, image in pairs])
        strings = [_only_text(document) for document in texts]
        self._count_truncated(strings)
        for document in images:
            _check_one_image(document)
        found = np.zeros(len(pairs), np.float32)
        order = sorted(range(len(pairs)), key=lambda i: image_places[i])  # the pairs of an image share a batch
        with evaluation_mode(self.model), torch.inference_mode():
            for chunk in cut(order, batch_size):
                shown, rows = distinct([images[image_places[i]] for i in chunk])
                seen = self._see([document_images(document)[0] for document in shown])[rows]
                states = self._query(seen, self._tokens([strings[text_places[i]] for i in chunk]))
                logits = self.model.itm_head(states.to(self.model.itm_head.weight.dtype)).mean(dim=1)  # (pairs, 2)
                found[list(chunk)] = logits.float().softmax(dim=-1)[:, 1].cpu().numpy()
        if np.isnan(found).any():
            document = pairs[int(np.isnan(found).argmax())][1]
            raise ValueError(
                f"{self.name}: no number for document {document.id!r}. Check the model's weights and dtype."
            )
        return found

    def _embed(self, batch: list[Parts], batch_size: int) -> list[np.ndarray]:
        if self.mode == "itc":
            return self._contrast(batch, batch_size)
        if not batch[0].images:
            states = self._read(self._tokens([parts.text for parts in batch]))
            return to_arrays(normalize(states.float(), dim=-1).unsqueeze(1))
        shown = [(image, parts.text) for parts in batch for image in parts.images]
        units = []
        for chunk in cut(shown, batch_size):
            seen = self._see([image for image, _ in chunk])
            tokens = self._tokens([text for _, text in chunk]) if batch[0].text else None
            units.append(normalize(self._query(seen, tokens)[:, 0].float(), dim=-1))
        of_documents = torch.cat(units).split([len(parts.images) for parts in batch])
        return to_arrays([normalize(some.mean(dim=0, keepdim=True), dim=-1) for some in of_documents])

    def _contrast(self, batch: list[Parts], batch_size: int) -> list[np.ndarray]:
        found: list[list[Tensor]] = [[] for _ in batch]
        if batch[0].images:
            flat = [image for parts in batch for image in parts.images]
            states = torch.cat([self._query(self._see([*chunk])) for chunk in cut(flat, batch_size)])  # (N, 32, width)
            project = self.model.vision_projection
            vectors = normalize(project(states.to(project.weight.dtype)).float(), dim=-1)
            for rows, some in zip(found, vectors.split([len(parts.images) for parts in batch]), strict=True):
                rows.append(some.flatten(0, 1))
        if batch[0].text:
            project = self.model.text_projection
            states = self._read(self._tokens([parts.text for parts in batch]))
            vectors = normalize(project(states.to(project.weight.dtype)).float(), dim=-1)
            for rows, vector in zip(found, vectors, strict=True):
                rows.append(vector.unsqueeze(0))
        return to_arrays([torch.cat(rows) for rows in found])

    def _see(self, images: list[Image.Image]) -> Tensor:
        """The patches of images. (N, patches, width of the image tower)."""
        return self.model.vision_model(**self._pixels(images)).last_hidden_state

    def _query(self, seen: Tensor, tokens: BatchEncoding | None = None) -> Tensor:
        """The query outputs for images, which read the texts too if there are any. (N, 32, width of the Q-Former)."""
        queries = self.model.query_tokens.expand(len(seen), -1, -1)
        count = queries.shape[1]
        mask = None
        inputs = queries
        if tokens is not None:
            inputs = self.model.embeddings(input_ids=tokens["input_ids"], query_embeds=queries)
            mask = torch.cat([tokens["attention_mask"].new_ones(len(seen), count), tokens["attention_mask"]], dim=1)
        output = self.model.qformer(
            query_embeds=inputs,
            query_length=count,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        )
        return output.last_hidden_state[:, :count]

    def _read(self, tokens: BatchEncoding) -> Tensor:
        """The first output for texts alone, their CLS token. (B, width of the Q-Former)."""
        inputs = self.model.embeddings(input_ids=tokens["input_ids"])
        output = self.model.qformer(query_embeds=inputs, query_length=0, attention_mask=tokens["attention_mask"])
        return output.last_hidden_state[:, 0]


def _only_text(document: Document) -> str:
    text = document_text(document)
    if not text:
        mend = "Give pairs of a document with text and a document with an image"
        raise BadSampleError("it has no text", field="document", sample=document.id, mend=mend)
    return text


def _check_one_image(document: Document) -> None:
    count = len(document.content.images)
    if count != 1:
        mend = "Give pairs of a document with text and a document with one image"
        raise BadSampleError(f"it has {count} images", field="document", sample=document.id, mend=mend)


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
