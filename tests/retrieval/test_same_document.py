"""One table is one document by every way in, whatever its columns are called; and which columns are read."""

import csv
import datetime
import decimal
import io
import json
import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import cached_sugar
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from sugar_hf.data import BadSampleError, as_document, load_dataset_file, read_documents, to_sample
from sugar_hf.data.readers import stored_rows
from sugar_hf.model.pipeline_sugar import candidates_of
from sugar_hf.retrieval import SugarEmbedder, SugarIndex


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    monkeypatch.chdir(tmp_path)  # where names in rows of a program start
    return tmp_path


BESIDE = {"year": 1999, "share": 0.5, "seen": True, "kind": "boat", "gone": None}
TABLES = {
    "image, caption": {"image": "red.png", "caption": "a red boat"},
    "image, text": {"image": "red.png", "text": "a red boat"},
    "images, text": {"images": ["red.png", "blue.png"], "text": "a red boat"},
    "image_path, txt": {"image_path": "red.png", "txt": "a red boat"},
    "file_name, caption": {"file_name": "red.png", "caption": "a red boat"},
    "filepath alone": {"filepath": "red.png"},
    "caption alone": {"caption": "a red boat", "image": None},
    "type, text": {"type": "text", "text": "a red boat"},
    "its name beside": {"image": "red.png", "file_name": "red.png", "caption": "a red boat"},
}


def test_images_without_a_place_come_first_by_every_way(folder):
    row = {"messages": [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a boat"}]}
    row["images"] = ["red.png", "blue.png"]
    (folder / "chat.jsonl").write_text(json.dumps(row))
    [read], [stored] = read_documents(folder / "chat.jsonl"), load_dataset_file(folder / "chat.jsonl")
    chats = [read.load(), as_document(row, 0).load(), to_sample(row), to_sample(stored)]
    for chat in chats:
        first, second, text = chat[0]["content"]
        assert [image["image"].getpixel((0, 0)) for image in (first, second)] == [(255, 0, 0), (0, 0, 255)]
        assert text == {"type": "text", "text": "what?"}


def in_json(rows, folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_documents(folder / "rows.jsonl")


def in_csv(rows, folder):
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
            )
    return read_documents(folder / "rows.csv")


def in_parquet(rows, folder):
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    return read_documents(folder / "rows.parquet")


def in_image_folder(rows, folder):
    in_csv(rows, folder)
    (folder / "rows.csv").rename(folder / "metadata.csv")
    return read_documents(folder)


def saved(rows, folder):
    Dataset.from_list(rows).save_to_disk(folder / "saved")
    return read_documents(folder / "saved")


def in_program(rows, folder):
    return [as_document(row, i) for i, row in enumerate(rows)]


def as_dataset(rows, folder):
    return [as_document(row, i) for i, row in enumerate(Dataset.from_list(rows))]


def as_stream(rows, folder):
    return [
        as_document(row, i) for i, row in enumerate(stored_rows(IterableDataset.from_generator(lambda: iter(rows))))
    ]


WAYS = [in_json, in_csv, in_parquet, in_image_folder, saved, in_program, as_dataset, as_stream]


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
def test_a_table_is_one_document_by_every_way(folder, columns):
    rows = [{"id": f"row {i}", **columns, **BESIDE} for i in range(2)]
    found = {way.__name__: [document.to_row() for document in way(rows, folder)] for way in WAYS}
    wanted = found.pop("in_json")
    text = next((value for key, value in columns.items() if key in ("text", "caption", "txt")), None)
    parts = [part["text"] for part in wanted[0]["messages"][0]["content"] if part["type"] == "text"]
    assert parts == ([text] if text else [])
    kept = json.loads(wanted[0]["metadata"])
    assert not kept.keys() & {"caption", "text", "txt", "image", "images", "image_path", "filepath"}
    assert {key: kept[key] for key in BESIDE} == BESIDE
    for way, documents in found.items():
        assert documents == wanted, way


@pytest.mark.parametrize("names", [["image", "text"], ["images", "text"], ["text"], ["image"]])
def test_candidates_of_a_pipeline_are_the_documents_of_their_rows(folder, names):
    values = {"image": "red.png", "images": ["red.png", "blue.png"], "text": "a red boat"}
    row = {name: values[name] for name in names}
    [candidate] = candidates_of(Dataset.from_list([row]))
    assert as_document(candidate, 0).content == as_document(row, 0).content


def test_rows_with_images_keep_their_bytes(folder):
    features = Features({"id": Value("string"), "image": ImageFeature(), "caption": Value("string")})
    rows = Dataset.from_list([{"id": "a", "image": str(folder / "red.png"), "caption": "b"}], features=features)
    rows.save_to_disk(folder / "saved")
    rows.to_parquet(folder / "rows.parquet")
    [wanted] = read_documents(folder / "rows.parquet")
    assert wanted.to_row()["images"] == [{"bytes": png(), "path": None}]
    [stored] = read_documents(folder / "saved")
    [given] = [as_document(row, 0) for row in stored_rows(rows)]
    [streamed] = [as_document(row, 0) for row in stored_rows(rows.to_iterable_dataset())]
    assert {document.digest for document in (wanted, stored, given, streamed)} == {wanted.digest}
    nested = Dataset.from_list(
        [{"id": "a", "images": [str(folder / "red.png")], "caption": "b"}],
        features=Features({"id": Value("string"), "images": List(ImageFeature()), "caption": Value("string")}),
    )
    assert [as_document(row, 0).digest for row in stored_rows(nested)] == [wanted.digest]
    [decoded] = [as_document(row, 0) for row in rows]  # a row that somebody else took out
    assert decoded.content.messages == wanted.content.messages


def test_an_image_folder_by_datasets_is_the_same_content(folder):
    images = folder / "images"
    images.mkdir()
    (images / "red.png").write_bytes(png())
    (images / "metadata.csv").write_text("file_name,caption,year\nred.png,a red boat,1999\n")
    [wanted] = read_documents(images)
    rows = load_dataset("imagefolder", data_dir=str(images), split="train", cache_dir=str(folder / "cache"))
    [found] = [as_document(row, 0) for row in stored_rows(rows)]
    assert found.content.messages == wanted.content.messages
    assert found.metadata == wanted.metadata == {"year": 1999}
    assert found.to_row()["images"] == wanted.to_row()["images"]


CHATS = {
    "LLaMA-Factory": {"conversations": [{"from": "human", "value": "<image>what?"}], "images": ["red.png"]},
    "messages": {"messages": [{"role": "user", "content": "<image>what?"}], "images": ["red.png"]},
    "OBELICS": {"texts": [None, "what?"], "images": ["red.png", None]},
    "MMC4": {"text_list": ["what?"], "image_info": [{"image_name": "red.png", "matched_text_index": 0}]},
}


@pytest.mark.parametrize("columns", CHATS.values(), ids=CHATS)
def test_conversations_and_web_documents_too(folder, columns):
    rows = [{"id": "a", **columns, "year": 1999}]
    ways = [in_json, in_parquet, saved, in_program, as_dataset, as_stream]
    found = {way.__name__: [document.to_row() for document in way(rows, folder)] for way in ways}
    [wanted] = found["in_json"]
    assert [part["type"] for part in wanted["messages"][0]["content"]] == ["image", "text"]
    assert json.loads(wanted["metadata"]) == {"year": 1999}
    assert all(documents == [wanted] for documents in found.values())


def test_what_would_be_lost_is_refused_by_every_way(folder):
    for row, column in (
        ({"caption": "a", "video": "a.mp4"}, "video"),
        ({"image": "red.png", "image_path": "blue.png", "picture": "green.png"}, "picture"),
        ({"caption": "a", "figure": "red.png"}, "figure"),
        ({"text": "a", "caption": "b"}, "caption"),
        ({"caption": "a", "url": "http://x.org/a.jpg"}, "url"),
    ):
        for way in (in_json, in_csv, in_parquet, saved, in_program, as_dataset):
            with pytest.raises(BadSampleError) as caught:
                list(way([row], folder))
            assert caught.value.field == column, way
    with pytest.raises(BadSampleError, match="year: `metadata` and a column both give it"):
        as_document({"text": "a", "year": 1, "metadata": {"year": 2}}, 0)


# ---- Columns ----

MOMENT = datetime.datetime(2024, 2, 29, 12, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
PLAIN = {
    "date": (datetime.date(2024, 2, 29), "2024-02-29"),
    "datetime": (datetime.datetime(2024, 2, 29, 12, 30), "2024-02-29T12:30:00"),
    "zone": (MOMENT, "2024-02-29T11:30:00+00:00"),
    "time": (datetime.time(12, 30), "12:30:00"),
    "duration": (datetime.timedelta(minutes=1.5), 90.0),
    "decimal": (decimal.Decimal("12.50"), 12.5),
    "whole decimal": (decimal.Decimal("12"), 12),
    "uuid": (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    "numpy date": (np.datetime64("2024-02-29T12:30:00", "ns"), "2024-02-29T12:30:00.000000000"),
    "numpy duration": (np.timedelta64(90, "s"), 90.0),
    "nan": (float("nan"), None),
}


def test_values_of_tables_become_metadata(subtests):
    for value, wanted in PLAIN.values():
        with subtests.test(value=repr(value)):
            assert as_document({"text": "a", "column": value}, 0).metadata == {"column": wanted}


def test_dates_of_parquet_are_found(folder):
    table = pa.table({"text": ["a"], "day": [datetime.date(2024, 2, 29)], "price": pa.array([decimal.Decimal("1.5")])})
    pq.write_table(table, folder / "rows.parquet")
    assert [d.metadata for d in read_documents(folder / "rows.parquet")] == [{"day": "2024-02-29", "price": 1.5}]


REFUSED = {
    "a decimal that no float holds": decimal.Decimal("0.1234567890123456789012345"),
    "bytes": b"\0\1",
    "nested": {"a": 1},
    "numbers": [1.0, 2.0],
    "an object": object(),
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_other_columns_are_refused_and_can_be_left_out(folder, value):
    row = {"text": "a", "column": value, "year": 1}
    with pytest.raises(BadSampleError, match="column"):
        as_document(row, 0)
    embedder = SugarEmbedder(*cached_sugar("llava"))
    index = SugarIndex.build(folder / "index", [row], embedder, drop_columns=["column"], show_progress=False)
    assert index.get("0").metadata == {"year": 1}
    index.add([{"id": "b", **row}], columns=["id", "text"], show_progress=False)
    assert index.get("b").metadata == {}
    index.update([{"id": "b", **row}], drop_columns=["column"])
    assert index.get("b").metadata == {"year": 1}


def test_a_data_set_with_a_column_that_cannot_be_read(folder):
    rows = Dataset(pa.table({"text": ["a", "b"], "when": pa.array([0, 2**62], pa.timestamp("us"))}))
    embedder = SugarEmbedder(*cached_sugar("llava"))
    with pytest.warns(UserWarning, match="1 documents were left out"):
        index = SugarIndex.build(folder / "one", rows, embedder, on_error="skip", show_progress=False)
    assert [document.id for document in index] == ["0"]
    index = SugarIndex.build(folder / "two", rows, embedder, drop_columns=["when"], show_progress=False)
    assert [document.metadata for document in index] == [{}, {}]


def test_names_of_columns_are_checked(folder):
    (folder / "rows.jsonl").write_text('{"text": "a", "year": 1}\n')
    found = read_documents(folder / "rows.jsonl", columns=["text", "yaer"])
    assert next(found).metadata == {}
    with pytest.raises(ValueError, match="columns: no row has the column 'yaer'"):
        next(found)
    with pytest.raises(ValueError, match="give columns or drop_columns, not both"):
        read_documents(folder / "rows.jsonl", columns=["text"], drop_columns=["year"])
    with pytest.raises(ValueError, match=r"drop_columns is a list of names, not 'year': give \['year'\]"):
        SugarIndex.build(folder / "index", [], SugarEmbedder(*cached_sugar("llava")), drop_columns="year")


def test_numbers_at_the_end_of_64_bits():
    assert as_document({"text": "a", "n": 1 - 2**63}, 0).metadata == {"n": 1 - 2**63}
    for number in (-(2**63), 2**63):
        with pytest.raises(BadSampleError, match="does not fit 64 bits"):
            as_document({"text": "a", "n": number}, 0)


def test_holes_of_web_documents(folder):
    (folder / "web.jsonl").write_text('{"texts": ["a", null, "b"], "images": [null, null, null]}\n')
    with pytest.raises(BadSampleError, match="got neither"):
        list(read_documents(folder / "web.jsonl"))
    skipped = []
    [document] = read_documents(folder / "web.jsonl", drop_broken_images=True, skipped=skipped)
    assert document.load() == ["a", "b"]
    assert [(error.line, error.field) for error in skipped] == [(1, "texts[1]")]


def test_filters_find_numbers_of_csv(folder):
    (folder / "rows.csv").write_text("id,text,year\na,one,1999\nb,two,2001\nc,three,\n")
    index = SugarIndex.build(
        folder / "index",
        read_documents(folder / "rows.csv"),
        SugarEmbedder(*cached_sugar("llava")),
        show_progress=False,
    )
    assert [hit.id for hit in index.search("two", where={"year": {"$gte": 2000}})] == ["b"]
