"""An index of pages and sections: a hit names its page or section, and the slice that was found."""

import pytest
from builders import cached_sugar
from PIL import Image

from sugar_hf.data import read_documents
from sugar_hf.retrieval import SugarEmbedder, SugarIndex

pytest.importorskip("pypdfium2")


@pytest.fixture
def index(tmp_path):
    folder = tmp_path / "manuals"
    folder.mkdir()
    Image.new("RGB", (60, 40), "blue").save(folder / "red.png")
    Image.new("RGB", (60, 40), "green").save(folder / "scan.pdf", "PDF")
    (folder / "a.html").write_text(
        '<h1 id="top">Cats</h1><h2 id="red">Red</h2><p>a red cat sleeps.</p><img src="red.png"><p>it wakes up.</p>'
        '<h2 id="red">Blue</h2><p>a blue cat runs.</p>'
    )
    (folder / "b.md").write_text("# Dogs\n\na dog barks.\n\n![](red.png)\n")
    (folder / "c.txt").write_text("a note.")
    embedder = SugarEmbedder(*cached_sugar("llava"), positions="all")
    made = SugarIndex.build(tmp_path / "index", read_documents(folder), embedder, show_progress=False)
    for file in folder.iterdir():  # the index holds what it needs
        file.unlink()
    return SugarIndex.load(made.folder, embedder)


def test_hits_name_section_page_and_slice(index):
    assert len(index) == 5
    ids = {hit.id for hit in index.search("a cat", top_k=10)}
    assert ids == {"a.html#red", "a.html#red-1", "b.md#dogs", "scan.pdf#p1", "c.txt"}
    section = index.get("a.html#red")
    for end in range(1, 5):
        [hit] = index.search({"query": section.load()[:end]}, top_k=1)
        assert (hit.id, hit.slice) == ("a.html#red", end - 1)
    assert hit.metadata == {"file": "a.html", "headings": ["Cats", "Red"]}
    assert [getattr(part, "size", part) for part in hit.document.load()] == [
        "Cats > Red",
        "a red cat sleeps.",
        (60, 40),
        "it wakes up.",
    ]
    [page] = index.search("a cat", where={"page": 1}, top_k=10)
    assert page.id == "scan.pdf#p1"
    assert page.document.load()[0].size == (1225, 817)
    assert {hit.id for hit in index.search("a", where={"file": "a.html"})} == {"a.html#red", "a.html#red-1"}
