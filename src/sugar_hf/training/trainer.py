"""Trainers for L = L_g + alpha * L_d: the language-model loss and the structure loss, from one forward pass."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import IterableDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from sugar_hf.data import BadSampleError
from sugar_hf.model import SugarForConditionalGeneration, SugarOutput, SugarProcessor, check_prefix_embeddings
from sugar_hf.model.output_sugar import CACHE_NAME
from sugar_hf.structure import SliceFeatures, TripleTeacher

from .arguments import StructureArguments, SugarTrainingArguments
from .bad_samples import BadSampleMixin, placed
from .batching import MiniBatch, MiniBatchMixin
from .checkpoints import SafeCheckpointMixin
from .collator import BAD_SAMPLES, SugarCollator
from .ends import draw_slice_ends
from .guard import nonfinite_samples
from .head import HeadMixin
from .hooks import check_hooks
from .liger import liger_for_backbone
from .metrics import WindowMeans
from .mini_batches import MiniBatches, RandomState
from .objective import KnownGradient, structure_term
from .setup import check_devices, check_teacher_columns, default_collator, structure_config, used_columns
from .trainable import check_head, check_optimizer, sugar_model

logger = logging.getLogger(__name__)

# Not handed to `compute_metrics`: each is as large as the activations of the batch.
LARGE_OUTPUTS = [CACHE_NAME, "last_hidden_state", "hidden_states", "attentions"]


class StructureLossMixin(SafeCheckpointMixin, BadSampleMixin, HeadMixin, MiniBatchMixin):
    """Adds the structure loss to a trainer; put it in front of [`~transformers.Trainer`] or a subclass of it.

    One forward pass gives the language-model loss L_g and the embedding r of every slice. K slice ends are drawn from
    each sample; the label matrix M^l of these prefixes comes from the teacher vectors of the batch, M^r is the matrix
    of cosines of their r (eq. 1 and 5). Pairs range over the batches of all processes.

    With gradient accumulation L_g is normalised over all tokens of the accumulated batch, as in `Trainer`. L_d is a
    mean over a micro-batch, whose pairs it ranges over, and is divided by the number of accumulation steps.

    A batch larger than memory is run as mini-batches (`mini_batch_size`, `mini_batch_tokens`) in two passes (Gao et
    al. 2021, gradient caching): the embeddings of all of them without a graph, which give L_d and its gradient with
    respect to r; then each mini-batch once more, with its share of that gradient and L_g.

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
    # Whether the logits of whole batches are computed in training too, where the loss has no need of them.
    keeps_logits = False
    _predicts = False
    _says_no_pairs = True

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
            data_collator = default_collator(processing_class, teacher, args)
        elif teacher is not None:
            raise TypeError("Both data_collator and teacher are given. Give the teacher to the collator.")
        check_hooks()
        check_devices(args)
        if isinstance(train_dataset, IterableDataset) and args.world_size > 1:
            # by default one process collates for all, as tensors of one length
            args.accelerator_config.dispatch_batches = False
        if args.remove_unused_columns:  # what counts is what the collator reads, not what the model takes
            args.remove_unused_columns = False
            train_dataset, eval_dataset = (used_columns(data, args) for data in (train_dataset, eval_dataset))
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
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            self._prepare_for_sharding()
        if args.alpha:
            check_teacher_columns(self.data_collator, train_dataset, eval_dataset)
        self.structure_config = structure_config(
            args, self.train_dataset, sugar_model(self.model).config.retrieval_dim
        )
        self._apply_image_pooling(self.model)
        if args.use_liger_kernel:
            liger_for_backbone(sugar_model(self.model), args.liger_kernel_config)
        self.model.add_model_tags(["sugar"])

    # ---- Setting up ----

    def _prepare_for_sharding(self) -> None:
        """Sees to it that all processes use the same weights at the same time, or else they wait for ever."""
        if self.args.mini_batch_tokens is not None:
            raise ValueError(
                "mini_batch_tokens gives processes different numbers of mini-batches, which sharded weights do not "
                "bear. Use mini_batch_size with DeepSpeed and FSDP."
            )
        if self.args.head_warmup_steps:
            raise ValueError("head_warmup_steps does not work with DeepSpeed or FSDP, which keep the gradients.")
        if isinstance(self.data_collator, SugarCollator):
            self.data_collator.fill_images = True
        # the number of chunks depends on a process's labels, and each of them uses the LM head
        sugar_model(self.model).max_logits = None

    def _apply_image_pooling(self, model: Any) -> None:
        if self.args.image_pooling is not None:
            model.config.image_pooling = self.args.image_pooling

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Makes a model with `model_init`, with the image pooling of the arguments."""
        model = super().call_model_init(trial)
        self._apply_image_pooling(model)
        return model

    # ---- Training ----

    def train(self, *rest: Any, **kwargs: Any) -> TrainOutput:
        """The base trainer's `train`; warns if the model's embeddings of beginnings are not exact."""
        if self.model_init is None:
            check_head(self.model, self.args.alpha)
        if self.args.alpha and isinstance(self.processing_class, SugarProcessor):
            self._warn_about_prefixes(self.processing_class)
        return super().train(*rest, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The base trainer's optimizer.

        Raises:
            ValueError: The retrieval head is to be trained, but it is frozen, or not among the optimizer's weights.
        """
        optimizer = super().create_optimizer(model)
        check_head(self.model, self.args.alpha)
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            check_optimizer(self.model, optimizer, self.args.alpha)
        return optimizer

    def _warn_about_prefixes(self, processor: SugarProcessor) -> None:
        model = sugar_model(self.model)
        # bitsandbytes lays weights out anew in evaluation mode on some CPUs, and trains wrongly with them
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or "hf_quantizer" in vars(model):
            return
        check = check_prefix_embeddings(model, processor)
        if not check.is_exact:
            warnings.warn(str(check), stacklevel=3)

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
        features, keys = inputs.pop("structure_features", None), inputs.pop("sample_keys", None)
        names = inputs.pop("sample_ids", None)
        self._eval_bad += len(inputs.pop(BAD_SAMPLES, ()))
        training = model.training
        steps = self.current_gradient_accumulation_steps if training and num_items_in_batch is not None else 1
        parts = steps * self.mini_batch.count
        fillers = len(inputs["input_ids"]) - len(keys) if keys is not None else 0
        if not self.args.alpha and not fillers:
            inputs.pop("slice_map", None)
        elif self.args.alpha:
            features = _required(features)
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        if num_items_in_batch is not None:  # a batch of images alone has no label token: its L_g is 0, not 0 / 0
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        inputs |= {"use_cache": False, "skip_logits": not self._logits_needed()}

        # Not the direct base's, which may run the model otherwise (TRL's fused LM head drops the embeddings).
        with self._second_pass():
            loss_lm, outputs = Trainer.compute_loss(
                self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        loss = loss_lm
        if fillers:  # the weights behind a blank image take part with a gradient of zero
            loss = loss + 0 * outputs.retrieval_embeds[-fillers:].sum()
            outputs.retrieval_mask = outputs.retrieval_mask.clone()
            outputs.retrieval_mask[-fillers:] = False
        logged = {"loss_lm": loss_lm.detach() * parts}
        if self.args.alpha:
            embeddings, vectors, ends = self._drawn(outputs.retrieval_embeds, features, keys, training)
            value, gradient = self.mini_batch.value, self.mini_batch.gradient
            if value is None:
                value, gradient, statistics = self._structure_term(embeddings, vectors, ends, training)
                logged |= statistics
            if gradient is None:
                loss_structure = value
            else:
                loss_structure = KnownGradient.apply(embeddings, value, gradient * self.mini_batch.count)
            loss = loss + (self.current_alpha() if training else self.args.alpha) / parts * loss_structure
            logged["loss_structure"] = value
        if training:
            losses: dict[str, Tensor] = {name: logged[name] for name in logged if name.startswith("loss_")}
            mask = inputs["attention_mask"][: len(inputs["input_ids"]) - fillers]
            self.guard.check(losses, names, nonfinite_samples(outputs, mask, features))
            if not self._nothing_left:
                self._train_means.add(logged, weight=1 / parts)
        elif samples := self._over_processes(len(inputs["input_ids"]) - fillers):
            self._eval_means.add(logged, weight=samples)
        return (loss, outputs) if return_outputs else loss

    def _over_processes(self, samples: int) -> int:
        """The samples of a batch, in all processes where some may have fewer: they share one normaliser."""
        if self.args.world_size == 1 or self.args.on_bad_sample != "skip":
            return samples
        return int(self._sum_over_processes(torch.tensor(samples, device=self.args.device)))

    def _logits_needed(self) -> bool:
        """Whether somebody reads the logits of the whole batch."""
        return self.keeps_logits or self._predicts or self.compute_loss_func is not None

    def _second_pass(self) -> contextlib.AbstractContextManager:
        """The random numbers of the first pass of a mini-batch, if there was one."""
        state = self.mini_batch.random_state
        return contextlib.nullcontext() if state is None else state.replayed()

    def first_pass(self, batches: MiniBatches) -> list[MiniBatch]:
        """L_d of a batch and its gradient with respect to r, from a pass without graph."""
        alone = len(batches) == 1 and self.accelerator.num_processes == 1
        if not self.args.alpha or alone:
            return super().first_pass(batches)
        states, drawn, samples = [], [], 0
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            teachers, keys = _required(inputs.pop("structure_features", None)), inputs.pop("sample_keys")
            inputs.pop("sample_ids", None)
            inputs.pop(BAD_SAMPLES, None)
            states.append(RandomState(inputs["input_ids"]))
            inputs |= {"labels": None, "use_cache": False, "skip_logits": True}
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model(**inputs)
            embeddings, features, ends = self._drawn(outputs.retrieval_embeds, teachers, keys, training=True)
            drawn.append((embeddings, features, ends + torch.tensor([samples, 0], device=ends.device)))
            samples += len(keys)
        parts, vectors, all_ends = zip(*drawn, strict=True)
        joined = torch.cat(parts), SliceFeatures.cat(vectors), torch.cat(all_ends)
        value, gradient, statistics = self._structure_term(*joined, training=True)
        self._train_means.add(statistics, weight=1 / self.current_gradient_accumulation_steps)
        gradients = torch.as_tensor(gradient).split([len(part) for part in parts])
        return [MiniBatch(len(batches), *known, value) for known in zip(states, gradients, strict=True)]

    def _drawn(
        self, embeddings: Tensor, features: Mapping[str, Tensor], keys: Tensor, training: bool
    ) -> tuple[Tensor, SliceFeatures, Tensor]:
        """Embeddings (n, d) of the slice ends drawn in this step, teacher vectors, and the ends (n, 2)."""
        step = self.state.global_step if training else 0  # evaluations are compared with each other
        seed = self.args.seed if self.args.slice_seed is None else self.args.slice_seed
        vectors = SliceFeatures(**features)
        most = self.args.positions_per_sample or None
        ends = draw_slice_ends(vectors.lengths.tolist(), keys.tolist(), most, seed=seed, step=step).to(keys.device)
        return embeddings[ends[:, 0], ends[:, 1]], vectors, ends

    def _structure_term(
        self, embeddings: Tensor, features: SliceFeatures, ends: Tensor, training: bool
    ) -> tuple[Tensor, Tensor | None, dict[str, float]]:
        """L_d, its gradient with respect to the embeddings in training, and the label statistics if they are due."""
        step, every = self.state.global_step if training else 0, self.args.label_statistics_steps
        term = structure_term(
            embeddings,
            features,
            ends,
            self.structure_config,
            accelerator=self.accelerator if self.args.structure_loss_scope == "global" else None,
            with_gradient=training,
            with_statistics=bool(every) and step % every == 0,
        )
        if training and self._says_no_pairs and term.ends and (term.ends < 2 or term.samples < 2):
            self._says_no_pairs = False
            what = "one slice end, and no pair" if term.ends < 2 else "pairs of slice ends of one sample only"
            warnings.warn(
                f"A batch has {what}: the structure loss can tell no samples apart by it. Raise "
                f"per_device_train_batch_size (now {self.args.per_device_train_batch_size}); accumulated steps do not "
                "share their pairs, mini-batches do. Further such batches are not named.",
                stacklevel=2,
            )
        return term.value, term.gradient, term.statistics

    # ---- Logging and evaluation ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, and adds both losses and the label statistics, averaged over the logging window."""
        if "loss" in logs:
            logs.update(self._mean_over_processes(self._train_means.pop()))
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
        self._eval_means, self._eval_bad = WindowMeans(), 0
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix=metric_key_prefix
            )
        except BadSampleError as error:
            raise placed(error, dataloader.dataset) from error.__cause__
        means = self._mean_over_processes(self._eval_means.pop())
        named: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        if self.args.on_bad_sample == "skip":
            skipped = self._over_processes(self._eval_bad)
            named[f"{metric_key_prefix}_skipped_samples"] = skipped
            if skipped:  # the base trainer's mean has the blank samples in it
                logger.warning(f"{skipped} samples are left out of the evaluation, as they cannot be used.")
                loss = means.get("loss_lm", math.nan) + self.args.alpha * means.get("loss_structure", 0.0)
                named[f"{metric_key_prefix}_loss"] = loss
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
        self._predicts = not prediction_loss_only
        try:
            found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        finally:
            self._predicts = False
        samples = inputs.get("sample_keys")
        if samples is None or self.args.world_size > 1:  # there all processes have to give as many rows
            return found
        return found[0], _first_rows(found[1], len(samples)), _first_rows(found[2], len(samples))

    def _mean_over_processes(self, means: dict[str, float]) -> dict[str, float]:
        if self.args.world_size == 1:
            return means
        found = gather_object([means])  # a process may lack a statistic
        names = dict.fromkeys(name for each in found for name in each)
        return {name: fmean(each[name] for each in found if name in each) for name in names}


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


def _first_rows(values: Any, count: int) -> Any:
    """The first rows of every tensor: those of the samples, without a blank one behind them."""
    if isinstance(values, Tensor):
        return values[:count]
    return None if values is None else tuple(_first_rows(value, count) for value in values)


def _required(features: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
    """The teacher vectors of a batch, or an error if it has none."""
    if features is None:
        raise ValueError(
            "The batch has no teacher vectors to make labels from. Store them with TripleTeacher.cache, give the "
            "collator a teacher, or set alpha=0 to train the language-model loss alone."
        )
    return features
