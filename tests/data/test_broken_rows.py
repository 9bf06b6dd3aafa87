"""Broken rows: every fault is named with file, line and field, and can be skipped and counted."""

import io
import json
import warnings

import pytest
from PIL import Image

from sugar_hf.data import BadSampleError, SkippedRowsWarning, load_dataset_file, read_mmc4, read_obelics, to_sample


def jpeg(side=32):
    buffer = io.BytesIO()
    Image.effect_noise((side, side), 80).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    (root / "a.jpg").write_bytes(jpeg())
    (root / "short.jpg").write_bytes(jpeg()[:400])
    (root / "text.jpg").write_text("not an image")
    (root / "big.jpg").write_bytes(jpeg(64))
    (tmp_path / "secret.jpg").write_bytes(jpeg())
    return root


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # a.jpg has 1024 pixels, big.jpg 4096


def turns(question="<image>\nWhat?", answer="That."):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def mmc4(name="a.jpg", index=0, texts=("one", "two")):
    return {"text_list": list(texts), "image_info": [{"image_name": name, "matched_text_index": index}]}


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


IMAGE = {"type": "image"}
# format, row, field of the error, reason
BROKEN = [
    ("llava", {"image": "gone.jpg", "conversations": turns()}, "image", "no file"),
    ("llava", {"image": "short.jpg", "conversations": turns()}, "image", "truncated"),
    ("llava", {"image": "text.jpg", "conversations": turns()}, "image", "not an image"),
    ("llava", {"image": "big.jpg", "conversations": turns()}, "image", "decompression bomb"),
    ("llava", {"image": "../secret.jpg", "conversations": turns()}, "image", "outside the image root"),
    ("llava", {"image": 5, "conversations": turns()}, "image", "expected a file name"),
    ("llava", {"image": "", "conversations": turns()}, "image", "empty"),
    ("llava", {"image": [], "conversations": turns()}, "image", "an empty list"),
    ("llava", {"image": ["a.jpg", "gone.jpg"], "conversations": turns("<image> <image>")}, "image[1]", "no file"),
    ("llava", {"image": "a.jpg", "conversations": turns("What?")}, "image", "has 0 <image>, but `image` names 1"),
    ("llava", {"image": "a.jpg", "conversations": turns("<image><image>")}, "image", "has 2 <image>"),
    ("llava", {"conversations": turns()}, "conversations[0].value", "without `image`"),
    ("llava", {"conversations": turns("Hi", " ")}, "conversations[1].value", "the text is empty"),
    ("llava", {"conversations": turns("Hi", None)}, "conversations[1].value", "expected a string"),
    ("llava", {"conversations": [{"from": "bot", "value": "hi"}]}, "conversations[0].from", "unknown speaker"),
    ("llava", {"conversations": [{"from": ["human"], "value": "hi"}]}, "conversations[0].from", "unknown speaker"),
    ("llava", {"conversations": "hi"}, "conversations", "expected a list"),
    ("llava", {"conversations": ["hi"]}, "conversations[0]", "expected a dict"),
    ("llava", {"id": 1.5, "conversations": turns("Hi")}, "id", "whole number"),
    ("mmc4", mmc4("gone.jpg"), "image_info[0].image_name", "no file"),
    ("mmc4", mmc4(index=2), "image_info[0].matched_text_index", "one of the 2 sentences, got 2"),
    ("mmc4", mmc4(index=None), "image_info[0].matched_text_index", "got None"),
    ("mmc4", mmc4(index=True), "image_info[0].matched_text_index", "got True"),
    ("mmc4", mmc4(texts=("one", "")), "text_list[1]", "the text is empty"),
    ("mmc4", {"text_list": [], "image_info": []}, "text_list", "at least one"),
    ("mmc4", {"text_list": ["a"], "image_info": None}, "image_info", "expected a list"),
    ("obelics", {"texts": ["a", None], "images": [None, "gone.jpg"]}, "images[1]", "no file"),
    ("obelics", {"texts": ["a"], "images": [None, "a.jpg"]}, "images", "2 entries, but `texts` has 1"),
    ("obelics", {"texts": ["a", None], "images": [None, None]}, "texts[1]", "neither"),
    ("obelics", {"texts": ["a"], "images": ["a.jpg"]}, "texts[0]", "both"),
    ("obelics", {"texts": [None], "images": ["http://x.org/a.jpg"]}, "images[0]", "is a URL"),
    ("pairs", {"image": "gone.jpg", "text": "a"}, "image", "no file"),
    ("pairs", {"file_name": "short.jpg", "text": "a"}, "file_name", "truncated"),
    ("pairs", {"image": "a.jpg", "caption": "  "}, "caption", "the text is empty"),
    ("pairs", {"image": "a.jpg", "text": 4}, "text", "expected a string"),
    ("pairs", {"image": "a.jpg"}, "text", "no caption"),
    ("pairs", {"url": "http://x.org/a.jpg", "text": "a"}, "image", "fetch the images first"),
    ("chat", {"messages": user({"type": "image", "image": "gone.jpg"})}, "messages[0].content[0].image", "no file"),
    ("chat", {"messages": user(IMAGE)}, "messages[0].content[0]", "no image left"),
    ("chat", {"messages": user(IMAGE), "images": ["a.jpg", "a.jpg"]}, "images", "2 images, but 1"),
    ("chat", {"messages": user({"type": "video"})}, "messages[0].content[0].type", "unknown part type"),
    ("chat", {"messages": [{"role": "user", "content": ""}]}, "messages[0].content[0].text", "the text is empty"),
    ("chat", {"messages": [{"role": "user", "content": 3}]}, "messages[0].content", "string or a list"),
    ("chat", {"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role", "unknown role"),
    ("chat", {"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role", "unknown role"),
    ("chat", {"messages": [{"role": "document", "content": "a"}] * 2}, "messages[0].role", "only message"),
    ("chat", ["messages"], None, "expected an object"),
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_fault_is_named(folder, small_limit, subtests):
    for format, row, field, reason in BROKEN:
        with subtests.test(format=format, field=field, reason=reason):
            path = folder / "data.jsonl"
            path.write_text("\n" + json.dumps(row) + "\n")
            with pytest.raises(BadSampleError) as caught:
                load_dataset_file(path, format)
            error = caught.value
            assert (error.file, error.line, error.row, error.field) == (str(path), 2, 0, field)
            assert reason in str(error)
            assert str(error).startswith(f"{path}:2 (row 0")


def test_skip_counts_names_and_lists(folder):
    good = {"id": "g", "image": "a.jpg", "text": "a"}
    bad = {"id": "b", "image": "gone.jpg", "text": "a"}
    path = folder / "data.jsonl"
    path.write_text("\n".join([json.dumps(good), json.dumps(bad), "{not json", "7", json.dumps(good)]))
    skipped = []
    with pytest.warns(SkippedRowsWarning, match=r"3 broken rows or images left out, 2 rows kept") as caught:
        dataset = load_dataset_file(path, on_error="skip", skipped=skipped)
    assert dataset["id"][:] == ["g", "g"]
    assert [(error.line, error.row, error.sample) for error in skipped] == [(2, 1, "b"), (3, 2, None), (4, 3, None)]
    assert "invalid JSON" in str(skipped[1])
    assert all(str(error) in str(caught[0].message) for error in skipped)


def test_skip_is_silent_without_faults(folder):
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"image": "a.jpg", "text": "a"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_dataset_file(path, on_error="skip")) == 1


def test_no_usable_row(folder):
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"image": "gone.jpg", "text": "a"}))
    skipped = []
    with pytest.raises(ValueError, match="no usable row"):
        load_dataset_file(path, on_error="skip", skipped=skipped)
    assert len(skipped) == 1
    path.write_text("[]")
    with pytest.raises(ValueError, match="no usable row"):
        load_dataset_file(path, "llava")


def test_without_validation_only_the_pixels_wait(folder):
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"image": "short.jpg", "text": "a"}))
    dataset = load_dataset_file(path, validate_images=False)
    with pytest.raises(BadSampleError, match=r"data.jsonl:1#0 \(sample 'data-0'\): images\[0\]: .*truncated"):
        to_sample(dataset[0])
    path.write_text(json.dumps({"image": "gone.jpg", "text": "a"}))
    with pytest.raises(BadSampleError, match="no file"):
        load_dataset_file(path, validate_images=False)


def test_outside_root_must_be_allowed(folder):
    path = folder / "data.jsonl"
    path.write_text(json.dumps({"image": "../secret.jpg", "text": "a"}))
    dataset = load_dataset_file(path, allow_outside_root=True)
    assert dataset[0]["images"][0]["path"] == str(folder.parent / "secret.jpg")


def test_documents_can_lose_broken_images(folder):
    path = folder / "mmc4.jsonl"
    row = mmc4()
    row["image_info"].append({"image_name": "gone.jpg", "matched_text_index": 1})
    path.write_text(json.dumps(row) + "\n" + json.dumps(mmc4("short.jpg")))
    skipped = []
    with pytest.warns(SkippedRowsWarning, match="2 broken rows or images left out, 2 rows kept"):
        dataset = read_mmc4(path, drop_broken_images=True, skipped=skipped)
    assert [type(item).__name__ for item in to_sample(dataset[0])] == ["Image", "str", "str"]
    assert to_sample(dataset[1]) == ["one", "two"]
    assert [(error.line, error.field) for error in skipped] == [
        (1, "image_info[1].image_name"),
        (2, "image_info[0].image_name"),
    ]
    path.write_text(json.dumps({"texts": [None], "images": ["gone.jpg"]}))
    with pytest.raises(BadSampleError, match="content"):  # nothing is left of it
        read_obelics(path, drop_broken_images=True)


ARRAY = '[\n{"conversations": [{"from": "human", "value": "a"}]}%s'


def test_damaged_array_ends_the_reading(folder, subtests):
    for tail in ["", ",", ",\n{", ",\n{]", " {}]", "\n][]"]:
        for on_error in ["raise", "skip"]:
            with subtests.test(on_error=on_error, tail=tail):
                path = folder / "data.json"
                path.write_text(ARRAY % tail)
                with pytest.raises(BadSampleError, match=r"invalid JSON|after the end"):
                    load_dataset_file(path, "llava", on_error=on_error)


def test_damaged_files(folder):
    (folder / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (folder / "latin.jsonl").write_bytes('{"text": "caf\u00e9"}'.encode("latin-1"))
    (folder / "latin.json").write_bytes('[{"text": "caf\u00e9"}]'.encode("latin-1"))
    (folder / "x.parquet").write_bytes(b"PAR1nothing")
    (folder / "x.csv").write_text('file_name,text\na.jpg,"never closed\n')
    for name in ("deep.jsonl", "latin.jsonl", "latin.json", "x.parquet", "x.csv"):
        with pytest.raises(BadSampleError, match=r"invalid|not UTF-8") as caught:
            load_dataset_file(folder / name, "pairs")
        assert caught.value.file == str(folder / name)
    (folder / "x.csv").write_text("file_name,text\na.jpg,one, two\n")
    with pytest.raises(BadSampleError, match=r"x.csv:2 \(row 0\): more fields"):
        load_dataset_file(folder / "x.csv")


def test_folder_of_pairs_with_gaps(folder):
    pairs = folder / "pairs"
    pairs.mkdir()
    for name in ("0", "1", "2", "3"):
        (pairs / f"{name}.jpg").write_bytes(jpeg())
    (pairs / "0.txt").write_text("fine")
    (pairs / "2.json").write_text("{}")
    (pairs / "3.txt").write_text("\n")
    (pairs / "4.txt").write_text("no image")
    skipped = []
    with pytest.warns(SkippedRowsWarning, match="4 broken"):
        assert len(load_dataset_file(pairs, on_error="skip", skipped=skipped)) == 1
    reasons = ["image has no caption", "has no caption", "text is empty", "has no image of the same name"]
    assert all(reason in str(error) for reason, error in zip(reasons, skipped, strict=True))
    assert [error.row for error in skipped] == [1, 2, 3, 4]


def test_wrong_calls(folder):
    with pytest.raises(FileNotFoundError, match="no data file"):
        load_dataset_file(folder / "gone.json")
    (folder / "a.txt").touch()
    with pytest.raises(ValueError, match=r"readers know .json"):
        load_dataset_file(folder / "a.txt")
    with pytest.raises(ValueError, match="unknown format 'coco'"):
        load_dataset_file(folder / "a.txt", "coco")
    with pytest.raises(ValueError, match="on_error"):
        load_dataset_file(folder / "a.txt", on_error="ignore")
    (folder / "odd.jsonl").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="cannot tell the format"):
        load_dataset_file(folder / "odd.jsonl")
