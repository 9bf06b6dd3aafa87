"""The power of studies, against known cases."""

import numpy as np
import pytest

from sugar_lab.aggregate import KEPT
from sugar_lab.claims import Question
from sugar_lab.design import ALPHA, Spread, least_items, main, power, spread_of, survey_spread


def test_power_is_the_level_without_a_difference_and_that_of_a_plain_test_with_many_seeds():
    spread = Spread(1.0, 30.0, 30.0, "")
    assert power(spread, 0.0, 3, 500, alpha=0.05) < 0.07
    # error 1: a normal test tells 2.8 of its errors in four of five studies
    only_items = Spread(0.0, 10.0, 0.0, "")
    assert power(only_items, 2.8, 20, 100, alpha=0.05) == pytest.approx(0.8, abs=0.04)


def test_seeds_that_vary_cannot_be_made_up_for_by_items():
    spread = Spread(2.0, 30.0, 30.0, "")
    assert least_items(spread, 2.0, 3) is None
    assert least_items(spread, 20.0, 8) is not None
    few, many = least_items(Spread(0.0, 30.0, 30.0, ""), 4.0, 8), least_items(Spread(0.0, 30.0, 30.0, ""), 8.0, 8)
    assert many < few


def test_the_spread_is_found_in_values():
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 2, (40, 1))
    parts = [shared / 2 + rng.normal(0, 3, 900) + rng.normal(0, 4, (40, 900)) for _ in range(2)]
    found = spread_of(parts)
    assert found.seed == pytest.approx(2, rel=0.3)
    assert found.item == pytest.approx(3 * 2**0.5, rel=0.1)
    assert found.rest == pytest.approx(4 * 2**0.5, rel=0.05)
    assert spread_of([np.zeros((1, 3))]) is None


def test_the_survey_stands_in_where_there_are_no_outcomes():
    def line(row, seed, value):
        return {"twin": "coco", "row": row, "seed": seed, "n": 100, "figures": {"t2i recall@1": value}}

    question = Question(4, "", "a", "b", (("coco t2i", "R@1"),), 1.0)
    lines = [line("a", seed, 50.0 + 20 * seed) for seed in range(3)] + [line("b", seed, 50.0) for seed in range(3)]
    found = survey_spread(lines, question)
    assert found.rest == pytest.approx((100**2 * (0.7 * 0.3 + 0.25)) ** 0.5)
    assert found.seed == pytest.approx((20**2 - 46) ** 0.5)
    assert survey_spread(lines[:3], question) is None
    assert survey_spread([lines[0], lines[3]], Question(4, "", "a", "b", (("coco t2i", "R@1"),), 1.0)) is not None


def test_the_page_is_written_and_the_same_each_time(tmp_path):
    (tmp_path / KEPT).write_text("")
    main([str(tmp_path)])
    page = (tmp_path / "design.md").read_text()
    assert f"The level is {ALPHA:.4g}" in page
    assert "not known" in page
    main([str(tmp_path), "--before"])
    assert (tmp_path / "design.md").read_text() == page
