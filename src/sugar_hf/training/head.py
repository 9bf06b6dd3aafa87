"""The retrieval head is new while the rest of the model is not: a learning rate and a warm-up of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from .arguments import SugarTrainingArguments
from .lora import RETRIEVAL_HEAD


class HeadMixin(Trainer):
    """Applies `head_learning_rate` and `head_warmup_steps` of the arguments."""

    args: SugarTrainingArguments
    model: Any

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Makes the base trainer's optimizer, with the retrieval head in groups of its own learning rate."""
        if self.optimizer is not None or self.args.head_learning_rate is None:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        head = {
            id(parameter)
            for name, parameter in (self.model if model is None else model).named_parameters()
            if _in_head(name)
        }
        for group in list(optimizer.param_groups):
            parameters = [parameter for parameter in group["params"] if id(parameter) in head]
            if parameters:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in head]
                optimizer.add_param_group({**group, "params": parameters, "lr": self.args.head_learning_rate})
        return optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward pass; in the head's warm-up all other gradients are dropped."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.state.global_step < self.args.head_warmup_steps:
            for name, parameter in model.named_parameters():
                if not _in_head(name):
                    parameter.grad = None  # not zero: the optimizer must leave momentum and weight decay alone too
        return loss


def _in_head(name: str) -> bool:
    """Whether a parameter's name lies in the retrieval head, however the model is wrapped."""
    return RETRIEVAL_HEAD in name.split(".")
