"""Why two interleaved samples are alike: their slices compared one by one, and the alignment between them."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.documents import Document
from ..model import SugarProcessor
from ..model.samples_sugar import Sample
from ..structure import (
    SliceFeatures,
    StructureLossConfig,
    Teacher,
    label_matrix,
    soft_alignment,
    triple_distance,
)
from .embedder import SugarEmbedder

__all__ = ["Alignment", "Explanation", "best_path", "explain"]

EMBEDDINGS = ("slice", "prefix")
# Of the text of an explanation.
WIDTH, MOST_COLUMNS, MOST_ROWS = 100, 12, 24
Slice = str | Image.Image


@dataclass(frozen=True)
class Alignment:
    """How the slices of a query and of a document go together, by one measure.

    Args:
        similarity: (m, n) float32 cosines of each slice of the query with each of the document.
        visits: (m, n) float32, how often the soft alignment is expected to pass through each pair, 0 to 1: the weight
            of the pair in the similarity of the whole (`structure.soft_alignment`).
        path: The most likely single alignment, pairs (query slice, document slice) from 0, from the first pair to the
            last, each step to the next slice of the query, of the document, or of both.
        sigma: Bandwidth of the alignment's local kernel.
    """

    similarity: np.ndarray
    visits: np.ndarray
    path: tuple[tuple[int, int], ...]
    sigma: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        return {
            "similarity": self.similarity.tolist(),
            "visits": self.visits.tolist(),
            "path": [list(pair) for pair in self.path],
            "sigma": self.sigma,
        }


@dataclass(frozen=True)
class Explanation:
    """What [`explain`] found. `str` of it is a small table.

    Args:
        query: The m slices of the query, texts and RGB images.
        document: The n slices of the document.
        score: Cosine of the whole query and the whole document, which a search ranks by.
        embeddings: What the model's similarities compare: `"slice"`, each slice on its own, or `"prefix"`, the
            sample up to and with each slice.
        model: The alignment by the model's embeddings.
        teacher: The alignment by the teachers' slice vectors; `None` without teachers.
        label: What training would want the score to be; `None` without teachers.
        label_kernel: The kernel of the label.
    """

    query: tuple[Slice, ...]
    document: tuple[Slice, ...]
    score: float
    embeddings: str
    model: Alignment
    teacher: Alignment | None = None
    label: float | None = None
    label_kernel: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON. Of an image there are the sizes in pixels."""
        return {
            "query": [_described(piece) for piece in self.query],
            "document": [_described(piece) for piece in self.document],
            "score": self.score,
            "embeddings": self.embeddings,
            "model": self.model.to_dict(),
            "teacher": self.teacher.to_dict() if self.teacher is not None else None,
            "label": self.label,
            "label_kernel": self.label_kernel,
        }

    def __str__(self) -> str:
        tables = [(f"model, {self.embeddings} embeddings; score {self.score:.3f}", self.model.similarity, self.model)]
        if self.teacher is not None and self.label is not None:
            title = f"teachers; label {self.label:.3f} ({self.label_kernel})"
            tables.append((title, self.teacher.similarity, self.teacher))
        return _render(self.query, self.document, [(title, cosines, found.path) for title, cosines, found in tables])


def explain(
    query: Sample | Document,
    document: Sample | Document,
    model: Any,
    processor: SugarProcessor,
    *,
    teacher: Teacher | None = None,
    embeddings: str = "slice",
    config: StructureLossConfig | None = None,
    sigma: float | None = None,
    document_slices: int | None = None,
    **embedding: Any,
) -> Explanation:
    """Compare a query and a document slice by slice.

    ```python
    print(explain("a dog at the gate", hit.document, model, processor, teacher=TripleTeacher.from_pretrained()))
    ```

    Args:
        query: A sample of any form that the processor takes.
        document: Another, or a [`Document`].
        model: A Sugar model; left as it is.
        processor: Its processor.
        teacher: Also compare the slices as the teachers of training see them (DINOv2 image with image, BGE text with
            text, CLIP across), and give the label.
        embeddings: `"slice"`: the model sees each slice on its own, so that a similarity is that of the two slices
            alone. `"prefix"`: one forward pass over each sample gives the embedding at each slice end, which knows
            all that came before; the last pair's similarity is the score.
        config: Label kernel, its bandwidth, and how the teachers are used; the defaults when `None`.
        sigma: Bandwidth of the alignment, of the model and of the teachers. By default the one with which the label
            kernel of `config` aligns: `delta`, times `sqrt((m + n) / 2)` for the kernels `aligned` and `gak`. Then
            the visits are the pairs' weights in the label that the model was trained with, and as the model's cosines
            were trained to be such labels, the same bandwidth suits them.
        document_slices: Compare with the document up to the end of this many slices, where an embedding of it was
            found; all of it when `None`.
        **embedding: Options of [`SugarEmbedder`]: `batch_size`, `truncate_dim`, `split_sentences`, `max_length`,
            `truncation`. Give those of an index to see the scores of its search.

    Returns:
        Similarities, alignments, score and label.

    Raises:
        ValueError: A sample cannot be read, or an option has a value that it cannot have.
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(f"embeddings={embeddings!r}: give one of {', '.join(EMBEDDINGS)}.")
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma={sigma}: give a positive number, or None for that of the label kernel.")
    if document_slices is not None and document_slices < 1:
        raise ValueError(f"document_slices={document_slices}: give 1 or more, or None for all.")
    config = config or StructureLossConfig()
    embedder = SugarEmbedder(model, processor, **embedding)
    samples = [sample.load() if isinstance(sample, Document) else sample for sample in (query, document)]
    names = ["query", "document"]
    # one at a time, so that padding, which rounds otherwise in half precision, plays no part
    wholes = [
        embedder.encode_slices([sample], names=[name], show_progress=False)[0]
        for sample, name in zip(samples, names, strict=True)
    ]  # (m, d), (n, d)
    wholes[1] = wholes[1][:document_slices]
    pieces = [
        processor.slices(sample, embedder.split_sentences)[: len(whole)]  # the last ones may be left out
        for sample, whole in zip(samples, wholes, strict=True)
    ]
    rows, columns = wholes if embeddings == "prefix" else _each_alone(embedder, pieces, names)
    if sigma is None:
        sigma = config.delta
        if config.label_kernel in ("aligned", "gak"):
            sigma *= math.sqrt((len(rows) + len(columns)) / 2)
    cosines = np.clip(rows @ columns.T, -1, 1)
    aligned = label = None
    if teacher is not None:
        aligned, label = _by_teachers(teacher, pieces, config, sigma)
    return Explanation(
        query=tuple(pieces[0]),
        document=tuple(pieces[1]),
        score=float(np.clip(wholes[0][-1] @ wholes[1][-1], -1, 1)),
        embeddings=embeddings,
        model=_align(cosines, 2 - 2 * cosines, sigma),
        teacher=aligned,
        label=label,
        label_kernel=config.label_kernel if label is not None else None,
    )


def best_path(distances: np.ndarray, sigma: float) -> tuple[tuple[int, int], ...]:
    """Find the alignment to which the global alignment kernel gives the most weight.

    The product of the local kernels `kappa = s / (2 - s)`, `s = exp(-phi / (2 sigma²))`, along it is the largest of
    all monotone alignments (steps down, right, diagonal; eq. 2 of the paper sums over them). Of equal ones, the one
    with diagonal steps at its end.

    Args:
        distances: (m, n) squared distances phi.
        sigma: Bandwidth.

    Returns:
        Pairs from (0, 0) to (m - 1, n - 1).

    >>> best_path(np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]]), sigma=0.3)
    ((0, 0), (1, 1), (1, 2))
    """
    halved = distances.astype(np.float64) / (2 * sigma**2)
    costs = halved + np.log(2 - np.exp(-halved))  # -log kappa
    m, n = costs.shape
    totals = np.full((m + 1, n + 1), np.inf)
    totals[0, 0] = 0
    for i in range(m):
        for j in range(n):
            totals[i + 1, j + 1] = costs[i, j] + min(totals[i, j], totals[i, j + 1], totals[i + 1, j])
    path = [(m - 1, n - 1)]
    while path[-1] != (0, 0):
        i, j = path[-1]
        path.append(min(((i - 1, j - 1), (i - 1, j), (i, j - 1)), key=lambda pair: totals[pair[0] + 1, pair[1] + 1]))
    return tuple(reversed(path))


def _align(cosines: np.ndarray, distances: np.ndarray, sigma: float) -> Alignment:
    visits = soft_alignment(torch.from_numpy(distances).double(), sigma).float().numpy()
    return Alignment(cosines.astype(np.float32), visits, best_path(distances, sigma), sigma)


def _each_alone(
    embedder: SugarEmbedder, pieces: Sequence[Sequence[Slice]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Embed every slice as a sample of its own. (m, d) and (n, d)."""
    flat = [[piece] for side in pieces for piece in side]
    called = [f"{name}, slice {i}" for name, side in zip(names, pieces, strict=True) for i in range(len(side))]
    # the last slice of each: a text that is one slice here may be several sentences there
    found = embedder.encode(flat, names=called, show_progress=False)
    return found[: len(pieces[0])], found[len(pieces[0]) :]


def _by_teachers(
    teacher: Teacher, pieces: Sequence[Sequence[Slice]], config: StructureLossConfig, sigma: float
) -> tuple[Alignment, float]:
    """Align by the teachers' vectors. The similarities shown are plain cosines of each pair's space."""
    columns = teacher.embed(pieces)
    query, document = (SliceFeatures.pad([row]) for row in columns)
    cosines = 1 - triple_distance(query, document, config.teachers)[0, 0] / 2  # (m, n)
    means = config.block_means if config.centring else None
    distances = triple_distance(query, document, config.teachers, means)[0, 0]
    ends = torch.tensor([[side, len(slices) - 1] for side, slices in enumerate(pieces)])
    label = label_matrix(SliceFeatures.pad(columns), ends, config)[0, 1]
    return _align(cosines.numpy(), distances.numpy(), sigma), float(label)


def _described(piece: Slice) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image", "width": piece.width, "height": piece.height}


# ---- Text ----


def _render(
    query: Sequence[Slice],
    document: Sequence[Slice],
    tables: Sequence[tuple[str, np.ndarray, Sequence[tuple[int, int]]]],
) -> str:
    """Write the slices of both sides, then for each (title, cosines (m, n), path) a table with the path marked.

    Of more than 12 columns or 24 rows only the pairs on the path are written.
    """
    lines = ["query", *_listed(query), "document", *_listed(document)]
    for title, cosines, path in tables:
        m, n = cosines.shape
        lines += ["", title]
        if m > MOST_ROWS or n > MOST_COLUMNS:
            shown = path[:MOST_ROWS]
            lines += [f"  query {i + 1} - document {j + 1}: {cosines[i, j]:z.2f}" for i, j in shown]
            lines += [f"  and {len(path) - len(shown)} pairs more"] * (len(path) > len(shown))
            continue
        on_path = set(path)
        lines.append("      " + "".join(f"{j + 1:>6} " for j in range(n)).rstrip())
        for i in range(m):
            cells = "".join(f"{cosines[i, j]:z6.2f}{'*' if (i, j) in on_path else ' '}" for j in range(n))
            lines.append(f"  {i + 1:>4}{cells}".rstrip())
    if any(max(cosines.shape) > 1 for _, cosines, _ in tables):
        lines += ["", "rows: query, columns: document; * on the best alignment path"]
    return "\n".join(lines)


def shorten(text: str, width: int) -> str:
    """Bring a text to one line of at most `width` columns of a terminal, with … where something is cut off.

    Characters that are not printable, such as a terminal's control sequences in a document from elsewhere, become
    spaces. Wide (East Asian) characters take two columns.

    >>> shorten("a long\\nstory", 8)
    'a long …'
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if _columns(text) <= width:
        return text
    kept, used = "", 1
    for character in text:
        used += _columns(character)
        if used > width:
            break
        kept += character
    return kept + "…"


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _listed(pieces: Sequence[str | Image.Image]) -> list[str]:
    lines = [
        f"  {number:>4}  "
        + (shorten(piece, WIDTH - 8) if isinstance(piece, str) else f"[image {piece.width} x {piece.height}]")
        for number, piece in enumerate(pieces[:MOST_ROWS], start=1)
    ]
    return lines + [f"  and {len(pieces) - MOST_ROWS} slices more"] * (len(pieces) > MOST_ROWS)
