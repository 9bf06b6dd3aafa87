"""The losses of an optimizer step, judged before the weights change, and their means for the log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model import SugarOutput
from .hooks import lost_hook

TITLES = {"loss_lm": "L_g (loss_lm)", "loss_structure": "L_d (loss_structure)"}
MAX_IDS = 32  # in a message


class WindowMeans:
    """Average named values over a logging window; they stay on the device until they are logged.

    >>> means = WindowMeans()
    >>> means.add({"loss": torch.tensor(1.0)}, weight=1.0)
    >>> means.add({"loss": torch.tensor(4.0), "rare": torch.tensor(2.0)}, weight=2.0)
    >>> means.pop()
    {'loss': 3.0, 'rare': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add one observation of each value; tensors are not synchronised."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def pop(self) -> dict[str, float]:
        """Return the means and start a new window."""
        means = {name: (total / self._weights[name]).item() for name, total in self._sums.items()}
        self._sums, self._weights = {}, {}
        return means


@dataclass
class Observation:
    """Hold the losses of one micro-batch and what distinguishes its samples."""

    losses: dict[str, Tensor]
    sample_ids: Sequence[str]
    bad_samples: Tensor | None


class LossGuard:
    """Judge each optimizer step by the losses of its micro-batches and the norm of its gradient.

    Nothing is synchronised with the device but in [`judge`].

    Attributes:
        means: Means of the logged values over the steps that were made.
        in_a_row: Number of the last steps that were not finite, one after the other.

    >>> guard = LossGuard()
    >>> guard.check({"loss_lm": torch.tensor(2.0), "loss_structure": torch.tensor(float("nan"))}, ["a", "b"])
    >>> guard.judge()
    False
    >>> guard.fault()
    "L_d (loss_structure) is nan, L_g (loss_lm) is 2. The micro-batch has the samples 'a', 'b'."
    """

    def __init__(self) -> None:
        self.means = WindowMeans()
        self.in_a_row = 0
        self._observations: list[Observation] = []
        self._logged: list[tuple[Mapping[str, Tensor | float], float]] = []  # of this step
        self._gradient_norm: Tensor | None = None
        self._first_step: int | None = None
        self._judged = 0
        self._steps = self._left_out = 0  # since the last log

    def start_step(self, global_step: int) -> None:
        """Begin an optimizer step, with the number of those made so far; see [`check_judged`] for the error."""
        self.check_judged(global_step)
        self._observations, self._logged, self._gradient_norm = [], [], None

    def check_judged(self, global_step: int) -> None:
        """Check that every step made so far was judged.

        Raises:
            RuntimeError: One was not, as the library does not call the trainer where it used to.
        """
        self._first_step = global_step if self._first_step is None else self._first_step
        if global_step - self._first_step > self._judged:
            raise lost_hook("_get_grad_norm", "nonfinite_loss")

    def check(
        self, losses: Mapping[str, Tensor], sample_ids: Sequence[str] | None = None, bad_samples: Tensor | None = None
    ) -> None:
        """Add the losses of a micro-batch.

        Args:
            losses: Scalars by name.
            sample_ids: Ids of the samples in the micro-batch, for the message.
            bad_samples: Which of these samples have something of their own that is not finite.

        Shape:
            - `bad_samples`: `(B,)` bool.
        """
        kept = {name: loss.detach() for name, loss in losses.items()}
        self._observations.append(Observation(kept, sample_ids or (), bad_samples))

    def log(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Add values to the means, if this step is found to be finite."""
        self._logged.append((values, weight))

    def judge(self, gradient_norm: Any = None, sum_over_processes: Callable[[Tensor], Tensor] | None = None) -> bool:
        """Tell whether the optimizer step may be made; the answer is the same in all processes.

        Args:
            gradient_norm: Norm of the accumulated gradient, if it is to be judged too.
            sum_over_processes: Sums a number over all processes.
        """
        self._judged += 1
        self._steps += 1
        values = [loss for observation in self._observations for loss in observation.losses.values()]
        if gradient_norm is not None:
            self._gradient_norm = _plain(torch.as_tensor(gradient_norm))
            values.append(self._gradient_norm)
        is_bad = False
        if values:
            device = values[0].device
            bad = ~torch.stack([value.to(device, torch.float32) for value in values]).isfinite().all()
            is_bad = bool(bad if sum_over_processes is None else sum_over_processes(bad.int()))
        self.in_a_row = self.in_a_row + 1 if is_bad else 0
        for logged, weight in [] if is_bad else self._logged:
            self.means.add(logged, weight)
        return not is_bad

    def leave_out(self) -> None:
        """Count the step as one that was not made, for [`mean_loss`]."""
        self._left_out += 1

    def mean_loss(self, loss: float) -> float:
        """Return the mean loss of the steps that were made since the last call, given the mean over all steps."""
        made = self._steps - self._left_out
        if self._left_out:
            loss = loss * self._steps / made if made else float("nan")
        self._steps = self._left_out = 0
        return loss

    def fault(self) -> str:
        """Describe what is not finite in this step, and name the samples it belongs to."""
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


def nonfinite_samples(
    outputs: SugarOutput, attention_mask: Tensor, features: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Find the samples of a batch with outputs or teacher vectors that are not finite.

    Args:
        outputs: Outputs of the model.
        attention_mask: Which tokens are real.
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


def _plain(norm: Tensor) -> Tensor:
    """Return the norm as an ordinary tensor; sharded models have it as a distributed one."""
    if type(norm) is not Tensor:
        from torch.distributed.tensor import DTensor

        if isinstance(norm, DTensor):
            return norm.full_tensor()
    return norm


def _samples(observations: Sequence[Observation]) -> str:
    """Name the samples of micro-batches, and those of them that are known to be bad."""
    ids: list[str] = []
    bad: list[str] = []
    for observation in observations:
        ids += observation.sample_ids
        if observation.bad_samples is not None:
            flags = zip(observation.sample_ids, observation.bad_samples.tolist(), strict=False)
            bad += [name for name, flag in flags if flag]
    if not ids:
        return ""
    where = "The micro-batch has" if len(observations) == 1 else f"Its {len(observations)} micro-batches have"
    named = "" if not bad else "all of them" if len(bad) == len(ids) else _list(bad)
    fault = f" The outputs or teacher vectors of {named} are not finite." if named else ""
    return f"{where} the samples {_list(ids)}.{fault}"


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_IDS} more" if len(names) > MAX_IDS else ""
    return ", ".join(map(repr, names[:MAX_IDS])) + more
