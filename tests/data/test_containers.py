"""The files rows come in: types of cells, compression, encodings, shards, and what is told about all others."""

import bz2
import gzip
import io
import json
import lzma
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from PIL import Image

from sugar_hf.data import BadSampleError, load_dataset_file, read_documents, to_sample
from sugar_hf.data.containers import ColumnType


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "red.png").write_bytes(png())
    return tmp_path


def metadata(path, **options):
    return [document.metadata for document in read_documents(path, **options)]


# ---- Types of cells ----

TABLE = """text,whole,number,flag,mixed,zip,long,gaps,blank,word
a,1,1,True,1,00501,12345678901234567890,7,,NA
b,-2,2.5,false,x,10001,1,,,yes
c,0,1e3,TRUE,,20001,2,NA,,no
"""


def test_cells_get_the_type_of_their_column(folder):
    (folder / "t.csv").write_text(TABLE)
    (folder / "t.tsv").write_text(TABLE.replace(",", "\t"))
    rows = metadata(folder / "t.csv")
    assert [row["whole"] for row in rows] == [1, -2, 0]
    assert [repr(row["number"]) for row in rows] == ["1.0", "2.5", "1000.0"]
    assert [row["flag"] for row in rows] == [True, False, True]
    assert [row["mixed"] for row in rows] == ["1", "x", None]  # a column of texts, all of it
    assert [row["zip"] for row in rows] == ["00501", "10001", "20001"]
    assert [row["long"] for row in rows] == ["12345678901234567890", "1", "2"]
    assert [row["gaps"] for row in rows] == [7, None, None]
    assert [row["blank"] for row in rows] == [None] * 3
    assert [row["word"] for row in rows] == ["NA", "yes", "no"]
    assert metadata(folder / "t.tsv") == rows


def test_types_are_those_of_datasets(folder):
    columns = "text,year,share,seen\na,1999,0.5,True\nb,2001,2,False\n"
    (folder / "t.csv").write_text(columns)
    wanted = load_dataset("csv", data_files=str(folder / "t.csv"), split="train", cache_dir=str(folder / "cache"))
    found = [{"text": document.load()[0], **document.metadata} for document in read_documents(folder / "t.csv")]
    assert found == wanted.to_list()
    assert {name: type(value) for name, value in found[1].items()} == {
        "text": str,
        "year": int,
        "share": float,
        "seen": bool,
    }


def test_texts_ids_and_images_stay_as_they_are_written(folder):
    (folder / "t.csv").write_text("key,caption,body,image\n007,1984,42,red.png\n008,null,43,red.png\n")
    found = list(read_documents(folder / "t.csv"))
    assert [(document.id, document.load()[1]) for document in found] == [("007", "1984"), ("008", "null")]
    assert [document.load()[1] for document in read_documents(folder / "t.csv", text_field="body")] == ["42", "43"]
    assert load_dataset_file(folder / "t.csv")["id"][:] == ["007", "008"]


def test_a_type_is_learnt_from_all_rows(folder):
    rows = "".join(f"t,{number}\n" for number in range(500))
    (folder / "t.csv").write_text(f"text,year\n{rows}t,unknown\n")
    assert {type(row["year"]) for row in metadata(folder / "t.csv")} == {str}


def test_what_is_no_number_is_a_text(subtests):
    for cell in ["9" * 5000, "1e999", "inf", "1_000", "\u0663", "0x10", "+", "--1"]:
        with subtests.test(cell=repr(cell)):
            column = ColumnType()
            column.see(cell)
            assert column.convert(cell) == cell


def test_headers(folder):
    file = folder / "t.csv"
    file.write_text(",text,text\n0,a,b\n")
    with pytest.raises(BadSampleError, match=r"t.csv:1: the header names 'text' twice"):
        list(read_documents(file))
    file.write_text(",text\n0,a\n1,b\n")
    assert metadata(file) == [{"Unnamed: 0": 0}, {"Unnamed: 0": 1}]
    file.write_text("image;text\nred.png;a\n")
    with pytest.raises(BadSampleError, match="the fields of the header are parted by ';'"):
        list(read_documents(file))


def test_fields_of_any_length(folder):
    long = "word " * 60_000
    (folder / "t.csv").write_text(f'image,text\nred.png,"{long}"\n')
    assert to_sample(load_dataset_file(folder / "t.csv")[0])[1] == long.strip()
    [document] = read_documents(folder / "t.csv")
    assert document.load()[1] == long


# ---- Empty cells ----


def test_an_empty_cell_is_no_image(folder, subtests):
    for key in ["image", "images", "image_path", "file_name"]:
        for empty in [None, "", "  ", [], [None], float("nan"), {"bytes": None, "path": None}]:
            with subtests.test(empty=f"{empty!r:.60}", key=key):
                (folder / "t.jsonl").write_text(json.dumps({"text": "a", key: empty}) + "\n")
                [document] = read_documents(folder / "t.jsonl")
                assert document.load() == ["a"]
                turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
                (folder / "c.jsonl").write_text(json.dumps({"conversations": turns, key: empty}) + "\n")
                assert load_dataset_file(folder / "c.jsonl")[0]["images"] == []


def test_an_empty_cell_of_csv_is_no_image(folder):
    (folder / "t.csv").write_text("image,text\n,a\nred.png,b\nred.png,\n , c\n")
    found = [
        [item if isinstance(item, str) else "r" for item in each.load()] for each in read_documents(folder / "t.csv")
    ]
    assert found == [["a"], ["r", "b"], ["r"], [" c"]]
    (folder / "t.csv").write_text('images,text\nred.png,a\n"[""red.png"", ""red.png""]",b\n,c\n')
    assert [document.size[0] for document in read_documents(folder / "t.csv")] == [1, 2, 0]
    (folder / "t.csv").write_text("image,text\n,\n")
    with pytest.raises(BadSampleError, match="neither text nor image"):
        list(read_documents(folder / "t.csv"))


# ---- Common forms ----

ROWS = [{"id": "one", "image": "red.png", "text": "caf\u00e9"}, {"id": "two", "image": "red.png", "text": "b"}]


def both(path):
    """The texts as both readers have them."""
    texts = [document.load()[1] for document in read_documents(path)]
    assert [to_sample(row)[1] for row in load_dataset_file(path)] == texts
    return texts


def lines(rows, **options):
    return "".join(json.dumps(row, **options) + "\n" for row in rows)


FILES = {
    "lines.jsonl": lines(ROWS).encode(),
    "lines.json": lines(ROWS).encode(),
    "array.json": json.dumps(ROWS, indent=1).encode(),
    "one.json": json.dumps(ROWS[0], indent=2).encode(),
    "spread.jsonl": lines(ROWS, indent=2).encode(),
    "spread.json.gz": gzip.compress(lines(ROWS, indent=2).encode()),
    "bom.jsonl": lines(ROWS, ensure_ascii=False).encode("utf-8-sig"),
    "utf16.jsonl": lines(ROWS, ensure_ascii=False).encode("utf-16"),
    "utf16le.json": json.dumps(ROWS, ensure_ascii=False).encode("utf-16-le"),
    "utf32.jsonl": lines(ROWS, ensure_ascii=False).encode("utf-32"),
    "utf16.csv": "image,text\nred.png,caf\u00e9\nred.png,b\n".encode("utf-16"),
    "bom.csv": "image,text\nred.png,caf\u00e9\nred.png,b\n".encode("utf-8-sig"),
    "tabs.tsv": "image\ttext\nred.png\tcaf\u00e9\nred.png\tb\n".encode(),
    "lines.jsonl.gz": gzip.compress(lines(ROWS).encode()),
    "lines.jsonl.bz2": bz2.compress(lines(ROWS).encode()),
    "array.json.xz": lzma.compress(json.dumps(ROWS).encode()),
    "table.csv.gz": gzip.compress("image,text\nred.png,caf\u00e9\nred.png,b\n".encode()),
}


def test_common_forms_are_read(folder, subtests):
    for name in FILES:
        with subtests.test(name=name):
            (folder / name).write_bytes(FILES[name])
            assert both(folder / name) == ["caf\u00e9", "b"][: 1 if name == "one.json" else 2]


def test_texts_and_captions_in_utf16(folder):
    (folder / "red.txt").write_text("caf\u00e9", encoding="utf-16")
    (folder / "a.md").write_text("caf\u00e9", encoding="utf-16")
    assert [document.load()[-1] for document in read_documents(folder)] == ["caf\u00e9", "caf\u00e9"]


def test_a_broken_first_line_is_one_line(folder):
    (folder / "t.jsonl").write_text('{"text": "a"\n{"text": "b"}\n{"text": "c"} {"text": "d"}\n')
    skipped = []
    assert [d.load() for d in read_documents(folder / "t.jsonl", on_error="skip", skipped=skipped)] == [["b"]]
    assert [error.line for error in skipped] == [1, 3]


def test_damaged_compression_and_shards(folder):
    (folder / "t.jsonl.gz").write_bytes(gzip.compress(lines(ROWS * 99).encode())[:-20])
    (folder / "t.tar").write_bytes(b"no tar at all" * 99)
    for name in ("t.jsonl.gz", "t.tar"):
        with pytest.raises(BadSampleError, match=r"compression is damaged|invalid tar"):
            list(read_documents(folder / name))


def test_a_key_twice_in_an_object(folder):
    (folder / "t.jsonl").write_text('{"text": "a", "image": "red.png", "image": "blue.png"}\n')
    with pytest.raises(BadSampleError, match=r"t.jsonl:1 .*the key 'image' stands twice"):
        list(read_documents(folder / "t.jsonl"))


def write_shard(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_webdataset_shards(folder):
    shards = folder / "shards"
    shards.mkdir()
    for number in range(2):
        files = {}
        for i in range(2):
            files[f"{number}{i}.jpg"] = png()
            files[f"{number}{i}.txt"] = f"caption {number}{i}".encode()
            files[f"{number}{i}.json"] = json.dumps({"year": 2000 + i, "key": f"{number}{i}"}).encode()
        write_shard(shards / f"{number:05}.tar", files)
    (shards / "00000_stats.json").write_text("{}")
    found = list(read_documents(shards))
    assert [(document.id, document.load()[1]) for document in found] == [
        (f"{number}{i}", f"caption {number}{i}") for number in range(2) for i in range(2)
    ]
    assert found[1].metadata["year"] == 2001
    assert both(shards) == [f"caption {number}{i}" for number in range(2) for i in range(2)]
    assert both(shards / "00001.tar") == ["caption 10", "caption 11"]


def test_what_a_shard_holds_beside_is_not_lost(folder):
    write_shard(folder / "t.tar", {"0.png": png(), "0.txt": b"a", "0.mp4": b"film", "1.png": png(), "1.txt": b"\xff"})
    with pytest.raises(BadSampleError, match=r"row 0.*mp4: it names a video"):
        list(read_documents(folder / "t.tar"))
    with pytest.raises(BadSampleError, match=r"row 1.*cannot be read"):
        list(read_documents(folder / "t.tar", drop_columns=["mp4"]))


OTHERS = {
    "x.zip": "Unpack it",
    "x.arrow": "save_to_disk",
    "x.jsonl.zst": "Decompress it",
    "x.xlsx": "Save it as CSV",
    "x.ndjson": "Name it .jsonl",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_told_what_to_do(folder, name):
    (folder / name).write_bytes(b"x")
    for reader in (read_documents, load_dataset_file):
        with pytest.raises(ValueError, match=OTHERS[name]):
            reader(folder / name)


def test_a_folder_of_data_files_is_told_what_to_do(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"other files \(.parquet: 1\). Pass one of the data files"):
        load_dataset_file(tmp_path)
    with pytest.warns(UserWarning, match="left alone"), pytest.raises(ValueError, match="Pass one of the data files"):
        read_documents(tmp_path)


def test_pairs_with_one_name(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.jpg").write_bytes(png())
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(BadSampleError, match="two images share a name"):
        load_dataset_file(tmp_path)


def test_saved_data_sets(tmp_path):
    rows = Dataset.from_list([{"image": {"bytes": png(), "path": None}, "caption": "a"}])
    rows.save_to_disk(tmp_path / "saved")
    assert both(tmp_path / "saved") == ["a"]


# ---- Values that Python cannot hold, and errors of others ----


def test_parquet_values_that_cannot_be_read(folder):
    far = pa.array([0, 2**62], pa.timestamp("us"))
    texts = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    zones = pa.array([0, 1], pa.timestamp("s", tz="Mars/Olympus"))
    for name, column in (("far", far), ("letters", texts), ("zone", zones)):
        pq.write_table(pa.table({"text": ["a", "b"], name: column}), folder / "t.parquet")
        skipped = []
        list(read_documents(folder / "t.parquet", on_error="skip", skipped=skipped))
        assert [error.field for error in skipped] in ([name], [name, name])
        assert "drop_columns" in str(skipped[0])
        assert metadata(folder / "t.parquet", drop_columns=[name]) == [{}, {}]


def test_deep_json_is_a_row_that_is_skipped(folder):
    deep = "[" * 700 + "]" * 700
    rows = [f'{{"document": {deep}}}', '{"text": "a", "metadata": "' + "[" * 90_000 + '"}', '{"text": "b"}']
    (folder / "t.jsonl").write_text("\n".join(rows))
    skipped = []
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    try:
        found = [document.load() for document in read_documents(folder / "t.jsonl", on_error="skip", skipped=skipped)]
    finally:
        sys.setrecursionlimit(limit)
    assert found == [["b"]]
    assert [error.line for error in skipped] == [1, 2]


def test_ids_and_names_that_are_no_unicode(folder):
    (folder / "t.jsonl").write_text('{"id": "a\\ud800", "image": "red.png", "text": "a"}\n')
    with pytest.raises(BadSampleError, match=r"t.jsonl:1 .*id: .*not valid Unicode"):
        load_dataset_file(folder / "t.jsonl")
    pairs = folder / "pairs"
    pairs.mkdir()
    odd = pairs / b"caf\xe9.png".decode("utf-8", "surrogateescape")
    try:
        odd.write_bytes(png())
    except OSError:  # a file system that takes no such names
        return
    odd.with_suffix(".txt").write_text("a")
    with pytest.raises(BadSampleError, match="not valid Unicode"):
        load_dataset_file(pairs)
    with pytest.raises(BadSampleError, match="not valid Unicode"):
        list(read_documents(pairs))


@pytest.mark.parametrize("text", ["\u00e9", "a", "%%%"])
def test_base64_that_is_none(folder, text):
    part = {"type": "image", "base64": text}
    rows = [{"document": ["a", part]}, {"messages": [{"role": "user", "content": [part]}]}, {"text": "b"}]
    (folder / "t.jsonl").write_text(lines(rows))
    skipped = []
    assert [d.load() for d in read_documents(folder / "t.jsonl", on_error="skip", skipped=skipped)] == [["b"]]
    assert all("invalid base64" in str(error) for error in skipped)
    assert len(skipped) == 2
