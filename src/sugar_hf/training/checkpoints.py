"""Atomic checkpoints: a killed run and a full disk leave the last good one in place."""

import copy
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import SaveStrategy, TrainOutput, get_last_checkpoint, sort_checkpoints

from .._files import fsync, fsync_tree, replace
from ..model import SugarForConditionalGeneration
from .guards import adapter_configs, lost_hook, sugar_model

logger = logging.getLogger(__name__)

# Where a checkpoint is written and from where one is deleted. `get_last_checkpoint` and the rotation do not look into
# it, and uploads to the Hub leave out names that begin with an underscore.
UNFINISHED = "_unfinished"
WHOLE, OLD = "whole-", "old-"
# Left in a checkpoint's place by `enable_jit_checkpoint` while the checkpoint is being written.
JIT_MARK = "checkpoint-is-incomplete.txt"
# Without one of these a folder is no model: they go first and come last when one is replaced.
MARKS = ("config.json", "adapter_config.json")
WEIGHTS = ("*model*.safetensors", "*model*.safetensors.index.json", "*model*.bin")


class AtomicCheckpoints(Trainer):
    """Write each checkpoint under another name, and rename it when all of it has reached the disk.

    A checkpoint is written into the folder `_unfinished` of the run and moved to its place with one rename. Only then
    are older ones deleted, so that a run killed at any moment has whole checkpoints only. What it left in
    `_unfinished` is removed when training starts again.

    The folder of the run must be one file system for all processes that write to it. Under `save_on_each_node` the
    first process of each node does this for its own node.
    """

    model: Any
    _saving = False
    _push_due = False
    _to_resume = False

    def train(self, resume_from_checkpoint: Any = None, trial: Any = None, *rest: Any, **kwargs: Any) -> TrainOutput:
        """Train as the base trainer does, after the remains of a killed run have been cleared away."""
        self._clear_remains(self._get_output_dir(trial))
        self._to_resume = bool(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, trial, *rest, **kwargs)

    # ---- Saving ----

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model as the base trainer does, and beside an adapter the configuration of its Sugar model.

        The files are written aside and then take the place of those of an earlier model. If the process is killed, the
        folder holds the earlier model, the new one, or none that loads.
        """
        target = Path(self.args.output_dir if output_dir is None else output_dir)
        _name_base(self.model)
        if self._saving or self._is_sharded:  # aside already, or in many parts
            self._write_model(target)
        else:
            aside = target / UNFINISHED / "model"
            self._remove_aside(aside)
            try:
                self._write_model(aside)
                if self.args.should_save:
                    fsync_tree(aside)
                    _replace_model(aside, target)
            finally:
                self._remove_aside(aside)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    @property
    def _is_sharded(self) -> bool:
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def _write_model(self, folder: Path) -> None:
        super().save_model(str(folder), True)
        if self.args.should_save:
            _save_config(self.model, folder)

    def _remove_aside(self, folder: Path) -> None:
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            if folder.parent.is_dir() and not os.listdir(folder.parent):
                folder.parent.rmdir()

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run = self._get_output_dir(trial)
        name = f"checkpoint-{self.state.global_step}"
        unfinished, target = Path(run, UNFINISHED, name), Path(run, name)
        with self._removed_on_error(target):
            self._clear_remains(run)
            self._saving, self._push_due = True, False
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            if self.args.should_save and not unfinished.is_dir():
                raise lost_hook("_get_output_dir", "whole checkpoints")
            self._name_best(run, unfinished)
            self.accelerator.wait_for_everyone()  # each process has written its part
            if self.args.should_save:
                _publish(unfinished, target)
        self.accelerator.wait_for_everyone()
        if self._push_due:
            super()._push_from_checkpoint(str(target))
        if self.args.should_save:
            self._rotate(run)
            shutil.rmtree(unfinished.parent, ignore_errors=True)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._saving:
            self._push_due = True  # the upload runs in the background, so it has to start from the final place
        else:
            super()._push_from_checkpoint(checkpoint_folder)

    def _name_best(self, run: str, unfinished: Path) -> None:
        """Set the path of the best checkpoint, which the base trainer has looked for in the temporary folder."""
        best = self.state.best_global_step
        if not best or self.args.save_strategy == SaveStrategy.NO:
            return
        path = os.path.join(run, f"checkpoint-{best}")
        if best == self.state.global_step or os.path.isdir(path):
            self.state.best_model_checkpoint = path
            if self.args.should_save:
                self.state.save_to_json(str(unfinished / TRAINER_STATE_NAME))

    def _clear_remains(self, run: str) -> None:
        if self.args.should_save:
            _clear(Path(run))
        self.accelerator.wait_for_everyone()

    def _rotate(self, run: str) -> None:
        """Delete the oldest checkpoints over `save_total_limit`, never the newest and the best one.

        Unlike `transformers.trainer_utils.rotate_checkpoints`, it moves a checkpoint away before its files are
        deleted, so that a half-deleted one is never found.
        """
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return
        checkpoints = sort_checkpoints(run, use_mtime=True)
        kept = {checkpoints[-1]}
        if self.state.best_model_checkpoint is not None:
            kept.add(str(Path(self.state.best_model_checkpoint)))
        spare = [checkpoint for checkpoint in checkpoints if checkpoint not in kept]
        for checkpoint in spare[: max(0, len(checkpoints) - max(limit, len(kept)))]:
            _remove(Path(checkpoint))

    @contextmanager
    def _removed_on_error(self, target: Path) -> Iterator[None]:
        """Remove what was written of a checkpoint when an error ends it, and note what is left."""
        try:
            yield
        except BaseException as error:
            run = target.parent
            if self.args.should_save:
                _clear(run)
            last = get_last_checkpoint(str(run)) if run.is_dir() else None
            kept = f"The last good checkpoint is {last}." if last else f"There is no earlier one in {run}."
            error.add_note(f"The unfinished checkpoint {target.name} was removed. {kept}")
            raise

    # ---- Loading ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the base trainer's optimizer, which comes after the weights of a checkpoint."""
        if self._to_resume and not self._is_sharded:
            raise lost_hook("_load_from_checkpoint", "resuming")
        return super().create_optimizer(model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._to_resume = False
        if not self._restore_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._restore_weights(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _restore_weights(self, checkpoint: str | None) -> bool:
        """Load the weights of a whole model; return False for adapters and sharded models, which the base can load.

        The base trainer takes the names of weights from the file. `save_pretrained` writes many backbones under other
        names, so that none of their weights would be loaded, with only a warning.
        """
        whole = isinstance(self.model, SugarForConditionalGeneration)
        if not whole or checkpoint is None or self._is_sharded:
            return False
        self.model.load_state_dict(SugarForConditionalGeneration.from_pretrained(checkpoint).state_dict())
        return True


def _name_base(model: nn.Module) -> None:
    """Give an adapter the name of its base, if it was made without."""
    sugar = sugar_model(model)
    configs = [config for config in adapter_configs(model).values() if not config.base_model_name_or_path]
    if not configs:
        return
    name = sugar.config.name_or_path or sugar.vlm.name_or_path or sugar.config.vlm_config.name_or_path
    if not name:
        logger.warning(
            "The adapter's base has no name, as it was not loaded from a folder or the Hub: save the base with "
            "save_pretrained, and load the adapter onto it with PeftModel.from_pretrained(base, adapter_folder)."
        )
    for config in configs:
        config.base_model_name_or_path = name or None


def _save_config(model: nn.Module, folder: Path) -> None:
    """Write the configuration of the Sugar model beside each adapter, which does not load without."""
    adapters = adapter_configs(model)
    if not adapters:
        return
    sugar = sugar_model(model)
    config = copy.deepcopy(sugar.config)
    config.architectures = [type(sugar).__name__]
    # how the base was loaded for this training need not be how it is loaded next
    config.__dict__.pop("quantization_config", None)
    for place in (folder, *(folder / name for name in adapters)):
        if (place / "adapter_config.json").is_file():
            config.save_pretrained(place)


def _replace_model(folder: Path, target: Path) -> None:
    """Move the files of a model to their place, which never looks whole with files of two models in it."""
    new = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for path in new:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
    for mark in MARKS:
        (target / mark).unlink(missing_ok=True)
    stale = {path for pattern in WEIGHTS for path in target.glob(pattern)} - {target / path for path in new}
    for path in stale:
        path.unlink()
    for path in sorted(new, key=lambda path: path.name in MARKS):
        os.replace(folder / path, target / path)
    fsync(target)


def _publish(folder: Path, target: Path) -> None:
    """Move a finished checkpoint to its place; one that an earlier run left there is replaced."""
    if target.exists():
        # Two renames: a kill between them leaves the new one in `_unfinished`, marked as whole for `_clear`.
        whole = folder.with_name(WHOLE + target.name)
        if folder != whole:
            replace(folder, whole)
        _remove(target)
        folder = whole
    replace(folder, target)


def _remove(checkpoint: Path) -> None:
    """Delete a checkpoint; out of sight first, so that it is never found with a part of its files."""
    aside = checkpoint.parent / UNFINISHED / (OLD + checkpoint.name)
    aside.parent.mkdir(exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(checkpoint, aside)
    shutil.rmtree(aside, ignore_errors=True)


def _clear(run: Path) -> None:
    """Remove what a killed run has left unfinished, and finish the replacement of one checkpoint by another."""
    unfinished = run / UNFINISHED
    for whole in unfinished.glob(WHOLE + "*"):
        _publish(whole, run / whole.name.removeprefix(WHOLE))
    shutil.rmtree(unfinished, ignore_errors=True)
    for mark in run.glob(f"checkpoint-*/{JIT_MARK}"):
        if len(os.listdir(mark.parent)) == 1:
            shutil.rmtree(mark.parent)
