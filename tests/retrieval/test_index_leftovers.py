"""What only saves work never stops a write, and what comes after a write counts does not undo its word."""

import errno
import json
import os
import random
import shutil

import faiss
import numpy as np
import pytest
from index_tools import DIM, FakeEmbedder, make, state
from safetensors import SafetensorError

from sugar_hf.retrieval import LockedIndexError, SugarIndex, index_hub
from sugar_hf.retrieval.index import index_spec
from sugar_hf.retrieval.store import index_writer, layout, read_current
from sugar_hf.retrieval.store.backends.milvus_backend import MilvusOptions, public_address

PARTS = {"part_documents": 3, "show_progress": False}
QUIET = {"show_progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:.*deleted and still take space")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """An index, and two parts of a write that was stopped."""
    index = SugarIndex.build(tmp_path_factory.mktemp("i") / "index", [make(90)], FakeEmbedder(), **QUIET)
    with pytest.raises(ValueError, match="broken"):
        index.add([*map(make, range(6)), make(99, "BROKEN")], **PARTS)
    assert len(list((index.folder / "pending").glob("part-*"))) == 4
    return index.folder


@pytest.fixture
def folder(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "index")
    return tmp_path / "index"


# ---- pending/


def goes_on(folder):
    """The same write works at once, whatever lies there. Returns which documents were embedded."""
    index = SugarIndex.load(folder, FakeEmbedder())
    index.add(map(make, range(6)), **PARTS)
    assert state(SugarIndex.load(folder)).keys() == {"d90", *(f"d{i}" for i in range(6))}
    for i in range(6):
        assert index.search(f"document {i}, third", 1)[0].id == f"d{i}"
    return index.embedder.embedded


def test_sound_parts_are_used(folder):
    assert goes_on(folder) == []


PLANS = [
    b"",
    b"[]",
    b"3",
    b"null",
    b'"x"',
    b"{}",
    b"\xff\xfe",
    b"[" * 100_000,
    {"head": None},
    {"head": []},
    {"head": {}},
    {"base": "0"},
    {"kind": None},
    {"write": None},
    {"write": 3},
    {"write": ""},
    {"uid": []},
]
HEADS = [
    {"fingerprint": 3},
    {"fingerprint": {}},
    {"settings": []},
    {"dim": "16"},
    {"positions": None},
    {"dim": 10**400},
]


@pytest.mark.parametrize("plan", [*PLANS, *({"head": head} for head in HEADS)])
def test_an_odd_plan_is_none(folder, plan):
    path = folder / "pending" / "plan.json"
    if isinstance(plan, dict):
        values = json.loads(path.read_bytes())
        head = {**values["head"], **plan["head"]} if plan.get("head") else plan.get("head", values["head"])
        plan = json.dumps({**values, **plan, "head": head}).encode()
    path.write_bytes(plan)
    SugarIndex.load(folder).compact()  # another write is not stopped, either
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plan)
    assert goes_on(folder) == [f"d{i}" for i in range(6)]


@pytest.mark.parametrize("key", ["kind", "uid", "base", "head", "write"])
def test_a_plan_without_something_is_none(folder, key):
    path = folder / "pending" / "plan.json"
    values = json.loads(path.read_bytes())
    del values[key]
    path.write_text(json.dumps(values))
    assert goes_on(folder) == [f"d{i}" for i in range(6)]


@pytest.mark.parametrize("key", ["fingerprint", "dim", "settings", "vectors"])
def test_a_plan_of_an_odd_head_is_none(folder, key):
    path = folder / "pending" / "plan.json"
    values = json.loads(path.read_bytes())
    del values["head"][key]
    path.write_text(json.dumps(values))
    assert goes_on(folder) == [f"d{i}" for i in range(6)]


def test_a_damaged_part_is_embedded_again_wherever_it_is_damaged(stopped, folder):
    for name in ("part-000000.safetensors", "part-000000.arrow"):
        data, draw = (stopped / "pending" / name).read_bytes(), random.Random(name)
        places = [0, 8, *(draw.randrange(len(data)) for _ in range(10))]
        for place in places:
            shutil.rmtree(folder)
            shutil.copytree(stopped, folder)
            changed = bytearray(data)
            changed[place] ^= 1 << draw.randrange(8)
            (folder / "pending" / name).write_bytes(changed)
            assert goes_on(folder) in ([], ["d0", "d1", "d2"])
        for cut in (0, 8, len(data) // 2):
            shutil.rmtree(folder)
            shutil.copytree(stopped, folder)
            (folder / "pending" / name).write_bytes(data[:cut])
            assert goes_on(folder) == ["d0", "d1", "d2"]


@pytest.mark.parametrize("key", ["key", "texts", "texts_size", "skipped", "write", "digest"])
def test_a_part_whose_header_lacks_something_is_embedded_again(folder, key):
    path = folder / "pending" / "part-000000.safetensors"
    with layout.open_tensors(path) as file:
        header = {name: value for name, value in file.metadata().items() if name != key}
        tensors = {name: file.get_tensor(name) for name in ("vectors", "document", "slice")}
    index_writer.write_tensors(path, tensors, header)
    assert goes_on(folder) == ["d0", "d1", "d2"]


def test_what_is_no_file_or_leads_elsewhere_is_no_part(folder, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("keep")
    for name in ("part-000000.safetensors", "part-000001.arrow"):
        (folder / "pending" / name).unlink()
        (folder / "pending" / name).mkdir()
    assert goes_on(folder) == [f"d{i}" for i in range(6)]
    for make_odd in (
        lambda path: path.write_text("x"),
        lambda path: path.symlink_to(tmp_path / "precious"),
        lambda path: (path.mkdir(), (path / "plan.json").mkdir()),
        lambda path: (path.mkdir(), (path / "part-000000.arrow").symlink_to(tmp_path / "precious" / "a")),
    ):
        make_odd(folder / "pending")
        index = SugarIndex.load(folder, FakeEmbedder())
        index.update([make(1, "changed")], **QUIET)
        index.update([make(1)], **QUIET)
        assert not (folder / "pending").exists()
    assert (tmp_path / "precious" / "a").read_text() == "keep"
    assert os.listdir(tmp_path / "precious") == ["a"]


def test_parts_of_another_write_that_could_not_be_removed_do_not_count(folder, monkeypatch):
    monkeypatch.setattr(index_writer, "remove", lambda path: None)
    (folder / "pending" / "plan.json").write_text("{}")
    assert goes_on(folder) == [f"d{i}" for i in range(6)]


# ---- The lock


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("place", ["atomic_write", "_read_plan", "clean"])
def test_the_lock_goes_when_preparing_fails(folder, monkeypatch, number, place):
    index = SugarIndex.load(folder, FakeEmbedder())

    def fail(*_):
        raise OSError(number, os.strerror(number))

    shutil.rmtree(folder / "pending")
    with monkeypatch.context() as patch:
        patch.setattr(index_writer, place, fail)
        with pytest.raises(OSError, match=os.strerror(number)) as kept:
            index.add([make(7)], **QUIET)
    other = SugarIndex.load(folder, FakeEmbedder())
    other.add([make(7)], **QUIET)  # though the error, and all that it refers to, is kept
    assert kept.value.errno == number


# ---- A write that counts


def failing_after(monkeypatch, name, current):
    """Let a function of os fail once the folder's CURRENT is another."""
    function, before = getattr(os, name), current.read_bytes()

    def call(*args, **kwargs):
        if current.exists() and current.read_bytes() != before:
            raise OSError(errno.EIO, "Input/output error")
        return function(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.mark.filterwarnings("ignore:.*has not confirmed it")
@pytest.mark.parametrize("name", ["fsync", "unlink", "rmdir", "scandir"])
def test_a_write_that_counts_does_not_fail(folder, monkeypatch, name):
    index = SugarIndex.load(folder, FakeEmbedder())
    index.compact()
    for change in (
        lambda: index.add([make(7), make(8)], **QUIET),
        lambda: index.delete("d7"),
        index.compact,
        lambda: index.update([make(8, "changed")], **QUIET),
    ):
        with monkeypatch.context() as patch:
            failing_after(patch, name, folder / "CURRENT")
            change()
    found = state(SugarIndex.load(folder))
    assert state(index) == found
    assert found.keys() == {"d90", "d8"}
    index.compact()
    index.compact()
    assert len(list((folder / "segments").iterdir())) == 6  # of two generations: what was left over is gone


def test_that_the_disk_has_not_confirmed_a_write_is_said(folder, monkeypatch):
    index = SugarIndex.load(folder, FakeEmbedder())
    failing_after(monkeypatch, "fsync", folder / "CURRENT")
    with pytest.warns(UserWarning, match="the disk has not confirmed it"):
        index.delete("d90")


def test_an_error_before_a_write_counts_is_an_error(folder, monkeypatch):
    index = SugarIndex.load(folder, FakeEmbedder())
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(OSError, match="Input/output"):
            index.delete("d90")
    assert "d90" in state(SugarIndex.load(folder))


# ---- Full disks


def test_a_full_disk_is_an_oserror_whichever_library_says_it(folder, monkeypatch):
    index = SugarIndex.load(folder, FakeEmbedder())
    full = "Error while serializing: I/O error: No space left on device (os error 28)"

    def save(*_, **__):
        raise SafetensorError(full)

    with monkeypatch.context() as patch:
        patch.setattr(index_writer, "save_file", save)
        with pytest.raises(OSError, match="No space left") as error:
            index.add([make(7)], **QUIET)
    assert error.value.errno == errno.ENOSPC
    options = {"backend_options": {"kind": "hnsw", "m": 2, "ef_search": 1}}

    def write(*_):
        raise RuntimeError("Error in fwrite: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(faiss, "write_index", write)
        with pytest.raises(OSError, match="No space left"):
            SugarIndex.build(folder.parent / "other", map(make, range(30)), FakeEmbedder(), **options, **QUIET)


# ---- Temporary folders


def test_the_folder_of_an_upload_that_was_killed_goes_with_the_next_write(folder):
    index = SugarIndex.load(folder, FakeEmbedder())
    with index_hub.held_folder(folder) as place:
        (place / "big").write_text("x")
        shutil.copytree(place.parent, folder / "export-killed.tmp")  # one whose lock nobody holds
        index.add([make(7)], **QUIET)
        assert [path.name for path in folder.glob("*.tmp")] == [place.parent.name]  # it is in use
        assert (place / "big").exists()
    assert not list(folder.glob("*.tmp"))


# ---- Addresses


def test_what_is_secret_in_an_address_is_not_written(subtests):
    for uri, public in [
        ("http://localhost:19530", "http://localhost:19530"),
        ("http://root:Milvus@localhost:19530", "http://localhost:19530"),
        ("https://token@example.org/stories", "https://example.org/stories"),
        ("root:pass@host:19530", "host:19530"),
        ("http://u:p@ss@host:19530", "http://host:19530"),
        ("https://example.org:443/db?token=secret#x", "https://example.org:443/db"),
        ("./milvus.db", "./milvus.db"),
        ("/data/milvus.db", "/data/milvus.db"),
    ]:
        with subtests.test(uri=uri, public=public):
            spec, secrets = index_spec(None, DIM, "milvus", "float32", None, {"uri": uri, "collection": "c"})
            assert spec.backend_options == {"uri": public, "collection": "c"}
            assert secrets["uri"] == uri  # which is what is connected to
            assert public_address(public) == public
            assert repr(MilvusOptions(uri=uri)).count(public) == 1
            assert "secret" not in repr(MilvusOptions(uri=uri))
            assert "pass" not in repr(MilvusOptions(uri=uri))


def test_an_address_of_which_it_cannot_be_told_is_refused_and_not_shown(subtests):
    for uri in ["http://u:p/w@host", "http://host?token=a@b", "", "@", 3]:
        with subtests.test(uri=uri):
            with pytest.raises(ValueError, match=r"no address of a server|give texts") as error:
                index_spec(None, DIM, "milvus", "float32", None, {"uri": uri})
            assert not isinstance(uri, str) or len(uri) < 2 or uri not in str(error.value)


def test_a_lock_is_still_a_lock(folder):
    index, other = SugarIndex.load(folder), SugarIndex.load(folder)
    with index.writer(), pytest.raises(LockedIndexError):
        other.delete("d90")
    assert read_current(folder).generation == 1
    assert np.isfinite(index.store.snapshot.vectors([0])).all()
