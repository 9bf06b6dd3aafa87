"""Private parts of transformers and accelerate that Sugar's trainers need, and the check that they are there.

The libraries offer no public way to them. A version that renames one, or changes its parameters, is refused by name
before it could train in another way than it says.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import transformers
from accelerate.state import GradientState
from transformers import Trainer

#: Methods of `Trainer` that are overridden or called, their parameters, and what for.
TRAINER_HOOKS: dict[str, tuple[tuple[str, ...], str]] = {
    "_get_grad_norm": (("model", "grad_norm"), "nonfinite_loss"),
    "_get_train_sampler": (("train_dataset",), "train_sampling_strategy='group_by_length'"),
    "_get_num_items_in_batch": (("batch_samples", "device"), "mini-batches and the language-model loss"),
    "_track_num_input_tokens": (("inputs",), "include_num_input_tokens_seen"),
    "_prepare_inputs": (("inputs",), "mini-batches"),
    "_get_output_dir": (("trial",), "atomic checkpoints"),
    "_save_checkpoint": (("model", "trial"), "atomic checkpoints"),
    "_push_from_checkpoint": (("checkpoint_folder",), "atomic checkpoints"),
    "_finish_current_push": ((), "uploads to the Hub"),
    "init_hf_repo": (("token", "private"), "uploads to the Hub"),
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
