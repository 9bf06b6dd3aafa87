"""Every family trains: three LoRA steps with both losses, and what comes of them saves, loads and merges."""

import functools
import math
import tempfile
from pathlib import Path

import pytest
import torch
from builders import build_sugar
from peft import PeftModel, get_peft_model
from training_tools import logged, make_arguments, make_dataset
from transformers import AutoModel

from sugar_hf.data import to_sample
from sugar_hf.model import SugarForConditionalGeneration
from sugar_hf.training import SugarTrainer, sugar_lora_config

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks
    pytest.mark.filterwarnings("ignore:With this model, the embedding of a slice end"),  # of two families
]


@pytest.fixture(scope="module")
def root():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@functools.cache
def train(family, root):
    """Train adapters of a saved base for three steps. Returns the trainer, the processor and the weights before."""
    folder = root / family
    model, processor = build_sugar(family)
    model.save_pretrained(folder / "base")
    base = SugarForConditionalGeneration.from_pretrained(folder / "base")
    torch.manual_seed(0)
    adapted = get_peft_model(base, sugar_lora_config(base, r=4, lora_alpha=8))
    before = {name: parameter.detach().clone() for name, parameter in adapted.named_parameters()}
    trainer = SugarTrainer(
        adapted,
        make_arguments(folder, max_steps=3, learning_rate=1e-2, gradient_checkpointing=True),
        train_dataset=make_dataset(processor),
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    return trainer, processor, before


@torch.no_grad()
def outputs(model, trainer, processor):
    found = model.eval()(**processor([to_sample(row) for row in trainer.train_dataset.select(range(3))]))
    return found.logits, found.retrieval_embeds


def test_three_steps_with_both_losses(family, root):
    trainer, _, before = train(family, root)
    for name in ("loss", "loss_lm", "loss_structure"):
        assert len(logged(trainer, name)) == 3
        assert all(math.isfinite(loss) and loss > 0 for loss in logged(trainer, name))
    after = dict(trainer.model.named_parameters())
    moved = {name for name, parameter in after.items() if not torch.equal(before[name], parameter)}
    assert moved == {name for name, parameter in after.items() if parameter.requires_grad}
    lora = [name for name in moved if "lora_" in name]
    assert len(lora) == 2 * 2 * 2  # layers, projections, A and B: of the language model alone
    assert not [name for name in lora if "vis" in name]


def test_adapters_load_and_merge(family, root, tmp_path):
    trainer, processor, _ = train(family, root)
    after = outputs(trainer.model, trainer, processor)
    base = SugarForConditionalGeneration.from_pretrained(root / family / "base")
    for loaded in (
        AutoModel.from_pretrained(root / family / "adapter"),
        SugarForConditionalGeneration.from_pretrained(root / family / "adapter"),
        PeftModel.from_pretrained(base, root / family / "adapter"),
    ):
        for ours, theirs in zip(outputs(loaded, trainer, processor), after, strict=True):
            assert torch.equal(ours, theirs)
    merged = loaded.merge_and_unload()
    in_memory = outputs(merged, trainer, processor)
    for ours, theirs in zip(in_memory, after, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path)
    for ours, theirs in zip(outputs(AutoModel.from_pretrained(tmp_path), trainer, processor), in_memory, strict=True):
        assert torch.equal(ours, theirs)
