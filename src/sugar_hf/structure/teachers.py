"""Frozen teachers of the triple kernel (eq. 4), and their slice embeddings as columns of a data set."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor
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

from .slice_teacher import UNLIMITED, SliceTeacher, digest, image_settings, text_settings, without_ignored
from .text_pooling import TextPooling, most_tokens, read_pooling


class TripleTeacher(SliceTeacher):
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
        super().__init__(batch_size, show_progress)
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
        self.text_pooling = text_pooling or TextPooling()

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
            "clip": [image_settings(self.clip_image_processor), text_settings(self.clip_tokenizer)],
            "dino": [image_settings(self.dino_image_processor)],
            "text": [text_settings(self.text_tokenizer)],
        }
        if pooling := self.text_pooling.settings(self.text, self.text_tokenizer):
            preprocessing["text"].append(pooling)
        models = {"clip": self.clip, "dino": self.dino, "text": self.text}
        return ",".join(
            # the pooler is not used, and random where the checkpoint has none
            f"{role}={digest(model, [without_ignored(model.config.to_dict()), preprocessing[role]], ('pooler.',))}"
            for role, model in models.items()
        )

    @property
    def device(self) -> torch.device:
        """Where they run."""
        return self.clip.device

    def _vectors(self, batch: list[Any]) -> dict[str, Tensor]:
        if isinstance(batch[0], str):
            return {"teacher_clip": self._clip_texts(batch), "teacher_text": self._text_texts(batch)}
        return {"teacher_clip": self._clip_images(batch), "teacher_dino": self._dino_images(batch)}

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
        tokens = self._tokens("clip", self.clip_tokenizer, texts, self.longest["clip"])
        return self.clip.get_text_features(
            input_ids=tokens["input_ids"].to(self.clip.device),
            attention_mask=tokens["attention_mask"].to(self.clip.device),
        ).pooler_output

    @torch.inference_mode()
    def _text_texts(self, texts: list[str]) -> Tensor:
        texts = [self.text_pooling.text(text) for text in texts]
        tokens = self._tokens("text", self.text_tokenizer, texts, self.longest["text"]).to(self.text.device)
        return self.text_pooling.pool(self.text(**tokens).last_hidden_state, tokens["attention_mask"])

    def _tokens(self, role: str, tokenizer: PreTrainedTokenizerBase, texts: list[str], longest: int) -> Any:
        """Padded tokens; texts over the length are truncated and counted."""
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        self._count_truncated(role, lengths)
        limit = {"truncation": True, "max_length": longest} if longest < UNLIMITED else {}
        return tokenizer(texts, padding=True, return_tensors="pt", **limit)

    @cached_property
    def longest(self) -> dict[str, int]:
        """The most tokens of a text by teacher."""
        text = most_tokens(self.text, self.text_tokenizer)
        own = self.text_pooling.longest
        return {
            "clip": self.clip.config.text_config.max_position_embeddings,
            "text": text if own is None else min(own, text),
        }


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
