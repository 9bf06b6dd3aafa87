"""Intervals over items and seeds: by hand, by simulation, and on outcomes."""

import math

import numpy as np
import pytest

from sugar_lab.intervals import UNTRAINED, Estimate, Outcomes, Term, figure_of, holm, mean_of
from sugar_lab.outcomes import Outcome, read_outcomes, write_outcomes


def outcomes(tmp_path, values, metric="rank", study="lab"):
    """Outcomes of `{(row, task): {seed: [value of each item]}}`."""
    found = [
        Outcome(study, row, seed, task, f"item {number:03}", metric, value)
        for (row, task), by_seed in values.items()
        for seed, numbers in by_seed.items()
        for number, value in enumerate(numbers)
    ]
    return Outcomes(read_outcomes(write_outcomes(tmp_path / "a.parquet", found)))


def test_figures_of_ranks():
    ranks = np.array([1, 5, 10, math.inf])
    assert figure_of(ranks, "R@5").tolist() == [100, 100, 0, 0]
    assert figure_of(ranks, "MRR").tolist() == [100, 20, 10, 0]
    assert figure_of(np.array([1.0, 0.0]), "hit").tolist() == [100, 0]
    assert figure_of(np.array([1.5]), "loss").tolist() == [1.5]


def test_an_interval_by_hand():
    values = np.array([[1.0, 2.0, 6.0], [3.0, 2.0, 4.0]])
    found = mean_of([values])
    # means of seeds 3 and 3, of items 2, 2, 5; what is left is -1, 0, 1 and 1, 0, -1
    by_seeds, by_items, rest = 0.0, 3.0 / 3, 4 / 2 / 6
    assert found.value == 3.0
    assert found.error == pytest.approx(math.sqrt(by_items))  # seeds bring less than the rest explains
    assert found.freedom == pytest.approx(by_items**2 / (by_seeds**2 / 1 + by_items**2 / 2 + rest**2 / 2))


def test_seeds_that_differ_widen_the_interval_as_student_has_it():
    values = np.array([[0.0] * 500, [1.0] * 500, [2.0] * 500])
    found = mean_of([values])
    assert (found.error, found.freedom) == (pytest.approx(1 / math.sqrt(3)), pytest.approx(2))
    assert found.high - found.value == pytest.approx(4.303 / math.sqrt(3), abs=1e-3)


@pytest.mark.parametrize("parts", [(3, 0.02, 0.3, 0.4), (3, 0.0, 0.3, 0.4), (3, 0.02, 0.02, 0.5), (5, 0.05, 0.1, 0.3)])
def test_nineteen_of_twenty_intervals_hold_the_truth(parts):
    seeds, by_seed, by_item, rest = parts
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        shared = rng.normal(0, by_seed, (seeds, 1))
        parts = [shared + rng.normal(0, by_item, size) + rng.normal(0, rest, (seeds, size)) for size in (200, 300)]
        found = mean_of(parts)
        hits += found.low <= 0 <= found.high
    assert hits / 400 >= 0.93


def test_a_difference_is_taken_item_by_item_and_seed_by_seed(tmp_path):
    by_seed = {0: [1, 2, 1, 9], 1: [1, 1, 2, 9], 2: [2, 1, 1, 9]}
    found = outcomes(tmp_path, {("a", "t"): by_seed, ("b", "t"): by_seed})
    equal = found.difference("a", "b", [("t", "R@1")])
    assert (equal.value, equal.error, equal.p()) == (0, 0, 1)
    half = found.difference("a", "b", [("t", "R@1")], factor=0.5)
    assert half.value == pytest.approx(25)
    assert found.difference("a", "c", [("t", "R@1")]) is None
    assert (half.seeds, half.items) == (3, 4)


def test_untrained_rows_take_part_in_every_seed_and_a_single_seed_tells_no_interval(tmp_path):
    rng = np.random.default_rng(0)
    values = {
        ("trained", "t"): {seed: rng.integers(1, 9, 50) for seed in range(3)},
        ("fixed", "t"): {UNTRAINED: rng.integers(1, 9, 50)},
        ("single", "t"): {0: rng.integers(1, 9, 50)},
    }
    found = outcomes(tmp_path, values)
    beside = found.difference("trained", "fixed", [("t", "MRR")])
    assert beside.seeds == 3
    assert 0 < beside.error < math.inf
    alone = found.figure("fixed", "t", "R@1")
    expected = 100 * (values["fixed", "t"][UNTRAINED] == 1)
    assert alone.error == pytest.approx(expected.std(ddof=1) / math.sqrt(50))
    single = found.difference("single", "fixed", [("t", "MRR")])
    assert single.error is None
    assert (single.low, single.high, single.p()) == (-math.inf, math.inf, 1)


def test_tasks_with_items_of_their_own_add_up(tmp_path):
    rng = np.random.default_rng(1)
    values = {
        (row, task): {seed: rng.integers(1, 9, size) for seed in range(3)}
        for row in "ab"
        for task, size in (("t", 40), ("u", 60))
    }
    found = outcomes(tmp_path, values)
    both = found.difference("a", "b", [("t", "R@1"), ("u", "R@5")])
    parts = [found.difference("a", "b", [place]).value for place in (("t", "R@1"), ("u", "R@5"))]
    assert both.value == pytest.approx(sum(parts) / 2)
    assert both.items == 100


def test_what_does_not_belong_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="for each of the seeds"):
        outcomes(tmp_path, {("a", "t"): {0: [1, 2], 1: [1]}})
    with pytest.raises(ValueError, match="other items"):
        outcomes(tmp_path, {("a", "t"): {0: [1, 2]}, ("b", "t"): {0: [1, 2, 3]}}).difference("a", "b", [("t", "R@1")])
    with pytest.raises(ValueError, match="seed -1"):
        outcomes(tmp_path, {("a", "t"): {-1: [1, 2], 1: [1, 2]}})
    with pytest.raises(ValueError, match="'nDCG'"):
        outcomes(tmp_path, {("a", "t"): {0: [1]}}).estimate([Term("a", "t", "nDCG")])
    path = write_outcomes(tmp_path / "b.parquet", [Outcome(study, "a", 0, "t", "i", "rank", 1) for study in "xy"])
    with pytest.raises(ValueError, match="name one"):
        Outcomes(read_outcomes(path))
    assert Outcomes(read_outcomes(path), "y").rows("t") == ["a"]


def test_holm_and_one_sided_p_values():
    # Holm 1979 on the worked example of R's p.adjust
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([]) == []
    found = Estimate(2.0, 1.0, math.inf, 3, 10)
    assert found.p() == pytest.approx(0.0455, abs=1e-4)
    assert found.p_above(0) + found.p_below(0) == pytest.approx(1)
    assert found.p_below(4) == pytest.approx(found.p_above(0))
