"""Measure on one GPU what a CPU cannot tell: speed, use of the chip and memory at 7B, in at most 8 minutes.

    python benchmarks/gpu.py --json gpu.json --update-docs
    python benchmarks/gpu.py --dry-run

The model is a LLaVA of LLaVA-1.5-7B's sizes (CLIP ViT-L/14 at 336 px, a projector of two layers, Llama with 32 layers
of width 4,096) with random weights in bfloat16, made on the GPU. Training has LoRA on q and v with rank 128, under
bfloat16 autocast. Samples are an image of noise with two texts. Nothing is downloaded.

Each section runs in a process of its own, with a limit of time. What it finds, or its error, is written to the JSON
file before the next one begins. `--dry-run` runs all of them in this process, on tiny shapes.

Model FLOPs utilisation (MFU) is FLOPs / seconds / peak, with the peak of dense bfloat16 that the manufacturer states.
FLOPs count matrix products of real tokens only. Of samples with S_b tokens, T in all, of which t have a label:

    forward of the language model  F = 2 P T + 2 L h sum_b S_b²                  P weights, L layers of width h; causal
    vision tower and projector     V = 2 P_v T_v + 4 L_v h_v sum_b s_b² + 2 P_p T_p
    joint step with LoRA           4 P T + 6 L h sum_b S_b² + 6 A T + 4 h v t + V   A weights of LoRA, v tokens known
    embedding                      F + V

The step has no products for gradients of frozen weights, and no backward pass through the vision tower.
"""

import argparse
import gc
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import training
import transformers
from torch import nn
from torch.nn.functional import normalize
from training import Steps, clock, measure_prefixes, measure_steps, peak_of_this_process, rounds
from training_models import DEVICE, noise_rows, random_llava, random_teachers

from sugar_hf.data import to_sample
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix
from sugar_hf.training import draw_slice_ends

DOCUMENT = Path(__file__).parents[1] / "docs" / "costs.md"
BEGIN, END = "<!-- gpu: begin -->\n", "<!-- gpu: end -->"
BUDGET = 480  # seconds, of all sections
#: TFLOP/s of dense bfloat16 products by what the name of the device has in it, the longer names first.
PEAKS = {"H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312}


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    model: str = "7b"
    samples: int = 8  # of a training step, which has room in 80 GB without checkpointing of activations
    embedded: int = 64
    large: int = 512
    small: int = 8
    ends: tuple[int, ...] = (512, 2048)
    layers: int | None = 8  # of the model that is spread over GPU and CPU, 2 of 7 billion weights
    memory: str = "2GiB"  # of the GPU, for it
    repeats: int = 5


TINY = Sizes("tiny", 3, 3, 4, 2, (16, 24), None, "1MiB", 1)


# ---- FLOPs ----


def weights(module: nn.Module, adapters: bool = False) -> int:
    """Number of weights in linear layers, those of LoRA left out or alone."""
    return sum(
        layer.weight.numel()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and ("lora_" in name) is adapters
    )


def flops(vlm: Any, inputs: dict[str, Any], is_step: bool) -> float:
    """FLOPs of a joint training step, or of an embedding, by the formulas at the top of this file."""
    text, vision = vlm.config.text_config, vlm.config.vision_config
    lengths = inputs["attention_mask"].sum(1).double()
    tokens, squares = float(lengths.sum()), float(lengths.square().sum())
    linear = 2.0 * weights(vlm.model.language_model) * tokens
    attention = 2.0 * text.num_hidden_layers * text.hidden_size * squares
    images = len(inputs["pixel_values"])
    patches = (vision.image_size // vision.patch_size) ** 2
    embedding = 3 * vision.patch_size**2 * vision.hidden_size  # of patches, not of the class token
    seen = 2.0 * images * patches * (weights(vlm.model.multi_modal_projector) + embedding)
    seen += 2.0 * images * (patches + 1) * weights(vlm.model.vision_tower)
    seen += 4.0 * images * vision.num_hidden_layers * vision.hidden_size * (patches + 1) ** 2
    if not is_step:
        return linear + attention + seen
    labelled = int((inputs["labels"][:, 1:] != -100).sum())
    lora = 6.0 * weights(vlm.model.language_model, adapters=True) * tokens
    return 2 * linear + 3 * attention + lora + 4.0 * text.hidden_size * text.vocab_size * labelled + seen


def use(count: float, seconds: float) -> dict[str, float]:
    """TFLOP/s, and MFU where the peak of the device is known."""
    found = {"tflops_a_second": count / seconds / 1e12}
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else ""
    peak = next((peak for part, peak in PEAKS.items() if part in name), None)
    return found if peak is None else {**found, "mfu": found["tflops_a_second"] / peak}


# ---- Sections ----


def measure_training(sizes: Sizes) -> dict[str, Any]:
    """A joint step: MFU, and its time over that of steps without a part of it."""
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(sizes.model, sizes.samples, folder)
        found = measure_steps(steps, sizes.repeats)
        found["batch"] = list(steps.batch["input_ids"].shape)
        found["labels"] = int((steps.batch["labels"][:, 1:] != -100).sum())
        found |= use(flops(steps.vlm, steps.batch, is_step=True), found["seconds"]["joint"])
        teacher = random_teachers(tiny=sizes.model == "tiny").to(DEVICE)
        slices = [steps.processor.slices(to_sample(row)) for row in steps.rows]

        def with_all_logits() -> None:
            steps.joint_trainer.keeps_logits = True
            steps.joint()
            steps.joint_trainer.keeps_logits = False

        calls = {"joint": steps.joint, "all logits": with_all_logits, "teachers": lambda: teacher.embed(slices)}
        times = rounds(calls, sizes.repeats)
        found["all_logits_over_joint"] = training.ratio(times, "all logits", "joint")
        found["online_over_cached"] = 1 + training.ratio(times, "teachers", "joint")
        found["seconds"] |= {name: median(times[name]) for name in ("all logits", "teachers")}
    return found


def measure_embedding(sizes: Sizes) -> dict[str, Any]:
    """Samples and tokens a second by kind of attention, and a pass for each prefix beside one for all."""
    vlm, processor = random_llava(sizes.model)
    model = SugarForConditionalGeneration.from_backbone(vlm).eval()
    batch = SugarProcessor(processor)([to_sample(row) for row in noise_rows(sizes.embedded)]).to(DEVICE)
    tokens = int(batch["attention_mask"].sum())
    found: dict[str, Any] = {"samples": sizes.embedded, "tokens": tokens, "attention": {}}
    first = None
    for kind in ("sdpa", "flash_attention_2"):
        if kind == "flash_attention_2" and (DEVICE == "cpu" or importlib.util.find_spec("flash_attn") is None):
            found["attention"][kind] = "not measured: the package flash-attn, or a GPU, is not there"
            continue
        model.set_attn_implementation(kind)
        with torch.inference_mode():
            embeddings, mask = model.get_retrieval_embeddings(**batch)
            times = [clock(lambda: model.get_retrieval_embeddings(**batch)) for _ in range(sizes.repeats)]
        unit = normalize(embeddings[mask].float(), dim=-1)
        first = unit if first is None else first
        seconds = median(times)
        found["attention"][kind] = {
            "samples_a_second": sizes.embedded / seconds,
            "tokens_a_second": tokens / seconds,
            "least_cosine_to_sdpa": float((unit * first).sum(-1).min()),
            **use(flops(vlm, batch, is_step=False), seconds),
        }
    model.set_attn_implementation("sdpa")
    found["prefix_speedup"] = measure_prefixes(model, SugarProcessor(processor), sizes.repeats)["prefix_speedup"]
    return found


def measure_labels(sizes: Sizes) -> dict[str, Any]:
    """Seconds of the label matrix of n slice ends, four of each document of eight slices, on the CPU and the GPU."""
    draw, seconds, differences = np.random.default_rng(0), {}, {}
    for count in sizes.ends:
        shape = (count // 4, 8, 768)
        vectors = [normalize(torch.from_numpy(draw.normal(size=shape)).float(), dim=-1) for _ in range(3)]
        is_image = torch.from_numpy(draw.random(shape[:2]) < 0.4)
        features = SliceFeatures(*vectors, is_image, torch.full((count // 4,), 8))
        ends = draw_slice_ends(features.lengths.tolist(), range(count // 4), 4)
        labels: dict[str, torch.Tensor] = {}
        times: dict[str, float] = {}
        for device in dict.fromkeys(("cpu", DEVICE)):
            moved = features.to(device), ends.to(device), StructureLossConfig()
            labels[device] = label_matrix(*moved).cpu()
            times[device] = clock(lambda given=moved: label_matrix(*given))
        seconds[str(count)] = times
        differences[str(count)] = float((labels[DEVICE] - labels["cpu"]).abs().max())
    return {"threads": torch.get_num_threads(), "seconds": seconds, "largest_difference": differences}


def measure_spread(sizes: Sizes) -> dict[str, Any]:
    """Embeddings of a model whose layers do not all fit on the device, beside those of the whole model."""
    vlm, processor = random_llava(sizes.model, sizes.layers)
    batch = SugarProcessor(processor)([to_sample(row) for row in noise_rows(sizes.small)]).to(DEVICE)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as offloaded, torch.inference_mode():
        model: Any = SugarForConditionalGeneration.from_backbone(vlm).eval()
        model.save_pretrained(folder)
        whole, mask = model.get_retrieval_embeddings(**batch)
        seconds = {"whole": clock(lambda: model.get_retrieval_embeddings(**batch))}
        del model, vlm
        free()
        places = {0: sizes.memory, "cpu": "64GiB"} if DEVICE == "cuda" else {"cpu": sizes.memory}
        model = SugarForConditionalGeneration.from_pretrained(
            folder, device_map="auto", max_memory=places, offload_folder=offloaded, dtype=whole_dtype()
        ).eval()
        spread, _ = model.get_retrieval_embeddings(**batch)
        seconds["spread"] = clock(lambda: model.get_retrieval_embeddings(**batch))
        used = [str(place) for place in model.hf_device_map.values()]
    difference = float((whole[mask] - spread.to(whole.device)[mask]).abs().max())
    return {
        "modules": {place: used.count(place) for place in dict.fromkeys(used)},
        "largest_difference": difference,
        "equal": difference == 0,
        "seconds": seconds,
    }


def measure_memory(sizes: Sizes) -> dict[str, Any]:
    """Peak memory in MiB of a large batch in mini-batches, and of a batch as small as one of them."""
    found = {}
    for name, samples, mini in (("small", sizes.small, None), ("large", sizes.large, sizes.small)):
        start = time.perf_counter()
        found[name] = peak_of_this_process(sizes.model, samples, "joint", mini, steps=2)
        found[name] |= {"samples": samples, "seconds_with_set_up": time.perf_counter() - start}
        free()
    return {"mib": found, "batch_512_over_8_memory": found["large"]["peak"] / found["small"]["peak"]}


#: The sections in the order in which they run, and the most seconds that each may take.
SECTIONS: dict[str, tuple[Callable[[Sizes], dict[str, Any]], int]] = {
    "labels": (measure_labels, 60),
    "training": (measure_training, 140),
    "embedding": (measure_embedding, 70),
    "spread": (measure_spread, 90),
    "memory": (measure_memory, 180),
}


def whole_dtype() -> torch.dtype:
    return torch.bfloat16 if DEVICE == "cuda" else torch.float32


def free() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


# ---- Runs ----


def run_here(name: str, sizes: Sizes) -> dict[str, Any]:
    """One section in this process."""
    return SECTIONS[name][0](sizes)


def run_apart(name: str, limit: float, *options: str, program: str = __file__) -> dict[str, Any]:
    """One section in a process of its own, or what went wrong with it."""
    command = [sys.executable, program, "--section", name, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"It took longer than {limit:.0f} s."}
    if done.returncode:
        return {"error": done.stderr.strip()[-2000:] or f"It ended with code {done.returncode}."}
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {platform.machine()}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def run(names: list[str], sizes: Sizes, apart: bool, budget: float, path: Path | None) -> dict[str, Any]:
    """Run the sections one by one; what is found so far is on the disk before the next begins."""
    found: dict[str, Any] = {"machine": machine(), "sections": {}}
    began = time.perf_counter()
    for name in names:
        left, start = budget - (time.perf_counter() - began), time.perf_counter()
        if left <= 0:
            section = {"error": f"Nothing was left of {budget:.0f} s."}
        elif apart:
            section = run_apart(name, min(left, SECTIONS[name][1]))
        else:
            try:
                section = run_here(name, sizes)
            except Exception as error:  # the other sections are worth having all the same
                section = {"error": f"{type(error).__name__}: {error}"}
        section["seconds_in_all"] = time.perf_counter() - start
        found["sections"][name] = section
        print(f"{name}: {json.dumps(section)}", flush=True)
        if path is not None:
            path.write_text(json.dumps(found, indent=1) + "\n")
    return found


# ---- Documentation ----


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    device, sections = found["machine"], found["sections"]
    rows: list[tuple[str, str]] = []

    def add(title: str, value: Any, form: str = ".3g") -> None:
        rows.append((title, value if isinstance(value, str) else format(value, form)))

    for name, section in sections.items():
        if "error" in section:
            add(f"*{name}*", f"failed: {section['error'].splitlines()[-1][:200]}")
    if "joint_over_lm" in (step := sections.get("training", {})):
        add(f"joint step of {step['batch'][0]} x {step['batch'][1]} tokens, s", step["seconds"]["joint"])
        add("TFLOP/s of it", step["tflops_a_second"], ".0f")
        if "mfu" in step:
            add("MFU of it", step["mfu"], ".1%")
        for field in ("joint_over_lm", "joint_over_two_pass", "joint_over_trainer", "structure_share"):
            add(training.TITLES[field], step[field])
        add("time, all logits / logits of labels alone", step["all_logits_over_joint"])
        add("time, teachers in each step / cached vectors", step["online_over_cached"])
    for kind, speed in sections.get("embedding", {}).get("attention", {}).items():
        if isinstance(speed, str):
            add(f"embedding, {kind}", speed)
            continue
        add(f"embedding, {kind}: samples a second", speed["samples_a_second"])
        add(f"embedding, {kind}: tokens a second", speed["tokens_a_second"], ",.0f")
        if "mfu" in speed:
            add(f"embedding, {kind}: MFU", speed["mfu"], ".1%")
    if "prefix_speedup" in (embedding := sections.get("embedding", {})):
        add(training.TITLES["prefix_speedup"], embedding["prefix_speedup"])
    if "mib" in (memory := sections.get("memory", {})):
        large, small = memory["mib"]["large"], memory["mib"]["small"]
        add(f"peak GiB, {large['samples']} samples in mini-batches of {small['samples']}", large["peak"] / 1024)
        add(f"peak GiB, {small['samples']} samples", small["peak"] / 1024)
    if "equal" in (spread := sections.get("spread", {})):
        places = ", ".join(f"{number} on {place}" for place, number in spread["modules"].items())
        add(f"spread over modules ({places}): largest difference of an embedding", spread["largest_difference"])
        add("time of it / whole on the GPU", spread["seconds"]["spread"] / spread["seconds"]["whole"])
    for count, seconds in sections.get("labels", {}).get("seconds", {}).items():
        times = [f"{place} {seconds[place]:.3g}" for place in ("cpu", "cuda") if place in seconds]
        add(f"label matrix of {count} ends, s", ", ".join(times))
    lines = ["| | |", "|---|---|", *(f"| {title} | {value} |" for title, value in rows)]
    versions = f"torch {device['torch']}, CUDA {device['cuda']}, transformers {device['transformers']}"
    return "\n".join(lines) + f"\n\nOn one {device['device']}, {versions}.\n"


def update_document(found: dict[str, Any], path: Path = DOCUMENT) -> None:
    """Write the figures between the marks of the page.

    Raises:
        ValueError: They are not from a GPU.
    """
    if found["machine"]["cuda"] is None or found["machine"]["device"].startswith("cpu"):
        raise ValueError("The page is for figures of a GPU, and these are not; leave out --update-docs.")
    before, rest = path.read_text().split(BEGIN)
    path.write_text(before + BEGIN + table(found) + END + rest.split(END)[1])


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS), help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, section by section")
    parser.add_argument("--update-docs", action="store_true", help="write the figures into docs/costs.md")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="take the figures of an earlier run")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds of all sections (default: {BUDGET})")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, in this process; needs no GPU")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sizes = TINY if options.dry_run else Sizes()
    if options.section:
        found = run_here(options.section, sizes)
        print(json.dumps(found))
        return found
    if options.from_json:
        found = json.loads(options.from_json.read_text())
    elif DEVICE == "cpu" and not options.dry_run:
        parser.error("There is no GPU here. --dry-run tries all sections with tiny shapes on the CPU.")
    else:
        found = run(options.sections, sizes, not options.dry_run, options.budget, options.json)
    if options.update_docs:
        update_document(found)
    return found


if __name__ == "__main__":
    main()
