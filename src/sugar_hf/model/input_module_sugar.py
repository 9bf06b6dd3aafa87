"""The module of sentence-transformers that embeds with Sugar. Importing it needs sentence-transformers."""

import copy
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoProcessor

from .embedding_sugar import check_unit
from .samples_sugar import sample_sizes, with_prompt

try:
    from sentence_transformers.base.modules import InputModule
except ImportError as error:
    raise ImportError(
        "this module needs sentence-transformers: pip install 'sentence-transformers>=6.2,<7'"
    ) from error

_PARTS = ("text", "image")
_OPTIONS = ("text", "image", "common", "chat_template")
_PICTURE_NAMES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tiff", ".webp")
# Not for the model: what sentence-transformers or this module has put beside its inputs.
_OTHER_FEATURES = frozenset({"num_images_per_sample", "sentence_embedding", "token_embeddings", "prompt_length"})


class SugarModule(InputModule):
    """Embed interleaved samples, each at its last slice: the vectors of `SugarEmbedder`.

    Args:
        model: A Sugar model.
        processor: Its processor.
        processing_kwargs: Options of the processor for every call, as `encode` takes them for one:
            `{"text": {"truncation": "slice", "max_length": 512}, "image": {...}}`.
    """

    config_file_name = "sentence_bert_config.json"
    config_keys = ["processing_kwargs"]  # noqa: RUF012

    def __init__(self, model: Any, processor: Any, processing_kwargs: dict[str, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self.model = model
        self.processor = processor
        self.processing_kwargs = processing_kwargs or {}

    @property
    def modalities(self) -> list[Any]:
        """What an input may be."""
        return ["text", "image", "message"]

    @property
    def tokenizer(self) -> Any:  # type: ignore[override]
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def max_seq_length(self) -> int | None:
        """The most tokens that an input may have: the tokenizer's limit."""
        return self.tokenizer.model_max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self.tokenizer.model_max_length = value

    def get_embedding_dimension(self) -> int:
        """Return the width of the embeddings."""
        return self.model.config.retrieval_dim

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: dict[str, dict[str, Any]] | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Turn B inputs of any form into the model's inputs.

        Args:
            inputs: Texts, images, dicts of both, interleaved lists and chats, mixed as you like.
            prompt: Makes every input a chat that begins with it as a system message.
            processing_kwargs: See the class.
            max_length: The most tokens an input may have; `max_seq_length` when `None`.
            **kwargs: What other modules take (`task`).

        Raises:
            ValueError: If an input is of no such form, is empty or is too long; the message shows its beginning.
        """
        samples = [with_prompt(_sample(given), prompt) for given in inputs]
        names = [f"input {given!r:.60}" for given in inputs]
        longest = self.max_seq_length if max_length is None else max_length
        options = _options((self.processing_kwargs, processing_kwargs or {}), longest)
        try:
            features = dict(self.processor(samples, names=names, **options))
        except (TypeError, AttributeError) as error:
            # these sentence-transformers takes for signs of an older module, and tries once more without the prompt
            raise ValueError(f"cannot process these inputs: {error}") from error
        counts = [images for images, _ in sample_sizes(samples, names)]
        if any(counts):
            features["num_images_per_sample"] = torch.tensor(counts)
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Embed what `preprocess` has returned.

        Returns:
            The features with `sentence_embedding`, (B, retrieval_dim) float32 unit vectors.

        Raises:
            ValueError: If a vector is no unit vector.
        """
        inputs = {key: value for key, value in features.items() if key not in _OTHER_FEATURES}
        dtype = self.model.dtype
        inputs = {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in inputs.items()
            if isinstance(value, Tensor)
        }
        output = self.model(**inputs, skip_logits=True, use_cache=False)
        rows = torch.arange(len(output.retrieval_embeds), device=output.retrieval_embeds.device)
        embeds = output.retrieval_embeds[rows, output.retrieval_mask.sum(dim=1) - 1]
        check_unit(embeds.detach().float().cpu().numpy(), "input")
        return {**features, "sentence_embedding": embeds}

    def __getstate__(self) -> dict[str, Any]:
        """What a new process gets: transformers' own hooks, which cannot be sent, are left out."""
        memo = {id(tensor): tensor for tensor in chain(self.model.parameters(), self.model.buffers())}  # stay shared
        model = copy.deepcopy(self.model, memo)
        for part in model.modules():
            for key, hook in list(part._forward_hooks.items()):
                if hook.__module__.startswith("transformers."):
                    del part._forward_hooks[key]
            vars(part).pop("_output_capturing_hooks_installed", None)
        return {**vars(self), "_modules": {**self._modules, "model": model}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take it up; transformers keeps a register of the models that were made, and this one was not made here."""
        super().__setstate__(state)
        with torch.device("meta"):
            type(self.model)(copy.deepcopy(self.model.config))

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Save model, processor and settings, always as safetensors."""
        self.model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)

    @classmethod
    def load(  # type: ignore[override]
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        backend: str = "torch",
        **kwargs: Any,
    ) -> "SugarModule":
        """Load a Sugar model, or adapters on one, and its processor; called by sentence-transformers.

        Raises:
            ValueError: If another backend than torch is asked for.
        """
        if backend != "torch":
            raise ValueError(f"backend={backend!r}: Sugar runs with backend='torch' only.")
        place: dict[str, Any] = {
            "subfolder": subfolder,
            "token": token,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        settings = cls.load_config(model_name_or_path, cache_folder=cache_folder, **place)
        place |= {"cache_dir": cache_folder, "trust_remote_code": trust_remote_code}
        options = {**place, **(model_kwargs or {})}
        if config_kwargs:
            options["config"] = AutoConfig.from_pretrained(model_name_or_path, **place, **config_kwargs)
        model = AutoModel.from_pretrained(model_name_or_path, **options)
        processor = AutoProcessor.from_pretrained(model_name_or_path, **{**place, **(processor_kwargs or {})})
        return cls(model, processor, settings.get("processing_kwargs"))


def _sample(given: Any) -> Any:
    """Turn an input into a sample: a chat stays as it is, all else becomes a list of parts.

    Raises:
        ValueError: If it is of no form that is known.
    """
    if _is_message(given):
        return [given]
    if isinstance(given, list) and given and _is_message(given[0]):
        return given
    if isinstance(given, list | tuple) and given:
        return [part for item in given for part in _parts(item, given)]
    return _parts(given, given)


def _is_message(given: Any) -> bool:
    return isinstance(given, dict) and "role" in given and "content" in given


def _parts(item: Any, given: Any) -> list[Any]:
    if isinstance(item, str):
        if _looks_like_an_image(item):
            raise ValueError(
                f"sentence-transformers takes the text {item!r:.80} for an image, by its name. Give "
                '{"text": ...} if it is a text, and a PIL image if it is none.'
            )
        return [{"type": "text", "text": item}]
    if isinstance(item, dict) and item and "role" not in item:
        if unknown := sorted(map(str, item.keys() - set(_PARTS))):
            raise ValueError(
                f"input {given!r:.60}: unrecognized modality keys: {', '.join(unknown)}. Sugar takes "
                f"{' and '.join(_PARTS)}, and messages with role and content."
            )
        return [
            {"type": kind, kind: value}
            for kind, values in item.items()
            for value in (values if isinstance(values, list | tuple) else [values])
        ]
    if isinstance(item, Image.Image | Path):
        return [{"type": "image", "image": item}]
    what = f"Unsupported input type: {type(item).__name__}, as {type(item).__name__} is neither text nor image"
    if isinstance(item, dict):  # half a message
        what = f"Unsupported input type: {type(given).__name__}" if item else "Empty dict"
    raise ValueError(
        f"input {given!r:.60}: {what}. Give a str, a PIL image, a dict of text and image, a list of these, or "
        "messages with role and content."
    )


def _looks_like_an_image(text: str) -> bool:
    if text.startswith("data:image/"):
        return True
    name = text.lower()
    if name.startswith(("http://", "https://")) and " " not in name:
        return name.partition("?")[0].partition("#")[0].endswith(_PICTURE_NAMES)
    return name.endswith(_PICTURE_NAMES) and os.path.isfile(text)


def _options(layers: Sequence[dict[str, dict[str, Any]]], longest: int | None) -> dict[str, Any]:
    """Turn options as sentence-transformers writes them into those of the processor; later layers win.

    Raises:
        ValueError: If there is one for the chat template, or for another kind of input.
    """
    if unknown := sorted({key for layer in layers for key, value in layer.items() if value} - set(_OPTIONS)):
        raise ValueError(f"processing_kwargs: Sugar has no options for {', '.join(unknown)}, only for text and image.")
    kinds = {kind: {key: v for layer in layers for key, v in (layer.get(kind) or {}).items()} for kind in _OPTIONS}
    if unknown := sorted(kinds["chat_template"].keys()):
        raise ValueError(f"Sugar embeds chats as they are: leave out the chat template's {', '.join(unknown)}.")
    found = {"padding_side": "left", **kinds["common"], **kinds["text"]}
    found.pop("return_tensors", None)
    if found.get("padding") != "max_length":
        found.setdefault("max_length", longest)
    return {**found, "images_kwargs": kinds["image"] or None}
