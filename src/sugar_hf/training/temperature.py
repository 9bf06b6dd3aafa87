"""The learnt temperature of the structure loss, which belongs to the run and not to the model."""

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState

#: The temperature stays above it, as in CLIP.
MIN_TEMPERATURE = 0.01
KEY = "Temperature"  # in the state of a checkpoint


class LearntTemperature(TrainerCallback):
    """Keep the logit scale, the log of 1 / temperature, beside the model while the optimizer learns it.

    The optimizer has it in a group of its own, without weight decay. The norm of the gradient leaves it out, and it is
    not clipped. Checkpoints hold it with the state of the trainer.

    Args:
        temperature: Where it begins.
        device: Device of the embeddings.

    Raises:
        ValueError: It would begin below its limit, and jump to it with the first step.
    """

    def __init__(self, temperature: float, device: torch.device) -> None:
        if temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"temperature={temperature:g}: a learnt one stays above {MIN_TEMPERATURE:g}. Give more, or "
                "set learn_temperature=False."
            )
        self.start = -math.log(temperature)
        self.logit_scale = nn.Parameter(torch.tensor(self.start, dtype=torch.float32, device=device))

    @property
    def value(self) -> float:
        """The temperature of the moment."""
        return math.exp(-self.logit_scale.item())

    def reset(self) -> None:
        """Go back to the start, for a new model."""
        self._set(self.start)

    def add_to(self, optimizer: torch.optim.Optimizer, learning_rate: float | None, is_scheduled: bool) -> None:
        """Add the logit scale to an optimizer that does not have it.

        Args:
            optimizer: The optimizer.
            learning_rate: Its learning rate; None takes the optimizer's own.
            is_scheduled: Whether a schedule is there already, which would not know of it.

        Raises:
            ValueError: The schedule came with the optimizer.
        """
        if any(self.logit_scale is weight for group in optimizer.param_groups for weight in group["params"]):
            return
        if is_scheduled:
            raise ValueError(
                "learn_temperature=True adds the temperature to the optimizer, which the given schedule knows nothing "
                "of. Give optimizers=(optimizer, None), or set lr_scheduler_type."
            )
        group: dict[str, Any] = {"params": [self.logit_scale], "weight_decay": 0.0}
        optimizer.add_param_group(group if learning_rate is None else {**group, "lr": learning_rate})

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Take the logit scale of a checkpoint that is resumed."""
        if saved := state.stateful_callbacks.get(KEY):
            self._set(saved["attributes"]["logit_scale"])

    def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Drop the gradient of the step before, which the model's does not include."""
        self.logit_scale.grad = None

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Keep the temperature above its limit."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=-math.log(MIN_TEMPERATURE))

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Put the logit scale where a checkpoint has it."""
        state.stateful_callbacks[KEY] = {"args": {}, "attributes": {"logit_scale": self.logit_scale.item()}}

    def _set(self, logit_scale: float) -> None:
        with torch.no_grad():
            self.logit_scale.fill_(logit_scale)
