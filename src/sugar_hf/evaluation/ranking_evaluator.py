"""Retrieval and pairs by embeddings: recall at k over sets of documents, and items of two texts and two images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..data import BadSampleError, Document
from ..model.adapters import is_model
from ..retrieval.embedder import SugarEmbedder
from .baselines import Blip2Encoder
from .embedding_store import EmbeddingStore
from .encoders import Encoder, similarity
from .examples import Lazy
from .jsonl_file import ResultLines
from .metrics.ranking import MISSED, recall_at_k, target_ranks

KS = (1, 5, 10)
SHOWN = 10  # candidates of a query that are written
BLOCK = 1 << 24  # scores in memory at once, 64 MiB
SCORINGS = ("similarity", "match")


def as_encoder(model: Any, processor: Any = None) -> Encoder:
    """Take an encoder as it is, and put a Sugar model with its processor into one.

    Raises:
        ValueError: It is neither, the processor is missing, or the model has no trained retrieval head.
    """
    if isinstance(model, Encoder):
        return model
    if not is_model(model):
        raise ValueError(
            f"{type(model).__name__} embeds nothing: pass a Sugar model with its processor, or an Encoder."
        )
    if model.config.model_type != "sugar":
        raise ValueError(
            f"{model.config.name_or_path or type(model).__name__} is a model of type {model.config.model_type!r} and "
            "no Sugar model: a retrieval head on it would be untrained. Train one first, or, for CLIP, SigLIP and "
            "BLIP-2, pass what open_encoder gives."
        )
    if processor is None:
        raise ValueError("processor is missing: pass the model's.")
    return SugarEmbedder(model, processor)


@dataclass(frozen=True)
class Ranking:
    """Which candidates the queries of a set should find.

    Args:
        name: What its figures are called.
        queries: The set of queries. If there are fewer targets than documents, only the first ones are queries.
        candidates: The set of candidates.
        targets: For each query the numbers of the right candidates; a hit if any of them is among the first k.
        excluded: For each query the numbers of candidates that may not be retrieved.
    """

    name: str
    queries: str
    candidates: str
    targets: Sequence[Sequence[int]]
    excluded: Sequence[Sequence[int]] | None = None


class RankingEvaluator:
    """Holds sets of documents and rankings between them, and measures models on them.

    Args:
        name: The task's name.
        sets: Documents by the name of their set, with ids that differ within it. Each set is embedded once.
        rankings: What is measured.
        primary_metric: The figure to look at, `{ranking} recall@{1, 5 or 10}`.
        seed: What whoever made the sets drew with; it is written into the result.
        settings: What else the result should say; JSON values.
        counts: Further numbers of the result, such as how many samples the protocol leaves out.

    Raises:
        ValueError: A ranking names no set, has no queries, more targets than queries, a query without target, or a
            number that is no candidate's.
    """

    def __init__(
        self,
        name: str,
        sets: Mapping[str, Sequence[Document]],
        rankings: Sequence[Ranking],
        *,
        primary_metric: str,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> None:
        for ranking in rankings:
            _check(name, ranking, sets)
        self.name, self.sets, self.rankings = name, dict(sets), list(rankings)
        self.primary_metric: str | None = primary_metric
        self.seed, self.settings, self.counts = seed, dict(settings or {}), dict(counts or {})

    def __call__(
        self, model: Any, processor: Any = None, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model.

        Args:
            model: A Sugar model, or an `Encoder`.
            processor: The model's; not needed with an encoder.
            output: File of JSON lines that is written anew: first what was run, then for each query its ranking, id,
                rank (1 for first, null if nothing is found), the first 10 candidates with their scores, and its
                targets. The embeddings are kept beside it, in a folder with the suffix `.embeddings`.
            batch_size: Documents in one forward pass.

        Returns:
            For each ranking `{ranking} recall@k` in percent for k in 1, 5, 10, `{ranking} ties` (queries whose target
            scores the same as another candidate; the one that comes first in its set then ranks first),
            `{ranking} queries` and `{ranking} candidates`; `n`, the queries of the primary ranking, `seed`, `failed`
            (a list of `{"set", "id", "error"}`) and `settings`. A query that cannot be embedded is missed. So are the
            queries for a candidate that cannot be: it is never retrieved.

        Raises:
            ValueError: The output is of another run, two documents of a set have one id, or the model does not embed.
        """
        encoder = as_encoder(model, processor)
        ids = {name: _ids(self.name, name, documents) for name, documents in self.sets.items()}
        settings = {"task": self.name, **self.settings, "seed": self.seed, **encoder.describe()}
        with ResultLines(output, settings) as lines:
            store = EmbeddingStore(encoder, lines.folder, batch_size)
            vectors = {name: store.encode(name, documents) for name, documents in self.sets.items()}
            figures: dict[str, Any] = {}
            for ranking in self.rankings:
                figures |= _measure(ranking, vectors, ids, lines)
        n = next(figures[f"{r.name} queries"] for r in self.rankings if self.primary_metric in _names(r))
        settings |= _noted(store.notes())
        return {**figures, **self.counts, "n": n, "seed": self.seed, "failed": store.failed, "settings": settings}


def _names(ranking: Ranking) -> list[str]:
    return [f"{ranking.name} recall@{k}" for k in KS]


def _check(task: str, ranking: Ranking, sets: Mapping[str, Sequence[Document]]) -> None:
    where = f"{task}, {ranking.name}"
    for name in (ranking.queries, ranking.candidates):
        if name not in sets:
            raise ValueError(f"{where}: there is no set {name!r}, only {', '.join(sets)}.")
    queries, candidates = len(sets[ranking.queries]), len(sets[ranking.candidates])
    if not 0 < len(ranking.targets) <= queries:
        raise ValueError(f"{where}: {len(ranking.targets)} targets for {queries} queries.")
    if ranking.excluded is not None and len(ranking.excluded) != len(ranking.targets):
        raise ValueError(f"{where}: {len(ranking.excluded)} exclusions for {len(ranking.targets)} targets.")
    for query, numbers in enumerate(ranking.targets):
        if not len(numbers):
            raise ValueError(f"{where}: query {query} has no target.")
        barred = ranking.excluded[query] if ranking.excluded is not None else ()
        if not all(0 <= number < candidates for number in (*numbers, *barred)):
            raise ValueError(f"{where}: query {query} names a candidate that is not among the {candidates}.")


def _ids(task: str, name: str, documents: Sequence[Document]) -> list[str]:
    ids = [document.id for document in documents]
    if len(set(ids)) < len(ids):
        twice = next(id for i, id in enumerate(ids) if id in ids[:i])
        raise ValueError(f"{task}: two of the {name} have the id {twice!r}.")
    return ids


def _measure(
    ranking: Ranking,
    vectors: Mapping[str, Sequence[np.ndarray | None]],
    ids: Mapping[str, Sequence[str]],
    lines: ResultLines,
) -> dict[str, Any]:
    """The figures of a ranking; its queries are written."""
    queries, names = vectors[ranking.queries][: len(ranking.targets)], ids[ranking.candidates]
    ranks, ties = np.empty(len(queries), np.int64), 0
    for start, scores in score_blocks(queries, vectors[ranking.candidates]):
        part = slice(start, start + len(scores))
        for row, barred in enumerate(ranking.excluded[part] if ranking.excluded is not None else ()):
            scores[row, list(barred)] = -np.inf
        targets = ranking.targets[part]
        ranks[part] = target_ranks(scores, targets)
        for row, (rank, numbers) in enumerate(zip(ranks[part], targets, strict=True)):
            ties += _is_tied(scores[row], numbers)
            lines.write(
                {
                    "ranking": ranking.name,
                    "id": ids[ranking.queries][start + row],
                    "rank": int(rank) + 1 if rank < MISSED else None,
                    "candidates": [[names[i], round(float(scores[row, i]), 6)] for i in best_candidates(scores[row])],
                    "targets": [names[i] for i in numbers],
                }
            )
    figures: dict[str, Any] = {f"{ranking.name} {key}": value for key, value in recall_at_k(ranks, KS).items()}
    counts = {"ties": ties, "queries": len(queries), "candidates": len(names)}
    return figures | {f"{ranking.name} {key}": value for key, value in counts.items()}


def score_blocks(
    queries: Sequence[np.ndarray | None], candidates: Sequence[np.ndarray | None]
) -> Iterator[tuple[int, np.ndarray]]:
    """Scores of some queries at a time, with the number of the first; -inf where one of the two is missing."""
    columns = [i for i, rows in enumerate(candidates) if rows is not None]
    right = [rows for rows in candidates if rows is not None]
    # one vector each is the usual case: a large corpus is then stacked once, not for every block
    matrix = np.concatenate(right) if right and all(len(rows) == 1 for rows in right) else None
    step = max(1, BLOCK // len(candidates))
    for start in range(0, len(queries), step):
        block = queries[start : start + step]
        scores = np.full((len(block), len(candidates)), -np.inf, np.float32)
        found = [i for i, rows in enumerate(block) if rows is not None]
        left = [rows for rows in block if rows is not None]
        if left and right:
            if matrix is not None and all(len(rows) == 1 for rows in left):
                scores[np.ix_(found, columns)] = np.concatenate(left) @ matrix.T
            else:
                scores[np.ix_(found, columns)] = similarity(left, right)
        yield start, scores


def _is_tied(scores: np.ndarray, targets: Sequence[int]) -> bool:
    best = scores[list(targets)].max()
    others = np.count_nonzero(scores == best) - np.count_nonzero(scores[list(targets)] == best)
    return bool(others and best > -np.inf)


def best_candidates(scores: np.ndarray) -> np.ndarray:
    """The numbers of the best candidates, ties in their order; those that cannot be retrieved are left out."""
    last = np.partition(scores, -SHOWN)[-SHOWN] if len(scores) > SHOWN else -np.inf
    numbers = np.flatnonzero((scores >= last) & (scores > -np.inf))
    return numbers[np.argsort(-scores[numbers], kind="stable")][:SHOWN]


@dataclass(frozen=True)
class Pair:
    """Two texts and two images, of which the first belong together, and the second.

    Args:
        id: Its name.
        texts: The texts.
        images: The images: paths, bytes, `{"bytes", "path"}` structs or PIL images.
        group: The type it is counted under.
    """

    id: str
    texts: tuple[str, str]
    images: tuple[Any, Any]
    group: str = ""


class PairsEvaluator:
    """Holds items of two texts and two images, and measures models on what they match with what.

    Args:
        name: The task's name.
        items: The items, with ids that differ.
        score: From scores (items, 2, 2), as [item, text, image], and the groups of the items to figures in percent.
            An item that could not be scored has zeros, which have to count as wrong, as all ties do.
        primary_metric: The figure to look at; one of those that `score` gives.
        scoring: `"similarity"` of the embeddings, or `"match"`: BLIP-2's image-text matching head, which reads both.
        seed: Written into the result.
        settings: What else the result should say; JSON values.

    Raises:
        ValueError: There are no items, or no such scoring.
    """

    def __init__(
        self,
        name: str,
        items: Sequence[Pair],
        score: Callable[[np.ndarray, Sequence[str]], Mapping[str, float]],
        *,
        primary_metric: str,
        scoring: str = "similarity",
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(items):
            raise ValueError(f"{name}: there are no samples.")
        if scoring not in SCORINGS:
            raise ValueError(f"{name}: scoring={scoring!r} is none of {', '.join(SCORINGS)}.")
        self.name, self.items, self.score, self.scoring = name, items, score, scoring
        self.primary_metric: str | None = primary_metric
        self.seed, self.settings = seed, dict(settings or {})

    def __call__(
        self, model: Any, processor: Any = None, *, output: str | Path | None = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model.

        Args:
            model: A Sugar model, or an `Encoder`; a `Blip2Encoder` for the scoring `"match"`.
            processor: The model's; not needed with an encoder.
            output: File of JSON lines that is written anew: first what was run, then for each item its id, group and
                scores, texts in rows and images in columns; null if it failed. Embeddings are kept beside it.
            batch_size: Documents in one forward pass.

        Returns:
            The figures, `n`, `seed`, `failed` (a list of `{"set", "id", "error"}`; their items are in `n`, and count
            as wrong) and `settings`.

        Raises:
            ValueError: The output is of another run, two items have one id, or the model does not score pairs.
        """
        encoder = as_encoder(model, processor)
        if self.scoring == "match" and not isinstance(encoder, Blip2Encoder):
            raise ValueError(f"{self.name}: scoring=match needs BLIP-2, and {encoder.name} has no matching head.")
        texts = Lazy(2 * len(self.items), lambda i: _half(self.items[i // 2], "text", i % 2))
        images = Lazy(2 * len(self.items), lambda i: _half(self.items[i // 2], "image", i % 2))
        _ids(self.name, "samples", texts)
        settings = {"task": self.name, "n": len(self.items), **self.settings, "scoring": self.scoring}
        settings |= {"seed": self.seed, **encoder.describe()}
        with ResultLines(output, settings) as lines:
            if isinstance(encoder, Blip2Encoder) and self.scoring == "match":
                before = encoder.truncated
                found, failed = _matched(encoder, texts, images, batch_size, self.name)
                notes = encoder.notes() | {"truncated": encoder.truncated - before}
            else:
                store = EmbeddingStore(encoder, lines.folder, batch_size)
                found = _compared(store.encode("texts", texts), store.encode("images", images))
                failed, notes = store.failed, store.notes()
            groups = [item.group for item in self.items]
            for item, scores in zip(self.items, found, strict=True):
                lines.write(
                    {"id": item.id, "group": item.group, "scores": None if scores is None else scores.tolist()}
                )
        filled = np.stack([np.zeros((2, 2)) if scores is None else scores for scores in found])
        settings |= _noted(notes)
        return {
            **self.score(filled, groups),
            "n": len(found),
            "seed": self.seed,
            "failed": failed,
            "settings": settings,
        }


def _half(item: Pair, kind: str, number: int) -> Document:
    return Document(f"{item.id} {kind} {number}", [(item.texts if kind == "text" else item.images)[number]])


def _compared(texts: Sequence[np.ndarray | None], images: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
    """Scores (2, 2) of each item, as [text, image]; `None` where one of the four is missing."""
    found: list[np.ndarray | None] = []
    for i in range(0, len(texts), 2):
        rows = [vectors for vectors in texts[i : i + 2] if vectors is not None]
        columns = [vectors for vectors in images[i : i + 2] if vectors is not None]
        found.append(similarity(rows, columns) if len(rows) == len(columns) == 2 else None)
    return found


def _matched(
    encoder: Blip2Encoder, texts: Sequence[Document], images: Sequence[Document], batch_size: int, name: str
) -> tuple[list[np.ndarray | None], list[dict[str, str]]]:
    """Probabilities (2, 2) of each item, as [text, image], and what failed."""
    found: list[np.ndarray | None] = []
    failed = []
    for i in tqdm(range(0, len(texts), 2), desc=name, unit="samples", delay=2):
        first, second = texts[i : i + 2], images[i : i + 2]
        try:
            pairs = [(text, image) for text in first for image in second]
            found.append(encoder.match(pairs, batch_size).reshape(2, 2))
        except BadSampleError as error:
            found.append(None)
            failed.append({"set": "pairs", "id": str(error.sample), "error": str(error)})
    return found, failed


def _noted(notes: Mapping[str, Any]) -> dict[str, Any]:
    return {"notes": notes} if notes else {}
