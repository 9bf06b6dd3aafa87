"""Pooling of hidden states by slice, against values by hand."""

import pytest
import torch

from sugar_hf.model import pool_slices

HIDDEN = torch.arange(24, dtype=torch.float32).view(2, 6, 2)  # row b, token t holds (12b + 2t, 12b + 2t + 1)
SLICES = torch.tensor([[0, 1, 1, 1, 2, 0], [1, 0, 2, 2, 0, 3]])


def test_mean_by_hand():
    pooled, mask = pool_slices(HIDDEN, SLICES)
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    assert pooled[0].tolist() == [[4.0, 5.0], [8.0, 9.0], [0.0, 0.0]]
    assert pooled[1].tolist() == [[12.0, 13.0], [17.0, 18.0], [22.0, 23.0]]


def test_last_by_hand():
    pooled, _ = pool_slices(HIDDEN, SLICES, "last")
    assert pooled[0].tolist() == [[6.0, 7.0], [8.0, 9.0], [0.0, 0.0]]
    assert pooled[1].tolist() == [[12.0, 13.0], [18.0, 19.0], [22.0, 23.0]]


def test_first_token_may_be_the_last_of_its_slice():
    slices = torch.tensor([[1, 0, 0, 2, 0, 0]])
    pooled, _ = pool_slices(HIDDEN[:1], slices, "last")
    assert pooled[0].tolist() == [[0.0, 1.0], [6.0, 7.0]]


@pytest.mark.parametrize(
    ("poolings", "expected"),
    [
        (("mean", "mean"), [3.0, 8.0, 2.0]),
        (("mean", "last"), [4.0, 8.0, 2.0]),
        (("last", "mean"), [3.0, 10.0, 2.0]),
        (("last", "last"), [4.0, 10.0, 2.0]),
    ],
)
def test_texts_and_images_are_pooled_each_in_its_way(poolings, expected):
    slices = torch.tensor([[0, -1, -1, 2, 2, 2], [0, 0, 0, 0, -1, 0]])  # a text and an image, a text of one token
    hidden = torch.tensor([[0.0, 2, 4, 6, 8, 10], [0, 0, 0, 0, 2, 0]]).unsqueeze(-1)
    pooled, mask = pool_slices(hidden, slices, *poolings)
    assert mask.tolist() == [[True, True], [True, False]]
    assert pooled.flatten().tolist() == [*expected, 0.0]


@pytest.mark.parametrize("row", [[0, 0, 1, 0, 2, 2], [1, 1, 0, 0, 0, 2], [0, -1, 1, 0, 2, 2]])
def test_a_map_that_does_not_mark_all_of_a_text_is_refused_for_the_mean(row):
    slices = torch.tensor([row, [1, 1, 1, 1, 1, 1]])
    assert pool_slices(HIDDEN, slices)[1].sum() == 3
    with pytest.raises(ValueError, match=r"slice_map .*earlier version.*text_pooling=\"mean\".*SugarProcessor"):
        pool_slices(HIDDEN, slices, text_pooling="mean")


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_no_slices(pooling):
    pooled, mask = pool_slices(HIDDEN, torch.zeros(2, 6, dtype=torch.int64), pooling, pooling)
    assert pooled.shape == (2, 0, 2)
    assert mask.shape == (2, 0)


def test_sums_are_float32_for_bfloat16_states():
    hidden = torch.full((1, 600, 1), 1.0).bfloat16()  # a bfloat16 sum of ones stops at 256
    hidden[0, ::2] = 3.0
    pooled, _ = pool_slices(hidden, torch.ones(1, 600, dtype=torch.int64))
    assert pooled.dtype == torch.float32
    assert pooled.item() == 2.0


def test_gradient_is_shared_by_the_tokens_of_a_slice():
    hidden = HIDDEN.clone().requires_grad_()
    pool_slices(hidden, SLICES)[0].sum().backward()
    assert torch.allclose(hidden.grad[0, :, 0], torch.tensor([0, 1 / 3, 1 / 3, 1 / 3, 1, 0]))
