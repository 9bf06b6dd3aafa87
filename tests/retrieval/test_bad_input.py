"""Bad input gets an error that names the remedy, or is used as the table in docs/bad_input.md states."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import bad_pair_cases  # noqa: F401 - its cases join those of the others
import bad_question_cases  # noqa: F401
import pytest
from bad_index_cases import unprivileged
from bad_input_cases import CASES, DOCUMENT, PNG, Place, render, replace
from builders import cached_sugar, picture

from sugar_hf.data import BadSampleError, SkippedRowsWarning
from sugar_hf.retrieval import SugarEmbedder, SugarIndex

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow only warns, we refuse

HOLD = (
    "import sys, filelock\nlock = filelock.FileLock(sys.argv[1])\nlock.acquire()\nprint('held', flush=True)\ninput()"
)


@contextmanager
def other_process_holds(lock):
    """Let another process hold a lock."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield
        finally:
            process.communicate("\n", timeout=60)


@pytest.fixture(scope="module")
def embedder():
    return SugarEmbedder(*cached_sugar("llava"))


@pytest.fixture(scope="module")
def built(embedder, tmp_path_factory):
    documents = [{"id": "one", "text": "a cat"}, {"id": "two", "document": [picture(0), "a dog"]}]
    folder = tmp_path_factory.mktemp("built") / "index"
    documents += [{"id": f"gone {i}", "text": f"a fish {i}"} for i in range(4)]
    graph = {"kind": "hnsw", "m": 2, "ef_search": 1}  # small enough to be made of six vectors
    index = SugarIndex.build(folder, documents, embedder, backend_options=graph, show_progress=False)
    with pytest.warns(UserWarning, match="67% of the documents"):
        index.delete([f"gone {i}" for i in range(4)])  # so that there is a file of what is deleted
    return folder


@pytest.fixture(scope="module")
def web():
    """A web server on this machine. Yields its address and what it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PNG)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def places(embedder, built, web):
    """Make places of their own, one for each case."""

    @contextmanager
    def new_place():
        folder = Path(tempfile.mkdtemp())  # not tmp_path, into which only its owner may look
        folder.chmod(0o755)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("no_proxy", "*")
            place = Place(folder, built, embedder, monkeypatch)
            place.on_error = "raise"
            place.address, place.asked = web
            place.other_process_writes = lambda: other_process_holds(place.index_folder / "LOCK")
            yield place
        shutil.rmtree(folder)
        assert place.asked == [], "something was fetched"

    return new_place


@pytest.fixture
def place(places):
    with places() as place:
        yield place


REFUSED = [case for case in CASES if case.error is not None]
USED = [case for case in CASES if case.error is None]


def ids(index):
    return [document.id for document in index]


def test_refused(places, subtests):
    """The error names sample and field, the index is as it was and can be written, and what is bad can be skipped."""
    for case in REFUSED:
        with subtests.test(case=case.name), places() as place:
            check_refused(case, place)


def check_refused(case, place):
    with pytest.raises(case.error, match=re.escape(case.says)) as caught:
        case.act(place)
    names = case.act.__code__.co_names
    is_skippable = "on_error" in names
    if case.error is BadSampleError and is_skippable:
        assert caught.value.sample == "bad"
        assert caught.value.field
        assert "sample 'bad'" in str(caught.value)
    is_write = case.group in ("Images", "Texts and documents", "Ids and metadata", "Writing")
    if not (is_write or is_skippable or (case.group == "Vectors" and "add" in names)):
        return
    place.monkeypatch.undo()
    index = SugarIndex.load(place.index_folder, SugarEmbedder(*cached_sugar("llava")))
    assert ids(index) == ["one", "two"]
    if is_skippable:
        place.on_error = "skip"
        with pytest.warns(SkippedRowsWarning, match=rf"(?s)1 documents were left out.*'bad'.*{re.escape(case.says)}"):
            case.act(place)
    else:
        index.add([{"id": "good", "text": "a bird"}], show_progress=False)
    assert ids(place.index()) == ["one", "two", "good"]


def test_used(places, subtests):
    for case in USED:
        with subtests.test(case=case.name), places() as place:
            case.act(place)


def test_the_table_in_the_documentation_is_that_of_the_cases(request):
    table = render()
    if request.config.getoption("--update-bad-input"):
        DOCUMENT.write_text(replace(DOCUMENT.read_text(encoding="utf-8"), table), encoding="utf-8")
    written = DOCUMENT.read_text(encoding="utf-8")
    assert table in written, "write it anew: python -m pytest tests/retrieval/test_bad_input.py --update-bad-input"
    assert len({case.name for case in CASES}) == len(CASES)


def test_unprivileged_takes_the_right_to_write(place):
    with unprivileged(place.index_folder), pytest.raises(PermissionError):
        (place.index_folder / "CURRENT").write_bytes(b"")
    assert os.access(place.index_folder / "CURRENT", os.W_OK)
