"""LoRA with the paper's recipe: the language model's query and value projections, the retrieval head trained whole."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from sugar_hf.model import SugarForConditionalGeneration

RETRIEVAL_HEAD = "retrieval_head"


def sugar_lora_config(
    model: SugarForConditionalGeneration,
    r: int = 128,
    lora_alpha: int = 256,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    **kwargs: Any,
) -> LoraConfig:
    """The paper's LoRA recipe for a Sugar model (arXiv 2411.00304, app. D.1).

    Adapters go on `target_modules` inside the language model only. Vision towers have projections of the same names,
    so the configuration targets full module names. The retrieval head is new and is trained and saved whole.

    An adapter is saved without the backbone's weights. It loads onto the Sugar checkpoint it was trained from, with
    `AutoModel.from_pretrained(adapter_folder)` or `PeftModel.from_pretrained(model, adapter_folder)`.

    Args:
        model: The model that will be adapted, before `peft.get_peft_model`.
        r: Rank of the adapters.
        lora_alpha: Scale of the adapters; they are multiplied by `lora_alpha / r`.
        target_modules: Names of the linear layers to adapt, within the language model.
        **kwargs: Further arguments of [`peft.LoraConfig`], such as `lora_dropout`. `modules_to_save` adds modules to
            the retrieval head, by name.

    Returns:
        The configuration for `peft.get_peft_model(model, config)` or the `peft_config` of `SugarSFTTrainer`.

    Raises:
        ValueError: The language model has none of `target_modules`; the message lists the linear layers it has.
    """
    decoder_name, decoder = _language_model(model)
    wanted = set(target_modules)
    linear = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    if missing := sorted(wanted - linear):
        raise ValueError(
            f"The language model {type(decoder).__name__} has no linear layers named {', '.join(missing)}. "
            f"Choose target_modules from: {', '.join(sorted(linear))}."
        )
    saved_whole = kwargs.pop("modules_to_save", None) or []
    layers = "|".join(re.escape(name) for name in sorted(wanted))
    return LoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=rf"{re.escape(decoder_name)}\.(.*\.)?({layers})",
        modules_to_save=[RETRIEVAL_HEAD, *saved_whole],
        **kwargs,
    )


def _language_model(model: SugarForConditionalGeneration) -> tuple[str, nn.Module]:
    """The language model inside the backbone and its name as seen from `model`."""
    decoder = model.get_decoder()
    for name, module in model.named_modules():
        if module is decoder:
            return name, decoder
    raise ValueError(f"{type(decoder).__name__}, the decoder of {type(model).__name__}, is none of its modules.")
