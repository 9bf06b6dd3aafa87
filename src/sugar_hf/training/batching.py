"""How a trainer puts samples together: batches of like length, and batches that are run as mini-batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer
from transformers.trainer_utils import has_length

from .arguments import SugarTrainingArguments
from .hooks import lost_hook
from .lengths import PROBED_ROWS, LengthEstimate, LengthSampler
from .mini_batches import MiniBatchCollator, MiniBatches, RandomState, each_batch


@dataclass
class MiniBatch:
    """Which part of a batch is being computed.

    Args:
        count: Number of mini-batches of the batch.
        random_state: State of the random generators in the first pass; None if there was none.
        gradient: (n, d) gradient of L_d with respect to the embeddings of its n slice ends; None without L_d.
        value: () L_d of the whole batch; None without L_d.
    """

    count: int = 1
    random_state: RandomState | None = None
    gradient: Tensor | None = None
    value: Tensor | None = None


class MiniBatchMixin(Trainer):
    """Batches larger than memory, and batches of like length.

    With `mini_batch_size` or `mini_batch_tokens` a batch is collated as [`MiniBatches`] and run one after the other
    within one `training_step`, so that everything else of the trainer sees one batch: accumulation, the schedule, the
    log. Over processes their gradients are reduced once, with the last mini-batch.
    """

    args: SugarTrainingArguments
    data_collator: Any
    mini_batch = MiniBatch()
    _sampler_asked = False

    def first_pass(self, batches: MiniBatches) -> list[MiniBatch]:
        """What the second pass over the mini-batches has to know; here there is no first one."""
        return [MiniBatch(len(batches)) for _ in batches]

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The forward and backward passes of a batch."""
        if not isinstance(inputs, MiniBatches):
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        total = torch.zeros((), device=self.args.device)
        last = len(inputs) - 1
        try:
            for number, (batch, mini_batch) in enumerate(zip(inputs, self.first_pass(inputs), strict=True)):
                self.mini_batch = mini_batch
                with contextlib.nullcontext() if number == last else self._more_to_come(model):
                    total += super().training_step(model, batch, num_items_in_batch)
        finally:
            self.mini_batch = MiniBatch()
        return total

    @contextlib.contextmanager
    def _more_to_come(self, model: nn.Module) -> Iterator[None]:
        """Gradients stay in this process, but for sharded ones, which would need the memory of the whole model."""
        state = self.accelerator.gradient_state
        was_last = state.sync_gradients
        state._set_sync_gradients(False)  # DeepSpeed takes its optimizer step where this is set
        with model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext():
            yield
        state._set_sync_gradients(was_last)

    # ---- Data ----

    @cached_property
    def length_estimate(self) -> LengthEstimate:
        """Estimates the tokens of a row, fitted to rows of the training set."""
        dataset = self.train_dataset
        rows = dataset if has_length(dataset) else list(islice(dataset, PROBED_ROWS))

        def count_tokens(row: Mapping[str, Any]) -> int | None:
            batch = self.data_collator([row])
            return int(batch["attention_mask"].sum()) if batch.get("sample_ids", True) else None

        return LengthEstimate.fit(rows, count_tokens)

    def get_train_dataloader(self) -> DataLoader:
        """The base trainer's, which gives [`MiniBatches`] if the arguments ask for mini-batches."""
        size, tokens = self.args.mini_batch_size, self.args.mini_batch_tokens
        self._sampler_asked = False
        if size is None and tokens is None:
            return self._checked_train_dataloader()
        whole = self.data_collator
        collate: Any = MiniBatchCollator(whole, self.length_estimate, size, tokens)
        self.data_collator = collate
        try:
            return self._checked_train_dataloader()
        finally:
            self.data_collator = whole

    def _checked_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        by_length = self.args.train_sampling_strategy == "group_by_length" and has_length(self.train_dataset)
        if by_length and not self._sampler_asked:
            raise lost_hook("_get_train_sampler", "train_sampling_strategy='group_by_length'")
        return loader

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        self._sampler_asked = True
        dataset = self.train_dataset if train_dataset is None else train_dataset
        args = self.args
        has_lengths = isinstance(dataset, Dataset) and args.length_column_name in dataset.column_names
        if args.train_sampling_strategy != "group_by_length" or has_lengths or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        # samples hold no `input_ids` that the base trainer could count
        lengths = self.length_estimate.of_dataset(dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        together = args.train_batch_size * args.gradient_accumulation_steps
        return LengthSampler(lengths, together, seed, lambda: int(self.state.epoch or 0))

    # ---- Counts ----

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        return super()._get_num_items_in_batch(list(each_batch(batch_samples)), device)

    def floating_point_ops(self, inputs: Any) -> int:
        """The base trainer's estimate, over all mini-batches."""
        return sum(super(MiniBatchMixin, self).floating_point_ops(batch) for batch in each_batch([inputs]))

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if isinstance(inputs, MiniBatches):  # at once: processes may have different numbers of mini-batches
            names = ("input_ids", "attention_mask")
            inputs = {name: torch.cat([batch[name].flatten() for batch in inputs]) for name in names}
        super()._track_num_input_tokens(inputs)
