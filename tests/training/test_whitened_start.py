"""The whitened start of the retrieval head: which states it comes from, when it is made, and what it leaves alone."""

import pytest
import torch
from datasets import IterableDataset
from peft import get_peft_model
from safetensors.torch import load_file
from training_tools import (
    document,
    first_step,
    logged,
    make_arguments,
    make_dataset,
    make_rows,
    make_sugar,
    make_trainer,
)

from sugar_hf import SugarForConditionalGeneration
from sugar_hf.model.modeling_sugar import RetrievalHead
from sugar_hf.model.whitening import StateMoments, gathered_states, set_whitened
from sugar_hf.training import SugarCollator, SugarTrainer, sugar_lora_config

CUTS = [{"mini_batch_size": 2}, {"per_device_train_batch_size": 3}, {"mini_batch_tokens": 50}]
WHITENED = {"head_whitening_samples": 100}  # all there are


def whitened_by_hand():
    """A model whose head was whitened by all rows at once."""
    model, processor = make_sugar()
    batch = SugarCollator(processor)(make_dataset(processor).to_list())
    with gathered_states(model) as moments, torch.no_grad():
        model(
            **{
                name: value
                for name, value in batch.items()
                if isinstance(value, torch.Tensor) and name != "labels" and name != "sample_keys"
            }
        )
    set_whitened(model.retrieval_head, moments)
    return model


def head_of(model):
    return {name: weight.detach().clone() for name, weight in model.retrieval_head.named_parameters()}


def assert_same(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=tolerance, rtol=tolerance, msg=name)


def started(folder, **options):
    """A trainer after a step of no length: its head is as it began."""
    trainer = make_trainer(folder, **{"max_steps": 1, "learning_rate": 0.0, **WHITENED, **options})
    trainer.train()
    return trainer


def test_the_head_begins_as_the_whitened_states_of_the_training_set(tmp_path):
    trainer = started(tmp_path)
    assert_same(head_of(trainer.model), head_of(whitened_by_hand()))


def test_all_else_is_as_without_it(tmp_path):
    trainer = started(tmp_path)
    model, _ = make_sugar()
    for name, weight in trainer.model.vlm.named_parameters():
        assert torch.equal(weight, model.vlm.get_parameter(name)), name
    plain = make_trainer(tmp_path, max_steps=1, learning_rate=0.0)
    plain.train()
    assert logged(trainer, "loss_lm") == logged(plain, "loss_lm")  # the same samples, the same dropout
    assert logged(trainer, "loss_structure") != logged(plain, "loss_structure")


def test_the_whitened_head_is_trained(tmp_path):
    gradients, trainer = first_step(tmp_path, **WHITENED)
    began = head_of(whitened_by_hand())
    for name, weight in head_of(trainer.model).items():
        assert float(gradients[f"retrieval_head.{name}"].abs().max()) > 0
        assert float((weight - began[name]).abs().max()) == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize(
    "options", [{"mini_batch_size": 2}, {"per_device_train_batch_size": 3}, {"mini_batch_tokens": 50}]
)
def test_however_batches_are_cut(tmp_path, options):
    assert_same(head_of(started(tmp_path, **options).model), head_of(whitened_by_hand()))


def test_some_rows_drawn_by_the_seed(tmp_path):
    one, again, other = (head_of(started(tmp_path, head_whitening_samples=7, seed=seed).model) for seed in (3, 3, 4))
    assert_same(one, again, tolerance=0)
    with pytest.raises(AssertionError):
        assert_same(one, other)


def test_a_resumed_run_goes_on_with_its_head(tmp_path):
    options = {**WHITENED, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same(head_of(resumed.model), head_of(whole.model), tolerance=0)


def test_a_second_call_trains_the_head_further(tmp_path):
    trainer = make_trainer(tmp_path, **WHITENED)
    trainer.train()
    first = head_of(trainer.model)
    trainer.args.learning_rate = 0.0
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    assert_same(head_of(trainer.model), first, tolerance=0)


def test_the_head_of_an_adapter_is_whitened_and_saved(tmp_path):
    model, _ = make_sugar()
    plain = head_of(model)
    trainer = started(tmp_path, model=get_peft_model(model, sugar_lora_config(model, r=2)))
    trainer.save_model(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    found = {
        name.rpartition("retrieval_head.")[2]: weight for name, weight in saved.items() if "retrieval_head" in name
    }
    assert_same(found, head_of(whitened_by_hand()))
    original = trainer.model.base_model.model.retrieval_head.original_module
    assert isinstance(original, RetrievalHead)
    assert_same(dict(original.named_parameters()), plain, tolerance=0)


def test_teachers_are_not_asked(tmp_path):
    class AskedError(Exception):
        pass

    class Teacher:
        fingerprint, widths, device = "by-hand", (8, 8, 8), torch.device("cpu")

        def embed(self, slices):
            raise AskedError

    trainer = make_trainer(
        tmp_path, train_dataset=make_dataset(make_sugar()[1], cached=False), teacher=Teacher(), **WHITENED
    )
    with pytest.raises(AskedError):  # by the first step
        trainer.train()
    assert_same(head_of(trainer.model), head_of(whitened_by_hand()))


def test_a_stream_gives_its_first_rows(tmp_path):
    rows = make_dataset(make_sugar()[1]).to_list()
    trainer = started(tmp_path, train_dataset=IterableDataset.from_generator(lambda: iter(rows)))
    assert_same(head_of(trainer.model), head_of(whitened_by_hand()))


def test_bad_samples_are_left_out(tmp_path):
    rows = make_rows()
    rows.append({**rows[0], "id": "bad", "images": [{"bytes": b"no image", "path": None}]})
    trainer = started(tmp_path, rows=None, train_dataset=make_dataset_of(rows), on_bad_sample="skip")
    assert_same(head_of(trainer.model), head_of(whitened_by_hand()))


def make_dataset_of(rows):
    """Rows of which the last has teacher vectors of another, as its picture cannot be read."""
    _, processor = make_sugar()
    whole = make_dataset(processor).to_list()
    broken = {**whole[0], **{name: rows[-1][name] for name in ("id", "images")}}
    dataset = make_dataset(processor)
    return dataset.from_list([*whole, broken], features=dataset.features)


def test_too_few_slices_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"head_whitening_samples=1: the states of \d slices vary along \d directions"
    ):
        started(tmp_path, head_whitening_samples=1)


def test_arguments_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="alpha=0 does not train"):
        make_arguments(tmp_path, alpha=0.0, **WHITENED)
    with pytest.raises(ValueError, match="head_whitening_samples=-1: give 0 or more"):
        make_arguments(tmp_path, head_whitening_samples=-1)


def test_a_fresh_head_is_whitened_by_default(tmp_path):
    assert_same(head_of(started(tmp_path, head_whitening_samples=None).model), head_of(whitened_by_hand()))


def trained_model(folder):
    trainer = make_trainer(folder)
    trainer.train()
    return trainer.model


def loaded_model(folder):
    model, _ = make_sugar()
    model.save_pretrained(folder / "model")
    return SugarForConditionalGeneration.from_pretrained(folder / "model")


def model_with_the_head_of_another(folder):
    (model, _), (other, _) = make_sugar(), make_sugar(seed=1)
    model.retrieval_head.load_state_dict(other.retrieval_head.state_dict())
    return model


OTHERS = [trained_model, loaded_model, model_with_the_head_of_another, lambda _: whitened_by_hand()]


@pytest.mark.parametrize("make", OTHERS)
def test_no_other_head_is_by_default(tmp_path, make):
    model = make(tmp_path)
    before = head_of(model)
    assert not model.retrieval_head.is_fresh
    assert_same(head_of(started(tmp_path, model=model, head_whitening_samples=None).model), before, tolerance=0)


def test_each_model_of_a_search_begins_so(tmp_path):
    trainer = make_trainer(tmp_path, max_steps=1, learning_rate=0.0, head_whitening_samples=None)
    again = SugarTrainer(
        model_init=lambda: make_sugar()[0],
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        processing_class=trainer.processing_class,
    )
    again.train()
    first = again.model
    again.train()
    assert again.model is not first
    for model in (first, again.model):
        assert_same(head_of(model), head_of(whitened_by_hand()))


def test_a_fresh_head_keeps_its_start_where_the_samples_are_too_few(tmp_path, caplog):
    trainer = started(tmp_path, head_whitening_samples=None, rows=[document(0, "t"), document(1, "t")])
    assert "The retrieval head begins at random, and not from whitened states: the states of 2 slices" in caplog.text
    assert_same(head_of(trainer.model), head_of(make_sugar()[0]), tolerance=0)


def test_moments_of_no_state_whiten_nothing():
    with pytest.raises(ValueError, match="0 slices vary along 0"):
        StateMoments(4).whitening(2)
