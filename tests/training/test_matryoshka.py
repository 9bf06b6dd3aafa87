"""The structure loss of several sizes of one embedding."""

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize
from training_tools import first_step, logged, make_arguments, make_dataset, make_rows, make_sugar, make_trainer
from transformers import HfArgumentParser

from sugar_hf.structure import SliceFeatures, StructureLossConfig, label_matrix, structure_loss
from sugar_hf.training import SugarCollator, SugarTrainingArguments, draw_slice_ends
from sugar_hf.training.structure_term import structure_term

DIMS, WEIGHTS = [16, 8, 3], [1.0, 0.5, 2.0]


def embeddings_and_labels(count=7):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(count, 16, generator=generator)
    labels = torch.rand(count, count, generator=generator)
    return embeddings, (labels + labels.T) / 2


def naive(embeddings, labels, dims, weights):
    """Equation 5 for each size, written out."""
    total = 0.0
    for size, weight in zip(dims, weights, strict=True):
        cut = embeddings[:, :size] / embeddings[:, :size].norm(dim=1, keepdim=True)
        total = total + weight * ((cut @ cut.T - labels) ** 2).mean()
    return total / sum(weights)


def test_one_size_is_the_loss_of_these_numbers_alone():
    embeddings, labels = embeddings_and_labels()
    cut = structure_loss(embeddings[:, :5], labels)
    assert torch.equal(structure_loss(embeddings, labels, StructureLossConfig(matryoshka_dims=[5])), cut)
    whole = structure_loss(embeddings, labels, StructureLossConfig(matryoshka_dims=[16]))
    assert torch.equal(whole, structure_loss(embeddings, labels))


def test_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [3.0, 4.0]])  # cosine 0.6; of the first numbers alone 1
    config = StructureLossConfig(objective="mse", matryoshka_dims=[2, 1], matryoshka_weights=[3.0, 1.0])
    loss = structure_loss(embeddings, torch.eye(2), config)
    assert float(loss) == pytest.approx((3 * 2 * 0.36 / 4 + 1 * 2 * 1.0 / 4) / 4)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_value_and_gradient_are_the_naive_ones(weights):
    embeddings, labels = embeddings_and_labels()
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    config = StructureLossConfig(objective="mse", matryoshka_dims=DIMS, matryoshka_weights=weights)
    loss = structure_loss(ours, labels, config)
    expected = naive(theirs, labels, DIMS, weights or [1.0] * 3)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_shares_of_rows_add_up(subtests):
    for objective in ["mse", "infonce", "kl"]:
        with subtests.test(objective=objective):
            embeddings, labels = embeddings_and_labels()
            config = StructureLossConfig(objective=objective, matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS)
            ids = torch.tensor([0, 0, 1, 1, 2, 3, 3])
            whole = structure_loss(embeddings, labels, config, sample_ids=ids)
            parts = [torch.tensor([4, 0, 2]), torch.tensor([1, 3, 5, 6])]
            shares = [structure_loss(embeddings, labels[rows], config, sample_ids=ids, rows=rows) for rows in parts]
            torch.testing.assert_close(sum(shares), whole)
            plain = dataclasses.replace(config, matryoshka_dims=None, matryoshka_weights=None)
            each = [structure_loss(embeddings[:, :size], labels, plain, sample_ids=ids) for size in DIMS]
            expected = sum(weight * loss for weight, loss in zip(WEIGHTS, each, strict=True)) / sum(WEIGHTS)
            torch.testing.assert_close(whole, expected)


def test_the_term_of_a_step_has_the_naive_gradient():
    _, processor = make_sugar()
    collate = SugarCollator(processor)
    batch = collate(make_dataset(processor, make_rows()).to_list())
    features, keys = SliceFeatures(**batch["structure_features"]), batch["sample_keys"]
    ends = draw_slice_ends(features.lengths.tolist(), keys.tolist(), 4, seed=0, step=0)
    config = StructureLossConfig(objective="mse", matryoshka_dims=DIMS, matryoshka_weights=WEIGHTS)
    embeddings = torch.randn(len(ends), 16, generator=torch.Generator().manual_seed(1))
    term = structure_term(embeddings, features, ends, config)
    leaf = embeddings.clone().requires_grad_()
    expected = naive(leaf, label_matrix(features, ends, config), DIMS, WEIGHTS)
    expected.backward()
    torch.testing.assert_close(term.value, expected.detach())
    torch.testing.assert_close(term.gradient, leaf.grad, atol=1e-6, rtol=1e-5)


def first_gradients(folder, **options):
    gradients, trainer = first_step(folder, per_device_train_batch_size=8, alpha=0.3, **options)
    return gradients, logged(trainer, "loss_structure")[0]


def test_mini_batches_give_the_gradients_of_the_whole_batch(tmp_path):
    sizes = {"matryoshka_dims": DIMS, "matryoshka_weights": WEIGHTS}
    whole, loss = first_gradients(tmp_path / "a", **sizes)
    parts, same_loss = first_gradients(tmp_path / "b", mini_batch_size=3, **sizes)
    assert same_loss == pytest.approx(loss, rel=1e-4)
    assert parts.keys() == whole.keys()
    for name, gradient in parts.items():
        error = (gradient - whole[name]).abs().max() / whole[name].abs().max().clamp(min=1.0)
        assert float(error) < 1e-5, name  # of embeddings with other padding, to float32


def test_without_sizes_a_step_is_what_it_was(tmp_path):
    """The whole embedding as the only size gives the same numbers, and other sizes give others."""
    plain, loss = first_gradients(tmp_path / "a")
    same, same_loss = first_gradients(tmp_path / "b", matryoshka_dims=[16])
    assert same_loss == loss
    assert all(torch.equal(same[name], plain[name]) for name in plain)
    nested, other_loss = first_gradients(tmp_path / "c", matryoshka_dims=[16, 4])
    assert other_loss != loss
    head = next(name for name in plain if "retrieval_head" in name)
    assert not torch.equal(nested[head], plain[head])


@pytest.mark.slow
def test_small_sizes_learn(tmp_path):
    """After training with sizes, the first numbers alone follow the labels better than without."""
    errors = []
    for name, sizes in (("plain", None), ("nested", [16, 2])):
        trainer = make_trainer(
            tmp_path / name,
            max_steps=12,
            per_device_train_batch_size=8,
            objective="mse",
            alpha=60.0,
            matryoshka_dims=sizes,
        )
        trainer.train()
        [batch] = trainer.get_train_dataloader()
        features, keys = SliceFeatures(**batch.pop("structure_features")), batch.pop("sample_keys")
        ends = draw_slice_ends(features.lengths.tolist(), keys.tolist(), 4, seed=0, step=0)
        batch = {key: value for key, value in batch.items() if key not in ("labels", "sample_ids")}
        with torch.no_grad():
            output = trainer.model.eval()(**batch, skip_logits=True)
        cut = normalize(output.retrieval_embeds[ends[:, 0], ends[:, 1]][:, :2], dim=-1)
        errors.append(float((cut @ cut.T - label_matrix(features, ends)).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_wrong_sizes(tmp_path, subtests):
    for options, message in [
        ({"matryoshka_dims": [0, 8]}, "matryoshka_dims"),
        ({"matryoshka_dims": []}, "matryoshka_dims"),
        ({"matryoshka_dims": [8, 8]}, "different"),
        ({"matryoshka_dims": [8, 4], "matryoshka_weights": [1.0]}, "a weight for each"),
        ({"matryoshka_weights": [1.0]}, "a weight for each"),
        ({"matryoshka_dims": [8], "matryoshka_weights": [0.0]}, "positive"),
    ]:
        with subtests.test(message=message):
            with pytest.raises(ValueError, match=message):
                StructureLossConfig(**options)
            with pytest.raises(ValueError, match=message):
                make_arguments(tmp_path, **options)


def test_sizes_above_that_of_the_model(tmp_path):
    with pytest.raises(ValueError, match=r"matryoshka_dims=\[32, 8\]: the model's embeddings have 16"):
        make_trainer(tmp_path, matryoshka_dims=[32, 8])
    embeddings, labels = embeddings_and_labels()
    with pytest.raises(ValueError, match="16 dimensions only"):
        structure_loss(embeddings, labels, StructureLossConfig(matryoshka_dims=[17]))


def test_from_the_command_line_and_as_a_dict(tmp_path):
    parser = HfArgumentParser(SugarTrainingArguments)
    [args] = parser.parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "--matryoshka_dims", "8", "4", "--matryoshka_weights", "1", "2"]
    )
    config = args.structure_loss_config()
    assert (config.matryoshka_dims, config.matryoshka_weights) == ([8, 4], [1.0, 2.0])
    assert StructureLossConfig.from_dict(config.to_dict()) == config
