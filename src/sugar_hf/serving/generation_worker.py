"""One thread that generates for many requests, one after the other, and what watches a generation."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
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
        is_done = self.is_cancelled
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


class GenerationWorker:
    """Runs generations one after the other.

    Args:
        most_waiting: How many may wait.
        metrics: Is told how many do.
        adapters: What makes this thread compute with adapters, or without.
    """

    def __init__(
        self, *, most_waiting: int, metrics: Metrics, adapters: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self.most_waiting = most_waiting
        self._metrics, self._adapters = metrics, adapters
        self._waiting: deque[tuple[Callable[[], Any], Watch, Future[Any]]] = deque()
        self._change = threading.Condition()
        self._stopped = False
        self._seconds = 1.0  # that a generation takes, lately
        self._thread = threading.Thread(target=self._work, name="sugar-hf generation", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive()

    def submit(self, work: Callable[[], Any], watch: Watch) -> "Future[Any]":
        """Let a generation wait for its turn.

        Args:
            work: Generates.
            watch: Watches it; one that was cancelled is not begun.

        Raises:
            QueueFullError: Too many are waiting.
        """
        future: Future[Any] = Future()
        with self._change:
            if self._stopped:
                raise RuntimeError("the server was stopped")
            if len(self._waiting) >= self.most_waiting:
                self._metrics.refused.labels(QUEUE).inc()
                raise QueueFullError(min(60, max(1, round(self._seconds * len(self._waiting)))))
            self._waiting.append((work, watch, future))
            self._metrics.waiting.labels(QUEUE).set(len(self._waiting))
            self._change.notify()
        return future

    def stop(self) -> None:
        """End the thread; what waits is cancelled."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join()

    def _work(self) -> None:
        with self._adapters():
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._waiting or self._stopped)
                    if self._stopped:
                        break
                    work, watch, future = self._waiting.popleft()
                    self._metrics.waiting.labels(QUEUE).set(len(self._waiting))
                if not future.set_running_or_notify_cancel():
                    continue
                self._run(work, watch, future)
        for _, _, future in self._waiting:
            future.set_exception(RuntimeError("the server was stopped"))

    def _run(self, work: Callable[[], Any], watch: Watch, future: "Future[Any]") -> None:
        began = time.monotonic()
        try:
            if watch.is_cancelled:
                raise GenerationCancelled
            found = work()
            if watch.is_cancelled:
                raise GenerationCancelled
            watch.finish()
            future.set_result(found)
        except GenerationCancelled as error:
            self._metrics.cancelled.inc()
            future.set_exception(error)
        except BaseException as error:
            future.set_exception(error)
        self._seconds = 0.8 * self._seconds + 0.2 * (time.monotonic() - began)
