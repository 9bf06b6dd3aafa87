"""Time and memory of an answer from retrieved documents: one model for both beside two models, in one run.

    python benchmarks/rag.py --json rag.json --update-docs     # about 20 minutes on 2 quiet cores
    python benchmarks/rag.py --quick                           # small models, a minute

Ways to an answer, all with the same prompt (the question first, the documents after it) and the same VLM:
`reuse`, one model, which goes on with the keys and values that the question got when it was embedded; `noreuse`, one
model, which embeds the question and then reads the whole prompt; `independent`, a CLIP with as many parameters as the
VLM embeds the question, and the VLM answers; `clip-l`, the same with CLIP ViT-L/14; `vlm`, the same with a second VLM
as the embedder.

All weights are random, all answers are greedy and of a fixed length, and those of `reuse` and `noreuse` have to be
equal, token for token. The ways take turns, over and over; a ratio is the median of the ratios of single rounds.
Preparing images and texts is part of the time. Memory is the peak of a process of its own for each way (of the GPU
where there is one), the models included.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rag_models import ClipRetriever, make_documents, make_question, random_sugar, unit_vectors
from training import highest, resident
from training_models import DEVICE
from transformers.generation.streamers import BaseStreamer

from sugar_hf.data import as_document
from sugar_hf.model import CandidateIndex
from sugar_hf.retrieval import Hit, SugarEmbedder, SugarRag
from sugar_hf.retrieval.rag import QUESTION_FIRST, as_prompt, fit, prepared

DOCUMENT = Path(__file__).parents[1] / "docs" / "costs.md"
BEGIN, END = "<!-- rag: begin -->\n", "<!-- rag: end -->"
WAYS = {
    "reuse": "one model, keys and values reused",
    "noreuse": "one model, nothing reused",
    "independent": "CLIP of the VLM's size + VLM",
    "clip-l": "CLIP ViT-L/14 + VLM",
    "vlm": "VLM as embedder + VLM",
}
PHASES = {
    "query": "question",
    "search": "search",
    "prompt": "prompt and its images",
    "prefill": "first token",
    "decode": "other tokens",
}
TARGETS = {"reuse_over_independent_latency": 0.7, "peak_memory_ratio": 0.6}
INDEXED = 1_000


@dataclass(frozen=True)
class Case:
    """What is asked.

    Args:
        title: Its name in the table.
        images: How many images the question has.
        top_k: How many documents are retrieved.
        with_image: Whether a document has an image before its text.
        ways: What is measured.
    """

    title: str
    images: int
    top_k: int = 5
    with_image: bool = False
    ways: tuple[str, ...] = tuple(WAYS)


CASES = {
    "long": Case("4 images, 5 texts found", 4),
    "short": Case("1 image, 5 texts found", 1),
    "picture": Case("4 images, an image with a text found", 4, 1, True, ("reuse", "noreuse", "independent")),
}


# ---- Ways to an answer ----


class TimedIndex(CandidateIndex):
    """Exact search among documents with random embeddings, which notes when it is asked and when it has answered."""

    began = ended = 0.0

    def search_embeddings(self, embeddings: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        self.began = time.perf_counter()
        found = super().search_embeddings(embeddings, top_k)
        self.ended = time.perf_counter()
        return found


class Recorder(BaseStreamer):
    """Notes when which tokens came: those of the prompt first, then one by one."""

    def __init__(self) -> None:
        self.tokens: list[list[int]] = []
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        self.tokens.append(value.flatten().tolist())

    def end(self) -> None:
        """Nothing is left to be written."""


class Ways:
    """The models that some ways need, and the ways.

    Args:
        size: `0.5b` or `small`.
        names: The ways.
        new_tokens: How long an answer is.
        one_copy: Let `vlm` embed with the weights that answer: as fast as two copies of them, in half the memory.
    """

    def __init__(self, size: str, names: tuple[str, ...], new_tokens: int, one_copy: bool) -> None:
        self.sugar, self.processor = random_sugar(size)
        length = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        self.generation = {**length, "do_sample": False, "pad_token_id": self.processor.tokenizer.pad_token_id}
        self.embedders: dict[str, tuple[int, Callable[[list[Any]], np.ndarray]]] = {}
        self.parameters = {"VLM": self.sugar.num_parameters()}
        for name, towers in (("independent", "same"), ("clip-l", "clip-l")):
            if name in names:
                clip = ClipRetriever(size, towers, self.processor.tokenizer)
                self.embedders[name] = clip.dim, clip.embed
                self.parameters[name] = clip.model.num_parameters()
        if "vlm" in names:
            model = self.sugar if one_copy else random_sugar(size)[0]
            embedder = SugarEmbedder(model, self.processor)
            self.embedders["vlm"] = embedder.dim, lambda question: embedder.encode([question], show_progress=False)

    def prepare(self, way: str, case: Case) -> Callable[[list[Any]], dict[str, Any]]:
        """Return a call that answers a question and says what came when."""
        dim = self.embedders[way][0] if way in self.embedders else self.sugar.config.retrieval_dim
        documents = make_documents(INDEXED, case.with_image, self.processor.tokenizer)
        index = TimedIndex(documents, unit_vectors(INDEXED, dim))
        answer = self.two_models(way, index, case) if way in self.embedders else self.one_model(way, index, case)

        def run(question: list[Any]) -> dict[str, Any]:
            recorder = Recorder()
            start = time.perf_counter()
            reused = answer(question, recorder)
            end = time.perf_counter()
            begun, first, last = recorder.times[0], recorder.times[1], recorder.times[-1]
            marks = [start, index.began, index.ended, begun, first, last]
            seconds = dict(zip(PHASES, np.diff(marks).tolist(), strict=True))
            prompt, *answered = recorder.tokens
            counts = {"prompt_tokens": len(prompt), "reused_tokens": reused}
            return {"total": end - start, **seconds, **counts, "answer": answered}

        return run

    def one_model(self, way: str, index: TimedIndex, case: Case) -> Callable[[list[Any], Recorder], int]:
        options: dict[str, Any] = {"template": QUESTION_FIRST, "query_form": "prompt", "top_k": case.top_k}
        rag = SugarRag(self.sugar, self.processor, index, reuse=way == "reuse", **options)

        def answer(question: list[Any], recorder: Recorder) -> int:
            return rag.answer({"query": question}, streamer=recorder, **self.generation).reused_tokens

        return answer

    def two_models(self, way: str, index: TimedIndex, case: Case) -> Callable[[list[Any], Recorder], int]:
        embed = self.embedders[way][1]

        @torch.no_grad()
        def answer(question: list[Any], recorder: Recorder) -> int:
            scores, places = index.search_embeddings(embed(question), case.top_k)
            found = [as_document(index.documents[place], int(place)) for place in places[0]]
            hits = [
                Hit(document.id, float(score), -1, document) for score, document in zip(scores[0], found, strict=True)
            ]
            _, documents = fit(hits, self.processor, 2048)
            prompt = as_prompt(self.processor, QUESTION_FIRST.fill(question, documents))
            features = prepared(self.sugar, self.processor, [prompt])
            del features["slice_map"]
            self.sugar.vlm.generate(**features, streamer=recorder, **self.generation)
            return 0

        return answer


# ---- Measures ----


def measure_case(ways: Ways, case: Case, repeats: int) -> dict[str, Any]:
    """Let the ways of a case take turns.

    Raises:
        ValueError: If answers with and without reuse differ, or cannot differ, nothing is reused, or prompts differ
            in length.
    """
    question = make_question(case.images)
    calls = {way: ways.prepare(way, case) for way in case.ways}
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in calls}
    for call in calls.values():  # warm up, with a question that is soon answered
        call(make_question(1))
    for number in range(repeats):
        names = list(calls)
        for name in names[number % len(names) :] + names[: number % len(names)]:  # none is always behind the same one
            found[name].append(calls[name](question))
    answers = [one["answer"] for way in ("reuse", "noreuse") for one in found[way]]
    if any(answer != answers[0] for answer in answers):
        raise ValueError("answers with and without reuse differ.")
    if all(one["answer"] == answers[0] for runs in found.values() for one in runs) and len(found) > 2:
        raise ValueError("answers do not depend on what is found: that they are equal would mean nothing.")
    reused = min(one["reused_tokens"] for one in found["reuse"])
    if not reused:
        raise ValueError("nothing of the question is reused.")
    lengths = {one["prompt_tokens"] for runs in found.values() for one in runs}
    if len(lengths) > 1:
        raise ValueError(f"the prompts of one case have different lengths: {sorted(lengths)}.")
    ratios = {
        other: median(a["total"] / b["total"] for a, b in zip(found["reuse"], found[other], strict=True))
        for other in case.ways
        if other != "reuse"
    }
    seconds = {
        way: {name: median(one[name] for one in runs) for name in ("total", *PHASES)} for way, runs in found.items()
    }
    return {
        "title": case.title,
        "prompt_tokens": lengths.pop(),
        "reused_tokens": reused,
        "answer_tokens": len(answers[0]),
        "reuse_over": ratios,
        "seconds": seconds,
    }


def peak(size: str, way: str, case: str, new_tokens: int, runs: int) -> dict[str, float]:
    """Peak memory in MiB of a process that answers twice, and before it: the median of some processes."""
    command = [sys.executable, __file__, "--peak", size, way, case, str(new_tokens)]
    found = []
    for _ in range(runs):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {name: median(each[name] for each in found) for name in ("peak", "before")}


def peak_of_this_process(size: str, way: str, case: str, new_tokens: int) -> dict[str, float]:
    """Run by `peak` in a process of its own."""
    call = Ways(size, (way,), new_tokens, one_copy=False).prepare(way, CASES[case])
    question = make_question(CASES[case].images)
    before = resident()
    for _ in range(2):
        call(question)
    return {"peak": highest(), "before": before}


def measure(size: str, cases: list[str], repeats: int, new_tokens: int, memory_runs: int) -> dict[str, Any]:
    names = tuple(way for way in WAYS if any(way in CASES[case].ways for case in cases))
    ways = Ways(size, names, new_tokens, one_copy=True)
    found: dict[str, Any] = {"size": size, "device": device(), "threads": torch.get_num_threads(), "repeats": repeats}
    found["parameters"] = ways.parameters
    print({name: f"{count / 1e6:.0f}M parameters" for name, count in ways.parameters.items()}, flush=True)
    found["cases"] = {}
    for case in cases:
        found["cases"][case] = measured = measure_case(ways, CASES[case], repeats)
        counts = f"{measured['prompt_tokens']} tokens, {measured['reused_tokens']} of them reused"
        print(f"\n{measured['title']}, {counts}; seconds, and reuse / this", flush=True)
        for way, seconds in measured["seconds"].items():
            phases = ", ".join(f"{title} {seconds[name]:.3f}" for name, title in PHASES.items())
            ratio = measured["reuse_over"].get(way, 1.0)
            print(f"  {way:<12} {seconds['total']:8.3f}   {ratio:.3f}   ({phases})", flush=True)
    del ways
    if memory_runs:
        found["mib"] = {way: peak(size, way, cases[0], new_tokens, memory_runs) for way in CASES[cases[0]].ways}
        for way, mib in found["mib"].items():
            print(f"  {way:<12} {mib['peak']:8,.0f} MiB, before the answer {mib['before']:,.0f}", flush=True)
    return found


def device() -> str:
    """Say what this runs on."""
    if DEVICE == "cuda":
        return torch.cuda.get_device_name()
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{names[0].split(':')[1].strip() if names else platform.machine()}, {os.cpu_count()} cores"


# ---- Summary ----


def summary(found: dict[str, Any]) -> dict[str, float]:
    """The figures that are watched, of the first case: questions of four images."""
    ratios = next(iter(found["cases"].values()))["reuse_over"]
    figures = {
        "reuse_over_independent_latency": ratios["independent"],
        "reuse_over_noreuse_latency": ratios["noreuse"],
    }
    if "mib" in found:
        figures["peak_memory_ratio"] = found["mib"]["reuse"]["peak"] / found["mib"]["independent"]["peak"]
    return figures


def table(found: dict[str, Any], command: str) -> str:
    """The figures as Markdown."""
    rows = ["| | time of an answer, s | reuse / this | peak memory, MiB | reuse / this |", "|---|---|---|---|---|"]
    for measured in found["cases"].values():
        tokens = f"prompt of {measured['prompt_tokens']:,} tokens, {measured['reused_tokens']:,} of them reused"
        rows.append(f"| *{measured['title']}: {tokens}* | | | | |")
        for way, seconds in measured["seconds"].items():
            ratio = measured["reuse_over"].get(way)
            cells = [WAYS[way], f"{seconds['total']:.3g}", "" if ratio is None else f"**{ratio:.2f}**"]
            if "mib" in found and measured is next(iter(found["cases"].values())):
                mib = found["mib"]
                cells.append(f"{mib[way]['peak']:,.0f}")
                cells.append("" if ratio is None else f"**{mib['reuse']['peak'] / mib[way]['peak']:.2f}**")
            else:
                cells += ["", ""]
            rows.append(f"| {' | '.join(cells)} |")
    rows += ["\nWhere the time of an answer goes, in seconds:\n"]
    rows += [f"| | {' | '.join(PHASES.values())} |", f"|---|{'---|' * len(PHASES)}"]
    for measured in found["cases"].values():
        rows.append(f"| *{measured['title']}* |{' |' * len(PHASES)}")
        for way, seconds in measured["seconds"].items():
            rows.append(f"| {WAYS[way]} | {' | '.join(f'{seconds[name]:.3g}' for name in PHASES)} |")
    first = next(iter(found["cases"].values()))
    millions = {name: f"{count / 1e6:,.0f}M" for name, count in found["parameters"].items()}
    others = ", ".join(f"{WAYS[name].split(' + ')[0]} {count}" for name, count in millions.items() if name != "VLM")
    rows.append(
        f"\n`{command}` on {found['device']}, threads: {found['threads']}; medians of {found['repeats']} rounds. "
        f"Parameters: VLM {millions['VLM']}{', ' if others else ''}{others}. Answers of {first['answer_tokens']} "
        f"tokens; {INDEXED:,} documents, searched exactly. *Question*: preparing and embedding it; *prompt and its "
        "images*: putting question and documents together, and the vision tower's pass over what has not yet been "
        "through it; *first token*: the language model's pass over the prompt, or over what of it is new. Wanted, for "
        "four images: at most 0.7 of the time and 0.6 of the memory of two models of one size.\n"
    )
    return "\n".join(rows)


def update_document(found: dict[str, Any], command: str) -> None:
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(before + BEGIN + table(found, command) + END + rest.split(END)[1])


# ---- Running ----


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES), help="the first is watched")
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--new-tokens", type=int, default=16, help="length of an answer")
    parser.add_argument("--memory-runs", type=int, default=1, help="processes of each way; 0: no memory")
    parser.add_argument("--quick", action="store_true", help="small models")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--update-docs", action="store_true", help="write the figures into docs/costs.md")
    parser.add_argument("--from-json", type=Path, metavar="FILE", help="take the figures of an earlier run")
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        size, way, case, new_tokens = options.peak
        print(json.dumps(peak_of_this_process(size, way, case, int(new_tokens))))
        return
    if options.from_json:
        measured = json.loads(options.from_json.read_text())
        found, command = measured["measured"], measured["command"]
    else:
        size = "small" if options.quick else "0.5b"
        found = measure(size, options.cases, options.repeats, options.new_tokens, options.memory_runs)
        command = " ".join(["python", "benchmarks/rag.py", *sys.argv[1:]])
    print(json.dumps(summary(found), indent=1))
    if options.json:
        report = {**summary(found), "command": command, "measured": found}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.update_docs:
        update_document(found, command)


if __name__ == "__main__":
    main()
