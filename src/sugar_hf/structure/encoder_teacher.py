"""Any encoder as the teacher: a model of sentence-transformers, or an embedder of ours."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from .slice_teacher import UNLIMITED, Slice, SliceTeacher, digest, image_settings, text_settings, without_ignored

HINT = "This teacher needs sentence-transformers: pip install sentence-transformers"


@runtime_checkable
class SliceEncoder(Protocol):
    """What an encoder has to have that is no model of sentence-transformers; `SugarEmbedder` has it.

    Attributes:
        model: The network, for its device.
        dim: Width of the vectors.
    """

    model: Any

    @property
    def dim(self) -> int: ...

    def encode(self, samples: Sequence[Any], *, batch_size: int, show_progress: bool) -> np.ndarray:
        """Return a vector for each sample. (n, dim)."""

    def describe(self) -> dict[str, Any]:
        """Return all that the vectors depend on, as JSON values, and `checkpoint`, where the model came from."""


class EncoderTeacher(SliceTeacher):
    """One encoder for all slices, so that all pairs are compared in one space, and no triple kernel is needed.

    ```python
    EncoderTeacher(SentenceTransformer("sentence-transformers/all-MiniLM-L6-v2"))  # documents of texts alone
    EncoderTeacher(SentenceTransformer("sentence-transformers/clip-ViT-L-14"))  # texts and images
    EncoderTeacher(clip, text=SentenceTransformer("BAAI/bge-base-en-v1.5"), image=SugarEmbedder(...))
    ```

    An image is compared with a text in the space of `encoder`, which therefore has to hold both: vectors of two
    unrelated encoders have no distance from each other. `text` and `image` only take its place for pairs of two texts
    and of two images, as BGE and DINOv2 do in the triple kernel (eq. 4).

    Args:
        encoder: A `SentenceTransformer`, or a `SugarEmbedder`. One of texts alone refuses images.
        text: Compares texts with texts in its place.
        image: Compares images with images in its place.
        batch_size: Slices embedded at once.
        show_progress: Whether to show progress bars.

    Raises:
        TypeError: An encoder is neither, or `image` takes no images.
        ValueError: There is no `encoder`, or one has no weights of PyTorch, by which it could be known again.
    """

    roles = ("encoder", "text")

    def __init__(
        self,
        encoder: Any = None,
        *,
        text: Any = None,
        image: Any = None,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> None:
        super().__init__(batch_size, show_progress)
        if encoder is None:
            raise ValueError(
                "EncoderTeacher has no encoder. Give the one whose space holds all slices as its first argument: an "
                "image and a text can only be compared in a space of both. text= and image= may stand beside it."
            )
        given = {"encoder": encoder, "text": text, "image": image}
        self._encoders = {role: _wrapped(each, role) for role, each in given.items() if each is not None}
        self.takes_images = self._encoders["encoder"].takes_images
        if image is not None and not (self.takes_images and self._encoders["image"].takes_images):
            raise TypeError("image= needs an encoder of images, beside an encoder that takes them as well.")

    @classmethod
    def from_pretrained(
        cls,
        encoder: str | Path,
        *,
        text: str | Path | None = None,
        image: str | Path | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        batch_size: int = 64,
        show_progress: bool = True,
    ) -> EncoderTeacher:
        """Load models of sentence-transformers, which Sugar checkpoints are as well, from the Hub or from folders.

        Args:
            encoder: See the class.
            text: See the class.
            image: See the class.
            device: Where they run.
            dtype: Of the weights; the checkpoint's when None.
            batch_size: See the class.
            show_progress: See the class.

        Raises:
            ImportError: sentence-transformers is not installed.
        """
        model_class = _sentence_transformer()
        options: dict[str, Any] = {
            "device": str(device),
            "model_kwargs": {"dtype": "auto" if dtype is None else dtype},
        }
        loaded = [None if name is None else model_class(str(name), **options) for name in (encoder, text, image)]
        return cls(loaded[0], text=loaded[1], image=loaded[2], batch_size=batch_size, show_progress=show_progress)

    @property
    def widths(self) -> tuple[int, int, int]:
        """Widths of the columns: that of `encoder`, then of `image` and `text`, 0 where there is none."""
        image, text = (self._encoders[r].width if r in self._encoders else 0 for r in ("image", "text"))
        return self._encoders["encoder"].width, image, text

    @cached_property
    def fingerprint(self) -> str:
        """What the vectors depend on, "encoder=...": weights, settings, prompts, pooling and preprocessing.

        The path of a checkpoint does not count, its contents do.
        """
        return ",".join(f"{role}={encoder.fingerprint()}" for role, encoder in self._encoders.items())

    @property
    def device(self) -> torch.device:
        """Where the first encoder runs."""
        return self._encoders["encoder"].device

    @property
    def longest(self) -> dict[str, int]:
        """The most tokens of a text by role."""
        return {role: self._encoders[role].longest for role in self.roles if role in self._encoders}

    def _vectors(self, batch: list[Any]) -> dict[str, Tensor]:
        is_text = isinstance(batch[0], str)
        found = {"teacher_clip": self._encoded("encoder", batch)}
        own, column = ("text", "teacher_text") if is_text else ("image", "teacher_dino")
        if own in self._encoders:
            found[column] = self._encoded(own, batch)
        return found

    def _encoded(self, role: str, batch: list[Slice]) -> Tensor:
        encoder = self._encoders[role]
        if isinstance(batch[0], str):
            self._count_truncated(role, encoder.lengths(batch))
        return encoder.encode(batch)


class _OfSentences:
    """A model of sentence-transformers."""

    def __init__(self, model: Any, role: str) -> None:
        self.model, self.role = model.eval().requires_grad_(False), role
        if not model.state_dict():
            raise ValueError(
                f"The {role} teacher has no weights of PyTorch, by which its vectors could be known again. "
                "Load it with backend='torch'."
            )
        if not model.supports("text"):
            raise TypeError(f"The {role} teacher takes no texts, only {', '.join(map(str, model.modalities))}.")
        self.takes_images = model.supports("image")

    @property
    def width(self) -> int:
        return self.model.get_embedding_dimension()

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def longest(self) -> int:
        return min(self.model.max_seq_length or UNLIMITED, UNLIMITED)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        found = (part for module in self.model.modules() for part in _preprocessors(module))
        return next((part for part in found if isinstance(part, PreTrainedTokenizerBase)), None)

    def lengths(self, texts: list[Any]) -> list[int]:
        if self.tokenizer is None or self.longest == UNLIMITED:
            return []
        prompt = self.model.prompts.get(self.model.default_prompt_name, "")
        return [len(ids) for ids in self.tokenizer([prompt + text for text in texts], verbose=False)["input_ids"]]

    def encode(self, batch: list[Slice]) -> Tensor:
        vectors = self.model.encode(batch, batch_size=len(batch), show_progress_bar=False, convert_to_tensor=True)
        return vectors.float()

    def fingerprint(self) -> str:
        from sentence_transformers.base.modules.module import Module

        model, parts = self.model, list(self.model.modules())
        settings = {
            "modules": [[type(part).__name__, part.get_config_dict()] for part in parts if isinstance(part, Module)],
            "networks": [
                without_ignored(part.config.to_dict()) for part in parts if isinstance(part, PreTrainedModel)
            ],
            "preprocessing": [_settings_of(each) for part in parts for each in _preprocessors(part)],
            "prompt": model.prompts.get(model.default_prompt_name),
            "truncate_dim": model.truncate_dim,
            "longest": model.max_seq_length,
        }
        return digest(model, [settings])


class _OfEmbedder:
    """A [`SliceEncoder`]."""

    takes_images = True
    longest = UNLIMITED  # it says itself what is too long

    def __init__(self, encoder: SliceEncoder) -> None:
        self.encoder = encoder

    @property
    def width(self) -> int:
        return self.encoder.dim

    @property
    def device(self) -> torch.device:
        return self.encoder.model.device

    def lengths(self, texts: list[Any]) -> list[int]:
        return []

    def encode(self, batch: list[Slice]) -> Tensor:
        # each slice a sample of its own
        vectors = self.encoder.encode([[part] for part in batch], batch_size=len(batch), show_progress=False)
        return torch.from_numpy(np.asarray(vectors))

    def fingerprint(self) -> str:
        settings = {key: value for key, value in self.encoder.describe().items() if key != "checkpoint"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _wrapped(encoder: Any, role: str) -> _OfSentences | _OfEmbedder:
    if isinstance(encoder, SliceEncoder):
        return _OfEmbedder(encoder)
    if not isinstance(encoder, torch.nn.Module):  # so nothing has to be installed to be told so
        raise TypeError(
            f"The {role} teacher is a {type(encoder).__name__}. Give a SentenceTransformer, a SugarEmbedder or "
            "another SliceEncoder; EncoderTeacher.from_pretrained takes names."
        )
    if not isinstance(encoder, _sentence_transformer()):
        raise TypeError(
            f"The {role} teacher is a {type(encoder).__name__} and no SentenceTransformer: how it makes one vector of "
            "a slice is not known. Give a SentenceTransformer, or a SugarEmbedder."
        )
    return _OfSentences(encoder, role)


def _sentence_transformer() -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ImportError(HINT) from error
    return SentenceTransformer


def _preprocessors(part: Any) -> list[Any]:
    """Tokenizers and image processors that an object keeps, also those inside of its processor."""
    found: list[Any] = []
    for _, value in sorted(vars(part).items()):
        if isinstance(value, ProcessorMixin):
            found += [value, *_preprocessors(value)]
        elif isinstance(value, PreTrainedTokenizerBase | BaseImageProcessor | Tokenizer):
            found.append(value)
    return found


def _settings_of(part: Any) -> Any:
    if isinstance(part, ProcessorMixin):
        return {"chat_template": part.chat_template}
    if isinstance(part, Tokenizer):
        return part.to_str()
    if isinstance(part, BaseImageProcessor):
        return image_settings(part)
    return text_settings(part)
