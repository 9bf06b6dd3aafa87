"""An index that somebody else wrote: its sizes and digests are right, and nothing else needs to be."""

import hashlib
import json
import random
import shutil
import struct
from contextlib import suppress

import faiss
import numpy as np
import pyarrow as pa
import pytest
from index_tools import DIM, FakeEmbedder, make
from safetensors.numpy import load_file, save_file

from sugar_hf.retrieval import DamagedIndexError, SugarIndex
from sugar_hf.retrieval.store import read_current
from sugar_hf.retrieval.store.layout import SCHEMA, as_json

QUIET = {"show_progress": False}
TEXTS, VECTORS, GRAPH = "segments/000000.arrow", "segments/000000.safetensors", "graph-000001/graph.faiss"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "index"
    options = {"backend_options": {"kind": "hnsw", "m": 2, "ef_search": 1}}
    SugarIndex.build(folder, map(make, range(30)), FakeEmbedder(), **options, **QUIET).delete("d3")
    return folder


@pytest.fixture
def index(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "index")
    return tmp_path / "index"


def renew(whole, index):
    shutil.rmtree(index)
    shutil.copytree(whole, index)


def forge(folder, change=None, current=None):
    """Write the digests of the files as they are into the manifest, which `change` may change as well."""
    path = folder / read_current(folder).name
    values = json.loads(path.read_bytes())

    def sign(entry, place):
        data = (place / entry["name"]).read_bytes()
        entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    for segment in values["segments"]:
        sign(segment["texts"], folder / "segments")
        sign(segment["vectors"], folder / "segments")
    sign(values["deleted"]["file"], folder)
    for file in values["graph"]["files"]:
        sign(file, folder / values["graph"]["folder"])
    data = as_json(change(values) if change else values)
    path.write_bytes(data)
    said = {"generation": read_number(data), "manifest": path.name, "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "CURRENT").write_bytes(as_json(current(said) if current else said))


def read_number(data):
    try:
        return json.loads(data)["generation"]
    except Exception:
        return 2


def refused(folder, name):
    for verify in (True, False):
        with pytest.raises(DamagedIndexError, match=rf"{name}.* (Restore|Upgrade)"):
            SugarIndex.load(folder, verify=verify)


# ---- Documents


def stored(folder):
    with pa.ipc.open_stream((folder / TEXTS).read_bytes()) as reader:
        return reader.read_all()


def store(folder, table, options=None, schema=None):
    with pa.ipc.new_stream(str(folder / TEXTS), schema or table.schema, options=options) as writer:
        writer.write_table(table)
    forge(folder)


def with_column(table, name, values):
    return table.set_column(SCHEMA.names.index(name), SCHEMA.field(name), values)


def replaced(folder, old, new):
    """Change bytes of the documents that Arrow itself would not write."""
    data = (folder / TEXTS).read_bytes()
    assert len(old) == len(new)
    assert old in data
    (folder / TEXTS).write_bytes(data.replace(old, new, 1))
    forge(folder)


def test_texts_and_lists_that_lie_elsewhere(whole, index, subtests):
    for step in [400, 2 * 10**7, -5]:
        for name in ["id", "metadata", "digest", "messages"]:
            with subtests.test(name=name, step=f"{step!r:.60}"):
                renew(whole, index)
                values = stored(index)[name].combine_chunks()
                offsets = np.frombuffer(values.buffers()[1], np.int32)[: len(values) + 1]
                replaced(index, offsets.tobytes(), (np.arange(len(values) + 1) * step).astype(np.int32).tobytes())
                refused(index, "000000.arrow")


def test_texts_that_are_no_utf8(index):
    replaced(index, b"d0d1d2", b"d0\xff1d2")
    refused(index, "000000.arrow")


def test_documents_without_something(whole, index, subtests):
    for name in ["id", "metadata", "digest", "messages", "images"]:
        with subtests.test(name=name):
            renew(whole, index)
            table = stored(index)
            store(index, with_column(table, name, pa.array([None] * len(table), SCHEMA.field(name).type)))
            refused(index, "000000.arrow")


@pytest.mark.parametrize("kind", ["zstd", "lz4"])
def test_what_is_compressed_is_not_unpacked(index, kind):
    table = stored(index)
    huge = with_column(table, "metadata", pa.array([json.dumps({"a": "x" * 10**6})] * len(table)))
    before = pa.total_allocated_bytes()
    store(index, huge, pa.ipc.IpcWriteOptions(compression=kind))
    del huge
    refused(index, "000000.arrow")
    assert pa.total_allocated_bytes() - before < 10**6


def test_other_columns_and_messages(index):
    store(index, pa.table({"id": ["a"] * 30}))
    refused(index, "000000.arrow")
    words = pa.array(["a"] * 30).dictionary_encode()
    store(index, pa.table(dict.fromkeys(SCHEMA.names, words)))
    refused(index, "000000.arrow")


def test_metadata_that_are_none(whole, index, subtests):
    for text in ["[]", "3", "{", "[" * 100_000 + "]" * 100_000, '{"a": {"b": 1}}']:
        with subtests.test(text=f"{text!r:.60}"):
            renew(whole, index)
            table = stored(index)
            store(index, with_column(table, "metadata", pa.array([text] * len(table))))
            opened = SugarIndex.load(index, FakeEmbedder())
            with pytest.raises(DamagedIndexError, match=r"000000\.arrow"):
                opened.search("x", 1)


# ---- Vectors


def test_vectors_of_another_form(whole, index, subtests):
    for change in [
        lambda tensors: {**tensors, "codes": tensors["codes"].astype(np.float64)},
        lambda tensors: {**tensors, "codes": tensors["codes"][:, :-1]},
        lambda tensors: {**tensors, "codes": tensors["codes"].ravel()[:30]},
        lambda tensors: {**tensors, "codes": np.float32(1).reshape(())},
        lambda tensors: {**tensors, "codes": np.full_like(tensors["codes"], np.nan)},
        lambda tensors: {**tensors, "document": tensors["document"].astype(np.int64)},
        lambda tensors: {**tensors, "document": tensors["document"].astype(np.float32)},
        lambda tensors: {**tensors, "document": tensors["document"][:, None]},
        lambda tensors: {**tensors, "document": tensors["document"][::-1]},
        lambda tensors: {**tensors, "document": tensors["document"] + 10**6},
        lambda tensors: {**tensors, "document": tensors["document"] - 1},
        lambda tensors: {**tensors, "slice": tensors["slice"] + 10**6},
        lambda tensors: {**tensors, "slice": tensors["slice"].astype(np.uint8)},
        lambda tensors: {"codes": tensors["codes"], "document": tensors["document"]},
    ]:
        with subtests.test(change=f"{change!r:.60}"):
            renew(whole, index)
            tensors = {
                name: np.ascontiguousarray(values) for name, values in change(load_file(index / VECTORS)).items()
            }
            save_file(tensors, index / VECTORS)
            forge(index)
            refused(index, "")


def test_deleted_documents_of_another_form(whole, index, subtests):
    for deleted in [np.array([3], np.int32), np.array([[3]]), np.array([30]), np.array([-1]), np.array([3.0])]:
        with subtests.test(deleted=f"{deleted!r:.60}"):
            renew(whole, index)
            save_file({"documents": deleted}, index / "deleted-000002.safetensors")
            forge(index)
            refused(index, "deleted-000002.safetensors")


def test_a_document_that_is_deleted_twice(index):
    save_file({"documents": np.array([3, 3])}, index / "deleted-000002.safetensors")
    forge(index, lambda values: {**values, "deleted": {**values["deleted"], "count": 2}})
    refused(index, "deleted-000002.safetensors")


# ---- Graphs


def parts(data):
    """Where the arrays of a graph lie: shares, ends, levels, offsets, neighbors, and what follows them."""
    place, found = 37, []
    for size in (8, 4, 4, 8, 4):
        (count,) = struct.unpack_from("<Q", data, place)
        found.append(place + 8)
        place += 8 + size * count
    return [*found, place]


def patched(data, form, place, value):
    return data[:place] + struct.pack(form, value) + data[place + struct.calcsize(form) :]


GRAPHS = {
    "a neighbor past the end": lambda data: patched(data, "<i", parts(data)[4], 10**9),
    "a neighbor before the beginning": lambda data: patched(data, "<i", parts(data)[4], -2),
    "a row on more levels than it has room for": lambda data: patched(data, "<i", parts(data)[2], 9),
    "a row on no level": lambda data: patched(data, "<i", parts(data)[2], 0),
    "neighbors that lie elsewhere": lambda data: patched(data, "<Q", parts(data)[3] + 8, 2**40),
    "levels of negative size": lambda data: patched(data, "<i", parts(data)[1] + 4, -4),
    "an array without end": lambda data: patched(data, "<Q", parts(data)[0] - 8, 2**60),
    "an entry past the end": lambda data: patched(data, "<i", parts(data)[5], 30),
    "an entry below the top": lambda data: patched(data, "<i", parts(data)[5] + 4, 40),
    "fewer rows": lambda data: patched(data, "<q", 8, 29),
    "more rows": lambda data: patched(data, "<q", 8, 10**12),
    "other dimensions": lambda data: patched(data, "<i", 4, DIM + 1),
    "other distances": lambda data: patched(data, "<i", 33, 1),
    "another kind of index": lambda data: b"IxPT" + data[4:],
    "something behind it": lambda data: data + b"x",
    "half of it": lambda data: data[: len(data) // 2],
    "nothing": lambda data: b"",
}


def test_graphs_that_lead_elsewhere(whole, index, subtests):
    for kind in GRAPHS:
        with subtests.test(kind=f"{kind!r:.60}"):
            renew(whole, index)
            data = (index / GRAPH).read_bytes()
            assert struct.unpack_from("<i", data, parts(data)[5])[0] in range(
                30
            )  # it is what the cases below take it for
            (index / GRAPH).write_bytes(GRAPHS[kind](data))
            forge(index)
            refused(index, "graph")


def test_neighbors_on_a_level_that_they_are_not_on(index):
    data = (index / GRAPH).read_bytes()
    places = parts(data)
    levels = np.frombuffer(data, np.int32, 30, places[2])
    offsets = np.frombuffer(data, np.uint64, 31, places[3])
    high, low = int(np.argmax(levels)), int(np.argmin(levels))
    assert levels[high] > levels[low] == 1
    slot = places[4] + 4 * (int(offsets[high]) + 4)  # the first on its second level; m is 2
    (index / GRAPH).write_bytes(patched(data, "<i", slot, low))
    forge(index)
    refused(index, "graph.faiss")


def test_a_graph_of_other_rows(index):
    storage = faiss.IndexFlat(DIM, faiss.METRIC_INNER_PRODUCT)
    graph = faiss.IndexHNSW(storage, 2)
    graph.add(np.eye(DIM, dtype=np.float32).repeat(4, axis=0))
    faiss.write_index(graph, str(index / GRAPH), faiss.IO_FLAG_SKIP_STORAGE)
    forge(index)
    refused(index, "graph-000001")


# ---- The manifest

ODD = [
    None,
    True,
    -1,
    0,
    1.5,
    10**400,
    float(10**300),
    "x",
    "",
    "é\ud800",
    [],
    [[]],
    {},
    {"a": None},
    ["x"],
    [10**400],
]


def places(values, path=()):
    """All places in nested values."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


def put(values, path, value, gone=False):
    values = json.loads(json.dumps(values))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if gone:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return values


def opens_or_is_damaged(folder):
    """Whatever is in it, there is no other error, and what opens can be used."""
    try:
        opened = SugarIndex.load(folder)
    except DamagedIndexError:
        return False
    opened.search_embeddings(np.eye(1, DIM, dtype=np.float32), 2)
    opened.search_embeddings(np.eye(1, DIM, dtype=np.float32), 2, where={"number": 3})
    json.dumps(opened.info())
    assert len(list(opened)) == 29
    return True


def test_manifests_in_which_anything_is_odd(whole, index):
    manifest = json.loads((whole / read_current(whole).name).read_bytes())
    draw = random.Random(0)
    every = list(places(manifest))
    assert len(every) > 60
    outcomes = []
    cases = [(path, value, False) for path in every for value in draw.sample(ODD, 3)]
    for path, value, gone in [*cases, *((path, None, True) for path in every)]:
        try:
            data = as_json(put(manifest, path, value, gone))
        except UnicodeEncodeError:
            data = json.dumps(put(manifest, path, value, gone)).encode()
        (index / "manifest-000002.json").write_bytes(data)
        said = {"generation": 2, "manifest": "manifest-000002.json", "sha256": hashlib.sha256(data).hexdigest()}
        (index / "CURRENT").write_bytes(as_json(said))
        outcomes.append(opens_or_is_damaged(index))
    assert 0.5 < 1 - np.mean(outcomes) < 1


def test_manifests_and_pointers_that_are_none(whole, index, subtests):
    for data in [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b"null",
        b"[]",
        b"3",
        b'{"format": "sugar-index"}',
        b"1" * 10_000,
    ]:
        with subtests.test(data=f"{data!r:.60}"):
            renew(whole, index)
            (index / "manifest-000002.json").write_bytes(data)
            said = {"generation": 2, "manifest": "manifest-000002.json", "sha256": hashlib.sha256(data).hexdigest()}
            (index / "CURRENT").write_bytes(as_json(said))
            refused(index, "manifest-000002.json")
            (index / "CURRENT").write_bytes(data)
            refused(index, "CURRENT")


def test_pointers_without_something(whole, index, subtests):
    for key in ["generation", "manifest", "sha256"]:
        with subtests.test(key=key):
            renew(whole, index)
            forge(index, current=lambda said, key=key: {name: said[name] for name in said if name != key})
            refused(index, "CURRENT")


# ---- Anything else


def test_flipped_bytes_with_digests_that_fit(whole, index, subtests):
    for name in [TEXTS, VECTORS, "deleted-000002.safetensors", GRAPH]:
        with subtests.test(name=name):
            renew(whole, index)
            data, draw = (whole / name).read_bytes(), random.Random(name)
            for _ in range(40):
                changed = bytearray(data)
                for _ in range(draw.randint(1, 4)):
                    changed[draw.randrange(len(data))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
                (index / name).write_bytes(changed)
                forge(index)
                with suppress(DamagedIndexError):  # a document, when it is read
                    opens_or_is_damaged(index)


@pytest.mark.parametrize("name", [TEXTS, VECTORS])
def test_a_byte_that_changed_is_seen_by_everyone_who_reads_a_file_anew(whole, index, name):
    """Not only by `load`: by `refresh`, by writers, by a build over the index, and by what copies a file."""
    opened = SugarIndex.load(index, FakeEmbedder())
    writer = SugarIndex.load(index, FakeEmbedder())
    writer.add([make(50)], **QUIET)
    new = index / name.replace("000000", "000001")
    data = bytearray(new.read_bytes())
    data[-40] ^= 1
    new.write_bytes(data)
    for use in (
        opened.refresh,
        lambda: opened.delete("d5"),
        lambda: SugarIndex.build(index, [make(1)], FakeEmbedder(), overwrite=True, **QUIET),
        lambda: SugarIndex.create(index, dim=4, overwrite=True),
        writer.compact,  # which has the file open
    ):
        with pytest.raises(DamagedIndexError, match=new.name):
            use()
