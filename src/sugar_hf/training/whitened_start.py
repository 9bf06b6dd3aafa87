"""Whitening of the retrieval head by the states of training samples, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import has_length

from ..model import SugarForConditionalGeneration
from ..model.backbone_sugar import evaluation_mode
from ..model.whitening import StateMoments, active_head, gathered_states, set_whitened
from .collator import BAD_SAMPLES, RandomState, SugarCollator
from .guards import sugar_model
from .structure_term import structure_parts

logger = logging.getLogger(__name__)

FRESH_SAMPLES = 512  # for a fresh head
MOST_SAMPLES = 8  # in a forward pass


def add_whitened_start(trainer: Trainer, samples: int | None) -> None:
    """Have a trainer whiten the head when it begins; see [`WhitenedStart`]. A head that may not be is left alone."""
    may_be_fresh = trainer.model_init is not None or active_head(sugar_model(trainer.model)).is_fresh
    if samples or (samples is None and may_be_fresh):
        trainer.add_callback(WhitenedStart(trainer, samples))


class WhitenedStart(TrainerCallback):
    """Whiten the retrieval head once, when its training begins, and not when it goes on from a checkpoint.

    The processes share the samples, and all of them get the same head.

    Args:
        trainer: Has the training set, the collator and the model.
        samples: How many rows of the training set are embedded, drawn by its seed; of a stream the first. `None`:
            `FRESH_SAMPLES` if nothing has trained the head, and if they tell enough directions.
    """

    def __init__(self, trainer: Trainer, samples: int | None) -> None:
        self.trainer, self.asked = trainer, samples
        self.samples = FRESH_SAMPLES if samples is None else samples
        self._whitened: SugarForConditionalGeneration | None = None

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Whiten the head."""
        model = sugar_model(self.trainer.model)
        head = active_head(model)
        if state.global_step or self._whitened is model:
            return
        if self.asked is None and not head.is_fresh:
            return
        self._whitened = model
        moments = self._moments()
        reduced = [self._sum(each) for each in (moments.count, moments.total, moments.products)]
        moments.count, moments.total, moments.products = reduced
        try:
            set_whitened(head, moments)
        except ValueError as error:
            if self.asked is not None:
                raise ValueError(f"head_whitening_samples={self.samples}: {error}") from None
            logger.warning(f"The retrieval head begins at random, and not from whitened states: {error}")
            return
        if args.world_size > 1:  # eigenvectors of equal matrices may differ by rounding
            with torch.no_grad():
                for weight in head.parameters():
                    weight.copy_(broadcast(weight.data))

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return values
        return accelerator.reduce(values.to(accelerator.device), reduction="sum").cpu()

    def _moments(self) -> StateMoments:
        trainer, args = self.trainer, self.trainer.args
        collate = trainer.data_collator
        if isinstance(collate, SugarCollator):
            collate = collate.without_labels()
        model = sugar_model(trainer.model)
        known = min(self.samples, len(trainer.train_dataset)) if has_length(trainer.train_dataset) else self.samples
        bar = tqdm(total=known, desc="States", disable=args.disable_tqdm or not args.should_log)
        kept = RandomState(torch.zeros(1, device=args.device))
        with gathered_states(model) as moments, evaluation_mode(trainer.model), torch.no_grad(), bar, kept.replayed():
            for rows in self._batches():
                inputs = trainer._prepare_inputs(dict(collate(rows)))
                structure_parts(inputs, needed=False)
                is_blank = not inputs.get("sample_ids", True)
                for name in ("sample_ids", "sample_keys", BAD_SAMPLES):
                    inputs.pop(name, None)
                if not is_blank:
                    with trainer.compute_loss_context_manager():
                        model(**{**inputs, "labels": None}, use_cache=False, skip_logits=True)
                bar.update(len(rows) * args.world_size)
        return moments

    def _batches(self) -> Iterator[list[Any]]:
        """Yield this process's share of the rows."""
        args = self.trainer.args
        size = min(args.per_device_train_batch_size, args.mini_batch_size or MOST_SAMPLES)
        rows = self._rows()
        while batch := list(islice(rows, size)):
            yield batch

    def _rows(self) -> Iterator[Any]:
        args, dataset = self.trainer.args, self.trainer.train_dataset
        if has_length(dataset):
            order = np.random.default_rng(args.seed).permutation(len(dataset))[: self.samples]
            for number in order[args.process_index :: args.world_size]:
                yield dataset[int(number)]
        else:
            yield from islice(dataset, args.process_index, self.samples, args.world_size)
