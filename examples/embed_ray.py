"""Embed a data set on a Ray cluster and make an index of it.

    pip install "sugar-hf[ray]"
    python examples/embed_ray.py documents.parquet big.index --model sugar --workers 8 --gpus-per-worker 1

Workers are actors of Ray Data that hold the model. Each embeds whole parts of the data set and stages them in the
index (`index.writer()`, which is advanced); this process commits them at the end. Data set, model and index lie where
every node can read them, such as a network file system. RAY_ADDRESS names the cluster; without it one is started on
this machine. A run that was stopped resumes with the parts that are missing, and the result is that of one process. On
one machine with several GPUs, torchrun needs no Ray:

    torchrun --nproc_per_node 8 -m sugar_cli index build big.index documents.parquet --model sugar
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import ray
from datasets import Dataset, load_from_disk
from tqdm.auto import tqdm

from sugar_hf.data import as_document
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.retrieval.index import SugarIndex


def open_rows(path: str) -> Dataset:
    """The documents of a Parquet file, or of a folder that `Dataset.save_to_disk` wrote; not read into memory."""
    return Dataset.from_parquet(path) if path.endswith(".parquet") else load_from_disk(path)


class EmbedParts:
    """An actor: opens model, data set and index once, then embeds the parts whose numbers it is given."""

    def __init__(self, path: str, pending: Any, part_documents: int, model: str, options: dict[str, Any]) -> None:
        self.rows = open_rows(path)
        self.pending = pending
        self.part_documents = part_documents
        self.embedder = SugarEmbedder.from_pretrained(model, **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Embed and stage parts, unless they are there."""
        counts = []
        for number in batch["number"].tolist():
            first = number * self.part_documents
            last = min(first + self.part_documents, len(self.rows))
            documents = [as_document(self.rows[i], i) for i in range(first, last)]
            if not self.pending.holds(number, documents):
                self.pending.stage(number, documents, self.embedder.embed_documents(documents))
            counts.append(len(documents))
        return {"documents": np.array(counts)}


def main(command: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", help="a Parquet file, or the folder of a saved data set")
    parser.add_argument("index", help="folder of the index; made if it is not there")
    parser.add_argument("--model", required=True, help="folder or Hub name")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus-per-worker", type=float, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--part-documents", type=int, default=1024, help="documents in a part")
    args = parser.parse_args(command)

    # Load
    path, folder = str(Path(args.documents).absolute()), str(Path(args.index).absolute())
    options = {"batch_size": args.batch_size}
    here = SugarEmbedder.from_pretrained(args.model, device="cpu", **options)  # says what the index is made with
    index = SugarIndex.load(folder, here) if Path(folder, "CURRENT").exists() else SugarIndex.create(folder, here)
    count = len(open_rows(path))
    numbers = range(math.ceil(count / args.part_documents))

    # Embed
    ray.init(include_dashboard=False)
    try:
        with index.writer() as writer, tqdm(total=count, unit="documents") as bar:
            parts = ray.data.from_items([{"number": i} for i in numbers], override_num_blocks=len(numbers))
            embedded = parts.map_batches(
                EmbedParts,
                fn_constructor_args=(path, writer.pending, args.part_documents, args.model, options),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=args.workers),
                num_gpus=args.gpus_per_worker,
            )
            for row in embedded.iter_rows():
                bar.update(int(row["documents"]))
            report = writer.commit(numbers)
    finally:
        ray.shutdown()
    print(f"{report.added} documents added to {folder}")


if __name__ == "__main__":
    main()
