"""Fine-tuning with the language-model loss and the structure loss together."""

from typing import TYPE_CHECKING, Any

from .arguments import StructureArguments, SugarTrainingArguments
from .collator import SugarCollator
from .lora import LoraCoverage, lora_coverage, sugar_lora_config
from .structure_term import draw_slice_ends
from .trainer import SugarTrainer

if TYPE_CHECKING:
    from .sft_trainer import SugarSFTConfig, SugarSFTTrainer


__all__ = [
    "LoraCoverage",
    "StructureArguments",
    "SugarCollator",
    "SugarSFTConfig",
    "SugarSFTTrainer",
    "SugarTrainer",
    "SugarTrainingArguments",
    "draw_slice_ends",
    "lora_coverage",
    "sugar_lora_config",
]


def __getattr__(name: str) -> Any:
    # TRL is an optional dependency and slow to import.
    if name in ("SugarSFTConfig", "SugarSFTTrainer"):
        from . import sft_trainer

        return getattr(sft_trainer, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
