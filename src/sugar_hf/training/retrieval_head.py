"""The retrieval head in training: with alpha > 0 it is trained and saved, or training is refused before its start."""

from typing import Any

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ..model import SugarForConditionalGeneration
from ..model.adapters import has_adapters

RETRIEVAL_HEAD = "retrieval_head"

NEEDS_HEAD = "alpha={alpha:g} trains the retrieval head, but"
WITH_ADAPTER = (
    f'Give the configuration of the adapter modules_to_save=["{RETRIEVAL_HEAD}"], or make it with '
    "sugar_lora_config(model). With alpha=0 the language-model loss is trained alone."
)


def sugar_model(model: nn.Module) -> SugarForConditionalGeneration:
    """Return the Sugar model, however it is wrapped.

    Raises:
        TypeError: There is none.
    """
    for module in model.modules():
        if isinstance(module, SugarForConditionalGeneration):
            return module
    raise TypeError(
        f"model is a {type(model).__name__} without a Sugar model in it. Put a retrieval head on a backbone with "
        "SugarForConditionalGeneration.from_backbone(backbone)."
    )


def adapter_configs(model: nn.Module) -> dict[str, Any]:
    """Return the configurations of the adapters that are saved in the model's place, by name; none if it is whole."""
    if isinstance(model, PeftModel):
        return dict(model.peft_config)
    sugar: Any = sugar_model(model)
    return dict(sugar.peft_config) if sugar._hf_peft_config_loaded else {}


def in_head(name: str) -> bool:
    """Tell whether a parameter's name lies in the retrieval head, however the model is wrapped."""
    return RETRIEVAL_HEAD in name.split(".")


def check_head(model: nn.Module, alpha: float) -> None:
    """Refuse to train a model whose retrieval head would stay as it is, or would not be saved.

    Args:
        model: A Sugar model, as it is or with adapters on it.
        alpha: Weight of the structure loss; nothing is asked of the head when it is 0.

    Raises:
        ValueError: A weight of the head is frozen, or the model's adapter is saved without the head. It says what to
            change.
    """
    if not alpha:
        return
    head: Any = sugar_model(model).retrieval_head
    problem = NEEDS_HEAD.format(alpha=alpha)
    adapters = adapter_configs(model)
    if adapters:
        active = head.active_adapters if isinstance(head, ModulesToSaveWrapper) else []
        kept = [name for name in active if name in head.modules_to_save]
        if not kept:
            kinds = " and ".join(dict.fromkeys(str(config.peft_type.value) for config in adapters.values()))
            raise ValueError(f"{problem} the {kinds} adapter is trained and saved without it. {WITH_ADAPTER}")
        head = head.modules_to_save[kept[0]]
    elif has_adapters(model):
        raise ValueError(
            "The model has adapters, but knows nothing of them, and a checkpoint of it could not be loaded. Put them "
            "on with peft.get_peft_model(model, config) or model.add_adapter(config)."
        )
    if frozen := [name for name, weight in head.named_parameters() if not weight.requires_grad]:
        mend = WITH_ADAPTER if adapters else f"Call model.{RETRIEVAL_HEAD}.requires_grad_(True), or set alpha=0."
        raise ValueError(f"{problem} its weights {', '.join(frozen)} are frozen. {mend}")


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, alpha: float) -> None:
    """Refuse an optimizer that has some of the model's weights, but not all that are trained of the head.

    Raises:
        ValueError: A weight of the head is in no group of the optimizer.
    """
    if not alpha:
        return
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if not any(id(weight) in known for weight in trained.values()):
        return  # sharded weights, or an optimizer that updates them elsewhere
    if missing := [name for name, weight in trained.items() if in_head(name) and id(weight) not in known]:
        raise ValueError(
            f"{NEEDS_HEAD.format(alpha=alpha)} the optimizer does not have its weights {', '.join(missing)}. Make it "
            "of all of model.parameters() that need a gradient, or set alpha=0."
        )


def split_head(model: nn.Module, optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give the retrieval head parameter groups of its own learning rate; all else of its groups stays."""
    head = {id(parameter) for name, parameter in model.named_parameters() if in_head(name)}
    for group in list(optimizer.param_groups):
        if parameters := [parameter for parameter in group["params"] if id(parameter) in head]:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
            optimizer.add_param_group({**group, "params": parameters, "lr": learning_rate})
