"""Which slice ends are drawn, and on what the draw depends."""

import numpy as np
import pytest

from sugar_hf.training import draw_slice_ends
from sugar_hf.training.collator import sample_key

KEYS = [sample_key(f"sample-{i}") for i in range(40)]


def test_a_short_sample_gives_all_of_its_slices():
    assert draw_slice_ends([1, 3], KEYS[:2], 3).tolist() == [[0, 0], [1, 0], [1, 1], [1, 2]]


def test_no_limit_takes_every_slice():
    assert draw_slice_ends([2, 5], KEYS[:2], None).shape == (7, 2)


def test_draws_k_different_ends_in_order():
    ends = draw_slice_ends([9] * 40, KEYS, 4, seed=1, step=2)
    for sample in range(40):
        drawn = ends[ends[:, 0] == sample, 1].tolist()
        assert len(set(drawn)) == 4
        assert drawn == sorted(drawn)
        assert set(drawn) <= set(range(9))


def test_every_end_is_drawn_equally_often():
    ends = np.concatenate([draw_slice_ends([6] * 40, KEYS, 2, step=step)[:, 1].numpy() for step in range(100)])
    shares = np.bincount(ends, minlength=6) / len(ends)
    assert shares == pytest.approx(np.full(6, 1 / 6), abs=0.02)


def test_draw_depends_on_sample_step_and_seed_alone():
    alone = draw_slice_ends([9], KEYS[3:4], 4, seed=1, step=2)[:, 1].tolist()
    among = draw_slice_ends([9] * 5, KEYS[:5], 4, seed=1, step=2)
    assert among[among[:, 0] == 3, 1].tolist() == alone
    others = [
        draw_slice_ends([9] * 20, KEYS[:20], 4, seed=seed, step=step).tolist() for seed in (1, 2) for step in (2, 3)
    ]
    assert len({str(other) for other in others}) == 4


def test_sample_key_is_stable_and_fits_into_int64():
    assert sample_key("story-1") == 5473560827148335131
    assert all(0 <= key < 2**63 for key in KEYS)
    assert len(set(KEYS)) == 40


def test_lengths_and_keys_must_match():
    with pytest.raises(ValueError, match="zip"):
        draw_slice_ends([1, 2], KEYS[:1])
