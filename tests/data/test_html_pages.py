"""HTML becomes sections with text and pictures in reading order, and hostile HTML harms nobody."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, load_dataset_file, read_documents

pytest.importorskip("lxml")


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def page(tmp_path):
    """A function that writes a page and reads it: ids with texts and names of pictures."""
    folder = tmp_path / "site"
    (folder / "img").mkdir(parents=True)
    (folder / "img" / "red cat.png").write_bytes(png())
    (tmp_path / "outside.png").write_bytes(png("blue"))

    def read(html, name="a.html", **options):
        data = html if isinstance(html, bytes) else html.encode()
        (folder / name).write_bytes(data)
        return {
            document.id: [
                part.name if isinstance(part, Path) else f"{len(part)} bytes" if isinstance(part, bytes) else part
                for part in document.sample
            ]
            for document in read_documents(folder / name, **options)
        }

    read.folder = folder
    return read


PAGE = """<!DOCTYPE html><html><head><title>The  manual</title><style>p {}</style></head><body>
<nav><a href="x">elsewhere</a></nav><p>In front.</p>
<h1 id="cats">Cats &amp; dogs</h1>
<section id="red"><h2>Red cats<a class="headerlink" href="#red">&para;</a></h2>
<p>A cat<br>is <b>red</b>.</p>
<figure><img src="img/red%20cat.png?x=1" alt="a cat"><figcaption>Seen.</figcaption></figure>
<p>Click <img src="img/red%20cat.png"> now.</p>
<ul><li>one<li>two<ol start=3><li><p>three</p></ol></ul>
<table><tr><th>a</th><th>b</th></tr><tr><td></td><td>2</td></tr></table><pre>x = 1
  y</pre><script>evil()</script><p hidden>no</p></section><div role="contentinfo">Built with a tool</div>
<h2><a name="last"></a>Last</h2></body></html>"""


def test_a_page_becomes_sections_in_reading_order(page):
    assert page(PAGE) == {
        "a.html": ["The manual", "In front."],
        "a.html#red": [
            "Cats & dogs > Red cats",
            "A cat\nis red.",
            "red cat.png",
            "Seen.",
            "Click",
            "red cat.png",
            "now.",
            "- one\n- two\n  3. three",
            "a | b\n2",
            "x = 1\n  y",
        ],
        "a.html#last": ["Cats & dogs > Last"],
    }


def test_metadata_name_file_title_and_headings(page):
    page(PAGE)
    front, red, last = read_documents(page.folder / "a.html")
    assert front.metadata == {"file": "a.html", "title": "The manual"}
    assert red.metadata == {"file": "a.html", "title": "The manual", "headings": ["Cats & dogs", "Red cats"]}
    assert last.metadata["headings"] == ["Cats & dogs", "Last"]


def test_anchors_are_unique_and_bad_ones_are_numbers(page):
    html = "".join(f'<h1 id="{name}">x</h1><p>y' for name in ("a", "a", "a-1", "", "with space", "b" * 300, "a"))
    assert list(page(html)) == [f"a.html#{name}" for name in ("a", "a-1", "a-1-1", "4", "5", "6", "a-2")]


def test_many_sections_of_one_anchor_take_no_time_of_their_square(page):
    found = list(page("<h1 id=a>x</h1>y" * 3000 + "<h1 id=a-1>x</h1>y"))
    assert found[:3] == ["a.html#a", "a.html#a-1", "a.html#a-2"]
    assert found[-2:] == ["a.html#a-2999", "a.html#a-1-1"]


def test_long_sections_are_cut_between_paragraphs(page):
    words = ["word " * 30 + f"{number}." for number in range(10)]
    html = '<h1 id="a">A</h1>' + "".join(f"<p>{each}</p>" for each in words) + '<h1 id="b">B</h1><p>b</p>'
    found = page(html, section_length=400)
    assert list(found) == [
        *(f"a.html#a{part}" for part in ("", "-part-2", "-part-3", "-part-4", "-part-5")),
        "a.html#b",
    ]
    assert [part for parts in list(found.values())[:-1] for part in parts[1:]] == words
    assert all(parts[0] == "A" for parts in list(found.values())[:-1])
    [first, second, *_] = read_documents(page.folder / "a.html", section_length=400)
    assert "part" not in first.metadata
    assert second.metadata["part"] == 2
    with pytest.raises(ValueError, match="section_length=10"):
        read_documents(page.folder / "a.html", section_length=10)


def test_pictures_that_are_not_read_leave_their_alternative(page):
    html = (
        '<p>a <img src="http://x.org/a.png" alt="far"> b <img src="//x.org/a.png" alt="away"> '
        '<img src="d.svg" alt="drawn"><img alt="nothing">'
        '<img src="data:image/svg+xml,x" alt="inline"><svg aria-label="label"><text>no</text></svg>'
    )
    with pytest.warns(UserWarning, match=r"2 pictures at addresses.*http://x.org/a.png.*2 drawings") as said:
        assert page(html) == {"a.html": ["a far b away drawn nothing inline label"]}
    assert len(said) == 1


def test_a_base_address_makes_pictures_remote(page):
    with pytest.warns(UserWarning, match="1 pictures at addresses"):
        assert page('<base href="https://x.org/"><p>a <img src="img/red cat.png" alt="far">') == {"a.html": ["a far"]}
    assert page('<base href="img/"><p>a<img src="red cat.png">') == {"a.html": ["a", "red cat.png"]}


def test_broken_pictures_are_faults_of_their_section(page, subtests):
    (page.folder / "link.png").symlink_to("img/red cat.png")
    for src, message in [
        ("missing.png", "no file"),
        ("../outside.png", "outside the image root"),
        ("%2e%2e/outside.png", "outside the image root"),
        ("file:///etc/passwd", "not read by address"),
        ("/etc/passwd", "no file"),
        ("//[x/a.png", "is no address"),
        ("a" * 5000, "5000 characters"),
        ("data:image/png;base64,!!", "invalid base64"),
        ("data:image/png,x", "holds no base64"),
        ("a%00.png", "NUL"),
    ]:
        html = f'<h1 id="a">A</h1><p>a<h1 id="b">B</h1><p>x <img src="{src}" alt="cat"> y<h1 id="c">C</h1><p>c'
        with subtests.test(src=src[:30]):
            with pytest.raises(BadSampleError, match=message) as caught:
                page(html)
            assert caught.value.sample == "a.html#b"
            assert caught.value.field == "img"
            assert "drop_broken_images=True" in caught.value.mend
            skipped = []
            assert list(page(html, on_error="skip", skipped=skipped)) == ["a.html#a", "a.html#c"]
            assert len(skipped) == 1
            skipped = []
            assert page(html, drop_broken_images=True, skipped=skipped)["a.html#b"] == ["B", "x cat y"]
            assert len(skipped) == 1
    assert page('<p>a<img src="link.png">') == {"a.html": ["a", "link.png"]}


def test_pictures_in_addresses_of_data_and_from_the_root(page):
    data = base64.b64encode(png()).decode()
    assert page(f'<p>a<img src=" data:image/png;base64,{data[:20]}\n{data[20:]}">') == {
        "a.html": ["a", f"{len(png())} bytes"]
    }
    (page.folder / "sub").mkdir()
    html = '<p>a<img src="../img/red cat.png"><img src="/img/red cat.png">'
    options = {"name": "sub/b.html", "image_root": page.folder}
    assert page(html, **options) == {"b.html": ["a", "red cat.png", "red cat.png"]}


def test_headings_of_pictures_and_of_whole_pages(page):
    html = '<h1><img src="img/red cat.png" alt="Logo"></h1><p>a</p><h2></h2><p>b</p>' + f"<h2>{'x' * 500}</h2>"
    assert page(html) == {"a.html#1": ["Logo", "red cat.png", "a", "b", "x" * 500]}


def test_breaks_in_headings_and_long_titles(page):
    assert page("<h1>A<br>b<div>c</div></h1><p>x") == {"a.html#1": ["A b c", "x"]}
    assert list(page("<h1>A<h2>B</h2><p>x")) == ["a.html#2"]
    assert page(f"<title>{'t' * 400}</title><p>x") == {"a.html": ["t" * 400, "x"]}


def test_encodings(page, subtests):
    meta = '<meta http-equiv="Content-Type" content="text/html; charset={}">caf\u00e9'
    for data in [
        "caf\u00e9".encode(),
        "caf\u00e9".encode("utf-8-sig"),
        "caf\u00e9".encode("utf-16"),
        meta.format("iso-8859-1").encode("latin-1"),
        meta.format("windows-1252").encode("cp1252"),
        meta.format("utf-16").encode(),  # it was read as ASCII, so it is not
        b'<?xml version="1.0" encoding="ISO-8859-15"?>' + "caf\u00e9".encode("iso-8859-15"),
    ]:
        with subtests.test(data=data):
            assert page(data) == {"a.html": ["caf\u00e9"]}
    assert page('<meta charset="shift_jis">\u732b'.encode("shift_jis")) == {"a.html": ["\u732b"]}
    for data, message in [
        ("caf\u00e9".encode("latin-1"), "not UTF-8, and it names no encoding"),
        (meta.format("utf-8").encode("latin-1"), "not in the encoding that it names"),
        (meta.format("rot13").encode(), "unknown encoding 'rot13'"),
        (meta.format("zlib").encode(), "unknown encoding 'zlib'"),
    ]:
        with subtests.test(data=data), pytest.raises(BadSampleError, match=message) as caught:
            page(data)
        assert caught.value.file.endswith("a.html")


def test_hostile_pages(page, subtests):
    for html, message in [
        ("<div>" * 100_000 + "x", "nested more than 1000 deep"),
        ("<b>" * 50_000 + "</i>" * 50_000, "nested more than 1000 deep"),
        ("<p>a</p><!-- <p>b</p>", "breaks off"),
        ("<p>a</p><script>", "breaks off"),
        ("<p>a</p><p title='b", "breaks off"),
        ("<p>a</p><nav><p>b", "breaks off"),
        ("<p id=sugar-hf-end-of-page>a</p><p>b<script>", "breaks off"),
        ("", "neither text nor picture"),
        ("<script>a</script>", "neither text nor picture"),
    ]:
        with subtests.test(html=html[:30]), pytest.raises(BadSampleError, match=message):
            page(html)
    bomb = (
        '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;"><!ENTITY c SYSTEM "file:///etc/passwd">]><p>&b; &c;'
    )
    for html, wanted in [
        (bomb, ["]>", "&b; &c;"]),
        (f"<p title='{'a' * 2_000_000}' {' '.join(f'a{i}=1' for i in range(20_000))}>x", ["x"]),
        ("<p>" * 20_000 + "x", ["x"]),
        ("<p>a\0b\x01&#0;&#xD800;", ["a\ufffdb\ufffd\ufffd\ufffd"]),
        ("<p>a <![CDATA[b < c]]> d<![CDATA[]]> ]]>", ["a b < c d ]]>"]),
        ("<p>a" + "<![CDATA[" * 300_000 + ">", ["a"]),  # not in the square of its length
        ('<?xml version="1.0"?><html><head><script src="x"/></head><body><p>a</p></body></html>', ["a"]),
    ]:
        with subtests.test(html=html[:30]):
            assert list(page(html).values()) == [wanted]


def test_a_long_text_without_ends_is_cut_and_not_lost(page):
    text = "x" * 10_000
    found = page(f"<p>{text}")
    assert list(found) == ["a.html", "a.html#part-2", "a.html#part-3"]
    assert "".join(part for parts in found.values() for part in parts) == text


def test_sections_are_rows_for_training(page):
    page(PAGE)
    rows = load_dataset_file(page.folder / "a.html")
    assert rows["id"][:] == ["a.html", "a.html#red", "a.html#last"]
    assert [message["role"] for message in rows[1]["messages"]] == ["document"]
    assert [Path(image["path"]).name for image in rows[1]["images"]] == ["red cat.png", "red cat.png"]
    (page.folder / "img" / "red cat.png").write_bytes(b"no image")
    with pytest.raises(BadSampleError, match="not an image") as caught:
        load_dataset_file(page.folder / "a.html")
    assert caught.value.sample == "a.html#red"
    with pytest.warns(UserWarning, match="2 broken rows or images left out, 3 rows kept"):
        rows = load_dataset_file(page.folder / "a.html", drop_broken_images=True)
    assert [part["text"] for part in rows[1]["messages"][0]["content"]][2:4] == ["a cat", "Seen."]
    assert rows[1]["images"] == []
