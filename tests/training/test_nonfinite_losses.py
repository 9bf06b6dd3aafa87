"""A NaN or infinite loss stops with what to look at, or leaves out its step; the weights never see it."""

import json
import math
from itertools import pairwise

import pytest
import torch
from training_tools import chat, document, logged, make_dataset, make_rows, make_sugar, make_trainer
from transformers import TrainerCallback

from sugar_hf.structure import label_statistics
from sugar_hf.training.guards import LossGuard

NAN, INF = float("nan"), float("inf")


def poison(trainer, value: float = NAN) -> None:
    """Makes the model's input `value` wherever a text has a z."""
    z = trainer.processing_class.tokenizer("z", add_special_tokens=False)["input_ids"][-1]

    def hook(module, args, output):
        return torch.where((args[0] == z)[..., None], torch.full_like(output, value), output)

    trainer.model.get_input_embeddings().register_forward_hook(hook)


def rows_with_a_bad_one(place: int) -> list[dict]:
    """Eight rows, of which `bad` has a z in its text."""
    rows = make_rows()
    rows[place] = {**document(9, "ti"), "id": "bad"}
    rows[place]["messages"][0]["content"][0]["text"] = "A zebra."
    return rows


class Snapshots(TrainerCallback):
    """Weights and momentum after every step."""

    def __init__(self):
        self.weights, self.momentum = [], []

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        self.weights.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        states = optimizer.state_dict()["state"]
        self.momentum.append({key: state["exp_avg"].clone() for key, state in states.items()})


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def make(folder, place=4, value=NAN, snapshots=None, **kwargs):
    """Batches of two in the order of the rows, four steps an epoch."""
    options = {
        "rows": rows_with_a_bad_one(place),
        "per_device_train_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "max_steps": 4,
        "weight_decay": 0.1,
        "callbacks": [] if snapshots is None else [snapshots],
    }
    trainer = make_trainer(folder, **{**options, **kwargs})
    poison(trainer, value)
    return trainer


def test_error_names_step_losses_samples_and_what_to_try(tmp_path):
    snapshots = Snapshots()
    trainer = make(tmp_path, place=4, value=INF, snapshots=snapshots)
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    said = str(caught.value)
    assert said.startswith("Step 3: L_g (loss_lm) is nan, L_d (loss_structure) is nan.")
    assert "has the samples 'bad', 'document-5'. The outputs or teacher vectors of 'bad' are not finite." in said
    for advice in ("learning_rate (now 0.001)", "alpha (now 0.45)", "float32", "fp16=False", "nonfinite_loss='skip'"):
        assert advice in said
    assert trainer.state.global_step == 2
    assert same(dict(trainer.model.named_parameters()), snapshots.weights[-1])


def test_language_model_loss_alone_is_guarded_too(tmp_path):
    trainer = make(tmp_path, alpha=0.0)
    with pytest.raises(
        FloatingPointError, match=r"Step 3: L_g \(loss_lm\) is nan\. .*of 'bad' are not finite"
    ) as caught:
        trainer.train()
    assert "alpha" not in str(caught.value)


def test_bad_teacher_vectors_are_found(tmp_path):
    _, processor = make_sugar()
    rows = make_dataset(processor).to_list()
    rows[3]["teacher_clip"][1][0] = NAN
    trainer = make_trainer(
        tmp_path,
        train_dataset=rows,
        train_sampling_strategy="sequential",
        positions_per_sample=0,
        label_statistics_steps=1,
    )
    with pytest.raises(FloatingPointError) as caught:
        trainer.train()
    said = str(caught.value)
    assert said.startswith("Step 1: L_d (loss_structure) is nan, L_g (loss_lm) is 5.")
    assert "The outputs or teacher vectors of 'document-3' are not finite." in said


def test_statistics_of_labels_that_are_not_finite():
    labels = torch.tensor([[1.0, NAN], [NAN, 1.0]])
    assert math.isnan(label_statistics(labels)["smallest_eigenvalue"])


def break_gradient(trainer, step: int, value: float = NAN) -> None:
    """Makes the gradient of one weight `value` at one step, while the losses stay finite."""
    weight = trainer.model.retrieval_head.pooled_to_hidden.weight
    weight.register_hook(lambda gradient: gradient * value if trainer.state.global_step == step - 1 else gradient)


def test_bad_gradient_of_finite_losses_is_an_error(tmp_path):
    snapshots = Snapshots()
    trainer = make_trainer(tmp_path, callbacks=[snapshots], max_steps=3)
    break_gradient(trainer, step=2)
    with pytest.raises(FloatingPointError, match=r"Step 2: The norm of the gradient is nan, though the losses"):
        trainer.train()
    assert same(dict(trainer.model.named_parameters()), snapshots.weights[-1])


@pytest.mark.parametrize("value", [NAN, INF])
def test_bad_gradient_of_finite_losses_is_skipped(tmp_path, value):
    snapshots = Snapshots()
    trainer = make_trainer(tmp_path, callbacks=[snapshots], max_steps=3, nonfinite_loss="skip")
    break_gradient(trainer, step=2, value=value)
    trainer.train()
    assert [same(*pair) for pair in pairwise(snapshots.weights)] == [True, False]
    assert logged(trainer, "skipped_steps") == [0, 1, 1]


def test_skipped_step_leaves_weights_and_momentum_and_is_counted(tmp_path, caplog):
    snapshots = Snapshots()
    trainer = make(tmp_path, place=4, snapshots=snapshots, nonfinite_loss="skip")
    trainer.train()
    for kept in (snapshots.weights, snapshots.momentum):
        assert [same(*pair) for pair in pairwise(kept)] == [False, True, False]
    assert trainer.skipped_steps == 1
    assert logged(trainer, "skipped_steps") == [0, 0, 1, 1]
    assert [math.isnan(loss) for loss in logged(trainer, "loss")] == [False, False, True, False]
    assert len(logged(trainer, "loss_lm")) == 3
    warned = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith("Step 3 is left out (1 so far). L_g (loss_lm) is nan")
    assert "'bad' are not finite" in warned[0]


def test_log_is_the_mean_over_the_steps_that_were_made(tmp_path):
    single = make(tmp_path / "single", nonfinite_loss="skip")
    window = make(tmp_path / "window", nonfinite_loss="skip", logging_steps=4)
    for trainer in (single, window):
        trainer.train()
    for name in ("loss", "loss_lm", "loss_structure"):
        made = [value for value in logged(single, name) if not math.isnan(value)]
        assert len(made) == 3
        assert logged(window, name) == pytest.approx([sum(made) / 3], rel=1e-5)
    assert logged(window, "skipped_steps") == [1]


@pytest.mark.parametrize("place", [4, 6])
def test_one_bad_micro_batch_voids_its_whole_window(tmp_path, place):
    """Micro-batches 1-2 and 3-4 are a step each: whichever of the second two is bad, the first step alone is made."""
    snapshots = Snapshots()
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "nonfinite_loss": "skip"}
    trainer = make(tmp_path / "a", place=place, snapshots=snapshots, **options)
    trainer.train()
    assert same(*snapshots.weights)
    assert logged(trainer, "skipped_steps") == [0, 1]
    with pytest.raises(FloatingPointError, match="Step 2"):
        make(tmp_path / "b", place=place, **{**options, "nonfinite_loss": "error"}).train()


def test_steps_after_a_skipped_one_are_those_of_a_run_without_it(tmp_path):
    """A skipped batch at the end leaves no trace: neither gradients nor sums."""
    bad = make(tmp_path / "bad", place=2, nonfinite_loss="skip", max_steps=3, lr_scheduler_type="constant", alpha=0.0)
    bad.train()
    rows = rows_with_a_bad_one(2)
    good = make(
        tmp_path / "good",
        rows=rows[:2] + rows[4:],
        max_steps=2,
        lr_scheduler_type="constant",
        alpha=0.0,
    )
    good.train()
    assert [loss for loss in logged(bad, "loss") if not math.isnan(loss)] == logged(good, "loss")
    assert same(dict(bad.model.named_parameters()), dict(good.model.named_parameters()))


def test_count_and_losses_survive_a_resume(tmp_path):
    options = {"nonfinite_loss": "skip", "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = make(tmp_path, **options)
    whole.train()
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["LossGuard"]["attributes"] == {"skipped_steps": 1}
    rest = make(tmp_path, seed=1, **options)
    rest.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert rest.skipped_steps == whole.skipped_steps == 2
    assert logged(rest, "skipped_steps") == [0, 0, 1, 1, 1, 1, 2, 2]
    assert logged(rest, "loss")[-1] == logged(whole, "loss")[-1]
    for ours, theirs in zip(rest.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_many_skipped_steps_in_a_row_are_said_to_be_hopeless(tmp_path, caplog):
    rows = [{**rows_with_a_bad_one(0)[0], "id": f"bad-{number}"} for number in range(2)]
    make(tmp_path, rows=rows, nonfinite_loss="skip", max_steps=5).train()
    warned = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert ["broken" in message for message in warned] == [False] * 4 + [True]
    assert "(5 so far, 5 in a row)" in warned[-1]
    assert "vectors of all of them are not finite" in warned[-1]


def test_skipping_is_refused_where_the_weights_change_before_the_check(tmp_path):
    with pytest.raises(ValueError, match=r"nonfinite_loss='skip' does not work with optim='lomo'"):
        make_trainer(tmp_path, nonfinite_loss="skip", optim="lomo")
    with pytest.raises(ValueError, match="nonfinite_loss='ignore': give one of 'error', 'skip'"):
        make_trainer(tmp_path, nonfinite_loss="ignore")


def test_ordinary_run_has_no_count(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    assert not logged(trainer, "skipped_steps")
    assert trainer.skipped_steps == 0


def test_guard_agrees_over_processes():
    """The verdict is that of all processes, whatever the losses of this one are."""
    guard = LossGuard()
    guard.check({"loss_lm": torch.tensor(1.0)}, ["a"])
    assert guard.judge(1.0, lambda number: number + 0)
    assert not guard.judge(1.0, lambda number: number + 1)
    assert guard.fault() == "A loss of another process is not finite; its message names the samples."


def test_long_lists_of_samples_are_cut():
    guard = LossGuard()
    guard.check({"loss_lm": torch.tensor(INF)}, [str(number) for number in range(40)])
    assert not guard.judge()
    assert guard.fault().endswith("'31' and 8 more.")


def test_means_leave_out_what_was_not_made():
    guard = LossGuard()
    for loss in (1.0, NAN, 3.0):
        guard.start_step(0)
        guard.check({"loss": torch.tensor(loss)})
        guard.log({"loss": loss, **({"other": 2.0} if math.isnan(loss) else {})})
        assert guard.judge() != math.isnan(loss)
    assert guard.means.pop() == {"loss": 2.0}


def test_rows_of_the_tests_have_no_z_of_their_own():
    _, processor = make_sugar()
    z = processor.tokenizer("z", add_special_tokens=False)["input_ids"][-1]
    for row in [*make_rows(), chat(1)]:
        text = " ".join(part["text"] or "" for message in row["messages"] for part in message["content"])
        assert z not in processor.tokenizer(text)["input_ids"]
