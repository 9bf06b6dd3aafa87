"""What answers questions: Sugar, any vision-language model, or what a user brings."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from ..model import SugarForConditionalGeneration, SugarGenerationPipeline, SugarProcessor
from ..model.adapters import is_model
from ..retrieval.embedder import ModelFingerprint


@runtime_checkable
class Generator(Protocol):
    """Answers prompts."""

    name: str

    def generate(self, samples: Sequence[Any], max_new_tokens: int) -> list[str]:
        """Answer a batch greedily; a sample is a list of texts and images in reading order, or a chat.

        Raises:
            ValueError: One of them cannot be read.
        """

    def settings(self) -> dict[str, Any]:
        """What the answers depend on; JSON values."""


class SugarGenerator:
    """Answers with a Sugar model, or with any image-text-to-text model of transformers, by `generate`.

    The prompt becomes the user's turn in the model's chat template, if it has one. Decoding is greedy.

    Args:
        model: A Sugar model, a `peft.PeftModel` around one, or a plain vision-language model, which is wrapped, not
            copied; its answers stay what they are.
        processor: Its processor.

    Raises:
        ValueError: The processor is missing.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        if processor is None:
            raise ValueError("processor is missing: pass the model's.")
        self.name = str(model.config.name_or_path or model.config.model_type)
        self.is_sugar = model.config.model_type == "sugar"
        if not self.is_sugar:
            model = SugarForConditionalGeneration.from_backbone(model)
        if not isinstance(processor, SugarProcessor):
            processor = SugarProcessor(processor)
        self.pipe = SugarGenerationPipeline(model=model, processor=processor, task="sugar-generation")

    def generate(self, samples: Sequence[Any], max_new_tokens: int) -> list[str]:
        """See [`Generator`]."""
        prompts = [{"query": sample} for sample in samples]
        replies = self.pipe(
            prompts, batch_size=len(prompts), do_sample=False, num_beams=1, max_new_tokens=max_new_tokens
        )
        return [reply[0]["generated_text"] for reply in replies]

    def settings(self) -> dict[str, Any]:
        """See [`Generator`]."""
        parts = ModelFingerprint.of(self.pipe.model, self.pipe.processor).parts
        weights = {key: value for key, value in parts["weights"].items() if key != "retrieval head"}
        digest = hashlib.sha256(json.dumps([weights, parts["processor"]], sort_keys=True).encode()).hexdigest()[:16]
        return {"model": self.name, "digest": digest, "dtype": str(self.pipe.model.dtype).removeprefix("torch.")}


def as_generator(model: Any, processor: Any = None) -> Generator:
    """Take a generator as it is, and put a model with its processor into one.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(model, Generator):
        return model
    if is_model(model):
        return SugarGenerator(model, processor)
    raise ValueError(f"{type(model).__name__} generates nothing: pass a model with its processor, or a Generator.")
