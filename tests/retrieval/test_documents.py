"""Documents: every form a user may write, the stored form and back, and what is refused."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from sugar_hf import picturebook
from sugar_hf.data import BadSampleError, Document, as_document, load_dataset_file, read_documents
from sugar_hf.data.documents import DOCUMENT_FEATURES


def png(color="red", size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "red.png"
    file.write_bytes(png())
    return file


def flat(loaded):
    """A loaded sample with images as their sizes and first pixels."""
    return [item if isinstance(item, str) else (item.size, item.getpixel((0, 0))) for item in loaded]


RED = ((6, 4), (255, 0, 0))


def test_every_form_of_a_sample_is_the_same_document(photo, subtests):
    for sample in [
        lambda photo: ["a", photo, "b"],
        lambda photo: ("a", Image.open(photo), "b"),
        lambda photo: ["a", photo.read_bytes(), "b"],
        lambda photo: ["a", {"bytes": photo.read_bytes(), "path": None}, "b"],
        lambda photo: ["a", {"bytes": None, "path": str(photo)}, "b"],
        lambda photo: [{"type": "text", "text": "a"}, {"type": "image", "image": photo}, "b"],
        lambda photo: ["a", {"type": "image", "path": str(photo)}, "b"],
        lambda photo: ["a", {"type": "image", "base64": base64.b64encode(photo.read_bytes()).decode()}, "b"],
    ]:
        with subtests.test(sample=f"{sample!r:.60}"):
            document = as_document(sample(photo), 3, prefix="doc-")
            assert document.id == "doc-3"
            assert flat(document.load()) == ["a", RED, "b"]
            assert document.size == (1, 2)
            back = Document.from_row(document.to_row())
            assert flat(back.load()) == ["a", RED, "b"]
            assert back.digest == document.digest == document.to_row()["digest"]


def test_a_text_an_image_a_path_alone(photo):
    assert as_document("words", 0).load() == ["words"]
    assert flat(as_document(photo, 0).load()) == [RED]
    assert flat(as_document(Image.open(photo), 0).load()) == [RED]


def test_chats_keep_their_roles(photo):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [photo, "What is it?"]},
        {"role": "assistant", "content": "Red."},
    ]
    document = as_document(chat, 0)
    loaded = Document.from_row(document.to_row()).load()
    assert [message["role"] for message in loaded] == ["system", "user", "assistant"]
    assert [part["type"] for part in loaded[1]["content"]] == ["image", "text"]
    assert loaded[1]["content"][0]["image"].size == (6, 4)
    assert document.size == (1, len("Be brief.What is it?Red."))


def test_rows_of_the_common_schema():
    rows = picturebook.load("test", size=12)
    for number, row in enumerate(rows):
        document = as_document(row, number)
        assert document.id == row["id"]
        assert document.metadata["kind"] == row["kind"]
        assert document.metadata["question_kinds"] == row["question_kinds"]
        assert len(document.content.images) == len(row["images"])
        assert document.content.messages == row["messages"]


def test_mappings(photo):
    document = as_document({"id": 7, "document": ["a", photo], "metadata": {"year": 2000}, "kind": "story"}, 0)
    assert (document.id, document.metadata) == ("7", {"kind": "story", "year": 2000})
    assert flat(document.load()) == ["a", RED]
    both = as_document({"text": "a", "image": photo}, 5)
    assert (both.id, flat(both.load())) == ("5", [RED, "a"])
    several = as_document({"images": [photo, str(photo)]}, 0)
    assert flat(several.load()) == [RED, RED]
    assert as_document({"text": ["a", "b"]}, 0).load() == ["a", "b"]


def test_stored_rows_fit_the_features_and_hold_no_path(photo):
    documents = [as_document([photo, "a"], 0), as_document({"text": "b", "tags": ["x", "y"]}, 1)]
    dataset = Dataset.from_list([document.to_row() for document in documents], features=DOCUMENT_FEATURES)
    assert dataset[0]["images"] == [{"bytes": photo.read_bytes(), "path": None}]  # verbatim
    assert json.loads(dataset[1]["metadata"]) == {"tags": ["x", "y"]}
    photo.unlink()
    assert flat(Document.from_row(dataset[0]).load()) == [RED, "a"]
    assert str(photo.parent) not in str(dataset[:])


def test_a_stored_row_that_names_a_file_is_refused(photo):
    row = as_document(photo, 0).to_row()
    row["images"] = [{"bytes": None, "path": str(photo)}]
    with pytest.raises(BadSampleError, match=r"sample '0'.*images\[0\].*no bytes"):
        Document.from_row(row)


def test_the_digest_is_of_everything(photo):
    base = {"id": "a", "document": [photo, "words"], "metadata": {"x": 1, "y": 2}}
    first = as_document(base, 0).digest
    assert as_document({**base, "metadata": {"y": 2, "x": 1}}, 9).digest == first
    chat = [{"role": "user", "content": [photo, "words"]}]
    other = {"id": "b"}, {"document": [photo, "word"]}, {"document": ["words", photo]}, {"metadata": {"x": 1}}
    digests = {as_document({**base, **change}, 0).digest for change in (*other, {"document": chat})}
    assert len(digests | {first}) == 6
    photo.write_bytes(png("blue"))
    assert as_document(base, 0).digest != first


def test_pil_images_are_stored_without_loss():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    document = as_document(Image.fromarray(pixels), 0)
    assert np.array_equal(np.asarray(Document.from_row(document.to_row()).load()[0]), pixels)


def test_exif_cmyk_16_bit_and_animations(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("CMYK", (6, 4), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.full((4, 6), 32768, np.uint16)).save(tmp_path / "deep.png")
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "wrong.jpg").write_bytes(png())
    [turned] = as_document(tmp_path / "turned.jpg", 0).load()
    assert turned.size == (4, 6)
    [cmyk] = as_document(tmp_path / "cmyk.jpg", 0).load()
    assert cmyk.mode == "RGB"
    assert cmyk.getpixel((0, 0))[0] > 200
    assert flat(as_document(tmp_path / "deep.png", 0).load()) == [((6, 4), (128, 128, 128))]
    assert flat(as_document(tmp_path / "moving.gif", 0).load()) == [((6, 4), frames[0].getpixel((0, 0)))]
    assert flat(as_document(tmp_path / "wrong.jpg", 0).load()) == [RED]


BAD_SAMPLES = {
    "nothing": ([], "document: has neither text nor image"),
    "empty text": (["a", " \n"], r"document\[1\]: the text is empty"),
    "half a surrogate": (["a\ud800"], "not valid Unicode"),
    "a number": (["a", 3], r"document\[1\]: int is neither text nor image"),
    "None": (["a", None], r"document\[1\]: NoneType is neither"),
    "a URL": ([{"type": "image", "url": "http://localhost/a.png"}], r"\[0\].url: .* is a URL, which is not fetched"),
    "a URL as a path": ([{"type": "image", "image": "https://localhost/a.png"}], "Download the image first"),
    "two images in a part": ([{"type": "image", "image": "a", "path": "b"}], "needs one of image, path, base64"),
    "no base64": ([{"type": "image", "base64": "%%%"}], "invalid base64"),
    "a role": ([{"role": "robot", "content": "a"}], r"messages\[0\].role: unknown role 'robot'"),
    "a message without content": ([{"role": "user", "content": []}], r"messages\[0\].content: it is empty"),
    "only a system message": ([{"role": "system", "content": "a"}], "nothing but system messages"),
}


def test_bad_samples(subtests):
    for name, (sample, message) in BAD_SAMPLES.items():
        with subtests.test(name=name):
            with pytest.raises(BadSampleError, match=message) as caught:
                as_document({"id": "mine", "messages" if message.startswith("messages") else "document": sample}, 0)
            assert "sample 'mine'" in str(caught.value)


BAD_ITEMS = {
    "empty id": ({"id": " ", "text": "a"}, "id: the id is empty"),
    "long id": ({"id": "é" * 257, "text": "a"}, "514 bytes, 512 are allowed"),
    "id with a line break": ({"id": "a\nb", "text": "a"}, "control characters"),
    "id of another type": ({"id": 1.5, "text": "a"}, "id: expected a string or a whole number, got float"),
    "nested metadata": ({"text": "a", "metadata": {"k": {"x": 1}}}, r"metadata\['k'\]: dict is not allowed"),
    "nested list": ({"text": "a", "metadata": {"k": [[1]]}}, "list is not allowed"),
    "NaN": ({"text": "a", "metadata": {"k": float("nan")}}, r"metadata\['k'\]: nan is no number"),
    "infinite column": ({"text": "a", "score": np.float32("inf")}, r"metadata\['score'\]: inf is no number"),
    "large number": ({"text": "a", "metadata": {"k": 2**63}}, "does not fit 64 bits"),
    "key": ({"text": "a", "metadata": {3: "x"}}, "the key 3 is no string"),
    "metadata of another type": ({"text": "a", "metadata": ["x"]}, "metadata: expected a dict, got list"),
    "broken JSON": ({"text": "a", "metadata": "{"}, "metadata: invalid JSON"),
    "nothing": ({"id": "a", "year": 3}, "says nothing that could be found"),
    "two samples": ({"document": "a", "text": "b"}, "document and text both say"),
    "a nested column": ({"text": "a", "vector": [1.0, 2.0]}, "vector: expected a scalar or a list of strings"),
    "too few images": ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "there are 0, but more"),
    "too many images": (
        {"messages": [{"role": "user", "content": "<image>a"}], "images": [b"x", b"y"]},
        "but fewer image parts",
    ),
    "images of another type": ({"images": "a.png"}, "images: expected a list, got str. Use `image` for one"),
}


def test_bad_items(subtests):
    for name, (item, message) in BAD_ITEMS.items():
        with subtests.test(name=name):
            with pytest.raises(BadSampleError, match=message) as caught:
                as_document(item, 17)
            assert "row 17" in str(caught.value)


BAD_IMAGES = {
    "missing": (None, "no file"),
    "empty": (b"", "not an image of a supported type"),
    "text": (b"hello", "not an image of a supported type"),
    "truncated": (png(size=(300, 300))[:-30], "truncated or corrupt"),
}


@pytest.mark.parametrize(("data", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_bad_images_are_named(tmp_path, data, message):
    file = tmp_path / "bad.png"
    if data is not None:
        file.write_bytes(data)
    document = as_document({"id": "mine", "document": ["a", Image.new("RGB", (2, 2)), file]}, 0)
    with pytest.raises(BadSampleError, match=rf"sample 'mine'.*images\[1\].*{message}"):
        document.load()
    if data is None:
        with pytest.raises(BadSampleError, match=r"sample 'mine'.*images\[1\].*no file"):
            document.to_row()


def test_images_without_pixels_and_bombs(monkeypatch):
    document = as_document({"id": "mine", "image": Image.new("RGB", (0, 3))}, 0)
    with pytest.raises(BadSampleError, match=r"sample 'mine'.*images\[0\].*0 x 3 pixels"):
        document.load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(BadSampleError, match=r"sample 'mine'.*decompression bomb"):
        as_document({"id": "mine", "image": png()}, 0).load()


def test_a_document_of_ten_thousand_slices():
    document = as_document(["word"] * 10_000, 0)
    assert document.size == (0, 40_000)
    assert len(Document.from_row(document.to_row()).load()) == 10_000


# ---- Reading ----


@pytest.fixture
def album(tmp_path):
    """Photos with and without captions, notes, and files that are none of these."""
    folder = tmp_path / "album"
    (folder / "sea").mkdir(parents=True)
    (folder / "sea" / "b.PNG").write_bytes(png("blue"))
    (folder / "sea" / "b.txt").write_text("the sea", encoding="utf-8-sig")
    (folder / "a.png").write_bytes(png())
    (folder / "c.png").write_bytes(png("lime"))
    (folder / "c.json").write_text('{"caption": "a meadow"}')
    (folder / "notes.md").write_text("# Notes")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_a_folder_of_images(album):
    found = {document.id: flat(document.load()) for document in read_documents(album)}
    assert list(found) == ["notes.md#notes", "a.png", "c.png", "sea/b.PNG"]
    assert found["a.png"] == [RED]
    assert found["c.png"][1] == "a meadow"
    assert found["sea/b.PNG"] == [((6, 4), (0, 0, 255)), "the sea"]
    assert found["notes.md#notes"] == ["Notes"]


def test_without_captions_texts_are_documents(album):
    (album / "c.json").unlink()
    ids = [document.id for document in read_documents(album, captions=False)]
    assert ids == ["notes.md#notes", "a.png", "c.png", "sea/b.PNG", "sea/b.txt"]


def test_other_files_are_counted(album):
    (album / "film.mp4").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left alone \(.mp4: 1\)"):
        assert len(list(read_documents(album))) == 4


def test_faulty_texts_name_their_file(album):
    (album / "notes.md").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(BadSampleError, match=r"notes.md: text: notes.md is not UTF-8"):
        list(read_documents(album))
    skipped = []
    assert len(list(read_documents(album, on_error="skip", skipped=skipped))) == 3
    assert "notes.md" in str(skipped[0])


def write_lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_json_lines(photo, tmp_path):
    rows = [
        {"id": "plain", "text": "a", "metadata": {"year": 1}, "lang": "en"},
        {"image": "red.png"},
        {"id": "both", "caption": "b", "images": ["red.png", "red.png"]},
        {"id": "mixed", "document": ["a", {"image": "red.png"}, {"type": "text", "text": "b"}, "red.png"]},
        {"id": "chat", "messages": [{"role": "user", "content": [{"type": "image", "image": "red.png"}, "q"][:1]}]},
        {"id": "named", "text": "c", "path": "/where/it/came/from.html", "error": None},
    ]
    found = list(read_documents(write_lines(tmp_path / "docs.jsonl", rows)))
    assert [document.id for document in found] == ["plain", "docs-1", "both", "mixed", "chat", "named"]
    assert found[0].metadata == {"lang": "en", "year": 1}
    assert [flat(document.load()) for document in found[:4]] == [
        ["a"],
        [RED],
        [RED, RED, "b"],
        ["a", RED, "b", "red.png"],  # a string is a text, never the name of a file
    ]
    assert found[4].size == (1, 0)
    assert found[5].metadata == {"path": "/where/it/came/from.html", "error": None}


def test_other_names_of_columns(tmp_path):
    rows = [{"uid": 4, "body": "a", "text": "title"}]
    [document] = read_documents(write_lines(tmp_path / "x.jsonl", rows), text_field="body", id_field="uid")
    assert (document.id, document.load()) == ("4", ["a"])
    assert document.metadata == {"text column": "title", "uid": 4}
    with pytest.raises(BadSampleError, match=r"x.jsonl:1.*text_body: the row has no such column; it has uid, body"):
        list(read_documents(tmp_path / "x.jsonl", text_field="text_body"))
    with pytest.raises(BadSampleError, match="name: the row has no id there"):
        list(read_documents(tmp_path / "x.jsonl", id_field="name"))


def test_no_row_leads_out_of_the_image_root(tmp_path, subtests):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(png())
    for form in ["image", "document", "messages"]:
        for image, message in [
            ("../secret.png", "outside the image root"),
            ("/etc/passwd", "outside the image root"),
            ("http://127.0.0.1/a.png", "is a URL"),
            ("none.png", "no file"),
        ]:
            with subtests.test(image=image, message=message, form=form):
                part = {"type": "image", "image": image}
                row = {
                    "image": {"image": image},
                    "document": {"document": ["a", part]},
                    "messages": {"messages": [{"role": "user", "content": [part]}]},
                }[form]
                file = write_lines(folder / "x.jsonl", [{"id": "ok", "text": "a"}, {"id": "bad", **row}])
                with pytest.raises(BadSampleError, match=rf"x.jsonl:2 .*{message}"):
                    list(read_documents(file))
                skipped = []
                assert [document.id for document in read_documents(file, on_error="skip", skipped=skipped)] == ["ok"]
                assert len(skipped) == 1


def test_broken_lines_are_named_or_skipped(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text"\n[1]\n{"text": ""}\n')
    skipped = []
    assert [d.id for d in read_documents(tmp_path / "x.jsonl", on_error="skip", skipped=skipped)] == ["x-0"]
    assert [error.line for error in skipped] == [2, 3, 4]


FIXTURES = Path(__file__).parents[1] / "data" / "fixtures"


@pytest.mark.parametrize("name", ["chat.jsonl", "mmc4.jsonl", "obelics.jsonl", "llava.json", "coyo.jsonl"])
def test_known_formats_read_as_the_data_readers_do(name, tmp_path):
    rows = _names_of_images(FIXTURES / name)
    for image in rows:
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / image).write_bytes(png())
    wanted = load_dataset_file(FIXTURES / name, image_root=tmp_path)
    found = list(read_documents(FIXTURES / name, image_root=tmp_path))
    assert [document.id for document in found] == wanted["id"][:]
    for document, row in zip(found, wanted, strict=True):
        assert document.content.messages == row["messages"]
        assert len(document.content.images) == len(row["images"])


def _names_of_images(file):
    return sorted(set(re.findall(r'"([\w/.-]+\.(?:jpg|png))"', file.read_text())))


def test_saved_data_sets_and_parquet(tmp_path):
    rows = picturebook.load("test", size=5)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    wanted = [as_document(row, i).digest for i, row in enumerate(rows)]
    assert [document.digest for document in read_documents(tmp_path / "saved")] == wanted
    assert [document.digest for document in read_documents(tmp_path / "rows.parquet")] == wanted


def test_image_folders_with_metadata(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "metadata.csv").write_text("file_name,text,year\na.png,red,2001\n")
    [document] = read_documents(tmp_path)
    assert (document.id, flat(document.load()), document.metadata) == ("a.png", [RED, "red"], {"year": 2001})


def test_single_files_and_wrong_paths(photo, tmp_path):
    [document] = read_documents(photo)
    assert (document.id, flat(document.load())) == ("red.png", [RED])
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_documents(tmp_path / "none")
    (tmp_path / "x.docx").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x.docx' is none of the files that are read"):
        read_documents(tmp_path / "x.docx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image, page or text file"):
        read_documents(tmp_path / "empty")
    with pytest.raises(ValueError, match="on_error"):
        read_documents(photo, on_error="ignore")
