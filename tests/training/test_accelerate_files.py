"""The files of examples/accelerate: Accelerate reads them, and FSDP2 shards Sugar models as one of them says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import prepare_multi_gpu_env
from builders import BUILDERS

from sugar_hf.model import SugarForConditionalGeneration

FOLDER = Path(__file__).parents[2] / "examples" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
WORKER = Path(__file__).with_name("sharded_worker.py")


def launched(file, *options):
    """The options of `accelerate launch` with a configuration, as the command itself works them out."""
    arguments = launch_command_parser().parse_args(["--config_file", str(file), *options, "train_sugar.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    return arguments


def test_the_files_are_there():
    assert [file.name for file in FILES] == ["ddp.yaml", "fsdp2.yaml", "zero2.yaml", "zero3.yaml"]


def test_accelerate_knows_every_key(subtests):
    for file in FILES:
        with subtests.test(file=str(file)):
            config = load_config_from_file(str(file))  # an unknown key at the top is its error
            assert (config.num_machines, config.mixed_precision) == (1, "bf16")
            known = vars(launch_command_parser().parse_args(["train_sugar.py"]))
            nested = {**config.fsdp_config, **config.deepspeed_config}
            assert (
                nested.keys() <= known.keys()
            )  # Accelerate takes any there, and does nothing with what it does not know
            text = file.read_text()
            assert f"accelerate launch --config_file examples/accelerate/{file.name} " in text
            assert "examples/train_sugar.py examples/recipes/llava15_7b.yaml" in text


def test_an_unknown_key_would_be_found(tmp_path):
    settings = yaml.safe_load((FOLDER / "ddp.yaml").read_text())
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**settings, "gpus": 8}))
    with pytest.raises(ValueError, match="gpus"):
        load_config_from_file(str(tmp_path / "a.yaml"))


def test_the_launcher_takes_them(subtests):
    for name, kind in [
        ("ddp", "multi_gpu"),
        ("fsdp2", "use_fsdp"),
        ("zero2", "use_deepspeed"),
        ("zero3", "use_deepspeed"),
    ]:
        with subtests.test(name=name, kind=kind):
            arguments = launched(FOLDER / f"{name}.yaml")
            assert {key for key in ("multi_gpu", "use_fsdp", "use_deepspeed") if vars(arguments)[key]} == {kind}
            assert arguments.num_processes == 8
            if kind == "use_deepspeed":
                assert (arguments.zero_stage, arguments.gradient_accumulation_steps) == (int(name[-1]), "auto")


@pytest.fixture
def environment():
    """What the launcher puts into the environment of each process under fsdp2.yaml."""
    arguments = launched(FOLDER / "fsdp2.yaml", "--num_processes", "2", "--main_process_port", "0")
    return {key: value for key, value in prepare_multi_gpu_env(arguments).items() if key.startswith("FSDP_")}


@pytest.mark.parametrize("family", BUILDERS)
def test_layers_are_found_by_the_classes_that_the_model_names(family, environment, monkeypatch):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    model = SugarForConditionalGeneration.from_backbone(BUILDERS[family]()[0])
    assert model._no_split_modules <= {type(module).__name__ for module in model.modules()}
    plugin = FullyShardedDataParallelPlugin()
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    plugin.set_auto_wrap_policy(model)
    is_group = fsdp2_prepare_auto_wrap_policy(plugin, model)
    groups = {name for name, module in model.named_modules() if is_group(module)}
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    assert {f"{decoder}.layers.0", f"{decoder}.layers.1"} <= groups
    assert not [name for name in groups if "retrieval_head" in name]


@pytest.mark.slow
def test_sharded_models_compute_as_whole_ones_do(environment):
    settings = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(WORKER)],
        env=settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert [result["family"] for result in results] == list(BUILDERS)
    for result in results:
        assert result["version"] == 2
        assert result["sharded"] == pytest.approx(result["alone"], rel=1e-6)
        assert result["difference"] < 1e-5
        assert len(result["groups"]) >= 5  # the whole, and two layers each of the vision tower and the language model
