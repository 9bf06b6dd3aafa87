"""Evaluators answer as the pipeline does."""

import pytest
from builders import build_tiny_llava, picture

from sugar_hf.data import Document
from sugar_hf.evaluation import Example, GenerationEvaluator
from sugar_hf.model import SugarForConditionalGeneration, SugarGenerationPipeline, SugarProcessor


def test_answers_are_those_of_the_pipeline():
    backbone, processor = build_tiny_llava(seed=0)
    model, processor = SugarForConditionalGeneration.from_backbone(backbone).eval(), SugarProcessor(processor)
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
    replies = [reply[0]["generated_text"] for reply in pipe(chats, do_sample=False, max_new_tokens=5)]
    right = [replies[0], replies[1], "never said"]
    examples = [Example(Document(str(i), chat), right[i]) for i, chat in enumerate(chats)]

    def score(records):
        return {"accuracy": 100 * sum(record.text == record.reference for record in records) / len(records)}

    evaluate = GenerationEvaluator("answers", examples, score, primary_metric="accuracy", max_new_tokens=5)
    assert evaluate(model, processor)["accuracy"] == pytest.approx(200 / 3)
