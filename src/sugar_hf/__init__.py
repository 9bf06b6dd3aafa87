"""Sugar: one vision-language model that generates and retrieves over interleaved images and text.

Importing the package registers the model with the Auto classes and its pipelines with `pipeline`. What trains is
imported when it is first asked for; in a process that is the command line, all of it is.
"""

import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any


def _is_command_line() -> bool:
    """Whether this process is `sugar-hf` or `python -m sugar_hf.cli`, whose help must not wait for torch."""
    as_module = any(pair == ("-m", "sugar_hf.cli") for pair in zip(sys.orig_argv, sys.orig_argv[1:], strict=False))
    return as_module or (bool(sys.argv) and Path(sys.argv[0]).stem == "sugar-hf")


if TYPE_CHECKING or not _is_command_line():
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
    from .retrieval import SugarChatPipeline, SugarRagPipeline

if TYPE_CHECKING:
    from . import picturebook
    from .retrieval import SugarChat, SugarEmbedder, SugarIndex, SugarRag, explain, plot_alignment
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
    "SugarChat": "retrieval",
    "SugarChatPipeline": "retrieval",
    "SugarCollator": "training",
    "SugarEmbedder": "retrieval",
    "SugarIndex": "retrieval",
    "SugarRag": "retrieval",
    "SugarRagPipeline": "retrieval",
    "SugarSFTConfig": "training",
    "SugarSFTTrainer": "training",
    "SugarTrainer": "training",
    "SugarTrainingArguments": "training",
    "explain": "retrieval",
    "plot_alignment": "retrieval",
    "sugar_lora_config": "training",
}

__all__ = [
    "StructureLossConfig",
    "SugarChat",
    "SugarChatPipeline",
    "SugarCollator",
    "SugarConfig",
    "SugarEmbedder",
    "SugarForConditionalGeneration",
    "SugarGenerationPipeline",
    "SugarIndex",
    "SugarOutput",
    "SugarProcessor",
    "SugarRag",
    "SugarRagPipeline",
    "SugarRetrievalPipeline",
    "SugarSFTConfig",
    "SugarSFTTrainer",
    "SugarTrainer",
    "SugarTrainingArguments",
    "TripleTeacher",
    "adapter_off",
    "adapter_on",
    "explain",
    "merge_adapter",
    "picturebook",
    "plot_alignment",
    "sugar_lora_config",
]


def __getattr__(name: str) -> Any:
    if name == "picturebook":
        return import_module(".picturebook", __name__)
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    if name in __all__:
        return getattr(import_module(".model", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
