"""Compositions of the structure loss by hand: its targets, its terms, its learnt temperature."""

import json
import math

import pytest
import torch
from torch.nn.functional import kl_div, normalize

from sugar_hf.structure import PairLabels, StructureLossConfig, structure_loss

KL = {"objective": "kl", "temperature": 0.5}
IDS = torch.tensor([0, 0, 1, 1, 1, 2])  # the last row has no positive of its sample
COMPOSED = {
    "targets": {"target_temperature": 0.1},
    "mse": {"mse_weight": 100.0, "reduction": "paper"},
    "lifted": {"positive_share": 0.3},
    "pairs": {"positive_share": 1.0, "lifted_positives": "pairs"},
    "learnt": {"target_temperature": 0.1, "learn_temperature": True},
    "infonce": {"objective": "infonce", "learn_temperature": True},
    "all": {"target_temperature": 0.1, "mse_weight": 10.0, "positive_share": 0.5, "learn_temperature": True},
    "sizes": {"mse_weight": 10.0, "positive_share": 0.5, "matryoshka_dims": [4, 2]},
}


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(6, 4, generator=generator, dtype=dtype)
    labels = torch.rand(6, 6, generator=generator, dtype=dtype)
    labels = ((labels + labels.T) / 2).fill_diagonal_(1)
    positives = torch.zeros(6, 6, dtype=torch.bool)
    positives[5, 0] = positives[0, 5] = True
    return embeddings, labels, positives


def composed(name, embeddings, labels, logit_scale=None, **options):
    config = StructureLossConfig(**{**KL, **COMPOSED[name]})
    scale = torch.tensor(0.7, dtype=embeddings.dtype) if logit_scale is None else logit_scale
    return structure_loss(
        embeddings, labels, config, logit_scale=scale if config.learn_temperature else None, **options
    )


def naive(labels, embeddings, sample_ids, positives, *, temperature, target_temperature, weight, share, paper=False):
    """The sum kl + weight * mse, row by row, with the share of each row's target on its positives."""
    unit = normalize(embeddings, dim=1)
    cosines, total, count = unit @ unit.T, 0.0, len(labels)
    for row in range(count):
        others = [j for j in range(count) if j != row]
        lifted = torch.tensor([bool(sample_ids[j] == sample_ids[row]) or bool(positives[row, j]) for j in others])
        target = (labels[row, others] / target_temperature).softmax(0)
        if lifted.any():
            target = (1 - share) * target + share * lifted / lifted.sum()
        total = total + kl_div((cosines[row, others] / temperature).log_softmax(0), target, reduction="sum") / count
    return total + weight * (cosines - labels).square().sum() / (count if paper else count**2)


@pytest.mark.parametrize("name", ["targets", "mse", "lifted", "learnt", "all"])
def test_value_is_the_naive_one(name):
    embeddings, labels, positives = inputs()
    options = COMPOSED[name]
    expected = naive(
        labels,
        embeddings,
        IDS,
        positives,
        temperature=math.exp(-0.7) if "learn_temperature" in options else 0.5,
        target_temperature=options.get("target_temperature", 0.5),
        weight=options.get("mse_weight", 0.0),
        share=options.get("positive_share", 0.0),
        paper="reduction" in options,
    )
    found = composed(name, embeddings, labels, sample_ids=IDS, positives=positives)
    torch.testing.assert_close(found, expected)


def test_targets_by_hand():
    """Three equal embeddings: the model's softmax over both others is (1/2, 1/2)."""
    labels = torch.tensor([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    ids = torch.tensor([0, 0, 1])

    def divergence(*target):
        return sum(share * math.log(2 * share) for share in target if share)

    def loss(**options):
        return float(structure_loss(torch.ones(3, 2), labels, StructureLossConfig(**KL, **options), sample_ids=ids))

    sharp = 1 / (1 + math.exp(-5))
    assert loss(target_temperature=0.1) == pytest.approx(2 / 3 * divergence(sharp, 1 - sharp), rel=1e-5)
    soft = 1 / (1 + math.exp(-1))
    assert loss() == pytest.approx(2 / 3 * divergence(soft, 1 - soft), rel=1e-5)
    lifted = 0.4 + 0.6 * soft  # rows 0 and 1; row 2 has no positive and keeps its target
    assert loss(positive_share=0.4) == pytest.approx(2 / 3 * divergence(lifted, 1 - lifted), rel=1e-5)
    assert loss(positive_share=1) == pytest.approx(2 / 3 * math.log(2), rel=1e-5)
    error = (2 * 0.5**2 + 4 * 1) / 9  # of cosines of 1
    assert loss(mse_weight=7) == pytest.approx(loss() + 7 * error, rel=1e-5)


def test_defaults_are_bit_for_bit_the_plain_loss():
    embeddings, labels, _ = inputs(torch.float32)
    plain = StructureLossConfig(**KL)
    same = StructureLossConfig(**KL, target_temperature=0.5, positive_share=0.0, mse_weight=0.0)
    assert torch.equal(structure_loss(embeddings, labels, same), structure_loss(embeddings, labels, plain))
    scale = torch.tensor(-math.log(0.07))
    learnt = StructureLossConfig(objective="infonce", learn_temperature=True)
    found = structure_loss(embeddings, labels, learnt, sample_ids=IDS, logit_scale=scale)
    fixed = structure_loss(embeddings, labels, StructureLossConfig(objective="infonce"), sample_ids=IDS)
    torch.testing.assert_close(found, fixed)


@pytest.mark.parametrize("name", COMPOSED)
def test_gradients_check_and_shares_of_rows_add_up(name):
    embeddings, labels, positives = inputs()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss(embeddings, scale):
        return composed(name, embeddings, labels, scale, sample_ids=IDS, positives=positives)

    def shares(embeddings, scale):
        parts = [torch.tensor([4, 0, 5]), torch.tensor([1, 3, 2])]
        own = [{"rows": rows, "positives": positives[rows], "sample_ids": IDS, "anchors": 6} for rows in parts]
        return sum(composed(name, embeddings, labels[each["rows"]], scale, **each) for each in own)

    leaf = embeddings.requires_grad_()
    assert torch.autograd.gradcheck(loss, (leaf, scale))
    if name == "sizes":
        plain = {key: value for key, value in COMPOSED[name].items() if key != "matryoshka_dims"}
        config, options = StructureLossConfig(**KL, **plain), {"sample_ids": IDS, "positives": positives}
        each = [structure_loss(embeddings[:, :size], labels, config, **options) for size in (4, 2)]
        torch.testing.assert_close(loss(leaf, scale), sum(each) / 2)
    if name != "infonce":  # which has five anchors by itself, and six with the pair
        torch.testing.assert_close(shares(leaf, scale), loss(leaf, scale))


def test_learnt_temperature_finds_the_best():
    """Of one model and fixed targets; with the cosines themselves as labels it is that of the targets."""
    embeddings, _, _ = inputs()
    unit = normalize(embeddings, dim=1)
    config = StructureLossConfig(objective="kl", target_temperature=0.3, learn_temperature=True)
    scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([scale], lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        structure_loss(embeddings, unit @ unit.T, config, logit_scale=scale).backward()
        optimizer.step()
    assert math.exp(-scale.item()) == pytest.approx(0.3, rel=1e-3)


def test_only_known_positives_of_pairs_are_lifted():
    """A query and its positive in one row of the data, and a document of two slices."""
    known = PairLabels(
        samples=torch.tensor([[7, 1, 1], [8, 1, 1], [9, 2, 0]]),
        lengths=torch.tensor([1, 1, 2]),
        pairs=torch.tensor([[7, 8]]),
        labels=torch.tensor([0.9]),
    )
    ends = torch.tensor([[0, 0], [1, 0], [2, 0], [2, 1]])
    losses = {}
    for lifted in ("all", "pairs"):
        config = StructureLossConfig(**KL, positive_share=1.0, lifted_positives=lifted)
        whole = known.compose(None, ends, config)
        losses[lifted] = structure_loss(
            torch.ones(4, 2),
            whole.labels,
            config,
            sample_ids=whole.groups,
            positives=whole.positives,
            left_out=whole.left_out,
        )
    one = math.log(3)  # all of the target on one of three
    first = 1 / (1 + 2 * math.exp(-2))  # the document's rows by their labels 1, 0, 0
    other = (1 - first) / 2
    labelled = first * math.log(3 * first) + 2 * other * math.log(3 * other)
    assert float(losses["all"]) == pytest.approx(one, rel=1e-5)
    assert float(losses["pairs"]) == pytest.approx((2 * one + 2 * labelled) / 4, rel=1e-5)


def test_sharp_targets_are_finite():
    embeddings, labels, positives = inputs(torch.float32)
    config = StructureLossConfig(objective="kl", target_temperature=1e-3, positive_share=0.5)
    leaf = embeddings.requires_grad_()
    loss = structure_loss(leaf, labels, config, sample_ids=IDS, positives=positives)
    loss.backward()
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()


def test_config_round_trip_and_what_it_refuses(subtests):
    for name, options in COMPOSED.items():
        with subtests.test(name):
            config = StructureLossConfig(**{**KL, **options})
            assert StructureLossConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for fields, message in [
        ({"objective": "kl", "target_temperature": 0.0}, "target_temperature must be a positive number"),
        ({"objective": "kl", "mse_weight": -1.0}, "mse_weight must be 0 or more"),
        ({"objective": "kl", "positive_share": 1.5}, "positive_share must be a share"),
        ({"objective": "kl", "lifted_positives": "sample"}, "lifted_positives must be one of"),
        ({"objective": "kl", "lifted_positives": "pairs"}, "without a positive_share"),
        ({"objective": "mse", "mse_weight": 1.0}, "mse_weight belongs to objective='kl'"),
        ({"objective": "infonce", "positive_share": 0.1}, "positive_share belongs to objective='kl'"),
        ({"objective": "mse", "target_temperature": 0.1}, "target_temperature belongs to objective='kl'"),
        ({"objective": "mse", "learn_temperature": True}, "learn_temperature belongs to"),
        ({"objective": "kl", "learn_temperature": True}, "needs target_temperature"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            StructureLossConfig(**fields)


def test_the_loss_refuses_what_it_would_not_use():
    embeddings, labels, _ = inputs()
    with pytest.raises(ValueError, match="sample_ids"):
        structure_loss(embeddings, labels, StructureLossConfig(**KL, positive_share=0.1))
    with pytest.raises(ValueError, match="logit_scale"):
        structure_loss(embeddings, labels, StructureLossConfig(**KL), logit_scale=torch.tensor(1.0))
    learnt = StructureLossConfig(**KL, learn_temperature=True, target_temperature=0.1)
    with pytest.raises(ValueError, match="logit_scale"):
        structure_loss(embeddings, labels, learnt)
