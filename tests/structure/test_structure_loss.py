"""The structure loss on hand-written tensors, and its settings."""

import doctest
import importlib
import json
import math

import pytest
import torch
from torch.nn.functional import normalize

from sugar_hf.structure import StructureLossConfig, softmax_temperature, structure_loss

ANGLES = torch.tensor([0.0, 60.0, 90.0, 180.0]) * math.pi / 180
EMBEDDINGS = torch.stack([ANGLES.cos(), ANGLES.sin()], 1) * torch.tensor([[1.0], [2.0], [3.0], [0.5]])
COSINES = torch.cos(ANGLES[:, None] - ANGLES)
MSE = StructureLossConfig(objective="mse")


def test_mse_by_hand():
    labels = COSINES.clone()
    labels[0, 1] = labels[1, 0] = 0.0  # the cosine is 0.5
    assert float(structure_loss(EMBEDDINGS, labels, MSE)) == pytest.approx(0.5 / 16)
    paper = StructureLossConfig(objective="mse", reduction="paper")
    assert float(structure_loss(EMBEDDINGS, labels, paper)) == pytest.approx(0.5 / 4)
    assert float(structure_loss(EMBEDDINGS, COSINES, MSE)) == pytest.approx(0, abs=1e-12)


def test_infonce_by_hand():
    config = StructureLossConfig(objective="infonce", temperature=0.5)
    sample_ids = torch.tensor([7, 7, 3, 4])  # rows 2 and 3 have no positive
    expected = 0.0
    for row, positive in ((0, 1), (1, 0)):
        logits = [float(COSINES[row, j]) / 0.5 for j in range(4) if j != row]
        expected -= (float(COSINES[row, positive]) / 0.5 - math.log(sum(map(math.exp, logits)))) / 2
    loss = structure_loss(EMBEDDINGS, torch.zeros(4, 4), config, sample_ids=sample_ids)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_infonce_without_any_positive_is_zero_with_a_warning():
    config = StructureLossConfig(objective="infonce")
    embeddings = EMBEDDINGS.clone().requires_grad_()
    with pytest.warns(UserWarning, match="no two ends of one sample"):
        loss = structure_loss(embeddings, torch.zeros(4, 4), config, sample_ids=torch.arange(4))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(embeddings.grad, torch.zeros(4, 2))


def test_kl_by_hand_and_zero_at_the_labels():
    config = StructureLossConfig(objective="kl", temperature=0.5)
    assert float(structure_loss(EMBEDDINGS, COSINES, config)) == pytest.approx(0, abs=1e-6)
    labels = torch.eye(4)
    expected = 0.0
    for row in range(4):
        logits = torch.tensor([COSINES[row, j] / 0.5 for j in range(4) if j != row])
        expected += float((1 / 3 * (math.log(1 / 3) - logits.log_softmax(0))).sum()) / 4
    assert float(structure_loss(EMBEDDINGS, labels, config)) == pytest.approx(expected, rel=1e-5)
    assert float(structure_loss(EMBEDDINGS[:1], labels[:1, :1], config)) == 0


def test_shares_of_parts_of_the_rows_add_up_to_the_whole(subtests):
    for sizes in [[2, 2, 2], [1, 5], [3, 3]]:
        for reduction in ["mean", "paper"]:
            for objective in ["mse", "infonce", "kl"]:
                with subtests.test(objective=objective, reduction=reduction, sizes=f"{sizes!r:.60}"):
                    config = StructureLossConfig(objective=objective, reduction=reduction)
                    embeddings = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
                    labels = torch.rand(6, 6, generator=torch.Generator().manual_seed(1))
                    sample_ids = torch.tensor([0, 1, 1, 2, 2, 2])  # row 0 has no positive
                    whole = structure_loss(embeddings, labels, config, sample_ids=sample_ids)
                    parts = [
                        structure_loss(embeddings, labels[rows], config, sample_ids=sample_ids, rows=rows)
                        for rows in torch.arange(6).split(sizes)
                    ]
                    torch.testing.assert_close(torch.stack(parts).sum(), whole)


@pytest.mark.parametrize("objective", ["mse", "infonce", "kl"])
def test_gradients_check_and_lower_the_loss(objective):
    config = StructureLossConfig(objective=objective, temperature=0.5)
    embeddings = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.rand(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = ((labels + labels.T) / 2).requires_grad_()
    sample_ids = torch.tensor([0, 0, 1, 1, 1, 2])

    def loss(value):
        return structure_loss(value, labels, config, sample_ids=sample_ids)

    assert torch.autograd.gradcheck(loss, embeddings)
    optimizer = torch.optim.Adam([embeddings], lr=0.05)
    first = loss(embeddings).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss(embeddings).backward()
        optimizer.step()
    assert loss(embeddings).item() < 0.9 * first
    assert labels.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_computed_in_float32(dtype):
    embeddings = EMBEDDINGS.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = structure_loss(embeddings, COSINES.to(dtype), MSE)
    assert loss.dtype == torch.float32
    exact = normalize(embeddings.float(), dim=-1)
    torch.testing.assert_close(loss, (exact @ exact.T - COSINES.to(dtype).float()).square().mean())
    loss.backward()
    assert embeddings.grad.isfinite().all()


def test_bad_input(subtests):
    for call, message in [
        (lambda: structure_loss(EMBEDDINGS, torch.zeros(3, 4)), r"labels must have shape \(4, 4\)"),
        (lambda: structure_loss(EMBEDDINGS[0], torch.zeros(4, 4)), r"embeddings must have shape \(n, d\)"),
        (
            lambda: structure_loss(EMBEDDINGS, COSINES, StructureLossConfig(objective="infonce")),
            "needs sample_ids",
        ),
        (
            lambda: structure_loss(
                EMBEDDINGS, COSINES, StructureLossConfig(objective="infonce"), sample_ids=torch.zeros(2)
            ),
            r"sample_ids must have shape \(4,\)",
        ),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            call()


def test_config_round_trip_and_paper():
    config = StructureLossConfig(
        label_kernel="aligned",
        centring=True,
        block_means={"image-image": 0.1, "text-text": 0.5, "image-text": 0.2},
    )
    assert StructureLossConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    paper = StructureLossConfig.paper()
    assert (paper.label_kernel, paper.delta, paper.single_slice) == ("gak", 0.7, "cosine")
    assert (paper.same_sample, paper.reduction, paper.objective) == ("one", "paper", "mse")
    assert StructureLossConfig.paper(delta=0.5).delta == 0.5
    default = StructureLossConfig()
    assert (default.label_kernel, default.same_sample) == ("calibrated", "kernel")
    assert default.delta**2 == pytest.approx(0.1)
    assert (default.objective, softmax_temperature(default)) == ("kl", 0.15)
    assert softmax_temperature(StructureLossConfig(objective="infonce")) == 0.07
    assert softmax_temperature(StructureLossConfig(objective="infonce", temperature=0.2)) == 0.2


def test_config_refuses(subtests):
    for fields, message in [
        ({"label_kernel": "dtw"}, "label_kernel must be one of 'calibrated'.* got 'dtw'"),
        ({"single_slice": "one"}, "single_slice"),
        ({"same_sample": "cosine"}, "same_sample"),
        ({"teachers": "dino"}, "teachers"),
        ({"objective": "l1"}, "objective"),
        ({"reduction": "sum"}, "reduction"),
        ({"delta": 0.0}, "delta must be a positive number"),
        ({"temperature": float("nan")}, "temperature must be a positive number"),
        ({"block_means": {"image-image": 0.1}}, "block_means must have exactly the keys"),
        ({"block_means": {"image-image": 1.0, "text-text": 0.5, "image-text": 0.2}}, "mean cosine"),
    ]:
        with subtests.test(message=message), pytest.raises(ValueError, match=message):
            StructureLossConfig(**fields)


def test_config_names_unknown_fields():
    with pytest.raises(ValueError, match=r"Unknown StructureLossConfig field.*bandwidth"):
        StructureLossConfig.from_dict({"bandwidth": 1})


@pytest.mark.parametrize("module", ["alignment", "loss"])
def test_docstring_examples(module):
    loaded = importlib.import_module(f"sugar_hf.structure.{module}")
    result = doctest.testmod(loaded, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
