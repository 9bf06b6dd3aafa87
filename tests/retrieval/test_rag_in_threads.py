"""Pipelines and RAG give in threads what they give alone: no call sets anything that another one sees."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from builders import build_sugar, cached_sugar, picture

from sugar_hf.model import SugarGenerationPipeline, SugarRetrievalPipeline
from sugar_hf.model.backbone_sugar import evaluation_mode
from sugar_hf.retrieval import QUESTION_FIRST, SugarEmbedder, SugarRag
from sugar_hf.retrieval.prefix_cache import CachedPrefix, PromptCache

DOCUMENTS = ["a cat", [picture(5), "a boat"], "the sun", [picture(6)], "two balls"]
QUESTIONS = [
    "What?",
    [picture(1, 40, 30), "What is it?"],
    [picture(2, 64, 20), picture(3), "And?"],
    "a literal <image>",
]
NEW = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.fixture(autouse=True)
def hurried():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def in_threads(call, items, rounds=4):
    """What a call gives for each item, alone, and in six threads."""
    alone = [call(item) for item in items]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(call, items * rounds))
    return alone * rounds, found


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_answers(family):
    model, processor = cached_sugar(family)
    for options in ({"template": QUESTION_FIRST}, {"cached_prompts": 2}):
        rag = SugarRag(model, processor, DOCUMENTS, top_k=2, **options)
        alone, found = in_threads(
            lambda question, rag=rag: [rag.answer(question, **NEW).text, [hit.id for hit in rag.find(question)]],
            QUESTIONS,
            rounds=2,
        )
        assert found == alone


def test_pipelines():
    model, processor = cached_sugar("qwen2_vl")
    generate = SugarGenerationPipeline(model=model, processor=processor)
    retrieve = SugarRetrievalPipeline(model=model, processor=processor)

    def call(question):
        answer = generate({"query": question}, **NEW)[0]["generated_text"]
        return answer, [hit["index"] for hit in retrieve({"query": question}, DOCUMENTS[:2])]

    alone, found = in_threads(call, QUESTIONS, rounds=2)
    assert found == alone


def test_evaluation_mode_ends_with_the_last_who_needs_it():
    model, _ = build_sugar("llava")
    model.train()
    frozen = model.vlm.get_input_embeddings().eval()
    one, other = evaluation_mode(model), evaluation_mode(model)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert not any(module.training for module in model.modules())
    other.__exit__(None, None, None)
    assert model.training
    assert not frozen.training


def test_embedding_in_threads_beside_training():
    model, processor = build_sugar("llava")
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda layer, _, output: output * 2 if layer.training else output)
    embedder = SugarEmbedder(model.train(), processor)
    alone, found = in_threads(lambda text: embedder.encode([text], show_progress=False), ["a cat", "a dog"], 12)
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert model.training


def test_what_is_kept_of_prompts_is_kept_in_threads():
    model, _ = cached_sugar("llava")
    cache = PromptCache(model, 3)

    class Keys:
        layers = ()

        def __deepcopy__(self, memo):
            return self

    def prompt(number):
        return {"input_ids": torch.tensor([[number, 2, 3, 4]])}

    def work(number):
        cache.put(CachedPrefix({"input_ids": prompt(number)["input_ids"][:, :3]}, Keys()))
        found = cache.find(prompt(number))
        return found is None or int(found.features["input_ids"][0, 0]) == number

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, list(range(10, 16)) * 100))
    assert len(cache) == 3
