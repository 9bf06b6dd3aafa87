"""Readers while one writes, and two who want to write."""

import os
import random
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from index_tools import FakeEmbedder, make, state, vector

from sugar_hf.retrieval import LockedIndexError, SugarIndex
from sugar_hf.retrieval.store import snapshot

QUIET = {"show_progress": False}
TESTS = Path(__file__).parents[1]


@pytest.fixture
def index(tmp_path):
    return SugarIndex.build(tmp_path / "index", map(make, range(8)), FakeEmbedder(), **QUIET)


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from sugar_hf.retrieval import SugarIndex
with SugarIndex.load(sys.argv[2]).writer():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_and_a_dead_one_forgotten(index):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(TESTS), str(index.folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    before = state(index)
    for write in (
        lambda: index.add([make(9)]),
        lambda: index.delete("d1"),
        index.compact,
        lambda: SugarIndex.build(index.folder, [make(1)], FakeEmbedder(), overwrite=True),
    ):
        with pytest.raises(LockedIndexError, match=rf"process {process.pid} on .* Wait until it is done"):
            write()
    assert state(SugarIndex.load(index.folder)) == before
    process.send_signal(signal.SIGKILL)
    process.communicate()
    index.delete("d1")
    assert len(index) == 7


def test_two_writers_in_one_process(index):
    other = SugarIndex.load(index.folder, FakeEmbedder())
    with index.writer(), pytest.raises(LockedIndexError, match=f"process {os.getpid()}"):
        other.delete("d1")
    other.delete("d1")
    index.delete("d2")  # begins with what the other wrote
    index.add([make(9)], **QUIET)
    other.refresh()
    assert sorted(state(other)) == sorted(state(index)) == ["d0", "d3", "d4", "d5", "d6", "d7", "d9"]


def test_a_reader_keeps_its_state_until_it_asks_for_a_newer_one(index):
    reader = SugarIndex.load(index.folder, FakeEmbedder())
    before = state(reader)
    for number in range(20, 26):
        index.add([make(number)], **QUIET)
        index.delete(f"d{number - 20}")
        index.compact()
    assert state(reader) == before  # though its files have no names any more
    assert reader.search("document 3, third", 1)[0].id == "d3"
    assert reader.refresh()
    assert state(reader) == state(index)
    assert reader.search("document 25, third", 1)[0].id == "d25"
    assert not reader.refresh()


@pytest.mark.filterwarnings("ignore:.*deleted and still take space")
def test_files_of_old_generations_go(index):
    for number in range(20, 30):
        index.add([make(number)], **QUIET)
        index.delete(f"d{number}")
    index.compact()
    index.compact()
    names = {path.relative_to(index.folder).as_posix() for path in index.folder.rglob("*") if path.is_file()}
    generation = index.info()["generation"]
    manifests = {f"manifest-{number:06d}.json" for number in (generation - 1, generation)}
    files = {name for name in names if name.startswith("segments/")}
    assert names - files == {"CURRENT", "LOCK", "LOCK.owner", *manifests}
    assert len(files) == 6


def test_a_reader_that_loses_a_race_reads_again(index, monkeypatch):
    read_current, left = snapshot.read_current, [3]

    def slow(folder):
        manifest = read_current(folder)
        if left[0]:
            monkeypatch.setattr(snapshot, "read_current", read_current)
            left[0] -= 1
            index.compact()
            index.compact()  # by now what was read is gone
            monkeypatch.setattr(snapshot, "read_current", slow)
        return manifest

    expected = state(index)
    monkeypatch.setattr(snapshot, "read_current", slow)
    assert state(SugarIndex.load(index.folder)) == expected
    assert left == [0]


@pytest.mark.filterwarnings("ignore:.*deleted and still take space")
def test_readers_in_threads_see_whole_states(index):
    """Each write moves all documents to a new year, so that a mixture shows itself."""
    stop = threading.Event()

    def read(opened, is_own):
        while not stop.is_set():
            if is_own:
                opened.refresh()
            years = {document.metadata["year"] for document in opened}
            found = opened.search("query", 20)
            years_found = {hit.metadata["year"] for hit in found}
            assert len(years) == len(years_found) == 1
            assert len(found) == 5

    index.update([make(i, year=0) for i in range(8)], **QUIET)
    index.delete(["d5", "d6", "d7"])
    other = SugarIndex.load(index.folder, FakeEmbedder())
    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read, index, False), pool.submit(read, other, True)]
        try:
            for year in range(1, 13):
                index.update([make(i, f"year {year} {i}", year=year) for i in range(5)], **QUIET)
                if year % 3 == 0:
                    index.compact()
        finally:
            stop.set()
        for reader in readers:
            reader.result()  # raises what it raised


READ = """
import random, sys
sys.path.insert(0, sys.argv[1])
from index_tools import FakeEmbedder
from sugar_hf.retrieval import SugarIndex
draw = random.Random(int(sys.argv[3]))
seen = set()
print("ready", flush=True)
while 12 not in seen:
    index = SugarIndex.load(sys.argv[2], FakeEmbedder(), verify=draw.random() < 0.5)
    years = {document.metadata["year"] for document in index}
    hits = index.search("query", 20)
    assert len(years) == 1 and {hit.metadata["year"] for hit in hits} == years and len(hits) == 5, (years, hits)
    seen |= years
print(len(seen))
"""


@pytest.mark.filterwarnings("ignore:.*deleted and still take space")
def test_a_reading_process_sees_whole_states(tmp_path):
    index = SugarIndex.build(tmp_path / "i", [make(i, year=0) for i in range(5)], FakeEmbedder(), **QUIET)
    process = subprocess.Popen(
        [sys.executable, "-c", READ, str(TESTS), str(index.folder), "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    draw = random.Random(1)
    for year in range(1, 13):
        index.update([make(i, f"year {year} {i}", year=year) for i in range(5)], **QUIET)
        if draw.random() < 0.3:
            index.compact()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert int(out) > 1
    assert vector("query").shape == (16,)
