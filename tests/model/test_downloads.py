"""What is downloaded is bounded in time and size, and in the network that it may come from."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from sugar_hf.model import download_sugar, images_sugar
from sugar_hf.model.images_sugar import BadImageError, fetch_image

BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nimag"


def moved(where):
    return b"HTTP/1.1 302 Found\r\nLocation: " + where.encode() + b"\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def server(answer, drips=False):
    """Answers every request with bytes, or with what a function makes of its first line; drips one each 20 ms."""
    listening = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    asked, sent = [], []

    def serve(connection):
        with connection:
            try:
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (received := connection.recv(2**16)):
                        return
                    request += received
                asked.append(request.split(b"\r\n")[0].decode())
                data = answer(asked[-1]) if callable(answer) else answer
                for piece in [data[i : i + 1] for i in range(len(data))] if drips else [data]:
                    connection.sendall(piece)
                    sent.append(len(piece))
                    if over.wait(0.02 if drips else 0):
                        break
            except OSError:  # the client has gone
                pass

    def accept():
        while not over.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], asked, sent
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", download_sugar.SETTING):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def downloads():
    return [thread for thread in threading.enumerate() if thread.name == "sugar-hf download"]


DRIPS = {
    "the status line": b"HTTP/1.1 200 " + b"O" * 4000,
    "the headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: a\r\n" % i for i in range(90)),
    "one header": b"HTTP/1.1 200 OK\r\nX: " + b"a" * 4000,
    "the length of a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 4000,
    "the body": b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 4000,
    "the headers of a redirect": b"HTTP/1.1 302 Found\r\nLocation: /b\r\nX: " + b"a" * 4000,
}


@pytest.mark.parametrize("name", DRIPS)
def test_the_time_counts_for_whatever_drips(name, monkeypatch):
    monkeypatch.setattr(images_sugar, "DOWNLOAD_SECONDS", 0.3)
    with server(DRIPS[name], drips=True) as (port, _, sent):
        with pytest.raises(BadImageError, match="not fetched: it has more than"):
            fetch_image(f"http://127.0.0.1:{port}/a")
        for thread in downloads():
            thread.join(60)
        assert not downloads()  # the thread has ended too
        assert sum(sent) < len(DRIPS[name]) / 2


def test_the_time_counts_for_all_redirects_together(monkeypatch):
    monkeypatch.setattr(images_sugar, "DOWNLOAD_SECONDS", 0.5)
    number = iter(range(100))

    def answer(line):
        time.sleep(0.2)
        return moved(f"/{next(number)}")

    with server(answer) as (port, asked, _):
        with pytest.raises(BadImageError, match="more than"):
            fetch_image(f"http://127.0.0.1:{port}/")
        assert len(asked) <= 3


def test_a_host_that_is_looked_up_for_ever(monkeypatch):
    monkeypatch.setattr(images_sugar, "DOWNLOAD_SECONDS", 0.1)
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: over.wait(5))
    with pytest.raises(BadImageError, match="more than"):
        fetch_image("http://example.org/a.png")
    over.set()


PRIVATE = ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]", "10.1.2.3", "192.168.0.1"]
PRIVATE += [
    "169.254.169.254",
    "100.64.0.1",
    "0.0.0.0",
    "[fe80::1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "224.0.0.1",
]


def test_a_redirect_does_not_lead_into_the_private_network(subtests):
    for host in PRIVATE:
        with subtests.test(host=f"{host!r:.60}"):
            asked_for = "127.0.0.1" if host == "localhost" else "localhost"
            target = f"http://{host}:{{port}}/secret"
            with server(lambda line, target=target: moved(target.format(port=port)) if "/a" in line else BODY) as (
                port,
                asked,
                _,
            ):
                with pytest.raises(
                    BadImageError, match=r"no address of the public internet; SUGAR_HF_URLS=any.*Download the"
                ):
                    fetch_image(f"http://{asked_for}:{port}/a")
                assert asked == ["GET /a HTTP/1.1"]


def test_a_redirect_to_the_host_that_was_asked_for(monkeypatch):
    with server(lambda line: moved("/b") if "/a" in line else BODY) as (port, asked, _):
        assert fetch_image(f"http://127.0.0.1:{port}/a") == b"imag"
        assert len(asked) == 2


def test_the_setting_of_the_environment(monkeypatch):
    with server(lambda line: moved(f"http://localhost:{port}/b") if "/a" in line else BODY) as (port, asked, _):
        for value, reason in (("none", "allows no download"), ("public", "no address of"), ("all", "is none of none")):
            monkeypatch.setenv(download_sugar.SETTING, value)
            with pytest.raises(BadImageError, match=reason):
                fetch_image(f"http://127.0.0.1:{port}/a")
        assert not asked
        monkeypatch.setenv(download_sugar.SETTING, "any")
        assert fetch_image(f"http://127.0.0.1:{port}/a") == b"imag"


def test_a_name_that_gets_another_address_between_look_and_connection(monkeypatch):
    monkeypatch.setenv(download_sugar.SETTING, "public")
    real, looks = socket.getaddrinfo, []

    def found(host, port, *args, **options):
        if host != "rebound.example":
            return real(host, port, *args, **options)
        looks.append(host)
        if len(looks) == 1:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 0))]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with server(BODY) as (port, asked, _):
        with pytest.raises(BadImageError, match=r"the host is 127\.0\.0\.1, no address of the public"):
            fetch_image(f"http://rebound.example:{port}/a")
        assert not asked


def test_a_proxy_is_used_and_reaches_no_private_network_for_us(monkeypatch):
    with server(BODY) as (port, asked, _):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        assert fetch_image("http://images.example/a") == b"imag"
        assert asked == ["GET http://images.example/a HTTP/1.1"]
        monkeypatch.setenv(download_sugar.SETTING, "public")
        with pytest.raises(BadImageError, match=r"10\.0\.0\.1, no address of the public internet"):
            fetch_image("http://10.0.0.1/a")
        assert len(asked) == 1
    monkeypatch.delenv(download_sugar.SETTING)
    monkeypatch.setattr(images_sugar, "DOWNLOAD_SECONDS", 0.3)
    with server(DRIPS["one header"], drips=True) as (port, *_):
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for scheme in ("http", "https"):
            with pytest.raises(BadImageError, match="more than"):
                fetch_image(f"{scheme}://images.example/a")
