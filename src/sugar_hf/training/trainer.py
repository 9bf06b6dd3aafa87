"""Trainers for L = L_g + alpha * L_d: the language-model loss and the structure loss, from one forward pass."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from sugar_hf.model import SugarForConditionalGeneration, SugarOutput, SugarProcessor
from sugar_hf.structure import (
    TEACHER_COLUMNS,
    SliceFeatures,
    StructureLossConfig,
    TripleTeacher,
    block_means,
    check_cache,
    label_matrix,
    label_statistics,
    structure_loss,
)

from .arguments import StructureArguments, SugarTrainingArguments
from .checkpoints import SafeCheckpointMixin
from .collator import SugarCollator
from .ends import draw_slice_ends
from .guard import GuardedStepMixin, nonfinite_samples
from .lora import RETRIEVAL_HEAD
from .metrics import WindowMeans

logger = logging.getLogger(__name__)

ROW_COLUMNS = ("id", "source", "messages", "images", *TEACHER_COLUMNS)
# Not handed to `compute_metrics`: each is as large as the activations of the batch.
LARGE_OUTPUTS = ["past_key_values", "last_hidden_state", "hidden_states", "attentions"]


class StructureLossMixin(SafeCheckpointMixin, GuardedStepMixin):
    """Adds the structure loss to a trainer; put it in front of [`~transformers.Trainer`] or a subclass of it.

    One forward pass gives the language-model loss L_g and the embedding r of every slice. K slice ends are drawn from
    each sample; the label matrix M^l of these prefixes comes from the teacher vectors of the batch, M^r is the matrix
    of cosines of their r (eq. 1 and 5).

    With gradient accumulation L_g is normalised over all tokens of the accumulated batch, as in `Trainer`. L_d is a
    mean over a micro-batch, whose pairs it ranges over, and is divided by the number of accumulation steps.

    Args:
        model: A [`SugarForConditionalGeneration`], a PEFT model around one, or the folder or Hub name of one.
        args: [`SugarTrainingArguments`], or `SugarSFTConfig` for `SugarSFTTrainer`.
        data_collator: By default a [`SugarCollator`] made from `processing_class`, `teacher` and `args`.
        train_dataset: Rows of the sample schema, with the columns of `TripleTeacher.cache` or without.
        eval_dataset: The same, or a dict of such data sets.
        processing_class: The model's [`SugarProcessor`], which is saved with every checkpoint.
        teacher: Computes the teacher vectors of rows that have no cached ones.
        **kwargs: Further arguments of the base trainer.

    Raises:
        TypeError: `args` lack the arguments of the structure loss, or `teacher` comes with a collator.
        ValueError: There is nothing to make labels from, the teacher columns are stale, or the training is spread
            over devices in a way that the structure loss cannot follow.
    """

    args: SugarTrainingArguments
    model: Any
    current_gradient_accumulation_steps = 1

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: SugarProcessor | None = None,
        *,
        teacher: TripleTeacher | None = None,
        **kwargs: Any,
    ):
        knows_structure = isinstance(args, StructureArguments)
        if not knows_structure:
            raise TypeError(
                f"args is a {type(args).__name__}, which knows nothing of the structure loss. "
                "Give SugarTrainingArguments to SugarTrainer, and SugarSFTConfig to SugarSFTTrainer."
            )
        if isinstance(model, str):
            processing_class = processing_class or SugarProcessor.from_pretrained(model)
            model = SugarForConditionalGeneration.from_pretrained(model)
        if data_collator is None:
            data_collator = self._default_collator(processing_class, teacher, args)
        elif teacher is not None:
            raise TypeError("Both data_collator and teacher are given. Give the teacher to the collator.")
        _check_devices(args)
        self._eval_means = WindowMeans()
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        self.loss_is_scaled_for_ga = True  # `compute_loss` normalises both losses over the accumulated batch
        if args.head_warmup_steps and (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            raise ValueError("head_warmup_steps does not work with DeepSpeed or FSDP, which keep the gradients.")
        if args.alpha:
            self._check_teacher_columns(train_dataset, eval_dataset)
        self.structure_config = self._structure_config()
        self._apply_image_pooling(self.model)
        self.model.add_model_tags(["sugar"])

    # ---- Setting up ----

    @staticmethod
    def _default_collator(
        processor: SugarProcessor | None, teacher: TripleTeacher | None, args: SugarTrainingArguments
    ) -> SugarCollator:
        if not isinstance(processor, SugarProcessor):
            raise TypeError(
                f"processing_class is a {type(processor).__name__}; give the model's SugarProcessor, for example "
                "SugarProcessor.from_pretrained(folder), or a data_collator."
            )
        return SugarCollator(
            processor,
            teacher,
            max_length=args.max_length,
            truncation=False if args.truncation == "error" else args.truncation,
            split_sentences=args.split_sentences,
        )

    def _check_teacher_columns(self, train_dataset: Any, eval_dataset: Any) -> None:
        """Finds missing and stale teacher vectors before the first step where the data set can be asked."""
        if not isinstance(self.data_collator, SugarCollator):
            return
        teacher = self.data_collator.teacher
        evaluated = eval_dataset if isinstance(eval_dataset, Mapping) else {"eval_dataset": eval_dataset}
        for name, dataset in {"train_dataset": train_dataset, **evaluated}.items():
            if not isinstance(dataset, Dataset):
                continue
            if missing := [column for column in TEACHER_COLUMNS if column not in dataset.column_names]:
                if teacher is None:
                    raise ValueError(
                        f"{name} lacks the columns {', '.join(missing)}, the teacher vectors that labels are made "
                        "from. Store them with TripleTeacher.cache, give teacher=TripleTeacher..., or set "
                        "alpha=0 to train the language-model loss alone."
                    )
            else:
                check_cache(dataset, teacher)

    def _structure_config(self) -> StructureLossConfig:
        args = self.args
        if args.alpha and args.centring and args.block_means is None:
            dataset = self.train_dataset
            if not isinstance(dataset, Dataset) or not set(TEACHER_COLUMNS) <= set(dataset.column_names):
                raise ValueError(
                    "centring=True needs the mean cosine of each modality block. Give them as block_means, or cache "
                    "the teacher vectors of train_dataset with TripleTeacher.cache, so that they can be computed."
                )
            args.block_means = block_means(dataset, args.teachers)
            logger.info(f"Block means of the teachers: {args.block_means}")
        return args.structure_loss_config()

    def _apply_image_pooling(self, model: Any) -> None:
        if self.args.image_pooling is not None:
            model.config.image_pooling = self.args.image_pooling

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Makes a model with `model_init`, with the image pooling of the arguments."""
        model = super().call_model_init(trial)
        self._apply_image_pooling(model)
        return model

    def _set_signature_columns_if_needed(self) -> None:
        # With `remove_unused_columns=True` what counts is what the collator reads, not what the model takes.
        self._signature_columns: Any = list(ROW_COLUMNS)

    # ---- Optimisation ----

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

    def current_alpha(self) -> float:
        """The weight of L_d in the current step."""
        warmup = math.ceil(self.args.alpha_warmup_ratio * self.state.max_steps)
        return self.args.alpha * min(1.0, (self.state.global_step + 1) / warmup if warmup else 1.0)

    # ---- Loss ----

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, SugarOutput]:
        """L_g + alpha * L_d of a micro-batch, scaled for gradient accumulation (eq. 1).

        Args:
            model: The model, possibly wrapped.
            inputs: A batch of [`SugarCollator`].
            return_outputs: Whether the model's outputs are returned too.
            num_items_in_batch: Number of label tokens in the accumulated batch; None outside the training loop.

        Returns:
            The loss, or the loss and the outputs.

        Raises:
            ValueError: If alpha is positive and the batch has no teacher vectors.
        """
        inputs = dict(inputs)
        features = inputs.pop("structure_features", None)
        keys, names = inputs.pop("sample_keys", None), inputs.pop("sample_ids", None)
        training = model.training
        steps = self.current_gradient_accumulation_steps if training and num_items_in_batch is not None else 1
        if not self.args.alpha:
            inputs.pop("slice_map", None)
        elif features is None:
            raise ValueError(
                "The batch has no teacher vectors to make labels from. Store them with TripleTeacher.cache, give the "
                "collator a teacher, or set alpha=0 to train the language-model loss alone."
            )
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        if num_items_in_batch is not None:  # a batch of images alone has no label token: its L_g is 0, not 0 / 0
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)

        # Not the direct base's, which may run the model otherwise (TRL's fused LM head drops the embeddings).
        loss_lm, outputs = Trainer.compute_loss(
            self, model, {**inputs, "use_cache": False}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        loss = loss_lm
        logged = {"loss_lm": loss_lm.detach() * steps}
        if self.args.alpha:
            loss_structure, statistics = self._structure_loss(outputs, SliceFeatures(**features), keys, training)
            alpha = self.current_alpha() if training else self.args.alpha
            loss = loss_lm + alpha / steps * loss_structure
            logged |= {"loss_structure": loss_structure.detach(), **statistics}
        if training:
            losses: dict[str, Tensor] = {name: logged[name] for name in logged if name.startswith("loss_")}
            self.guard.check(losses, names, nonfinite_samples(outputs, inputs["attention_mask"], features))
            self._train_means.add(logged, weight=1 / steps)
        else:
            self._eval_means.add(logged, weight=len(inputs["input_ids"]))
        return (loss, outputs) if return_outputs else loss

    def _structure_loss(
        self, outputs: Any, features: SliceFeatures, keys: Tensor, training: bool
    ) -> tuple[Tensor, dict[str, float]]:
        """L_d of the slice ends drawn in this step, and the label statistics if they are due."""
        step = self.state.global_step if training else 0  # evaluations are compared with each other
        seed = self.args.seed if self.args.slice_seed is None else self.args.slice_seed
        ends = draw_slice_ends(
            features.lengths.tolist(), keys.tolist(), self.args.positions_per_sample or None, seed=seed, step=step
        ).to(keys.device)  # (n, 2)
        embeddings = outputs.retrieval_embeds[ends[:, 0], ends[:, 1]]  # (n, d)
        embeddings, features, ends = self.gather_structure(embeddings, features, ends)
        labels = label_matrix(features, ends, self.structure_config)  # (n, n)
        loss = structure_loss(embeddings, labels, self.structure_config, sample_ids=ends[:, 0])
        every = self.args.label_statistics_steps
        if not every or step % every or len(labels) < 2:
            return loss, {}
        statistics = label_statistics(labels, embeddings.detach())
        # a batch whose labels are all equal has no rank correlation
        return loss, {f"label_{name}": value for name, value in statistics.items() if not math.isnan(value)}

    def gather_structure(
        self, embeddings: Tensor, features: SliceFeatures, ends: Tensor
    ) -> tuple[Tensor, SliceFeatures, Tensor]:
        """Collects what the pairs of the structure loss range over; the place where processes exchange it.

        In one process, and under `structure_loss_scope="rank"`, that is what the process has itself.

        Args:
            embeddings: `(n, d)` embeddings of this process's slice ends, with gradient.
            features: Teacher vectors of its samples.
            ends: `(n, 2)` sample index in `features` and slice index of each end.

        Returns:
            The same of all processes, sample indices in `ends` counted through.
        """
        return embeddings, features, ends

    # ---- Logging and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and adds both losses and the label statistics, averaged over the logging window."""
        if "loss" in logs:
            logs.update(self._mean_over_processes(self._train_means.pop()))
        elif "train_runtime" in logs:  # the steps after the last log of this run are not those of the next one
            self._train_means = WindowMeans()
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The base trainer's loop, with both losses and the label statistics among the metrics."""
        self._eval_means = WindowMeans()
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
        )
        means = self._mean_over_processes(self._eval_means.pop())
        named = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """One evaluation step; `compute_metrics` gets (logits, retrieval embeddings, their mask)."""
        ignore_keys = LARGE_OUTPUTS if ignore_keys is None else ignore_keys
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)

    def _mean_over_processes(self, means: dict[str, float]) -> dict[str, float]:
        if self.args.world_size == 1 or not means:
            return means
        values = torch.tensor(list(means.values()), device=self.args.device)
        return dict(zip(means, self.accelerator.reduce(values, reduction="mean").tolist(), strict=True))


class SugarTrainer(StructureLossMixin, Trainer):
    """[`~transformers.Trainer`] with the structure loss: see [`StructureLossMixin`] for its arguments.

    Example:
        >>> trainer = SugarTrainer(  # doctest: +SKIP
        ...     model=SugarForConditionalGeneration.from_backbone("llava-hf/llava-1.5-7b-hf"),
        ...     args=SugarTrainingArguments("sugar", per_device_train_batch_size=16),
        ...     train_dataset=dataset,
        ...     processing_class=processor,
        ... )
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(self, model: Any = None, args: SugarTrainingArguments | None = None, *rest: Any, **kwargs: Any):
        super().__init__(model, SugarTrainingArguments() if args is None else args, *rest, **kwargs)


def _in_head(name: str) -> bool:
    """Whether a parameter's name lies in the retrieval head, however the model is wrapped."""
    return RETRIEVAL_HEAD in name.split(".")


def _check_devices(args: SugarTrainingArguments) -> None:
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would run torch.nn.DataParallel, where each replica sees a part of the "
            "pairs. Start one process a GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES=0."
        )
    if args.world_size > 1 and args.alpha and args.structure_loss_scope == "global":
        raise ValueError(
            f"structure_loss_scope='global' needs the embeddings of all {args.world_size} processes, which this "
            "trainer does not exchange. Set structure_loss_scope='rank' to form pairs within each process, or train "
            "in one process."
        )
