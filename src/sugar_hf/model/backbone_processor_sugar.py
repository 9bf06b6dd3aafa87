"""The backbone's processor: which class it has, and how it is loaded where its video processor cannot be had."""

import functools
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoVideoProcessor, PreTrainedConfig, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import is_torchvision_available

from .configuration_sugar import SugarConfig

BACKBONE_KEY = "backbone_processor_class"
_SUGAR, _VIDEO = "SugarProcessor", "video_processor"


def load_backbone_processor(path: Any, **kwargs: Any) -> ProcessorMixin:
    """Load the backbone's processor of a Sugar checkpoint, or that of a plain vision-language model.

    A video processor is kept where it can be had. Where it cannot (torchvision is missing, or the folder has no
    settings for it), it is left out: Sugar reads texts and images. Pillow resizes images wherever the family has code
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
    """Stands in the place of a video processor that cannot be had: all of its settings are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "this processor was loaded without its video processor, which needs torchvision and its settings in the "
            "model's folder. Sugar itself reads texts and images only."
        )


class _WithoutVideo(ProcessorMixin):
    """Stands between a family's class and `ProcessorMixin`: passes on by name what the family passes up."""

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


__all__ = ["BACKBONE_KEY", "load_backbone_processor", "without_video"]
