"""A write that ends anywhere leaves the state before it or after it, and can be made again."""

import os
import shutil
import warnings

import pytest
from index_tools import DIM, FakeEmbedder, make, state, texts, vector

from sugar_hf.retrieval import DamagedIndexError, SugarIndex

PARTS = {"part_documents": 3, "show_progress": False}


class Killed(BaseException):
    """Nothing catches it."""


class Disk:
    """Lets the process die at one of the moments at which something reaches the disk, and stay dead."""

    def __init__(self, monkeypatch):
        self.calls = 0
        self.last = None
        for name in ("fsync", "replace", "link", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._dying(getattr(os, name)))

    def _dying(self, function):
        def call(*args, **kwargs):
            self.calls += 1
            if self.last is not None and self.calls > self.last:
                raise Killed
            return function(*args, **kwargs)

        return call

    def live(self, last=None):
        self.calls, self.last = 0, last


def add(index):
    index.add(map(make, range(10, 18)), **PARTS)


def update(index):
    index.add([make(2, "changed"), make(30)], on_duplicate="update", **PARTS)


def delete(index):
    index.delete(["d1", "d2", "d3", "d4"])


def compact(index):
    index.compact()


def build(index):
    SugarIndex.build(index.folder, map(make, range(40, 47)), index.embedder, overwrite=True, **PARTS)


@pytest.mark.parametrize("write", [add, update, delete, compact, build])
def test_a_write_killed_anywhere(tmp_path, monkeypatch, write):
    warnings.simplefilter("ignore")
    disk = Disk(monkeypatch)
    options = {"backend_options": {"kind": "hnsw", "m": 2, "ef_search": 1}, "vectors": "int8"}
    SugarIndex.build(tmp_path / "start", map(make, range(9)), FakeEmbedder(), **PARTS, **options).delete("d0")
    before = state(SugarIndex.load(tmp_path / "start"))
    folder = tmp_path / "index"

    def fresh():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "start", folder)
        return SugarIndex.load(folder, FakeEmbedder())

    index = fresh()
    disk.live()
    write(index)
    after, count = state(SugarIndex.load(folder)), disk.calls
    assert count > 4
    outcomes = []
    for moment in range(count):
        disk.live()
        index = fresh()
        disk.live(moment)
        with pytest.raises(Killed):
            write(index)
        disk.live()
        opened = SugarIndex.load(folder, FakeEmbedder())
        found = state(opened)
        assert found in (before, after), f"killed at {moment} of {count}"
        outcomes.append(found == after)
        for name, (slices, _) in found.items():
            assert opened.search(slices[-1], 1)[0].id == opened.search(slices[-1], 1, mode="text")[0].id == name
        # the process that failed, if it lived on, sees what is on the disk
        index.refresh()
        assert state(index) == found
        if found != after or write is compact:
            write(opened)
            opened.refresh()  # building makes an index of its own
            assert state(opened) == state(SugarIndex.load(folder)) == after
            assert len(opened.search("x", 50)) == len(after)
    assert outcomes == sorted(outcomes), "what counted once counts"


def test_parts_that_are_staged_are_not_embedded_again(tmp_path, monkeypatch):
    disk, embedder = Disk(monkeypatch), FakeEmbedder()
    index = SugarIndex.create(tmp_path / "i", embedder)
    disk.live()
    add(index)
    calls = disk.calls
    shutil.rmtree(tmp_path / "i")
    done = []
    for moment in range(0, calls, 3):
        disk.live()
        index = SugarIndex.create(tmp_path / "i", embedder)
        embedder.embedded.clear()
        disk.live(moment)
        with pytest.raises(Killed):
            add(index)
        disk.live()
        staged = len(list((tmp_path / "i" / "pending").glob("part-*.safetensors")))
        again = FakeEmbedder()
        index = SugarIndex.load(tmp_path / "i", again)
        if not len(index):
            add(index)
            assert again.embedded == [f"d{i}" for i in range(10 + min(8, 3 * staged), 18)]
        assert sorted(state(index)) == [f"d{i}" for i in range(10, 18)]
        with index.writer():
            assert not (tmp_path / "i" / "pending").exists()
        done.append(staged)
        shutil.rmtree(tmp_path / "i")
    assert max(done) == 3


def interrupted(index, documents):
    """Begin to add documents, with a fault in the last part."""
    with pytest.raises(ValueError, match="broken"):
        index.add([*documents, make(99, "BROKEN")], **PARTS)
    index.embedder.embedded.clear()


def test_parts_count_only_for_the_same_documents(tmp_path):
    embedder = FakeEmbedder()
    index = SugarIndex.create(tmp_path / "i", embedder)
    interrupted(index, map(make, range(6)))
    index.add([make(0), make(1), make(2), make(3, "changed"), make(4), make(5), make(6)], **PARTS)
    assert embedder.embedded == ["d3", "d4", "d5", "d6"]
    assert texts(index.get("d3"))[0] == "changed"
    assert len(index) == 7


def test_parts_of_fewer_documents_leave_nothing_behind(tmp_path):
    index = SugarIndex.create(tmp_path / "i", FakeEmbedder())
    interrupted(index, map(make, range(9)))
    index.add(map(make, range(3)), **PARTS)
    assert sorted(state(index)) == ["d0", "d1", "d2"]
    assert index.embedder.embedded == []


def test_deleting_in_between_keeps_the_parts(tmp_path):
    index = SugarIndex.create(tmp_path / "i", FakeEmbedder())
    index.add(map(make, range(20, 25)), **PARTS)
    interrupted(index, map(make, range(6)))
    index.delete("d20")
    index.add(map(make, range(6)), **PARTS)
    assert index.embedder.embedded == []
    assert len(index) == 10


def test_parts_of_another_write_or_model_do_not_count(tmp_path):
    folder = tmp_path / "i"
    index = SugarIndex.create(folder, FakeEmbedder())
    with index.writer("add_vectors") as writer:
        writer.pending.stage(0, [make(0)], [vector("elsewhere")])
    index.add([make(0)], **PARTS)
    assert index.embedder.embedded == ["d0"]
    with pytest.raises(ValueError, match="broken"):
        SugarIndex.build(folder, [*map(make, range(3)), make(9, "BROKEN")], FakeEmbedder(), overwrite=True, **PARTS)
    assert sorted(state(SugarIndex.load(folder))) == ["d0"]  # as before, until the new one is whole
    other = FakeEmbedder(weights="b")
    built = SugarIndex.build(folder, map(make, range(3)), other, overwrite=True, **PARTS)
    assert other.embedded == ["d0", "d1", "d2"]
    assert built.info()["documents"] == 3


def test_a_damaged_part_is_made_anew(tmp_path):
    index = SugarIndex.create(tmp_path / "i", FakeEmbedder())
    for suffix in (".safetensors", ".arrow"):
        interrupted(index, map(make, range(6)))
        path = (tmp_path / "i" / "pending" / "part-000000").with_suffix(suffix)
        data = bytearray(path.read_bytes())
        data[-30] ^= 255
        path.write_bytes(data)
        index.add(map(make, range(6)), **PARTS)
        assert index.embedder.embedded == ["d0", "d1", "d2"]
        assert len(index) == 6
        index = SugarIndex.create(tmp_path / "i", FakeEmbedder(), overwrite=True)


def test_other_processes_stage_parts(tmp_path):
    from sugar_hf.retrieval.store import PendingParts

    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    with pytest.raises(FileNotFoundError, match="not being written"):
        PendingParts.open(tmp_path / "i")
    with index.writer() as writer:
        _ = writer.pending
        for number in (1, 0):
            pending = PendingParts.open(tmp_path / "i")
            part = [make(2 * number), make(2 * number + 1)]
            assert not pending.holds(number, part)
            pending.stage(number, part, [vector(texts(document)[-1]) for document in part])
            assert pending.holds(number, part)
        report = writer.commit()
    assert report.added == 4
    assert [document.id for document in index] == ["d0", "d1", "d2", "d3"]
    with index.writer() as writer:
        writer.pending.stage(0, [make(7)], [vector("x")])
        with pytest.raises(DamagedIndexError, match="part 1 of the write is missing"):
            writer.commit(range(2))
    assert len(index) == 4
