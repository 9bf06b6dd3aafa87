"""What every request passes first: counting, the key, the host, the kind and size of its body."""

import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .api_errors import ApiError
from .server_metrics import Metrics

#: Routes that ask for no key: the pages, which have no data, and what a supervisor asks.
OPEN = ("/", "/docs", "/health", "/ready")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH")
_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


@dataclass
class Traffic:
    """What goes on in a server.

    Args:
        in_progress: Requests that have no whole response yet.
        is_draining: Whether new requests are turned away, as the server is about to end.
    """

    in_progress: int = 0
    is_draining: bool = False


class Gate:
    """An ASGI middleware.

    Args:
        app: What comes behind it.
        traffic: Is told of each request.
        metrics: Likewise.
        paths: The routes there are, by which requests are counted.
        api_key: The key that requests have to give; none when `None`.
        body_bytes: The most bytes of a body.
        most_requests: The most requests in progress.
        hosts: The names under which the server may be asked; any when `None`. On a machine's own address this keeps
            out web pages whose name was made to lead there.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        traffic: Traffic,
        metrics: Metrics,
        paths: Collection[str],
        api_key: str | None,
        body_bytes: int,
        most_requests: int,
        hosts: Collection[str] | None,
    ) -> None:
        self.app, self.traffic, self.metrics = app, traffic, metrics
        self.paths, self.body_bytes, self.most_requests, self.hosts = paths, body_bytes, most_requests, hosts
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        self.traffic.in_progress += 1
        self.metrics.in_progress.inc()
        try:
            headers = dict(scope["headers"])
            try:
                self._check(scope, headers)
            except ApiError as error:
                await error.response(scope, receive, noted)
            else:
                await self.app(scope, self._limited(receive), noted)
        finally:
            self.traffic.in_progress -= 1
            self.metrics.in_progress.dec()
            # what clients make up must not become figures without end
            path = scope["path"] if scope["path"] in self.paths else "other"
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.requests.labels(path, method, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - began)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse what is not to be looked at."""
        path = scope["path"]
        if self.hosts is not None and _host(headers) not in self.hosts:
            raise ApiError(421, f"this server answers to {', '.join(sorted(self.hosts))} only.", code="wrong_host")
        if self._key is not None and path not in OPEN:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, self._key):
                said = "send the key as Authorization: Bearer KEY" + ("; this is another one." if given else ".")
                raise ApiError(401, said, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if self.traffic.is_draining and path not in OPEN:
            closing = {"Retry-After": "5", "Connection": "close"}
            raise ApiError(503, "the server is about to end.", code="shutting_down", headers=closing)
        if self.traffic.in_progress > self.most_requests and path not in OPEN:
            message = f"the server has {self.most_requests} requests in progress, which is all it takes."
            raise ApiError(429, message, code="too_many_requests", headers={"Retry-After": "1"})
        if scope["method"] == "POST":
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":  # a web page of elsewhere cannot send this without being asked first
                raise ApiError(415, "send JSON, with Content-Type: application/json.", code="no_json")
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self.body_bytes:
                raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        read = 0

        async def limited() -> Any:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.body_bytes:
                raise self._too_large()
            return message

        return limited

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body has more than {self.body_bytes} bytes.", code="body_too_large")


def _host(headers: dict[bytes, bytes]) -> str:
    """The name a request was sent to, without the port."""
    name = headers.get(b"host", b"").decode("latin-1").lower()
    return name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
