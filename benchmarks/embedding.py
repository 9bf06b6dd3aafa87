"""Time `SugarEmbedder.encode` on texts beside sentence-transformers with the same language model and batches.

Needs ``pip install "sugar-hf[bench]"``::

    python benchmarks/embedding.py --json embedding.json

Both run the same decoder with the same tokenizer, pool the last token and normalise; ours has Sugar's head on top.
Rounds alternate, and the ratio is the median of the rounds' own ratios. Sugar's vectors are those of the last token in
the decoder, which the script checks before it times anything.
"""

import argparse
import copy
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import LlamaConfig, LlavaForConditionalGeneration

from sugar_hf import SugarForConditionalGeneration, SugarProcessor, picturebook
from sugar_hf.retrieval.embedder import SugarEmbedder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def texts(count: int) -> list[str]:
    """Texts of 5 to 60 words of the mini VLM's world."""
    draw = np.random.default_rng(0)
    words = ["dog", "cat", "house", "red", "blue", "three", "runs", "sees", "a", "the", "garden", "in"]
    return [" ".join(draw.choice(words, int(draw.integers(5, 61)))) + "." for _ in range(count)]


def build(size: str) -> tuple[SugarForConditionalGeneration, SugarProcessor]:
    """The mini VLM, or one with random weights and a language model of some 85 million parameters."""
    folder = picturebook.checkpoint("mini-vlm")
    processor = SugarProcessor.from_pretrained(folder)
    if size == "mini":
        return SugarForConditionalGeneration.from_backbone(folder).eval().to(DEVICE), processor
    torch.manual_seed(0)
    config = LlavaForConditionalGeneration.from_pretrained(folder).config
    config.text_config = LlamaConfig(
        vocab_size=config.text_config.vocab_size, hidden_size=768, num_hidden_layers=12, intermediate_size=2048
    )
    return SugarForConditionalGeneration.from_backbone(LlavaForConditionalGeneration(config)).eval().to(
        DEVICE
    ), processor


def rival(model: SugarForConditionalGeneration, processor: SugarProcessor, folder: str) -> SentenceTransformer:
    """The same decoder and tokenizer in sentence-transformers."""
    model.get_decoder().save_pretrained(folder)
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.chat_template = None  # with one, sentence-transformers makes a chat of every text
    tokenizer.save_pretrained(folder)
    file = Path(folder, "tokenizer_config.json")
    settings = json.loads(file.read_text())
    settings.pop("processor_class", None)  # there are no images here
    file.write_text(json.dumps(settings))
    transformer = Transformer(folder)
    width = model.config.get_text_config().hidden_size
    return SentenceTransformer(modules=[transformer, Pooling(width, "lasttoken"), Normalize()], device=DEVICE)


@torch.inference_mode()
def check(model: SugarForConditionalGeneration, processor: SugarProcessor, other: SentenceTransformer) -> None:
    """Both must see the same states."""
    sample = texts(1)
    inputs = processor(sample).to(DEVICE)
    state = model(**inputs, skip_logits=True).last_hidden_state[0, -1]
    ours = torch.nn.functional.normalize(state, dim=0).cpu().numpy()
    distance = float(np.linalg.norm(ours - other.encode(sample)[0]))
    if distance > 1e-3:
        raise SystemExit(f"the two do not run the same model: their states are {distance:.3f} apart")


def compare(size: str, count: int, batch_size: int, rounds: int) -> dict[str, Any]:
    """Texts a second of both, and the median ratio of their times."""
    model, processor = build(size)
    sample = texts(count)
    embedder = SugarEmbedder(model, processor, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        other = rival(model, processor, folder)
        check(model, processor, other)
        calls = {
            "sugar": lambda: embedder.encode(sample, show_progress=False),
            "sentence-transformers": lambda: other.encode(sample, batch_size=batch_size, show_progress_bar=False),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds + 1):  # the first round warms up
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(times["sugar"][1:], times["sentence-transformers"][1:], strict=True)]
    return {
        "size": size,
        "texts_per_second": {name: count / statistics.median(spent[1:]) for name, spent in times.items()},
        "encode_over_sentence_transformers": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["mini", "small"], choices=["mini", "small"])
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    results = []
    for size in args.sizes:
        found = compare(size, args.texts, args.batch_size, args.rounds)
        results.append(found)
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in found["texts_per_second"].items())
        print(f"{size}: texts a second: {speeds}; time ratio {found['encode_over_sentence_transformers']:.2f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
