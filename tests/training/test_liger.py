"""`use_liger_kernel=True` reaches the backbone; there are no kernels for a model of type `sugar`."""

import sys
import types
import warnings

import pytest
import transformers.trainer
from training_tools import make_sugar, make_trainer

from sugar_hf.training import trainer


@pytest.fixture
def patched(monkeypatch):
    """Liger that knows llava, without its kernels; what it is asked to patch, in order."""
    kernels = types.ModuleType("liger_kernel.transformers.monkey_patch")
    kernels.MODEL_TYPE_TO_APPLY_LIGER_FN = {"llava": None}
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.monkey_patch", kernels)
    asked = []
    for module in (transformers.trainer, trainer):
        monkeypatch.setattr(module, "apply_liger_kernel", lambda model, config: asked.append((model, config)))
    return kernels, asked


def test_the_trainer_patches_the_backbone(patched, tmp_path):
    _, asked = patched
    model, _ = make_sugar()
    make_trainer(tmp_path, model=model, use_liger_kernel=True, liger_kernel_config={"rope": True})
    assert asked[-1][1] == {"rope": True}
    assert asked[-1][0] is model.vlm


def test_a_backbone_without_kernels_is_told(patched):
    kernels, asked = patched
    model, _ = make_sugar()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer._apply_liger(model, None)
    kernels.MODEL_TYPE_TO_APPLY_LIGER_FN.clear()
    with pytest.warns(UserWarning, match="no kernels for a backbone of type llava"):
        trainer._apply_liger(model, None)
    assert len(asked) == 1
