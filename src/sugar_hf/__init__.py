"""Sugar: one vision-language model that generates and retrieves over interleaved images and text.

Importing the package registers the model with the Auto classes and both pipelines with `pipeline`. What trains is
imported when it is first asked for.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .model import (
    SugarConfig,
    SugarForConditionalGeneration,
    SugarGenerationPipeline,
    SugarOutput,
    SugarProcessor,
    SugarRetrievalPipeline,
    adapter_off,
    adapter_on,
    merge_adapter,
)

if TYPE_CHECKING:
    from . import picturebook
    from .structure import StructureLossConfig, TripleTeacher
    from .training import (
        SugarCollator,
        SugarSFTConfig,
        SugarSFTTrainer,
        SugarTrainer,
        SugarTrainingArguments,
        sugar_lora_config,
    )

__version__ = version("sugar-hf")

_LATER = {
    "StructureLossConfig": "structure",
    "TripleTeacher": "structure",
    "SugarCollator": "training",
    "SugarSFTConfig": "training",
    "SugarSFTTrainer": "training",
    "SugarTrainer": "training",
    "SugarTrainingArguments": "training",
    "sugar_lora_config": "training",
}

__all__ = [
    "StructureLossConfig",
    "SugarCollator",
    "SugarConfig",
    "SugarForConditionalGeneration",
    "SugarGenerationPipeline",
    "SugarOutput",
    "SugarProcessor",
    "SugarRetrievalPipeline",
    "SugarSFTConfig",
    "SugarSFTTrainer",
    "SugarTrainer",
    "SugarTrainingArguments",
    "TripleTeacher",
    "adapter_off",
    "adapter_on",
    "merge_adapter",
    "picturebook",
    "sugar_lora_config",
]


def __getattr__(name: str) -> Any:
    if name == "picturebook":
        return import_module(".picturebook", __name__)
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
