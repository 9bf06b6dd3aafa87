import re
import runpy
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoModel

import sugar_hf
from sugar_hf import SugarEmbedder, picturebook
from sugar_hf.evaluation.baselines import load_parts

ROOT = Path(__file__).parents[1]


def test_everything_public_is_there():
    for name in sugar_hf.__all__:
        assert getattr(sugar_hf, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'SugarRush'"):
        _ = sugar_hf.SugarRush


def test_importing_registers_the_model_and_does_not_load_the_trainers():
    code = """if True:
        import sys, sugar_hf
        from transformers.models.auto.modeling_auto import MODEL_MAPPING
        assert sugar_hf.SugarConfig in MODEL_MAPPING
        trainers = ("trl", "sugar_hf.training", "sugar_cli", "sugar_lab")
        print([name for name in sys.modules if name.startswith(trainers)])
        assert all(getattr(sugar_hf, name) for name in sugar_hf.__all__)"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.fixture
def no_gpu(monkeypatch):
    """As torch's usual build is on a machine without a GPU: made for one, which is not there."""

    def current_accelerator(check_available=False):
        return None if check_available else torch.device("cuda")

    monkeypatch.setattr(torch.accelerator, "current_accelerator", current_accelerator)


def test_a_torch_made_for_gpus_works_on_a_machine_without_one(no_gpu):
    assert SugarEmbedder.from_pretrained(picturebook.checkpoint("mini-sugar")).model.device.type == "cpu"
    model, *_ = load_parts(AutoModel, picturebook.checkpoint("mini-clip"), None, None, "")
    assert model.device.type == "cpu"


def test_nothing_takes_an_accelerator_for_given():
    asked = [
        (file.relative_to(ROOT).as_posix(), call)
        for folder in ("src", "examples", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
        for call in re.findall(r"current_accelerator\(.*?\)", file.read_text(encoding="utf-8"))
    ]
    assert asked
    assert {call for _, call in asked} == {"current_accelerator(check_available=True)"}


def test_the_lower_bounds_are_read_off_the_project():
    lower_bounds = runpy.run_path(str(ROOT / ".ci" / "lowest.py"))["lower_bounds"]
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = dict(line.split("==") for line in lower_bounds(text))
    assert found["transformers"] == "5.19"
    assert found["ray"] == "2.50"  # of an extra, and with an extra of its own
    assert "sugar-hf" not in found
    with pytest.raises(SystemExit, match="no lower bound: numpy<3"):
        lower_bounds(text.replace('"numpy>=2.0,<3"', '"numpy<3"'))


def test_every_requirement_has_a_pin_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if "==" in line:
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    for line in [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]:
        requirement = Requirement(line)
        if requirement.name != "sugar-hf":
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), line
            assert {part.operator for part in requirement.specifier} == {">=", "<"}, line
