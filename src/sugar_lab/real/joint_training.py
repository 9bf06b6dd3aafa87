"""Training the model itself: the projector on captions, then LoRA, projector and head with and without L_d."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PrinterCallback, set_seed
from transformers.trainer_utils import get_last_checkpoint

from sugar_hf.data import Document, RetrievalSet
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.backbone_sugar import evaluation_mode
from sugar_hf.model.modeling_sugar import IGNORED
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.structure import StructureLossConfig
from sugar_hf.training import SugarTrainer, SugarTrainingArguments, sugar_lora_config

from ..stage_files import claim, is_whole, mark_whole, write_json
from .frozen_states import ROOM, cut_first, sample_digest
from .manuals import slices_of
from .real_answers import Search, ranked
from .real_tasks import item_ranks

LOG = "log.json"
#: What families call the part that brings pictures into the language model.
PROJECTORS = ("multi_modal_projector", "connector", "merger")


def sample_rows(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Return documents as rows of the sample schema, with their images in them."""
    rows = []
    for document in documents:
        row = document.to_row()
        rows.append({name: row[name] for name in ("id", "messages", "images")} | {"source": "real"})
    return rows


def arguments(folder: Path, **settings: Any) -> SugarTrainingArguments:
    """Return what all trainings of the study share, and settings over it."""
    shared: dict[str, Any] = {
        "lr_scheduler_type": "cosine",
        "logging_steps": 2,
        "save_steps": 32,
        "save_total_limit": 1,
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": True,
        "dataloader_pin_memory": False,
        "label_statistics_steps": 0,
        "head_whitening_samples": 0,  # heads come from the study of heads
    }
    return SugarTrainingArguments(output_dir=str(folder), **shared | settings)


def only(model: nn.Module, *parts: str) -> None:
    """Train the parameters with one of these words in their names, and no others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))


def align_projector(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    pairs: Sequence[Document],
    held_out: Sequence[Document],
    folder: Path,
    epochs: int = 1,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
) -> dict[str, Any]:
    """Train the projector alone to tell captions of pictures, as LLaVA does first, and save the backbone.

    Args:
        model: The model with a projector that is not trained.
        processor: Its processor.
        pairs: Pictures with captions of the training split, as `[picture, caption]`.
        held_out: Those of the validation split.
        folder: Where the backbone goes.
        epochs: Rounds over the pairs.
        batch_size: Pairs in a step.
        learning_rate: The highest.

    Returns:
        Mean losses of the held-out captions: before, after, and after with the pictures of other captions.
    """
    facts = {"pairs": len(pairs), "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    if is_whole(folder, facts):
        return {}
    run = folder.with_name(f"{folder.name}-run")
    claim(run, facts)
    only(model, "projector")
    settings = {"num_train_epochs": epochs, "per_device_train_batch_size": batch_size, "learning_rate": learning_rate}
    trainer = SugarTrainer(
        model=model,
        args=arguments(run, alpha=0.0, warmup_steps=10, **settings),
        train_dataset=Dataset.from_list(sample_rows(pairs)),
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    samples = [slices_of(document) for document in held_out]
    others = [Document(each.id, [samples[number - 1][0], samples[number][1]]) for number, each in enumerate(held_out)]

    def loss(documents: Sequence[Document]) -> float:
        return float(np.mean(item_losses(model, processor, documents, torch.bfloat16, batch_size)))

    report: dict[str, Any] = {"before": loss(held_out)}
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)))
    report |= {"after": loss(held_out), "with other pictures": loss(others)}
    report |= {"log": [entry for entry in trainer.state.log_history if "loss_lm" in entry]}
    model.vlm.save_pretrained(folder)
    processor.backbone_processor.save_pretrained(folder)
    write_json(folder / LOG, report)
    mark_whole(folder, facts)
    shutil.rmtree(run)
    return report


@torch.inference_mode()
def item_losses(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    documents: Sequence[Document],
    dtype: torch.dtype,
    batch_size: int = 8,
    max_length: int | None = None,
) -> list[float]:
    """Return the mean next-token loss over the texts of each document.

    Args:
        model: The model.
        processor: Its processor.
        documents: The documents.
        dtype: What is multiplied in.
        batch_size: Documents in one forward pass.
        max_length: The most tokens of a document; later slices are left out.
    """
    losses = np.zeros(len(documents))
    order = sorted(range(len(documents)), key=lambda number: documents[number].size)
    with evaluation_mode(model), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = processor(
                [documents[number].load() for number in part],
                names=[documents[number].id for number in part],
                max_length=max_length,
                truncation="slice" if max_length else False,
                return_labels=True,
            ).to(model.device)
            labels = batch.pop("labels")[:, 1:]
            hidden = model(**batch, skip_logits=True).last_hidden_state[:, :-1]
            for number, states, wanted in zip(part, hidden, labels, strict=True):
                is_label = wanted != IGNORED
                logits = model.get_output_embeddings()(states[is_label])
                losses[number] = float(cross_entropy(logits.float(), wanted[is_label]))
    return losses.tolist()


@dataclass(frozen=True)
class JointRow:
    """A way to train the model.

    Args:
        name: What the row is called.
        loss: The structure loss; the language-model loss alone when `None`.
        alpha: Its weight.
        pooling: Of texts.
        head: The row of the head study whose head it starts from; a random one when `None`.
        is_trained: Whether anything is trained, or the model is measured as it starts.
    """

    name: str
    loss: StructureLossConfig | None
    alpha: float
    pooling: str
    head: str | None
    is_trained: bool = True

    def facts(self) -> dict[str, Any]:
        """Return all settings in a form for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class JointBudget:
    """How much is trained.

    Args:
        steps: Optimizer steps.
        batch_size: Samples in a step.
        max_length: The most tokens of a sample.
        rank: Of the adapters.
        learning_rate: Of adapters and projector.
        head_learning_rate: Of the head.
    """

    steps: int = 24
    batch_size: int = 8
    max_length: int = 256
    rank: int = 32
    learning_rate: float = 2e-4
    head_learning_rate: float = 5e-4


def train_joint(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    rows: Dataset,
    row: JointRow,
    seed: int,
    budget: JointBudget,
    run: Path,
) -> tuple[SugarForConditionalGeneration, list[dict[str, float]]]:
    """Train adapters, projector and head, and return the model with its adapters merged, and the log.

    Args:
        model: The model, its head as it shall start.
        processor: Its processor.
        rows: Training samples with teacher columns.
        row: What is trained.
        seed: Of adapters, batches and drawn slice ends.
        budget: Sizes.
        run: Folder of checkpoints; a run that was stopped goes on from the last one.
    """
    claim(run, {**row.facts(), **asdict(budget), "seed": seed, "rows": len(rows)})
    set_seed(seed)
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    projector = [name for name in PROJECTORS if name in ends]
    adapters = sugar_lora_config(model, r=budget.rank, lora_alpha=2 * budget.rank, modules_to_save=projector)
    trained: Any = get_peft_model(model, adapters)  # type: ignore[arg-type]
    loss = {} if row.loss is None else row.loss.to_dict()
    trainer = SugarTrainer(
        model=trained,
        args=arguments(
            run,
            alpha=row.alpha,
            max_steps=budget.steps,
            warmup_steps=budget.steps // 10,
            logging_steps=max(2, budget.steps // 24),
            per_device_train_batch_size=budget.batch_size,
            learning_rate=budget.learning_rate,
            head_learning_rate=budget.head_learning_rate,
            max_length=budget.max_length,
            truncation="slice",
            train_sampling_strategy="group_by_length",
            seed=seed,
            **loss,
        ),
        train_dataset=rows,
        processing_class=processor,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(run)))
    log = [entry for entry in trainer.state.log_history if "loss_lm" in entry]
    return trained.merge_and_unload().eval(), log


def smaller(task: RetrievalSet, queries: int, candidates: int) -> RetrievalSet:
    """Return a part of a task: some queries, their relevant documents, and others up to a number of candidates.

    Both are chosen by a digest of their ids, so that they are the same in all runs.
    """

    def order(document: Document) -> bytes:
        return hashlib.sha256(document.id.encode()).digest()

    asked = sorted(task.queries, key=order)[:queries]
    relevance = {query.id: task.relevance[query.id] for query in asked}
    needed = {name for grades in relevance.values() for name in grades}
    corpus = sorted(task.corpus, key=lambda document: (document.id not in needed, order(document)))
    return RetrievalSet(asked, corpus[: max(candidates, len(needed))], relevance)


def whole_samples(
    model: SugarForConditionalGeneration, processor: SugarProcessor, max_length: int, batch_size: int
) -> SugarEmbedder:
    """Return the embedder of samples at their last slice; later slices of long ones are left out."""
    return SugarEmbedder(
        model, processor, batch_size=batch_size, max_length=max_length, truncation="slice", positions="last"
    )


def embedded_ranks(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    tasks: Mapping[str, RetrievalSet],
    max_length: int,
    batch_size: int = 32,
) -> dict[str, dict[str, int]]:
    """Return the ranks of each task's queries by a model's own embeddings; equal samples are embedded once."""
    documents: dict[str, Document] = {}
    for task in tasks.values():
        for document in (*task.queries, *task.corpus):
            documents.setdefault(sample_digest(document), document)
    embedder = whole_samples(model, processor, max_length, batch_size)
    found = dict(zip(documents, embedder.embed_documents([*documents.values()]), strict=True))

    def vectors(given: Sequence[Document]) -> np.ndarray:
        return np.concatenate([found[sample_digest(document)] for document in given])

    return {name: item_ranks(task, vectors(task.queries) @ vectors(task.corpus).T) for name, task in tasks.items()}


def by_embeddings(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    corpus: Sequence[Document],
    max_length: int = 2048,
    batch_size: int = 8,
) -> Search:
    """Return the search of a model's own embeddings, of whole samples; a first text that is too long is cut."""
    embedder = whole_samples(model, processor, max_length, batch_size)

    def search(questions: Sequence[str]) -> list[list[int]]:
        known = embedder.encode([cut_first(processor, document, max_length - ROOM) for document in corpus])
        return ranked(embedder.encode(list(questions)) @ known.T)

    return search
