"""Each page of a PDF becomes a picture and its text; what cannot be read is named."""

import io
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, load_dataset_file, read_documents
from sugar_hf.data.pdf_pages import PdfLimits, pdf_documents
from sugar_hf.data.sections import Notes

pytest.importorskip("pypdfium2")

HELVETICA = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
# A font whose numbers of shapes say nothing of the letters that they show.
NAMELESS = (
    b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [<< /Type /Font "
    b"/Subtype /CIDFontType2 /BaseFont /X /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> "
    b"/FontDescriptor << /Type /FontDescriptor /FontName /X /Flags 4 >> >>] >>"
)


def text(words, size=20):
    return b"BT /F1 %d Tf 20 200 Td (%s) Tj ET" % (size, words)


def pdf(pages, *, font=HELVETICA, size=(300, 400), trailer=b"", catalog=b"", resources=b"", more=()):
    """A PDF of pages that are given by what draws them, and of more objects."""
    kids = b" ".join(b"%d 0 R" % (3 + 2 * i) for i in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog,
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(pages), kids),
    ]
    for i, drawn in enumerate(pages):
        rest = b"/Resources << /Font << /F1 %s >> %s >> /Contents %d 0 R" % (font, resources, 4 + 2 * i)
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] %s >>" % (*size, rest))
        objects.append(b"<< /Length %d >> stream\n%s\nendstream" % (len(drawn), drawn))
    objects += more
    parts, places, at = [b"%PDF-1.4\n"], [], 9
    for number, each in enumerate(objects, start=1):
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, each))
        places.append(at)
        at += len(parts[-1])
    parts.append(b"xref\n0 %d\n0000000000 65535 f \n" % (len(places) + 1))
    parts += [b"%010d 00000 n \n" % place for place in places]
    parts.append(b"trailer << /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(places) + 1, trailer, at))
    return b"".join(parts)


@pytest.fixture
def written(tmp_path):
    """A function that writes a PDF and returns its path."""

    def write(data):
        (tmp_path / "a.pdf").write_bytes(data)
        return tmp_path / "a.pdf"

    return write


def test_pages_are_a_picture_and_their_text(written):
    file = written(pdf([text(b"Hello one"), b"1 0 0 rg 0 0 300 400 re f", text(b"Three")]))
    first, second, third = read_documents(file)
    assert [each.id for each in (first, second, third)] == ["a.pdf#p1", "a.pdf#p2", "a.pdf#p3"]
    assert third.metadata == {"file": "a.pdf", "page": 3}
    picture, words = first.load()
    assert words == "Hello one"
    assert picture.width * picture.height == pytest.approx(1_000_000, rel=0.01)
    assert picture.width / picture.height == pytest.approx(300 / 400, rel=0.01)
    [red] = second.load()  # without text, as a scan is
    np.testing.assert_allclose(np.asarray(red).mean((0, 1)), [254, 0, 0], atol=2)


def test_a_pdf_of_pictures(tmp_path):
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "scan.pdf", "PDF", title="A scan")
    [page] = read_documents(tmp_path / "scan.pdf", page_pixels=10_000)
    assert page.metadata == {"file": "scan.pdf", "page": 1, "title": "A scan"}
    [picture] = page.load()
    assert picture.width * picture.height == pytest.approx(10_000, rel=0.03)
    with pytest.raises(ValueError, match="page_pixels=100"):
        read_documents(tmp_path / "scan.pdf", page_pixels=100)


def test_documents_can_be_pickled_and_stored(written):
    [page] = read_documents(written(pdf([text(b"Hello")])), page_pixels=10_000)
    assert pickle.loads(pickle.dumps(page)).digest == page.digest
    assert page.to_row()["images"][0]["bytes"] == page.sample[0]


def test_many_pages_are_read_one_at_a_time(written):
    file = written(pdf([text(b"Page %d" % number) for number in range(2000)]))
    assert [page.sample[1] for page in islice(read_documents(file), 3)] == ["Page 0", "Page 1", "Page 2"]


def test_pages_of_any_size_have_pictures_of_one_size(written, subtests):
    for size in ((200_000, 200_000), (10, 10), (10, 1500)):
        with subtests.test(size=size):
            [page] = read_documents(written(pdf([text(b"Hi", 1)], size=size)))
            picture = Image.open(io.BytesIO(page.sample[0]))
            assert 900_000 < picture.width * picture.height < 1_100_000


def test_text_without_letters_is_left_out_and_counted(written):
    with pytest.warns(UserWarning, match=r"1 pages whose fonts do not say.*a.pdf#p1"):
        [page] = read_documents(written(pdf([b"BT /F1 20 Tf 20 200 Td <0041004200430044> Tj ET"], font=NAMELESS)))
    assert len(page.sample) == 1


def test_much_text_makes_several_documents(written):
    lines = [b"line %d of the text" % number for number in range(90)]
    drawn = b"BT /F1 4 Tf 4 TL 5 390 Td " + b" ".join(b"(%s) '" % line for line in lines) + b" ET"
    first, *others = read_documents(written(pdf([drawn])), section_length=500)
    assert [each.id for each in others] == ["a.pdf#p1-part-2", "a.pdf#p1-part-3", "a.pdf#p1-part-4"]
    assert all(each.sample[0] == first.sample[0] for each in others)
    assert others[0].metadata == {"file": "a.pdf", "page": 1, "part": 2}
    found = [line.strip() for each in (first, *others) for line in each.sample[1].split("\n")]
    assert found == [line.decode() for line in lines]


def outlined(count, bookmarks):
    """A PDF of so many pages, and of bookmarks: title, page, and numbers of the first child and the next sibling."""
    first = 3 + 2 * count
    more = [b"<< /Type /Outlines /First %d 0 R >>" % (first + 1)]
    for title, page, child, following in bookmarks:
        to = b"" if page is None else b"/Dest [%d 0 R /Fit]" % (1 + 2 * page)
        links = [(b"First", child), (b"Next", following)]
        known = [b"/%s %d 0 R" % (key, first + number) for key, number in links if number is not None]
        more.append(b"<< /Title %s %s %s >>" % (title, to, b" ".join(known)))
    pages = [text(b"Page %d" % number) for number in range(1, count + 1)]
    return pdf(pages, catalog=b"/Outlines %d 0 R" % first, more=more)


def headings(file):
    return [page.metadata.get("headings") for page in read_documents(file, page_pixels=10_000)]


def test_pages_name_their_bookmarks(written):
    bookmarks = [
        (b"(Start)", 2, 2, 4),
        (b"(Install  it)", 2, None, 3),
        (b"(Run)", 4, None, None),
        (b"<FEFF0055007300650072>", None, 5, None),  # leads nowhere, but has parts
        (b"(Menus)", 5, None, 6),
        (b"(Keys)", 5, None, None),
    ]
    assert headings(written(outlined(6, bookmarks))) == [
        None,
        ["Start", "Install it"],
        ["Start", "Install it"],
        ["Start", "Run"],
        ["User", "Menus"],
        ["User", "Keys"],
    ]


def test_bad_outlines_do_not_cost_the_pages(written, subtests):
    for bookmarks, expected in [
        ([(b"(A)", 1, None, 1)], [["A"], ["A"]]),  # its own neighbour
        ([(b"(A)", 1, 1, None)], [["A"], ["A"]]),  # its own child
        ([(b"(A)", 1, None, 2), (b"(B)", 2, None, 1)], [["A"], ["B"]]),
        ([(b"(A)", 9, None, 2), (b"(B)", 2, None, None)], [None, ["B"]]),  # a page that is not there
        ([(b"(A)", 1, None, 99)], [["A"], ["A"]]),  # a neighbour that is not there
        ([(b"()", 1, 2, None), (b"(B\\000)", 2, None, None)], [None, ["B"]]),
        ([(b"<FEFFD800>", 1, None, 2), (b"(B)", 2, None, None)], [None, ["B"]]),
        ([(b"7", 1, None, None)], [None, None]),
        ([(b"(A)", 1, number, None) for number in range(2, 40)] + [(b"(A)", 1, None, None)], [["A"] * 15] * 2),
        ([(b"(%s)" % (b"a" * 5000), 1, None, None)], [["a" * 1000]] * 2),
    ]:
        with subtests.test(bookmarks=str(bookmarks)[:60]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*outlines of PDF")
            assert headings(written(outlined(2, bookmarks))) == expected
    for catalog in (b"/Outlines 99 0 R", b"/Outlines (x)", b"/Outlines << /First 1 0 R >>"):
        with subtests.test(catalog=catalog):
            assert headings(written(pdf([text(b"x")], catalog=catalog))) == [None]


def test_what_cannot_be_opened_is_named(written, subtests):
    whole = pdf([text(b"Hello")])
    owner = b"/V 1 /R 2 /P -4 /O <%s> /U <%s>" % (b"ab" * 32, b"cd" * 32)
    locked = b"/ID [<%s> <%s>] /Encrypt << /Filter /Standard %s >>" % (b"00" * 16, b"00" * 16, owner)
    for data, message in [
        (pdf([text(b"x")], trailer=locked), "encrypted, and opens with a password"),
        (pdf([text(b"x")], trailer=b"/Encrypt << /Filter /Foo /V 9 >>"), "encrypted in a way that is not known"),
        (whole[:300], "damaged"),
        (b"", "damaged"),
        (b"<html>", "damaged"),
        (pdf([]), "damaged, or none"),
    ]:
        with subtests.test(data=data[:300]):
            file = written(data)
            with pytest.raises(BadSampleError, match=message) as caught:
                list(read_documents(file))
            assert caught.value.file == str(file)
            skipped = []
            assert list(read_documents(file, on_error="skip", skipped=skipped)) == []
            assert len(skipped) == 1


def test_a_damaged_page_does_not_cost_the_others(written):
    pages = pdf([text(b"one"), text(b"two"), text(b"three")])
    file = written(pages.replace(b"5 0 obj\n<<", b"5 0 obj\n[["))
    with pytest.raises(BadSampleError, match="the page is damaged") as caught:
        list(read_documents(file))
    assert caught.value.sample == "a.pdf#p2"
    skipped = []
    found = [each.id for each in read_documents(file, on_error="skip", skipped=skipped)]
    assert found == ["a.pdf#p1", "a.pdf#p3"]
    assert [error.sample for error in skipped] == ["a.pdf#p2"]


BOMB = b"/X Do " * 10


def with_bomb(pages):
    """Pages of which each BOMB draws ten drawings, of which each draws ten, and so on: a thousand million lines."""
    first, forms = 3 + 2 * len(pages), []
    for number in range(first, first + 8):
        drawn, inner = BOMB, b"/Resources << /XObject << /X %d 0 R >> >>" % (number + 1)
        if number == first + 7:
            drawn, inner = b"0 0 m 9 9 l S", b""
        head = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Length %d %s" % (len(drawn), inner)
        forms.append(b"<< %s >> stream\n%s\nendstream" % (head, drawn))
    return pdf(pages, resources=b"/XObject << /X %d 0 R >>" % first, more=forms)


def read_within(file, **limits):
    return list(pdf_documents(file, "a.pdf", Notes(), pixels=10_000, length=500, limits=PdfLimits(**limits)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process")
def test_a_page_that_takes_too_much_memory_costs_itself_alone(written):
    file = written(with_bomb([text(b"one"), BOMB, text(b"three")]))
    first, fault, third = read_within(file, memory=100 * 2**20)
    assert [first.id, fault.sample, third.id] == ["a.pdf#p1", "a.pdf#p2", "a.pdf#p3"]
    assert third.sample[1] == "three"
    assert "100 MiB are too little" in fault.reason
    assert fault.mend.startswith("Leave it out")
    *_, last, rest = read_within(
        written(with_bomb([text(b"one"), BOMB, BOMB, text(b"four")])), memory=100 * 2**20, pages=2
    )
    assert last.sample == "a.pdf#p3"
    assert rest.reason.startswith("pages 4 to 4 are not read")


def test_a_file_that_takes_too_long_is_named(written):
    [fault] = read_within(written(pdf([text(b"one")])), seconds=1e-4)
    assert "takes more than 0.0001 s" in fault.reason
    assert fault.mend.startswith("Leave it out")


def test_no_process_stays_behind(written, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: started.append(popen(*args, **kw)) or started[-1])
    pages = read_documents(written(pdf([text(b"one"), text(b"two")])))
    next(pages)
    pages.close()
    [process] = started
    assert process.returncode is not None


def test_threads_may_read_at_once(written):
    file = written(pdf([text(b"Page %d" % number) for number in range(20)]))

    def read(_):
        return [page.digest for page in read_documents(file, page_pixels=10_000)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(8)))
    assert all(each == found[0] for each in found)


def test_pages_are_rows_for_training(written):
    rows = load_dataset_file(written(pdf([text(b"Hello one"), text(b"two")])))
    assert rows["id"][:] == ["a.pdf#p1", "a.pdf#p2"]
    assert [part["type"] for part in rows[0]["messages"][0]["content"]] == ["image", "text"]
    assert rows[1]["images"][0]["bytes"].startswith(b"\xff\xd8")
