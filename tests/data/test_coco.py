"""COCO's captions file is read as images with their captions."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, load_dataset_file, read_documents, read_pair

# As instances of it are in captions_val2017.json.
COCO = {
    "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
    "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}],
    "images": [
        {
            "license": 4,
            "file_name": f"{name:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/val2017/{name:012d}.jpg",
            "height": 4,
            "width": 6,
            "date_captured": "2013-11-14 17:02:52",
            "flickr_url": f"http://farm7.staticflickr.com/6116/{name}_z.jpg",
            "id": name,
        }
        for name in (397133, 37777)
    ],
    "annotations": [
        {"image_id": 37777, "id": 1, "caption": "a red room"},
        {"image_id": 397133, "id": 2, "caption": "a man cooks."},
        {"image_id": 397133, "id": 3, "caption": "a man in a kitchen."},
    ],
}


@pytest.fixture
def coco(tmp_path):
    """A function that writes the file where COCO has it, beside the images."""
    (tmp_path / "val2017").mkdir()
    for image in COCO["images"]:
        Image.new("RGB", (6, 4), "red").save(tmp_path / "val2017" / image["file_name"])

    def write(change=lambda value: None):
        value = json.loads(json.dumps(COCO))
        change(value)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        file = tmp_path / "annotations" / "captions_val2017.json"
        file.write_text(json.dumps(value))
        return file, tmp_path / "val2017"

    return write


def test_each_image_is_a_document_with_its_captions(coco):
    file, images = coco()
    first, second = read_documents(file, image_root=images)
    assert (first.id, second.id) == ("397133", "37777")
    assert [getattr(part, "name", part) for part in first.sample] == [
        "000000397133.jpg",
        "a man cooks.",
        "a man in a kitchen.",
    ]
    assert first.metadata["flickr_url"].endswith("397133_z.jpg")
    assert second.metadata["width"] == 6


def test_each_image_is_a_row_for_training(coco):
    file, images = coco()
    rows = load_dataset_file(file, image_root=images)
    assert rows["id"][:] == ["397133", "37777"]
    assert [part["text"] for part in rows[0]["messages"][0]["content"]] == [
        None,
        "a man cooks.",
        "a man in a kitchen.",
    ]
    assert Path(rows[1]["images"][0]["path"]).name == "000000037777.jpg"
    with pytest.raises(BadSampleError, match="Check the name and image_root"):
        load_dataset_file(file)


def test_captions_may_be_metadata(coco):
    file, images = coco(lambda value: value["annotations"].pop(0))
    first, second = read_documents(file, image_root=images, captions=False)
    assert [part.name for part in first.sample] == ["000000397133.jpg"]
    assert first.metadata["captions"] == ["a man cooks.", "a man in a kitchen."]
    assert (second.id, "captions" in second.metadata) == ("37777", False)


def test_each_caption_looks_for_its_image(coco):
    file, images = coco()
    rows = load_dataset_file(file, "retrieval", image_root=images)
    assert rows["id"][:] == ["397133-2", "397133-3", "37777-1"]
    pairs = [read_pair(row) for row in rows]
    texts = [pair.query["messages"][0]["content"][0]["text"] for pair in pairs]
    assert texts == ["a man cooks.", "a man in a kitchen.", "a red room"]
    found = [[Path(each["images"][0]["path"]).name for each in pair.positives] for pair in pairs]
    assert found == [["000000397133.jpg"], ["000000397133.jpg"], ["000000037777.jpg"]]
    with pytest.raises(BadSampleError, match=r"sample '397133-2'\): positives\[0\]"):
        load_dataset_file(file, "retrieval")


def test_faults_are_named(coco, subtests):
    for change, message in [
        (lambda value: value["annotations"][0].pop("caption"), r"annotations\[0\]: the annotation has no caption"),
        (
            lambda value: value["annotations"][0].update(image_id=5),
            r"annotations\[0\].image_id: no image has the id 5",
        ),
        (lambda value: value["images"][1].update(id=397133), "no image has the id 37777"),
        (lambda value: value["images"][1].pop("id"), "no image has the id 37777"),
        (lambda value: value["images"].append(value["images"][0]), r"two images have the id 397133"),
        (lambda value: value["images"][0].pop("file_name"), "no image"),
        (lambda value: value["annotations"][0].update(caption=" "), "the text is empty|no caption"),
        (lambda value: value["annotations"].pop(0), "no caption"),
    ]:
        with subtests.test(message=message):
            file, images = coco(change)
            with pytest.raises(BadSampleError, match=message):
                load_dataset_file(file, "pairs", image_root=images)
    file, images = coco(lambda value: value["annotations"][0].update(image_id=5))
    skipped = []
    found = list(read_documents(file, image_root=images, on_error="skip", skipped=skipped))
    assert [len(document.sample) for document in found] == [3, 1]
    assert len(skipped) == 1
