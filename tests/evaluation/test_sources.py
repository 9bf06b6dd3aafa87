"""Where the data of tasks comes from."""

import pytest
from benchmark_tools import write_image, write_rows
from PIL import Image

from sugar_hf.evaluation.benchmarks.sources import Source, get, image_in, read_json, read_json_lines, read_table


def rows(folder):
    return [row["text"] for row in Source("t", str(folder)).rows(None, None, "test")]


def test_folders_of_one_name_have_their_own_rows(tmp_path):
    for name in "ab":
        write_rows(tmp_path / name / "data", [{"text": name}])
    assert [rows(tmp_path / name / "data") for name in "ab"] == [["a"], ["b"]]


def test_a_folder_that_changes_is_read_anew(tmp_path):
    write_rows(tmp_path, [{"text": "old"}])
    assert rows(tmp_path) == ["old"]
    write_rows(tmp_path, [{"text": "new"}, {"text": "newer"}])
    assert rows(tmp_path) == ["new", "newer"]


def test_images_stay_encoded(tmp_path):
    write_rows(tmp_path, [{"text": "a", "image": Image.new("RGB", (4, 4))}])
    [row] = Source("t", str(tmp_path)).rows(None, None, "test")
    assert set(row["image"]) == {"bytes", "path"}
    assert row["image"]["bytes"].startswith(b"\x89PNG")


def test_files_are_found_at_any_depth_the_shallowest_first(tmp_path):
    for path in ("b/c/x.json", "a/x.json", "b/y.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    source = Source("t", str(tmp_path))
    assert source.find("x.json") == tmp_path / "a" / "x.json"
    assert source.find("z.json", "y.json") == tmp_path / "b" / "y.json"
    assert source.find("c/x.json") == tmp_path / "b" / "c" / "x.json"
    assert source.find("z.json") is None
    with pytest.raises(FileNotFoundError, match=r"t: no z\.json or w\.json in .*docs/benchmarks\.md"):
        source.need("z.json", "w.json")


def test_without_a_folder_or_a_name_there_is_a_clear_error():
    with pytest.raises(ValueError, match=r"t: it is not on the Hub. Give a folder with --data"):
        Source("t").rows(None, None, "test")
    with pytest.raises(FileNotFoundError, match="'me/data' is no folder"):
        Source("t", "me/data").need("x.json")


def test_files_that_are_damaged_are_named(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: no JSON"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{')
    with pytest.raises(ValueError, match=r"x\.jsonl, line 3: no JSON"):
        read_json_lines(tmp_path / "x.jsonl")


def test_fields_of_a_table_may_be_long(tmp_path):
    (tmp_path / "x.tsv").write_text("a\tb\n1\t" + "x" * 200_000)
    [row] = read_table(tmp_path / "x.tsv", "\t")
    assert len(row["b"]) == 200_000


def test_missing_fields_and_images_outside_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"sample 's'.*b: the field is missing. There is a"):
        get({"a": 1, "b": None}, "b", "s")
    write_image(tmp_path / "x.png", Image.new("RGB", (4, 4)))
    (tmp_path / "inside").mkdir()
    assert image_in(tmp_path, "x.png", "s") == tmp_path / "x.png"
    assert image_in(tmp_path / "inside", "missing.png", "s") == tmp_path / "inside" / "missing.png"
    with pytest.raises(ValueError, match=r"sample 's'.*lies outside"):
        image_in(tmp_path / "inside", "../x.png", "s")
