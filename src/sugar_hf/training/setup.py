"""What a Sugar trainer settles before its first step: its collator, its loss, whether data and devices will do."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from sugar_hf.data import FEATURES
from sugar_hf.model import SugarProcessor
from sugar_hf.structure import TEACHER_COLUMNS, StructureLossConfig, TripleTeacher, block_means, check_cache

from .arguments import SugarTrainingArguments
from .collator import SugarCollator

logger = logging.getLogger(__name__)


def default_collator(
    processor: SugarProcessor | None, teacher: TripleTeacher | None, args: SugarTrainingArguments
) -> SugarCollator:
    """The collator that the arguments describe."""
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
        on_bad_sample=args.on_bad_sample,
        control_tokens_in_answers=args.control_tokens_in_answers,
    )


def check_teacher_columns(collator: Any, train_dataset: Any, eval_dataset: Any) -> None:
    """Finds missing and stale teacher vectors before the first step where the data set can be asked."""
    if not isinstance(collator, SugarCollator):
        return
    teacher = collator.teacher
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


def used_columns(data: Any, args: SugarTrainingArguments) -> Any:
    """A data set, or a dict of such, without the columns that [`SugarCollator`] does not read.

    Only of data in the sample schema is known which these are.
    """
    if isinstance(data, Mapping):
        return {name: used_columns(each, args) for name, each in data.items()}
    if not isinstance(data, Dataset) or not set(FEATURES) <= set(data.column_names):
        return data
    kept = {*FEATURES, *TEACHER_COLUMNS, args.length_column_name}
    return data.select_columns([name for name in data.column_names if name in kept])


def structure_config(args: SugarTrainingArguments, dataset: Any, retrieval_dim: int) -> StructureLossConfig:
    """The structure loss of the arguments, with the block means of the training set if it needs them."""
    if args.matryoshka_dims and max(args.matryoshka_dims) > retrieval_dim:
        raise ValueError(
            f"matryoshka_dims={args.matryoshka_dims}: the model's embeddings have {retrieval_dim} dimensions. Give "
            "sizes up to this."
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


def check_devices(args: SugarTrainingArguments) -> None:
    """Refuses several GPUs in one process, and says so when processes form pairs of their own samples only."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process would run torch.nn.DataParallel, where each replica sees a part of the "
            "pairs. Start one process a GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES=0."
        )
    if args.world_size > 1 and args.process_index == 0 and args.alpha and args.structure_loss_scope == "rank":
        logger.warning(
            f"structure_loss_scope='rank': each of {args.world_size} processes forms pairs of its own samples only."
        )
