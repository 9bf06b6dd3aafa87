"""Downloads within a time, a size and the network that they may reach."""

import http.client
import ipaddress
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any
from urllib import request
from urllib.parse import urlsplit

#: What may be downloaded: `none`; `public`, from addresses of the public internet only; `any`. When it is not set, any
#: host that was asked for, and where that redirects to, itself or a public address.
SETTING = "SUGAR_HF_URLS"
_ALLOWED = ("none", "public", "any")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class RefusedError(ValueError):
    """An address that may not be reached; says what allows it."""


def download(url: str, seconds: float, max_bytes: int, default: str | None = None) -> bytes:
    """Download a file with http or https. Proxies of the environment are used.

    The time counts for everything, from looking up the host to the last byte, redirects and slow answers included.

    Args:
        url: The address.
        seconds: The most time it may take.
        max_bytes: The most bytes it may have.
        default: What `SUGAR_HF_URLS` is taken to be where it is not set.

    Raises:
        RefusedError: It may not be reached, or is larger or slower than the limits.
        OSError: It does not answer, or answers with an error.
        http.client.HTTPException: The answer is no HTTP.
        ValueError: The address is malformed.
    """
    allowed = os.environ.get(SETTING, default)
    if allowed is not None and allowed not in _ALLOWED:
        raise RefusedError(f"{SETTING}={allowed!r} is none of {', '.join(_ALLOWED)}")
    if allowed == "none":
        raise RefusedError(f"{SETTING}=none allows no download")
    work = _Download(url, seconds, max_bytes, allowed)
    # A thread, since nothing else bounds the lookup of a host, or an answer of one byte now and then.
    thread = threading.Thread(target=work.run, name="sugar-hf download", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        work.stop()
        raise work.too_much()
    if work.error is not None:
        raise work.error
    return bytes(work.data)


class _Download:
    """One download, run by a thread of its own that `stop` ends."""

    def __init__(self, url: str, seconds: float, max_bytes: int, allowed: str | None) -> None:
        self.url, self.seconds, self.max_bytes, self.allowed = url, seconds, max_bytes, allowed
        self.data = bytearray()
        self.error: Exception | None = None
        self._end = time.monotonic() + seconds
        self._asked = urlsplit(url).hostname
        self._connections: list[_Connection] = []

    def too_much(self) -> RefusedError:
        return RefusedError(f"it has more than {self.max_bytes} bytes, or takes more than {self.seconds:.0f} s")

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # raised again in the thread that waits
            # each connection waits for what is left of the time: one that waited in vain has used all of it up
            is_late = self.left <= 0 and not isinstance(error, RefusedError)
            self.error = self.too_much() if is_late else error
        finally:
            self.stop()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def stop(self) -> None:
        """End what waits for bytes."""
        self._end = 0
        for wire in [wire for connection in self._connections for wire in (connection.sock, connection.wire)]:
            if wire is not None:
                with suppress(OSError):  # closed already
                    wire.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        opener = request.OpenerDirector()  # not request.urlopen, which also opens file:// and ftp://, by redirects too
        for handler in (
            request.ProxyHandler(),
            _Http(self),
            _Https(self),
            request.HTTPRedirectHandler(),
            request.HTTPDefaultErrorHandler(),
            request.HTTPErrorProcessor(),
            request.UnknownHandler(),
        ):
            opener.add_handler(handler)
        wanted = request.Request(self.url, headers={"User-Agent": "sugar-hf"})
        with opener.open(wanted, timeout=self.seconds) as response:
            while chunk := response.read1(2**16):
                self.data += chunk
                if len(self.data) > self.max_bytes or self.left <= 0:
                    raise self.too_much()

    def connect(self, kind: "type[_Connection]", host: str, wanted: request.Request) -> "_Connection":
        """Make the connection for a request, unless its host may not be reached."""
        if self.left <= 0:
            raise self.too_much()
        target = urlsplit(wanted.full_url).hostname
        is_open = self.allowed == "any" or (self.allowed is None and target == self._asked)
        if not is_open:
            self.check(target or "", f"host {target!r}")
        is_proxy = wanted.has_proxy() or urlsplit(f"//{host}").hostname != target
        connection = kind(host, self, is_open or is_proxy)
        self._connections.append(connection)
        return connection

    def check(self, host: str, said: str) -> None:
        """Refuse a host unless all of its addresses are of the public internet."""
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError) as error:
            raise RefusedError(
                f"{said} is not known here, so that it may be a private one ({error}); {_way()}"
            ) from error
        for address in found:
            if not _is_public(str(address)):
                raise RefusedError(f"{said} is {address}, no address of the public internet; {_way()}")


def _way() -> str:
    return f"{SETTING}=any in the environment allows it"


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found in _NAT64:
            found = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        else:
            found = found.ipv4_mapped or found.sixtofour or found
    return found.is_global and not found.is_multicast


class _Connection(http.client.HTTPConnection):
    """Checks the address it is connected to before it sends anything: the name may resolve to another by now."""

    def __init__(self, host: str, work: _Download, is_open: bool) -> None:
        super().__init__(host, timeout=work.left)
        self._work, self._is_open = work, is_open
        self.wire: socket.socket | None = None  # `sock` is None once the answer has begun

    def connect(self) -> None:
        super().connect()
        self.wire = self.sock
        try:
            if self._work.left <= 0:
                raise self._work.too_much()
            if not self._is_open:
                self._work.check(self.sock.getpeername()[0], "the host")
        except RefusedError:
            self.close()
            raise


class _TlsConnection(_Connection, http.client.HTTPSConnection):
    pass


class _Http(request.HTTPHandler):
    def __init__(self, work: _Download) -> None:
        super().__init__()
        self._work = work

    def http_open(self, req: request.Request) -> http.client.HTTPResponse:
        connect: Any = lambda host, **_: self._work.connect(_Connection, host, req)  # noqa: E731
        return self.do_open(connect, req)


class _Https(request.HTTPSHandler):
    def __init__(self, work: _Download) -> None:
        super().__init__()
        self._work = work

    def https_open(self, req: request.Request) -> http.client.HTTPResponse:
        connect: Any = lambda host, **_: self._work.connect(_TlsConnection, host, req)  # noqa: E731
        return self.do_open(connect, req)
