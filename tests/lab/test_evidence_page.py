"""The page of evidence: its tables are those of the outcomes."""

import numpy as np
import pytest

from sugar_lab.evidence_page import Block, written
from sugar_lab.outcomes import Outcome, read_outcomes, write_outcomes

pytestmark = pytest.mark.lab


@pytest.fixture
def outcomes(tmp_path):
    """Three rows on two tasks of 50 items: `good` hits eight of ten, `bad` one of ten, `like` what `bad` does."""
    generator = np.random.default_rng(0)
    found = []
    for task in ("a/title", "a/rest"):
        luck = generator.random(50)
        for seed in range(3):
            for row, share in (("good", 0.8), ("bad", 0.1), ("like", 0.1)):
                found += [
                    Outcome("heads", row, seed, task, f"i{item}", "rank", 1 if luck[item] < share else 9)
                    for item in range(50)
                ]
    return read_outcomes(write_outcomes(tmp_path / "heads.parquet", found))


def page(what):
    return f"Before.\n\n<!-- evidence: {what} -->\nold\n<!-- evidence: end -->\n\nAfter.\n"


def test_table_has_figures_with_intervals(outcomes, tmp_path):
    text = written(page("table study=heads rows=good,bad tasks=a/rest,a/title mean=yes"), outcomes, tmp_path)
    assert text.startswith("Before.")
    assert text.endswith("After.\n")
    assert "old" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert [name.strip() for name in lines[0].strip("|").split("|")] == ["", "a/rest", "a/title", "mean"]
    value = float(lines[2].split("|")[4].split("[")[0])
    assert lines[2].startswith("| `good`")
    assert value == pytest.approx(80, abs=12)
    assert written(text, outcomes, tmp_path) == text


def test_difference_that_counts_is_bold(outcomes, tmp_path):
    text = written(page("differences study=heads against=bad tasks=a/* figures=R@1,MRR"), outcomes, tmp_path)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| `")}
    assert lines["`good`"].count("**+") == 4
    assert "**" not in lines["`like`"]
    assert "+0.0 [+0.0, +0.0]" in lines["`like`"]


def test_plot_is_the_same_each_time(outcomes, tmp_path):
    text = page("plot study=heads against=bad mean=yes file=evidence/heads.svg")
    assert "(evidence/heads.svg)" in written(text, outcomes, tmp_path)
    first = (tmp_path / "evidence/heads.svg").read_bytes()
    written(text, outcomes, tmp_path)
    assert (tmp_path / "evidence/heads.svg").read_bytes() == first


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("table study=heads rows=none", "row 'none' has no outcomes; there are bad, good, like"),
        ("differences study=heads", "against=ROW is missing"),
        ("drawing study=heads", "table, differences, plot"),
    ],
)
def test_what_is_not_there_is_named(outcomes, tmp_path, what, told):
    with pytest.raises(ValueError, match=told):
        written(page(what), outcomes, tmp_path)


def test_fields_are_read():
    block = Block.read('table study=heads rows="kl 0.3,paper" figures=R@1,R@5 mean=yes')
    assert block.rows == ("kl 0.3", "paper")
    assert block.figures == ("R@1", "R@5")
    assert block.mean
