"""Arguments of the Sugar trainers: those of `TrainingArguments`, and those of the structure loss."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import TrainingArguments

from ..structure import StructureLossConfig, softmax_temperature

DEFAULTS = StructureLossConfig()


def option(default: Any, help: str, *choices: str) -> Any:
    """Return the field of an argument, with what the command line says of it."""
    return field(default=default, metadata={"help": help, **({"choices": list(choices)} if choices else {})})


def usual_alpha(loss: StructureLossConfig) -> float:
    """Return the weight at which the gradient of a structure loss is about that of the others.

    >>> usual_alpha(StructureLossConfig(objective="mse")), round(usual_alpha(StructureLossConfig(objective="kl")), 3)
    (10.0, 0.45)
    """
    if loss.objective == "kl":
        return 20 * softmax_temperature(loss) ** 2
    if loss.objective == "infonce":
        return 0.3
    return 10.0 if loss.reduction == "mean" else 0.1


@dataclass
class StructureArguments:
    """Arguments of the structure loss; a mixin in front of an arguments class.

    The loss is L = L_g + alpha * L_d (eq. 1), with L_g the language-model loss and L_d the structure loss.

    Args:
        alpha: Weight of the structure loss; the paper does not give it. None takes what suits the objective:
            - `"kl"`: `20 * temperature²`, 0.45 at the default, as its gradient goes with `1 / temperature²`.
            - `"infonce"`: 0.3.
            - `"mse"`: 10; 0.1 with `reduction="paper"`, where the loss grows with the n slice ends of a batch.
            With 0 the structure loss is not computed at all.
        alpha_warmup_ratio: Share of the training steps over which alpha grows linearly from 0 to its value.
        positions_per_sample: K, the number of slice ends drawn at random from each sample in each step. 0 takes all.
        slice_seed: Seed of these draws; None takes `seed`.
        objective: `"kl"`, soft targets; `"mse"`, the paper's (eq. 5); or `"infonce"` for comparison.
        label_kernel: Label of two prefixes: `"calibrated"`, `"aligned"`, `"gak"` or `"mean"`.
        delta: Bandwidth of the alignment kernel (eq. 3); see [`StructureLossConfig`].
        single_slice: Label of one slice against one slice: their plain `"cosine"`, or the `"kernel"`.
        same_sample: Label of two prefixes of one sample: `"one"` as in the paper, or the `"kernel"`.
        teachers: `"triple"` (eq. 4), or `"clip"` for all pairs (the ablation without the triple kernel).
        centring: Whether the cosines of each modality block are centred by their mean over unrelated pairs.
        block_means: These means. None takes them from the teacher columns of the training set.
        reduction: `"mean"` over all pairs, or `"paper"`: the sum over pairs divided by n, which grows with the batch.
        temperature: Temperature of `"infonce"` and `"kl"`. None: 0.07 and 0.15.
        target_temperature: Temperature of the labels' softmax in `"kl"`; None takes `temperature`.
        mse_weight: Weight of `mse` beside `"kl"`, as in `kl + mse_weight * mse`.
        positive_share: Share of a row's target in `"kl"` that is spread over its positives.
        lifted_positives: These positives. `"all"`: ends of one sample and known positives of pairs; `"pairs"`: the
            latter alone.
        learn_temperature: Whether `temperature` is learnt, as in CLIP. It is not part of the model.
        matryoshka_dims: Sizes to which embeddings may be cut later: the structure loss is the mean over these sizes of
            the loss of the first numbers of each embedding. None trains the whole embedding alone.
        matryoshka_weights: Weights of the sizes in this mean; equal ones by default.
        image_pooling: `"mean"` or `"last"`; set in the model's configuration. None leaves the model as it is.
        text_pooling: The same for the tokens of a text.
        head_learning_rate: Learning rate of the retrieval head; None takes `learning_rate`. Both follow the same
            schedule.
        head_warmup_steps: Number of first steps in which only the retrieval head is trained.
        head_whitening_samples: Number of training samples by whose states the head is set before the first step: its
            embeddings begin as the whitened states, see [`whiten_head`]. What it has learnt before is lost. None: 512
            if nothing has trained the head since `from_backbone` has drawn it, else none. 0 leaves it as it is.
        label_statistics_steps: Every how many steps the statistics of the label matrix are logged; 0 for never.
        structure_loss_scope: `"global"`: pairs range over the batches of all processes. `"rank"`: each process forms
            pairs of its own samples only.
        mini_batch_size: The most samples in memory at once. A larger batch of `per_device_train_batch_size` is run in
            two passes of mini-batches, with the result of the whole batch.
        mini_batch_tokens: The same in tokens, padding included; with both, both hold.
        nonfinite_loss: What happens when a loss or the norm of the gradient is NaN or infinite: `"error"` stops with
            the step and the samples, `"skip"` leaves out the whole optimizer step, and logs the count as
            `skipped_steps`. `"skip"` does not work with DeepSpeed and FSDP.
        on_bad_sample: What happens to a sample that cannot be used: its image cannot be decoded, it is too long, the
            chat template does not take its roles. `"error"` stops with its id and source; `"skip"` leaves it out of
            its batch, in training and evaluation, and logs the count as `skipped_samples`.
        control_tokens_in_answers: Whether control tokens in the assistant's texts are learnt as such, rather than
            letter by letter.
        max_length: Longest sequence in tokens; None for no limit.
        truncation: What happens to a longer sample: `"error"`, or `"slice"` to drop its last slices with a warning.
        split_sentences: Whether each sentence of a text segment is a slice of its own.
        pairs_lm_loss: Whether the language-model loss learns the texts of pairs, too, as those of documents and chats.
        score_mapping: How scores of pairs become labels. `"label"`: as they are, -1 to 1. `"logit"`: by the logistic
            function, for the logits of a reranker.
        score_range: Scores that stand for the labels 0 and 1, such as `[0, 5]`, with a straight line between them.
        batch_sampler: `"no_duplicates"` keeps rows that have a sample in common out of one batch, over all processes.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `remove_unused_columns`: Defaults to `False` instead of `True`, since the collator reads raw samples.
    > - `logging_nan_inf_filter`: Defaults to `False` instead of `True`, since `nonfinite_loss` handles such losses.
    """

    alpha: float = option(  # a number from `__post_init__` on
        None, "Weight of the structure loss in L = L_g + alpha * L_d. None takes what suits the objective."
    )
    alpha_warmup_ratio: float = option(0.0, "Share of the training steps over which alpha grows linearly from 0.")
    positions_per_sample: int = option(4, "Slice ends drawn at random from each sample in each step. 0 takes all.")
    slice_seed: int | None = option(None, "Seed of the drawn slice ends. None takes seed.")
    objective: str = option(DEFAULTS.objective, "Objective of the structure loss.", "mse", "infonce", "kl")
    label_kernel: str = option(DEFAULTS.label_kernel, "Label of two prefixes.", "calibrated", "aligned", "gak", "mean")
    delta: float = option(DEFAULTS.delta, "Bandwidth of the alignment kernel.")
    single_slice: str = option(DEFAULTS.single_slice, "Label of one slice against one slice.", "cosine", "kernel")
    same_sample: str = option(DEFAULTS.same_sample, "Label of two prefixes of one sample.", "kernel", "one")
    teachers: str = option(
        DEFAULTS.teachers, "Teachers of the labels: triple, or CLIP for all pairs.", "triple", "clip"
    )
    centring: bool = option(DEFAULTS.centring, "Whether cosines are centred by modality block.")
    block_means: dict | str | None = option(  # noqa: RUF009
        None, "Mean cosine of unrelated pairs by modality block. None takes them from the training set."
    )
    reduction: str = option(DEFAULTS.reduction, "Mean over all pairs, or their sum divided by n.", "mean", "paper")
    temperature: float | None = option(None, "Temperature of infonce and kl. None takes the objective's own.")
    target_temperature: float | None = option(None, "Temperature of the targets of kl. None takes temperature.")
    mse_weight: float = option(DEFAULTS.mse_weight, "Weight of mse beside kl.")
    positive_share: float = option(
        DEFAULTS.positive_share, "Share of a row's target in kl that is spread over its positives."
    )
    lifted_positives: str = option(
        DEFAULTS.lifted_positives, "These positives: those of infonce, or known ones of pairs alone.", "all", "pairs"
    )
    learn_temperature: bool = option(DEFAULTS.learn_temperature, "Whether the temperature is learnt, as in CLIP.")
    matryoshka_dims: list[int] | None = option(  # noqa: RUF009
        None, "Sizes to which embeddings may be cut, each trained with the structure loss."
    )
    matryoshka_weights: list[float] | None = option(  # noqa: RUF009
        None, "Weights of these sizes. None makes them equal."
    )
    image_pooling: str | None = option(None, "Pooling of image tokens: mean or last. None leaves the model as it is.")
    text_pooling: str | None = option(
        None, "Pooling of a text's own tokens: mean or last. None leaves the model as it is."
    )
    head_learning_rate: float | None = option(None, "Learning rate of the retrieval head. None takes learning_rate.")
    head_warmup_steps: int = option(0, "Number of first steps in which only the retrieval head is trained.")
    head_whitening_samples: int | None = option(
        None, "Training samples by whose states the retrieval head is whitened first. None: 512 for a fresh head."
    )
    label_statistics_steps: int = option(10, "Every how many steps label statistics are computed. 0 for never.")
    structure_loss_scope: str = option(
        "global", "Pairs range over the whole batch or one process's.", "global", "rank"
    )
    mini_batch_size: int | None = option(None, "Most samples in memory at once; a larger batch is run in two passes.")
    mini_batch_tokens: int | None = option(None, "Most tokens in memory at once, padding included.")
    nonfinite_loss: str = option(
        "error", "A NaN or infinite loss stops the run, or its step is skipped.", "error", "skip"
    )
    on_bad_sample: str = option(
        "error", "A sample that cannot be used stops the run, or is left out.", "error", "skip"
    )
    control_tokens_in_answers: bool = option(
        True, "Whether control tokens in the assistant's texts are learnt as such."
    )
    max_length: int | None = option(None, "Longest sequence in tokens. None for no limit.")
    truncation: str = option("error", "A longer sample is an error, or loses its last slices.", "error", "slice")
    split_sentences: bool = option(False, "Whether each sentence of a text is a slice of its own.")
    pairs_lm_loss: bool = option(False, "Whether the language-model loss learns the texts of pairs too.")
    score_mapping: str = option("label", "How scores of pairs become labels.", "label", "logit")
    score_range: list[float] | None = option(  # noqa: RUF009
        None, "Scores that stand for the labels 0 and 1, such as 0 5."
    )
    batch_sampler: str = option(
        "batch_sampler", "Whether rows with a common sample may share a batch.", "batch_sampler", "no_duplicates"
    )
    remove_unused_columns: bool = option(False, "Whether columns that are no part of the sample schema are removed.")
    logging_nan_inf_filter: bool = option(False, "Whether the logged loss leaves out values that are NaN or infinite.")

    def structure_loss_config(self) -> StructureLossConfig:
        """Return the structure loss that these arguments describe.

        Raises:
            ValueError: A field has a value that it cannot have.
        """
        if self.block_means is not None and not isinstance(self.block_means, dict):
            raise ValueError(f"block_means={self.block_means!r}: give a JSON object with a number for each block.")
        return StructureLossConfig(**{each.name: getattr(self, each.name) for each in fields(StructureLossConfig)})

    def _check(self) -> None:
        """Check the fields of this class, and the base's that they exclude.

        Raises:
            ValueError: A field has a value that it cannot have; it names the field and what to give.
        """
        if isinstance(self.block_means, str):  # as the command line has it
            with contextlib.suppress(ValueError):
                self.block_means = json.loads(self.block_means)
        loss = self.structure_loss_config()
        if self.alpha is None:
            self.alpha = usual_alpha(loss)
        values = vars(self)
        least = dict.fromkeys(("alpha", "positions_per_sample", "slice_seed", "head_learning_rate"), 0)
        least |= {"head_warmup_steps": 0, "head_whitening_samples": 0, "label_statistics_steps": 0}
        least |= {"mini_batch_size": 1, "mini_batch_tokens": 1, "max_length": 1}
        for name, limit in least.items():
            if values[name] is not None and not values[name] >= limit:
                raise ValueError(f"{name}={values[name]}: give {limit} or more.")
        if not 0 <= self.alpha_warmup_ratio <= 1:
            raise ValueError(f"alpha_warmup_ratio={self.alpha_warmup_ratio}: give a share of the steps, 0 to 1.")
        choices = {
            each.name: each.metadata["choices"] for each in fields(StructureArguments) if "choices" in each.metadata
        }
        poolings = {name: [None, "mean", "last"] for name in ("image_pooling", "text_pooling")}
        for name, allowed in {**choices, **poolings}.items():
            if values[name] not in allowed:
                raise ValueError(f"{name}={values[name]!r}: give one of {', '.join(map(repr, allowed))}.")
        if self.score_range is not None:
            low_high = len(self.score_range) == 2 and self.score_range[0] < self.score_range[1]
            if not low_high or self.score_mapping != "label":
                raise ValueError(
                    f"score_range={self.score_range}: give [lowest, highest], and leave score_mapping alone."
                )
        if self.truncation == "slice" and self.max_length is None:
            raise ValueError("truncation='slice' does nothing without max_length.")
        if self.head_learning_rate == 0 and self.alpha:
            raise ValueError("head_learning_rate=0 leaves the retrieval head untrained: give a rate, or set alpha=0.")
        if self.head_warmup_steps and not self.alpha:
            raise ValueError("head_warmup_steps trains the retrieval head alone, which alpha=0 gives no gradient.")
        if self.head_whitening_samples and not self.alpha:
            raise ValueError("head_whitening_samples sets the retrieval head, which alpha=0 does not train.")
        if values["label_smoothing_factor"]:
            raise ValueError(
                "label_smoothing_factor is not supported: the loss is the backbone's own, without smoothing."
            )

    def _choose_direction(self) -> None:
        """Treat lower as better for `loss_lm` and `loss_structure` as metrics of the best model.

        The base asks whether a name ends with "loss".
        """
        values: Any = self
        metric = (values.metric_for_best_model or "").removeprefix("eval_")
        if values.greater_is_better is None and metric in ("loss_lm", "loss_structure"):
            values.greater_is_better = False


@dataclass
class SugarTrainingArguments(StructureArguments, TrainingArguments):  # noqa: D101 - it has that of its parent
    __doc__ = StructureArguments.__doc__

    def __post_init__(self) -> None:
        self._choose_direction()
        super().__post_init__()
        self._check()
