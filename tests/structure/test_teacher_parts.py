"""Teacher vectors are stored part by part: a run that was stopped goes on where it was."""

import logging
import os

import pytest
from datasets import Dataset, load_from_disk
from tiny_teachers import save_tiny_teachers

from sugar_hf.structure import TEACHER_COLUMNS, TripleTeacher

LONG = "a very long sentence " * 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return save_tiny_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def teacher(checkpoints):
    return TripleTeacher.from_pretrained(**checkpoints, show_progress=False)


def rows(count: int = 8) -> list[dict]:
    """Row i has i % 3 + 1 texts."""
    return [{"number": i, "texts": [f"text {i}.{k}" for k in range(i % 3 + 1)]} for i in range(count)]


def texts(row: dict) -> list:
    return row["texts"]


def slices_embedded(teacher: TripleTeacher, monkeypatch, stop_after: int | None = None) -> list[str]:
    """All texts that go through the teacher from now on; it fails at the text after `stop_after`."""
    seen: list[str] = []
    real = teacher._clip_texts

    def watch(batch):
        if stop_after is not None and len(seen) + len(batch) > stop_after:
            raise KeyboardInterrupt
        seen.extend(batch)
        return real(batch)

    monkeypatch.setattr(teacher, "_clip_texts", watch)
    return seen


def vectors(dataset: Dataset) -> list:
    return [dataset[name] for name in TEACHER_COLUMNS]


@pytest.mark.parametrize("place", ["beside the data set", "cache_dir"])
def test_stopped_call_goes_on_where_it_was(teacher, tmp_path, monkeypatch, place):
    whole = teacher.cache(Dataset.from_list(rows()), texts, batch_size=2, part_rows=4)
    dataset, options = Dataset.from_list(rows()), {"batch_size": 2, "part_rows": 4}
    if place == "cache_dir":
        options["cache_dir"] = tmp_path / "new" / "folder"
    else:
        dataset.save_to_disk(tmp_path / "data")
        dataset = load_from_disk(tmp_path / "data")
    with monkeypatch.context() as patch:
        # rows 0 to 5 have 1, 2, 3, 1, 2 and 3 texts: the second part is stopped in its midst
        seen = slices_embedded(teacher, patch, stop_after=12)
        with pytest.raises(KeyboardInterrupt):
            teacher.cache(dataset, texts, **options)
        assert len(seen) == 12
    seen = slices_embedded(teacher, monkeypatch)
    again = teacher.cache(dataset, texts, **options)
    assert sorted(seen) == sorted(text for row in rows()[4:] for text in row["texts"])
    assert again.column_names == ["number", "texts", *TEACHER_COLUMNS]
    assert again.to_list() == whole.to_list()
    seen.clear()
    third = teacher.cache(dataset, texts, **options)
    assert not seen
    assert third._fingerprint == again._fingerprint
    assert vectors(third) == vectors(again)


def test_part_that_was_not_finished_is_not_used(teacher, tmp_path, monkeypatch):
    def fail(*paths):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="No space left"):
            teacher.cache(Dataset.from_list(rows()), texts, cache_dir=tmp_path)
    assert os.listdir(tmp_path) == []
    teacher.cache(Dataset.from_list(rows()), texts, cache_dir=tmp_path)
    [stored] = tmp_path.iterdir()
    # what a process that was killed while writing has left: a part of the bytes under the temporary name
    half = stored.with_name(stored.name + ".1.tmp")
    half.write_bytes(stored.read_bytes()[:100])
    stored.unlink()
    seen = slices_embedded(teacher, monkeypatch)
    teacher.cache(Dataset.from_list(rows()), texts, cache_dir=tmp_path)
    assert len(seen) == 15


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"not Arrow at all",
        lambda data: data[:-28],  # as older versions wrote it, without a digest
        lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    ],
    ids=["half", "a byte less", "empty", "other", "no digest", "a bit"],
)
@pytest.mark.parametrize("place", ["beside the data set", "cache_dir"])
def test_damaged_part_is_computed_anew(teacher, tmp_path, monkeypatch, caplog, damage, place):
    dataset, options = Dataset.from_list(rows()), {"part_rows": 4, "cache_dir": tmp_path}
    if place != "cache_dir":
        dataset.save_to_disk(tmp_path)
        dataset, options = load_from_disk(tmp_path), {"part_rows": 4}
    whole = teacher.cache(dataset, texts, **options).to_list()
    first, second = sorted(tmp_path.glob("cache-*.arrow"))
    good = first.read_bytes()
    first.unlink()  # not written over: the data set of the first call still reads it
    first.write_bytes(damage(good))
    seen = slices_embedded(teacher, monkeypatch)
    assert teacher.cache(dataset, texts, **options).to_list() == whole
    assert 0 < len(seen) < 15
    assert "is damaged" in caplog.text
    assert first.read_bytes() == good
    seen.clear()
    teacher.cache(dataset, texts, **options)
    assert not seen
    assert second.is_file()


def test_parts_are_known_by_their_rows(teacher, checkpoints, tmp_path, monkeypatch):
    options = {"cache_dir": tmp_path / "cache", "part_rows": 4}
    teacher.cache(Dataset.from_list(rows(8)), texts, **options)
    seen = slices_embedded(teacher, monkeypatch)
    # more rows at the end, read from elsewhere
    Dataset.from_list(rows(9)).save_to_disk(tmp_path / "data")
    longer = teacher.cache(load_from_disk(tmp_path / "data"), texts, **options)
    assert len(longer) == 9
    assert sorted(seen) == rows(9)[8]["texts"]
    # another text in the second part
    changed = rows(8)
    changed[5]["texts"][0] = "another text"
    seen.clear()
    teacher.cache(Dataset.from_list(changed), texts, **options)
    assert sorted(seen) == sorted(text for row in changed[4:] for text in row["texts"])
    # other slices
    seen.clear()
    teacher.cache(Dataset.from_list(rows(8)), lambda row: row["texts"][:1], **options)
    assert len(seen) == 8
    # other teachers
    other = TripleTeacher.from_pretrained(**save_tiny_teachers(tmp_path / "other", seed=1), show_progress=False)
    seen = slices_embedded(other, monkeypatch)
    other.cache(Dataset.from_list(rows(8)), texts, **options)
    assert len(seen) == 15


def test_stored_parts_may_be_ignored(teacher, tmp_path, monkeypatch):
    for count, options in ((15, {}), (0, {}), (15, {"load_from_cache_file": False})):
        with monkeypatch.context() as patch:
            seen = slices_embedded(teacher, patch)
            teacher.cache(Dataset.from_list(rows()), texts, cache_dir=tmp_path, part_rows=4, **options)
            assert len(seen) == count


def test_truncated_texts_of_stored_parts_are_counted(teacher, tmp_path, monkeypatch):
    dataset = Dataset.from_list([{"texts": [LONG, f"short {i}"]} for i in range(6)])
    expected = r"Of 12 texts these were truncated: 6 for the clip teacher \(at 128 tokens\), 6 for the text"
    with monkeypatch.context() as patch:
        slices_embedded(teacher, patch, stop_after=8)
        with pytest.raises(KeyboardInterrupt):
            teacher.cache(dataset, texts, cache_dir=tmp_path, part_rows=2, batch_size=1)
    for _ in range(2):
        with pytest.warns(UserWarning, match=expected) as caught:
            teacher.cache(dataset, texts, cache_dir=tmp_path, part_rows=2, batch_size=1)
        assert len(caught) == 1
        assert caught[0].filename == __file__


def test_one_bar_shows_all_rows_and_how_many_were_found(teacher, tmp_path, capsys):
    teacher.show_progress = True
    options = {"cache_dir": tmp_path, "part_rows": 3}
    teacher.cache(Dataset.from_list(rows(6)), texts, **options)
    first = capsys.readouterr().err
    teacher.cache(Dataset.from_list(rows(8)), texts, **options)
    second = capsys.readouterr().err
    assert "Embedding slices with the teachers: 100%" in first
    assert "6/6" in first
    assert "row/s" in first
    assert "(6 of 8 rows found): 100%" in second
    assert "8/8" in second
    teacher.show_progress = False
    teacher.cache(Dataset.from_list(rows(9)), texts, **options)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("part_rows", [3, 2048])
def test_rows_keep_their_vectors_in_any_order_and_format(teacher, part_rows):
    dataset = Dataset.from_list(rows())
    by_number = dict(zip(dataset["number"], teacher.embed([texts(row) for row in rows()]), strict=True))
    shuffled = dataset.shuffle(seed=1).select([5, 0, 7, 2])
    for source in (shuffled, shuffled.with_format("numpy", columns=["number", "texts"])):
        cached = teacher.cache(source, texts, part_rows=part_rows)
        assert cached.format["type"] == source.format["type"]
        for row in cached.with_format(None):
            expected = by_number[row["number"]]["teacher_clip"]
            for ours, theirs in zip(row["teacher_clip"], expected, strict=True):
                assert ours == pytest.approx(theirs.tolist(), abs=2e-3)
    reordered = dataset.with_format("numpy", columns=dataset.column_names[::-1])
    assert set(TEACHER_COLUMNS) <= set(teacher.cache(reordered, texts, part_rows=part_rows)[0])
    narrow = teacher.cache(dataset.with_format("numpy", columns=["texts"]), texts, part_rows=part_rows)
    assert narrow.format["columns"] == ["texts"]
    assert {"number", *TEACHER_COLUMNS} <= set(narrow.column_names)


def test_only_vectors_are_stored(teacher, tmp_path):
    dataset = Dataset.from_list([{**row, "bulk": "x" * 100_000} for row in rows()])
    teacher.cache(dataset, texts, cache_dir=tmp_path)
    [stored] = tmp_path.iterdir()
    assert stored.stat().st_size < 50_000


def test_vectors_that_will_be_lost_are_announced(teacher, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="sugar_hf"):
        teacher.cache(Dataset.from_list(rows()), texts)
        teacher.cache(Dataset.from_list(rows()), texts, part_rows=1, cache_dir=tmp_path)
        assert not caplog.records
        teacher.cache(Dataset.from_list(rows()), texts, part_rows=1)
    [record] = caplog.records
    assert "vectors of 8 rows will be lost with this process. Give TripleTeacher.cache a folder" in record.getMessage()


def test_bad_sample_of_a_later_part_is_named_by_its_row(teacher):
    broken = rows()
    broken[6]["texts"] = [" "]
    with pytest.raises(ValueError, match="Sample 6, slice 0 is an empty text"):
        teacher.cache(Dataset.from_list(broken), texts, part_rows=4, batch_size=2)


def test_empty_data_set_stays_empty(teacher):
    assert len(teacher.cache(Dataset.from_list(rows()).select([]), texts)) == 0
