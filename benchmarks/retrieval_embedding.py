"""Measured by `retrieval.py`: texts embedded a second, and recall of smaller and coarser embeddings."""

import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import PreTrainedTokenizerFast

from sugar_hf import picturebook
from sugar_hf.data import to_sample
from sugar_hf.evaluation import recall_at_k, target_ranks
from sugar_hf.picturebook.retrieval_tasks import retrieval_tasks
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.retrieval.store.backends import FaissBackend, Rows
from sugar_hf.retrieval.store.codecs import Codec

TEXTS, BATCH = 1024, 32
TASK, POOL = "5 captions + 4 images", 1000
SIZES = (128, 64, 32, 16)
STORED = ("float32", "float16", "int8", "binary, rescored", "binary")


def make_texts() -> list[str]:
    """Texts of one to six captions of the picturebook, of very different lengths."""
    captions = []
    for row in picturebook.load("train", kind="caption", size=TEXTS, words_first=True):
        captions.append(to_sample(row)[0])
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 7, TEXTS)
    return [" ".join(captions[number] for number in draw.integers(0, TEXTS, count)) for count in counts]


def as_sentence_transformer(embedder: SugarEmbedder, folder: str) -> SentenceTransformer:
    """The same language model and tokenizer, pooled at the last token; it has no retrieval head, which Sugar has."""
    embedder.model.vlm.base_model.language_model.save_pretrained(folder)
    ours = embedder.processor.tokenizer
    names = {"pad_token": ours.pad_token, "bos_token": ours.bos_token, "eos_token": ours.eos_token}
    PreTrainedTokenizerFast(tokenizer_object=ours.backend_tokenizer, **names).save_pretrained(folder)
    transformer = Transformer(folder, max_seq_length=1024)
    pooling = Pooling(transformer.get_word_embedding_dimension(), pooling_mode="lasttoken")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device=str(embedder.model.device))


def measure_embedding(rounds: int) -> dict[str, Any]:
    """Texts a second of `SugarEmbedder.encode` over those of `SentenceTransformer.encode`; rounds in turn."""
    texts = make_texts()
    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"), batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        other = as_sentence_transformer(embedder, folder)
        calls = {
            "sugar": lambda: embedder.encode(texts, show_progress=False),
            "sentence-transformers": lambda: other.encode(texts, batch_size=BATCH, show_progress_bar=False),
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds + 1):
            for name in list(calls)[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                calls[name]()
                times[name].append(time.perf_counter() - start)
    kept = {name: values[1:] for name, values in times.items()}  # the first round warms up
    ratio = median(b / a for a, b in zip(kept["sugar"], kept["sentence-transformers"], strict=True))
    speeds = {name: TEXTS / median(values) for name, values in kept.items()}
    figures = {"ratio": ratio, "texts_a_second": speeds, "texts": TEXTS, "batch_size": BATCH}
    figures |= {"threads": torch.get_num_threads(), "device": str(embedder.model.device)}
    print(f"embedding: {speeds}, {ratio:.2f} times sentence-transformers", flush=True)
    return figures


def measure_sizes(folders: dict[str, Path]) -> dict[str, Any]:
    """Recall of cut and coarser embeddings, for models by name."""
    task = next(task for task in retrieval_tasks(size=POOL) if task.name == TASK)
    figures: dict[str, Any] = {}
    for name, folder in folders.items():
        embedder = SugarEmbedder.from_pretrained(folder, batch_size=BATCH)
        queries = embedder.encode(task.queries, show_progress=False)
        candidates = embedder.encode(task.candidates, show_progress=False)
        figures[name] = {}
        for size in SIZES:
            cut = [
                each[:, :size] / np.linalg.norm(each[:, :size], axis=1, keepdims=True)
                for each in (queries, candidates)
            ]
            figures[name][str(size)] = {stored: stored_recall(stored, *cut, task.targets) for stored in STORED}
            print(f"{name} {size}: {figures[name][str(size)]}", flush=True)
    return figures


def stored_recall(stored: str, queries: np.ndarray, candidates: np.ndarray, targets: list[int]) -> dict[str, float]:
    """R@1 and R@5 in percent when candidates are stored so, and bytes of a vector that a search reads."""
    codec = Codec.fit(stored.split(",")[0], [candidates])
    count = len(candidates)
    options = {"rescore": 0} if stored == "binary" else {}
    backend = FaissBackend(codec, options=options)
    names = [str(number) for number in range(count)]
    rows = Rows(0, codec.encode(candidates), candidates, names, np.zeros(count, np.int32), [{}] * count)
    backend.add(iter([rows]))
    found = backend.search(queries, 5, row_count=count)[1]
    scores = np.full((len(queries), count), -6.0)  # what is not found stands behind
    np.put_along_axis(scores, found, -np.arange(5.0)[None].repeat(len(queries), 0), axis=1)
    recalls = recall_at_k(target_ranks(scores, [[target] for target in targets]), ks=(1, 5))
    size = codec.dim / 8 if stored == "binary" else codec.bytes_per_vector
    return {"recall@1": recalls["recall@1"], "recall@5": recalls["recall@5"], "bytes": size}
