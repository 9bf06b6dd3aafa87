"""`sugar-hf embed`."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import load_embedder, read_sources
from .options import Embedding, Reading, Running, Sources, with_options
from .output import emit, interruptible, name_skipped, say

if TYPE_CHECKING:
    import numpy as np

    from sugar_hf.data import Document
    from sugar_hf.retrieval.embedder import SugarEmbedder

WINDOW = 1024  # documents that are sorted by length together

Embedded = tuple["Document", "np.ndarray"]


@with_options
def embed(
    sources: Sources,
    output: Annotated[
        Path | None,
        typer.Option(help="Write a .npz file (`ids`, `embeddings`, `slices` if all) instead of lines of JSON."),
    ] = None,
    *,
    embedding: Embedding,
    running: Running,
    reading: Reading,
) -> None:
    """Embed documents, and write one line of JSON for each embedding, or a file for numpy.

    \b
      sugar-hf embed docs.jsonl > embeddings.jsonl
      sugar-hf embed ~/Photos --output photos.npz
      sugar-hf embed stories.jsonl --positions all --truncate-dim 64
    """
    if output is not None and output.suffix != ".npz":
        raise typer.BadParameter(f"{output} has another suffix than .npz", param_hint="--output")
    skipped: list[Any] = []
    documents = read_sources(sources, skipped=skipped, **vars(reading))
    embedder = load_embedder(**vars(running), **embedding.settings)
    embedded = _embedded(documents, embedder, reading.on_error, skipped)
    with interruptible("what was written so far is whole lines" if output is None else f"{output} was not written"):
        if output is None:
            _write_lines(embedded, embedding.positions)
        else:
            _write_file(embedded, embedding.positions, output)
    name_skipped(skipped)


def _embedded(
    documents: Iterator["Document"], embedder: "SugarEmbedder", on_error: str, skipped: list[Any]
) -> Iterator[Embedded]:
    from tqdm.auto import tqdm

    with tqdm(desc="Embedding", unit="documents", delay=1) as bar:
        while window := list(islice(documents, WINDOW)):
            found = embedder.embed_documents(window, skipped=skipped if on_error == "skip" else None, progress=bar)
            for document, rows in zip(window, found, strict=True):
                if rows is not None:
                    yield document, rows


def _write_lines(embedded: Iterator[Embedded], positions: str) -> None:
    for document, rows in embedded:
        for number, row in enumerate(rows):
            place = {"slice": number} if positions == "all" else {}
            emit({"id": document.id, **place, "embedding": [round(float(x), 6) for x in row]})


def _write_file(embedded: Iterator[Embedded], positions: str, output: Path) -> None:
    import numpy as np

    ids: list[str] = []
    slices: list[int] = []
    found: list[np.ndarray] = []
    for document, rows in embedded:
        ids += [document.id] * len(rows)
        slices += range(len(rows))
        found.append(rows)
    if not found:
        raise ValueError("there is no document to embed")
    arrays: dict[str, Any] = {"ids": np.array(ids), "embeddings": np.concatenate(found)}
    if positions == "all":
        arrays["slices"] = np.array(slices, dtype=np.int32)
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez(output, **arrays)
    say(f"{len(ids)} embeddings of {len(found)} documents in {output}")
