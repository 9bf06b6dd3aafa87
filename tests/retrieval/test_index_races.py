"""Two writes land between any two steps of a reader. No step is left to luck: each is tried in turn."""

import shutil
from dataclasses import replace

import faiss
import pytest
from index_tools import FakeEmbedder, make, state

from sugar_hf.retrieval import DamagedIndexError, LockedIndexError, SugarIndex
from sugar_hf.retrieval.index_hub import export
from sugar_hf.retrieval.store import layout, read_current, read_settled, snapshot, write_current
from sugar_hf.retrieval.store.backends import faiss_backend

QUIET = {"show_progress": False}
GRAPH = {"backend_options": {"kind": "hnsw", "m": 2, "ef_search": 1}}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "index"
    SugarIndex.build(folder, map(make, range(12)), FakeEmbedder(), **GRAPH, **QUIET).delete("d0")
    return folder


class Steps:
    """Counts what a reader does with the disk, and lets something happen before one of these steps."""

    def __init__(self, monkeypatch):
        self.count, self.at, self.event = 0, None, None
        self.inside = False
        for place in (
            (snapshot, "_current_bytes"),
            (snapshot, "read_current"),
            (layout, "inside"),
            (layout, "map_table"),
            (layout, "open_tensors"),
            (layout.pa, "memory_map"),
            (layout, "safe_open"),
            (faiss_backend, "_check_graph"),
            (faiss, "read_index"),
            (layout.hashlib, "file_digest"),
        ):
            monkeypatch.setattr(*place, self._counted(getattr(*place)))

    def _counted(self, function):
        def call(*args, **kwargs):
            if not self.inside:
                self.count += 1
                if self.count == self.at:
                    self.inside = True
                    self.event()
                    self.inside = False
            return function(*args, **kwargs)

        return call

    def run(self, read, at, event):
        self.count, self.at, self.event = 0, at, event
        try:
            return read()
        finally:
            self.at = None


def load(folder, opened):
    return SugarIndex.load(folder)


def load_sizes_only(folder, opened):
    return SugarIndex.load(folder, verify=False)


def refresh(folder, opened):
    opened.refresh()
    return opened


READS = [load, load_sizes_only, refresh]


@pytest.mark.filterwarnings("ignore:.*deleted and still take space")
@pytest.mark.parametrize("read", READS)
def test_writes_between_any_two_steps_of_a_reader(start, tmp_path, monkeypatch, read):
    steps = Steps(monkeypatch)
    at, found = 1, set()
    while True:
        folder = tmp_path / str(at)
        shutil.copytree(start, folder)
        opened = SugarIndex.load(folder)
        writer = SugarIndex.load(folder, FakeEmbedder())
        writer.compact()  # a reader has all to read anew
        happened = []

        def two_writes(writer=writer, happened=happened):
            writer.compact()
            writer.add([make(90)], **QUIET)
            writer.compact()
            happened.append(True)

        result = steps.run(lambda opened=opened, folder=folder: read(folder, opened), at, two_writes)
        found.add("d90" in state(result))
        assert state(result).keys() - {"d90"} == {f"d{i}" for i in range(1, 12)}
        assert len(result.search_vectors(writer.store.snapshot.vectors([0]), 3)[0]) == 3
        shutil.rmtree(folder)
        if not happened:
            break
        at += 1
    assert at > 8
    assert True in found


def test_an_export_takes_what_is_there_when_files_go(start, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(start, folder)
    index, other = SugarIndex.load(folder, FakeEmbedder()), SugarIndex.load(folder)
    for _ in range(3):
        other.compact()
    with pytest.raises(DamagedIndexError, match="missing"):
        export(index.store, tmp_path / "old", "me/x")  # what was opened has no files any more
    from sugar_hf.retrieval import index_hub as hub

    # the next write lands after the export has begun
    first = {"left": True}
    original = hub._copy

    def copy(source, target):
        if first.pop("left", False):
            other.compact()
            other.compact()
            source.unlink(missing_ok=True)
        original(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "_copy", copy)
        made = read_settled(folder, lambda: hub._export_current(index.store, tmp_path / "place", "me/x", "", None))
    assert state(SugarIndex.load(made)).keys() == {f"d{i}" for i in range(1, 12)}


def test_a_folder_that_never_rests_is_said_to_be_so(start, tmp_path, monkeypatch):
    folder = tmp_path / "index"
    shutil.copytree(start, folder)
    current = read_current(folder)

    def read(folder):
        write_current(folder, replace(current, generation=read_current(folder).generation + 1))
        raise RuntimeError("a library's own word for a file that is gone")

    monkeypatch.setattr(snapshot, "read_current", read)
    with pytest.raises(LockedIndexError, match="written faster than it can be read"):
        SugarIndex.load(folder)


@pytest.mark.parametrize("error", [RuntimeError("faiss"), OSError("arrow"), ValueError("x"), KeyError("y")])
def test_an_error_while_nothing_is_written_is_told(start, monkeypatch, error):
    calls = []

    def fail(folder):
        calls.append(folder)
        raise error

    monkeypatch.setattr(snapshot, "read_current", fail)
    with pytest.raises(type(error)):
        SugarIndex.load(start)
    assert len(calls) == 1
