import base64
import io
import re

from PIL import Image

from sugar_hf.evaluation.gallery import Block, Card, Section, write_gallery


def test_page_holds_escaped_text_and_whole_pictures(tmp_path):
    picture = Image.new("RGB", (4, 3), (250, 10, 20))
    card = Card(
        [
            Block("given", ["<b>a dog</b>", picture]),
            Block("retrieved", [picture], "first"),
            Block("generated", ["yes"]),
        ]
    )
    sections = [Section("Search", table=[["", "R@1"], ["before", "1.0"]], cards=[card])]
    page = write_gallery(tmp_path / "out" / "index.html", "Gallery", sections).read_text(encoding="utf-8")
    assert "&lt;b&gt;a dog&lt;/b&gt;" in page
    assert "<b>" not in page
    assert '<div class="retrieved">' in page
    assert '<div class="generated">' in page
    assert "<th>R@1</th>" in page
    encoded = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", page)
    assert len(encoded) == 2
    with Image.open(io.BytesIO(base64.b64decode(encoded[0]))) as shown:
        assert shown.size == (4, 3)
        assert shown.getpixel((0, 0)) == (250, 10, 20)
