"""What stops a training that would go wrong: another library, an untrained head, a loss that is not finite.

Sugar's trainers need private parts of transformers and accelerate, as these offer no public way to them. A version
that renames one, or changes its parameters, is refused by name before it could train in another way than it says.
With alpha > 0 the retrieval head is trained and saved, or training is refused before its start. The losses of an
optimizer step are judged before the weights change.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from accelerate.state import GradientState
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import Trainer

from ..model import SugarForConditionalGeneration, SugarOutput
from ..model.adapters import has_adapters

RETRIEVAL_HEAD = "retrieval_head"
TITLES = {"loss_lm": "L_g (loss_lm)", "loss_structure": "L_d (loss_structure)"}
MAX_IDS = 32  # in a message

NEEDS_HEAD = "alpha={alpha:g} trains the retrieval head, but"
WITH_ADAPTER = (
    f'Give the configuration of the adapter modules_to_save=["{RETRIEVAL_HEAD}"], or make it with '
    "sugar_lora_config(model). With alpha=0 the language-model loss is trained alone."
)
#: Methods of `Trainer` that are overridden or called, their parameters, and what for.
TRAINER_HOOKS: dict[str, tuple[tuple[str, ...], str]] = {
    "_get_grad_norm": (("model", "grad_norm"), "nonfinite_loss"),
    "_get_train_sampler": (("train_dataset",), "train_sampling_strategy='group_by_length'"),
    "_get_eval_sampler": (("eval_dataset",), "evaluation with train_sampling_strategy='group_by_length'"),
    "_get_num_items_in_batch": (("batch_samples", "device"), "mini-batches and the language-model loss"),
    "_track_num_input_tokens": (("inputs",), "include_num_input_tokens_seen"),
    "_prepare_inputs": (("inputs",), "mini-batches"),
    "_get_output_dir": (("trial",), "atomic checkpoints"),
    "_save_checkpoint": (("model", "trial"), "atomic checkpoints"),
    "_push_from_checkpoint": (("checkpoint_folder",), "atomic checkpoints"),
    "_finish_current_push": ((), "uploads to the Hub"),
    "_load_from_checkpoint": (("resume_from_checkpoint", "model"), "resuming"),
    "_load_best_model": ((), "load_best_model_at_end"),
    "save_model": (("output_dir", "_internal_call"), "saving"),
    "get_batch_samples": (("epoch_iterator", "num_batches", "device"), "nonfinite_loss and on_bad_sample"),
    "training_step": (("model", "inputs", "num_items_in_batch"), "mini-batches"),
    "compute_loss": (("model", "inputs", "return_outputs", "num_items_in_batch"), "the loss"),
    "prediction_step": (("model", "inputs", "prediction_loss_only", "ignore_keys"), "evaluation"),
}
#: The same of accelerate's `GradientState`.
STATE_HOOKS: dict[str, tuple[tuple[str, ...], str]] = {
    "_set_sync_gradients": (("sync_gradients",), "mini-batches"),
}


# ---- Private parts of the libraries ----


def check_hooks(trainer_class: type = Trainer, state_class: type = GradientState) -> None:
    """Compare the hooks with the libraries that are installed.

    Raises:
        RuntimeError: A hook is gone or has other parameters. It names the hook, and what to install.
    """
    _check(trainer_class, TRAINER_HOOKS, f"transformers {transformers.__version__}")
    _check(state_class, STATE_HOOKS, "the installed accelerate")


def lost_hook(name: str, what: str) -> RuntimeError:
    """Return the error for a hook that exists, but that the library did not use."""
    return RuntimeError(
        f"{name} of transformers {transformers.__version__} was not used as Sugar's trainers expect, who need it for "
        f"{what}. Install another version of transformers that sugar-hf is tested with, or a newer sugar-hf."
    )


def _check(owner: type, hooks: Mapping[str, tuple[tuple[str, ...], str]], version: str) -> None:
    for name, (expected, what) in hooks.items():
        method: Any = inspect.getattr_static(owner, name, None)
        parameters = [] if method is None else list(inspect.signature(method).parameters.values())
        if any(parameter.kind == parameter.VAR_POSITIONAL for parameter in parameters):
            continue  # wrapped by somebody, who hands on whatever comes
        names = tuple(parameter.name for parameter in parameters[1:])
        if method is None or names != expected:
            now = "is gone" if method is None else f"takes ({', '.join(names)})"
            raise RuntimeError(
                f"Sugar's trainers need {owner.__name__}.{name}({', '.join(expected)}) for {what}; in {version} it "
                f"{now}. Install a version that sugar-hf is tested with (pip install 'sugar-hf' names the range), or "
                "a newer sugar-hf."
            )


# ---- The retrieval head ----


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


# ---- The losses of a step ----


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
