"""Batches larger than memory: mini-batches in two passes give what the whole batch gives."""

import pytest
import torch
from builders import build_tiny_llava
from peft import get_peft_model
from training_tools import first_step, logged, make_dataset, make_rows, make_sugar, make_trainer
from transformers import Trainer

from sugar_hf.model import SugarForConditionalGeneration
from sugar_hf.structure import SliceFeatures, label_matrix, structure_loss
from sugar_hf.training import draw_slice_ends, sugar_lora_config
from sugar_hf.training.collator import LengthEstimate, MiniBatchCollator, MiniBatches, RandomState


def step(folder, **options):
    """Gradients and log of the first optimizer step."""
    gradients, trainer = first_step(folder, **{"per_device_train_batch_size": 8, "alpha": 0.3, **options})
    return gradients, trainer.state.log_history[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The step of the whole batch."""
    return step(tmp_path_factory.mktemp("whole"))


def assert_same(ours, theirs):
    gradients, log = ours
    expected, expected_log = theirs
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    for name in ("loss", "loss_lm", "loss_structure", "label_mean", "label_spearman"):
        assert log[name] == pytest.approx(expected_log[name], rel=1e-4), name


@pytest.mark.parametrize(
    "options",
    [{"mini_batch_size": 3}, {"mini_batch_size": 1, "gradient_checkpointing": True}, {"mini_batch_tokens": 100}],
)
def test_mini_batches_give_the_step_of_the_whole_batch(tmp_path, whole, options):
    assert_same(step(tmp_path, **options), whole)


@pytest.mark.parametrize(
    "options", [{"positions_per_sample": 2}, {"objective": "mse", "alpha": 7.0}, {"objective": "infonce"}]
)
def test_whatever_is_drawn_and_compared(tmp_path, options):
    assert_same(step(tmp_path / "a", mini_batch_size=3, **options), step(tmp_path / "b", **options))


def test_accumulated(tmp_path):
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    assert_same(step(tmp_path / "a", mini_batch_size=2, **options), step(tmp_path / "b", **options))


def test_without_the_structure_loss_there_is_one_pass(tmp_path, monkeypatch):
    passes = []
    forward = SugarForConditionalGeneration.forward

    def counted(self, *args, **kwargs):
        if self.training:
            passes.append(torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SugarForConditionalGeneration, "forward", counted)
    gradients, log = step(tmp_path / "a", alpha=0.0, mini_batch_size=4)
    assert passes == [True, True]
    expected, expected_log = step(tmp_path / "b", alpha=0.0)
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-4)
    assert log["loss"] == pytest.approx(expected_log["loss"], rel=1e-5)
    passes.clear()
    step(tmp_path / "c", mini_batch_size=4)
    assert passes == [False, False, True, True]
    passes.clear()
    step(tmp_path / "d", mini_batch_size=8)  # it fits: the second pass alone
    assert passes == [True]


def test_lora(tmp_path):
    def adapted():
        base, _ = make_sugar()
        torch.manual_seed(0)
        return get_peft_model(base, sugar_lora_config(base, r=2))

    assert_same(step(tmp_path / "a", model=adapted(), mini_batch_size=2), step(tmp_path / "b", model=adapted()))


def with_dropout():
    vlm, _ = build_tiny_llava()
    vlm.config.text_config.attention_dropout = 0.5
    for module in vlm.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    torch.manual_seed(0)
    return SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16)


def test_dropout_of_the_first_pass_is_replayed_in_the_second(tmp_path, monkeypatch):
    """The gradient is that of the loss under one draw of dropout, and both passes have the same embeddings."""
    trainer = make_trainer(tmp_path, model=with_dropout(), per_device_train_batch_size=8, mini_batch_size=3, alpha=0.3)
    [batch] = trainer.get_train_dataloader()
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    seen = []
    forward = SugarForConditionalGeneration.forward

    def kept(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        seen.append(output.retrieval_embeds.detach())
        return output

    monkeypatch.setattr(SugarForConditionalGeneration, "forward", kept)
    torch.manual_seed(5)
    count = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    loss = trainer.training_step(trainer.model, batch, count)
    after = torch.get_rng_state()
    assert len(seen) == 6
    assert all(torch.equal(first, second) for first, second in zip(seen[:3], seen[3:], strict=True))
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    trainer.model.zero_grad()
    torch.manual_seed(5)
    outputs = [trainer.model(**_inputs(part), num_items_in_batch=count) for part in batch]
    assert torch.equal(torch.get_rng_state(), after)  # the second pass leaves no trace
    rows, columns = [], []
    for part, output in zip(batch, outputs, strict=True):
        features = part["structure_features"]
        ends = draw_slice_ends(features["lengths"].tolist(), part["sample_keys"].tolist(), 4, seed=3, step=0)
        rows.append(output.retrieval_embeds[ends[:, 0], ends[:, 1]])
        columns.append((features, ends))
    structure = structure_loss(torch.cat(rows), _labels(columns))
    expected = sum(output.loss for output in outputs) + 0.3 * structure
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for name, parameter in trainer.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)


def _inputs(part):
    return {name: part[name] for name in part if name not in ("structure_features", "sample_keys", "sample_ids")}


def _labels(columns):
    features = SliceFeatures.cat([SliceFeatures(**each) for each, _ in columns])
    samples = [0]
    for each, _ in columns[:-1]:
        samples.append(samples[-1] + len(each["lengths"]))
    ends = [ends + torch.tensor([first, 0]) for first, (_, ends) in zip(samples, columns, strict=True)]
    return label_matrix(features, torch.cat(ends))


def test_random_state_is_put_back():
    torch.manual_seed(0)
    state = RandomState(torch.zeros(1))
    first = torch.rand(3)
    with state.replayed():
        assert torch.equal(torch.rand(3), first)
    following = torch.rand(3)
    torch.manual_seed(0)
    torch.rand(3)
    assert torch.equal(torch.rand(3), following)


def collate(rows):
    longest = max(row["tokens"] for row in rows)
    return {"input_ids": torch.zeros(len(rows), longest), "ids": [row["id"] for row in rows]}


def cut(lengths, guess=lambda tokens: tokens, **limits):
    rows = [{"id": i, "tokens": tokens} for i, tokens in enumerate(lengths)]
    batches = MiniBatchCollator(collate, lambda row: guess(row["tokens"]), **limits)(rows)
    return [batch["ids"] for batch in batches]


def test_mini_batches_hold_every_sample_once_and_the_longest_first():
    assert cut([3, 9, 1, 7], size=3) == [[1, 3, 0], [2]]
    assert cut([3, 9, 1, 7], tokens=18) == [[1, 3], [0, 2]]
    assert cut([3, 9, 1, 7], size=1, tokens=18) == [[1], [3], [0], [2]]
    assert cut([30, 2, 2], tokens=4) == [[0], [1, 2]]  # too long by itself, and still there


def test_token_budget_holds_where_the_estimate_is_wrong():
    groups = cut([8, 8, 8, 8, 8], guess=lambda tokens: 1, tokens=16)
    assert sorted(row for group in groups for row in group) == [0, 1, 2, 3, 4]
    assert max(map(len, groups)) <= 2


def test_mini_batches_stay_on_the_cpu_and_are_counted(tmp_path):
    trainer = make_trainer(
        tmp_path, mini_batch_size=2, per_device_train_batch_size=8, include_num_input_tokens_seen="non_padding"
    )
    [batch] = trainer.get_train_dataloader()
    assert isinstance(batch, MiniBatches)
    assert len(batch) == 4
    whole = make_trainer(tmp_path, per_device_train_batch_size=8)
    [plain] = whole.get_train_dataloader()
    count = trainer._get_num_items_in_batch([batch], "cpu")
    assert count == whole._get_num_items_in_batch([plain], "cpu") > 0
    padded = sum(part["input_ids"].numel() for part in batch)
    assert padded < plain["input_ids"].numel()  # like lengths together
    trainer._track_num_input_tokens(batch)
    assert trainer.state.num_input_tokens_seen == plain["attention_mask"].sum()
    assert trainer.floating_point_ops(batch) == pytest.approx(
        whole.floating_point_ops(plain) * padded / plain["input_ids"].numel()
    )


def test_an_unfinished_pass_leaves_no_mini_batch_behind(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path, mini_batch_size=2)
    monkeypatch.setattr(Trainer, "training_step", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())), None)
    assert trainer.mini_batch.count == 1


def test_evaluation_has_whole_batches(tmp_path):
    trainer = make_trainer(tmp_path, mini_batch_size=2)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss_structure"] > 0


def test_lengths_are_estimated_from_characters_and_images():
    _, processor = make_sugar()
    rows = make_dataset(processor).to_list() * 3

    def count(row):
        return sum(9 if p["type"] == "image" else len(p["text"]) // 2 for m in row["messages"] for p in m["content"])

    estimate = LengthEstimate.fit(rows, count)
    found, exact = estimate.of_dataset(rows), [count(row) for row in rows]
    assert max(abs(a - b) for a, b in zip(found, exact, strict=True)) <= 3
    alike = LengthEstimate.fit([rows[0]] * 5, count)  # one kind of row says nothing of its parts
    assert alike(rows[0]) == pytest.approx(count(rows[0]), abs=1)


def test_batches_of_like_length(tmp_path):
    options = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
    trainer = make_trainer(tmp_path, rows=make_rows() * 5, **options)
    estimated = trainer.length_estimate.of_dataset(trainer.train_dataset)
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(40))
    differences = [abs(estimated[a] - estimated[b]) for a, b in zip(order[::2], order[1::2], strict=True)]
    by_place = [abs(estimated[a] - estimated[a + 1]) for a in range(0, 40, 2)]
    assert sum(differences) < 0.5 * sum(by_place)
    trainer.train()
    assert len(logged(trainer, "loss")) == 2


def test_a_length_column_is_taken_as_it_is(tmp_path):
    _, processor = make_sugar()
    dataset = make_dataset(processor).add_column("length", [5, 1, 1, 5, 9, 9, 2, 2])
    trainer = make_trainer(
        tmp_path, train_dataset=dataset, train_sampling_strategy="group_by_length", per_device_train_batch_size=2
    )
    sampler = trainer._get_train_sampler()
    assert sampler.lengths == [5, 1, 1, 5, 9, 9, 2, 2]


@pytest.mark.parametrize("column", [[], [5, 1, 1, 5, 9, 9, 2, 2]], ids=["estimated", "column"])
def test_evaluations_keep_the_order_of_rows(tmp_path, column):
    dataset = make_dataset(make_sugar()[1])
    measured = dataset.add_column("length", column) if column else dataset
    options = {"train_dataset": dataset, "per_device_eval_batch_size": 3}
    plain = make_trainer(tmp_path / "plain", **options)
    trainer = make_trainer(tmp_path / "length", train_sampling_strategy="group_by_length", **options)
    found, expected = trainer.evaluate(measured), plain.evaluate(measured)
    for name in ("eval_loss", "eval_loss_lm", "eval_loss_structure"):
        assert found[name] == expected[name]
    names = [name for batch in trainer.get_test_dataloader(measured) for name in batch["sample_ids"]]
    assert names == dataset["id"]
