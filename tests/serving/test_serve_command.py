"""`sugar-hf serve`, in a process of its own: how it starts, ends, and comes back after a kill."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import contextmanager

import httpx2
import numpy as np
import pytest

from sugar_cli import main
from sugar_hf import SugarIndex, picturebook

QUERY = "a small snowflake in the centre."


@contextmanager
def serving(*options, **environment):
    """The process, a client of it, and what it says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-m", "sugar_cli", "serve", *map(str, options), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    said = []
    found = None
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"running on (http://[\d.]+:\d+)", line):
            break
    assert found, "".join(said)
    reader = threading.Thread(target=lambda: said.extend(process.stderr))  # so that its pipe is never full
    reader.start()
    try:
        with httpx2.Client(base_url=found[1], timeout=60) as http:
            yield process, http, said
    finally:
        process.kill()
        process.wait(30)
        reader.join(30)
        process.stderr.close()


def test_it_serves_until_it_is_told_to_end(stories):
    with serving("--index", stories, SUGAR_API_KEY="sesame") as (process, http, said):
        assert http.get("/ready").json() == {"status": "ready"}
        assert http.get("/v1/models").status_code == 401
        [model] = http.get("/v1/models", headers={"Authorization": "Bearer sesame"}).json()["data"]
        assert (model["id"], model["documents"]) == ("mini-sugar", 24)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert f"model mini-sugar, index {stories}: the search page is at /\n" in said
    assert "Traceback" not in "".join(said)


@pytest.fixture
def command(capfd, monkeypatch):
    """Runs the command in this process up to where it would serve; gives the exit code, what it says, and the call."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    calls = []
    monkeypatch.setattr("sugar_hf.serving.run_server", lambda *given, **options: calls.append((*given, options)))

    def run(*options):
        with pytest.raises(SystemExit) as ended:
            main(["serve", *map(str, options)])
        for app, *_ in calls:
            app.state.engine.stop()
        return ended.value.code, capfd.readouterr().err, calls

    return run


def test_an_open_server_without_a_key_is_warned_of(command, monkeypatch):
    monkeypatch.delenv("SUGAR_API_KEY", raising=False)
    for options, is_warned in (
        (["--host", "0.0.0.0"], True),
        (["--host", "0.0.0.0", "--api-key", "k"], False),
        ([], False),
    ):
        code, said, calls = command(picturebook.checkpoint("mini-sugar"), *options)
        assert code == 0
        assert ("Warning: everybody who reaches 0.0.0.0 may ask this server" in said) == is_warned
    assert [call[1:3] for call in calls] == [("0.0.0.0", 8000), ("0.0.0.0", 8000), ("127.0.0.1", 8000)]


def test_options_reach_the_server(command, stories, monkeypatch):
    monkeypatch.setenv("SUGAR_HF_URLS", "none")  # which stays, whatever the option says
    _, _, [(app, _, port, options)] = command(
        *(
            "--index",
            stories,
            "--name",
            "toy",
            "--port",
            "9",
            "--max-body-mib",
            "2",
            "--max-pixels",
            "10",
            "--queue",
            "3",
        ),
        *("--dimensions", "32", "--dimensions", "64", "--batch-wait-ms", "1.5", "--drain-seconds", "7"),
        *("--template", "{documents} {question}", "--top-k", "2", "--max-new-tokens", "5", "--allow-urls"),
    )
    engine = app.state.engine
    assert (engine.name, port, options["drain_seconds"]) == ("toy", 9, 7)
    assert (engine.limits.body_bytes, engine.limits.pixels, engine.limits.new_tokens) == (2 * 2**20, 10, 5)
    assert engine.limits.allow_urls
    assert os.environ["SUGAR_HF_URLS"] == "none"
    assert (engine.options.dimensions, engine.options.batch_wait) == ((32, 64), 0.0015)
    assert (engine.options.most_generations_waiting, engine.options.top_k) == (3, 2)
    assert engine.options.template.text == "{documents} {question}"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--template", "x"], 2, "give documents-first"),
        (["--api-key", ""], 2, "the key is empty"),
        (["--generate-with", "base", "--model"], 2, "No such option"),
        (["nowhere/at/all"], 1, "nowhere/at/all"),
        (["--index", "nowhere.index"], 1, "nowhere.index"),
    ],
)
def test_wrong_commands(command, options, code, message):
    found, said, _ = command(*options)
    assert found == code
    assert message in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_server_that_is_killed_comes_back(mini, stories, tmp_path):
    """While another process writes to the index it reads."""
    folder = tmp_path / "written.index"
    shutil.copytree(stories, folder)
    expected = SugarIndex.load(folder, mini).search(QUERY, 5)
    for round_number in range(3):
        with serving("--index", folder, "--refresh-seconds", "0.1") as (process, http, _):
            found = http.post("/v1/search", json={"query": QUERY, "top_k": 5}).json()["data"]
            assert [hit["id"] for hit in found] == [hit.id for hit in expected]
            np.testing.assert_allclose([hit["score"] for hit in found], [hit.score for hit in expected], atol=1e-6)
            stop = threading.Event()

            def ask(stop=stop, url=http.base_url):
                with httpx2.Client(base_url=url, timeout=60) as client:
                    while not stop.is_set():
                        try:
                            client.post("/v1/search", json={"query": QUERY})
                        except httpx2.TransportError:
                            return

            clients = [threading.Thread(target=ask) for _ in range(4)]
            for client in clients:
                client.start()
            text = f"on a purple background there is a very special thing number {round_number}."
            SugarIndex.load(folder, mini).add([{"id": f"new{round_number}", "text": text}], show_progress=False)
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
            stop.set()
            for client in clients:
                client.join(30)
        assert len(SugarIndex.load(folder)) == 24 + round_number + 1
        expected = SugarIndex.load(folder, mini).search(QUERY, 5)
