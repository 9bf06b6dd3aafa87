"""The learnt temperature of a run: its gradient, its limits, its place in checkpoints and outside the model."""

import math

import pytest
import torch
from datasets import IterableDataset
from safetensors import safe_open
from training_tools import logged, make_arguments, make_dataset, make_rows, make_sugar, make_trainer

from sugar_hf.structure import SliceFeatures, label_matrix, structure_loss
from sugar_hf.training import SugarTrainer, draw_slice_ends

LEARNT = {"objective": "kl", "target_temperature": 0.1, "temperature": 0.3, "learn_temperature": True, "alpha": 0.5}


def first_gradient(folder, **options):
    """Gradient of the logit scale in the first step, by a trainer that made it alone."""
    trainer = make_trainer(folder, **{"max_steps": 1, "per_device_train_batch_size": 8, **LEARNT, **options})
    found = []
    trainer.create_optimizer().register_step_pre_hook(lambda *_: found.append(trainer.temperature.logit_scale.grad))
    trainer.train()
    return found[0].clone(), trainer


@pytest.mark.parametrize("objective", ["kl", "infonce"])
def test_gradient_is_alpha_times_that_of_the_loss(tmp_path, objective):
    options = {**LEARNT, "objective": objective, "target_temperature": 0.1 if objective == "kl" else None}
    gradient, trainer = first_gradient(tmp_path, **options)
    fresh = make_trainer(tmp_path, per_device_train_batch_size=8, **options)  # with the weights of the first step
    [batch] = fresh.get_train_dataloader()
    features, keys = SliceFeatures(**batch.pop("structure_features")), batch.pop("sample_keys")
    ends = draw_slice_ends(features.lengths.tolist(), keys.tolist(), 4, seed=3, step=0)
    batch = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    with torch.no_grad():
        embeddings = fresh.model(**batch, skip_logits=True).retrieval_embeds[ends[:, 0], ends[:, 1]]
    scale = torch.tensor(-math.log(0.3), requires_grad=True)
    config = fresh.structure_config
    loss = structure_loss(
        embeddings, label_matrix(features, ends, config), config, sample_ids=ends[:, 0], logit_scale=scale
    )
    loss.backward()
    torch.testing.assert_close(gradient, 0.5 * scale.grad, rtol=1e-4, atol=1e-6)
    assert logged(trainer, "loss_structure")[0] == pytest.approx(loss.item(), rel=1e-4)
    # the first step of Adam is as long as the learning rate, against the gradient
    step = -1e-3 * float(gradient.sign())
    assert logged(trainer, "temperature") == [pytest.approx(0.3 * math.exp(-step), rel=1e-5)]


def test_mini_batches_have_the_gradient_of_the_whole_batch(tmp_path):
    whole, _ = first_gradient(tmp_path / "a")
    parts, _ = first_gradient(tmp_path / "b", mini_batch_size=3)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_gradients_of_accumulated_batches_add_up_and_none_is_left_over(tmp_path):
    options = {"per_device_train_batch_size": 4, "train_sampling_strategy": "sequential", "learning_rate": 0.0}
    options |= {"num_train_epochs": 1, "max_steps": -1, "positions_per_sample": 0}
    found = []
    for steps in (1, 2):
        trainer = make_trainer(tmp_path, gradient_accumulation_steps=steps, **LEARNT, **options)
        seen = []
        trainer.create_optimizer().register_step_pre_hook(
            lambda *_, trainer=trainer, seen=seen: seen.append(trainer.temperature.logit_scale.grad.item())
        )
        trainer.train()
        found.append(seen)
    apart, together = found
    assert len(apart) == 2
    assert len(together) == 1
    assert together[0] == pytest.approx(sum(apart) / 2, rel=1e-4)


def test_resumed_run_goes_on_with_its_temperature(tmp_path):
    options = {**LEARNT, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "learning_rate": 0.01}
    whole = make_trainer(tmp_path, **options)
    whole.train()
    rest = make_trainer(tmp_path, seed=1, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(set(logged(whole, "temperature"))) == 4
    for name in ("temperature", "loss_structure", "loss"):
        assert logged(rest, name) == logged(whole, name)
    assert torch.equal(rest.temperature.logit_scale, whole.temperature.logit_scale)
    with safe_open(tmp_path / "checkpoint-4" / "model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "scale" in name]  # noqa: SIM118 - not a dict
    assert "temperature" not in (tmp_path / "checkpoint-4" / "config.json").read_text()


def test_it_stays_above_a_hundredth_and_follows_the_learning_rate_of_the_head(tmp_path):
    options = {**LEARNT, "temperature": 0.0101, "learning_rate": 0.0, "head_learning_rate": 0.5}
    trainer = make_trainer(tmp_path, max_steps=1, **options)

    def towards_a_colder_one(*_):
        trainer.temperature.logit_scale.grad.fill_(-1.0)

    trainer.create_optimizer().register_step_pre_hook(towards_a_colder_one)
    trainer.train()
    assert trainer.temperature.value == pytest.approx(0.01)
    [group] = [each for each in trainer.optimizer.param_groups if each["params"] == [trainer.temperature.logit_scale]]
    assert group["weight_decay"] == 0
    assert group["initial_lr"] == 0.5


def test_a_step_that_is_left_out_leaves_the_temperature_alone(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, max_steps=1, nonfinite_loss="skip", **LEARNT)
    monkeypatch.setattr(trainer, "current_alpha", lambda: math.nan)
    trainer.train()
    assert trainer.skipped_steps == 1
    assert trainer.temperature.value == pytest.approx(0.3)


def test_an_own_optimizer_gets_it_too_but_a_schedule_cannot(tmp_path):
    model, processor = make_sugar()
    dataset = make_dataset(processor, make_rows())

    def trainer(scheduler=None):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return SugarTrainer(
            model,
            make_arguments(tmp_path, **LEARNT),
            train_dataset=dataset,
            processing_class=processor,
            optimizers=(optimizer, scheduler and scheduler(optimizer, lambda step: 1.0)),
        )

    fine = trainer()
    fine.train()
    assert fine.temperature.value != pytest.approx(0.3, rel=1e-4)
    with pytest.raises(ValueError, match="learn_temperature"):
        trainer(torch.optim.lr_scheduler.LambdaLR).train()


def test_without_pairs_theirs_cannot_be_lifted(tmp_path):
    options = {"objective": "kl", "positive_share": 0.3, "lifted_positives": "pairs"}
    with pytest.raises(ValueError, match="lifted_positives='pairs'"):
        make_trainer(tmp_path, **options)
    make_trainer(tmp_path, **options, alpha=0.0)


def test_nor_without_pairs_in_a_stream(tmp_path):
    model, processor = make_sugar()
    rows = list(make_dataset(processor, make_rows()))
    arguments = make_arguments(
        tmp_path, objective="kl", positive_share=0.3, lifted_positives="pairs", max_steps=1, label_statistics_steps=0
    )

    def trainer(rows):
        stream = IterableDataset.from_generator(lambda: iter(rows))  # names no columns
        return SugarTrainer(model, arguments, train_dataset=stream, processing_class=processor)

    with pytest.raises(ValueError, match="lifted_positives='pairs'"):
        trainer(rows)
    trainer([*rows, {"query": "a", "positives": ["b"]}])


def test_a_start_below_the_limit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"temperature=0\.005: .*learn_temperature=False"):
        make_trainer(tmp_path, **{**LEARNT, "temperature": 0.005})
    make_trainer(tmp_path, **{**LEARNT, "temperature": 0.01})
    make_trainer(tmp_path, **{**LEARNT, "temperature": 0.005, "learn_temperature": False})


def test_an_optimizer_that_steps_early_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"learn_temperature does not work with optim='galore_adamw_layerwise'"):
        make_trainer(tmp_path, optim="galore_adamw_layerwise", **LEARNT)
