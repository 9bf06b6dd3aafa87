"""Interleaved samples to model inputs and slice map, for any backbone."""

import copy
import functools
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoVideoProcessor,
    BatchFeature,
    PreTrainedConfig,
    ProcessorMixin,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import is_torchvision_available

from .checkpoint_sugar import write_settings
from .configuration_sugar import SugarConfig
from .samples_sugar import (
    Message,
    Part,
    Sample,
    first_slices,
    image_token,
    load_images,
    parse_batch,
    parse_sample,
)
from .tokenizing_sugar import SampleTokenizer, Tokens

PROCESSOR_FILE = "processor_config.json"
BACKBONE_KEY = "backbone_processor_class"
_SUGAR, _VIDEO = "SugarProcessor", "video_processor"

# What the first prefix holds at most. Each has four times as much as the one before it, and at most a quarter of
# the sample: one that turns out to be short enough costs a third more.
FIRST_IMAGES = 8
FIRST_CHARACTERS = 4096
CHARACTERS_PER_TOKEN = 32
GROWTH = 4


class SugarProcessor(ProcessorMixin):
    """Turn interleaved samples into model inputs and a map from tokens to slices.

    A **sample** is a str, a PIL image, a `pathlib.Path` of an image, a list mixing these, or HF chat messages (a list
    of `{"role", "content"}`, the content a str or a list of `{"type": "text", "text"}` and
    `{"type": "image", "image"|"path"|"url"|"base64"}`). A str is always text, never the name of a file, and nothing
    is downloaded but what stands under `url`.

    A **slice** is one image or one text (or one sentence, with `split_sentences`). Texts of system messages are
    instructions and make no slice. Whatever stands in a text is text: a literal `<image>` is no placeholder.

    Samples without roles are written as their texts and images in order, each stripped, with one newline between
    them, no chat template, and the tokenizer's own bos. Chats go through the model's chat template; where it would
    move the images of a message, the message is written as one text with the images in place. Whitespace around a
    text is dropped, except between it and an image, and two texts in a row have a newline between them.

    Calls may run in threads side by side: none changes the processor, its tokenizer or its image processor.

    Args:
        backbone_processor: The processor of the vision-language model.

    Attributes:
        max_characters: The most characters that the texts of a sample may have together, with or without `max_length`.
            More take gigabytes to tokenise.
    """

    max_characters: int = 1_000_000

    def __init__(self, backbone_processor: ProcessorMixin) -> None:
        is_wrapped = isinstance(backbone_processor, SugarProcessor)
        self.backbone_processor: Any = backbone_processor.backbone_processor if is_wrapped else backbone_processor
        self._tokenise = SampleTokenizer()
        super().__init__(chat_template=self.backbone_processor.chat_template)

    def __call__(
        self,
        samples: Sequence[Sample] | Sample | None = None,
        *,
        padding: bool | str = True,
        split_sentences: bool = False,
        max_length: int | None = None,
        truncation: bool | str = False,
        add_generation_prompt: bool = False,
        return_labels: bool = False,
        control_tokens_in_answers: bool | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        images_kwargs: dict[str, Any] | None = None,
        names: Sequence[str] | None = None,
        **backbone_inputs: Any,
    ) -> BatchFeature:
        """Process a batch of B samples into inputs of L tokens.

        Args:
            samples: A list of samples, of any modalities. A lone str, image or Path is a batch of one.
            padding: `True` or `"longest"`, `"max_length"`, or `False` (samples of equal length only).
            split_sentences: Make one slice of each sentence instead of each text.
            max_length: The most tokens a sample may have, image tokens included. Of a sample that is far longer only
                a prefix is tokenised.
            truncation: What to do with longer samples: `False` raises; `"slice"` drops whole slices from the end and
                warns.
            add_generation_prompt: The model continues from here: chats end with the start of the assistant's turn, and
                nothing in a sample without roles is to be learnt.
            return_labels: Also return labels: the assistant's texts and the end-of-turn token after each, or all texts
                of a sample without roles; -100 elsewhere. If the template ends no turn, a final eos is added.
            control_tokens_in_answers: Whether control tokens in the texts of assistants (`<think>`, `<|box_start|>`,
                and tokens that you have added) are read as such; by default where `return_labels` asks for what is to
                be learnt.
                Then the end of a turn counts too, so an answer may close its turn and open another: that is yours to
                write in your own training data, and open to anyone in a history that comes from outside. Elsewhere,
                also in generation and RAG, an answer is text like any other, unless you trust its source and pass
                `True`. Never are tokens that stand for or around images, and never control tokens in other roles and
                in samples without.
            padding_side: `"left"` or `"right"`; the tokenizer's own when `None`. Embeddings do not depend on it.
            pad_to_multiple_of: Pad to a multiple of this.
            images_kwargs: Options of the backbone's image processor.
            names: What to call the samples in error messages; "sample 0", ... when `None`.
            **backbone_inputs: Without samples, everything (`text`, `images`, ...) goes to the backbone's processor.

        Returns:
            `input_ids`, `attention_mask`, what the backbone wants for the images, and `slice_map` (B, L) int64: 0 =
            none; k = slice k of the sample, on every image token of an image; -k = slice k, on every token of a text,
            or on the image token of an image that has one only. With `return_labels` also `labels` (B, L) int64.

        Raises:
            ValueError: If a sample is empty, malformed or too long; the message names it.
        """
        if samples is None:
            options = {} if images_kwargs is None else {"images_kwargs": images_kwargs}
            return self.backbone_processor(padding=padding, **options, **backbone_inputs)
        if backbone_inputs:
            raise TypeError(f"SugarProcessor has no options {', '.join(backbone_inputs)} for samples.")
        if truncation not in (False, "slice"):
            raise ValueError(f"truncation={truncation!r}: give False or 'slice'.")
        if padding not in (True, False, "longest", "max_length") or (padding == "max_length" and max_length is None):
            raise ValueError(f"padding={padding!r}: give True, False, 'longest', or 'max_length' with max_length=.")
        names, parsed = parse_batch(samples, names, split_sentences)
        answers_steer = return_labels if control_tokens_in_answers is None else control_tokens_in_answers
        widths = {
            "length": (max_length or 0) if padding == "max_length" else 0,
            "multiple": pad_to_multiple_of or 1,
            "side": padding_side or self.tokenizer.padding_side,
        }
        counts = [_slice_count(messages) for messages in parsed]
        said: dict[int, str] = {}  # of the samples that are too long
        for i, name in enumerate(names):
            if max_length is not None:
                for messages, count in prefixes(parsed[i], max_length, self.max_characters):
                    _, rows = self._tokenise(self.backbone_processor, [messages], [name], images_kwargs)
                    if len(rows[0].ids) > 2 * max_length:  # not by a token or two at its end
                        excess = f"over {max_length} more than max_length={max_length}"
                        said[i] = f"{name} has over {2 * max_length} tokens in {counts[i]} slices, {excess}"
                        parsed[i] = _first_slices(parsed[i], count, said[i], truncation)
                        break
            if (characters := character_count(parsed[i])) > self.max_characters:
                raise ValueError(
                    f"{name} has {characters} characters, more than processor.max_characters={self.max_characters}. "
                    "Split it into several samples, or raise that number."
                )
        while True:
            features, rows = self._tokenise(
                self.backbone_processor,
                parsed,
                names,
                images_kwargs,
                widths,
                add_generation_prompt=add_generation_prompt,
                return_labels=return_labels,
                answers_steer=answers_steer,
            )
            too_long = [i for i, row in enumerate(rows) if max_length is not None and len(row.ids) > max_length]
            if not too_long:
                break
            for i in too_long:
                excess = f"{len(rows[i].ids) - (max_length or 0)} more than max_length={max_length}"
                said.setdefault(i, f"{names[i]} has {len(rows[i].ids)} tokens in {counts[i]} slices, {excess}")
                kept = _fitting(rows[i], _slice_count(parsed[i]), max_length or 0)
                parsed[i] = _first_slices(parsed[i], kept, said[i], truncation)
        for i, text in said.items():
            dropped = counts[i] - _slice_count(parsed[i])
            warnings.warn(f"{text}: dropped its last {dropped} slices.", stacklevel=2)
        if padding is False and len({len(row.ids) for row in rows}) > 1:
            raise ValueError("padding=False, but the samples differ in length. Pass padding=True or one sample.")
        if not return_labels:
            del features["labels"]
        # what a processor leaves as a list is one for its model, too
        return BatchFeature({k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in features.items()})

    def slices(self, sample: Sample, split_sentences: bool = False) -> list[str | Image.Image]:
        """Return the slices of one sample, texts and RGB images; item k-1 is slice k of the slice map."""
        slices: list[str | Image.Image] = []
        for message in parse_sample(sample, "sample", split_sentences):
            for part in message.parts:
                slices += load_images([part]) if part.is_image else [part.text[a:b] for a, b in part.spans]
        return slices

    @property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer."""
        return self.backbone_processor.tokenizer

    @property
    def image_processor(self) -> Any:
        """The backbone's image processor."""
        return self.backbone_processor.image_processor

    @property
    def image_token(self) -> str | None:
        """What stands for one image in the backbone processor's input, if it takes images within texts."""
        return image_token(self.backbone_processor)

    @property
    def chat_template(self) -> Any:
        """The chat template of the backbone's processor or, failing that, of its tokenizer."""
        return self.backbone_processor.chat_template or self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, value: Any) -> None:
        self.backbone_processor.chat_template = value

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call returns."""
        return [*self.backbone_processor.model_input_names, "slice_map"]

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Apply the chat template as the backbone's processor does. To embed or train, call the processor instead."""
        if self.backbone_processor.chat_template is None:
            kwargs.setdefault("chat_template", self.tokenizer.chat_template)
        return copy.copy(self.backbone_processor).apply_chat_template(conversation, *args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """Forwarded to the tokenizer."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Forwarded to the tokenizer."""
        return self.tokenizer.decode(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings of the backbone's processor with both class names."""
        return {
            **self.backbone_processor.to_dict(),
            "processor_class": type(self).__name__,
            BACKBONE_KEY: type(self.backbone_processor).__name__,
        }

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Save the backbone's files at the top of the folder (AutoTokenizer works on it) and this class's name.

        The folder gets the settings of sentence-transformers too, as it does from the model.

        Args:
            save_directory: The folder.
            push_to_hub: Also upload it; `repo_id` and other options go to `push_to_hub`.
            **kwargs: See above.

        Returns:
            The path of the settings file.
        """
        folder = Path(save_directory)
        self.backbone_processor.save_pretrained(folder)
        settings = self.to_dict()
        if self._auto_class is not None:  # loaded from the Hub with its code, which is saved too
            custom_object_save(self, folder, config=settings)
        file = folder / PROCESSOR_FILE
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        write_settings(folder)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return [str(file)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "SugarProcessor":
        """Load the processor of a Sugar checkpoint, or wrap that of a plain vision-language model.

        A video processor is kept if it can be loaded, and left out if it cannot (without torchvision).

        Args:
            pretrained_model_name_or_path: Hub name or folder.
            **kwargs: Passed to the backbone processor's `from_pretrained` (`revision`, `token`, ...).

        Raises:
            ValueError: If the folder names no processor for texts and images, or one that is not part of the
                installed transformers.
        """
        kwargs.pop("_from_auto", None)
        return cls(load_backbone_processor(pretrained_model_name_or_path, **kwargs))


def _slice_count(messages: list[Message]) -> int:
    return sum(part.slice_count for message in messages for part in message.parts)


def _fitting(row: Tokens, count: int, max_length: int) -> int:
    """Count the slices from the first on that can fit, leaving out the last."""
    last = [int(np.flatnonzero(np.abs(row.slices) == number)[-1]) for number in range(1, count + 1)]
    tail = len(row.ids) - 1 - last[-1]  # what follows the last slice stays
    return sum(position + 1 + tail <= max_length for position in last[:-1])


def _first_slices(messages: list[Message], count: int, said: str, truncation: bool | str) -> list[Message]:
    """Keep the first slices of a sample that is too long.

    Raises:
        ValueError: If that is not asked for, or not even the first slice fits.
    """
    if not truncation:
        raise ValueError(
            f"{said}. Shorten it, raise max_length, or pass truncation='slice' to drop slices from its end."
        )
    if not count:
        raise ValueError(
            f"{said}, and its first slice alone does not fit. Raise max_length, or pass split_sentences=True."
        )
    return first_slices(messages, count)


# --- samples that are far too long


def character_count(messages: list[Message]) -> int:
    """Count the characters of a sample's texts."""
    return sum(len(part.text) for message in messages for part in message.parts)


def prefixes(messages: list[Message], max_length: int, max_characters: int) -> Iterator[tuple[list[Message], int]]:
    """Yield ever longer prefixes of a sample that may be far longer than wanted; none of one that is short.

    Args:
        messages: From `parse_sample`.
        max_length: The most tokens that are wanted.
        max_characters: No prefix has more.

    Yields:
        The parts, without roles and without slices of texts, and how many slices of the sample they hold.
    """
    parts = [part for message in messages for part in message.parts]
    all_characters, all_images = character_count(messages), sum(part.is_image for part in parts)
    characters, images = max(FIRST_CHARACTERS, CHARACTERS_PER_TOKEN * max_length), FIRST_IMAGES
    while characters <= max_characters and (GROWTH * characters <= all_characters or GROWTH * images <= all_images):
        kept, count = _prefix(parts, characters, images)
        yield [Message(None, kept)], count
        characters, images = GROWTH * characters, GROWTH * images


def _prefix(parts: list[Part], characters: int, images: int) -> tuple[tuple[Part, ...], int]:
    kept: list[Part] = []
    count = 0
    for part in parts:
        if part.is_image:
            if not images:
                break
            images -= 1
            count += 1
            kept.append(part)
            continue
        start = len(part.text) - len(part.text.lstrip())  # so that something is left of it
        end = min(len(part.text), start + characters)
        count += sum(last <= end for _, last in part.spans)
        kept.append(replace(part, text=part.text[start:end], spans=()))
        characters -= end - start
        if characters <= 0:
            break
    return tuple(kept), count


# --- the backbone's processor


def load_backbone_processor(path: Any, **kwargs: Any) -> ProcessorMixin:
    """Load the backbone's processor of a Sugar checkpoint, or that of a plain vision-language model.

    A video processor is kept if it can be loaded. If it cannot (torchvision is missing, or the folder has no settings
    for it), it is left out: Sugar reads texts and images. Pillow resizes images wherever the family has code
    for that, even if torchvision is installed: its pixels differ a little, and so would the vectors of an index.

    Args:
        path: Hub name or folder.
        **kwargs: Passed to the processor's `from_pretrained` (`revision`, `token`, ...).

    Raises:
        ValueError: If no processor for texts and images is named there, or it is not part of the installed
            transformers.
    """
    processor_class = _processor_class(path, **kwargs)
    parts = processor_class.get_attributes()
    if "image_processor" not in parts or "tokenizer" not in parts:
        raise ValueError(
            f"{path}: {processor_class.__name__} reads {', '.join(parts)}, and Sugar needs texts and images. "
            "Use a backbone whose processor has a tokenizer and an image processor."
        )
    if _VIDEO in parts and not _has_video_processor(path, **kwargs):
        processor_class = without_video(processor_class)  # type: ignore[arg-type]
    processor = processor_class.from_pretrained(path, **kwargs)
    if is_torchvision_available():
        processor.image_processor = AutoImageProcessor.from_pretrained(path, backend="pil", **kwargs)
    return processor


def _processor_class(path: Any, **kwargs: Any) -> type[ProcessorMixin]:
    """Find the class that a folder names, where transformers looks for it too, or that its configuration implies."""
    try:
        settings, _ = ProcessorMixin.get_processor_dict(path, **kwargs)
        name = settings.get(BACKBONE_KEY) or settings.get("processor_class")
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: processor_config.json is no dictionary of settings. Restore the file.") from error
    for read in (_image_processor_settings, _tokenizer_settings):
        if name in (None, _SUGAR):
            name = read(path, **kwargs).get("processor_class")
    if name not in (None, _SUGAR):
        found = ProcessorMixin.get_possibly_dynamic_module(name) if isinstance(name, str) else None
        if not (isinstance(found, type) and issubclass(found, ProcessorMixin)):
            _raise_where_a_package_is_missing(found)
            raise ValueError(f"{path}: its files name {name!r} as the class of the processor, which is none.")
        return found
    config: PreTrainedConfig = AutoConfig.from_pretrained(path, **kwargs)
    if config.model_type == SugarConfig.model_type:
        config = config.vlm_config
    if type(config) not in PROCESSOR_MAPPING:
        raise ValueError(f"{path}: a {config.model_type} has no processor for texts and images.")
    found = PROCESSOR_MAPPING[type(config)]
    _raise_where_a_package_is_missing(found)
    return found


def _raise_where_a_package_is_missing(found: Any) -> None:
    """Let a stand-in of transformers say which package it needs: it does at whatever is asked of it."""
    getattr(found, "get_attributes", None)


def _image_processor_settings(path: Any, **kwargs: Any) -> dict[str, Any]:
    try:
        return BaseImageProcessor.get_image_processor_dict(path, **kwargs)[0]
    except OSError:  # no such file
        return {}


def _tokenizer_settings(path: Any, **kwargs: Any) -> dict[str, Any]:
    return get_tokenizer_config(path, **kwargs)


def _has_video_processor(path: Any, **kwargs: Any) -> bool:
    try:
        AutoVideoProcessor.from_pretrained(path, **kwargs)
    except (ImportError, OSError, ValueError):  # a package is missing, no settings, no class for them
        return False
    return True


class _NoVideo:
    """Stand-in for a video processor that cannot be loaded: all of its settings are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "this processor was loaded without its video processor, which needs torchvision and its settings in the "
            "model's folder. Sugar itself reads texts and images only."
        )


class _WithoutVideo(ProcessorMixin):
    """Base between a family's class and `ProcessorMixin`: passes by name what the family passes by place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        named = dict(zip(self._all_parts, args, strict=False)) | kwargs
        named.pop(_VIDEO, None)
        super().__init__(**named)
        self.video_processor = _NoVideo()  # some families ask it for settings even where there are no videos

    _all_parts: tuple[str, ...] = ()


@functools.cache
def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """Derive a processor class that neither loads nor saves a video processor; its `video_processor` may be None."""
    parts = processor_class.get_attributes()
    if _VIDEO not in parts:
        return processor_class

    class ImageTextProcessor(processor_class, _WithoutVideo):  # type: ignore[valid-type, misc]
        _all_parts = tuple(parts)

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in parts if name != _VIDEO]

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            named = dict(zip(cls.get_attributes(), args, strict=True))
            return super().from_args_and_dict([], processor_dict, **kwargs, **named, video_processor=None)

        def to_dict(self) -> dict[str, Any]:
            return {name: value for name, value in super().to_dict().items() if name != _VIDEO}

        def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
            # not what a family overrides: that asks the video processor for its settings, even for a string
            return ProcessorMixin.apply_chat_template(self, *args, **kwargs)

        def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
            return ProcessorMixin.save_pretrained(self, *args, **kwargs)  # a family saves its video settings besides

    ImageTextProcessor.__name__ = ImageTextProcessor.__qualname__ = processor_class.__name__
    return ImageTextProcessor
