"""The study of mined negatives, at its smallest."""

import json

from sugar_lab.mined_negatives import METRICS, pairs, pool, run


def test_equal_captions_look_for_all_of_their_pictures():
    rows = pairs("test", 3, seed=0)
    rows[2]["query"] = rows[0]["query"]
    task = pool(rows)
    assert [len(grades) for grades in task.relevance.values()] == [2, 1]
    assert len(task.corpus) == 3


def test_both_ways_start_alike_and_are_measured(tmp_path):
    found = run(seed=0, output=tmp_path, size=40, first=1, steps=1, negatives=2, test=12, budget="samples")
    assert json.loads((tmp_path / "seed-0" / "result.json").read_text()) == found
    for way in ("start", "in-batch", "mined"):
        assert set(found[way]) == set(METRICS)
    rows = [json.loads(line) for line in (tmp_path / "seed-0" / "mined.jsonl").read_text().splitlines()]
    assert [len(row["negatives"]) for row in rows] == [2] * 40
