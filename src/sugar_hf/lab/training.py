"""What the lab trains: the model that all rows start from, and the rows.

python -m sugar_hf.lab.training --work runs/lab --steps 2000     # the former alone
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import LlavaForConditionalGeneration, LlavaProcessor, PrinterCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..model import SugarForConditionalGeneration, SugarProcessor
from ..picturebook import checkpoint
from ..picturebook.exercises import all_exercises
from ..picturebook.recipe.loop import Draw, train
from ..picturebook.recipe.vlm import collator, draw_chat, draw_document
from ..training import SugarCollator, SugarTrainer, SugarTrainingArguments
from .budget import FULL, Budget
from .interviews import draw_interview, draw_told
from .mix import prepare_mix
from .pieces import by_length, draw_signs
from .rows import RECIPE, Row
from .whole import claim, is_whole, mark_whole, write_json

BASE_BATCH_SIZE = 48
BASE_LEARNING_RATE = 1e-3
GROUPS = 4
WIDTH = 128  # of the embeddings
LOG = "log.json"


def base_kinds() -> list[Draw]:
    """What batches of the base's training hold, in turn: many questions about one picture, which teach most, exercises
    of all kinds, and what the shipped one has learnt."""
    first, second, third, fourth = by_length(all_exercises(), GROUPS)
    asked: list[Draw] = [draw_interview, draw_told, first, draw_interview, second, draw_signs, draw_interview, third]
    return [*asked, draw_told, fourth, draw_chat, draw_document]


def base_facts(steps: int) -> dict[str, Any]:
    """What the base depends on."""
    return {"steps": steps, "exercises": sorted(all_exercises()) if steps else []}


def train_base(steps: int, work: Path) -> Path:
    """The vision-language model that all rows start from: it generates, and knows nothing of retrieval.

    The shipped mini VLM, trained further on the exercises and documents of the training split with the language-model
    loss alone. A run that was stopped goes on from its last checkpoint; a finished one is not run again.

    Args:
        steps: steps of training; with 0 the shipped model is taken.
        work: the lab's folder; the run's checkpoints lie in `base-run`, the model in `base`.

    Returns:
        The model's folder.
    """
    shipped, folder = Path(checkpoint("mini-vlm")), work / "base"
    if not steps:
        return shipped
    facts = base_facts(steps)
    if is_whole(folder, facts):
        return folder
    claim(work / "base-run", facts)
    processor = LlavaProcessor.from_pretrained(shipped)
    model = LlavaForConditionalGeneration.from_pretrained(shipped)
    train(
        model,
        base_kinds(),
        collator(processor),
        work / "base-run",
        steps=steps,
        batch_size=BASE_BATCH_SIZE,
        learning_rate=BASE_LEARNING_RATE,
    )
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    mark_whole(folder, facts)
    return folder


class WithoutText(SugarCollator):
    """Makes batches in which no text is learnt, so that the structure loss is all there is."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """See [`SugarCollator`]; `labels` (B, L) are -100 throughout."""
        batch = super().__call__(rows)
        batch["labels"].fill_(-100)
        return batch


def row_arguments(row: Row, seed: int, budget: Budget, folder: Path) -> SugarTrainingArguments:
    """The arguments of a row's training: what all rows share, and the row's own settings over it."""
    shared: dict[str, Any] = {
        "per_device_train_batch_size": budget.batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": min(20, budget.steps // 4),
        **RECIPE,
    }
    return SugarTrainingArguments(
        output_dir=str(folder),
        max_steps=budget.steps,
        seed=seed,
        logging_steps=max(1, budget.steps // 16),
        save_steps=100,
        save_total_limit=1,
        train_sampling_strategy="sequential",  # keeps what tells and what shows the same scene in one batch
        report_to="none",
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **{**shared, **row.settings},
    )


def row_facts(row: Row, seed: int, budget: Budget) -> dict[str, Any]:
    """What a row's model depends on."""
    sizes = {name: asdict(budget)[name] for name in ("steps", "batch_size", "rows")}
    return {**row.facts(), "seed": seed, **sizes, "base": base_facts(budget.base_steps)}


def model_folder(row: Row, seed: int, work: Path) -> Path:
    """Where a row's model of a seed is kept."""
    return work / "models" / f"{row.name}-{seed}"


def train_row(row: Row, seed: int, budget: Budget, work: Path) -> Path:
    """Train a row's model from the base, with a fresh retrieval head; the vision tower stays as it is.

    A run that was stopped goes on from its last checkpoint; a finished one is not run again.

    Args:
        row: which one.
        seed: of the head, of the drawn slice ends and of the data.
        budget: sizes.
        work: the lab's folder.

    Returns:
        The model's folder; beside the model it has the losses as `log.json`.
    """
    folder, facts = model_folder(row, seed, work), row_facts(row, seed, budget)
    if is_whole(folder, facts):
        return folder
    run = work / "runs" / f"{row.name}-{seed}"
    claim(run, facts)
    base = train_base(budget.base_steps, work)
    rows = prepare_mix(row.data, budget.rows, seed, work)
    set_seed(seed)
    processor = SugarProcessor.from_pretrained(base)
    model = SugarForConditionalGeneration.from_backbone(str(base), retrieval_dim=WIDTH)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("language_model" in name or "retrieval_head" in name)
    trainer = SugarTrainer(
        model=model,
        args=row_arguments(row, seed, budget, run),
        train_dataset=rows,
        processing_class=processor,
        data_collator=None if row.learns_text else WithoutText(processor),
    )
    trainer.remove_callback(PrinterCallback)  # the log is kept
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_json(folder / LOG, [entry for entry in trainer.state.log_history if "loss_lm" in entry])
    mark_whole(folder, facts)
    shutil.rmtree(run)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/lab"), help="the lab's folder")
    parser.add_argument("--steps", type=int, default=FULL.base_steps)
    arguments = parser.parse_args()
    print(train_base(arguments.steps, arguments.work))


if __name__ == "__main__":
    main()
