"""A folder of PDF, HTML, Markdown, images and texts is read as a whole, by readers for indexes and for training."""

import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, load_dataset_file, read_documents

pytest.importorskip("pypdfium2")
IDS = ["guide/a.html#a", "guide/b.md#b", "scan.pdf#p1", "guide/alone.png", "guide/told.png", "notes.txt"]


@pytest.fixture
def manuals(tmp_path):
    """A folder with one of each; the page shows one of three pictures."""
    folder = tmp_path / "manuals"
    (folder / "guide").mkdir(parents=True)
    for name in ("shown", "alone", "told"):
        Image.new("RGB", (6, 4), "red").save(folder / "guide" / f"{name}.png")
    (folder / "guide" / "told.txt").write_text("a caption")
    (folder / "guide" / "a.html").write_text('<h1 id="a">A</h1><p>x<img src="shown.png"><img src="told.png">')
    (folder / "guide" / "b.md").write_text("# B\n\ny")
    Image.new("RGB", (60, 40), "blue").save(folder / "scan.pdf", "PDF")
    (folder / "notes.txt").write_text("# not Markdown")
    return folder


def test_pages_come_first_and_the_pictures_that_they_show_are_theirs(manuals):
    found = {document.id: document.sample for document in read_documents(manuals)}
    assert list(found) == IDS
    assert [getattr(part, "name", part) for part in found["guide/told.png"]] == ["told.png", "a caption"]
    assert found["notes.txt"] == ["# not Markdown"]


def test_one_broken_file_is_named_and_the_others_are_read(manuals):
    (manuals / "broken.pdf").write_bytes(b"%PDF-1.4")
    (manuals / "guide" / "empty.html").write_text("")
    (manuals / "guide" / "a.html").write_text('<h1 id="a">A</h1><img src="../../out.png"><h1 id="c">C</h1>')
    with pytest.raises(BadSampleError, match="damaged"):
        list(read_documents(manuals))
    skipped = []
    ids = [document.id for document in read_documents(manuals, on_error="skip", skipped=skipped)]
    assert ids == ["guide/a.html#c", *IDS[1:4], "guide/shown.png", *IDS[4:]]
    assert [(Path(error.file).name, error.sample) for error in skipped] == [
        ("broken.pdf", None),
        ("a.html", "guide/a.html#a"),
        ("empty.html", None),
    ]


def test_training_reads_it_unless_its_images_have_captions(manuals):
    with (
        pytest.raises(BadSampleError, match="the image has no caption"),
        pytest.warns(UserWarning, match=r"\.pdf: 1"),
    ):
        load_dataset_file(manuals)
    named = load_dataset_file(manuals, "documents")
    assert named["id"][:] == IDS
    (manuals / "guide" / "told.txt").unlink()
    rows = load_dataset_file(manuals)
    assert rows["id"][:] == [name for name in IDS if "told" not in name]
    assert all(row["messages"][0]["role"] == "document" for row in rows)
    assert rows[0]["source"] == str(manuals / "guide/a.html#a")
    (manuals / "guide" / "alone.png").write_bytes(b"no image")
    with pytest.raises(BadSampleError, match=r"alone\.png"):
        load_dataset_file(manuals)
    with pytest.warns(UserWarning, match="1 broken rows or images left out, 4 rows kept"):
        load_dataset_file(manuals, on_error="skip")


def test_what_is_not_installed_is_named(manuals, monkeypatch, subtests):
    for package, name in [("lxml", "guide/a.html"), ("markdown_it", "guide/b.md"), ("pypdfium2", "scan.pdf")]:
        with subtests.test(package=package), monkeypatch.context() as patched:
            patched.setitem(sys.modules, package, None)
            with pytest.raises(ImportError, match=r"pip install 'sugar-hf\[documents\]'"):
                list(read_documents(manuals / name, on_error="skip"))


def test_what_is_not_read_is_counted(manuals, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.html").write_text("b")
    (manuals / "linked.html").symlink_to(tmp_path / "elsewhere")
    (manuals / "a.docx").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left alone \(.docx: 1, linked folder: 1\)"):
        assert [document.id for document in read_documents(manuals)] == IDS
    with tarfile.open(tmp_path / "elsewhere" / "0.tar", "w") as shard:
        shard.add(manuals / "notes.txt", "1.txt")
    with pytest.warns(UserWarning, match=r"files beside the shards are left alone \(.html: 1\)"):
        assert [document.id for document in read_documents(tmp_path / "elsewhere")] == ["1"]
