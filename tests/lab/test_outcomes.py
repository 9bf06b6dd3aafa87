"""Outcomes of single items: what is written is read, the same bytes each time, and what is wrong is refused."""

import math
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sugar_lab.outcomes import SCHEMA, Outcome, read_outcomes, write_outcomes


def some():
    return [
        Outcome("lab", row, seed, "coco t2i", str(item), "rank", item + seed + 1)
        for row in ("infonce", "kl")
        for seed in (0, 1)
        for item in range(3)
    ]


def test_what_is_written_is_read_sorted_and_with_the_same_bytes(tmp_path):
    shuffled = some()
    random.Random(0).shuffle(shuffled)
    first, second = write_outcomes(tmp_path / "a.parquet", some()), write_outcomes(tmp_path / "b.parquet", shuffled)
    assert first.read_bytes() == second.read_bytes()
    table = read_outcomes(first)
    assert table.schema == SCHEMA
    assert [tuple(line.values()) for line in table.to_pylist()] == sorted(map(tuple, some()))


def test_several_files_are_one_table(tmp_path):
    one, two = some()[:5], some()[5:]
    paths = [write_outcomes(tmp_path / f"{name}.parquet", part) for name, part in (("a", one), ("b", two))]
    assert read_outcomes(paths).equals(read_outcomes(write_outcomes(tmp_path / "c.parquet", some())))


def test_a_rank_may_be_infinite(tmp_path):
    path = write_outcomes(tmp_path / "a.parquet", [Outcome("lab", "kl", 0, "t", "i", "rank", math.inf)])
    assert read_outcomes(path)["value"].to_pylist() == [math.inf]


@pytest.mark.parametrize(
    ("metric", "value"),
    [("rank", 0), ("rank", 1.5), ("hit", 0.5), ("loss", -1.0), ("loss", math.inf), ("score", math.nan), ("mrr", 1.0)],
)
def test_values_that_a_metric_cannot_have_are_refused(tmp_path, metric, value):
    with pytest.raises(ValueError, match=metric):
        write_outcomes(tmp_path / "a.parquet", [*some(), Outcome("lab", "kl", 0, "t", "i", metric, value)])
    assert not (tmp_path / "a.parquet").exists()


def test_what_is_there_twice_is_refused_within_a_file_and_between_files(tmp_path):
    with pytest.raises(ValueError, match="twice"):
        write_outcomes(tmp_path / "a.parquet", [*some(), some()[0]._replace(value=7)])
    paths = [write_outcomes(tmp_path / f"{name}.parquet", some()) for name in "ab"]
    with pytest.raises(ValueError, match=r"'infonce'.*twice.*11 more"):
        read_outcomes(paths)


def test_what_is_no_outcome_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    for wrong in ([], [("lab", "kl", 0, "t", "i", "rank", None)], [("lab", "kl", "zero", "t", "i", "rank", 1.0)]):
        with pytest.raises(ValueError, match="outcome"):
            write_outcomes(path, wrong)
    path.write_text("no table")
    with pytest.raises(ValueError, match="Parquet"):
        read_outcomes(path)
    pq.write_table(pa.table({"row": ["kl"]}), path)
    with pytest.raises(ValueError, match="columns row"):
        read_outcomes([path])
    with pytest.raises(ValueError, match="no file"):
        read_outcomes([])
