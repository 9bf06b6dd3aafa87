"""From the thread that generates to a response, as a whole or piece by piece; a client that leaves ends it."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .api_errors import ApiError
from .engine import Generated
from .generation_worker import Watch

T = TypeVar("T")
_END = object()
_LOG = logging.getLogger(__name__)


class ClientGone(Exception):  # noqa: N818
    """Nobody waits for the response."""


async def until_left(request: Request, work: Awaitable[T]) -> T:
    """Wait for something as long as the client does.

    Raises:
        ClientGone: It has left.
    """
    wanted = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({wanted, left}, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done():
            return wanted.result()
        raise ClientGone
    finally:
        left.cancel()
        wanted.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Pieces:
    """What a generation hands on, in the order of its coming, from its thread to the event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, piece: Any) -> None:
        """Hand on a piece; may be called in any thread."""
        with suppress(RuntimeError):  # the event loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._queue.put_nowait, piece)

    async def get(self) -> Any:
        """Wait for the next piece."""
        return await self._queue.get()


class EventStream(StreamingResponse):
    """Server-sent events of a generation, which ends with the response.

    Args:
        events: The events, as bytes.
        watch: Watches the generation.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], watch: Watch) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and end the generation if the client leaves."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watch.cancel()


async def whole(request: Request, begin: Callable[[], "Future[T]"], watch: Watch) -> T:
    """Generate, and wait for all of it.

    Raises:
        ClientGone: The client has left; the generation ends.
        QueueFullError: Too many are waiting.
    """
    try:
        return await until_left(request, asyncio.wrap_future(begin()))
    except BaseException:
        watch.cancel()
        raise


async def stream(
    request: Request,
    begin: Callable[[], "Future[Generated]"],
    watch: Watch,
    pieces: Pieces,
    write: Callable[[Any], Iterator[Any]],
    last: Callable[[Generated], Iterator[Any]],
) -> EventStream:
    """Generate, and send each piece as it comes. An error before the first piece is an error of the request.

    Args:
        request: The request.
        begin: Begins the generation.
        watch: Watches it.
        pieces: Where it hands on what is new.
        write: From a piece to the events that tell of it, fit for JSON.
        last: From what it gave to the last events.

    Raises:
        ClientGone: The client has left; the generation ends.
        QueueFullError: Too many are waiting.
    """
    future = begin()
    future.add_done_callback(lambda _: pieces.put(_END))
    try:
        first = await until_left(request, pieces.get())
    except BaseException:
        watch.cancel()
        raise
    if first is _END:
        future.result()  # raises what went wrong

    async def events() -> AsyncIterator[bytes]:
        piece = first
        try:
            while piece is not _END:
                for event in write(piece):
                    yield _event(event)
                piece = await pieces.get()
            for event in last(future.result()):
                yield _event(event)
            yield b"data: [DONE]\n\n"
        except Exception as error:  # the status is sent already
            if not isinstance(error, ApiError):
                _LOG.exception("a generation failed while it was sent")
                error = ApiError(500, "the server failed.")
            yield _event(error.body)

    return EventStream(events(), watch)


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"
