"""Runs under torchrun: trains by each scenario of `SCENARIOS` and writes what came out. Not a test by itself.

torchrun --nproc_per_node 2 tests/training/distributed_worker.py OUTPUT
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from builders import picture
from peft import get_peft_model
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from training_tools import chat, document, make_dataset, make_pairs, make_rows, make_sugar, make_trainer
from transformers import TrainerCallback

from sugar_hf.data import RetrievalSet
from sugar_hf.structure import SliceFeatures, StructureLossConfig
from sugar_hf.training import SugarCollator, draw_slice_ends, sugar_lora_config
from sugar_hf.training.retrieval_evaluation import embed
from sugar_hf.training.structure_term import KnownGradient, structure_term

ALPHA = 0.3
GLOBAL_BATCH = 6
SCENARIOS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "global_batch": 2 * GLOBAL_BATCH},
    "lora": {"lora": True},
    "two_pass": {"mini_batch_size": 1},
    "token_budget": {"mini_batch_tokens": 45},
    "few_ends": {"positions_per_sample": 1, "objective": "mse"},
    "all_ends": {"positions_per_sample": 0},
    "infonce": {"objective": "infonce", "alpha": 0.3},
    "paper": {"objective": "mse", "label_kernel": "gak", "same_sample": "one", "reduction": "paper", "alpha": 0.3},
    "matryoshka": {"matryoshka_dims": [16, 8, 4], "matryoshka_weights": [1.0, 0.5, 2.0], "mini_batch_size": 1},
    "lm_only": {"alpha": 0.0},
    "whitened": {"head_whitening_samples": 9},
    "composed": {
        **{"pairs": "cached", "objective": "kl", "alpha": 0.3, "mini_batch_size": 1},
        **{"temperature": 0.3, "target_temperature": 0.1, "mse_weight": 10.0, "positive_share": 0.3},
        "learn_temperature": True,
    },
    "pairs": {"pairs": "cached", "objective": "kl", "alpha": 0.3},
    "pairs_alone": {"pairs": "alone", "objective": "infonce", "alpha": 0.3, "mini_batch_size": 2},
    "pairs_apart": {"pairs": "alone", "positions_per_sample": 1, "batch_sampler": "no_duplicates"},
    "bad_samples": {"bad": 3, "on_bad_sample": "skip", "max_length": 200},
}


# Ten samples, which three processes cannot share out evenly.
RETRIEVAL = RetrievalSet.of(
    {"q1": "A cat.", "q2": [picture(2), "A dog."], "q3": "A ball and a sun."},
    {f"d{k}": [picture(k), "A cat."] if k % 2 else f"{k} dogs and a ball." for k in range(7)},
    {"q1": ["d1", "d4"], "q2": {"d3": 2, "d2": 1}, "q3": ["d6"]},
    ks=(1, 2, 3),
)


# What is run by three processes, too: where they have unequal shares.
UNEQUAL = ("plain", "token_budget", "few_ends", "pairs_alone", "composed", "bad_samples")


def scenarios(world_size):
    return UNEQUAL if world_size == 3 else tuple(SCENARIOS)


def rows():
    """Twelve samples, of which the processes get unequal numbers of slices, and the last of three no image."""
    first = [
        document(0, "titi"),
        chat(1),
        document(3, "ttiit"),
        document(2, "it"),
        document(5, "t"),
        document(8, "tt"),
    ]
    return [{**row, "id": f"{row['id']}-{i}"} for i, row in enumerate(first + make_rows()[2:])]


def pair_rows():
    """Pairs among documents and chats, twice as many as a batch; one positive stands in both halves of a batch."""
    pairs, others = make_pairs(), make_rows()[:3]
    return [
        *pairs[:2],
        others[0],
        *pairs[2:5],
        others[1],
        *pairs[5:],
        *({**row, "id": f"{row['id']}-again"} for row in (others[2], *pairs[1:4])),
    ]


class Reductions(TrainerCallback):
    """Counts the buckets that are reduced over the processes, for each backward pass that does so."""

    def __init__(self):
        self.count = 0
        self.trainer = None

    def on_train_begin(self, *args, **kwargs):
        def hook(state, bucket):
            self.count += 1
            buffer = bucket.buffer() / dist.get_world_size()
            return dist.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])

        self.trainer.model_wrapped.register_comm_hook(None, hook)


def train(folder, name, world_size, count_reductions=False, **options):
    """Gradients of the first step and the log of two, by a trainer in `world_size` processes."""
    options = {**SCENARIOS[name], **options}
    batch = options.pop("global_batch", GLOBAL_BATCH) // options.get("gradient_accumulation_steps", 1)
    model, processor = make_sugar()
    if options.pop("lora", False):
        torch.manual_seed(0)
        model = get_peft_model(model, sugar_lora_config(model, r=2))
    pairs = options.pop("pairs", None)
    found = rows() if pairs is None else pair_rows()
    for row in found[: options.pop("bad", 0)]:  # all that the first process has of the first batch
        parts = row["messages"][0]["content"]
        parts[0] = {"type": "text", "text": "A cat on a mat. " * 100} if parts[0]["type"] == "text" else parts[0]
    reductions = Reductions()
    trainer = make_trainer(
        folder,
        model=model,
        train_dataset=make_dataset(processor, found, cached=pairs != "alone"),
        eval_dataset=make_dataset(processor, found[:GLOBAL_BATCH], cached=pairs != "alone"),
        eval_retrieval=RETRIEVAL,
        callbacks=[reductions] if count_reductions else None,
        **{
            "alpha": ALPHA,
            "per_device_train_batch_size": batch // world_size,
            "per_device_eval_batch_size": GLOBAL_BATCH // world_size,
            "train_sampling_strategy": "sequential",
            "max_grad_norm": 0.0,
            "label_statistics_steps": 1,
            "ddp_backend": "gloo" if world_size > 1 else None,
            **options,
        },
    )
    reductions.trainer = trainer
    gradients = {}

    def keep(*_):
        if not gradients:
            gradients.update({n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
            if trainer.temperature is not None:
                gradients["logit_scale"] = trainer.temperature.logit_scale.grad.clone()

    trainer.create_optimizer().register_step_pre_hook(keep)
    trainer.train()
    evaluated = trainer.evaluate()
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return gradients, {"log": log, "evaluated": evaluated, "reductions": reductions.count}


def sharded_gradients(world_size, rank):
    """Gradients of one step of both losses with weights sharded by FSDP2, the batch spread over the processes."""
    model, processor = make_sugar()
    share = GLOBAL_BATCH // world_size
    collate = SugarCollator(processor, fill_images=world_size > 1)
    batch = collate(make_dataset(processor, rows()).to_list()[rank * share : (rank + 1) * share])
    features, keys = SliceFeatures(**batch.pop("structure_features")), batch.pop("sample_keys")
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    count = (batch["labels"][:, 1:] != -100).sum()
    processes = None
    if world_size > 1:
        from accelerate import Accelerator

        processes = Accelerator(cpu=True)
        dist.all_reduce(count)
        for layer in model.get_decoder().layers:
            fully_shard(layer)
        fully_shard(model)
    # with weights in parts all processes embed all documents
    vectors = embed(model, processor, RETRIEVAL.corpus, lambda done: None, batch_size=2)
    ends = draw_slice_ends(features.lengths.tolist(), keys.tolist(), 4, seed=3, step=0)
    output = model(**batch, num_items_in_batch=count, skip_logits=True, use_cache=False)
    embeddings = output.retrieval_embeds[ends[:, 0], ends[:, 1]]
    term = structure_term(embeddings, features, ends, StructureLossConfig(), accelerator=processes)
    loss = output.loss * world_size + ALPHA * KnownGradient.apply(embeddings, term.value, term.gradient)
    loss = loss + 0 * output.retrieval_embeds[len(keys) :].sum()  # as the trainer does with a blank image
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if world_size > 1:
        found = {name: gradient.full_tensor() for name, gradient in found.items()}
    return {**found, "vectors of retrieval": vectors}, term.value.item()


def main(output):
    gc.freeze()  # each training collects, which takes half a second with all that is imported
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = {}
    for name in scenarios(world_size):
        gradients, results[name] = train(output / "runs", name, world_size)
        if rank == 0:
            save_file(gradients, output / f"{name}.safetensors")
    for name in ("plain", "two_pass"):
        _, counted = train(output / "runs", name, world_size, count_reductions=True, max_steps=1)
        results[f"reductions_{name}"] = counted["reductions"]
    _, results["rank"] = train(output / "runs", "plain", world_size, structure_loss_scope="rank")
    gradients, results["sharded"] = sharded_gradients(world_size, rank)
    if rank == 0:
        save_file(gradients, output / "sharded.safetensors")
        (output / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(Path(sys.argv[1]))
