"""One thread that embeds what many requests ask for, in batches."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..model.embedding_sugar import Faults, drawn_picture, embed_samples
from ..model.samples_sugar import Sample, sample_sizes, with_prompt
from ..retrieval.embedder import SugarEmbedder
from .server_metrics import Metrics

CHARACTERS_PER_TOKEN = 3  # a low guess
QUEUE = "embedding"

T = TypeVar("T")


class QueueFullError(Exception):
    """No more may wait.

    Args:
        seconds: When to try again.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server has as much to do as it takes; try again in {seconds} s")
        self.seconds = seconds


class SampleFault(ValueError):  # noqa: N818
    """An input that cannot be embedded.

    Args:
        message: Why.
        name: Which.
    """

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True)
class Embedded:
    """What one input became.

    Args:
        vectors: (S, d) float32 unit vectors, one for each slice end.
        tokens: How many tokens it has.
    """

    vectors: np.ndarray
    tokens: int


class _Job:
    """The inputs of one request."""

    def __init__(self, samples: Sequence[Sample], names: Sequence[str]) -> None:
        self.samples, self.names = samples, names
        self.sizes = sample_sizes(samples, names)
        self.found: dict[int, Embedded] = {}
        self.future: Future[list[Embedded]] = Future()

    def put(self, number: int, embedded: Embedded) -> None:
        self.found[number] = embedded
        if len(self.found) == len(self.samples):
            with suppress(InvalidStateError):  # its client has left
                self.future.set_result([self.found[at] for at in range(len(self.samples))])

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Item:
    """One input that waits."""

    job: _Job
    number: int
    tokens: int


class EmbeddingWorker:
    """Embeds inputs of many requests together.

    A batch is what waits when the one before it is done, in the order of its coming, as long as its inputs times the
    tokens of the longest stay within `batch_tokens`. These tokens are a guess: one for three characters, and for
    an image those of a drawn one. If the last batch came of several requests, the next one waits for as many, for
    `batch_wait` seconds at the most; a lone request never waits.

    Args:
        embedder: Embeds; its `truncate_dim`, `split_sentences`, `max_length` and `truncation` count.
        max_length: The most tokens of an input, where the embedder has none.
        batch_tokens: See above.
        batch_wait: See above.
        most_waiting: How many inputs may wait.
        metrics: Is told of queue, batches and tokens.
        adapters: What makes this thread compute with adapters, if there are any.
    """

    def __init__(
        self,
        embedder: SugarEmbedder,
        *,
        max_length: int | None,
        batch_tokens: int,
        batch_wait: float,
        most_waiting: int,
        metrics: Metrics,
        adapters: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.embedder = embedder
        self.batch_tokens, self.batch_wait, self.most_waiting = batch_tokens, batch_wait, most_waiting
        self.image_tokens = len(embedder.processor([drawn_picture(336, 336)])["input_ids"][0])
        self._options: dict[str, Any] = {
            "truncate_dim": embedder.truncate_dim,
            "split_sentences": embedder.split_sentences,
            "max_length": max_length if embedder.max_length is None else embedder.max_length,
            "truncation": embedder.truncation,
        }
        self._metrics, self._adapters = metrics, adapters
        self._waiting: deque[_Item] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._expected = 1  # requests that the next batch waits for
        self._thread = threading.Thread(target=self._work, name="sugar-hf embedding", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def embed(self, samples: Sequence[Sample], names: Sequence[str]) -> "Future[list[Embedded]]":
        """Embed inputs at all slice ends; the first that cannot be embedded fails all of them.

        Args:
            samples: The inputs, at least one.
            names: What to call them in errors.

        Returns:
            A future of what became of each; it may raise a [`SampleFault`]. To leave, call its `cancel`.

        Raises:
            QueueFullError: Too many are waiting.
        """
        job = _Job(samples, names)
        items = [
            _Item(job, number, images * self.image_tokens + characters // CHARACTERS_PER_TOKEN + 1)
            for number, (images, characters) in enumerate(job.sizes)
        ]
        with self._change:
            if self._stopped:
                raise RuntimeError("the server was stopped")
            if self._waiting and len(self._waiting) + len(items) > self.most_waiting:
                self._metrics.refused.labels(QUEUE).inc()
                raise QueueFullError(1)
            self._waiting += items
            self._change.notify()
        return job.future

    def call(self, work: Callable[[], T]) -> "Future[T]":
        """Run something else that uses the model, between two batches."""
        future: Future[T] = Future()
        with self._change:
            if self._stopped:
                raise RuntimeError("the server was stopped")
            if len(self._calls) >= self.most_waiting:
                raise QueueFullError(1)
            self._calls.append((work, future))
            self._change.notify()
        return future

    def stop(self) -> None:
        """End the thread; what waits fails."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join()

    # ---- The thread ----

    def _work(self) -> None:
        with self._adapters():
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._waiting or self._calls or self._stopped)
                    if self._stopped:
                        break
                    calls = [*self._calls]
                    self._calls.clear()
                for work, future in calls:
                    _answer(work, future)
                if batch := self._take():
                    self._run(batch)
        for job in (item.job for item in self._waiting):
            job.fail(RuntimeError("the server was stopped"))
        for _, future in self._calls:
            future.set_exception(RuntimeError("the server was stopped"))

    def _take(self) -> list[_Item]:
        """Take the next batch off the queue."""
        end = time.monotonic() + self.batch_wait
        with self._change:
            while len(self._waiting) and not self._stopped and (left := end - time.monotonic()) > 0:
                if len({item.job for item in self._waiting}) >= self._expected:
                    break
                self._change.wait(left)
            taken: list[_Item] = []
            kept: deque[_Item] = deque()
            longest = 0
            for item in self._waiting:
                if item.job.future.done():  # its client has left, or another input of it has failed
                    continue
                if taken and max(longest, item.tokens) * (len(taken) + 1) > self.batch_tokens:
                    kept.append(item)
                    continue
                taken.append(item)
                longest = max(longest, item.tokens)
            self._waiting = kept
            self._metrics.waiting.labels(QUEUE).set(len(kept))
        self._expected = max(1, len({item.job for item in taken}))
        return taken

    def _run(self, batch: list[_Item]) -> None:
        samples = [item.job.samples[item.number] for item in batch]
        counts: dict[int, int] = {}  # by the identity of a sample, of which the same one may come twice
        wrong: dict[int, ValueError] = {}

        def process(given: Sequence[Sample], **options: Any) -> Any:
            features = self.embedder.processor(given, **options)
            tokens = features["attention_mask"].sum(dim=1).tolist()
            counts.update(zip(map(id, given), tokens, strict=True))
            return features

        def report(faults: Faults, count: int) -> None:
            wrong.update(faults)

        processor: Any = process  # is called, and nothing else
        try:
            vectors = embed_samples(
                self.embedder.model,
                processor,
                samples.__getitem__,
                {at: item.job.sizes[item.number] for at, item in enumerate(batch)},
                lambda at: batch[at].job.names[batch[at].number],
                report,
                batch_size=len(batch),
                positions="all",
                **self._options,
            )
        except Exception as error:  # of the model or the machine; the thread goes on
            for item in batch:
                item.job.fail(error)
            return
        self._metrics.batch.observe(len(batch))
        self._metrics.tokens.labels("embedded").inc(
            sum(counts[id(sample)] for sample in samples if id(sample) in counts)
        )
        for at, item in enumerate(batch):
            if at in wrong:
                name = item.job.names[item.number]
                text = str(wrong[at])
                item.job.fail(SampleFault(text if name in text else f"{name}: {text}", name))
            else:
                item.job.put(item.number, Embedded(vectors[at], counts[id(samples[at])]))


def _answer(work: Callable[[], Any], future: "Future[Any]") -> None:
    """Run something for a future."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


class BatchedEmbedder(SugarEmbedder):
    """Embeds queries together with those of other requests; for what asks for an embedder and waits.

    Args:
        worker: Embeds.
    """

    def __init__(self, worker: EmbeddingWorker) -> None:
        own = worker.embedder
        options = ("batch_size", "positions", "truncate_dim", "split_sentences", "max_length", "truncation", "prompts")
        super().__init__(own.model, own.processor, **{name: vars(own)[name] for name in options})
        self.worker = worker
        self._fingerprint = own._fingerprint  # of the same model: with weights on disk it takes its time

    def encode(self, samples: Sequence[Sample], **options: Any) -> np.ndarray:
        """Embed samples, each at its last slice; of the options, `names` and those of prompts count."""
        names = options.get("names") or [f"sample {number}" for number in range(len(samples))]
        prompt = self.find_prompt(options.get("prompt"), options.get("prompt_name"))
        samples = [with_prompt(sample, prompt) for sample in samples]
        found = self.worker.embed(samples, names).result()
        return np.stack([each.vectors[-1] for each in found])
