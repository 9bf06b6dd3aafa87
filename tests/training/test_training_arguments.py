"""Arguments of the trainers: defaults, the command line, and what they refuse."""

import pytest
from training_tools import make_arguments
from transformers import HfArgumentParser

from sugar_hf.structure import StructureLossConfig
from sugar_hf.training import SugarTrainingArguments


def test_wrong_values_are_refused_by_name(tmp_path, subtests):
    for options, message in [
        ({"alpha": -0.1}, "alpha=-0.1: give 0 or more"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha_warmup_ratio": 1.5}, "alpha_warmup_ratio=1.5"),
        ({"positions_per_sample": -1}, "positions_per_sample=-1"),
        ({"head_learning_rate": -1e-3}, "head_learning_rate"),
        ({"label_kernel": "gack"}, "label_kernel must be one of"),
        ({"delta": 0.0}, "delta must be a positive number"),
        ({"block_means": "0.3"}, r"block_means='?0\.3'?: give a JSON object"),
        ({"block_means": {"image-image": 0.3}}, "block_means must have exactly the keys"),
        ({"mini_batch_size": 0}, "mini_batch_size=0: give 1 or more"),
        ({"mini_batch_tokens": 0}, "mini_batch_tokens=0"),
        ({"structure_loss_scope": "local"}, "structure_loss_scope='local'"),
        ({"image_pooling": "max"}, "image_pooling='max'"),
        ({"text_pooling": "max"}, "text_pooling='max'"),
        ({"truncation": "slice"}, "without max_length"),
        ({"alpha": 0.0, "head_warmup_steps": 5}, "alpha=0 gives no gradient"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor is not supported"),
    ]:
        with (
            subtests.test(message=message),
            pytest.raises(ValueError, match=message),
        ):
            make_arguments(tmp_path, **options)


@pytest.mark.parametrize(
    ("metric", "greater"),
    [("eval_loss_structure", False), ("loss_lm", False), ("eval_loss", False), ("eval_accuracy", True)],
)
def test_a_smaller_loss_is_the_better_one(tmp_path, metric, greater):
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 2, "eval_steps": 2}
    arguments = make_arguments(tmp_path, load_best_model_at_end=True, metric_for_best_model=metric, **options)
    assert arguments.greater_is_better is greater


def test_the_command_line_reaches_the_structure_loss(tmp_path):
    means = '{"image-image": 0.1, "text-text": 0.2, "image-text": 0.3}'
    command = f"--output_dir {tmp_path} --use_cpu --objective mse --label_kernel gak --delta 0.7 --same_sample one"
    command += " --reduction paper"
    parser = HfArgumentParser(SugarTrainingArguments)
    [arguments] = parser.parse_args_into_dataclasses([*command.split(), "--block_means", means])
    expected = StructureLossConfig.paper(block_means={"image-image": 0.1, "text-text": 0.2, "image-text": 0.3})
    assert arguments.structure_loss_config() == expected


def test_every_argument_has_help_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        HfArgumentParser(SugarTrainingArguments).parse_args(["--help"])
    said = capsys.readouterr().out
    for name in ("alpha", "positions_per_sample", "head_warmup_steps", "structure_loss_scope", "split_sentences"):
        assert f"--{name}" in said


def test_alpha_is_that_of_the_objective_if_none_is_given(tmp_path):
    def alpha(**options):
        return make_arguments(tmp_path, **options).alpha

    assert alpha() == pytest.approx(20 * 0.15**2)
    assert alpha(temperature=0.3) == pytest.approx(20 * 0.3**2)
    assert (alpha(objective="infonce"), alpha(objective="mse")) == (0.3, 10.0)
    assert alpha(objective="mse", reduction="paper") == 0.1
    assert (alpha(alpha=0), alpha(objective="infonce", alpha=2.0)) == (0, 2.0)
