"""Batches without a sample twice."""

import logging

import numpy as np
import pytest
from datasets import Dataset
from training_tools import make_dataset, make_pairs, make_rows, make_sugar, make_trainer, pair

from sugar_hf.training.pair_batches import row_keys
from sugar_hf.training.samplers import NoDuplicatesSampler, ShuffledSampler, keys_of_rows


def batches(order, size):
    return [order[start : start + size] for start in range(0, len(order), size)]


def repeated(keys, order, size):
    """Number of rows that have a key of a row before them in their batch."""
    count = 0
    for batch in batches(order, size):
        seen = set()
        for row in batch:
            count += bool(keys[row] & seen)
            seen |= keys[row]
    return count


@pytest.mark.parametrize(("size", "popular"), [(2, 30), (8, 40), (16, 20), (32, 60)])
def test_every_row_once_and_no_key_twice_in_a_batch(size, popular):
    generator = np.random.default_rng(size)
    keys = [{1000 + row, int(generator.zipf(1.3)) % popular} for row in range(300)]
    counts = np.bincount([min(each) for each in keys])
    assert counts.max() > 3
    order = list(NoDuplicatesSampler(keys, size, ShuffledSampler(300, 0, lambda: 0)))
    assert sorted(order) == list(range(300))
    needed = np.maximum(counts - -(-300 // size), 0).sum()  # more rows of one key than batches
    assert needed <= repeated(keys, order, size) <= needed + 0.05 * 300
    assert repeated(keys, order, size) < repeated(keys, list(range(300)), size)


def test_rows_without_common_samples_keep_their_order():
    keys = [{row} for row in range(20)]
    assert list(NoDuplicatesSampler(keys, 4, range(20))) == list(range(20))
    keys[1] = keys[0]
    assert list(NoDuplicatesSampler(keys, 4, range(20)))[:6] == [0, 2, 3, 4, 1, 5]


def test_rows_that_no_batch_can_take_are_there_and_counted(caplog):
    with caplog.at_level(logging.WARNING):
        order = list(NoDuplicatesSampler([{1}, {1}, {1}, {2}], 2, range(4)))
    assert sorted(order) == [0, 1, 2, 3]
    assert "1 of 4 rows" in caplog.text


def test_another_order_in_each_epoch_and_the_same_again():
    epoch = 0
    sampler = NoDuplicatesSampler([{row % 7} for row in range(40)], 4, ShuffledSampler(40, 5, lambda: epoch))
    first = list(sampler)
    assert list(sampler) == first
    epoch = 1
    assert list(sampler) != first


def test_rows_are_known_by_their_samples():
    rows = make_pairs()
    keys = keys_of_rows(make_dataset(make_sugar()[1], [*rows, *make_rows()[:2]], cached=False))
    assert keys[1] & keys[4]
    assert not keys[0] & keys[1]
    assert [len(each) for each in keys] == [4, 2, 4, 2, 3, 3, 1, 1]
    asked, plain = {**rows[0], "instruction": "Find it."}, rows[0]
    assert len(row_keys(asked) & row_keys(plain)) == 3  # all but the query
    assert row_keys({"query": "a", "positives": []}) == set()


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_a_run_whatever_the_order_of_rows(tmp_path, strategy):
    rows = make_dataset(make_sugar()[1], [*make_pairs(), *(pair(n) for n in range(6, 10)), *make_rows()[:2]])
    trainer = make_trainer(
        tmp_path,
        train_dataset=rows,
        batch_sampler="no_duplicates",
        train_sampling_strategy=strategy,
        per_device_train_batch_size=3,
        max_steps=8,
    )
    keys, order = keys_of_rows(rows), list(trainer._get_train_sampler())
    assert sorted(order) == list(range(len(rows)))
    assert repeated(keys, order, 3) == 0
    seen = []
    compute = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *args, **kwargs: (
        seen.append(inputs["sample_ids"]) or compute(model, inputs, *args, **kwargs)
    )
    trainer.train()
    assert len(seen) == 8
    for names in seen:
        assert not {"pair-1#query", "pair-4#query"} <= set(names)


def test_a_stream_is_refused(tmp_path):
    rows = Dataset.from_list(make_pairs()[:2]).to_iterable_dataset()
    trainer = make_trainer(tmp_path, train_dataset=rows, batch_sampler="no_duplicates", max_steps=1)
    with pytest.raises(ValueError, match="no_duplicates"):
        trainer.train()
    make_trainer(tmp_path, train_dataset=rows, max_steps=2).train()
