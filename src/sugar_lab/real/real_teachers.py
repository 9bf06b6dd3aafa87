"""The teachers of the study: a sentence encoder, ImageNet features, and a linear map between them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import BaseImageProcessor

from sugar_hf._files import atomic_path
from sugar_hf.data import Document
from sugar_hf.structure import EncoderTeacher
from sugar_hf.structure.encoder_teacher import _sentence_transformer

from .vision_tower import EfficientNetLite

FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-3, 4))


class ImageFeatures:
    """ImageNet features of images, without their mean: what `EncoderTeacher` takes as `image`.

    Args:
        tower: Gives the features.
        processor: Prepares images for it.
        mean: What is subtracted, the mean of the features over the training images.
    """

    def __init__(self, tower: EfficientNetLite, processor: BaseImageProcessor, mean: np.ndarray | None = None) -> None:
        self.model = tower.eval().requires_grad_(False)
        self.processor = processor
        self.mean = np.zeros(tower.config.hidden_size, np.float32) if mean is None else mean
        self._known: dict[bytes, np.ndarray] = {}  # a manual shows some pictures many times

    @property
    def dim(self) -> int:
        """Width of the features."""
        return self.model.config.hidden_size

    def describe(self) -> dict[str, Any]:
        """Return what the features depend on."""
        weights = hashlib.sha256()
        for _, tensor in sorted(self.model.state_dict().items()):
            weights.update(tensor.contiguous().numpy().tobytes())
        weights.update(self.mean.tobytes())
        return {"weights": weights.hexdigest(), "image_processor": self.processor.to_dict()}

    def encode(self, samples: Sequence[Any], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """Return the features (n, dim) of n samples of one image each, less their mean."""
        return self.pooled([image for (image,) in samples], batch_size) - self.mean

    @torch.inference_mode()
    def pooled(self, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
        """Return the mean states (n, dim) of RGB images."""
        keys = [hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        names = list(new)
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            pixels = self.processor([new[name] for name in part], return_tensors="pt")["pixel_values"]
            for name, row in zip(part, self.model(pixels).pooler_output.numpy(), strict=True):
                self._known[name] = row
        return np.stack([self._known[key] for key in keys])


class MappedImages:
    """One space for texts and images: a sentence encoder's, into which a linear map brings ImageNet features.

    It stands in the place of a CLIP, where none can be had.

    Args:
        sentences: A `SentenceTransformer` for texts.
        features: For images.
        names: Names of the classifier's classes.
    """

    def __init__(self, sentences: Any, features: ImageFeatures, names: Sequence[str]) -> None:
        self.model, self.features = sentences, features
        self._classes = self._texts(names)  # (classes, dim)
        self.weight = np.zeros((features.dim + self.dim, self.dim), np.float32)
        self.offset = np.zeros(features.dim + self.dim, np.float32)
        self.bias = np.zeros(self.dim, np.float32)

    @property
    def dim(self) -> int:
        """Width of the vectors."""
        return self.model.get_embedding_dimension()

    def describe(self) -> dict[str, Any]:
        """Return what the vectors depend on."""
        written = hashlib.sha256()
        for part in (self._classes.round(3), self.weight, self.offset, self.bias):
            written.update(part.tobytes())
        return {"map": written.hexdigest(), **self.features.describe()}

    def encode(self, samples: Sequence[Any], *, batch_size: int = 32, show_progress: bool = False) -> np.ndarray:
        """Return a unit vector for each of n samples of one text or one image. (n, dim)."""
        parts = [part for (part,) in samples]
        vectors = np.zeros((len(parts), self.dim), np.float32)
        is_text = np.array([isinstance(part, str) for part in parts])
        if is_text.any():
            vectors[is_text] = self._texts([part for part in parts if isinstance(part, str)])
        if not is_text.all():
            seen = self._seen([part for part in parts if not isinstance(part, str)])
            vectors[~is_text] = unit((seen - self.offset) @ self.weight + self.bias)
        return vectors

    def fit(self, images: Sequence[Image.Image], texts: Sequence[str], groups: Sequence[str]) -> dict[str, Any]:
        """Fit the map to pairs by ridge regression, its penalty chosen by cross-validation over groups.

        Args:
            images: Images of the training split.
            texts: Their captions.
            groups: What may not be on both sides of a split, such as the page of each.

        Returns:
            Number of pairs, penalty, and R@1 and R@5 of image -> text and text -> image within the left-out folds.
        """
        self.features.mean = self.features.pooled(images).mean(0)
        seen, wanted = self._seen(images), self._texts(texts)
        folds = np.array([int(hashlib.sha256(group.encode()).hexdigest(), 16) % FOLDS for group in groups])
        found: dict[float, list[dict[str, float]]] = {penalty: [] for penalty in PENALTIES}
        for fold in range(FOLDS):
            train, test = folds != fold, folds == fold
            if train.any() and test.any():
                for penalty, (weight, offset, bias) in ridge(seen[train], wanted[train], PENALTIES).items():
                    made = unit((seen[test] - offset) @ weight + bias)
                    found[penalty].append(_recall(made @ wanted[test].T, wanted[test]))
        scores = {
            penalty: {name: float(np.mean([part[name] for part in parts])) for name in parts[0]}
            for penalty, parts in found.items()
        }
        penalty = max(scores, key=lambda each: sum(scores[each].values()))
        self.weight, self.offset, self.bias = ridge(seen, wanted, [penalty])[penalty]
        return {"pairs": len(texts), "penalty": penalty, **scores[penalty]}

    def save(self, path: Path) -> None:
        """Write the map and the mean of the features."""
        parts = {"weight": self.weight, "offset": self.offset, "bias": self.bias, "mean": self.features.mean}
        with atomic_path(path) as temporary:
            save_file({name: np.ascontiguousarray(part) for name, part in parts.items()}, temporary)

    def load(self, path: Path) -> None:
        """Read back what `save` has written."""
        parts = load_file(path)
        self.weight, self.offset, self.bias = parts["weight"], parts["offset"], parts["bias"]
        self.features.mean = parts["mean"]

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        return unit(self.model.encode(list(texts), batch_size=64, show_progress_bar=False).astype(np.float32))

    def _seen(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Features of images, and the mean vector of the class names that the classifier expects. (n, dim + d)."""
        pooled = self.features.pooled(images)
        with torch.inference_mode():
            shares = self.features.model.classifier(torch.from_numpy(pooled)).softmax(-1).numpy()
        return np.concatenate([unit(pooled - self.features.mean), shares @ self._classes], axis=1)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return the rows at length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def ridge(
    seen: np.ndarray, wanted: np.ndarray, penalties: Sequence[float]
) -> dict[float, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Fit `wanted ≈ (seen - offset) @ weight + bias` with a penalty on the squares of the weights.

    Returns:
        By penalty, weight (p, d), offset (p,) and bias (d,).
    """
    offset, bias = seen.mean(0), wanted.mean(0)
    centred = seen - offset  # (n, p), with fewer rows than columns
    values, vectors = np.linalg.eigh(centred @ centred.T)
    rotated = vectors.T @ (wanted - bias)
    return {
        penalty: (
            (centred.T @ (vectors @ (rotated / (values[:, None].clip(min=0) + penalty)))).astype(np.float32),
            offset,
            bias,
        )
        for penalty in penalties
    }


def _recall(scores: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """R@1 and R@5 both ways, in percent; equal texts are each other's hits."""
    same = texts @ texts.T > 1 - 1e-5
    found: dict[str, float] = {}
    for name, table in (("image to text", scores), ("text to image", scores.T)):
        best = np.where(same, table, -np.inf).max(1)
        ranks = (np.where(same, -np.inf, table) > best[:, None]).sum(1)
        found |= {f"{name} R@{k}": 100 * float((ranks < k).mean()) for k in (1, 5)}
    return found


def caption_pairs(documents: Sequence[Document]) -> list[tuple[Any, str, str]]:
    """Pair each image of some documents with the text right behind it, or right before it if there is none.

    Returns:
        Images as they were given, texts, and the ids of the documents.
    """
    pairs = []
    for document in documents:
        images = iter(document.content.images)
        parts = [part for message in document.content.messages for part in message["content"]]
        for number, part in enumerate(parts):
            if part["type"] != "image":
                continue
            image = next(images)
            beside = [parts[i]["text"] for i in (number + 1, number - 1) if 0 <= i < len(parts)]
            texts = [text for text in beside if text]
            if texts:
                pairs.append((image, texts[0], document.id))
    return pairs


def sentence_encoder(folder: Path) -> Any:
    """Load a model of sentence-transformers."""
    return _sentence_transformer()(str(folder), device="cpu")


def study_teacher(mapped: MappedImages, batch_size: int = 64) -> EncoderTeacher:
    """Return the teacher: the sentence encoder for texts, features for images, the map across."""
    return EncoderTeacher(mapped, image=mapped.features, batch_size=batch_size, show_progress=False)
