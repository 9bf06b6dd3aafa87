"""Whitening of the retrieval head: the map by hand, the head that follows it, and what it finds untrained."""

import numpy as np
import pytest
import torch
from builders import picture
from torch import nn

from sugar_hf import SugarConfig, whiten_head
from sugar_hf.model import RetrievalHead
from sugar_hf.model.whitening import StateMoments, gathered_states, set_whitened


def moments_of(*parts):
    moments = StateMoments(parts[0].shape[1])
    for part in parts:
        moments.add(part)
    return moments


def states(count=200, width=6, seed=0, largest=50):
    """States of dimensions that depend on each other, one of them large, as those of language models."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=generator) @ torch.randn(width, width, generator=generator)
    mixed[:, 2] = largest * mixed[:, 2] + 6 * largest
    return mixed


def head_of(width=6, hidden=None, dim=3):
    torch.manual_seed(0)
    head = RetrievalHead.__new__(RetrievalHead)
    nn.Module.__init__(head)
    head.pooled_to_hidden = nn.Linear(width, hidden or width)
    head.activation = nn.GELU()
    head.hidden_to_embedding = nn.Linear(hidden or width, dim)
    return head


def test_whitened_states_vary_alike_and_apart():
    given = states()
    weight, bias = moments_of(given).whitening(6, regularization=0.0)
    found = given.double() @ weight.T + bias
    torch.testing.assert_close(found.mean(dim=0), torch.zeros(6, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.T @ found / len(found), torch.eye(6, dtype=torch.float64), atol=1e-6, rtol=0)


def test_parts_add_up_to_the_whole():
    given = states()
    one, parts = moments_of(given), moments_of(given[:7], given[7:90].bfloat16().float(), given[90:])
    assert parts.count == one.count == 200
    whole = moments_of(torch.cat([given[:7], given[7:90].bfloat16().float(), given[90:]]))
    torch.testing.assert_close(parts.products, whole.products)
    for ours, theirs in zip(parts.whitening(4), whole.whitening(4), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_regularization_keeps_small_directions_small():
    given = states()
    given[:, 5] = given[:, 4] + 1e-3 * given[:, 5]
    weight, bias = moments_of(given).whitening(6)
    variances = (given.double() @ weight.T + bias).var(dim=0)
    assert variances[0] > 0.99
    assert variances[-1] < 1e-3


def test_a_dimension_that_is_constant_counts_for_nothing():
    given = states()
    given[:, 1] = 7.0
    weight, _ = moments_of(given).whitening(5)
    assert bool(weight.isfinite().all())
    assert float(weight[:, 1].abs().max()) < 1e-6 * float(weight.abs().max())
    with pytest.raises(ValueError, match="vary along 5 directions, and 6"):
        moments_of(given).whitening(6)


def test_one_sample_many_times_is_refused():
    with pytest.raises(ValueError, match="the states of 90 slices vary along 0 directions"):
        moments_of(states(1).repeat(90, 1)).whitening(2)


@pytest.mark.parametrize(("hidden", "dim", "count"), [(6, 3, 3), (12, 3, 3), (6, 5, 3), (7, 2, 2), (40, 20, 6)])
def test_a_head_gives_the_whitened_states_exactly(hidden, dim, count):
    given, head = states(), head_of(hidden=hidden, dim=dim)
    moments = moments_of(given)
    set_whitened(head, moments)
    weight, bias = moments.whitening(count)
    expected = nn.functional.normalize(given.double() @ weight.T + bias, dim=-1).float()
    found = head(given).detach()
    torch.testing.assert_close(found[:, :count], expected, atol=1e-4, rtol=0)
    assert float(found[:, count:].abs().sum()) == 0.0  # there are no further directions


def test_all_of_such_a_head_is_trained():
    head = head_of(hidden=12, dim=3)
    set_whitened(head, moments_of(states(largest=1)))
    before = {name: weight.clone() for name, weight in head.named_parameters()}
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (head(states(20, largest=1)) * torch.arange(3)).sum().backward()
        optimizer.step()
    for name, weight in head.named_parameters():
        changed = (weight != before[name]).float().mean()
        assert changed > 0.95, name


def test_too_few_states_are_refused():
    with pytest.raises(ValueError, match="the states of 2 slices vary along 1 directions, and 3 are needed"):
        set_whitened(head_of(), moments_of(states(2)))


def test_states_that_are_not_finite_are_refused():
    given = states(10)
    given[3, 1] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        moments_of(given)


def test_states_are_those_that_reach_the_head(fresh_llava):
    model, processor = fresh_llava
    seen = []
    handle = model.retrieval_head.register_forward_pre_hook(lambda head, given: seen.append(given[0].clone()))
    with gathered_states(model) as moments, torch.no_grad():
        model(**processor([["A cat.", picture(1)], ["A dog."]]))
    handle.remove()
    assert moments.count == 3
    torch.testing.assert_close(moments.total, seen[0].double().sum(dim=0))
    with torch.no_grad():
        model(**processor([["A cat."]]))
    assert moments.count == 3  # no longer


def test_samples_whiten_the_embeddings(fresh_llava):
    model, processor = fresh_llava
    config: SugarConfig = model.config
    samples = [[f"Text number {number}.", picture(number), f"And {number * number} more."] for number in range(40)]
    state = {name: weight.clone() for name, weight in model.vlm.state_dict().items()}
    whiten_head(model, processor, samples, show_progress=False, batch_size=7)
    embeds = torch.cat([model.get_retrieval_embeddings(**processor([sample]))[0][0] for sample in samples]).detach()
    count = min(config.retrieval_dim, model.retrieval_head.pooled_to_hidden.out_features // 2)
    spread = np.linalg.eigvalsh(np.cov(embeds[:, :count].numpy().T))[::-1]
    assert spread[0] < 20 * spread[count // 2]  # a random head has nearly all of it along a few directions
    for name, weight in model.vlm.state_dict().items():
        assert torch.equal(weight, state[name]), name


def test_a_bad_sample_is_named(fresh_llava):
    model, processor = fresh_llava
    before = {name: weight.clone() for name, weight in model.retrieval_head.named_parameters()}
    with pytest.raises(ValueError, match="sample 1"):
        whiten_head(model, processor, [["A cat."], ["A dog. " * 200]], max_length=50, show_progress=False)
    for name, weight in model.retrieval_head.named_parameters():
        assert torch.equal(weight, before[name]), name
