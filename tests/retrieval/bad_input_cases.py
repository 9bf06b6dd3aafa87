"""Bad input and what becomes of it: the cases of test_bad_input.py and of the table in docs/bad_input.md."""

import gzip
import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, Document, read_documents
from sugar_hf.retrieval import DuplicateIdError, SugarEmbedder, SugarIndex

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


# A PDF of an empty page. Nobody knows its password.
ENCRYPTED_PDF = b"".join(
    (
        b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\n",
        b"2 0 obj\n<< /Type /Pages /Count 1 /Kids [3 0 R] >>\nendobj\n",
        b"3 0 obj\n<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>\nendobj\n",
        b"xref\n0 4\n0000000000 65535 f \n0000000009 00000 n \n0000000058 00000 n \n0000000115 00000 n \n",
        b"trailer << /Size 4 /Root 1 0 R /ID [<00> <00>] /Encrypt << /Filter /Standard /V 1 /R 2 /P -4 ",
        b"/O <" + b"ab" * 32 + b"> /U <" + b"cd" * 32 + b"> >> >>\nstartxref\n186\n%%EOF\n",
    )
)


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


@refused("Images", "Greys of 32 bits (Pillow's mode `I`)", BadSampleError, "whose range is unknown")
def _(place):
    place.add(Image.linear_gradient("L").convert("I"), on_error=place.on_error)


@refused("Images", "A line of 1 x 10,000 pixels", BadSampleError, "may be 200 times the shorter at most")
def _(place):
    place.add(Image.new("L", (1, 10_000)), on_error=place.on_error)


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
    pipe = place.folder / "pipe.png"
    if not pipe.exists():
        os.mkfifo(pipe)
    place.add(pipe, on_error=place.on_error)


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
    index.add([Document("long", [f"word {i}" for i in range(10_000)])], [vectors])
    scores, places = SugarIndex.load(place.folder / "long").search_embeddings(vectors[[9_876]], 1)
    assert (round(float(scores[0, 0]), 4), int(places[0, 0])) == (1.0, 0)
    assert len(index.get("long").load()) == 10_000


@refused("Texts and documents", "A text file that is not UTF-8", BadSampleError, "is not UTF-8")
def _(place):
    list(read_documents(place.file("a.txt", "caf\u00e9".encode("latin-1"))))


for _what, _name, _data, _says in (
    ("An encrypted PDF", "a.pdf", ENCRYPTED_PDF, "is encrypted, and opens with a password alone"),
    ("A damaged PDF", "a.pdf", b"%PDF-1.4 cut off", "the PDF is damaged, or none"),
    ("HTML with a picture outside the image root", "a.html", b"a<img src='../b.png'>", "lies outside the image root"),
    ("HTML with a picture under `file:`", "a.html", b"<img src='file:///b.png'>", "files are not read by address"),
    ("HTML in an encoding that it does not name", "a.html", b"caf\xe9", "not UTF-8, and it names no encoding"),
    ("HTML with 100,000 nested tags", "a.html", b"<div>" * 100_000, "tags are nested more than 1000 deep"),
    ("HTML with a comment that does not end", "a.html", b"a <!-- b", "the page breaks off"),
    ("Markdown with 100 nested quotations", "a.md", b">" * 100 + b"a", "blocks are nested more than 100 deep"),
    ("HTML or Markdown without text and picture", "a.md", b"", "the page has neither text nor picture"),
):

    @refused("Texts and documents", _what, BadSampleError, _says)
    def _(place, name=_name, data=_data):
        list(read_documents(place.file(name, data)))


@used("Texts and documents", "HTML with entities of entities, or of files", "they stay as they are written")
def _(place):
    bomb = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;"><!ENTITY d SYSTEM "file:///etc/passwd">]><p>&c; &d;'
    [document] = read_documents(place.file("a.html", bomb))
    assert document.sample[-1] == "&c; &d;"


@used("Texts and documents", "A picture at an address in HTML or Markdown", "its `alt` in its place, and a warning")
def _(place):
    with pytest.warns(UserWarning, match="1 pictures at addresses"):
        [document] = read_documents(place.file("a.md", b"a ![cat](https://x.org/cat.png)"))
    assert document.sample == ["a cat"]


@used("Texts and documents", "Two sections with one anchor", "`a.html#b` and `a.html#b-1`")
def _(place):
    found = read_documents(place.file("a.html", b"<h1 id=b>c</h1><h1 id=b>d</h1>"))
    assert [document.id for document in found] == ["a.html#b", "a.html#b-1"]


@used("Texts and documents", "A page of a PDF without text", "the picture of the page alone")
def _(place):
    Image.new("RGB", (60, 40)).save(place.folder / "a.pdf", "PDF")
    [document] = read_documents(place.folder / "a.pdf")
    assert len(document.sample) == 1


@refused("Texts and documents", "A JSON lines file that is not UTF-8", BadSampleError, "invalid JSON ('utf-8' codec")
def _(place):
    list(read_documents(place.file("a.jsonl", b'{"text": "caf\xe9"}\n')))


for _what, _row, _says in (
    ("A row with a film or a sound", {"text": "a", "video": "a.mp4"}, "names a video or a sound that is not used"),
    ("A row with an image that is not read", {"text": "a", "figure": "a.png"}, "names an image that is not used"),
    ("`text` and `caption` that differ", {"text": "a", "caption": "b"}, "say different things"),
    (
        "`<image>` in a question of a row without images",
        {"messages": [{"role": "user", "content": "<image>What is it?"}]},
        "<image> in a row without `image`",
    ),
    (
        "More images than places for them",
        {"messages": [{"role": "user", "content": "<image>What is it?"}], "images": [PNG, PNG]},
        "fewer image parts are given",
    ),
):

    @refused("Texts and documents", _what, BadSampleError, _says)
    def _(place, row=_row):
        place.index().add([{"id": "good", "text": "a cat"}, {"id": "bad", **row}], show_progress=False)


@refused("Texts and documents", "A JSON object with a key twice", BadSampleError, "stands twice in one object")
def _(place):
    list(read_documents(place.file("a.jsonl", b'{"text": "a", "text": "b"}\n')))


@refused("Texts and documents", "A CSV header with a name twice", BadSampleError, "the header names 'text' twice")
def _(place):
    list(read_documents(place.file("a.csv", b"text,text\na,b\n")))


@refused("Texts and documents", "A file of another kind", ValueError, "Decompress it first")
def _(place):
    read_documents(place.file("a.jsonl.zst", b""))


@used("Texts and documents", "An empty cell of a column of images", "a document of its text")
def _(place):
    [document] = read_documents(place.file("a.csv", b"image,text\n,a cat\n"))
    assert document.load() == ["a cat"]


@used("Texts and documents", "A CSV field of 300,000 characters", "read")
def _(place):
    [document] = read_documents(place.file("a.csv", b"text\n" + b"a" * 300_000 + b"\n"))
    assert document.size == (0, 300_000)


@used("Texts and documents", "UTF-16, gzip, JSON over several lines", "read")
def _(place):
    data = '{\n"text": "a cat"\n}\n'.encode("utf-16")
    [document] = read_documents(place.file("a.json.gz", gzip.compress(data)))
    assert document.load() == ["a cat"]


@used("Texts and documents", "A hole in a web document and `drop_broken_images`", "only that place is left out")
def _(place):
    file = place.file("a.jsonl", b'{"texts": ["a", null, "b"], "images": [null, null, null]}\n')
    [document] = read_documents(file, drop_broken_images=True)
    assert document.load() == ["a", "b"]


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
    ("A column of bytes", {"id": "bad", "text": "a", "n": b"a"}, "Leave the column out with drop_columns"),
):

    @refused("Ids and metadata", _what, BadSampleError, _says)
    def _(place, document=_document):
        place.index().add([{"id": "good", "text": "a cat"}, document], show_progress=False)


@used("Ids and metadata", "Dates, durations, decimals", "texts in ISO form, seconds, numbers")
def _(place):
    values = {"day": date(2024, 2, 29), "lasted": timedelta(minutes=1), "price": Decimal("1.5")}
    place.index().add([{"id": "bad", "text": "a", **values}], show_progress=False)
    assert place.index().get("bad").metadata == {"day": "2024-02-29", "lasted": 60.0, "price": 1.5}


@used("Ids and metadata", "NaN in a column", "absent")
def _(place):
    place.index().add([{"id": "bad", "text": "a", "year": float("nan")}], show_progress=False)
    assert place.index().get("bad").metadata == {"year": None}


@refused("Ids and metadata", "An id twice in one call", DuplicateIdError, "given twice: 'three'")
def _(place):
    place.index().add([{"id": "three", "text": "a"}, {"id": "three", "text": "b"}], show_progress=False)


@refused("Ids and metadata", "An id that is there", DuplicateIdError, "in the index already")
def _(place):
    place.index().add([{"id": "one", "text": "a"}], show_progress=False)


@refused("Ids and metadata", "A filter with an unknown operator", ValueError, "$near")
def _(place):
    place.index().search("a", where={"year": {"$near": 2000}})


# ---- The table ----


def render():
    """Write the table of all cases."""
    lines = []
    for group in dict.fromkeys(case.group for case in CASES):
        lines += [f"## {group}\n", "| input | what happens |", "|---|---|"]
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
