"""What an index does: add, get, update, delete, compact."""

import json
import random

import numpy as np
import pytest
from index_tools import DIM, FakeEmbedder, make, state, texts, unit, vector

from sugar_hf.data import Document, SkippedRowsWarning
from sugar_hf.retrieval import DuplicateIdError, IndexMismatchError, SugarIndex
from sugar_hf.retrieval.index import index_spec
from sugar_hf.retrieval.store.layout import Limits


@pytest.fixture
def embedder():
    return FakeEmbedder()


@pytest.fixture
def index(tmp_path, embedder):
    return SugarIndex.build(tmp_path / "index", map(make, range(30)), embedder, part_documents=8, show_progress=False)


def ids(hits):
    return [hit.id for hit in hits]


# --- adding


def test_what_was_added_is_there_and_found(index, embedder, tmp_path):
    assert len(index) == 30
    assert embedder.embedded == [f"d{i}" for i in range(30)]
    for opened in (index, SugarIndex.load(tmp_path / "index", embedder)):
        assert state(opened) == {f"d{i}": (texts(make(i)), {"number": i}) for i in range(30)}
        assert "d7" in opened
        assert "d30" not in opened
        assert opened.get("d7").metadata == {"number": 7}
        hits = opened.search("document 7, third", 3)
        assert hits[0].id == "d7"
        assert hits[0].score == pytest.approx(1, abs=1e-5)
        assert (hits[0].slice, hits[0].metadata) == (-1, {"number": 7})
        assert hits[0].document.load() == texts(make(7))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_list_of_queries_gives_a_list_of_lists(index):
    found = index.search(["document 3, third", "document 4, third"], 2, return_vectors=True)
    assert [hits[0].id for hits in found] == ["d3", "d4"]
    np.testing.assert_allclose(found[0][0].vector, vector("document 3, third"), atol=1e-6)
    assert found[0][0].vector @ vector("document 3, third") == pytest.approx(found[0][0].score, abs=1e-6)


def test_a_stream_is_read_a_part_ahead_at_most(tmp_path, embedder):
    read = []

    def stream():
        for number in range(20):
            assert number - len(embedder.embedded) <= 4, "more than a part is held"
            read.append(number)
            yield make(number)

    report = SugarIndex.create(tmp_path / "i", embedder).add(stream(), part_documents=4, show_progress=False)
    assert len(read) == report.added == 20
    assert report.seconds > 0


def test_anything_that_says_something_is_a_document(tmp_path, embedder):
    items = ["a text", {"text": "b", "year": 2000}, {"id": "x", "document": ["c", "d"], "metadata": {"k": True}}]
    index = SugarIndex.create(tmp_path / "i", embedder)
    index.add(items, show_progress=False)
    found = {document.id: document.metadata for document in index}
    assert found == {"0": {}, "1": {"year": 2000}, "x": {"k": True}}


@pytest.mark.parametrize("documents", ["text", {"text": "a"}, b"x"])
def test_one_document_is_no_list(index, documents):
    with pytest.raises(ValueError, match="documents must be a list"):
        index.add(documents)


def test_no_documents_change_nothing(index):
    before = index.info()
    assert index.add([]).added == 0
    assert index.info() == before


def test_an_index_without_documents_finds_nothing(tmp_path, embedder):
    index = SugarIndex.build(tmp_path / "i", [], embedder, show_progress=False)
    assert len(index) == 0
    assert index.search("x") == []
    assert index.search(["x", "y"]) == [[], []]
    scores, places = index.search_embeddings(vector("x")[None], 2)
    assert places.tolist() == [[-1, -1]]
    assert np.isneginf(scores).all()
    index.add([make(1)], show_progress=False)
    assert ids(index.search("x")) == ["d1"]
    with pytest.warns(UserWarning, match="100% of the documents"):
        index.delete("d1")
    assert index.search("x") == []
    index.compact()
    assert index.search("x") == []
    index.add([make(2)], show_progress=False)
    assert ids(SugarIndex.load(tmp_path / "i", embedder).search("x")) == ["d2"]


def test_documents_that_cannot_be_embedded(index, tmp_path):
    broken = [make(40), make(41, "BROKEN"), {"id": "d42", "metadata": {"a": 1}}, make(43)]
    before = state(index)
    with pytest.raises(ValueError, match="d41"):
        index.add(broken[:2], show_progress=False)
    with pytest.raises(ValueError, match="d42"):
        index.add(broken[2:], show_progress=False)
    assert state(index) == before
    with pytest.warns(SkippedRowsWarning, match="2 documents were left out"):
        report = index.add(broken, on_error="skip", show_progress=False)
    assert report.added == 2
    assert sorted(error.sample for error in report.skipped) == ["d41", "d42"]
    assert {"d40", "d43"} <= set(state(index))


# --- ids


def test_ids_that_are_there_are_refused_and_named(index):
    before = state(index)
    with pytest.raises(DuplicateIdError, match=r"2 ids.*'d3', 'd4'.*update") as error:
        index.add([make(3), make(100), make(4)], show_progress=False)
    assert "on_duplicate='skip'" in str(error.value)
    with pytest.raises(DuplicateIdError, match=r"1 id is .*'d50'"):
        index.add([make(50), make(51), make(50)], show_progress=False)
    with pytest.raises(DuplicateIdError, match="'d60'"):  # in another part
        index.add([make(60), make(61), make(60)], part_documents=1, show_progress=False)
    with pytest.raises(DuplicateIdError, match=r"8 ids .*, \.\.\."):
        index.add(map(make, range(8)), show_progress=False)
    assert state(index) == before


def test_ids_that_are_there_may_be_left_out(index):
    report = index.add([make(3, "new"), make(100), make(100, "again")], on_duplicate="skip", show_progress=False)
    assert (report.added, report.duplicates) == (1, 2)
    assert texts(index.get("d3")) == texts(make(3))
    assert texts(index.get("d100")) == texts(make(100))


def test_update_replaces_and_keeps_the_id(index, tmp_path, embedder):
    report = index.update([make(3, "changed", fresh=True), make(5, "changed too")], show_progress=False)
    assert (report.added, report.updated, len(index)) == (0, 2, 30)
    for opened in (index, SugarIndex.load(tmp_path / "index", embedder)):
        assert texts(opened.get("d3"))[0] == "changed"
        assert opened.get("d3").metadata == {"number": 3, "fresh": True}
        assert opened.search("changed, third", 1)[0].id == "d3"
        assert opened.search("document 3, third", 1)[0].id != "d3"
    with pytest.raises(KeyError, match="'d99'"):
        index.update([make(99)], show_progress=False)
    with pytest.raises(DuplicateIdError, match="'d7'"):
        index.update([make(7), make(7)], show_progress=False)
    report = index.add([make(3, "b"), make(101)], on_duplicate="update", show_progress=False)
    assert (report.added, report.updated, len(index)) == (1, 1, 31)


# --- deleting


def test_delete_by_id_and_filter(index, tmp_path, embedder):
    assert index.delete("d1") == 1
    assert index.delete(["d2", "d3", "d2"]) == 2
    with pytest.warns(UserWarning, match="compact"):
        assert index.delete(where={"number": {"$gte": 20}}) == 10
    assert index.delete(where={"number": {"$gte": 20}}) == 0
    for opened in (index, SugarIndex.load(tmp_path / "index", embedder)):
        assert set(state(opened)) == {"d0", *(f"d{i}" for i in range(4, 20))}
        assert opened.search("document 1, third", 1)[0].id != "d1"
        assert len(opened.search("document 1, third", 30)) == 17
        with pytest.raises(KeyError, match="'d1'"):
            opened.get("d1")
    with pytest.raises(KeyError, match="'d1'; nothing was deleted"):
        index.delete(["d4", "d1"])
    assert "d4" in index
    with pytest.raises(ValueError, match="give ids"):
        index.delete()
    with pytest.raises(ValueError, match="give ids"):
        index.delete("d4", where={"number": 4})
    with pytest.raises(ValueError, match="unknown operator"):
        index.delete(where={"number": {"$like": 4}})


def test_an_empty_filter_deletes_nothing(index):
    with pytest.raises(ValueError, match="give ids"):
        index.delete(where={})
    assert len(index) == 30


def test_a_deleted_id_can_be_used_again(index, tmp_path, embedder):
    index.delete("d4")
    index.add([make(4, "again")], show_progress=False)
    index.add([make(200)], show_progress=False)
    assert texts(SugarIndex.load(tmp_path / "index").get("d4"))[0] == "again"
    assert index.info()["deleted_share"] == round(1 / 32, 4)


def test_compact_gives_space_back_and_changes_nothing_else(index, embedder):
    with pytest.warns(UserWarning, match="compact"):
        index.delete([f"d{i}" for i in range(0, 30, 2)])
    embedder.embedded.clear()
    index.add([make(300)], show_progress=False)
    before, found, size = state(index), ids(index.search("document 5, third", 20)), index.info()["bytes_on_disk"]
    assert index.info()["advice"]
    index.compact()
    assert state(index) == before
    assert ids(index.search("document 5, third", 20)) == found
    info = index.info()
    assert info["bytes_on_disk"] < size
    assert (info["deleted_share"], info["segments"], info["rows"], info["advice"]) == (0, 1, 16, None)
    assert embedder.embedded == ["d300"]


# --- how it is made


def test_bad_options(tmp_path, subtests):
    for options, message in [
        ({"dim": 0}, "dim=0"),
        ({}, "give an embedder"),
        ({"dim": 4, "backend": "x"}, "backend='x'"),
        ({"dim": 4, "vectors": "int4"}, "vectors='int4'"),
        ({"dim": 4, "positions": "first"}, "positions='first'"),
        ({"dim": 4, "backend_options": {"speed": 1}}, "'speed'"),
        ({"dim": 4, "vectors": "binary", "backend_options": {"kind": "hnsw"}}, "binary"),
        ({"dim": 4, "vectors": "int8", "backend": "milvus"}, "Milvus takes vectors='float32'"),
    ]:
        with subtests.test(message=message):
            with pytest.raises(ValueError, match=message):
                SugarIndex.create(tmp_path / "i", **options)
            assert not (tmp_path / "i").exists()


def test_folders_that_are_taken(tmp_path, index, embedder):
    folder = tmp_path / "index"
    with pytest.raises(FileExistsError, match="overwrite=True"):
        SugarIndex.create(folder, dim=4)
    with pytest.raises(FileExistsError, match="30 documents"):
        SugarIndex.build(folder, [make(1)], embedder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_text("x")
    with pytest.raises(FileExistsError, match=r"holds 'photo\.jpg' and no index"):
        SugarIndex.create(tmp_path / "mine", dim=4)
    with pytest.raises(FileNotFoundError, match="holds no index"):
        SugarIndex.load(tmp_path / "nowhere")
    replaced = SugarIndex.build(folder, [make(1)], embedder, overwrite=True, vectors="float16", show_progress=False)
    assert set(state(replaced)) == {"d1"}
    assert index.refresh()
    assert set(state(index)) == {"d1"}
    assert ids(index.search("a")) == ["d1"]
    emptied = SugarIndex.create(folder, dim=4, overwrite=True)
    assert (len(emptied), emptied.info()["dim"]) == (0, 4)


def test_info_is_json(index):
    info = json.loads(json.dumps(index.info()))
    assert (info["documents"], info["rows"], info["dim"], info["vectors"]) == (30, 30, DIM, "float32")
    assert (info["generation"], info["model"], info["bytes_per_vector"]) == (1, "fake", 64)
    assert (info["positions"], info["backend"], info["deleted_share"]) == ("last", "faiss", 0)


def test_a_token_is_not_written():
    options = {"uri": "http://localhost:1", "token": "secret"}
    spec, secrets = index_spec(None, 4, "milvus", "float32", None, options)
    assert spec.backend_options == {"uri": "http://localhost:1"}
    assert secrets == options  # an address is not trusted when it is read


# --- the model


def test_another_model_is_refused_with_what_differs(index, tmp_path):
    folder = tmp_path / "index"
    with pytest.raises(IndexMismatchError, match="weights of backbone differ"):
        SugarIndex.load(folder, FakeEmbedder(weights="b"))
    with pytest.raises(IndexMismatchError, match="16 dimensions, the embedder gives 8"):
        SugarIndex.load(folder, FakeEmbedder(dim=8))
    opened = SugarIndex.load(folder)
    with pytest.raises(IndexMismatchError, match="weights"):
        opened.embedder = FakeEmbedder(weights="b")
    assert opened.embedder is None
    index.embedder.fingerprint = FakeEmbedder(weights="b").fingerprint  # trained on meanwhile
    with pytest.raises(IndexMismatchError, match="weights"):
        index.search("a")
    with pytest.raises(IndexMismatchError, match="weights"):
        index.add([make(50)])


def test_queries_need_no_positions_but_documents_do(index, tmp_path):
    opened = SugarIndex.load(tmp_path / "index", FakeEmbedder(positions="all"))
    assert ids(opened.search("document 2, third", 1)) == ["d2"]
    with pytest.raises(IndexMismatchError, match="positions='last'"):
        opened.add([make(50)])


# --- files


def test_segments_are_of_bounded_size(tmp_path):
    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    index.store.limits = Limits(segment_documents=10, batch_documents=4)
    index.add(map(make, range(45)), unit(45))
    assert [entry.documents for entry in index.store.snapshot.manifest.segments] == [12, 12, 12, 9]
    opened = SugarIndex.load(tmp_path / "i")
    assert [document.id for document in opened] == [f"d{i}" for i in range(45)]
    _, places = opened.search_embeddings(unit(45), 1)
    assert places[:, 0].tolist() == list(range(45))


def test_many_small_writes_leave_few_files(tmp_path):
    index = SugarIndex.create(tmp_path / "i", dim=DIM)
    index.store.limits = Limits(most_small_segments=4)
    for number in range(12):
        index.add([make(number)], unit(number + 1)[-1:])
        if number == 6:
            index.delete("d2")
        if number == 8:
            index.add([make(2, "again")], unit(3)[-1:])
    assert index.info()["segments"] <= 4
    assert len(list((tmp_path / "i" / "segments").iterdir())) <= 3 * 8
    for opened in (index, SugarIndex.load(tmp_path / "i")):
        assert set(state(opened)) == {f"d{i}" for i in range(12)}
        assert texts(opened.get("d2"))[0] == "again"
        _, places = opened.search_embeddings(unit(12), 1)
        assert [opened.documents[place][0] for place in places[:, 0]] == [
            "again" if i == 2 else f"document {i}" for i in range(12)
        ]


@pytest.mark.filterwarnings("ignore:.*deleted and still take space")
def test_random_changes_are_those_of_a_dict(tmp_path):
    draw = random.Random(5)
    embedder = FakeEmbedder()
    index = SugarIndex.create(tmp_path / "i", embedder)
    reader = SugarIndex.load(tmp_path / "i", embedder)
    expected = {}
    for step in range(60):
        kind = draw.choice(["add", "add", "update", "delete", "compact"])
        if kind == "add":
            new = [make(100 * step + i, f"step {step} {i}") for i in range(draw.randint(1, 6))]
            index.add(new, show_progress=False, part_documents=draw.randint(1, 4))
            expected |= {document.id: document for document in new}
        elif kind == "update" and expected:
            names = draw.sample(sorted(expected), min(2, len(expected)))
            new = [Document(name, [f"changed in {step}", name], {"step": step}) for name in names]
            index.update(new, show_progress=False)
            expected |= {document.id: document for document in new}
        elif kind == "delete" and len(expected) > 4:
            names = draw.sample(sorted(expected), 2)
            index.delete(names)
            expected = {name: document for name, document in expected.items() if name not in names}
        elif kind == "compact" and step % 3 == 0:
            index.compact()
        wanted = {name: (texts(document), document.metadata) for name, document in expected.items()}
        assert state(index) == wanted
        if step % 5 == 0:
            reader.refresh()
            for opened in (reader, SugarIndex.load(tmp_path / "i", embedder)):
                assert state(opened) == wanted
                assert {name: name in opened for name in expected} == dict.fromkeys(expected, True)
                query = vector(f"query {step}")
                best = sorted(expected, key=lambda n: -float(vector(texts(expected[n])[-1]) @ query))[:5]
                assert ids(opened.search(f"query {step}", 5)) == best
