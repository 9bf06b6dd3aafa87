"""One thread that generates for many requests, and what watches a generation."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import StoppingCriteria

from .embedding_worker import QueueFullError
from .server_metrics import Metrics

QUEUE = "generation"
UNFINISHED = "\ufffd"  # what a decoder makes of the first bytes of a character


class GenerationCancelled(Exception):  # noqa: N818
    """The client of a generation has left."""


class Watch(StoppingCriteria):
    """Looks at a generation after each token: hands on what is new, and ends it at a stop or when nobody waits for it.

    What it hands on is never taken back: it holds back whitespace at the end, which the whole answer is without, and
    what may be the beginning of a stop. All that it hands on, one after the other, is `text`.

    Args:
        decode: From ids to text.
        ends: Ids that end an answer.
        stops: Texts at which an answer ends, without them.
        emit: Is given each new piece of text; nothing is decoded on the way when `None` and there are no stops.

    Attributes:
        most: The most tokens; as many as come when `None`.
        tokens: How many tokens were generated.
        text: The answer, once it is done.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        ends: Sequence[int],
        stops: Sequence[str] = (),
        emit: Callable[[str], None] | None = None,
    ) -> None:
        self._decode, self._ends, self._stops, self._emit = decode, ends, stops, emit
        self.most: int | None = None
        self._start: int | None = None
        self._ids: list[int] = []
        self._emitted = ""
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the generation after the token that is being computed."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set()

    @property
    def tokens(self) -> int:
        return len(self._ids)

    @property
    def text(self) -> str:
        return self._cut(self._decode(self._ids))[0].strip()

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """Why it ended: at an end or a stop, or as it was long enough."""
        has_ended = bool(self._ids) and self._ids[-1] in self._ends
        return "stop" if has_ended or self._cut(self._decode(self._ids))[1] else "length"

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        if self._start is None:
            self._start = input_ids.shape[1] - 1  # it is called after the first token
        self._ids = input_ids[0, self._start :].tolist()
        is_done = self.is_cancelled or self._ids[-1] in self._ends or len(self._ids) == self.most
        if self._stops or self._emit is not None:
            text, has_stopped = self._cut(self._decode(self._ids))
            is_done |= has_stopped
            self._hand_on(self._settled(text))
        return torch.full((len(input_ids),), is_done, dtype=torch.bool, device=input_ids.device)

    def finish(self) -> None:
        """Hand on what is left.

        Raises:
            RuntimeError: The tokenizer has changed, with a later token, a text that was handed on.
        """
        text = self.text
        self._hand_on(text)
        if self._emit is not None and text != self._emitted:
            raise RuntimeError("the tokenizer writes the beginning of an answer otherwise when more follows")

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text up to the first stop, and whether there is one."""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

    def _settled(self, text: str) -> str:
        """The beginning of a text that stays as it is, whatever comes."""
        held = max(
            (size for stop in self._stops for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0
        )
        return text[: len(text) - held].rstrip(UNFINISHED).strip()

    def _hand_on(self, text: str) -> None:
        if self._emit is not None and len(text) > len(self._emitted) and text.startswith(self._emitted):
            self._emit(text[len(self._emitted) :])
            self._emitted = text


class Rows(StoppingCriteria):
    """Lets each row of a batch be watched by its own, until it ends.

    Args:
        watches: One for each row.
        on_end: Is told the number of a row when it has ended.
    """

    def __init__(self, watches: Sequence[Watch], on_end: Callable[[int], None]) -> None:
        self._watches, self._on_end = watches, on_end
        self._ended = [False] * len(watches)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # type: ignore[override]
        for row, watch in enumerate(self._watches):
            if not self._ended[row] and bool(watch(input_ids[row : row + 1], scores)):
                self._ended[row] = True
                self._on_end(row)
        return torch.tensor(self._ended, device=input_ids.device)


@dataclass(eq=False)
class Task:
    """A generation that waits for its turn.

    Args:
        run: Generates for a list of tasks that are alike, this one first, and calls `end` of each.
        watch: Watches it; one that was cancelled is not begun.
        alike: Tasks of which this is equal may be run together; alone when `None`.
        request: What `run` needs of each.
        future: What comes of it.
    """

    run: "Callable[[Sequence[Task]], None]"
    watch: Watch
    alike: str | None = None
    request: Any = None
    future: "Future[Any]" = field(default_factory=Future)

    def end(self, found: Any) -> None:
        """Say what came of it, and hand on what is left of its text; nothing if that was said before."""
        if self.future.done():
            return
        try:
            if self.watch.is_cancelled:
                raise GenerationCancelled
            self.watch.finish()
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(found)


class GenerationWorker:
    """Runs generations one after the other; those that are alike, and wait at the same time, together.

    Args:
        most_together: How many may run together.
        most_waiting: How many may wait.
        metrics: Is told how many do.
        adapters: What makes this thread compute with adapters, or without.
    """

    def __init__(
        self,
        *,
        most_together: int,
        most_waiting: int,
        metrics: Metrics,
        adapters: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.most_together, self.most_waiting = most_together, most_waiting
        self._metrics, self._adapters = metrics, adapters
        self._waiting: deque[Task] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._seconds = 1.0  # that a generation takes, lately
        self._thread = threading.Thread(target=self._work, name="sugar-hf generation", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def submit(self, task: Task) -> "Future[Any]":
        """Let a generation wait for its turn.

        Raises:
            QueueFullError: Too many are waiting.
        """
        with self._change:
            if self._stopped:
                raise RuntimeError("the server was stopped")
            if len(self._waiting) >= self.most_waiting:
                self._metrics.refused.labels(QUEUE).inc()
                raise QueueFullError(min(60, max(1, round(self._seconds * len(self._waiting)))))
            self._waiting.append(task)
            self._metrics.waiting.labels(QUEUE).set(len(self._waiting))
            self._change.notify()
        return task.future

    def stop(self) -> None:
        """End the thread; what waits fails."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        with self._adapters():
            while tasks := self._take():
                began = time.monotonic()
                self._run([task for task in tasks if task.future.set_running_or_notify_cancel()])
                self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began) / len(tasks)
        for task in self._waiting:
            task.future.set_exception(RuntimeError("the server was stopped"))

    def _take(self) -> list[Task]:
        """Wait for tasks that may run together; none when the thread is to end."""
        with self._change:
            self._change.wait_for(lambda: self._waiting or self._stopped)
            if self._stopped:
                return []
            first = self._waiting.popleft()
            alike = [task for task in self._waiting if task.alike is not None and task.alike == first.alike]
            tasks = [first, *alike[: self.most_together - 1]]
            self._waiting = deque(task for task in self._waiting if task not in tasks)
            self._metrics.waiting.labels(QUEUE).set(len(self._waiting))
        return tasks

    def _run(self, tasks: list[Task]) -> None:
        for task in tasks:
            if task.watch.is_cancelled:
                task.end(None)
        left = [task for task in tasks if not task.future.done()]
        try:
            if left:
                self._metrics.together.observe(len(left))
                left[0].run(left)
        except BaseException as error:  # the thread goes on
            for task in left:
                if not task.future.done():
                    task.future.set_exception(error)
        self._metrics.cancelled.inc(sum(task.watch.is_cancelled for task in tasks))
