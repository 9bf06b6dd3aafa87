"""Adapters on a Sugar model: on, off, or merged into its weights.

An adapter (LoRA and a retrained retrieval head) gets onto a model in two ways, as a `peft.PeftModel` around it or by
transformers' own integration (`AutoModel.from_pretrained(adapter_folder)`, `model.load_adapter`). The functions here
take both. The two libraries' own switches do not agree: `enable_adapters` of transformers forgets modules that were
saved whole, such as the retrieval head, and both make adapters trainable that were loaded for inference.
"""

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType, TracebackType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import is_peft_available

from .modeling_sugar import QUANTISED, SugarForConditionalGeneration

# These ways of starting an adapter change the weights below it, whose old values are lost.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


# For layers with adapters, whether this thread computes with them; for the others the layer itself says.
_OWN: ContextVar[Mapping[nn.Module, bool]] = ContextVar("sugar_adapters", default=MappingProxyType({}))
_ASKING: dict[type, type] = {}  # classes of layers, and what asks the variable above in their place


class AdapterSwitch:
    """What [`adapter_on`] and [`adapter_off`] return; as a context manager it puts back what was before."""

    def __init__(self, layers: list[Any], enabled: bool, everywhere: bool) -> None:
        own = _OWN.get()
        self._own = {layer: own.get(layer) for layer in layers}
        self._everywhere = [(layer, not layer._disable_adapters) for layer in layers] if everywhere else []
        for layer in layers:
            _ask_the_thread(layer)
        if everywhere:
            for layer in layers:
                _switch(layer, enabled)
        _set_own(dict.fromkeys(layers, None if everywhere else enabled))

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for layer, enabled in self._everywhere:
            _switch(layer, enabled)
        _set_own(self._own)


def adapter_on(model: Any, *, everywhere: bool = False) -> AdapterSwitch:
    """Let the model compute with its active adapters and the head that was trained with them.

    Neither this nor [`adapter_off`] changes which weights are trainable, or which adapters are the active ones.

    Args:
        model: A [`SugarForConditionalGeneration`] with adapters, or the `peft.PeftModel` around one.
        everywhere: See [`adapter_off`].

    Returns:
        A context manager. Ignore it to make the change permanent; `with` restores the previous state at the end.

    Raises:
        ValueError: The model has no adapters.
    """
    return AdapterSwitch(_layers(model), True, everywhere)


def adapter_off(model: Any, *, everywhere: bool = False) -> AdapterSwitch:
    """Let the model compute as its base does, bit for bit: logits and generation of the backbone, the base's own head.

    On a model that was made by `from_backbone`, that head is an untrained one.

    Args:
        model: A [`SugarForConditionalGeneration`] with adapters, or the `peft.PeftModel` around one.
        everywhere: By default the switch holds for the thread that calls it: others that use the model at the same
            time go on as they were, and threads that are started later begin with the adapters on. With `True` it
            holds for all threads, those of a backward pass among them.

    Returns:
        A context manager. Ignore it to make the change permanent; `with` restores the previous state at the end.

    Raises:
        ValueError: The model has no adapters, or the base's weights are not there as they were: adapters were merged
            in place, biases were trained, or the adapter was started in a way that changes them.
    """
    layers = _layers(model)
    if any(layer.merged_adapters for layer in layers):
        raise ValueError(
            "The adapters are merged into the weights, which cannot be undone bit for bit. Load the base model, or "
            "call model.unmerge_adapter() if rounding errors do no harm."
        )
    for name, config in model.peft_config.items():
        bias, start = (vars(config).get(field) for field in ("bias", "init_lora_weights"))
        if bias not in (None, "none"):
            raise ValueError(f"Adapter {name!r} trained biases of the base (bias={bias!r}). Load the base model.")
        if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
            raise ValueError(
                f"Adapter {name!r} changed the weights below it when it was made (init_lora_weights={start!r}). "
                "Load the base model."
            )
    return AdapterSwitch(layers, False, everywhere)


@torch.no_grad()
def merge_adapter(model: Any) -> SugarForConditionalGeneration:
    """Merge the active adapters into the weights and take them off, whether they are switched on or off.

    A model in 4 or 8 bit is dequantised first, to its configuration's `dtype`: adding to quantised weights would round
    the adapters away. The merged model then computes what the quantised model with its adapters did, up to rounding.

    Args:
        model: A [`SugarForConditionalGeneration`] with adapters, or the `peft.PeftModel` around one. It is changed,
            and a `PeftModel` is of no more use.

    Returns:
        The [`SugarForConditionalGeneration`], all of its weights trainable; `save_pretrained` writes it whole.

    Raises:
        ValueError: The model has no adapters, a weight would become infinite or NaN, or a quantised model has adapters
            other than plain LoRA.
    """
    _, wrapper, peft_model = _peft_classes()
    layers = _layers(model)
    base = model.get_base_model() if isinstance(model, peft_model) else model
    # an adapter on a module that is saved whole lies inside it, and goes with it
    inside = {id(part) for layer in layers if isinstance(layer, wrapper) for part in list(layer.modules())[1:]}
    outer = {name: layer for name, layer in base.named_modules() if layer in layers and id(layer) not in inside}
    whole = {name: layer for name, layer in outer.items() if isinstance(layer, wrapper)}
    tuned = {name: layer for name, layer in outer.items() if name not in whole}
    is_quantised = "hf_quantizer" in vars(base)
    if is_quantised:
        _merge_quantised(base, tuned, model.peft_config)
    else:
        for name, layer in tuned.items():
            layer.merge(safe_merge=True)
            base.set_submodule(name, layer.get_base_layer())
    for name, layer in whole.items():
        merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
        base.set_submodule(name, merged)
    if is_quantised:  # preparing a quantised model for training made float32 of what is not quantised
        for parameter in base.vlm.parameters():  # not vlm.to, which would round the rotary frequencies too
            parameter.data = parameter.data.to(base.config.dtype)
        # how the quantised weights got their names: by these rules `save_pretrained` would write names of such
        vars(base.vlm).pop("_weight_conversions", None)
        for name in QUANTISED:
            vars(base).pop(name, None)
    del base.peft_config
    base._hf_peft_config_loaded = False  # else `save_pretrained` would look for an adapter to save
    return base.requires_grad_(True)


def _merge_quantised(base: SugarForConditionalGeneration, tuned: dict[str, Any], configs: dict[str, Any]) -> None:
    for name, config in configs.items():
        if config.peft_type != "LORA" or config.use_dora or config.lora_bias:
            raise ValueError(
                f"Adapter {name!r} is no plain LoRA and cannot be merged into quantised weights. Load it onto the "
                "base model without quantization_config, and merge it there."
            )
    updates = {}
    for name, layer in tuned.items():
        active = [adapter for adapter in layer.active_adapters if adapter in layer.lora_A]
        updates[name] = sum(layer.get_delta_weight(adapter).float() for adapter in active)
        base.set_submodule(name, layer.get_base_layer())
    base.state_dict()  # brings back the layout of weights that bitsandbytes changes for inference on a CPU
    base.vlm.dequantize(dtype=base.config.dtype)
    for name, update in updates.items():
        weight = base.get_submodule(name).weight
        weight.copy_(weight.float() + update)
        if not weight.isfinite().all():
            raise ValueError(f"Merging makes weights of {name} infinite or NaN.")


def has_adapters(model: nn.Module) -> bool:
    """Whether any module of the model has an adapter in it."""
    return is_peft_available() and bool(_found(model))


def adapters_are_on(model: nn.Module) -> bool:
    """Whether the model computes with adapters, and not as its base does."""
    # where peft was never imported there are none, and importing it takes a second
    return "peft" in sys.modules and any(not layer.disable_adapters for layer in _found(model))


def is_model(candidate: object) -> bool:
    """Whether an object is a model of transformers, or the `peft.PeftModel` around one."""
    if isinstance(candidate, PreTrainedModel):
        return True
    return "peft" in sys.modules and isinstance(candidate, _peft_classes()[2])


def _found(model: nn.Module) -> list[Any]:
    tuner, wrapper, _ = _peft_classes()
    return [module for module in model.modules() if isinstance(module, tuner | wrapper)]


def _layers(model: Any) -> list[Any]:
    """All modules that have adapters in them."""
    layers = _found(model)
    if not layers:
        raise ValueError(
            f"The {type(model).__name__} has no adapters. Load some with model.load_adapter(folder), or make new ones "
            "with peft.get_peft_model(model, sugar_lora_config(model))."
        )
    return layers


def _set_own(changes: Mapping[nn.Module, bool | None]) -> None:
    """Set what this thread computes with; `None` leaves it to the layer. A new mapping, as others hold the old one."""
    own = WeakKeyDictionary(_OWN.get())
    for layer, enabled in changes.items():
        if enabled is None:
            own.pop(layer, None)
        else:
            own[layer] = enabled
    _OWN.set(own)


def _ask_the_thread(layer: Any) -> None:
    """Have the layer ask which way this thread has switched it, by a class of the same name."""
    kind = type(layer)
    if kind in _ASKING.values():
        return
    if kind not in _ASKING:
        own = {"disable_adapters": property(_is_off), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        _ASKING[kind] = type(kind.__name__, (kind,), own)
    layer.__class__ = _ASKING[kind]


def _is_off(layer: Any) -> bool:
    enabled = _OWN.get().get(layer)
    return bool(layer._disable_adapters if enabled is None else not enabled)


def _switch(layer: Any, enabled: bool) -> None:
    trainable = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
    layer.enable_adapters(enabled)
    for parameter, before in trainable:
        if parameter.requires_grad != before:
            parameter.requires_grad_(before)


def _peft_classes() -> tuple[Any, Any, Any]:
    """Layers with adapters, modules saved whole, and models with adapters."""
    if is_peft_available():
        from peft import PeftModel
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        return BaseTunerLayer, AuxiliaryTrainingWrapper, PeftModel
    raise ImportError("Adapters need peft: pip install peft")
