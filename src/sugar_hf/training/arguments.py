"""Arguments of the Sugar trainers: what `TrainingArguments` has, and what the structure loss needs."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from sugar_hf.structure import StructureLossConfig

DEFAULTS = StructureLossConfig()


@dataclass
class StructureArguments:
    """What the Sugar trainers need beside their base's arguments; a mixin in front of an arguments class.

    The loss is L = L_g + alpha * L_d (eq. 1), with L_g the language-model loss and L_d the structure loss.

    Args:
        alpha (`float`, *optional*, defaults to 10.0):
            Weight of the structure loss; the paper does not give it. It belongs to the `reduction`: with n slice ends
            in a batch, `alpha` under `"mean"` equals `alpha / n` under `"paper"`. The objectives `"infonce"` and
            `"kl"` are of order log n and want a far smaller alpha, of order 0.3. With 0 the structure loss is not
            computed at all.
        alpha_warmup_ratio (`float`, *optional*, defaults to 0.0):
            Share of the training steps over which alpha grows linearly from 0 to its value.
        positions_per_sample (`int`, *optional*, defaults to 4):
            K, the number of slice ends drawn at random from each sample in each step. 0 takes all of them.
        slice_seed (`int`, *optional*):
            Seed of these draws; None takes `seed`.
        objective (`str`, *optional*, defaults to `"mse"`):
            `"mse"` (eq. 5), or for comparison `"infonce"` and `"kl"`.
        label_kernel (`str`, *optional*):
            Label of two prefixes: `"calibrated"`, `"aligned"`, `"gak"` or `"mean"`.
        delta (`float`, *optional*):
            Bandwidth of the alignment kernel (eq. 3); see [`StructureLossConfig`].
        single_slice (`str`, *optional*):
            Label of one slice against one slice: their plain `"cosine"`, or the `"kernel"`.
        same_sample (`str`, *optional*):
            Label of two prefixes of one sample: `"one"` as in the paper, or the `"kernel"`.
        teachers (`str`, *optional*):
            `"triple"` (eq. 4), or `"clip"` for all pairs (the ablation without the triple kernel).
        centring (`bool`, *optional*):
            Whether the cosines of each modality block are centred by their mean over unrelated pairs.
        block_means (`dict`, *optional*):
            These means. None takes them from the teacher columns of the training set.
        reduction (`str`, *optional*):
            `"mean"` over all pairs, or `"paper"`: the sum over pairs divided by n, which grows with the batch.
        temperature (`float`, *optional*):
            Temperature of `"infonce"` and `"kl"`.
        matryoshka_dims (`list[int]`, *optional*):
            Sizes to which embeddings may be cut later: the structure loss is the mean over these sizes of the loss of
            the first numbers of each embedding. None trains the whole embedding alone.
        matryoshka_weights (`list[float]`, *optional*):
            Weights of the sizes in this mean; equal ones by default.
        image_pooling (`str`, *optional*):
            `"mean"` or `"last"`; set in the model's configuration. None leaves the model as it is.
        head_learning_rate (`float`, *optional*):
            Learning rate of the retrieval head; None takes `learning_rate`. Both follow the same schedule.
        head_warmup_steps (`int`, *optional*, defaults to 0):
            Number of first steps in which only the retrieval head is trained.
        label_statistics_steps (`int`, *optional*, defaults to 10):
            Every how many steps the statistics of the label matrix are computed for the log; 0 for never.
        structure_loss_scope (`str`, *optional*, defaults to `"global"`):
            `"global"`: pairs range over the batches of all processes. `"rank"`: each process forms pairs of its own
            samples only.
        mini_batch_size (`int`, *optional*):
            The most samples in memory at once. A larger batch of `per_device_train_batch_size` is run in two passes
            of mini-batches, with the result of the whole batch.
        mini_batch_tokens (`int`, *optional*):
            The same in tokens, padding included; with both, both hold.
        nonfinite_loss (`str`, *optional*, defaults to `"error"`):
            What happens when a loss or the norm of the gradient is NaN or infinite: `"error"` stops with the step and
            the samples, `"skip"` leaves out the whole optimizer step, counts it and logs the count as
            `skipped_steps`. `"skip"` does not work with DeepSpeed and FSDP.
        on_bad_sample (`str`, *optional*, defaults to `"error"`):
            What happens to a sample that cannot be used: its image cannot be decoded, it is too long, the chat
            template does not take its roles. `"error"` stops with its id and source; `"skip"` leaves it out of its
            batch, in training and evaluation, says so, and logs the count as `skipped_samples`.
        control_tokens_in_answers (`bool`, *optional*, defaults to `True`):
            Whether control tokens in the assistant's texts are learnt as such, rather than letter by letter.
        max_length (`int`, *optional*):
            Longest sequence in tokens; None for no limit.
        truncation (`str`, *optional*, defaults to `"error"`):
            What happens to a longer sample: `"error"`, or `"slice"` to drop its last slices with a warning.
        split_sentences (`bool`, *optional*, defaults to `False`):
            Whether each sentence of a text segment is a slice of its own.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `remove_unused_columns`: Defaults to `False` instead of `True`, since the collator reads raw samples.
    > - `logging_nan_inf_filter`: Defaults to `False` instead of `True`, since `nonfinite_loss` handles such losses.
    """

    alpha: float = field(default=10.0, metadata={"help": "Weight of the structure loss in L = L_g + alpha * L_d."})
    alpha_warmup_ratio: float = field(
        default=0.0, metadata={"help": "Share of the training steps over which alpha grows linearly from 0."}
    )
    positions_per_sample: int = field(
        default=4, metadata={"help": "Slice ends drawn at random from each sample in each step. 0 takes all."}
    )
    slice_seed: int | None = field(default=None, metadata={"help": "Seed of the drawn slice ends. None takes seed."})
    objective: str = field(
        default=DEFAULTS.objective,
        metadata={"help": "Objective of the structure loss.", "choices": ["mse", "infonce", "kl"]},
    )
    label_kernel: str = field(
        default=DEFAULTS.label_kernel,
        metadata={"help": "Label of two prefixes.", "choices": ["calibrated", "aligned", "gak", "mean"]},
    )
    delta: float = field(default=DEFAULTS.delta, metadata={"help": "Bandwidth of the alignment kernel."})
    single_slice: str = field(
        default=DEFAULTS.single_slice,
        metadata={"help": "Label of one slice against one slice.", "choices": ["cosine", "kernel"]},
    )
    same_sample: str = field(
        default=DEFAULTS.same_sample,
        metadata={"help": "Label of two prefixes of one sample.", "choices": ["kernel", "one"]},
    )
    teachers: str = field(
        default=DEFAULTS.teachers,
        metadata={"help": "Teachers of the labels: triple, or CLIP for all pairs.", "choices": ["triple", "clip"]},
    )
    centring: bool = field(
        default=DEFAULTS.centring, metadata={"help": "Whether cosines are centred by modality block."}
    )
    block_means: dict | str | None = field(
        default=None,
        metadata={"help": "Mean cosine of unrelated pairs by modality block. None takes them from the training set."},
    )
    reduction: str = field(
        default=DEFAULTS.reduction,
        metadata={"help": "Mean over all pairs, or their sum divided by n.", "choices": ["mean", "paper"]},
    )
    temperature: float = field(
        default=DEFAULTS.temperature, metadata={"help": "Temperature of the objectives infonce and kl."}
    )
    matryoshka_dims: list[int] | None = field(
        default=None, metadata={"help": "Sizes to which embeddings may be cut, each trained with the structure loss."}
    )
    matryoshka_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of these sizes. None makes them equal."}
    )
    image_pooling: str | None = field(
        default=None,
        metadata={"help": "Pooling of image tokens: mean or last. None leaves the model as it is."},
    )
    head_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the retrieval head. None takes learning_rate."}
    )
    head_warmup_steps: int = field(
        default=0, metadata={"help": "Number of first steps in which only the retrieval head is trained."}
    )
    label_statistics_steps: int = field(
        default=10, metadata={"help": "Every how many steps label statistics are computed. 0 for never."}
    )
    structure_loss_scope: str = field(
        default="global",
        metadata={"help": "Pairs range over the whole batch or one process's.", "choices": ["global", "rank"]},
    )
    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Most samples in memory at once; a larger batch is run in two passes."}
    )
    mini_batch_tokens: int | None = field(
        default=None, metadata={"help": "Most tokens in memory at once, padding included."}
    )
    nonfinite_loss: str = field(
        default="error",
        metadata={
            "help": "A NaN or infinite loss stops the run, or its step is skipped.",
            "choices": ["error", "skip"],
        },
    )
    on_bad_sample: str = field(
        default="error",
        metadata={"help": "A sample that cannot be used stops the run, or is left out.", "choices": ["error", "skip"]},
    )
    control_tokens_in_answers: bool = field(
        default=True, metadata={"help": "Whether control tokens in the assistant's texts are learnt as such."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Longest sequence in tokens. None for no limit."})
    truncation: str = field(
        default="error",
        metadata={"help": "A longer sample is an error, or loses its last slices.", "choices": ["error", "slice"]},
    )
    split_sentences: bool = field(
        default=False, metadata={"help": "Whether each sentence of a text is a slice of its own."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Whether columns that are no part of the sample schema are removed."}
    )
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether the logged loss leaves out values that are NaN or infinite."}
    )

    def structure_loss_config(self) -> StructureLossConfig:
        """The structure loss that these arguments describe.

        Raises:
            ValueError: A field has a value that it cannot have.
        """
        if self.block_means is not None and not isinstance(self.block_means, dict):
            raise ValueError(f"block_means={self.block_means!r}: give a JSON object with a number for each block.")
        return StructureLossConfig(
            objective=self.objective,
            label_kernel=self.label_kernel,
            delta=self.delta,
            single_slice=self.single_slice,
            same_sample=self.same_sample,
            teachers=self.teachers,
            centring=self.centring,
            block_means=self.block_means,
            reduction=self.reduction,
            temperature=self.temperature,
            matryoshka_dims=self.matryoshka_dims,
            matryoshka_weights=self.matryoshka_weights,
        )

    def _check_structure_arguments(self) -> None:
        """Validates the fields of this class.

        Raises:
            ValueError: A field has a value that it cannot have; it names the field and what to give.
        """
        if isinstance(self.block_means, str):  # as the command line has it
            with contextlib.suppress(ValueError):
                self.block_means = json.loads(self.block_means)
        self.structure_loss_config()
        for name, least in (
            ("alpha", 0),
            ("positions_per_sample", 0),
            ("slice_seed", 0),
            ("head_learning_rate", 0),
            ("head_warmup_steps", 0),
            ("label_statistics_steps", 0),
            ("mini_batch_size", 1),
            ("mini_batch_tokens", 1),
            ("max_length", 1),
        ):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise ValueError(f"{name}={value}: give {least} or more.")
        if not 0 <= self.alpha_warmup_ratio <= 1:
            raise ValueError(f"alpha_warmup_ratio={self.alpha_warmup_ratio}: give a share of the steps, 0 to 1.")
        for name, choices in (
            ("structure_loss_scope", ("global", "rank")),
            ("nonfinite_loss", ("error", "skip")),
            ("on_bad_sample", ("error", "skip")),
            ("truncation", ("error", "slice")),
            ("image_pooling", (None, "mean", "last")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name}={value!r}: give one of {', '.join(map(repr, choices))}.")
        if self.truncation == "slice" and self.max_length is None:
            raise ValueError("truncation='slice' does nothing without max_length.")
        if self.head_learning_rate == 0 and self.alpha:
            raise ValueError("head_learning_rate=0 leaves the retrieval head untrained: give a rate, or set alpha=0.")
        if self.head_warmup_steps and not self.alpha:
            raise ValueError("head_warmup_steps trains the retrieval head alone, which alpha=0 gives no gradient.")


def settle_direction(args: Any) -> None:
    """Makes less better for our losses as metrics of the best model; the base asks whether a name ends with "loss"."""
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if args.greater_is_better is None and metric in ("loss_lm", "loss_structure"):
        args.greater_is_better = False


@dataclass
class SugarTrainingArguments(StructureArguments, TrainingArguments):
    __doc__ = StructureArguments.__doc__

    def __post_init__(self) -> None:
        settle_direction(self)
        super().__post_init__()
        self._check_structure_arguments()
        if self.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor is not supported: the loss is the backbone's own, without smoothing."
            )
