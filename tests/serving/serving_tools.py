"""A server in a thread of this process, and what requests hold."""

import base64
import io
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import uvicorn
from openai import OpenAI

from sugar_hf.serving import create_app
from sugar_hf.serving.uvicorn_server import DrainingServer

MODEL = "mini-sugar"


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def address(image):
    """An image as a `data:` address."""
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def image_part(image):
    return {"type": "image_url", "image_url": {"url": address(image)}}


@dataclass
class Running:
    """A server in a thread of this process."""

    url: str
    engine: Any
    server: Any
    thread: threading.Thread
    http: httpx2.Client

    def post(self, path, **body):
        return self.http.post(path, json=body)

    def openai(self, key="none"):
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def figure(self, line):
        """The value of a line of /metrics; 0 if it is not there."""
        found = [row.split()[-1] for row in self.engine.metrics.text().decode().splitlines() if row.startswith(line)]
        return float(found[0]) if found else 0.0


@contextmanager
def running(engine, **options):
    app = create_app(engine, **options)
    # a configuration of logging closes the handlers of other libraries, of which absl's closes the captured stream
    limits = {"log_level": "critical", "log_config": None, "timeout_graceful_shutdown": 5}
    config = uvicorn.Config(app, "127.0.0.1", 0, **limits)
    server = DrainingServer(config, app.state.traffic, drain_seconds=20)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    url = f"http://{host}:{port}"
    with httpx2.Client(base_url=url, timeout=60) as http:
        try:
            yield Running(url, engine, server, thread, http)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
