"""One model in many threads: nobody gets another's states, and a switch is the thread's own."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from builders import build_sugar, picture
from peft import get_peft_model

from sugar_hf.model import adapter_off, adapter_on
from sugar_hf.model.backbone_sugar import evaluation_mode
from sugar_hf.training import sugar_lora_config

THREADS = 8
SAMPLES = [
    ["A cat.", picture(1)],
    ["Two dogs run.", picture(2), "They bark."],
    ["A tree."],
    [picture(3), "It is red."],
]


@pytest.fixture(autouse=True)
def _many_switches():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(work, times=6):
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS * times)))


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_every_thread_gets_its_own_states(family):
    model, processor = build_sugar(family)
    batches = [processor([sample], return_labels=True) for sample in SAMPLES]
    prompts = [processor([sample], add_generation_prompt=True) for sample in SAMPLES]
    with torch.no_grad():
        expected = [
            (model(**batch), model.generate(**p, max_new_tokens=4)) for batch, p in zip(batches, prompts, strict=True)
        ]

    @torch.no_grad()
    def work(i):
        k = i % len(batches)
        if i % 3 == 2:
            return torch.equal(model.generate(**prompts[k], max_new_tokens=4), expected[k][1])
        output = model(**batches[k], skip_logits=i % 3 == 1)
        return torch.allclose(output.retrieval_embeds, expected[k][0].retrieval_embeds, atol=1e-5) and torch.allclose(
            output.loss, expected[k][0].loss, atol=1e-5
        )

    assert all(in_threads(work))


@pytest.fixture(scope="module")
def adapted():
    model, processor = build_sugar("llava")
    model = get_peft_model(model, sugar_lora_config(model, r=2)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    return model, processor(SAMPLES[:1])


@torch.no_grad()
def test_an_adapter_is_off_in_the_thread_that_says_so(adapted):
    model, inputs = adapted
    on = model(**inputs).retrieval_embeds
    with adapter_off(model):
        off = model(**inputs).retrieval_embeds
    assert not torch.allclose(on, off, atol=1e-3)

    @torch.no_grad()
    def work(i):
        if i % 2:
            return torch.allclose(model(**inputs).retrieval_embeds, on, atol=1e-5)
        with adapter_off(model):
            first = torch.allclose(model(**inputs).retrieval_embeds, off, atol=1e-5)
            with adapter_on(model):
                second = torch.allclose(model(**inputs).retrieval_embeds, on, atol=1e-5)
            return first and second and torch.allclose(model(**inputs).retrieval_embeds, off, atol=1e-5)

    assert all(in_threads(work))
    assert torch.equal(model(**inputs).retrieval_embeds, on)


@torch.no_grad()
def test_a_switch_may_hold_everywhere(adapted):
    model, inputs = adapted
    on = model(**inputs).retrieval_embeds

    def elsewhere():
        with ThreadPoolExecutor(1) as pool, torch.no_grad():
            return pool.submit(lambda: model(**inputs).retrieval_embeds).result()

    adapter_off(model)
    try:
        assert torch.allclose(elsewhere(), on)
        assert not torch.allclose(model(**inputs).retrieval_embeds, on, atol=1e-3)
        with adapter_off(model, everywhere=True):
            assert not torch.allclose(elsewhere(), on, atol=1e-3)
        assert torch.allclose(elsewhere(), on)
    finally:
        adapter_on(model)
    assert torch.equal(model(**inputs).retrieval_embeds, on)


def test_training_comes_back_with_the_last_block():
    model, _ = build_sugar("llava")
    model.train()
    model.vlm.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with evaluation_mode(model):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    with evaluation_mode(model):
        thread.start()
        inside.wait(10)
    assert not any(module.training for module in model.modules())
    leave.set()
    thread.join()
    assert [module.training for module in model.modules()] == modes
