"""What is known of pairs, composed with the labels of the alignment, against values worked out by hand."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sugar_hf.structure import PairLabels, SliceFeatures, StructureLossConfig, label_matrix, structure_loss

Q, P, P2, N, OTHER, DOC = range(10, 16)


def known(samples, pairs, lengths=None):
    """Samples as (content, row, is of a pair), and pairs as (content, content, label)."""
    return PairLabels(
        torch.tensor(samples),
        torch.tensor(lengths or [1] * len(samples)),
        torch.tensor([each[:2] for each in pairs]).view(-1, 2),
        torch.tensor([float(each[2]) for each in pairs]),
    )


def last_ends(labels):
    return torch.stack([torch.arange(len(labels)), labels.lengths - 1], 1)


def row_of_one_query():
    samples = [(Q, 1, 1), (P, 1, 1), (P2, 1, 1), (N, 1, 1), (OTHER, 2, 1), (DOC, 3, 0)]
    return known(samples, [(Q, P, 1), (Q, P2, 0.8), (Q, N, 0)])


def test_without_teachers_by_hand():
    pairs = row_of_one_query()
    whole = pairs.compose(None, last_ends(pairs), StructureLossConfig())
    expected = torch.eye(6)
    for one, other, label in ((0, 1, 1), (0, 2, 0.8), (0, 3, 0)):
        expected[one, other] = expected[other, one] = label
    assert torch.equal(whole.labels, expected)
    out = torch.zeros(6, 6, dtype=torch.bool)
    for one, other in ((1, 2), (1, 3), (2, 3)):  # nobody knows what two candidates of one query are to each other
        out[one, other] = out[other, one] = True
    assert torch.equal(whole.left_out, out)
    positive = torch.zeros(6, 6, dtype=torch.bool)
    positive[0, 1] = positive[1, 0] = positive[0, 2] = positive[2, 0] = True
    assert torch.equal(whole.positives, positive)
    assert whole.anchors == 3


def test_known_entries_override_the_alignment_and_all_others_are_its_own():
    torch.manual_seed(0)
    vectors = [normalize(torch.randn(3, 2, 5), dim=-1) for _ in range(3)]
    features = SliceFeatures(*vectors, torch.zeros(3, 2, dtype=torch.bool), torch.tensor([2, 1, 2]))
    ends = torch.tensor([[0, 0], [0, 1], [1, 0], [2, 0], [2, 1]])
    pairs = known([(Q, 1, 1), (P, 1, 1), (DOC, 2, 0)], [(Q, P, 0.9)], lengths=[2, 1, 2])
    plain = label_matrix(features, ends)
    whole = pairs.compose(plain, ends, StructureLossConfig())
    expected = plain.clone()
    expected[1, 2] = expected[2, 1] = 0.9  # the last ends of both
    assert torch.equal(whole.labels, expected)
    assert whole.left_out is None
    parts = [pairs.compose(plain[rows], ends, StructureLossConfig(), rows) for rows in (slice(0, 2), slice(2, 5))]
    assert torch.equal(torch.cat([part.labels for part in parts]), expected)
    assert {part.anchors for part in parts} == {whole.anchors}


def test_equal_samples_share_what_is_known():
    """One positive of two queries is no negative of either, and its copies are the same."""
    samples = [(Q, 1, 1), (P, 1, 1), (OTHER, 2, 1), (P, 2, 1), (N, 2, 1)]
    pairs = known(samples, [(Q, P, 1), (OTHER, P, 1), (OTHER, N, 0)])
    whole = pairs.compose(None, last_ends(pairs), StructureLossConfig(objective="infonce"))
    assert whole.labels[0].tolist() == [1, 1, 0, 1, 0]
    assert whole.labels[1, 3] == 1
    assert whole.positives[0].tolist() == [False, True, False, True, False]
    assert whole.groups[1] == whole.groups[3]
    assert whole.left_out[0].tolist() == [False, False, True, False, False]  # the queries have a positive in common
    assert whole.left_out[1].tolist() == [False, False, False, False, True]


def test_the_largest_of_several_labels_wins():
    pairs = known([(Q, 1, 1), (P, 1, 1), (Q, 2, 1), (P, 2, 1)], [(Q, P, 0), (P, Q, 1)])
    assert pairs.compose(None, last_ends(pairs), StructureLossConfig()).labels.tolist() == [[1, 1, 1, 1]] * 4


def test_pairs_that_are_not_in_the_batch_do_nothing():
    pairs = known([(Q, 1, 1), (N, 1, 1)], [(Q, P, 1)])
    whole = pairs.compose(None, last_ends(pairs), StructureLossConfig(objective="infonce"))
    assert whole.anchors == 0
    assert not whole.positives.any()


def test_prefixes_of_one_sample_are_as_the_configuration_says():
    pairs = known([(Q, 1, 1), (Q, 2, 1)], [], lengths=[2, 2])
    ends = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    plain = torch.full((4, 4), 0.25)
    whole = pairs.compose(plain, ends, StructureLossConfig())
    assert whole.labels[0].tolist() == [1, 0.25, 1, 0.25]
    assert pairs.compose(plain, ends, StructureLossConfig(same_sample="one")).labels.tolist() == [[1] * 4] * 4


def test_infonce_over_pairs_by_hand():
    """Khosla et al.: the mean over the positives; entries that are left out are in no denominator."""
    torch.manual_seed(0)
    pairs = row_of_one_query()
    config = StructureLossConfig(objective="infonce", temperature=0.5)
    whole = pairs.compose(None, last_ends(pairs), config)
    embeddings = torch.randn(6, 4)
    unit = normalize(embeddings, dim=-1)
    logits = (unit @ unit.T / 0.5).tolist()
    positives = {0: [1, 2], 1: [0], 2: [0]}
    compared = {0: [1, 2, 3, 4, 5], 1: [0, 4, 5], 2: [0, 4, 5]}
    expected = 0.0
    for row, found in positives.items():
        total = math.log(sum(math.exp(logits[row][j]) for j in compared[row]))
        expected += sum(total - logits[row][j] for j in found) / len(found) / 3
    options = {"sample_ids": whole.groups, "positives": whole.positives, "left_out": whole.left_out}
    loss = structure_loss(embeddings, whole.labels, config, **options, anchors=whole.anchors)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_kl_and_mse_by_hand():
    torch.manual_seed(0)
    pairs = row_of_one_query()
    embeddings = torch.randn(6, 4)
    unit = normalize(embeddings, dim=-1)
    cosines = unit @ unit.T
    config = StructureLossConfig(objective="kl", temperature=0.5)
    whole = pairs.compose(None, last_ends(pairs), config)
    compared = ~(whole.left_out | torch.eye(6, dtype=torch.bool))
    expected = 0.0
    for row in range(6):
        target = (whole.labels[row, compared[row]] / 0.5).softmax(0)
        share = (cosines[row, compared[row]] / 0.5).log_softmax(0)
        expected += float((target * (target.log() - share)).sum()) / 6
    loss = structure_loss(embeddings, whole.labels, config, left_out=whole.left_out)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    squared = (cosines - whole.labels).square().masked_fill(whole.left_out, 0)
    loss = structure_loss(embeddings, whole.labels, StructureLossConfig(objective="mse"), left_out=whole.left_out)
    assert float(loss) == pytest.approx(float(squared.sum()) / 36, rel=1e-5)


@pytest.mark.parametrize("objective", ["mse", "infonce", "kl"])
def test_loss_does_not_depend_on_the_order_and_has_a_gradient(objective):
    torch.manual_seed(0)
    pairs, config = row_of_one_query(), StructureLossConfig(objective=objective, temperature=0.5)
    embeddings = torch.randn(6, 4)
    found = []
    for order in (torch.arange(6), torch.tensor([3, 5, 0, 2, 4, 1])):
        moved = PairLabels(pairs.samples[order], pairs.lengths[order], pairs.pairs, pairs.labels)
        whole = moved.compose(None, last_ends(moved), config)
        leaf = embeddings[order].requires_grad_()
        options = {"positives": whole.positives, "left_out": whole.left_out, "anchors": whole.anchors}
        loss = structure_loss(leaf, whole.labels, config, sample_ids=whole.groups, **options)
        loss.backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad[order.argsort()][1].abs().sum() > 0
        found.append((loss.detach(), leaf.grad[order.argsort()]))
    torch.testing.assert_close(found[0], found[1])


def test_a_row_that_is_compared_with_nothing_counts_nothing():
    config = StructureLossConfig(objective="kl")
    embeddings = torch.randn(3, 4).requires_grad_()
    left_out = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0]], dtype=torch.bool)
    structure_loss(embeddings, torch.eye(3), config, left_out=left_out).backward()
    assert embeddings.grad.isfinite().all()
    assert torch.equal(embeddings.grad[0], torch.zeros(4))
