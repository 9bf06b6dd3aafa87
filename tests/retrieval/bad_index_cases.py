"""Bad vectors, damaged files, planted paths and failing writes: more cases for test_bad_input.py."""

import base64
import copy
import dataclasses
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bad_input_cases import NOISE, PNG, refused, used

from sugar_hf.data import BadSampleError, Document, read_documents
from sugar_hf.retrieval import DamagedIndexError, IndexMismatchError, LockedIndexError, SugarEmbedder, SugarIndex
from sugar_hf.retrieval.store import read_current, write_current
from sugar_hf.retrieval.store.layout import as_json, names_of

# ---- Vectors ----


def _unit(place, **changes):
    vector = np.zeros(place.embedder.dim, np.float32)
    vector[0] = 1
    for number, value in changes.items():
        vector[int(number[1:])] = value
    return vector


for _what, _change, _says in (
    ("NaN", {"_1": np.nan}, "NaN or infinite"),
    ("Infinity", {"_1": np.inf}, "NaN or infinite"),
    ("A vector of zeros", {"_0": 0.0}, "the length 0 instead of 1"),
    ("A vector of another length than 1", {"_0": 2.0}, "the length 2 instead of 1"),
):

    @refused("Vectors", _what, ValueError, _says)
    def _(place, change=_change):
        place.index().add([Document("bad", "a")], [_unit(place, **change)])


@refused("Vectors", "Another number of dimensions", IndexMismatchError, "expected vectors of 16 dimensions")
def _(place):
    place.index().add([Document("bad", "a")], [np.ones(7, np.float32)])


@refused("Vectors", "Fewer vectors than documents", ValueError, "'bad' has no vector")
def _(place):
    place.index().add([Document("good", "a"), Document("bad", "b")], [_unit(place)])


@refused("Vectors", "More vectors than documents", ValueError, "more vectors than documents")
def _(place):
    place.index().add([Document("good", "a")], [_unit(place)] * 2)


@refused("Vectors", "A query of other dimensions", IndexMismatchError, "expected embeddings of the shape (q, 16)")
def _(place):
    place.index().search_embeddings(np.ones((1, 7), np.float32), 1)


@refused("Vectors", "A query with NaN", ValueError, "NaN or infinite")
def _(place):
    place.index().search_embeddings(np.full((1, 16), np.nan, np.float32), 1)


@refused("Vectors", "`top_k=0`", ValueError, "ask for at least one result")
def _(place):
    place.index().search("a", top_k=0)


@refused("Vectors", "A model that gives NaN", BadSampleError, "gives no unit vector")
def _(place):
    model = copy.deepcopy(place.embedder.model)
    for parameter in model.retrieval_head.parameters():
        parameter.data.fill_(float("nan"))
    SugarEmbedder(model, place.embedder.processor).embed_documents([Document("bad", "a")])


@refused(
    "Vectors", "An index and a model of other dimensions", IndexMismatchError, "holds embeddings of 16 dimensions"
)
def _(place):
    place.index(SugarEmbedder(place.embedder.model, place.embedder.processor, truncate_dim=8))


@refused("Vectors", "An index and another model", IndexMismatchError, "was made with another model")
def _(place):
    model = copy.deepcopy(place.embedder.model)
    for parameter in model.retrieval_head.parameters():
        parameter.data.mul_(-1.5)
    place.index(SugarEmbedder(model, place.embedder.processor))


# ---- Files of an index ----


def files_of(folder):
    """The files of the generation that counts."""
    names = {"CURRENT"}
    for name in names_of([read_current(folder)]):
        path = folder / name
        names |= {f"{name}/{file.name}" for file in path.iterdir()} if path.is_dir() else {name}
    return sorted(name for name in names if (folder / name).is_file())


DAMAGES = {
    "Cut in half": lambda data: data[: len(data) // 2],
    "Emptied": lambda data: b"",
    "A byte flipped at the start": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "A byte flipped in the middle": lambda data: (
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "A byte flipped at the end": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "A byte more": lambda data: data + b"\n",
    "Missing": None,
}


def damaged_each_in_turn(place, change):
    """Damage every file of the index in turn. Returns the errors, after a check that each names its file."""
    errors = []
    for name in files_of(place.index_folder):
        path = place.index_folder / name
        data = path.read_bytes()
        if change is None:
            path.unlink()
        else:
            path.write_bytes(change(data))
        with pytest.raises(DamagedIndexError) as caught:
            place.index()
        # a flipped letter in CURRENT may name another manifest, which is then the file that is missing
        assert Path(name).name in str(caught.value) or name == "CURRENT"
        errors.append(caught.value)
        path.write_bytes(data)
    assert len(errors) >= 6  # CURRENT, the manifest, documents, vectors, what is deleted, a graph
    return errors


for _what, _change in DAMAGES.items():

    @refused("Files of an index", f"{_what}, each file in turn", DamagedIndexError, "Restore the file from a copy")
    def _(place, change=_change):
        raise damaged_each_in_turn(place, change)[0]


@refused("Files of an index", "No index", FileNotFoundError, "holds no index")
def _(place):
    SugarIndex.load(place.folder / "nothing")


def rewrite(place, change):
    """Change a manifest as someone would who knows how an index is written: with digests that fit."""
    current = json.loads((place.index_folder / "CURRENT").read_bytes())
    path = place.index_folder / current["manifest"]
    values = json.loads(path.read_bytes())
    change(values, current)
    path.write_bytes(as_json(values))
    current["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (place.index_folder / "CURRENT").write_bytes(as_json(current))


@refused("Files of an index", "A newer version of the format", DamagedIndexError, "Upgrade sugar-hf")
def _(place):
    rewrite(place, lambda values, current: values.update(version=2))
    place.index()


# ---- Paths and addresses that others wrote ----


def _move_out(place, name):
    """Move a file of the index to a folder beside it. Returns its path there."""
    outside = place.folder / "outside"
    outside.mkdir(exist_ok=True)
    return Path(shutil.move(place.index_folder / name, outside / Path(name).name))


def _texts(values):
    return values["segments"][0]["texts"]


for _what, _kind in (("an absolute path", "absolute"), ("`..`", "above")):

    @refused(
        "Paths and addresses", f"A manifest that names {_what}", DamagedIndexError, "is not the name of an index file"
    )
    def _(place, kind=_kind):
        current = json.loads((place.index_folder / "CURRENT").read_bytes())
        values = json.loads((place.index_folder / current["manifest"]).read_bytes())
        there = _move_out(place, f"segments/{_texts(values)['name']}")
        name = str(there) if kind == "absolute" else f"../../outside/{there.name}"
        rewrite(place, lambda values, current: _texts(values).update(name=name))
        place.index()

    @refused(
        "Paths and addresses", f"CURRENT that names {_what}", DamagedIndexError, "is not the name of an index file"
    )
    def _(place, kind=_kind):
        current = json.loads((place.index_folder / "CURRENT").read_bytes())
        there = _move_out(place, current["manifest"])
        name = str(there) if kind == "absolute" else f"../outside/{there.name}"
        (place.index_folder / "CURRENT").write_bytes(as_json({**current, "manifest": name}))
        place.index()


@refused(
    "Paths and addresses", "A file that is a link out of the index", DamagedIndexError, "is a link that leads out"
)
def _(place):
    names = [name for name in files_of(place.index_folder) if name.endswith((".arrow", ".safetensors"))]
    (place.index_folder / names[0]).symlink_to(_move_out(place, names[0]))
    place.index()


@refused(
    "Paths and addresses", "A folder that is a link out of the index", DamagedIndexError, "is a link that leads out"
)
def _(place):
    there = _move_out(place, "segments")
    (place.index_folder / "segments").symlink_to(there)
    place.index()


@refused("Paths and addresses", "Writing where such a link lies", DamagedIndexError, "is a link that leads out")
def _(place):
    index = place.index()
    precious = place.file("precious", b"precious")
    (place.index_folder / "LOCK.owner").unlink()
    (place.index_folder / "LOCK.owner").symlink_to(precious)
    try:
        index.add([{"id": "bad", "text": "a"}], show_progress=False)
    finally:
        assert precious.read_bytes() == b"precious"


@refused(
    "Paths and addresses", "A stored image with a path and no bytes", BadSampleError, "the stored image has no bytes"
)
def _(place):
    row = Document("bad", NOISE).to_row()
    row["images"] = [{"bytes": None, "path": str(place.file("a.png", PNG))}]
    Document.from_row(row)


@used("Paths and addresses", "Stored documents", "hold the images themselves; no path is written")
def _(place):
    place.add([place.file("a.png", PNG), "a text"])
    [path] = sorted((place.index_folder / "segments").glob("*.arrow"))[-1:]
    with pa.memory_map(str(path)) as source:
        images = pa.ipc.open_stream(source).read_all()["images"].to_pylist()
    assert [image for row in images for image in row] == [{"bytes": PNG, "path": None}]
    assert str(place.folder).encode() not in path.read_bytes()


for _what, _name in (("an absolute path outside", "{outside}/a.png"), ("`..`", "../outside/a.png")):

    @refused("Paths and addresses", f"A data file whose image is {_what}", BadSampleError, "outside the image root")
    def _(place, name=_name):
        (place.folder / "outside").mkdir()
        (place.folder / "data").mkdir()
        place.file("outside/a.png", PNG)
        row = {"text": "a", "image": name.format(outside=place.folder / "outside")}
        list(read_documents(place.file("data/rows.jsonl", json.dumps(row).encode() + b"\n")))


for _key in ("image", "path", "url"):

    @refused("Paths and addresses", f'`{{"{_key}": "http://..."}}` in a document', BadSampleError, "is not fetched")
    def _(place, key=_key):
        place.add({"type": "image", key: f"{place.address}/a.png"}, on_error=place.on_error)


@refused("Paths and addresses", "A data file whose image is an address", BadSampleError, "is a URL")
def _(place):
    row = {"text": "a", "image": f"{place.address}/a.png"}
    list(read_documents(place.file("rows.jsonl", json.dumps(row).encode() + b"\n")))


for _key in ("image", "path"):

    @refused("Paths and addresses", f'`{{"{_key}": "http://..."}}` in a query', ValueError, "is an address")
    def _(place, key=_key):
        place.index().search({"type": "image", key: f"{place.address}/a.png"})


@refused("Paths and addresses", '`{"url": "file://..."}` in a query', ValueError, "is no http or https address")
def _(place):
    place.index().search({"type": "image", "url": place.file("a.png", PNG).as_uri()})


@used("Paths and addresses", "An address in a text or in metadata", "text as any other")
def _(place):
    place.index().add([{"id": "bad", "text": f"{place.address}/a.png", "url": place.address}], show_progress=False)
    assert place.index().search(f"{place.address}/a.png", top_k=1)[0].document.metadata == {"url": place.address}


@used("Paths and addresses", '`{"url": "http://..."}` in a query', "fetched: that is asking for it")
def _(place):
    hits = place.index().search({"type": "image", "url": f"{place.address}/a.png"}, top_k=1)
    assert len(hits) == 1
    assert place.asked == ["/a.png"]
    place.asked.clear()  # the one case that may ask


@used("Paths and addresses", "A `data:` address in a query", "decoded; nothing is fetched")
def _(place):
    address = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert len(place.index().search({"type": "image", "image": address}, top_k=1)) == 1


@refused("Paths and addresses", "An index that names a Milvus server", ValueError, "If you trust it, pass")
def _(place):
    manifest = read_current(place.index_folder)
    spec = dataclasses.replace(manifest.spec, backend="milvus", backend_options={"uri": place.address})
    write_current(place.index_folder, dataclasses.replace(manifest, spec=spec, graph=None))
    place.index()


# ---- Writing ----


@contextmanager
def unprivileged(folder):
    """Take away the right to write to a folder, for root too."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@refused("Writing", "A folder that may not be written", PermissionError, "It can be searched; to change it, copy it")
def _(place):
    index = place.index()
    with unprivileged(place.index_folder):
        index.add([{"id": "bad", "text": "a"}], show_progress=False)


@used("Writing", "Searching a folder that may not be written", "works")
def _(place):
    place.index().search("a")  # loads what is loaded late
    with unprivileged(place.index_folder):
        assert len(place.index().search("a cat")) == 2


@refused("Writing", "A full disk", OSError, "No space left on device")
def _(place):
    index = place.index()

    def full(handle):
        raise OSError(28, "No space left on device")

    with place.monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        index.add([{"id": "bad", "text": "a"}], show_progress=False)


@refused("Writing", "Two processes at once", LockedIndexError, "Wait until it is done")
def _(place):
    with place.other_process_writes():
        assert len(place.index().search("a cat")) == 2  # readers are not held up
        place.index().add([{"id": "bad", "text": "a"}], show_progress=False)
