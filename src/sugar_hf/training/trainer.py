"""SugarTrainer, for L = L_g + alpha * L_d: the language-model and the structure loss, from one forward pass."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.integrations.liger import apply_liger_kernel
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from ..data import FEATURES, PAIR_FEATURES, BadSampleError, RetrievalSet
from ..data.pair_columns import has_pair_columns
from ..model import SugarForConditionalGeneration, SugarOutput, SugarProcessor, check_prefix_embeddings
from ..model.modeling_sugar import CACHE_NAME
from ..structure import (
    TEACHER_COLUMNS,
    PairLabels,
    SliceFeatures,
    StructureLossConfig,
    Teacher,
    block_means,
    check_cache,
    softmax_temperature,
)
from .arguments import StructureArguments, SugarTrainingArguments
from .checkpoints import AtomicCheckpoints
from .collator import (
    BAD_SAMPLES,
    PROBED_ROWS,
    LengthEstimate,
    MiniBatch,
    MiniBatchCollator,
    MiniBatches,
    RandomState,
    SugarCollator,
    each_batch,
    make_collator,
)
from .guards import (
    LossGuard,
    WindowMeans,
    check_head,
    check_hooks,
    check_optimizer,
    in_head,
    lost_hook,
    nonfinite_samples,
    split_head,
    sugar_model,
)
from .hub_upload import HubUploads
from .pair_batches import check_pairs
from .retrieval_evaluation import RetrievalEvaluations, as_retrieval_set
from .samplers import is_own_order, train_sampler
from .structure_term import (
    KnownGradient,
    StructureTerm,
    draw_slice_ends,
    joined_parts,
    structure_parts,
    structure_term,
)
from .temperature import LearntTemperature
from .whitened_start import add_whitened_start

logger = logging.getLogger(__name__)

# Not handed to `compute_metrics`: each is as large as the activations of the batch.
LARGE_OUTPUTS = [CACHE_NAME, "last_hidden_state", "hidden_states", "attentions"]
MAX_NAMED_SAMPLES = 20  # bad samples that are logged one by one
MAX_EMPTY_STEPS = 5  # in a row


class SugarTrainer(RetrievalEvaluations, AtomicCheckpoints, HubUploads, Trainer):
    """[`~transformers.Trainer`] with the structure loss.

    One forward pass gives the language-model loss L_g and the embedding r of every slice. K slice ends are drawn from
    each sample. The label matrix M^l of these prefixes comes from the teacher vectors of the batch, M^r is the matrix
    of cosines of their r (eq. 1 and 5). Pairs range over the batches of all processes.

    With gradient accumulation L_g is normalised over all tokens of the accumulated batch, as in `Trainer`. L_d is a
    mean over a micro-batch, whose pairs it ranges over, and is divided by the number of accumulation steps.

    A batch larger than memory is run as mini-batches (`mini_batch_size`, `mini_batch_tokens`) in two passes (Gao et
    al. 2021, gradient caching). The first computes all embeddings without a graph, and from them L_d and its gradient
    with respect to r. The second runs each mini-batch once more, with its share of that gradient and L_g.

    `class Mine(SugarTrainer, OtherTrainer)` adds the structure loss to another subclass of `Trainer`.

    Args:
        model: A [`SugarForConditionalGeneration`], a PEFT model around one, or the folder or Hub name of one.
        args: [`SugarTrainingArguments`], or `SugarSFTConfig` for `SugarSFTTrainer`.
        data_collator: By default a [`SugarCollator`] made from `processing_class`, `teacher` and `args`.
        train_dataset: Rows of the sample schema, with the columns of a teacher's `cache` or without.
        eval_dataset: The same, or a dict of such data sets.
        processing_class: The model's [`SugarProcessor`], which is saved with every checkpoint.
        teacher: Computes the teacher vectors of rows that have no cached ones.
        eval_retrieval: A [`~data.RetrievalSet`], or a dict with its `queries`, `corpus` and `relevance`: retrieval
            that is measured whenever the trainer evaluates, for metrics such as `eval_retrieval_ndcg@10`. It needs
            no `eval_dataset`.
        **kwargs: Further arguments of the base trainer.

    Raises:
        TypeError: `args` lack the arguments of the structure loss, or `teacher` comes with a collator.
        ValueError: There is nothing to make labels from, the teacher columns are stale, or the training is spread
            over devices in a way that the structure loss cannot follow.

    Example:
        >>> trainer = SugarTrainer(  # doctest: +SKIP
        ...     model=SugarForConditionalGeneration.from_backbone("llava-hf/llava-1.5-7b-hf"),
        ...     args=SugarTrainingArguments("sugar", per_device_train_batch_size=16),
        ...     train_dataset=dataset,
        ...     processing_class=processor,
        ... )
        >>> trainer.train()  # doctest: +SKIP
    """

    args: SugarTrainingArguments
    model: Any
    data_collator: Any
    current_gradient_accumulation_steps = 1
    # Whether the logits of whole batches are computed in training too, where the loss has no need of them.
    keeps_logits = False
    temperature: LearntTemperature | None = None

    # ---- Set-up ----

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: SugarProcessor | None = None,
        *,
        teacher: Teacher | None = None,
        eval_retrieval: RetrievalSet | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        args = SugarTrainingArguments() if args is None else args
        knows_structure = isinstance(args, StructureArguments)
        if not knows_structure:
            raise TypeError(
                f"args is a {type(args).__name__}, which knows nothing of the structure loss. "
                "Give SugarTrainingArguments to SugarTrainer, and SugarSFTConfig to SugarSFTTrainer."
            )
        check_hooks()
        if isinstance(model, str):
            processing_class = processing_class or SugarProcessor.from_pretrained(model)
            model = SugarForConditionalGeneration.from_pretrained(model)
        if data_collator is None:
            data_collator = make_collator(processing_class, teacher, args)
        elif teacher is not None:
            raise TypeError("Both data_collator and teacher are given. Give the teacher to the collator.")
        if isinstance(train_dataset, IterableDataset):
            # by default one process collates for all, as tensors of one length, and as many samples as rows
            args.accelerator_config.dispatch_batches = False
        if args.remove_unused_columns:  # used is what the collator reads, not what the model takes
            args.remove_unused_columns = False
            train_dataset, eval_dataset = (_used_columns(data, args) for data in (train_dataset, eval_dataset))

        self.guard = LossGuard()
        self.mini_batch = MiniBatch()
        self._eval_means, self._eval_bad = WindowMeans(), 0
        self._loss_before: Tensor | None = None
        self._is_empty_step, self._empty_steps = False, 0
        self._sampler_asked = self._predicts = False
        self._warns_of_pairs = True
        self.eval_retrieval = as_retrieval_set(eval_retrieval, processing_class)
        lacks_data = eval_dataset is None and self.eval_retrieval is not None
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset={} if lacks_data else eval_dataset,  # the base trainer refuses to evaluate without any
            processing_class=processing_class,
            **kwargs,
        )
        if lacks_data:
            self.eval_dataset = None
        self.loss_is_scaled_for_ga = True  # `compute_loss` normalises both losses over the accumulated batch
        self._check_devices()
        sugar = sugar_model(self.model)
        if isinstance(self.data_collator, SugarCollator):
            if args.on_bad_sample == "skip":
                self.data_collator.on_bad_sample = "skip"
            args.on_bad_sample = self.data_collator.on_bad_sample
            if args.alpha:
                self._check_teacher_columns()
            check_pairs(self.train_dataset, args)
        if self._is_sharded:  # all processes have to use the same weights at the same time, or they wait for ever
            if isinstance(self.data_collator, SugarCollator):
                self.data_collator.fill_images = True
            sugar.max_logits = None  # the number of chunks depends on the labels, and each uses the LM head
        self.structure_config = self._make_structure_config(sugar.config.retrieval_dim)
        if args.learn_temperature and args.alpha:
            self.temperature = LearntTemperature(softmax_temperature(args.structure_loss_config()), args.device)
            self.add_callback(self.temperature)
        if args.alpha and not self._is_sharded:
            add_whitened_start(self, args.head_whitening_samples)
        self._set_poolings(self.model)
        if args.use_liger_kernel:
            _apply_liger(sugar, args.liger_kernel_config)
        self.model.add_model_tags(["sugar"])

    def _check_devices(self) -> None:
        """Refuse what several GPUs in a process, sharded weights or an early optimizer cannot do."""
        args, optimizer = self.args, str(self.args.optim.value)
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process would run torch.nn.DataParallel, where each replica sees a part of "
                "the pairs. Start one process a GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES=0."
            )
        culprit = "DeepSpeed" if self.is_deepspeed_enabled else "FSDP" if self.is_fsdp_enabled else ""
        if culprit and args.mini_batch_tokens is not None:
            raise ValueError(
                f"mini_batch_tokens gives processes different numbers of mini-batches, which does not work with "
                f"{culprit}. Use mini_batch_size."
            )
        if culprit and args.head_warmup_steps:
            raise ValueError(f"head_warmup_steps does not work with {culprit}, which keeps the gradients.")
        if culprit and args.head_whitening_samples:
            raise ValueError(
                f"head_whitening_samples does not work with {culprit}: call whiten_head on a model alone."
            )
        if not culprit and any(name in optimizer for name in ("lomo", "layerwise")):
            culprit = f"optim={optimizer!r}"
        if culprit and args.learn_temperature:
            raise ValueError(
                f"learn_temperature does not work with {culprit}, which learns the model's weights alone."
            )
        if culprit and args.nonfinite_loss == "skip":
            raise ValueError(
                f"nonfinite_loss='skip' does not work with {culprit}, where the gradients cannot be taken back before "
                "the weights change. Use nonfinite_loss='error'."
            )
        if args.world_size > 1 and args.process_index == 0 and args.alpha and args.structure_loss_scope == "rank":
            logger.warning(
                f"structure_loss_scope='rank': each of {args.world_size} processes pairs its own samples only."
            )

    def _check_teacher_columns(self) -> None:
        """Find missing and stale teacher vectors before the first step, where the data set can be asked."""
        teacher, evaluated = self.data_collator.teacher, self.eval_dataset
        evaluated = evaluated if isinstance(evaluated, Mapping) else {"eval_dataset": evaluated}
        for name, dataset in {"train_dataset": self.train_dataset, **evaluated}.items():
            if not isinstance(dataset, Dataset):
                continue
            missing = [column for column in TEACHER_COLUMNS if column not in dataset.column_names]
            if not missing:
                check_cache(dataset, teacher)
            elif teacher is None and not has_pair_columns(dict.fromkeys(dataset.column_names)):
                raise ValueError(
                    f"{name} lacks the columns {', '.join(missing)}, the teacher vectors that labels are made from. "
                    "Store them with TripleTeacher.cache, give teacher=..., or set alpha=0 to train the "
                    "language-model loss alone."
                )

    def _make_structure_config(self, retrieval_dim: int) -> StructureLossConfig:
        """Return the structure loss of the arguments, with the block means of the training set if it needs them."""
        args, dataset = self.args, self.train_dataset
        if args.matryoshka_dims and max(args.matryoshka_dims) > retrieval_dim:
            raise ValueError(
                f"matryoshka_dims={args.matryoshka_dims}: the model's embeddings have {retrieval_dim} dimensions. "
                "Give sizes up to this."
            )
        if args.alpha and args.centring and args.block_means is None:
            if not isinstance(dataset, Dataset) or not set(TEACHER_COLUMNS) <= set(dataset.column_names):
                raise ValueError(
                    "centring=True needs the mean cosine of each modality block. Give them as block_means, or cache "
                    "the teacher vectors of train_dataset with TripleTeacher.cache, so that they can be computed."
                )
            args.block_means = block_means(dataset, args.teachers)
            logger.info(f"Block means of the teachers: {args.block_means}")
        return args.structure_loss_config()

    def _set_poolings(self, model: Any) -> None:
        if self.args.image_pooling is not None:
            model.config.image_pooling = self.args.image_pooling
        if self.args.text_pooling is not None:
            model.config.text_pooling = self.args.text_pooling

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """Make a model with `model_init`, with the poolings of the arguments."""
        model = super().call_model_init(trial)
        self._set_poolings(model)
        if self.temperature is not None:
            self.temperature.reset()
        return model

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the base trainer's optimizer, with the retrieval head in groups of its own learning rate.

        Raises:
            ValueError: The retrieval head is to be trained, but it is frozen, or not among the optimizer's weights.
        """
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.args.head_learning_rate is not None:
            split_head(self.model if model is None else model, optimizer, self.args.head_learning_rate)
        if self.temperature is not None:
            rate = self.args.head_learning_rate if is_new else None
            self.temperature.add_to(optimizer, rate, is_scheduled=self.lr_scheduler is not None)
        check_head(self.model, self.args.alpha)
        if not self._is_sharded:
            check_optimizer(self.model, optimizer, self.args.alpha)
        return optimizer

    def train(self, *rest: Any, **kwargs: Any) -> TrainOutput:
        """Train as the base trainer does; warn if the model's embeddings of prefixes are not exact."""
        if self.model_init is None:
            check_head(self.model, self.args.alpha)
        if self.args.alpha:
            self._check_prefixes()
        self.guard = LossGuard()  # what an earlier call has left is not of this one
        output = super().train(*rest, **kwargs)
        self.guard.check_judged(self.state.global_step)
        return output

    def _check_prefixes(self) -> None:
        model, processor = sugar_model(self.model), self.processing_class
        # bitsandbytes changes the layout of weights in evaluation mode on some CPUs, and trains wrongly with them
        if self._is_sharded or "hf_quantizer" in vars(model) or not isinstance(processor, SugarProcessor):
            return
        check = check_prefix_embeddings(model, processor)
        if not check.is_exact:
            warnings.warn(str(check), stacklevel=3)

    # ---- Data ----

    @cached_property
    def length_estimate(self) -> LengthEstimate:
        """Estimates the tokens of a row, fitted to rows of the training set."""
        dataset, collate = self.train_dataset, self.data_collator
        rows = dataset if has_length(dataset) else list(islice(dataset, PROBED_ROWS))

        def count_tokens(row: Mapping[str, Any]) -> int | None:
            batch = collate([row])
            return int(batch["attention_mask"].sum()) if batch.get("sample_ids", True) else None

        return LengthEstimate.fit(rows, count_tokens)

    def get_train_dataloader(self) -> DataLoader:
        """Make the base trainer's loader, which gives [`MiniBatches`] if the arguments ask for mini-batches."""
        size, tokens, collate = self.args.mini_batch_size, self.args.mini_batch_tokens, self.data_collator
        self._sampler_asked = False
        if size is not None or tokens is not None:
            members = collate.members if isinstance(collate, SugarCollator) else None
            self.data_collator = MiniBatchCollator(collate, self.length_estimate, size, tokens, members)
        try:
            loader = super().get_train_dataloader()
        finally:
            self.data_collator = collate
        if not self._sampler_asked and is_own_order(self.train_dataset, self.args):
            raise lost_hook("_get_train_sampler", "train_sampling_strategy='group_by_length' and batch_sampler")
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        self._sampler_asked = True
        dataset = self.train_dataset if train_dataset is None else train_dataset
        # samples hold no `input_ids` that the base trainer could count
        sampler = train_sampler(
            dataset,
            self.args,
            epoch=lambda: int(self.state.epoch or 0),
            lengths=lambda: self.length_estimate.of_dataset(dataset),
        )
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler | None:
        """Keep the order of the rows: L_d depends on which of them share a batch, and predictions belong to rows."""
        if self.args.train_sampling_strategy == "group_by_length":  # the base would apply it here too
            return None
        return super()._get_eval_sampler(eval_dataset)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """Take the micro-batches of one optimizer step, which begins here, and count the samples left out of them."""
        self.guard.start_step(self.state.global_step)
        running = vars(self).get("_tr_loss")
        if not isinstance(running, Tensor):
            raise lost_hook("_tr_loss", "nonfinite_loss")
        self._loss_before = running.clone()
        try:
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        except BadSampleError as error:
            raise _with_row(error, self.train_dataset) from error.__cause__
        has_labels = any("labels" in batch for batch in each_batch(batches))
        if count is None and has_labels and self.model_accepts_loss_kwargs:
            raise lost_hook("_get_num_items_in_batch", "the language-model loss")
        if self.args.on_bad_sample == "skip":
            self._count_bad_samples(batches)
        return batches, count

    def _count_bad_samples(self, batches: list[Any]) -> None:
        """Log and count the samples that the collator has left out of a step.

        A process whose batch has no sample left runs a blank one, from which nothing is learnt, so that all processes
        keep step. An optimizer step without any sample leaves the weights alone.
        """
        messages = [text for batch in each_batch(batches) for text in batch.pop(BAD_SAMPLES, ())]
        left = sum(len(batch.get("sample_ids", ())) for batch in each_batch(batches))
        skipped, left = self._sum_over_processes(torch.tensor([len(messages), left], device=self.args.device)).tolist()
        before = self.skipped_samples
        for number, text in enumerate(messages[: max(0, MAX_NAMED_SAMPLES - before)], start=before + 1):
            logger.warning(f"A sample is left out ({number} so far). {text}")
        if before < MAX_NAMED_SAMPLES <= before + skipped:
            logger.warning(f"{before + skipped} samples are left out by now; more are counted, and not named.")
        if skipped:
            self._set_count("BadSamples", "skipped_samples", before + skipped)
        self._is_empty_step = bool(batches) and not left
        self._empty_steps = self._empty_steps + 1 if self._is_empty_step else 0
        if self._empty_steps >= MAX_EMPTY_STEPS:
            raise RuntimeError(
                f"None of the samples of {self._empty_steps} steps in a row can be used, so that it is hardly their "
                f"fault: look at the arguments (max_length={self.args.max_length}) and at the processor. "
                f"The last one: {messages[-1] if messages else 'in another process'}"
            )

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return super()._get_num_items_in_batch(list(each_batch(batch_samples)), device)

    def floating_point_ops(self, inputs: Any) -> int:
        """Estimate as the base trainer does, over all mini-batches."""
        return sum(super(SugarTrainer, self).floating_point_ops(batch) for batch in each_batch([inputs]))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if isinstance(inputs, MiniBatches):  # at once: processes may have different numbers of mini-batches
            names = ("input_ids", "attention_mask")
            inputs = {name: torch.cat([batch[name].flatten() for batch in inputs]) for name in names}
        super()._track_num_input_tokens(inputs)

    # ---- Step ----

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Run the forward and backward passes of a batch, of its mini-batches one by one.

        Everything else of the trainer sees one batch: accumulation, the schedule, the log. Over processes gradients
        are reduced once, with the last mini-batch. In the head's warm-up all gradients but the head's are dropped.
        """
        batches = list(each_batch([inputs]))
        model.train()
        total = torch.zeros((), device=self.args.device)
        try:
            runs = self._first_pass(batches) if isinstance(inputs, MiniBatches) else [MiniBatch()]
            for number, (batch, self.mini_batch) in enumerate(zip(batches, runs, strict=True), start=1):
                with contextlib.nullcontext() if number == len(batches) else self._no_reduction(model):
                    total += super().training_step(model, batch, num_items_in_batch)
        finally:
            self.mini_batch = MiniBatch()
        if self.state.global_step < self.args.head_warmup_steps:
            for name, parameter in model.named_parameters():
                if not in_head(name):
                    parameter.grad = None  # not zero: the optimizer must leave momentum and weight decay alone too
        return total

    @contextlib.contextmanager
    def _no_reduction(self, model: nn.Module) -> Iterator[None]:
        """Keep gradients in this process, except sharded ones, which would need the memory of the whole model."""
        state = self.accelerator.gradient_state
        was_last = state.sync_gradients
        state._set_sync_gradients(False)  # DeepSpeed takes its optimizer step where this is set
        with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
            yield
        state._set_sync_gradients(was_last)

    def _first_pass(self, batches: list[dict[str, Any]]) -> list[MiniBatch]:
        """Compute L_d of a batch and its gradient with respect to r, in a pass without graph."""
        is_alone = len(batches) == 1 and self.accelerator.num_processes == 1
        if not self.args.alpha or is_alone:
            return [MiniBatch(len(batches)) for _ in batches]
        states, drawn, samples = [], [], 0
        for batch in batches:
            inputs = self._prepare_inputs(batch)
            parts, keys = structure_parts(inputs), inputs.pop("sample_keys")
            for name in ("sample_ids", BAD_SAMPLES):
                inputs.pop(name, None)
            states.append(RandomState(inputs["input_ids"]))
            inputs |= {"labels": None, "use_cache": False, "skip_logits": True}
            with torch.no_grad(), self.compute_loss_context_manager():
                outputs = self.model(**inputs)
            embeddings, ends = self._draw(outputs.retrieval_embeds, *parts, keys, training=True)
            drawn.append((embeddings, *parts, ends + torch.tensor([samples, 0], device=ends.device)))
            samples += len(keys)
        embedded, vectors, known, all_ends = zip(*drawn, strict=True)
        joined = torch.cat(embedded), *joined_parts(vectors, known), torch.cat(all_ends)
        term = self._structure_term(*joined, training=True)
        self.guard.log(term.statistics, weight=1 / self.current_gradient_accumulation_steps)
        gradients = torch.as_tensor(term.gradient).split([len(part) for part in embedded])
        return [
            MiniBatch(len(batches), *known, term.value, term.scale_gradient)
            for known in zip(states, gradients, strict=True)
        ]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the base trainer's norm, and judge the step: this is the last place before the optimizer's."""
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        # A gradient scaler makes infinite norms on its way to the right scale, and leaves out these steps itself.
        judged = None if self.accelerator.scaler is not None else grad_norm
        is_finite = self.guard.judge(judged, self._sum_over_processes)
        if not is_finite and self.args.nonfinite_loss == "error":
            raise FloatingPointError(self._fault())
        if not is_finite:
            count = self.skipped_steps + 1
            self._set_count("LossGuard", "skipped_steps", count)
            row = f", {self.guard.in_a_row} in a row" if self.guard.in_a_row > 1 else ""
            logger.warning(
                f"Step {self.state.global_step + 1} is left out ({count} so far{row}). {self.guard.fault()}"
                + (" The weights or the data are probably broken." if self.guard.in_a_row >= 5 else "")
            )
            if self._loss_before is not None:
                self._tr_loss.copy_(self._loss_before)
        if not is_finite or self._is_empty_step:
            # without a gradient weights, momentum and weight decay stay as they are
            model.zero_grad(set_to_none=True)
            if self.temperature is not None:
                self.temperature.logit_scale.grad = None
            self.guard.leave_out()
        return grad_norm

    def _fault(self) -> str:
        args = self.args
        alpha = f", lower alpha (now {args.alpha:g})" if args.alpha else ""
        return (
            f"Step {self.state.global_step + 1}: {self.guard.fault()} The weights are still those before this step. "
            f"Look at these samples; lower learning_rate (now {args.learning_rate:g}) or warm it up{alpha}, or train "
            f"in float32, or in bf16 instead of fp16 (now fp16={args.fp16}, bf16={args.bf16}). nonfinite_loss='skip' "
            "leaves out and counts such steps."
        )

    # ---- Loss ----

    def current_alpha(self) -> float:
        """Return the weight of L_d in the current step."""
        warmup = math.ceil(self.args.alpha_warmup_ratio * self.state.max_steps)
        return self.args.alpha * min(1.0, (self.state.global_step + 1) / warmup if warmup else 1.0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, SugarOutput]:
        """Compute L_g + alpha * L_d of a micro-batch, scaled for gradient accumulation (eq. 1).

        Raises:
            ValueError: If alpha is positive and the batch has no teacher vectors.
        """
        inputs = dict(inputs)
        features = inputs.get("structure_features")
        parts, keys = structure_parts(inputs, needed=self.args.alpha > 0), inputs.pop("sample_keys", None)
        names = inputs.pop("sample_ids", None)
        self._eval_bad += len(inputs.pop(BAD_SAMPLES, ()))
        training, run = model.training, self.mini_batch
        steps = self.current_gradient_accumulation_steps if training and num_items_in_batch is not None else 1
        shares = steps * run.count
        samples = len(inputs["input_ids"]) if keys is None else len(keys)
        fillers = len(inputs["input_ids"]) - samples
        if not self.args.alpha and not fillers:
            inputs.pop("slice_map", None)
        if num_items_in_batch is None:
            num_items_in_batch = self._get_num_items_in_batch([inputs], self.args.device)
        if num_items_in_batch is not None:  # a batch of images alone has no label token: its L_g is 0, not 0 / 0
            num_items_in_batch = torch.as_tensor(num_items_in_batch).clamp(min=1)
        needs_logits = self.keeps_logits or self._predicts or self.compute_loss_func is not None
        inputs |= {"use_cache": False, "skip_logits": not needs_logits}

        # Not the direct base's, which may run the model otherwise (TRL's fused LM head drops the embeddings).
        with run.random_state.replayed() if run.random_state is not None else contextlib.nullcontext():
            loss_lm, outputs = Trainer.compute_loss(
                self, model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
        loss = loss_lm
        if fillers:  # the weights behind a blank image take part with a gradient of zero
            loss = loss + 0 * outputs.retrieval_embeds[-fillers:].sum()
            outputs.retrieval_mask = outputs.retrieval_mask.clone()
            outputs.retrieval_mask[-fillers:] = False
        losses: dict[str, Any] = {"loss_lm": loss_lm.detach() * shares}
        statistics: dict[str, Any] = {}
        if self.args.alpha:
            embeddings, ends = self._draw(outputs.retrieval_embeds, *parts, keys, training)
            value, gradient, of_scale = run.value, run.gradient, run.scale_gradient
            if value is None:
                term = self._structure_term(embeddings, *parts, ends, training)
                value, gradient, of_scale, statistics = term.value, term.gradient, term.scale_gradient, term.statistics
            losses["loss_structure"] = value
            if gradient is not None:
                scale = None if self.temperature is None else self.temperature.logit_scale
                value = KnownGradient.apply(embeddings, value, gradient * run.count, scale, of_scale)
            loss = loss + (self.current_alpha() if training else self.args.alpha) / shares * value
        if training:
            mask = inputs["attention_mask"][:samples]
            self.guard.check(losses, names, nonfinite_samples(outputs, mask, features))
            if not self._is_empty_step:
                self.guard.log(losses | statistics, weight=1 / shares)
        else:
            if self.args.on_bad_sample == "skip":  # some processes may have fewer: they share one normaliser
                samples = int(self._sum_over_processes(torch.tensor(samples, device=self.args.device)))
            if samples:
                self._eval_means.add(losses | statistics, weight=samples)
        return (loss, outputs) if return_outputs else loss

    def _draw(
        self,
        embeddings: Tensor,
        features: Any,
        known: PairLabels | None,
        keys: Tensor,
        training: bool,
    ) -> tuple[Tensor, Tensor]:
        """Return embeddings (n, d) of the slice ends drawn in this step, and the ends (n, 2)."""
        step = self.state.global_step if training else 0  # evaluations are compared with each other
        seed = self.args.seed if self.args.slice_seed is None else self.args.slice_seed
        lengths = features.lengths if known is None else known.lengths
        last = None if known is None else known.samples[:, 2].tolist()
        most = self.args.positions_per_sample or None
        ends = draw_slice_ends(lengths.tolist(), keys.tolist(), most, seed, step, last).to(keys.device)
        return embeddings[ends[:, 0], ends[:, 1]], ends

    def _structure_term(
        self,
        embeddings: Tensor,
        features: SliceFeatures | None,
        known: PairLabels | None,
        ends: Tensor,
        training: bool,
    ) -> StructureTerm:
        """Compute L_d, in training with its gradients, and with label statistics if they are due."""
        step, every = self.state.global_step if training else 0, self.args.label_statistics_steps
        term = structure_term(
            embeddings,
            features,
            ends,
            self.structure_config,
            known=known,
            accelerator=self.accelerator if self.args.structure_loss_scope == "global" else None,
            with_gradient=training,
            with_statistics=bool(every) and step % every == 0,
            logit_scale=None if self.temperature is None else self.temperature.logit_scale,
        )
        # DDP, which takes the mean of gradients, knows nothing of the logit scale
        if term.scale_gradient is not None and self.args.structure_loss_scope == "rank":
            term.scale_gradient = self.accelerator.reduce(term.scale_gradient, reduction="mean")
        if training and self._warns_of_pairs and term.ends and (term.ends < 2 or term.samples < 2):
            self._warns_of_pairs = False
            content = "one slice end, and no pair" if term.ends < 2 else "pairs of slice ends of one sample only"
            warnings.warn(
                f"A batch has {content}: the structure loss can distinguish no samples by it. Raise "
                f"per_device_train_batch_size (now {self.args.per_device_train_batch_size}); accumulated steps do not "
                "share their pairs, mini-batches do. Further such batches are not named.",
                stacklevel=2,
            )
        return term

    # ---- Log and evaluation ----

    @property
    def skipped_steps(self) -> int:
        """Number of optimizer steps left out so far because of a loss or gradient that was not finite."""
        return self._get_count("LossGuard", "skipped_steps")

    @property
    def skipped_samples(self) -> int:
        """Number of samples left out of training so far, as the processor could not take them."""
        return self._get_count("BadSamples", "skipped_samples")

    def _get_count(self, key: str, name: str) -> int:
        return self.state.stateful_callbacks.get(key, {}).get("attributes", {}).get(name, 0)

    def _set_count(self, key: str, name: str, count: int) -> None:
        # the callbacks' states are the part of a checkpoint's state that is open to additions
        self.state.stateful_callbacks[key] = {"args": {}, "attributes": {name: count}}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with both losses and the label statistics, averaged over the steps made since the last log."""
        if "loss" in logs:
            logs["loss"] = self.guard.mean_loss(logs["loss"])
            logs |= self._mean_over_processes(self.guard.means.pop())
            if self.temperature is not None:
                logs["temperature"] = self.temperature.value
            if self.args.nonfinite_loss == "skip":
                logs["skipped_steps"] = self.skipped_steps
            if self.args.on_bad_sample == "skip":
                logs["skipped_samples"] = self.skipped_samples
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Evaluate as the base trainer does, with both losses and the label statistics among the metrics."""
        self._eval_means, self._eval_bad = WindowMeans(), 0
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        except BadSampleError as error:
            raise _with_row(error, dataloader.dataset) from error.__cause__
        means = self._mean_over_processes(self._eval_means.pop())
        metrics: dict[str, float] = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        if self.args.on_bad_sample == "skip":
            skipped = int(self._sum_over_processes(torch.tensor(self._eval_bad, device=self.args.device)))
            metrics[f"{metric_key_prefix}_skipped_samples"] = skipped
            if skipped:  # the base trainer's mean has the blank samples in it
                logger.warning(f"{skipped} samples are left out of the evaluation, as they cannot be used.")
                loss = means.get("loss_lm", math.nan) + self.args.alpha * means.get("loss_structure", 0.0)
                metrics[f"{metric_key_prefix}_loss"] = loss
        return output._replace(metrics={**(output.metrics or {}), **metrics})

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor | None, Any, Any]:
        """Run one evaluation step; `compute_metrics` gets (logits, retrieval embeddings, their mask)."""
        ignore_keys = LARGE_OUTPUTS if ignore_keys is None else ignore_keys
        self._predicts = not prediction_loss_only
        try:
            loss, logits, labels = super().prediction_step(
                model, inputs, prediction_loss_only, ignore_keys=ignore_keys
            )
        finally:
            self._predicts = False
        keys = inputs.get("sample_keys")
        if keys is None or self.args.world_size > 1:  # there all processes have to give as many rows
            return loss, logits, labels
        return loss, _first_rows(logits, len(keys)), _first_rows(labels, len(keys))

    def _sum_over_processes(self, number: Tensor) -> Tensor:
        return number if self.args.world_size == 1 else self.accelerator.reduce(number, reduction="sum")

    def _mean_over_processes(self, means: dict[str, float]) -> dict[str, float]:
        if self.args.world_size == 1:
            return means
        gathered = gather_object([means])  # a process may lack a statistic
        names = dict.fromkeys(name for each in gathered for name in each)
        return {name: fmean(each[name] for each in gathered if name in each) for name in names}


def _used_columns(data: Any, args: SugarTrainingArguments) -> Any:
    """Return a data set, or a dict of such, without the columns that [`SugarCollator`] does not read.

    They are known only of data in the sample schema.
    """
    if isinstance(data, Mapping):
        return {name: _used_columns(each, args) for name, each in data.items()}
    if not isinstance(data, Dataset) or not set(FEATURES) <= set(data.column_names):
        return data
    kept = {*FEATURES, *PAIR_FEATURES, *TEACHER_COLUMNS, args.length_column_name}
    return data.select_columns([name for name in data.column_names if name in kept])


def _apply_liger(model: SugarForConditionalGeneration, kernel_config: dict[str, Any] | None) -> None:
    """Patch the backbone with Liger's kernels; the base trainer asks for those of `sugar`, which do not exist."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    model_type = model.vlm.config.model_type
    if model_type in MODEL_TYPE_TO_APPLY_LIGER_FN:
        apply_liger_kernel(model.vlm, kernel_config)
    else:  # Liger itself would only log so
        warnings.warn(
            f"use_liger_kernel=True changes nothing: Liger has no kernels for a backbone of type {model_type}.",
            stacklevel=3,
        )


def _with_row(error: BadSampleError, dataset: Any) -> BadSampleError:
    """Return the error with the number of the row in the data set, where it can be found."""
    if error.row is None and error.sample and isinstance(dataset, Dataset) and "id" in dataset.column_names:
        ids = dataset.with_format(None)["id"][:]
        if ids.count(error.sample) == 1:
            error.at(row=ids.index(error.sample))
    return error


def _first_rows(values: Any, count: int) -> Any:
    """Return the first rows of every tensor: those of the samples, without a blank one behind them."""
    if isinstance(values, Tensor):
        return values[:count]
    return None if values is None else tuple(_first_rows(value, count) for value in values)
