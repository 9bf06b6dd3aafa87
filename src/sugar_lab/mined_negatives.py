"""Whether mined negatives help: captions that look for their pictures, with the same number of samples seen.

    python -m sugar_lab.mined_negatives --output runs/negatives

A fresh head on the mini model learns from pairs of caption and picture (InfoNCE, no teacher). From there each seed
goes on in two ways, for as many steps: with pairs alone, and with their mined negatives. These take the place of
further pairs in a batch (`--budget samples`), or stand beside them (`--budget queries`). Both are measured on the test
pictures.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

from sugar_hf import SugarEmbedder, SugarIndex, SugarTrainer, SugarTrainingArguments, load_dataset_file, picturebook
from sugar_hf.data import Document, RetrievalSet, to_sample
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.retrieval.mining import mine_negatives

SAMPLES = 48  # of a batch
METRICS = ("recall@1", "mrr", "ndcg@10")


def pairs(split: str, size: int, seed: int) -> list[dict[str, Any]]:
    """Captions as queries, each with its picture."""
    rows = picturebook.load(split, kind="caption", size=size, seed=seed, words_first=True)
    found = []
    for number, row in enumerate(rows):
        text, image = to_sample(row)
        found.append({"id": f"{split}-{number}", "query": text, "positives": [image]})
    return found


def pool(rows: list[dict[str, Any]]) -> RetrievalSet:
    """All pictures of the rows, and all captions that look for them. Equal captions look for all of their pictures."""
    by_text: dict[str, list[str]] = {}
    for row in rows:
        by_text.setdefault(row["query"], []).append(row["id"])
    queries = {f"query-{number}": text for number, text in enumerate(by_text)}
    return RetrievalSet(
        queries=[Document(name, text) for name, text in queries.items()],
        corpus=[Document(row["id"], row["positives"]) for row in rows],
        relevance={name: dict.fromkeys(by_text[text], 1) for name, text in queries.items()},
    )


def train(model: Any, processor: Any, rows: Any, task: RetrievalSet, folder: Path, **options: Any) -> dict[str, float]:
    """Train on rows and return what retrieval is worth then."""
    arguments = SugarTrainingArguments(
        str(folder),
        objective="infonce",
        alpha=1.0,
        positions_per_sample=1,
        batch_sampler="no_duplicates",
        learning_rate=2e-4,
        head_learning_rate=2e-3,
        lr_scheduler_type="linear",
        warmup_steps=10,
        save_strategy="no",
        report_to="none",
        logging_steps=20,
        label_statistics_steps=0,
        head_whitening_samples=0,
        per_device_eval_batch_size=32,
        use_cpu=True,
        **options,
    )
    trainer = SugarTrainer(model, arguments, train_dataset=rows, processing_class=processor, eval_retrieval=task)
    trainer.train()
    metrics = trainer.evaluate()
    return {name: metrics[f"eval_retrieval_{name}"] for name in METRICS}


def run(
    seed: int, output: Path, size: int, first: int, steps: int, negatives: int, test: int, budget: str
) -> dict[str, Any]:
    """Both ways of one seed."""
    folder = output / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    name = picturebook.checkpoint("mini-vlm")
    torch.manual_seed(seed)
    model, processor = SugarForConditionalGeneration.from_backbone(name), SugarProcessor.from_pretrained(name)
    rows, task = pairs("train", size, seed), pool(pairs("test", test, seed))
    plain = {"max_steps": steps, "per_device_train_batch_size": SAMPLES // 2, "seed": seed}
    before = {**plain, "max_steps": first}
    found: dict[str, Any] = {"start": train(model, processor, rows, task, folder, **before)}
    start = {key: value.clone() for key, value in model.state_dict().items()}

    embedder = SugarEmbedder(model, processor, batch_size=32)
    documents = [{"id": row["id"], "document": row["positives"]} for row in rows]
    index = SugarIndex.build(folder / "pictures.index", documents, embedder, show_progress=False, overwrite=True)
    mined = folder / "mined.jsonl"
    report = mine_negatives(
        rows, index, mined, count=negatives, ranks=(1, 30), margin=0.0, overwrite=True, show_progress=False
    )
    found["mining"] = str(report)
    index.close()
    # equally many samples in a batch, or equally many queries
    hard = {**plain, "per_device_train_batch_size": SAMPLES // (2 + negatives)} if budget == "samples" else plain
    for way, dataset, options in (("in-batch", rows, plain), ("mined", load_dataset_file(mined), hard)):
        model.load_state_dict(start)
        print(f"seed {seed}: {way}")
        found[way] = train(model, processor, dataset, task, folder, **{**options, "seed": seed + 100})
    (folder / "result.json").write_text(json.dumps(found, indent=2))
    return found


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/negatives"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=2000, help="pairs to train on")
    parser.add_argument("--first", type=int, default=60, help="steps before mining")
    parser.add_argument("--steps", type=int, default=150, help="steps after it, in each way")
    parser.add_argument("--negatives", type=int, default=2, help="of each query")
    parser.add_argument("--test", type=int, default=1500, help="pictures of the pool")
    parser.add_argument(
        "--budget", choices=("samples", "queries"), default="samples", help="what a step has as many of"
    )
    given = parser.parse_args()
    results = [
        run(seed, given.output, given.size, given.first, given.steps, given.negatives, given.test, given.budget)
        for seed in range(given.seeds)
    ]
    print("| way | " + " | ".join(METRICS) + " |")
    for way in ("start", "in-batch", "mined"):
        cells = []
        for metric in METRICS:
            values = [100 * result[way][metric] for result in results]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
