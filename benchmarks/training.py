"""Time and memory of a joint training step beside what it replaces, all on the same model and batch in one run.

    python benchmarks/training.py --json training.json
    python benchmarks/training.py --models mini --repeats 5

Models: `mini`, the mini VLM of the package, all weights trained, on a batch of the picturebook; `0.5b`, a LLaVA of
random weights (24 layers of width 896, 151,936 tokens; a vision tower of 24 layers of width 1,024 at 224 px) with LoRA
on q and v, on documents of noise; `7b`, the same of LLaVA-1.5-7B's sizes in bfloat16, which needs a GPU.

The variants of a step, each with its backward pass and an optimizer step, run in turn, over and over; a ratio is the
median of the ratios of single rounds. Collating is not part of a step. Memory is the peak of a process of its own for
each variant (of the GPU where there is one), the model included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from training_models import DEVICE, build
from transformers import Trainer, TrainingArguments

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.training import SugarTrainer, SugarTrainingArguments
from sugar_hf.training.collator import MiniBatches
from sugar_hf.training.structure_term import KnownGradient, structure_parts, structure_term

DOCUMENT = Path(__file__).parents[1] / "docs" / "costs.md"
BEGIN, END = "<!-- training: begin -->\n", "<!-- training: end -->"
TITLES = {
    "joint_over_lm": "time, joint / LM",
    "joint_over_two_pass": "time, joint / two passes",
    "joint_over_trainer": "time, joint / plain Trainer",
    "structure_share": "share of labels, L_d and its backward in the joint step",
    "embed_over_backbone": "embeddings a second / `last_hidden_state` of the backbone",
    "prefix_speedup": "all 10 prefixes of a document, one pass each / one pass",
    "peak_memory_ratio": "peak memory, joint / plain Trainer",
    "batch_512_over_8_memory": "peak memory, 512 samples in mini-batches of 8 / 8 samples",
}
VARIANTS = {"joint": "joint", "lm": "LM", "two_pass": "two passes", "trainer": "plain Trainer", "structure": "L_d"}
TARGETS = {
    "joint_over_lm": "at most 1.03",
    "joint_over_two_pass": "at most 0.60",
    "joint_over_trainer": "at most 1.00",
    "structure_share": "under 0.05 (7b: 0.01)",
    "embed_over_backbone": "at least 0.97",
    "prefix_speedup": "at least 4",
    "peak_memory_ratio": "at most 1.00",
    "batch_512_over_8_memory": "about 1",
}
BATCH = {"mini": 24, "0.5b": 4, "7b": 16}
LARGE, SMALL = 512, 8


# ---- Steps ----


def arguments(folder: str, **options: Any) -> SugarTrainingArguments:
    return SugarTrainingArguments(
        folder, **{"report_to": "none", "use_cpu": DEVICE == "cpu", "alpha": 10.0, **options}
    )


class Steps:
    """The variants of a training step on one batch."""

    def __init__(self, size: str, samples: int, folder: str, mini_batch_size: int | None = None):
        self.model, processor, rows = build(size, samples)
        options: dict[str, Any] = {"train_dataset": rows, "processing_class": processor}
        limits = {"per_device_train_batch_size": samples, "mini_batch_size": mini_batch_size}
        self.joint_trainer = SugarTrainer(self.model, arguments(folder, **limits), **options)
        self.lm_trainer = SugarTrainer(self.model, arguments(folder, **limits, alpha=0.0), **options)
        self.batch = next(iter(self.joint_trainer.get_train_dataloader()))
        sugar = next(m for m in self.model.modules() if isinstance(m, SugarForConditionalGeneration))
        self.sugar, self.vlm, self.processor, self.rows = sugar, sugar.vlm, processor, rows
        plain = TrainingArguments(folder, report_to="none", use_cpu=DEVICE == "cpu", remove_unused_columns=False)
        self.plain_trainer = Trainer(self.vlm, plain)
        for module in (self.model, self.vlm):  # as accelerate does under bf16=True
            module.forward = torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")(module.forward)
        self.round = 0

    def _run(self, trainer: Trainer, batch: Any) -> None:
        """One step as the trainer takes it: both passes, clipping, the optimizer."""
        trainer.current_gradient_accumulation_steps = 1
        trainer.state.global_step = (
            10 * self.round + 1
        )  # label statistics are due every ten steps: timed by themselves
        if trainer.optimizer is None:
            trainer.create_optimizer()
        count = trainer._get_num_items_in_batch([batch], trainer.args.device)
        trainer.training_step(trainer.model, batch, count)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.model.zero_grad()

    def joint(self) -> None:
        """Both losses from one pass."""
        self._run(self.joint_trainer, self.batch)

    def lm(self) -> None:
        """The same trainer without L_d."""
        self._run(self.lm_trainer, self.batch)

    def trainer(self) -> None:
        """The plain Trainer on the backbone."""
        self._run(self.plain_trainer, self.backbone_inputs())

    def two_pass(self) -> None:
        """A pass for L_d, and one for L_g."""
        self.model.train()
        self.drawn()[0].backward()
        self._run(self.lm_trainer, self.batch)

    def drawn(self) -> tuple[torch.Tensor, Callable[[], Any]]:
        """L_d of a pass without logits, with its graph, and a call that computes labels, loss and gradient again."""
        inputs = self.joint_trainer._prepare_inputs(dict(self.batch))
        parts, keys = structure_parts(inputs), inputs.pop("sample_keys")
        inputs = {name: value for name, value in inputs.items() if name not in ("labels", "sample_ids")}
        output = self.model(**inputs, use_cache=False, skip_logits=True)
        embeddings, ends = self.joint_trainer._draw(output.retrieval_embeds, *parts, keys, training=True)

        def again(**options: Any) -> Any:
            return structure_term(embeddings, parts[0], ends, self.joint_trainer.structure_config, **options)

        term = again()
        return KnownGradient.apply(embeddings, term.value, term.gradient), again

    def backbone_inputs(self) -> dict[str, Any]:
        own = ("slice_map", "structure_features", "sample_keys", "sample_ids")
        return {name: value for name, value in self.batch.items() if name not in own}


def clock(call: Callable[[], Any]) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def rounds(calls: dict[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each call in each round; the calls take turns."""
    for _ in range(warmup):
        for call in calls.values():
            call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats):
        names = list(calls)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # none is always behind the same one
            found[name].append(clock(calls[name]))
    return found


def ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    return median(a / b for a, b in zip(found[one], found[other], strict=True))


# ---- Measures ----


def measure_steps(steps: Steps, repeats: int) -> dict[str, Any]:
    calls = {"joint": steps.joint, "lm": steps.lm, "two_pass": steps.two_pass, "trainer": steps.trainer}
    found = rounds(calls, repeats)
    _, again = steps.drawn()
    structure = rounds({"structure": again, "statistics": lambda: again(with_statistics=True)}, max(10, repeats))
    share = median(structure["structure"]) / median(found["joint"])
    return {
        "joint_over_lm": ratio(found, "joint", "lm"),
        "joint_over_two_pass": ratio(found, "joint", "two_pass"),
        "joint_over_trainer": ratio(found, "joint", "trainer"),
        "structure_share": share,
        "seconds": {name: median(times) for name, times in {**found, **structure}.items()},
    }


@torch.inference_mode()
def measure_embedding(steps: Steps, repeats: int) -> dict[str, Any]:
    model = steps.sugar.eval()
    inputs = steps.joint_trainer._prepare_inputs(steps.backbone_inputs())
    inputs.pop("labels")
    slice_map = steps.batch["slice_map"].to(DEVICE)
    calls = {
        "embed": lambda: model.get_retrieval_embeddings(**inputs, slice_map=slice_map),
        "backbone": lambda: model.vlm.base_model(**inputs, use_cache=False).last_hidden_state,
    }
    found = rounds(calls, max(repeats, 10) if DEVICE == "cuda" or len(slice_map) > 8 else repeats)
    return {
        "embed_over_backbone": ratio(found, "backbone", "embed"),
        "seconds": {name: median(times) for name, times in found.items()},
    }


@torch.inference_mode()
def measure_prefixes(model: SugarForConditionalGeneration, processor: SugarProcessor, repeats: int) -> dict[str, Any]:
    """A document of five images and five texts: one pass, and one for each of its prefixes."""
    model.eval()
    draw = np.random.default_rng(0)
    document: list[Any] = []
    for number in range(5):
        document += [Image.fromarray(draw.integers(0, 256, (64, 64, 3), dtype=np.uint8)), f"a dog sees {number} cats."]
    whole = processor([document]).to(DEVICE)
    prefixes = [processor([document[:end]]).to(DEVICE) for end in range(1, 11)]
    calls = {
        "one_pass": lambda: model.get_retrieval_embeddings(**whole),
        "a_pass_each": lambda: [model.get_retrieval_embeddings(**prefix) for prefix in prefixes],
    }
    found = rounds(calls, repeats)
    return {
        "prefix_speedup": ratio(found, "a_pass_each", "one_pass"),
        "seconds": {name: median(times) for name, times in found.items()},
    }


def peak(size: str, samples: int, variant: str, mini_batch_size: int | None = None, runs: int = 1) -> dict[str, float]:
    """Peak memory in MiB of a process that takes three such steps, and before them: the median of some processes."""
    command = [sys.executable, __file__, "--peak", size, str(samples), variant, str(mini_batch_size or 0)]
    found = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: median(each[name] for each in found) for name in ("peak", "before")}


def peak_of_this_process(
    size: str, samples: int, variant: str, mini_batch_size: int | None, steps: int = 3
) -> dict[str, float]:
    """Run by `peak` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = Steps(size, samples, folder, mini_batch_size)
        if not isinstance(run.batch, MiniBatches):
            run.backbone_inputs()
        before = resident()
        for _ in range(steps):
            getattr(run, variant)()
    return {"peak": highest(), "before": before}


def resident() -> float:
    """Memory in use in MiB; what is counted as the highest starts here."""
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's way to reset the highest
    return _status("VmRSS")


def highest() -> float:
    return torch.cuda.max_memory_allocated() / 2**20 if DEVICE == "cuda" else _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure_memory(size: str, samples: int) -> dict[str, Any]:
    runs = 7 if size == "mini" else 1  # a small process scatters by some percent
    joint, plain = (peak(size, samples, variant, runs=runs) for variant in ("joint", "trainer"))
    found: dict[str, Any] = {"peak_memory_ratio": joint["peak"] / plain["peak"]}
    found["mib"] = {"joint": joint, "trainer": plain}
    if size == "mini":
        large, small = peak(size, LARGE, "joint", SMALL), peak(size, SMALL, "joint")
        whole = peak(size, LARGE, "joint")
        found["batch_512_over_8_memory"] = large["peak"] / small["peak"]
        found["mib"] |= {"512 in mini-batches of 8": large, "8": small, "512 at once": whole}
    return found


def measure(size: str, repeats: int, samples: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(size, samples, folder)
        tokens = list(steps.batch["input_ids"].shape)
        labelled = int((steps.batch["labels"][:, 1:] != -100).sum())
        print(
            f"\n{size}: {steps.sugar.num_parameters() / 1e6:.0f}M parameters, batch of {tokens[0]} x {tokens[1]} ",
            end="",
        )
        print(f"tokens, {labelled} of them labels, on {DEVICE}", flush=True)
        found: dict[str, Any] = {"batch": tokens, "labels": labelled, "device": DEVICE}
        for part in (measure_steps, measure_embedding):
            merge(found, part(steps, repeats))
        merge(found, measure_prefixes(steps.sugar, steps.processor, repeats))
        del steps
    merge(found, measure_memory(size, samples))
    return found


def merge(found: dict[str, Any], more: dict[str, Any]) -> None:
    seconds = {**found.get("seconds", {}), **more.pop("seconds", {})}
    found.update(more)
    found["seconds"] = seconds
    for name, value in more.items():
        if name in TARGETS:
            print(f"  {name:<26} {value:8.3f}   ({TARGETS[name]})", flush=True)


def table(models: dict[str, dict[str, Any]]) -> str:
    """The figures as Markdown."""
    rows = [f"| | wanted | {' | '.join(models)} |", f"|---|---|{'---|' * len(models)}"]
    for name, title in TITLES.items():
        values = [f"{model[name]:.3g}" if name in model else "" for model in models.values()]
        rows.append(f"| {title} | {TARGETS[name]} | {' | '.join(values)} |")
    for size, model in models.items():
        milliseconds = {name: 1000 * value for name, value in model["seconds"].items()}
        names = {
            "joint": "joint",
            "lm": "LM",
            "two_pass": "two passes",
            "trainer": "plain Trainer",
            "structure": "L_d",
        }
        times = ", ".join(f"{title} {milliseconds[name]:,.0f}" for name, title in names.items())
        memory = ", ".join(f"{name} {mib['peak']:,.0f}" for name, mib in model["mib"].items())
        rows.append(
            f"\n`{size}` on {model['device']}: batch of {model['batch'][0]} x {model['batch'][1]} tokens, "
            f"{model['labels']} of them labels. Medians in ms: {times}. Peak memory of the process in MiB: {memory}."
        )
    return "\n".join(rows) + "\n"


def update_document(models: dict[str, dict[str, Any]]) -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table(models) + END + rest.split(END)[1])


def worst(models: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Each figure of the model for which it is worst."""
    found = {}
    for name, target in TARGETS.items():
        values = [model[name] for model in models.values() if name in model]
        if values:
            found[name] = min(values) if target.startswith("at least") else max(values)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=tuple(BATCH), help="default: mini and 0.5b, on a GPU 7b too")
    parser.add_argument("--repeats", type=int, help="rounds of each measure (default: 21, of the larger models 5)")
    parser.add_argument("--batch-size", type=int, help="samples of the batch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--update-docs", action="store_true", help="write the figures into docs/costs.md")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="take the figures of an earlier run")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        size, samples, variant, mini_batch_size = options.peak
        print(json.dumps(peak_of_this_process(size, int(samples), variant, int(mini_batch_size) or None)))
        return
    models = json.loads(options.from_json.read_text())["models"] if options.from_json else run(options)
    if options.json:
        options.json.write_text(json.dumps({**worst(models), "models": models}, indent=1) + "\n")
    if options.update_docs:
        update_document(models)


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measures each model and prints what it finds."""
    models = {}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for size in options.models or ["mini", "0.5b", *(["7b"] if DEVICE == "cuda" else [])]:
        repeats = options.repeats or (21 if size == "mini" or DEVICE == "cuda" else 5)
        models[size] = measure(size, repeats, options.batch_size or BATCH[size])
        for name, seconds in models[size]["seconds"].items():
            print(f"  {name:<26} {seconds * 1000:10.1f} ms")
        for name, mib in models[size]["mib"].items():
            print(f"  {name:<26} {mib['peak']:10.0f} MiB, before the first step {mib['before']:.0f}")
    return models


if __name__ == "__main__":
    main()
