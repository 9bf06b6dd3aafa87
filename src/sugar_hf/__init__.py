"""Sugar: one vision-language model that generates and retrieves over interleaved images and text.

Importing the package registers the model with the Auto classes and its pipelines with `pipeline`. Everything else is
imported when it is first asked for.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import model, picturebook, retrieval  # these register the model and the pipelines

if TYPE_CHECKING:
    from .data import Document, load_dataset_file, read_documents
    from .model import (
        SugarConfig,
        SugarForConditionalGeneration,
        SugarOutput,
        SugarProcessor,
        merge_adapter,
        whiten_head,
    )
    from .retrieval import SugarChat, SugarEmbedder, SugarIndex, SugarRag, explain
    from .structure import EncoderTeacher, StructureLossConfig, TripleTeacher
    from .training import (
        SugarCollator,
        SugarSFTConfig,
        SugarSFTTrainer,
        SugarTrainer,
        SugarTrainingArguments,
        sugar_lora_config,
    )

__version__ = version("sugar-hf")

model.DefaultModel.shipped = picturebook.CHECKPOINTS / "mini-sugar"

#: The public names, and the package that has each.
_MODULE_OF = {
    "Document": "data",
    "EncoderTeacher": "structure",
    "StructureLossConfig": "structure",
    "SugarChat": "retrieval",
    "SugarCollator": "training",
    "SugarConfig": "model",
    "SugarEmbedder": "retrieval",
    "SugarForConditionalGeneration": "model",
    "SugarIndex": "retrieval",
    "SugarOutput": "model",
    "SugarProcessor": "model",
    "SugarRag": "retrieval",
    "SugarSFTConfig": "training",
    "SugarSFTTrainer": "training",
    "SugarTrainer": "training",
    "SugarTrainingArguments": "training",
    "TripleTeacher": "structure",
    "explain": "retrieval",
    "load_dataset_file": "data",
    "merge_adapter": "model",
    "read_documents": "data",
    "sugar_lora_config": "training",
    "whiten_head": "model",
}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
