"""Questions that a model answers with documents that are found for them, by itself or by another model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Document
from ..model.samples_sugar import sample_items
from ..retrieval.embedder import SugarEmbedder
from .embedding_store import EmbeddingStore
from .encoders import Encoder, similarity
from .examples import Example, Lazy
from .generation_evaluator import GenerationEvaluator, Score, Submission
from .generators import Generator, SugarGenerator, as_generator
from .metrics.ranking import MISSED, recall_at_k

CHUNK = 2**28  # similarities in memory at once, 1 GiB for each view

#: From the parts of a question's prompt and those of each document that was found, best first, to a prompt.
Fill = Callable[[Sequence[Any], list[Sequence[Any]]], Any]


@dataclass(frozen=True)
class View:
    """One way to search: what stands for the questions, and what for the candidates.

    Args:
        queries: A document for each question.
        candidates: Name of a set of candidates.
    """

    queries: Sequence[Document]
    candidates: str


@dataclass(frozen=True)
class Pool:
    """What can be found.

    Args:
        entries: What goes into the prompt of a question for which it was found; a list of texts and images each.
        sides: By name, sets of documents that stand for the entries in the search, in their order.
        allowed: For each question the numbers of the entries among which it searches, ascending; all if `None`.
        gold: For each question the numbers of the right entries, one or several; `None` if they are not known.
        refuses: Says of a question's and an entry's number whether that may not be found.
    """

    entries: Sequence[Document]
    sides: Mapping[str, Sequence[Document]]
    allowed: Sequence[Sequence[int]] | None = None
    gold: Sequence[Sequence[int]] | None = None
    refuses: Callable[[int, int], bool] | None = None


@dataclass(frozen=True)
class Found:
    """Numbers of the entries that were found for a question, best first, and their similarities."""

    numbers: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()


class KnowledgeEvaluator:
    """Holds questions and what can be found for them, and measures models on the answers.

    Args:
        name: The task's name.
        examples: The questions, with the prompts that they have without documents: lists of texts and images.
        pool: What can be found.
        views: How it is searched, by name. The similarity is the mean over the views of the cosine (of the best of
            several vectors, where an encoder gives several).
        fill: Puts what was found into a prompt.
        score: Makes figures of the records; `None` if the answers are hidden.
        primary_metric: The figure to look at.
        top_k: How many documents go into a prompt; 0 for none, and nothing is embedded.
        ks: For which k the share of questions with a right entry among the first k is given, if those are known.
        max_new_tokens: The longest answer.
        submission: How the server's file is written, if there is a server.
        seed: What whoever made the examples drew with.
        settings: What else the result should say; JSON values.

    Raises:
        ValueError: There are no questions, or lengths do not agree.
    """

    def __init__(
        self,
        name: str,
        examples: Sequence[Example],
        pool: Pool,
        views: Mapping[str, View],
        fill: Fill,
        score: Score | None,
        *,
        primary_metric: str | None,
        top_k: int = 1,
        ks: Sequence[int] = (1, 5),
        max_new_tokens: int = 64,
        submission: Submission | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if top_k < 0:
            raise ValueError(f"{name}: top_k={top_k}: give 0 (no retrieval) or more.")
        self.name, self.examples, self.pool, self.views, self.fill = name, examples, pool, dict(views), fill
        self.score, self.top_k, self.ks = score, top_k, tuple(ks)
        self.primary_metric = primary_metric if score is not None else None
        self.max_new_tokens, self.submission, self.seed = max_new_tokens, submission, seed
        self.settings = dict(settings or {})
        for what, items, wanted in self._lengths():
            if len(items) != wanted:
                raise ValueError(f"{name}: {what}: {len(items)}, where {wanted} are needed.")

    def _lengths(self) -> Iterator[tuple[str, Sequence[Any], int]]:
        for name, view in self.views.items():
            yield f"queries of the view {name}", view.queries, len(self.examples)
        for name, side in self.pool.sides.items():
            yield f"candidates {name}", side, len(self.pool.entries)
        for name, lists in (("allowed", self.pool.allowed), ("gold", self.pool.gold)):
            if lists is not None:
                yield name, lists, len(self.examples)

    def __call__(
        self,
        model: Any,
        processor: Any = None,
        *,
        output: str | Path | None = None,
        batch_size: int = 8,
        encoder: Encoder | None = None,
    ) -> dict[str, Any]:
        """Measure a model.

        Args:
            model: Answers: a Sugar model, any image-text-to-text model, or a `Generator`.
            processor: The model's; not needed with a generator.
            output: File of JSON lines for the predictions; each has what was retrieved in its `info`. Embeddings are
                kept in a folder beside it. If they are there already, nothing is computed or asked again.
            batch_size: Questions answered, or documents embedded, together.
            encoder: Retrieves. If `None`, the model itself does, which must be Sugar; with `top_k` 0 nobody does.

        Returns:
            The figures of `score`, and those of [`GenerationEvaluator`] beside them. If something was retrieved, also
            `retrieval recall@k` in percent of all questions (where the right entries are known), `unsearched`, the
            number of questions that could not be embedded and were answered without documents, and `skipped`, a list
            of `{"set", "id", "error"}` for what could not be embedded. An entry that could not be embedded in all
            views is never found.

        Raises:
            ValueError: The model cannot retrieve and there is no encoder, or the output is of another run.
        """
        generator = as_generator(model, processor)
        settings = {**self.settings, "top_k": self.top_k}
        if not self.top_k:
            return self._answered(self.examples, settings, generator, output, batch_size)
        encoder = _retriever(generator) if encoder is None else encoder
        folder = None if output is None else Path(output).with_suffix(".embeddings")
        store = EmbeddingStore(encoder, folder, batch_size)
        found = self._search(store)
        settings |= {"view": "+".join(self.views), "pool": len(self.pool.entries), "encoder": store.settings}
        result = self._answered(
            Lazy(len(self.examples), lambda i: self._prompt(i, found[i])), settings, generator, output, batch_size
        )
        result["settings"]["encoder notes"] = store.notes()  # not before: they may grow while it embeds
        result |= self._recall(found)
        return result | {"unsearched": sum(item is None for item in found), "skipped": store.failed}

    def _answered(
        self, examples: Sequence[Example], settings: dict[str, Any], generator: Generator, output: Any, batch_size: int
    ) -> dict[str, Any]:
        return GenerationEvaluator(
            self.name,
            examples,
            self.score,
            primary_metric=self.primary_metric,
            max_new_tokens=self.max_new_tokens,
            submission=self.submission,
            seed=self.seed,
            settings=settings,
        )(generator, output=output, batch_size=batch_size)

    def _prompt(self, question: int, found: Found | None) -> Example:
        """The question with what was found for it."""
        example = self.examples[question]
        if found is None or not found.numbers:
            return example
        entries = [self.pool.entries[number] for number in found.numbers[: self.top_k]]
        hits: list[dict[str, Any]] = [
            {"id": entry.id, "score": score} for entry, score in zip(entries, found.scores, strict=False)
        ]
        if self.pool.gold is not None:
            for hit, number in zip(hits, found.numbers, strict=False):
                hit["right"] = number in self.pool.gold[question]
        prompt = self.fill(sample_items(example.document.sample), [sample_items(entry.sample) for entry in entries])
        return Example(Document(example.id, prompt), example.reference, {**example.info, "retrieved": hits})

    def _recall(self, found: Sequence[Found | None]) -> dict[str, float]:
        if self.pool.gold is None:
            return {}
        ranks = np.full(len(found), MISSED)  # a pool may have fewer entries than k
        for question, (item, gold) in enumerate(zip(found, self.pool.gold, strict=True)):
            right = np.isin(item.numbers, gold) if item is not None else np.zeros(0, bool)
            if right.any():
                ranks[question] = right.argmax()
        return {f"retrieval {name}": value for name, value in recall_at_k(ranks, self.ks).items()}

    def _search(self, store: EmbeddingStore) -> list[Found | None]:
        """What is found for each question; `None` for one that cannot be embedded."""
        sides = {
            name: store.encode(f"candidates-{name}", self.pool.sides[name])
            for name in dict.fromkeys(view.candidates for view in self.views.values())
        }
        queries = [store.encode(f"questions-{name}", view.queries) for name, view in self.views.items()]
        candidates = [sides[view.candidates] for view in self.views.values()]
        usable = np.array([i for i, of in enumerate(zip(*candidates, strict=True)) if _is_whole(of)], np.int64)
        asked = [i for i, of in enumerate(zip(*queries, strict=True)) if _is_whole(of)]
        found: list[Found | None] = [None] * len(self.examples)
        for chunk, numbers in self._chunks(asked, usable):
            scores = np.mean(
                [
                    similarity(_take(mine, chunk), _take(theirs, numbers))
                    for mine, theirs in zip(queries, candidates, strict=True)
                ],
                axis=0,
            )  # (questions, candidates)
            for question, row in zip(chunk, scores, strict=True):
                found[question] = self._best(question, row, numbers)
        return found

    def _chunks(self, asked: list[int], usable: np.ndarray) -> Iterator[tuple[list[int], np.ndarray]]:
        """Questions that are compared with the same candidates, as many as fit into memory."""
        if self.pool.allowed is not None:
            for question in asked:
                yield [question], np.intersect1d(self.pool.allowed[question], usable)
            return
        size = max(CHUNK // max(len(usable), 1), 1)
        for start in range(0, len(asked), size):
            yield asked[start : start + size], usable

    def _best(self, question: int, scores: np.ndarray, numbers: np.ndarray) -> Found:
        """The best candidates that are not refused; of equal ones those with the smaller numbers."""
        wanted = self.top_k if self.pool.gold is None else max(self.top_k, *self.ks)
        looked_at, kept = min(wanted, len(scores)), np.empty(0, np.int64)
        while looked_at:
            least = np.partition(scores, -looked_at)[-looked_at]
            near = np.flatnonzero(scores >= least)
            order = near[np.argsort(-scores[near], kind="stable")]
            refuses = self.pool.refuses
            if refuses is not None:
                order = np.array([i for i in order if not refuses(question, int(numbers[i]))], np.int64)
            kept = order[:wanted]
            if len(kept) == wanted or looked_at == len(scores):
                break
            looked_at = min(2 * looked_at, len(scores))
        return Found(tuple(int(numbers[i]) for i in kept), tuple(float(scores[i]) for i in kept))


def _retriever(generator: Generator) -> SugarEmbedder:
    if isinstance(generator, SugarGenerator) and generator.is_sugar:
        return SugarEmbedder(generator.pipe.model, generator.pipe.processor)
    raise ValueError(
        f"{generator.name} has no retrieval head, so it finds nothing by itself. Give an encoder that retrieves for "
        "it (--retriever), such as CLIP, or ask without documents (top_k=0)."
    )


def _is_whole(vectors: Sequence[np.ndarray | None]) -> bool:
    return all(each is not None for each in vectors)


def _take(vectors: Sequence[np.ndarray | None], numbers: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Vectors that are known to be there."""
    return [each for each in (vectors[int(i)] for i in numbers) if each is not None]
