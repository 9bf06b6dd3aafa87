"""Gradients: checkpointing, LoRA, and a tiny run in which what should move moves."""

import pytest
import torch
from builders import build_tiny_llava, picture
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor

SAMPLES = [["A cat.", picture(1), "A dog."], ["The sun.", picture(2)], "Two balls."]


def loss_of(model, inputs):
    """L_g plus a stand-in for L_d, from one forward pass."""
    output = model(**inputs)
    embeds = output.retrieval_embeds[output.retrieval_mask]
    return output.loss + (embeds @ embeds.T - torch.eye(len(embeds))).square().mean()


def test_one_forward_gives_both_gradients(fresh_llava):
    model, processor = fresh_llava
    loss_of(model, processor(SAMPLES, return_labels=True)).backward()
    for part in (
        model.retrieval_head,
        model.vlm.lm_head,
        model.vlm.model.language_model,
        model.vlm.model.vision_tower,
    ):
        assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in part.parameters())


def test_tiny_run_moves_the_trained_weights_only(fresh_llava):
    model, processor = fresh_llava
    model.vlm.model.vision_tower.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    inputs = processor(SAMPLES, return_labels=True)
    losses = []
    for _ in range(12):
        loss = loss_of(model.train(), inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.fixture
def adapted(tmp_path):
    vlm, processor = build_tiny_llava()
    torch.manual_seed(0)
    model = SugarForConditionalGeneration.from_backbone(vlm, retrieval_dim=16)
    model.save_pretrained(tmp_path / "base")
    base = SugarForConditionalGeneration.from_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["retrieval_head"])
    return get_peft_model(base, config), SugarProcessor(processor)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapter_on_a_broken_base_is_refused(adapted, tmp_path):
    model, _ = adapted
    model.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    dropped = next(key for key in weights if key.endswith("down_proj.weight") and "layers.0" in key)
    del weights[dropped]
    save_file(weights, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    for loader in (AutoModel, SugarForConditionalGeneration):
        with pytest.raises(ValueError, match=r"1 missing: .*down_proj.weight"):
            loader.from_pretrained(tmp_path / "adapter")
