"""Files that are not what was written, and folders that are not what they seem."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from index_tools import DIM, FakeEmbedder, make, rewrite, state

from sugar_hf.retrieval import DamagedIndexError, SugarIndex
from sugar_hf.retrieval.store import read_current
from sugar_hf.retrieval.store.layout import names_of

QUIET = {"show_progress": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An index with every kind of file."""
    folder = tmp_path_factory.mktemp("whole") / "index"
    options = {"backend_options": {"kind": "hnsw", "m": 2, "ef_search": 1}}
    index = SugarIndex.build(folder, map(make, range(30)), FakeEmbedder(), **options, **QUIET)
    index.add([make(30)], **QUIET)
    index.delete("d3")
    return folder


def files_that_count(folder):
    manifest = read_current(folder)
    names = {"CURRENT", *names_of([manifest])} - {f"milvus-{manifest.base:06d}", manifest.graph.folder}
    return sorted(names | {f"{manifest.graph.folder}/{file.name}" for file in manifest.graph.files})


NAMES = (
    "CURRENT",
    "deleted-000003.safetensors",
    "graph-000001/graph.faiss",
    "manifest-000003.json",
    "segments/000000.arrow",
    "segments/000000.safetensors",
    "segments/000000-words.safetensors",
    "segments/000001.arrow",
    "segments/000001.safetensors",
    "segments/000001-words.safetensors",
)


def test_the_names_below_are_all_that_count(whole):
    assert files_that_count(whole) == sorted(NAMES)


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "removed": None,
    "emptied": lambda data: b"",
    "truncated": lambda data: data[:-1],
    "halved": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b" ",
    "first byte": lambda data: flip(data, 0),
    "middle byte": lambda data: flip(data, len(data) // 2),
    "last byte": lambda data: flip(data, len(data) - 1),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named(whole, tmp_path, name):
    for kind, change in DAMAGE.items():
        folder = tmp_path / kind.replace(" ", "_")
        shutil.copytree(whole, folder)
        path = folder / name
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(path.read_bytes()))
        with pytest.raises(DamagedIndexError, match=rf"{Path(name).name}\b.*(Restore|build)") as error:
            SugarIndex.load(folder)
        assert str(folder) in str(error.value)
        if change is None or "byte" not in kind:  # its size gives it away
            with pytest.raises(DamagedIndexError, match=Path(name).name):
                SugarIndex.load(folder, verify=False)


def test_what_does_not_count_may_be_damaged(whole, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(whole, folder)
    expected = state(SugarIndex.load(folder))
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in NAMES:
            path.write_bytes(b"x")
    index = SugarIndex.load(folder, FakeEmbedder())
    assert state(index) == expected
    index.add([make(50)], **QUIET)
    assert state(SugarIndex.load(folder)).keys() == expected.keys() | {"d50"}


def renamed(name):
    def change(segments):
        segments[0]["texts"]["name"] = name
        return segments

    return change


FORGED = [
    ({"version": 2}, "version 2 of the format, and this sugar-hf reads version 1. Upgrade"),
    ({"version": "1"}, "version '1'"),
    ({"format": "other"}, "not the manifest of an index"),
    ({"segments": renamed("../../secret.arrow")}, "is not the name of an index file"),
    ({"segments": renamed("/etc/passwd")}, "is not the name of an index file"),
    ({"segments": renamed("..")}, "is not the name of an index file"),
    ({"segments": renamed("a\\b.arrow")}, "is not the name of an index file"),
    ({"segments": renamed(".hidden")}, "is not the name of an index file"),
    ({"segments": renamed(7)}, "is not the name of an index file"),
    ({"segments": lambda entries: [{**entries[0], "documents": -1}, *entries[1:]]}, "-1 is not a count"),
    ({"segments": lambda entries: [{**entries[0], "documents": 7}, *entries[1:]]}, "30 documents instead of 7"),
    ({"segments": lambda entries: [{**entries[0], "rows": 7}, *entries[1:]]}, "vectors instead of 7"),
    ({"segments": None}, "manifest-000003.json"),
    ({"deleted": lambda entry: {**entry, "count": 5}}, "does not fit"),
    ({"graph": lambda entry: {**entry, "folder": "../graph"}}, "is not the name of an index file"),
    ({"codec": {"name": "float32"}}, "codec"),
    ({"codec": {"name": "float32", "dim": 8}}, "dim"),
    ({"dim": "16"}, "is not a count"),
    ({"uid": "../x"}, "is not the name"),
    ({"generation": 9}, "does not fit manifest-000003.json"),
]


def test_a_forged_manifest_is_refused(whole, tmp_path, subtests):
    for number, (changes, message) in enumerate(FORGED):
        with subtests.test(message=message):
            folder = tmp_path / str(number)
            shutil.copytree(whole, folder)
            rewrite(folder, **changes)
            with pytest.raises(DamagedIndexError, match=message):
                SugarIndex.load(folder)


@pytest.mark.parametrize("name", ["CURRENT", "manifest-000003.json", "segments/000000.arrow"])
def test_links_out_of_the_folder_are_not_followed(whole, tmp_path, name):
    folder = tmp_path / "index"
    shutil.copytree(whole, folder)
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(DamagedIndexError, match="leads out of the index"):
        SugarIndex.load(folder)


@pytest.mark.parametrize("name", ["segments", "graph-000001"])
def test_folders_that_are_links_out_of_the_folder_are_not_followed(whole, tmp_path, name):
    folder = tmp_path / "index"
    shutil.copytree(whole, folder)
    (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(DamagedIndexError, match="leads out of the index"):
        SugarIndex.load(folder)


def test_names_stay_inside_when_old_files_are_removed(whole, tmp_path):
    folder = tmp_path / "index"
    shutil.copytree(whole, folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("keep")
    (folder / "notes.txt").write_text("keep")
    (folder / "graph-9").symlink_to(tmp_path / "mine")
    with pytest.raises(DamagedIndexError, match="graph-9 is a link that leads out"):
        SugarIndex.load(folder, FakeEmbedder())
    (folder / "graph-9").unlink()
    (folder / "graph-9").mkdir()
    (folder / "graph-9" / "inside").symlink_to(tmp_path / "mine")
    SugarIndex.load(folder, FakeEmbedder()).delete("d4")
    assert (tmp_path / "mine" / "a.txt").read_text() == (folder / "notes.txt").read_text() == "keep"
    assert not (folder / "graph-9").exists()


@contextmanager
def as_a_stranger():
    """Rights do not hold for root."""
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


def test_a_folder_that_cannot_be_written_can_be_searched(whole):
    with tempfile.TemporaryDirectory() as temporary:  # pytest's own folders are closed to strangers
        folder = Path(temporary) / "index"
        shutil.copytree(whole, folder)
        Path(temporary).chmod(0o755)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        with as_a_stranger():
            index = SugarIndex.load(folder, FakeEmbedder())
            assert index.search("document 7, third", 1)[0].id == "d7"
            assert len(state(index)) == 30
            for write in (lambda: index.delete("d1"), index.compact, lambda: index.add([make(50)])):
                with pytest.raises(PermissionError, match=r"cannot be written .* It can be searched"):
                    write()
            assert not index.refresh()
            assert len(index) == 30
            with pytest.raises(PermissionError):
                SugarIndex.create(folder / "other", dim=4)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)


def test_vectors_without_a_model_still_have_a_width(tmp_path):
    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    index.embedder = FakeEmbedder()
    index.add([make(1)], **QUIET)
    assert index.info()["model"] is None
    assert len(index.search("x")) == 1
