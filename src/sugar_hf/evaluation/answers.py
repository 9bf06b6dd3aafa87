"""Accuracy of generated answers by exact match."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..model import SugarForConditionalGeneration, SugarGenerationPipeline, SugarProcessor
from .metrics import exact_match


class AnswerEvaluator:
    """Holds questions with one right answer each and measures models on them.

    Args:
        conversations: chat messages that end with the question.
        answers: the right answer of each.
        kinds: the kind of each question, for an accuracy by kind; none if not given.
        name: prefix of the results' names.
        batch_size: questions answered together.

    Raises:
        ValueError: if the lengths differ.
    """

    def __init__(
        self,
        conversations: Sequence[Any],
        answers: Sequence[str],
        kinds: Sequence[str] | None = None,
        name: str = "answers",
        batch_size: int = 64,
    ) -> None:
        if len(conversations) != len(answers) or (kinds is not None and len(kinds) != len(answers)):
            raise ValueError(f"{name}: {len(conversations)} conversations need as many answers (and kinds)")
        self.conversations, self.answers, self.kinds = conversations, answers, kinds
        self.name, self.batch_size = name, batch_size
        self.primary_metric = f"{name} accuracy"

    def __call__(self, model: SugarForConditionalGeneration, processor: SugarProcessor) -> dict[str, float]:
        """Measure a model.

        Returns:
            `{name} accuracy` in percent, the same for each kind, and the number of questions.
        """
        pipe = SugarGenerationPipeline(model=model, processor=processor, task="sugar-generation")
        replies = pipe(list(self.conversations), batch_size=self.batch_size, do_sample=False)
        pairs = zip(replies, self.answers, strict=True)
        hits = [exact_match(reply[0]["generated_text"], answer) for reply, answer in pairs]
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for kind, hit in zip(self.kinds or (), hits, strict=bool(self.kinds)):
            by_kind[kind].append(hit)
        results = {f"{self.name} accuracy": 100.0 * sum(hits) / len(hits)}
        results |= {f"{self.name} accuracy, {kind}": 100.0 * sum(of) / len(of) for kind, of in by_kind.items()}
        return {**results, f"{self.name} questions": len(hits)}
