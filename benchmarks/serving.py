"""Requests a second and latency of the server, beside calls of the embedder itself, in one run.

    python benchmarks/serving.py --json serving.json               # the mini model; minutes on 2 quiet cores
    python benchmarks/serving.py --size 0.5b --dtype bfloat16      # random weights, the size of a small real model
    python benchmarks/serving.py --quick                           # to see that it runs

The server is a process of its own, on the model that this process calls directly, with as many threads. Clients send
one request after the other over connections of their own, written as bytes beforehand, so that they take little of the
machine. Embeddings are measured with batches (`batched`) and with one input in a batch (`alone`), answers with a fixed
number of tokens. The ways take turns, over and over. Before each, what was warmed up stays warm.

`embed_batched_over_single`: requests a second of 32 clients, over those of one client, who sends one by one.
`embed_batched_over_alone`: the same, over 32 clients whose requests are embedded one by one.
`overhead_over_direct`: the median time of a request of one client, over that of a direct call, by rounds.
`overhead_over_direct_p10`: the same of the fastest tenth, which other work on the machine disturbs least.
`chat_p95`: seconds, of 8 clients.
"""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import uvicorn
from rag_models import random_sugar

from sugar_hf import SugarEmbedder, picturebook
from sugar_hf.serving import Engine, ServingOptions, create_app

CLIENTS = (1, 8, 32)
TARGETS = {"embed_batched_over_single": 6.0, "overhead_over_direct": 1.2}
WORDS = ("a", "small", "red", "cat", "sits", "beside", "two", "dogs", "on", "blue", "snow", "while", "it", "rains")
QUEUE = 64


def make_embedder(size: str, dtype: str) -> SugarEmbedder:
    """The mini model, or one with random weights."""
    if size == "mini":
        embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"))
    else:
        embedder = SugarEmbedder(*random_sugar(size))
    embedder.model.vlm.to(getattr(torch, dtype))
    embedder.model.config.dtype = getattr(torch, dtype)
    return embedder


def make_texts(words: int) -> list[str]:
    """Texts of as many words each, none twice."""
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, words)) for _ in range(256)]


# ---- The server ----


def serve(size: str, dtype: str, threads: int) -> None:
    """Serve with batches and without, print where, and end with the standard input."""
    torch.set_num_threads(threads)
    embedder = make_embedder(size, dtype)
    servers, urls = [], []
    for options in ({}, {"batch_tokens": 1, "batch_wait": 0.0}):
        engine = Engine(embedder, options=ServingOptions(most_generations_waiting=QUEUE, **options))
        server = uvicorn.Server(uvicorn.Config(create_app(engine), "127.0.0.1", 0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        servers.append((server, thread))
        urls.append(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    print(json.dumps(urls), flush=True)
    sys.stdin.read()
    for server, thread in servers:
        server.should_exit = True
        thread.join()


# ---- Clients ----


async def client(url: str, requests: list[bytes], seconds: list[float]) -> None:
    """Send requests one after the other over one connection, and note how long each takes."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    for request in requests:
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - began)
    writer.close()


def load(url: str, path: str, bodies: list[dict[str, Any]], clients: int) -> tuple[float, list[float]]:
    """Let clients share requests; returns the seconds of all, and of each."""
    requests = []
    for body in bodies:
        content = json.dumps(body).encode()
        head = [
            f"POST {path} HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
        ]
        requests.append("\r\n".join([*head, "", ""]).encode() + content)
    seconds: list[float] = []

    async def run() -> None:
        await asyncio.gather(*(client(url, requests[at::clients], seconds) for at in range(clients)))

    began = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - began, seconds


# ---- Measuring ----


def measure(
    size: str, dtype: str, threads: int, words: int, rounds: int, each: int, new_tokens: int
) -> dict[str, Any]:
    """Measure everything; see above."""
    torch.set_num_threads(threads)
    embedder = make_embedder(size, dtype)
    texts = make_texts(words)
    command = [sys.executable, __file__, "--serve", "--size", size, "--dtype", dtype, "--threads", str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        try:
            batched, alone = json.loads(server.stdout.readline())  # type: ignore[union-attr]
            embed = [{"input": text, "encoding_format": "base64"} for text in texts]
            question = {
                "messages": [{"role": "user", "content": texts[0]}],
                "max_tokens": new_tokens,
                "temperature": 0,
            }
            ways: dict[str, tuple[str, str, Any]] = {
                "batched": (batched, "/v1/embeddings", lambda count: [embed[at % 256] for at in range(count)]),
                "alone": (alone, "/v1/embeddings", lambda count: [embed[at % 256] for at in range(count)]),
                "chat": (batched, "/v1/chat/completions", lambda count: [question] * count),
            }
            times: dict[str, dict[int, list[float]]] = {way: {n: [] for n in CLIENTS} for way in ways}
            rates: dict[str, dict[int, list[float]]] = {way: {n: [] for n in CLIENTS} for way in ways}
            direct: list[float] = []
            overheads: list[float] = []
            for number in range(rounds + 1):
                called = []
                for text in texts[:each]:
                    began = time.perf_counter()
                    embedder.encode([text], show_progress=False)
                    called.append(time.perf_counter() - began)
                for way, (url, path, bodies) in ways.items():
                    for clients in CLIENTS:
                        count = each * max(1, clients // 2) if way == "batched" else max(each, clients)
                        wall, seconds = load(url, path, bodies(count), clients)
                        if number:  # the first round warms up
                            times[way][clients] += seconds
                            rates[way][clients].append(count / wall)
                            if (way, clients) == ("batched", 1):
                                overheads.append(median(seconds) / median(called))
                direct += called if number else []
        finally:
            server.stdin.close()  # type: ignore[union-attr]
    figures = {
        way: {
            str(n): {
                "requests_per_second": median(rates[way][n]),
                "p50": float(np.percentile(times[way][n], 50)),
                "p95": float(np.percentile(times[way][n], 95)),
            }
            for n in CLIENTS
        }
        for way in ways
    }
    over = [many / one for many, one in zip(rates["batched"][32], rates["batched"][1], strict=True)]
    beside = [many / one for many, one in zip(rates["batched"][32], rates["alone"][32], strict=True)]
    return {
        "embed_batched_over_single": round(median(over), 2),
        "embed_batched_over_alone": round(median(beside), 2),
        "overhead_over_direct": round(median(overheads), 3),
        "overhead_over_direct_p10": round(
            float(np.percentile(times["batched"][1], 10) / np.percentile(direct, 10)), 3
        ),
        "chat_p95": round(figures["chat"]["8"]["p95"], 4),
        "targets": TARGETS,
        "direct_p50": median(direct),
        "figures": figures,
        "settings": {
            "size": size,
            "dtype": dtype,
            "parameters": embedder.model.num_parameters(),
            "threads": threads,
            "words": words,
            "tokens": len(embedder.processor([texts[0]])["input_ids"][0]),
            "new_tokens": new_tokens,
            "rounds": rounds,
            "load_average": os.getloadavg()[0],
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}",
        },
    }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| | clients | requests a second | p50, ms | p95, ms |", "|---|---|---|---|---|"]
    lines.append(f"| direct call | | | {1000 * found['direct_p50']:.1f} | |")
    for way, rows in found["figures"].items():
        for clients, row in rows.items():
            cells = [row["requests_per_second"], 1000 * row["p50"], 1000 * row["p95"]]
            lines.append(f"| {way} | {clients} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("mini", "small", "0.5b"), default="mini")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--threads", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="of torch, in each process"
    )
    parser.add_argument("--words", type=int, default=8, help="of a text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--each", type=int, default=40, help="requests of one client in a round")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--quick", action="store_true", help="one small round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):  # what torch reads once, at the start
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    if options.serve:
        serve(options.size, options.dtype, options.threads)
        return
    rounds, each = (1, 8) if options.quick else (options.rounds, options.each)
    found = measure(options.size, options.dtype, options.threads, options.words, rounds, each, options.new_tokens)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    print(json.dumps({key: value for key, value in found.items() if key not in ("figures", "settings")}, indent=1))


if __name__ == "__main__":
    main()
