"""An index that Milvus searches, with milvus-lite: the same as with FAISS, through all changes."""

import shutil
from dataclasses import replace

import pymilvus
import pytest
from index_tools import FakeEmbedder, make, state

from sugar_hf.retrieval import SugarIndex
from sugar_hf.retrieval.store import read_current, write_current

QUIET = {"show_progress": False}


def ids(index, query="document 3, third", top_k=8, **options):
    return [(hit.id, hit.slice, round(hit.score, 4)) for hit in index.search(query, top_k, **options)]


@pytest.mark.filterwarnings("ignore:.*deleted and still take space")
@pytest.mark.parametrize("positions", ["last", "all"])
def test_the_same_results_as_faiss(tmp_path, positions):
    made = {}
    for backend, options in (("faiss", {}), ("milvus", {"kind": "flat"})):
        embedder = FakeEmbedder(positions=positions)
        made[backend] = SugarIndex.build(
            tmp_path / backend, map(make, range(30)), embedder, backend=backend, backend_options=options, **QUIET
        )
    faiss, milvus = made["faiss"], made["milvus"]

    def compare():
        assert state(milvus) == state(faiss)
        for query in ("document 3, third", "document 8, second"):
            assert ids(milvus, query) == ids(faiss, query)
            where = {"number": {"$gte": 5}, "$or": [{"number": {"$lt": 12}}, {"number": 20}]}
            assert ids(milvus, query, where=where) == ids(faiss, query, where=where)
            for mode in ("text", "hybrid"):
                found = ids(faiss, query, mode=mode, where=where)
                assert ids(milvus, query, mode=mode, where=where) == found
                assert (len(found) > 0) == (len(faiss.search(query, where=where)) > 0)

    compare()
    for change in (
        lambda index: index.delete(["d3", "d4"]),
        lambda index: index.add(map(make, range(40, 50)), part_documents=3, **QUIET),
        lambda index: index.update([make(5, "changed"), make(41, "changed too")], **QUIET),
        lambda index: index.delete(where={"number": {"$lt": 9}}),
        lambda index: index.compact(),
        lambda index: index.add([make(3)], **QUIET),
    ):
        change(faiss)
        change(milvus)
        compare()
    assert [path.name for path in milvus.folder.glob("milvus-*")] == ["milvus-000002"]  # that of the last base
    milvus.close()
    milvus = SugarIndex.load(milvus.folder, milvus.embedder)
    compare()
    milvus.close()


def test_rows_of_a_write_that_failed_are_not_found(tmp_path, monkeypatch):
    embedder = FakeEmbedder()
    options = {"backend": "milvus", "backend_options": {"kind": "flat"}}
    index = SugarIndex.build(tmp_path / "i", map(make, range(6)), embedder, **options, **QUIET)
    with monkeypatch.context() as patched:
        patched.setattr("sugar_hf.retrieval.store.index_writer.write_current", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            index.add([make(20), make(21)], **QUIET)
    assert {name for name, _, _ in ids(index, top_k=20)} == {f"d{i}" for i in range(6)}
    index.add([make(30)], **QUIET)
    assert {name for name, _, _ in ids(index, top_k=20)} == {"d30", *(f"d{i}" for i in range(6))}
    assert ids(index, "document 30, third", 1)[0][0] == "d30"
    index.close()


def test_files_that_milvus_lost_are_made_anew(tmp_path):
    embedder = FakeEmbedder()
    options = {"backend": "milvus", "backend_options": {"kind": "flat"}}
    index = SugarIndex.build(tmp_path / "i", map(make, range(6)), embedder, **options, **QUIET)
    found = ids(index)
    index.close()
    shutil.copytree(tmp_path / "i", tmp_path / "copy", ignore=shutil.ignore_patterns("milvus-*"))
    copy = SugarIndex.load(tmp_path / "copy", embedder)
    assert ids(copy) == found
    copy.close()


def test_only_a_server_that_the_user_names_is_connected_to(tmp_path, monkeypatch):
    index = SugarIndex.build(tmp_path / "i", map(make, range(3)), FakeEmbedder(), backend="milvus", **QUIET)
    index.close()
    manifest = read_current(index.folder)
    address = "http://evil.example:19530"
    spec = replace(manifest.spec, backend_options={"uri": address})
    write_current(index.folder, replace(manifest, spec=spec))
    connected = []

    def connect(uri, **_):
        connected.append(uri)
        raise ConnectionError(uri)

    monkeypatch.setattr(pymilvus, "MilvusClient", connect)
    monkeypatch.delenv("MILVUS_URI", raising=False)
    with pytest.raises(ValueError, match=r"Milvus server http://evil\.example:19530. If you trust it, pass"):
        SugarIndex.load(index.folder)
    monkeypatch.setenv("MILVUS_URI", "http://mine:19530")
    with pytest.raises(ValueError, match="If you trust it"):
        SugarIndex.load(index.folder)
    assert connected == []
    with pytest.raises(ConnectionError):
        SugarIndex.load(index.folder, backend_options={"uri": "http://mine:19530"})
    monkeypatch.setenv("MILVUS_URI", address)
    with pytest.raises(ConnectionError):
        SugarIndex.load(index.folder)
    assert connected == ["http://mine:19530", address]
