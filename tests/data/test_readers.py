"""Each format in its official form, read into the common schema."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sugar_hf.data import (
    FEATURES,
    load_dataset_file,
    read_chat,
    read_llava,
    read_mmc4,
    read_obelics,
    read_pairs,
    to_sample,
)

COLOURS = {
    "coco/train2017/000000033471.jpg": "red",
    "coco/train2017/000000052846.jpg": "blue",
    "b9040a0dbb22.jpg": "red",
    "db1c21bc8474.jpg": "blue",
    "c1a3e4d5f6a7.jpg": "lime",
    "lion.jpg": "red",
    "zebra.jpg": "blue",
    "dog.jpg": "red",
    "cat.jpg": "blue",
    "webdataset/00000/000000000.jpg": "red",
    "webdataset/00000/000000001.jpg": "blue",
    "imagefolder/0001.png": "red",
    "imagefolder/0002.png": "blue",
    "imagefolder/0003.png": "lime",
}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    shutil.copytree(Path(__file__).parent / "fixtures", root)
    for name, colour in COLOURS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(root / name)
    return root


def colour(image):
    """The channel that a picture of the fixture fills."""
    return ("red", "lime", "blue")[max(range(3), key=image.getpixel((4, 4)).__getitem__)]


def plain(row):
    """A sample with colours for images; messages become (role, parts)."""
    sample = to_sample(row)
    if row["messages"][0]["role"] == "document":
        return [item if isinstance(item, str) else (colour(item),) for item in sample]
    return [
        (m["role"], [p["text"] if p["type"] == "text" else (colour(p["image"]),) for p in m["content"]])
        for m in sample
    ]


def test_llava(folder):
    dataset = read_llava(folder / "llava.json")
    assert dataset.features == FEATURES
    assert dataset["id"][:] == ["000000033471", "000000052846", "wgByO4Y_0", "interleave_7"]
    assert [Path(source).name for source in dataset["source"]] == [
        "llava.json:2#0",
        "llava.json:24#1",
        "llava.json:38#2",
        "llava.json:51#3",
    ]
    first = plain(dataset[0])
    assert first[0] == ("user", [("red",), "What are the colors of the bus in the image?"])
    assert [role for role, _ in first] == ["user", "assistant", "user", "assistant"]
    assert plain(dataset[1])[0] == ("user", ["Where is the cat positioned in the image?", ("blue",)])
    # Without images a literal <image> is text, in questions and in answers.
    assert plain(dataset[2]) == [
        ("user", ["How do I put a picture into a page? Is <image> a tag of HTML?"]),
        ("assistant", ["The tag is <img>, not <image>."]),
    ]
    assert plain(dataset[3]) == [
        ("system", ["Answer in one sentence."]),
        ("user", ["Image 1:", ("red",), "Image 2:", ("blue",), "What changed?"]),
        ("assistant", ["The bus left and a cat came."]),
    ]


def test_mmc4_puts_each_image_before_its_sentence(folder):
    dataset = read_mmc4(folder / "mmc4.jsonl")
    assert plain(dataset[0]) == [
        ("blue",),
        "The garden opens in April.",
        ("red",),
        ("lime",),
        "Roses bloom along the wall.",
        "Tickets are sold at the gate.",
    ]
    assert plain(dataset[1]) == ["A note without a picture."]
    assert dataset["id"][:] == ["mmc4-0", "mmc4-1"]


ZOO = [("red",), "The lion sleeps.\n\nIt is noon.", ("blue",), "The zebra drinks."]


def test_obelics_json_lines(folder):
    assert plain(read_obelics(folder / "obelics.jsonl")[0]) == ZOO


def test_obelics_parquet(folder):
    schema = pa.schema(
        {
            "images": pa.list_(pa.string()),
            "metadata": pa.string(),
            "general_metadata": pa.string(),
            "texts": pa.list_(pa.string()),
        }
    )
    row = json.loads((folder / "obelics.jsonl").read_text())
    pq.write_table(pa.Table.from_pylist([row] * 40, schema), folder / "train-00000.parquet")
    dataset = load_dataset_file(folder / "train-00000.parquet")
    assert len(dataset) == 40
    assert plain(dataset[39]) == ZOO
    assert dataset[39]["source"].endswith("train-00000.parquet#39")


def test_parquet_with_embedded_images_keeps_the_bytes(folder):
    data = (folder / "lion.jpg").read_bytes()
    # The path beside the bytes names another file that exists: the bytes must win.
    image = {"bytes": data, "path": str(folder / "zebra.jpg")}
    pq.write_table(
        pa.Table.from_pylist([{"images": [image, None], "texts": [None, "a"]}]), folder / "embedded.parquet"
    )
    row = read_obelics(folder / "embedded.parquet")[0]
    assert row["images"] == [{"bytes": data, "path": None}]
    assert plain(row) == [("red",), "a"]
    pq.write_table(pa.Table.from_pylist([{"jpg": data, "txt": "a lion", "key": "00"}]), folder / "pairs.parquet")
    assert plain(load_dataset_file(folder / "pairs.parquet")[0]) == [("red",), "a lion"]


def test_pairs_json_lines(folder):
    dataset = read_pairs(folder / "coyo.jsonl")
    assert plain(dataset[0]) == [("red",), "A Pomsky dog sitting and smiling in field of orange flowers"]
    assert plain(dataset[1]) == [("blue",), "a cat on a couch"]
    assert dataset["id"][:] == ["841814333321", "000000001"]


def test_pairs_folder_of_files(folder):
    dataset = read_pairs(folder / "webdataset")
    assert [plain(row) for row in dataset] == [[("red",), "a red bus at a stop"], [("blue",), "a cat on a couch"]]
    assert dataset["id"][:] == ["00000/000000000", "00000/000000001"]


def test_image_folder_metadata(folder):
    csv = read_pairs(folder / "imagefolder")
    assert [plain(row) for row in csv] == [
        [("red",), "This is a golden retriever, playing with a ball"],
        [("blue",), "A german shepherd\non two lines"],
        [("lime",), "One chihuahua"],
    ]
    assert [Path(source).name for source in csv["source"]] == [
        "metadata.csv:2#0",
        "metadata.csv:3#1",
        "metadata.csv:5#2",
    ]
    (folder / "imagefolder" / "metadata.jsonl").write_text('{"file_name": "0001.png", "text": "A dog"}\n')
    with pytest.raises(ValueError, match="pass the one to read"):
        read_pairs(folder / "imagefolder")
    (folder / "imagefolder" / "metadata.csv").unlink()
    assert plain(load_dataset_file(folder / "imagefolder")[0]) == [("red",), "A dog"]


def test_chat(folder):
    dataset = read_chat(folder / "chat.jsonl")
    assert plain(dataset[0]) == [
        ("system", ["Be brief."]),
        ("user", [("red",), "Is <image> a tag?"]),
        ("assistant", ["No."]),
    ]
    assert plain(dataset[1]) == [("user", [("red",), "and", ("blue",), "are?"]), ("assistant", ["A dog and a cat."])]
    assert plain(dataset[2]) == ["A cat.", ("blue",)]


def test_auto_tells_the_format(folder, subtests):
    for name, format in [
        ("llava.json", "llava"),
        ("mmc4.jsonl", "mmc4"),
        ("obelics.jsonl", "obelics"),
        ("coyo.jsonl", "pairs"),
        ("webdataset", "pairs"),
        ("imagefolder", "pairs"),
        ("imagefolder/metadata.csv", "pairs"),
        ("chat.jsonl", "chat"),
    ]:
        with subtests.test(name=name, format=format):
            auto, named = load_dataset_file(folder / name), load_dataset_file(folder / name, format)
            assert auto.to_list() == named.to_list()


def test_json_lines_and_arrays_under_either_suffix(folder):
    rows = json.loads((folder / "llava.json").read_text())
    expected = read_llava(folder / "llava.json")
    (folder / "lines.json").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (folder / "array.jsonl").write_text("\ufeff" + json.dumps(rows), encoding="utf-8")
    for name in ("lines.json", "array.jsonl"):
        dataset = load_dataset_file(folder / name)
        assert [plain(row) for row in dataset] == [plain(row) for row in expected]


def test_relative_paths_and_image_root(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    path = read_pairs("data/coyo.jsonl")[0]["images"][0]["path"]
    assert path == str(folder / "dog.jpg")
    (folder / "pictures").mkdir()
    for name in ("dog.jpg", "cat.jpg"):
        (folder / name).rename(folder / "pictures" / name)
    dataset = read_pairs("data/coyo.jsonl", image_root="data/pictures")
    assert dataset[0]["images"][0]["path"] == str(folder / "pictures" / "dog.jpg")


def test_a_changed_file_is_read_again(folder):
    path = folder / "coyo.jsonl"
    assert len(read_pairs(path)) == 2
    path.write_text(path.read_text().splitlines()[0] + "\n")
    assert len(read_pairs(path)) == 1


def test_dataset_works_as_any_other(folder, tmp_path):
    dataset = read_llava(folder / "llava.json")
    dataset = dataset.map(lambda row: {"parts": len(row["messages"])})
    assert dataset["parts"][:] == [4, 2, 2, 3]
    dataset.select([1, 0]).save_to_disk(tmp_path / "saved")
    from datasets import load_from_disk

    assert plain(load_from_disk(str(tmp_path / "saved"))[1])[0][1][0] == ("red",)


def test_images_are_decoded_lazily(folder):
    dataset = read_pairs(folder / "coyo.jsonl")
    assert set(dataset[0]["images"][0]) == {"bytes", "path"}
    assert dataset[0]["images"][0]["bytes"] is None
    Image.new("RGB", (8, 8), "lime").save(folder / "dog.jpg")
    assert plain(dataset[0])[0] == ("lime",)
