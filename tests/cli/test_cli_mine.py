"""`sugar-hf mine` on the picturebook."""

import json

import pytest

from sugar_hf import picturebook
from sugar_hf.data import load_dataset_file, read_pair, to_sample
from sugar_hf.retrieval.embedder import SugarEmbedder
from sugar_hf.retrieval.index import SugarIndex


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of pictures, and captions as queries for them by id."""
    folder = tmp_path_factory.mktemp("mine")
    rows = list(picturebook.load("test", kind="caption", size=30, words_first=True))
    samples = [to_sample(row) for row in rows]
    documents = [{"id": row["id"], "document": [sample[1]]} for row, sample in zip(rows, samples, strict=True)]
    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"), device="cpu")
    SugarIndex.build(folder / "pictures.index", documents, embedder, show_progress=False)
    pairs = [
        {"id": row["id"], "query": sample[0], "positive_ids": [row["id"]]}
        for row, sample in zip(rows[:6], samples, strict=False)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return folder


def test_captions_of_coco_look_for_their_images(cli, tmp_path):
    rows = [to_sample(row) for row in picturebook.load("test", kind="caption", size=6, words_first=True)]
    (tmp_path / "val2017").mkdir()
    coco = {"images": [], "annotations": []}
    for number, (caption, image) in enumerate(rows):
        image.save(tmp_path / "val2017" / f"{number}.png")
        coco["images"].append({"id": number, "file_name": f"{number}.png"})
        for said in (caption, caption.replace("background", "ground")):
            coco["annotations"].append({"id": len(coco["annotations"]), "image_id": number, "caption": said})
    captions, index, root = (
        tmp_path / "captions.json",
        tmp_path / "images.index",
        ["--image-root", tmp_path / "val2017"],
    )
    captions.write_text(json.dumps(coco))
    assert cli("index", "build", index, captions, *root, "--no-captions").code == 0
    command = ["mine", captions, "--index", index, "--output", tmp_path / "mined.jsonl"]
    command += ["--ranks", "1-20", "--count", "5", "--json"]
    found = cli(*command)
    assert found.code == 1
    assert "captions.json (row 0, sample '0-0'): positives[0]" in found.err
    assert "image_root" in found.err
    found = cli(*command, *root)
    assert found.code == 0, found.err
    counts = json.loads(found.out)
    assert counts["rows"] == 12
    assert counts["negatives"] == 60  # each image but the caption's own
    mined = load_dataset_file(tmp_path / "mined.jsonl", image_root=tmp_path / "val2017")
    assert mined["id"][:3] == ["0-0", "0-1", "1-2"]
    for row, (_, image) in zip(list(mined)[::2], rows, strict=True):
        pair = read_pair(row)
        assert [to_sample(each)[0].tobytes() for each in pair.positives] == [image.tobytes()]
        assert image.tobytes() not in [to_sample(each)[0].tobytes() for each in pair.negatives]
    # beside its captions an image is the positive, too
    assert cli("index", "build", tmp_path / "both.index", captions, *root).code == 0
    command = ["mine", captions, "--index", tmp_path / "both.index", "--output", tmp_path / "both.jsonl"]
    counts = json.loads(cli(*command, "--ranks", "1-20", "--count", "5", "--json", *root).out)
    assert (counts["negatives"], counts["left_out"]) == (60, {"contains a positive": 12})


def test_rows_to_train_on(cli, folder):
    command = [
        "mine",
        folder / "pairs.jsonl",
        "--index",
        folder / "pictures.index",
        "--output",
        folder / "mined.jsonl",
    ]
    found = cli(*command, "--ranks", "2-20", "--count", "3", "--teacher", "mini", "--teacher-threshold", "0.999")
    assert found.code == 0, found.err
    assert "rows: 6, negatives: 18" in found.err
    rows = load_dataset_file(folder / "mined.jsonl")
    assert [len(row["negatives"]) for row in rows] == [3] * 6
    assert all(row["negatives"][0]["images"][0]["bytes"] for row in rows)
    again = cli(*command)
    assert (again.code, again.out) == (1, "")
    assert "mined.jsonl is there" in again.err
    counts = cli(*command, "--overwrite", "--ranks", "1-4", "--count", "4", "--json")
    assert json.loads(counts.out) == {
        "rows": 6,
        "negatives": 24,
        "short": 0,
        "empty": 0,
        "left_out": json.loads(counts.out)["left_out"],
        "skipped": 0,
    }


def test_a_query_that_is_too_long_is_skipped_and_named(cli, folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()][:3]
    rows[1]["query"] = "a large broom. " * 100
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedder = SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar"), device="cpu", max_length=200)
    documents = SugarIndex.load(folder / "pictures.index")
    SugarIndex.build(tmp_path / "short.index", documents, embedder, show_progress=False)
    output = tmp_path / "mined.jsonl"
    command = ["mine", tmp_path / "pairs.jsonl", "--index", tmp_path / "short.index", "--output", output]
    refused = cli(*command, "--ranks", "1-9")
    assert refused.code == 1
    assert "pairs.jsonl:2" in refused.err
    assert not output.exists()
    found = cli(*command, "--ranks", "1-9", "--on-error", "skip", "--prompt", "Find it.")
    assert found.code == 0, found.err
    assert "rows that cannot be read or embedded, and are not written: 1" in found.err
    assert "pairs.jsonl:2" in found.err
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["id"] for row in written] == [rows[0]["id"], rows[2]["id"]]
    assert {row["instruction"] for row in written} == {"Find it."}


def test_what_is_refused(cli, folder, subtests):
    for options, code, message in [
        (["--ranks", "ten"], 2, "give two ranks, such as 10-50"),
        (["--ranks", "9-3"], 1, "ranks=9-3"),
        (["--teacher", "a,b"], 2, "give mini, paper, or three names"),
        (["--sampling", "best"], 2, "'best' is not one of"),
    ]:
        with subtests.test(message):
            output = folder / "refused.jsonl"
            found = cli(
                "mine", folder / "pairs.jsonl", "--index", folder / "pictures.index", "--output", output, *options
            )
            assert (found.code, found.out) == (code, "")
            assert message in " ".join(found.err.replace("│", " ").split())
            assert not output.exists()
