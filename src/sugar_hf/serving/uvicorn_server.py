"""A server that finishes what it has begun before it ends."""

import time
from types import FrameType
from typing import Any

import uvicorn

from .gate import Traffic


class DrainingServer(uvicorn.Server):
    """At the first signal new requests get a 503, and the process ends when those in progress are done.

    At the second one it ends at once.

    Args:
        config: Settings of uvicorn.
        traffic: Of the app.
        drain_seconds: How long requests in progress may take.
    """

    def __init__(self, config: uvicorn.Config, traffic: Traffic, drain_seconds: float) -> None:
        super().__init__(config)
        self.traffic, self.drain_seconds = traffic, drain_seconds
        self._end = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or end."""
        if self.traffic.is_draining:
            self.should_exit = self.force_exit = True
            return
        self.traffic.is_draining = True
        self._end = time.monotonic() + self.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether all is done."""
        if self.traffic.is_draining and (not self.traffic.in_progress or time.monotonic() > self._end):
            self.should_exit = True
        return await super().on_tick(counter)


def run_server(app: Any, host: str, port: int, *, drain_seconds: float = 30.0, access_log: bool = False) -> None:
    """Serve an app until a signal comes.

    Args:
        app: From [`create_app`].
        host: The address to listen at.
        port: The port; 0 for any.
        drain_seconds: See [`DrainingServer`].
        access_log: Write a line for each request.
    """
    config = uvicorn.Config(
        app, host, port, log_level="info", access_log=access_log, timeout_graceful_shutdown=5, server_header=False
    )
    DrainingServer(config, app.state.traffic, drain_seconds).run()
