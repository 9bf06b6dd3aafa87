"""Samples that the processor cannot take: named, or left out and counted, in training and in evaluation."""

from __future__ import annotations

import logging
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from sugar_hf.data import BadSampleError

from .collator import BAD_SAMPLES, SugarCollator
from .guard import GuardedStepMixin
from .mini_batches import each_batch

logger = logging.getLogger(__name__)

COUNT = "BadSamples"  # key of the count among the callbacks' states, which is the part of the state open to additions
SAID = 20  # samples that are named in the log, one by one
MOST_EMPTY_STEPS = 5


class BadSampleMixin(GuardedStepMixin):
    """Applies `on_bad_sample` of the arguments: the collator leaves samples out, and here they are told and counted.

    A process whose batch has no sample left runs a blank one, from which nothing is learnt, so that all processes keep
    step. An optimizer step without any sample leaves the weights alone.
    """

    data_collator: Any
    _nothing_left = False
    _empty_steps = 0
    _eval_bad = 0

    def __init__(self, *rest: Any, **kwargs: Any):
        super().__init__(*rest, **kwargs)
        if isinstance(self.data_collator, SugarCollator):
            if self.args.on_bad_sample == "skip":
                self.data_collator.on_bad_sample = "skip"
            self.args.on_bad_sample = self.data_collator.on_bad_sample

    @property
    def skipped_samples(self) -> int:
        """Number of samples left out of training so far, as the processor could not take them."""
        return self.state.stateful_callbacks.get(COUNT, {}).get("attributes", {}).get("skipped_samples", 0)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list, Any]:
        """The base trainer's micro-batches of one optimizer step, without what the collator says of bad samples."""
        try:
            batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        except BadSampleError as error:
            raise placed(error, self.train_dataset) from error.__cause__
        if self.args.on_bad_sample != "skip":
            return batches, count
        said = [text for batch in each_batch(batches) for text in batch.pop(BAD_SAMPLES, ())]
        left = sum(len(batch.get("sample_ids", ())) for batch in each_batch(batches))
        numbers = torch.tensor([len(said), left], device=self.args.device)
        if self.args.world_size > 1:
            numbers = self.accelerator.reduce(numbers, reduction="sum")
        skipped, left = numbers.tolist()
        for number, text in enumerate(said, start=self.skipped_samples + 1):
            if number <= SAID:
                logger.warning(f"A sample is left out ({number} so far). {text}")
        if skipped:
            total = self.skipped_samples + skipped
            if self.skipped_samples < SAID <= total:
                logger.warning(f"{total} samples are left out by now; more are counted as skipped_samples, not named.")
            self.state.stateful_callbacks[COUNT] = {"args": {}, "attributes": {"skipped_samples": total}}
        self._nothing_left = bool(batches) and not left
        self._empty_steps = self._empty_steps + 1 if self._nothing_left else 0
        if self._empty_steps >= MOST_EMPTY_STEPS:
            raise RuntimeError(
                f"None of the samples of {self._empty_steps} steps in a row can be used, so that it is hardly their "
                f"fault: look at the arguments (max_length={self.args.max_length}) and at the processor. "
                f"The last one: {said[-1] if said else 'in another process'}"
            )
        return batches, count

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._nothing_left:  # gradients of zero would still be momentum and weight decay
            model.zero_grad(set_to_none=True)
            self._skipped_since_log += 1
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs, with the number of samples left out so far."""
        if "loss" in logs and self.args.on_bad_sample == "skip":
            logs["skipped_samples"] = self.skipped_samples
        super().log(logs, start_time)


def placed(error: BadSampleError, dataset: Any) -> BadSampleError:
    """The error with the number of the row in the data set, where it can be found."""
    if error.row is None and error.sample and isinstance(dataset, Dataset) and "id" in dataset.column_names:
        ids = dataset.with_format(None)["id"][:]
        if ids.count(error.sample) == 1:
            error.at(row=ids.index(error.sample))
    return error
