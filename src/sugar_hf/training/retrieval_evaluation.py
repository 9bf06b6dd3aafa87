"""Retrieval, measured with the weights of the moment whenever a trainer evaluates."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BatchFeature, Trainer

from ..data import Document, RetrievalSet
from ..model import SugarProcessor
from ..model.backbone_sugar import evaluation_mode
from ..model.embedding_sugar import check_unit
from .guards import sugar_model


class RetrievalEvaluations(Trainer):
    """A mixin in front of a trainer that evaluates retrieval, too, with `eval_dataset` or without.

    Attributes:
        eval_retrieval: What is evaluated; None for nothing.
    """

    eval_retrieval: RetrievalSet | None = None
    control: Any
    _evaluates = False
    _found: dict[str, float] | None = None

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate as the base trainer does, with `{prefix}_retrieval_ndcg@10` and the like among the metrics.

        Without a data set retrieval is evaluated alone.
        """
        if self.eval_retrieval is None or self._evaluates:  # of several data sets each is evaluated by a call of this
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        self._evaluates = True
        try:
            self._found = self._evaluate_retrieval(self.eval_retrieval, f"{metric_key_prefix}_retrieval")
            if eval_dataset is not None or self.eval_dataset is not None:
                return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            metrics = self._found
            self.log(metrics)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics
        finally:
            self._evaluates, self._found = False, None

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """Evaluate as the base trainer does; the first loop of an evaluation takes the metrics of retrieval along."""
        output = super().evaluation_loop(*arguments, **options)
        found, self._found = self._found, None
        return output if found is None else output._replace(metrics={**(output.metrics or {}), **found})

    def _evaluate_retrieval(self, task: RetrievalSet, prefix: str) -> dict[str, float]:
        start, args = time.time(), self.args
        is_sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if is_sharded and not self.accelerator._models:
            raise ValueError("eval_retrieval with DeepSpeed or FSDP needs train() first, which shards the model.")
        options = {
            "batch_size": args.eval_batch_size,
            "max_length": args.max_length,
            "truncation": False if args.truncation == "error" else args.truncation,
            "split_sentences": args.split_sentences,
        }
        documents = [*task.queries, *task.corpus]
        # Weights that are spread over processes are used by all of them in step: each embeds all.
        model = self.model_wrapped if is_sharded else self.model
        hidden = args.disable_tqdm or not self.is_local_process_zero()
        with tqdm(desc="Retrieval", unit="samples", leave=False, disable=hidden) as bar:

            def run(share: Sequence[Document]) -> Tensor:
                bar.reset(len(share))
                return embed(model, self.processing_class, share, bar.update, **options)

            vectors = run(documents) if is_sharded else embed_over_processes(self.accelerator, run, documents)
        rows = vectors.numpy()
        count = len(task.queries)
        metrics = task.metrics(rows[:count], rows[count:])
        metrics["runtime"] = round(time.time() - start, 4)
        return {f"{prefix}_{name}": value for name, value in metrics.items()}


def as_retrieval_set(given: RetrievalSet | Mapping[str, Any] | None, processor: Any) -> RetrievalSet | None:
    """Return the argument `eval_retrieval` as a [`RetrievalSet`].

    Raises:
        TypeError: It is neither one nor a dict of its fields, or there is no processor to embed with.
        ValueError: See [`RetrievalSet`].
    """
    if given is None:
        return None
    if not isinstance(processor, SugarProcessor):
        raise TypeError(f"eval_retrieval needs the model's SugarProcessor as processing_class, not {processor!r:.60}.")
    if isinstance(given, RetrievalSet):
        return given
    if not isinstance(given, Mapping) or not {"queries", "corpus", "relevance"} <= given.keys():
        raise TypeError("eval_retrieval: give a RetrievalSet, or a dict with queries, corpus and relevance.")
    return RetrievalSet.of(**given)


def embed_over_processes(
    accelerator: Accelerator, embed: Callable[[Sequence[Document]], Tensor], documents: Sequence[Document]
) -> Tensor:
    """Embed documents, each process its share. All of them get all vectors, in order. (n, d).

    Raises:
        ValueError: A document cannot be embedded, here or in another process: all of them stop.
    """
    processes, rows, fault = accelerator.num_processes, None, None
    # The last ones embed the first document once more, so that all have as many.
    share = [*documents, *documents[:1] * (-len(documents) % processes)][accelerator.process_index :: processes]
    try:
        rows = embed(share)
    except ValueError as error:
        if processes == 1:
            raise
        fault = error
    faults = torch.tensor(int(fault is not None), device=accelerator.device)
    if (processes > 1 and int(accelerator.reduce(faults, reduction="sum"))) or rows is None:
        raise fault or ValueError("eval_retrieval stops, as another process cannot embed a document; see its error.")
    if processes == 1:
        return rows
    gathered: Any = accelerator.gather(rows.to(accelerator.device))  # (p * m, d), process by process
    return gathered.view(processes, len(rows), -1).transpose(0, 1).flatten(0, 1)[: len(documents)].cpu()


@torch.no_grad()  # not inference mode: what a backbone keeps of a forward pass would break the next training step
def embed(
    model: nn.Module,
    processor: SugarProcessor,
    documents: Sequence[Document],
    progress: Callable[[int], object],
    *,
    batch_size: int,
    **options: Any,
) -> Tensor:
    """Embed documents at their last slices, in evaluation mode, by whatever wraps the model. (n, d) float32.

    Raises:
        BadSampleError: The sample of a document cannot be loaded.
        ValueError: The processor refuses one.
    """
    sugar = sugar_model(model)
    device = next(sugar.parameters()).device
    found = torch.zeros(len(documents), sugar.config.retrieval_dim)
    # Similar sizes need little padding. The largest come first, so that memory runs out early or never.
    order = sorted(range(len(documents)), key=lambda number: documents[number].size, reverse=True)
    with evaluation_mode(model):
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            part = [documents[number] for number in numbers]
            names = [document.id for document in part]
            features = processor([each.load() for each in part], padding_side="left", names=names, **options)
            inputs = BatchFeature(dict(features)).to(device, dtype=sugar.dtype)
            output = model(**inputs, use_cache=False, skip_logits=True)
            last = output.retrieval_mask.sum(dim=1) - 1
            rows = output.retrieval_embeds[torch.arange(len(part), device=device), last]
            check_unit(rows.float().cpu().numpy(), "the last")
            found[numbers] = rows.float().cpu()
            progress(len(part))
    return found
