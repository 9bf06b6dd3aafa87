"""Evaluators hold their data and are called on a model."""

import numpy as np
import pytest
import torch
from builders import build_tiny_llava, picture

from sugar_hf.evaluation import AnswerEvaluator, RetrievalEvaluator, recall_at_k, target_ranks
from sugar_hf.model import (
    SugarForConditionalGeneration,
    SugarGenerationPipeline,
    SugarProcessor,
    SugarRetrievalPipeline,
)


@pytest.fixture(scope="module")
def tiny():
    backbone, processor = build_tiny_llava(seed=0)
    backbone.generation_config.max_new_tokens = 5
    torch.manual_seed(0)
    return SugarForConditionalGeneration.from_backbone(backbone).eval(), SugarProcessor(processor)


def test_retrieval_is_that_of_the_pipeline(tiny):
    model, processor = tiny
    queries = [[f"thing {i}", picture(i)] for i in range(6)]
    candidates = [[picture(i)] for i in range(6)]
    results = RetrievalEvaluator(queries, candidates, range(6), "next", ks=(1, 3), batch_size=4)(model, processor)
    pipe = SugarRetrievalPipeline(model=model, processor=processor, task="sugar-retrieval")
    scores = pipe.encode(queries) @ pipe.encode(candidates).T
    expected = recall_at_k(target_ranks(scores, [[i] for i in range(6)]), (1, 3))
    assert results == {
        "next recall@1": expected["recall@1"],
        "next recall@3": expected["recall@3"],
        "next queries": 6,
        "next candidates": 6,
    }


def test_a_candidate_finds_itself(tiny):
    samples = [[picture(i)] for i in range(4)]
    evaluator = RetrievalEvaluator(samples, samples, [0, 1, 2, 3])
    assert evaluator(*tiny)[evaluator.primary_metric] == 100.0


def test_excluded_targets_are_missed(tiny):
    samples = [[picture(i)] for i in range(4)]
    evaluator = RetrievalEvaluator(samples, samples, [0, 1, 2, 3], excluded=[[i] for i in range(4)], ks=(4,))
    assert evaluator(*tiny)["retrieval recall@4"] == 0.0


def test_answers_are_those_of_the_pipeline(tiny):
    model, processor = tiny
    chats = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture(i)}, {"type": "text", "text": "what is it?"}],
            }
        ]
        for i in range(3)
    ]
    pipe = SugarGenerationPipeline(model=model, processor=processor, task="sugar-generation")
    replies = [reply[0]["generated_text"] for reply in pipe(chats, do_sample=False)]
    right = [replies[0], replies[1], "never said"]
    results = AnswerEvaluator(chats, right, ["a", "b", "b"])(model, processor)
    assert results["answers accuracy"] == pytest.approx(200 / 3)
    assert (results["answers accuracy, a"], results["answers accuracy, b"]) == (100.0, 50.0)
    assert results["answers questions"] == 3


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 queries, but 1 targets"):
        RetrievalEvaluator(["a", "b"], ["a"], [0])
    with pytest.raises(ValueError, match="1 conversations need as many answers"):
        AnswerEvaluator(["a"], [])


def test_target_of_another_type(tiny):
    evaluator = RetrievalEvaluator([["a"]], [["a"], ["b"]], np.array([[0, 1]]))
    assert evaluator.targets == [[0, 1]]
