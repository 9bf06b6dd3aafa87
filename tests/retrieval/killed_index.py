"""A write of an index, for tests that kill it: `python killed_index.py FOLDER NUMBER LOG`.

Writes are numbered, see `WRITES`. What is embedded is appended to LOG; everything is slow, so that a kill also comes
between two files.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from index_tools import FakeEmbedder, make

from sugar_hf.retrieval import SugarIndex

PAUSE = 0.02
PART = 4


def build(folder, embedder):
    SugarIndex.build(folder, map(make, range(24)), embedder, part_documents=PART, show_progress=False)


def add(first):
    def write(folder, embedder):
        documents = map(make, range(first, first + 20))
        SugarIndex.load(folder, embedder).add(documents, part_documents=PART, show_progress=False)

    return write


def delete(folder, embedder):
    SugarIndex.load(folder, embedder).delete([f"d{i}" for i in range(3, 9)])


def compact(folder, embedder):
    SugarIndex.load(folder, embedder).compact()


def update(folder, embedder):
    documents = [make(i, f"changed {i}") for i in range(100, 112)]
    SugarIndex.load(folder, embedder).update(documents, part_documents=PART, show_progress=False)


def rebuild(folder, embedder):
    SugarIndex.build(
        folder,
        map(make, range(300, 316)),
        embedder,
        overwrite=True,
        vectors="int8",
        part_documents=PART,
        show_progress=False,
    )


WRITES = (build, add(100), delete, update, compact, add(200), rebuild)


class SlowEmbedder(FakeEmbedder):
    def __init__(self, log):
        super().__init__()
        self.log = log

    def embed_documents(self, documents, **options):
        time.sleep(2 * PAUSE)
        with self.log.open("a") as file:
            file.write("".join(f"{document.id}\n" for document in documents))
        return super().embed_documents(documents, **options)


def slow(function):
    def call(*args, **kwargs):
        time.sleep(PAUSE)
        result = function(*args, **kwargs)
        time.sleep(PAUSE)
        return result

    return call


if __name__ == "__main__":
    folder, number, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    os.fsync, os.replace, os.unlink = slow(os.fsync), slow(os.replace), slow(os.unlink)
    print("begin", flush=True)
    WRITES[number](folder, SlowEmbedder(log))
    print("end", flush=True)
