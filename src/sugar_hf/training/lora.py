"""LoRA with the paper's recipe: the language model's query and value projections, the retrieval head trained whole."""

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from ..model import SugarForConditionalGeneration
from .guards import RETRIEVAL_HEAD, sugar_model

logger = logging.getLogger(__name__)

# The layers that mix tokens, by the names that libraries give them: the first row whose names a decoder layer has is
# adapted there. Query and value are the paper's; where these are low-rank, fused or replaced by a recurrence, what
# they come from.
PRESETS: tuple[tuple[str, ...], ...] = (
    ("q_proj", "v_proj"),
    ("q_proj.linear", "v_proj.linear"),  # in modules that normalise what these give
    ("q_b_proj", "kv_b_proj"),  # multi-head latent attention
    ("q_proj", "kv_b_proj"),
    ("wq_b", "wkv_b"),
    ("qkv_proj",),  # query, key and value in one
    ("query_key_value",),
    ("c_attn",),
    ("att_proj",),
    ("wqkv",),
    ("Wqkv",),
    ("q", "v"),
    ("query", "value"),
    ("in_proj_qkv",),  # linear attention
    ("in_proj_qkvz",),
    ("in_proj",),  # state spaces and short convolutions
)
# A sparse indexer chooses tokens and passes no gradient on.
_WITHOUT_GRADIENT = ("indexer",)


@dataclass(frozen=True)
class LoraCoverage:
    """Layers of the language model that have an adapter.

    Args:
        adapted: Number of decoder layers with adapters.
        layers: Number of decoder layers.
        modules: Full names of the adapted modules, as seen from the Sugar model.
    """

    adapted: int
    layers: int
    modules: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.adapted} of {self.layers} layers"


class SugarLoraConfig(LoraConfig):
    """`peft.LoraConfig` that is saved with the Sugar model's configuration beside it.

    An adapter trained on a plain backbone then has the width and pooling of its retrieval head.
    """

    _sugar_config: Any = None

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save `adapter_config.json`, and `config.json` of the Sugar model."""
        super().save_pretrained(save_directory, **kwargs)
        if self._sugar_config is not None and Path(save_directory).is_dir():
            self._sugar_config.save_pretrained(save_directory)


def sugar_lora_config(
    model: SugarForConditionalGeneration,
    r: int = 128,
    lora_alpha: int = 256,
    target_modules: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> LoraConfig:
    """Return the paper's LoRA recipe for a Sugar model (arXiv 2411.00304, app. D.1).

    Adapters go into the layers of the language model only. Vision towers have projections of the same names, so the
    configuration targets full module names. The retrieval head is new and is trained and saved whole.

    An adapter is saved without the backbone's weights. It loads with `AutoModel.from_pretrained(adapter_folder)`, or
    `PeftModel.from_pretrained(model, adapter_folder)` onto the model it was trained on.

    Args:
        model: The model that will be adapted, before `peft.get_peft_model`.
        r: Rank of the adapters.
        lora_alpha: Scale of the adapters; they are multiplied by `lora_alpha / r`.
        target_modules: Names of the linear layers to adapt within the language model, or `"all-linear"` for all of
            them. `None`: query and value projections, and what stands for them in layers with latent, fused or linear
            attention.
        **kwargs: Further arguments of [`peft.LoraConfig`], such as `lora_dropout`. `modules_to_save` adds modules to
            the retrieval head, by name.

    Returns:
        The configuration for `peft.get_peft_model(model, config)` or the `peft_config` of `SugarSFTTrainer`. How many
        of the layers get adapters is logged.

    Raises:
        ValueError: The language model has none of `target_modules`; the message lists the linear layers it has.

    Warns:
        UserWarning: Some layers of the language model get no adapter.
    """
    names = _target_names(model, target_modules)
    coverage = _coverage(model, names)
    if coverage.adapted < coverage.layers:
        warnings.warn(
            f"LoRA adapts {coverage} of the language model: the others have no linear layer of these names. Name more "
            "of them in target_modules.",
            stacklevel=2,
        )
    else:
        logger.info("LoRA adapts %s of the language model.", coverage)
    saved_whole = kwargs.pop("modules_to_save", None) or []
    config = SugarLoraConfig(
        r=r,
        lora_alpha=lora_alpha,
        target_modules=_pattern(names),
        modules_to_save=[RETRIEVAL_HEAD, *(name for name in saved_whole if name != RETRIEVAL_HEAD)],
        **kwargs,
    )
    config._sugar_config = model.config
    return config


def lora_coverage(model: nn.Module) -> LoraCoverage:
    """Count the layers of the language model that have adapters.

    Args:
        model: A Sugar model with adapters, or the `peft.PeftModel` around one.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    sugar = sugar_model(model)
    return _coverage(sugar, [name for name, module in sugar.named_modules() if isinstance(module, BaseTunerLayer)])


def _target_names(model: SugarForConditionalGeneration, wanted: str | Sequence[str] | None) -> list[str]:
    """Return the full names of the modules to adapt."""
    linear = dict(_linear_layers(model))
    if wanted == "all-linear":
        return sorted(linear)
    kinds = {name.rpartition(".")[2] for name in linear}
    if wanted is not None:
        asked = {wanted} if isinstance(wanted, str) else set(wanted)
        if missing := sorted(asked - kinds):
            raise ValueError(
                f"The language model of a {model.vlm.config.model_type} has no linear layers named "
                f"{', '.join(missing)}. Choose target_modules from: {', '.join(sorted(kinds))}."
            )
        return [name for name in linear if name.rpartition(".")[2] in asked]
    targets: list[str] = []
    for layer in _decoder_layers(model):
        inside = [name for name in linear if name.startswith(f"{layer}.")]
        for preset in PRESETS:
            # of the modules that have all of these: a layer may hold a second attention, to pictures
            first = f".{preset[0]}"
            parents = {name.removesuffix(first) for name in inside if name.endswith(first)}
            whole = [parent for parent in parents if all(f"{parent}.{name}" in linear for name in preset)]
            if whole:
                targets += [f"{parent}.{name}" for parent in sorted(whole) for name in preset]
                break
    if not targets:
        raise ValueError(
            f"The language model of a {model.vlm.config.model_type} has no attention projections of a known name. "
            f"Choose target_modules from: {', '.join(sorted(kinds))}."
        )
    return targets


def _pattern(names: Sequence[str]) -> str:
    """Return a pattern of exactly these names, short where layers repeat."""
    forms = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in names})
    return "|".join(forms)


def _coverage(model: SugarForConditionalGeneration, names: Sequence[str]) -> LoraCoverage:
    layers = _decoder_layers(model)
    adapted = [layer for layer in layers if any(name.startswith(f"{layer}.") for name in names)]
    return LoraCoverage(len(adapted), len(layers), tuple(names))


def _decoder_layers(model: SugarForConditionalGeneration) -> list[str]:
    """Name the layers of the language model: the entries of its lists of modules that are as long as it is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    modules = _language_modules(model)
    lists = [name for name, module in modules if isinstance(module, nn.ModuleList) and len(module) == depth]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    # a vision tower that lies in the decoder may be as deep: the language model's layers stand beside its embeddings
    embeddings = model.get_input_embeddings()
    beside = next((name.rpartition(".")[0] for name, module in model.named_modules() if module is embeddings), None)
    outer.sort(key=lambda name: name.rpartition(".")[0] != beside)
    return [f"{name}.{number}" for name in outer[:1] for number in range(depth)]


def _linear_layers(model: SugarForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    head = model.get_output_embeddings()
    for name, module in _language_modules(model):
        parts = name.split(".")
        if isinstance(module, nn.Linear) and module is not head and not any(p in _WITHOUT_GRADIENT for p in parts):
            yield name, module


def _language_modules(model: SugarForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of the language model by full name: inside the decoder, in no model of pictures or sound."""
    decoder = model.get_decoder()
    start = next((name for name, module in model.named_modules() if module is decoder), None)
    if start is None:
        raise ValueError(f"{type(decoder).__name__}, the decoder of {type(model).__name__}, is none of its modules.")
    other: list[str] = []
    for name, module in model.named_modules():
        if not f"{name}.".startswith(f"{start}.") or any(name.startswith(f"{prefix}.") for prefix in other):
            continue
        reads_ids = not isinstance(module, PreTrainedModel) or module.main_input_name in ("input_ids", "inputs_embeds")
        if not reads_ids:
            other.append(name)
            continue
        yield name, module
