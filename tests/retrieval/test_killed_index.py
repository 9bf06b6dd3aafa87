"""Writes that are killed at random moments: the state before or after them, and no work twice. Real `kill -9`."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from index_tools import FakeEmbedder, make, state, texts

from sugar_hf.retrieval import DamagedIndexError, SugarIndex
from sugar_hf.retrieval.store import PendingParts

SCRIPT = Path(__file__).with_name("killed_index.py")
KILLS = 30

pytestmark = pytest.mark.slow


def documents(numbers, text=None):
    made = [make(i, text and f"{text} {i}") for i in numbers]
    return {document.id: (texts(document), document.metadata) for document in made}


FIRST = documents(range(24))
ADDED = FIRST | documents(range(100, 120))
DELETED = {name: value for name, value in ADDED.items() if name not in {f"d{i}" for i in range(3, 9)}}
UPDATED = DELETED | documents(range(100, 112), "changed")
AGAIN = UPDATED | documents(range(200, 220))
STATES = ({}, FIRST, ADDED, DELETED, UPDATED, UPDATED, AGAIN, documents(range(300, 316)))


def start(folder, number, log):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(number), str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout.readline() == "begin\n", process.communicate()[1][-4000:]
    return process


def staged(folder):
    """Ids of the documents in parts that are whole."""
    try:
        pending = PendingParts.open(folder)
        return {name for number in pending.numbers() for name in pending.read(number).ids}
    except (FileNotFoundError, DamagedIndexError):
        return set()


def check(folder, *expected):
    """Open what was left, check all of it, and return which of the states it is."""
    if not (folder / "CURRENT").exists():
        assert expected[0] == {}
        return 0
    index = SugarIndex.load(folder, FakeEmbedder())
    found = state(index)
    assert found in expected
    assert len(index.search("x", 100)) == len(found)
    for name in random.Random(len(found)).sample(sorted(found), min(5, len(found))):
        assert index.search(found[name][0][-1], 1)[0].id == name
    return max(i for i, value in enumerate(expected) if value == found)


def test_thirty_kills(tmp_path):
    draw = random.Random(11)
    folder, log = tmp_path / "index", tmp_path / "log"
    kills = resumed = counted = 0
    while kills < KILLS:
        if folder.exists():
            subprocess.run(["rm", "-r", str(folder)], check=True)
        for number, (before, after) in enumerate(itertools.pairwise(STATES)):
            tries = draw.randint(1, 4)
            while True:
                parts = staged(folder) if folder.exists() else set()
                log.write_text("")
                process = start(folder, number, log)
                if tries and number != 4:
                    time.sleep(draw.uniform(0, 0.4 if number == 2 else 1.6))
                elif tries:
                    time.sleep(draw.uniform(0, 0.5))
                else:
                    process.wait(timeout=60)
                process.send_signal(signal.SIGKILL)
                _, err = process.communicate()
                assert process.returncode in (0, -signal.SIGKILL), err[-4000:]
                embedded = set(log.read_text().split())
                assert not embedded & parts, "what was staged was embedded again"
                assert len(embedded) == len(log.read_text().split())
                resumed += bool(parts)
                is_done = check(folder, before, after)
                if process.returncode == 0:
                    assert is_done
                    break
                kills += 1
                tries -= 1
                counted += is_done
                if is_done and number != 4:
                    break
        with SugarIndex.load(folder, FakeEmbedder()).writer():
            assert not staged(folder)  # what a kill left between commit and cleaning is gone with the next write
    assert resumed >= 5, f"only {resumed} writes went on from staged parts"
