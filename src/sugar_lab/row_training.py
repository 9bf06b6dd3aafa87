"""What the lab trains: the rows of its tables."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from peft import get_peft_model
from transformers import PrinterCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from sugar_hf._files import digest
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.picturebook import checkpoint
from sugar_hf.training import SugarCollator, SugarTrainer, SugarTrainingArguments, sugar_lora_config

from .budget import Budget
from .mix import prepare_mix
from .model_rows import RECIPE, Row
from .recipe.loop import MuonWithAdamW
from .stage_files import claim, is_whole, mark_whole, write_json

BASE = "mini-vlm"
LORA_RANK = 32
OTHER_LEARNING_RATE = 1e-3  # of what is no matrix
WIDTH = 128  # of the embeddings
LOG = "log.json"


@cache
def base_facts() -> str:
    """What tells the shipped mini VLM, which all rows start from, from others: the start of its weights' SHA-256."""
    return digest(Path(checkpoint(BASE), "model.safetensors"))[:16]


def start_of(row: Row, bases: Sequence[Path] = ()) -> Path:
    """The folder of the model that a row starts from.

    Args:
        row: the row.
        bases: folders of other models than the shipped mini VLM.

    Raises:
        FileNotFoundError: it starts from another model, and none of the folders has it.
    """
    if not row.base:
        return Path(checkpoint(BASE))
    for folder in bases:
        if digest(folder / "model.safetensors").startswith(row.base):
            return folder
    raise FileNotFoundError(
        f"the row {row.name!r} starts from a model whose weights have the SHA-256 {row.base}...: give its folder by "
        "--base (`docs/lab.md` says where to get it)."
    )


def base_with_head(
    seed: int, folder: str | Path | None = None
) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """What rows start from: the mini VLM, or that of a folder, with a fresh retrieval head, that of the seed."""
    set_seed(seed)
    folder = checkpoint(BASE) if folder is None else str(folder)
    model = SugarForConditionalGeneration.from_backbone(folder, retrieval_dim=WIDTH)
    return model.eval(), SugarProcessor.from_pretrained(folder)


class WithoutText(SugarCollator):
    """Makes batches in which no text is learnt, so that the structure loss is all there is."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See [`SugarCollator`]; `labels` (B, L) are -100 throughout."""
        batch = super().__call__(rows)
        batch["labels"].fill_(-100)
        return batch


def row_arguments(row: Row, seed: int, budget: Budget, folder: Path) -> SugarTrainingArguments:
    """The arguments of a row's training: what all rows share, and the row's own settings over it."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": budget.batch_size,
        "lr_scheduler_type": "cosine",
        "head_whitening_samples": 0,  # heads begin at random, but in rows that say otherwise
        **RECIPE,
        **row.settings,
    }
    steps = -(-budget.rows // settings["per_device_train_batch_size"])
    return SugarTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        warmup_steps=min(20, steps // 4),
        seed=seed,
        logging_steps=max(1, steps // 16),
        save_steps=100,
        save_total_limit=1,
        train_sampling_strategy="sequential",  # keeps what tells and what shows the same scene in one batch
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **settings,
    )


def row_facts(row: Row, seed: int, budget: Budget) -> dict[str, Any]:
    """What a row's model depends on."""
    sizes = {name: asdict(budget)[name] for name in ("batch_size", "rows")}
    return {**row.facts(), "seed": seed, **sizes, "base": row.base or base_facts()}


def model_folder(row: Row, seed: int, work: Path) -> Path:
    """Where a row's model of a seed is kept."""
    return work / "models" / f"{row.name}-{seed}"


def train_row(row: Row, seed: int, budget: Budget, work: Path, bases: Sequence[Path] = ()) -> Path:
    """Train a row's model from its base, with a fresh retrieval head; the vision tower stays as it is.

    A run that was stopped goes on from its last checkpoint; a finished one is not run again.

    Args:
        row: which one.
        seed: of the head, of the drawn slice ends and of the data.
        budget: sizes.
        work: the lab's folder.
        bases: see `start_of`.

    Returns:
        The model's folder; beside the model it has the losses as `log.json`.
    """
    folder, facts = model_folder(row, seed, work), row_facts(row, seed, budget)
    if is_whole(folder, facts):
        return folder
    run = work / "runs" / f"{row.name}-{seed}"
    claim(run, facts)
    rows = prepare_mix(row.data, budget.rows, seed, work)
    model, processor = base_with_head(seed, start_of(row, bases))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("retrieval_head" in name or ("language_model" in name and not row.head_alone))
    adapters = sugar_lora_config(model, r=LORA_RANK, lora_alpha=2 * LORA_RANK)
    trained: Any = get_peft_model(model, adapters) if row.lora else model  # type: ignore[arg-type]
    trainer = SugarTrainer(
        model=trained,
        optimizers=(MuonWithAdamW(trained, RECIPE["learning_rate"], OTHER_LEARNING_RATE), None),
        args=row_arguments(row, seed, budget, run),
        train_dataset=rows,
        processing_class=processor,
        data_collator=None if row.learns_text else WithoutText(processor),
    )
    trainer.remove_callback(PrinterCallback)  # the log is kept
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)))
    if row.lora:
        model = trained.merge_and_unload()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / LOG, [entry for entry in trainer.state.log_history if "loss_lm" in entry])
    mark_whole(folder, facts)
    shutil.rmtree(run)
    return folder
