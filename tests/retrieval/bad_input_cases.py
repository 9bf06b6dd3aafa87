"""Bad input and what becomes of it: the cases of test_bad_input.py and of the table in docs/bad_input.md."""

import base64
import copy
import dataclasses
import hashlib
import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sugar_hf.data import BadSampleError
from sugar_hf.retrieval import (
    DamagedIndexError,
    Document,
    DuplicateIdError,
    IndexMismatchError,
    LockedIndexError,
    SugarEmbedder,
    SugarIndex,
    read_documents,
)
from sugar_hf.retrieval.files import as_json
from sugar_hf.retrieval.manifest import read_current, write_current

DOCUMENT = Path(__file__).parents[2] / "docs" / "bad_input.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


@dataclass(frozen=True)
class Case:
    """One kind of input.

    Args:
        group: Heading of its part of the table.
        what: The input in words.
        says: A piece of the error's message, or what happens instead of an error.
        error: Class of the error; `None` if there is none.
        act: Does it, in a `Place`.
    """

    group: str
    what: str
    says: str
    error: type[Exception] | None
    act: Callable

    @property
    def name(self):
        return f"{self.group}: {self.what}"


CASES: list[Case] = []


def refused(group, what, error, says):
    def enter(act):
        CASES.append(Case(group, what, says, error, act))
        return act

    return enter


def used(group, what, says):
    def enter(act):
        CASES.append(Case(group, what, says, None, act))
        return act

    return enter


class Place:
    """Where a case happens.

    Args:
        folder: An empty folder.
        built: The folder of an index of the documents "one" and "two", which is copied.
        embedder: Made it.
        monkeypatch: For limits.
    """

    def __init__(self, folder, built, embedder, monkeypatch):
        self.folder, self.embedder, self.monkeypatch = folder, embedder, monkeypatch
        self.index_folder = folder / "index"
        shutil.copytree(built, self.index_folder)

    def index(self, embedder=None):
        return SugarIndex.load(self.index_folder, embedder or self.embedder)

    def file(self, name, data):
        path = self.folder / name
        path.write_bytes(data)
        return path

    def add(self, *samples, on_error="raise", **options):
        """Add a good document, and the given ones as "bad"."""
        documents = [{"id": "good", "text": "a cat"}, *({"id": "bad", "document": sample} for sample in samples)]
        return self.index().add(documents, on_error=on_error, show_progress=False, **options)

    def same(self, sample, expected):
        """Whether a document is embedded as another sample is."""
        self.add(sample)
        found, wanted = self.embedder.embed_documents([self.index().get("bad"), Document("x", expected)])
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def encode(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
PNG = encode(NOISE)


def flat_png(width, height):
    """A PNG file that claims a size, with nothing in it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---- Images ----

for _what, _data, _says in (
    ("A file of 0 bytes", b"", "is not an image of a supported type"),
    ("An image of 0 x 0 pixels", flat_png(0, 0), "is not an image of a supported type"),
    ("A text file named .png", b"hello", "is not an image of a supported type"),
    (
        "SVG, which may name other files",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "is not an image of a supported",
    ),
    (
        "EPS, which is a program",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "is not an image of a supported",
    ),
    ("A truncated file", PNG[: len(PNG) // 2], "is truncated or corrupt"),
    ("A flipped byte", PNG[:2000] + bytes([PNG[2000] ^ 255]) + PNG[2001:], "is truncated or corrupt"),
    ("A small file of 60,000 x 60,000 pixels", flat_png(60_000, 60_000), "may be a decompression bomb"),
):

    @refused("Images", _what, BadSampleError, _says)
    def _(place, data=_data):
        place.add(place.file("bad.png", data), on_error=place.on_error)


@refused("Images", "A PIL image of 0 x 3 pixels", BadSampleError, "has 0 x 3 pixels")
def _(place):
    place.add(Image.new("RGB", (0, 3)), on_error=place.on_error)


@refused("Images", "Pixels that are floating-point numbers", BadSampleError, "whose range is unknown")
def _(place):
    place.add(Image.new("F", (4, 4)), on_error=place.on_error)


@refused("Images", "More pixels than `PIL.Image.MAX_IMAGE_PIXELS`", BadSampleError, "may be a decompression bomb")
def _(place):
    place.monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 60 - 1)
    place.add(place.file("bad.png", PNG), on_error=place.on_error)


@refused("Images", "A path where no file is", BadSampleError, "no file")
def _(place):
    place.add(place.folder / "gone.png", on_error=place.on_error)


@refused("Images", "A folder", BadSampleError, "no file")
def _(place):
    place.add(place.folder, on_error=place.on_error)


@refused("Images", "A named pipe or a device", BadSampleError, "no file")
def _(place):
    os.mkfifo(place.folder / "pipe.png")
    place.add(place.folder / "pipe.png", on_error=place.on_error)


@refused("Images", "Damaged base64", BadSampleError, "invalid base64")
def _(place):
    place.add({"type": "image", "base64": "a$b"}, on_error=place.on_error)


FRAMES = [Image.new("RGB", (24, 24), colour) for colour in ("red", "lime")]


@used("Images", "An animation", "its first frame")
def _(place):
    place.same(place.file("a.gif", encode(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:])), FRAMES[0])


@used("Images", "CMYK", "as RGB")
def _(place):
    image = Image.new("CMYK", (24, 24), (0, 255, 255, 0))
    place.same(place.file("a.tif", encode(image, "TIFF")), image.convert("RGB"))


@used("Images", "16-bit grey", "scaled to 8 bits, not clipped")
def _(place):
    deep = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24) * 100
    place.same(place.file("a.png", encode(Image.fromarray(deep))), Image.fromarray((deep >> 8).astype(np.uint8)))


@used("Images", "Transparent pixels", "laid on white")
def _(place):
    place.same(
        place.file("a.png", encode(Image.new("RGBA", (24, 24), (9, 9, 9, 0)))), Image.new("RGB", (24, 24), "white")
    )


@used("Images", "An EXIF orientation", "turned as it says")
def _(place):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(NOISE, "TIFF", exif=exif)
    place.same(place.file("a.tif", data), NOISE.transpose(Image.Transpose.ROTATE_270))


@used("Images", "A JPEG named .png, a PNG named .txt", "what is in the file counts")
def _(place):
    place.same(
        [place.file("a.png", encode(NOISE, "JPEG", quality=100)), place.file("a.txt", PNG)],
        [Image.open(io.BytesIO(encode(NOISE, "JPEG", quality=100))), NOISE],
    )


@used("Images", "One pixel", "embedded")
def _(place):
    place.same(place.file("a.png", encode(Image.new("RGB", (1, 1), "red"))), Image.new("RGB", (1, 1), "red"))


# ---- Texts and documents ----

for _what, _sample, _says in (
    ("An empty text", "", "the text is empty"),
    ("White space alone", " \n\t", "the text is empty"),
    ("Half a surrogate pair", "a\ud800b", "is not valid Unicode"),
    ("An empty list", [], "neither text nor image"),
    ("System messages alone", [{"role": "system", "content": "Be nice."}], "nothing but system messages"),
    ("An unknown role", [{"role": "bot", "content": "Hi."}], "unknown role 'bot'"),
    ("A number", 3, "is neither text nor image"),
    ("A part with two images", {"type": "image", "path": "a", "url": "b"}, "needs one of image, path, base64"),
):

    @refused("Texts and documents", _what, BadSampleError, _says)
    def _(place, sample=_sample):
        place.add(sample, on_error=place.on_error)


@refused("Texts and documents", "10,000 slices and `max_length=512`", BadSampleError, "more than max_length=512")
def _(place):
    place.embedder = SugarEmbedder(place.embedder.model, place.embedder.processor, max_length=512)
    place.embedder.embed_documents([Document("bad", ["word"] * 10_000)])


@used("Texts and documents", '10,000 slices and `truncation="slice"`', "the first that fit, with a warning")
def _(place):
    embedder = SugarEmbedder(
        place.embedder.model, place.embedder.processor, max_length=64, truncation="slice", positions="all"
    )
    with pytest.warns(UserWarning, match=r"of 10000 slices|in 10000 slices.*dropped its last 99\d\d slices"):
        [found] = embedder.embed_documents([Document("long", ["word"] * 10_000)])
    assert 0 < len(found) < 64


@used("Texts and documents", "10,000 slices with vectors of your own", "stored, and found at each slice")
def _(place):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((10_000, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = SugarIndex.create(place.folder / "long", dim=8, positions="all")
    index.add_embedded([Document("long", [f"word {i}" for i in range(10_000)])], [vectors])
    scores, places = SugarIndex.load(place.folder / "long").search_embeddings(vectors[[9_876]], 1)
    assert (round(float(scores[0, 0]), 4), int(places[0, 0])) == (1.0, 0)
    assert len(index.get("long").load()) == 10_000


@refused("Texts and documents", "A text file that is not UTF-8", BadSampleError, "is not UTF-8")
def _(place):
    list(read_documents(place.file("a.txt", "caf\u00e9".encode("latin-1"))))


@refused("Texts and documents", "A JSON lines file that is not UTF-8", BadSampleError, "invalid JSON ('utf-8' codec")
def _(place):
    list(read_documents(place.file("a.jsonl", b'{"text": "caf\xe9"}\n')))


@used("Texts and documents", "A literal `<image>`, NUL and other control characters", "text as any other")
def _(place):
    place.add("a <image> and \x00\x1b[31m")
    assert place.index().get("bad").load() == ["a <image> and \x00\x1b[31m"]


# ---- Ids and metadata ----

for _what, _document, _says in (
    ("An empty id", {"id": " ", "text": "a"}, "the id is empty"),
    ("An id of 513 bytes", {"id": "x" * 513, "text": "a"}, "has 513 bytes, 512 are allowed"),
    ("An id with a line break", {"id": "a\nb", "text": "a"}, "has control characters"),
    ("NaN as metadata", {"id": "bad", "text": "a", "metadata": {"year": float("nan")}}, "is no number"),
    ("Nested metadata", {"id": "bad", "text": "a", "metadata": {"a": {"b": 1}}}, "nothing nested"),
    ("A whole number of more than 64 bits", {"id": "bad", "text": "a", "n": 2**70}, "does not fit 64 bits"),
):

    @refused("Ids and metadata", _what, BadSampleError, _says)
    def _(place, document=_document):
        place.index().add([{"id": "good", "text": "a cat"}, document], show_progress=False)


@refused("Ids and metadata", "An id twice in one call", DuplicateIdError, "given twice: 'three'")
def _(place):
    place.index().add([{"id": "three", "text": "a"}, {"id": "three", "text": "b"}], show_progress=False)


@refused("Ids and metadata", "An id that is there", DuplicateIdError, "in the index already")
def _(place):
    place.index().add([{"id": "one", "text": "a"}], show_progress=False)


@refused("Ids and metadata", "A filter with an unknown operator", ValueError, "$near")
def _(place):
    place.index().search("a", where={"year": {"$near": 2000}})


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
        place.index().add_embedded([Document("bad", "a")], [_unit(place, **change)])


@refused("Vectors", "Another number of dimensions", IndexMismatchError, "expected vectors of 16 dimensions")
def _(place):
    place.index().add_embedded([Document("bad", "a")], [np.ones(7, np.float32)])


@refused("Vectors", "Fewer vectors than documents", ValueError, "'bad' has no vector")
def _(place):
    place.index().add_embedded([Document("good", "a"), Document("bad", "b")], [_unit(place)])


@refused("Vectors", "More vectors than documents", ValueError, "more vectors than documents")
def _(place):
    place.index().add_embedded([Document("good", "a")], [_unit(place)] * 2)


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
    for name in read_current(folder).names():
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

    @refused("Paths and addresses", f"A manifest that names {_what}", DamagedIndexError, "is no name of a file")
    def _(place, kind=_kind):
        current = json.loads((place.index_folder / "CURRENT").read_bytes())
        values = json.loads((place.index_folder / current["manifest"]).read_bytes())
        there = _move_out(place, f"segments/{_texts(values)['name']}")
        name = str(there) if kind == "absolute" else f"../../outside/{there.name}"
        rewrite(place, lambda values, current: _texts(values).update(name=name))
        place.index()

    @refused("Paths and addresses", f"CURRENT that names {_what}", DamagedIndexError, "is no name of a file")
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
    head = dataclasses.replace(manifest.head, backend="milvus", backend_options={"uri": place.address})
    write_current(place.index_folder, dataclasses.replace(manifest, head=head, graph=None))
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


# ---- The table ----


def render():
    """Write the table of all cases."""
    lines = []
    for group in dict.fromkeys(case.group for case in CASES):
        lines += [f"### {group}\n", "| input | what happens |", "|---|---|"]
        for case in CASES:
            if case.group == group:
                answer = case.says if case.error is None else f"`{case.error.__name__}`: \u201c{case.says}\u201d"
                lines.append(f"| {case.what} | {answer} |")
        lines.append("")
    return "\n".join(lines)


def replace(text, table):
    """Put a table in the place of the one that a document has."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]
