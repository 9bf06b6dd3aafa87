"""A NaN or infinite loss stops the run and says why, or its step is left out and counted; the weights never see it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from sugar_hf.model import SugarOutput

from .arguments import SugarTrainingArguments
from .hooks import lost_hook
from .metrics import WindowMeans
from .mini_batches import each_batch

logger = logging.getLogger(__name__)

TITLES = {"loss_lm": "L_g (loss_lm)", "loss_structure": "L_d (loss_structure)"}
NAMED = 32  # sample ids in a message
COUNT = "LossGuard"  # key of the count among the callbacks' states, which is the part of the state open to additions


@dataclass
class Observation:
    """The losses of one micro-batch and what tells its samples apart."""

    losses: dict[str, Tensor]
    sample_ids: Sequence[str] | None
    bad_samples: Tensor | None


class LossGuard:
    """Collects the losses of an optimizer step's micro-batches and finds out once, before the step, if all are finite.

    Nothing is synchronised with the device but in [`finish_window`].

    >>> guard = LossGuard()
    >>> guard.check({"loss_lm": torch.tensor(2.0), "loss_structure": torch.tensor(float("nan"))}, ["a", "b"])
    >>> guard.finish_window()
    True
    >>> guard.fault()
    "L_d (loss_structure) is nan, L_g (loss_lm) is 2. The micro-batch has the samples 'a', 'b'."
    """

    def __init__(self) -> None:
        self._observations: list[Observation] = []
        self._gradient_norm: Tensor | None = None

    def start_window(self) -> None:
        """Forgets everything: a new optimizer step begins."""
        self._observations, self._gradient_norm = [], None

    def check(
        self, losses: Mapping[str, Tensor], sample_ids: Sequence[str] | None = None, bad_samples: Tensor | None = None
    ) -> None:
        """Adds the losses of a micro-batch.

        Args:
            losses: Scalars by name.
            sample_ids: Ids of the samples in the micro-batch, for the message.
            bad_samples: Which of these samples have something of their own that is not finite.

        Shape:
            - `bad_samples`: `(B,)` bool.
        """
        kept = {name: loss.detach() for name, loss in losses.items()}
        self._observations.append(Observation(kept, sample_ids, bad_samples))

    def finish_window(
        self,
        gradient_norm: Tensor | float | None = None,
        over_processes: Callable[[Tensor], Tensor] | None = None,
    ) -> bool:
        """Whether the optimizer step must not be made; the same answer in all processes.

        Args:
            gradient_norm: Norm of the accumulated gradient, if it is to be judged too.
            over_processes: Sums a number over all processes.
        """
        values = [loss for observation in self._observations for loss in observation.losses.values()]
        if gradient_norm is not None:
            self._gradient_norm = torch.as_tensor(gradient_norm)
            values.append(self._gradient_norm)
        if not values:
            return False
        device = values[0].device
        bad = ~torch.stack([value.to(device, torch.float32) for value in values]).isfinite().all()
        if over_processes is not None:
            bad = over_processes(bad.int())
        return bool(bad)

    def fault(self) -> str:
        """What is not finite in this window, and the samples it belongs to."""
        for observation in self._observations:
            losses = {name: loss.item() for name, loss in observation.losses.items()}
            bad = {name: loss for name, loss in losses.items() if not torch.tensor(loss).isfinite()}
            if bad:
                parts = [f"{TITLES.get(name, name)} is {losses[name]:.4g}" for name in (*bad, *(losses.keys() - bad))]
                return f"{', '.join(parts)}. {_samples([observation])}".rstrip()
        norm = self._gradient_norm
        if norm is not None and not norm.isfinite():
            return (
                f"The norm of the gradient is {norm.item():.4g}, though the losses of this process are finite. "
                f"{_samples(self._observations)}"
            ).rstrip()
        return "A loss of another process is not finite; its message names the samples."


class GuardedStepMixin(Trainer):
    """Applies `nonfinite_loss` of the arguments: a trainer's `compute_loss` gives its losses to `self.guard.check`.

    The check comes after the last backward pass of an optimizer step, when the norm of its gradient is known.
    """

    args: SugarTrainingArguments
    model: Any
    _first_step: int | None = None
    _judged_steps = 0

    def __init__(self, *rest: Any, **kwargs: Any):
        self.guard = LossGuard()
        self._train_means = WindowMeans()
        self._loss_before: Tensor | None = None
        self._steps_since_log = self._skipped_since_log = self._skipped_in_a_row = 0
        super().__init__(*rest, **kwargs)
        if self.args.nonfinite_loss == "skip":
            self._check_skippable()

    def train(self, *rest: Any, **kwargs: Any) -> Any:
        """The base trainer's `train`; what an earlier call has left over is not of this one."""
        self._train_means = WindowMeans()
        self._steps_since_log = self._skipped_since_log = self._skipped_in_a_row = 0
        self._first_step, self._judged_steps = None, 0
        output = super().train(*rest, **kwargs)
        self._check_judged()
        return output

    def _check_skippable(self) -> None:
        optimizer = str(self.args.optim.value)
        early = [name for name in ("lomo", "layerwise") if name in optimizer]
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or early:
            culprit = f"optim={optimizer!r}" if early else "DeepSpeed" if self.is_deepspeed_enabled else "FSDP"
            raise ValueError(
                f"nonfinite_loss='skip' does not work with {culprit}, where the gradients cannot be taken back before "
                "the weights change. Use nonfinite_loss='error'."
            )

    @property
    def skipped_steps(self) -> int:
        """Number of optimizer steps left out so far because of a loss or gradient that was not finite."""
        return self.state.stateful_callbacks.get(COUNT, {}).get("attributes", {}).get("skipped_steps", 0)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The base trainer's micro-batches of one optimizer step, with which a window of the guard begins."""
        self._check_judged()
        self.guard.start_window()
        self._train_means.mark()
        running = vars(self).get("_tr_loss")
        if not isinstance(running, Tensor):
            raise lost_hook("_tr_loss", "nonfinite_loss")
        self._loss_before = running.clone()
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        has_labels = any("labels" in batch for batch in each_batch(batches))
        if count is None and has_labels and self.model_accepts_loss_kwargs:
            raise lost_hook("_get_num_items_in_batch", "the language-model loss")
        return batches, count

    def _check_judged(self) -> None:
        """Makes sure that the guard was asked before each optimizer step that has been made."""
        if self._first_step is None:
            self._first_step = self.state.global_step
        if self.state.global_step - self._first_step > self._judged_steps:
            raise lost_hook("_get_grad_norm", "nonfinite_loss")

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The base trainer's norm; the last place before the optimizer step."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # A gradient scaler makes infinite norms on its way to the right scale, and leaves out these steps itself.
        self._judged_steps += 1
        judged = None if self.accelerator.scaler is not None else _plain(grad_norm)
        self._steps_since_log += 1
        if not self.guard.finish_window(judged, self._sum_over_processes if self.args.world_size > 1 else None):
            self._skipped_in_a_row = 0
        elif self.args.nonfinite_loss == "error":
            raise FloatingPointError(self._message())
        else:
            self._void_step(model)
        return grad_norm

    def _void_step(self, model: nn.Module) -> None:
        """Takes back what the micro-batches have left, so that the optimizer finds nothing to do."""
        model.zero_grad(set_to_none=True)  # without a gradient weights, momentum and weight decay stay as they are
        self._train_means.rollback()
        if self._loss_before is not None:
            self._tr_loss.copy_(self._loss_before)
        count = self.skipped_steps + 1
        self.state.stateful_callbacks[COUNT] = {"args": {}, "attributes": {"skipped_steps": count}}
        self._skipped_since_log += 1
        self._skipped_in_a_row += 1
        row = f", {self._skipped_in_a_row} in a row" if self._skipped_in_a_row > 1 else ""
        logger.warning(
            f"Step {self.state.global_step + 1} is left out ({count} so far{row}). {self.guard.fault()}"
            + (" The weights or the data are probably broken." if self._skipped_in_a_row >= 5 else "")
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs `loss` as the mean over the steps that were made; with `nonfinite_loss="skip"` the count of others."""
        if "loss" in logs:
            if self._skipped_since_log:
                made = self._steps_since_log - self._skipped_since_log
                logs["loss"] = logs["loss"] * self._steps_since_log / made if made else float("nan")
            if self.args.nonfinite_loss == "skip":
                logs["skipped_steps"] = self.skipped_steps
            self._steps_since_log = self._skipped_since_log = 0
        super().log(logs, start_time)

    def _sum_over_processes(self, number: Tensor) -> Tensor:
        return self.accelerator.reduce(number, reduction="sum")

    def _message(self) -> str:
        args = self.args
        alpha = f", lower alpha (now {args.alpha:g})" if args.alpha else ""
        return (
            f"Step {self.state.global_step + 1}: {self.guard.fault()} The weights are still those before this step. "
            f"Look at these samples; lower learning_rate (now {args.learning_rate:g}) or warm it up{alpha}, or train "
            f"in float32, or in bf16 instead of fp16 (now fp16={args.fp16}, bf16={args.bf16}). nonfinite_loss='skip' "
            "leaves out and counts such steps."
        )


def nonfinite_samples(
    outputs: SugarOutput, attention_mask: Tensor, features: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Which samples of a batch have outputs or teacher vectors that are not finite.

    Args:
        outputs: Outputs of the model.
        attention_mask: Which tokens count.
        features: Fields of a `SliceFeatures`.

    Shape:
        - `attention_mask`: `(B, L)`; the outputs may have more samples behind these
        - Output: `(B,)` bool.
    """
    bad = torch.zeros(len(attention_mask), dtype=torch.bool, device=attention_mask.device)  # (B,)
    if outputs.last_hidden_state is not None:
        states = outputs.last_hidden_state[: len(bad)].detach().float().sum(-1)  # (B, L)
        bad |= (~states.isfinite() & attention_mask.bool()).any(dim=1).to(bad.device)
    vectors = [] if outputs.retrieval_embeds is None else [outputs.retrieval_embeds.detach()]
    if features is not None:
        vectors += [features[name] for name in ("clip", "dino", "text")]
    for vector in vectors:  # (B, S, d), zeros where a sample has no such slice
        bad |= ~vector[: len(bad)].sum((1, 2)).isfinite().to(bad.device)
    return bad


def _plain(norm: Any) -> Any:
    """The norm as an ordinary tensor or number; sharded models have it as a distributed one."""
    if isinstance(norm, Tensor) and type(norm) is not Tensor:
        from torch.distributed.tensor import DTensor

        if isinstance(norm, DTensor):
            return norm.full_tensor()
    return norm


def _samples(observations: Sequence[Observation]) -> str:
    """Names the samples of micro-batches, those that are known to be bad singled out."""
    ids = [name for observation in observations for name in observation.sample_ids or ()]
    if not ids:
        return ""
    bad = [
        name
        for observation in observations
        if observation.bad_samples is not None
        for name, flag in zip(observation.sample_ids or (), observation.bad_samples.tolist(), strict=False)
        if flag
    ]
    where = "The micro-batch has" if len(observations) == 1 else f"Its {len(observations)} micro-batches have"
    text = f"{where} the samples {_list(ids)}."
    if not bad:
        return text
    if len(bad) == len(ids):
        return f"{text} The outputs or teacher vectors of all of them are not finite."
    return f"{text} The outputs or teacher vectors of {_list(bad)} are not finite."


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(repr(name) for name in names[:NAMED]) + more
