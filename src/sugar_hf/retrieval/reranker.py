"""Rerank hits by the generator: the probability that it calls a document relevant to the query."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.documents import as_document
from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.backbone_sugar import evaluation_mode
from ..model.pipeline_sugar import generation_options
from ..model.samples_sugar import Sample
from .embedder import SugarEmbedder, checked_size
from .index import Hit
from .prefix_cache import CachedPrefix, Features, encode_prefix, end_of_last_slice, generate_after, matching
from .rag import Parts, Question, RagTemplate, as_prompt, check_reuse, fit, prepared

__all__ = ["RELEVANCE", "SugarReranker"]

#: The question that is asked of each document.
RELEVANCE = RagTemplate(
    "{question} Here is a document: {documents} Is the document relevant to what comes before it? Answer yes or no."
)
ANSWERS = (("yes", "Yes"), ("no", "No"))


class SugarReranker:
    """Rerank with the generator of a Sugar model, which sees the query and one document at a time.

    ```python
    reranker = SugarReranker(embedder.model, embedder.processor)
    index.search(query, top_k=5, reranker=reranker, rerank=20)
    ```

    A score is the probability of "yes" against "no" as the first token of the answer to `template`. Keys and values of
    the query are computed once for all documents where that is exact (`check_reuse`).

    Args:
        model: A Sugar model; left as it is.
        processor: Its processor.
        template: The words of the prompt. Reuse needs one that begins with `{question}`.
        answers: Spellings of "yes", and of "no"; the first token of each counts.
        max_document_tokens: The most tokens of a document, images included. Of a longer one the first slices that fit
            are judged, and a warning names it. `None` for no limit.
        batch_size: Documents in one forward pass, where nothing is reused.
        reuse: Compute the query once.

    Raises:
        ValueError: An option has a value that it cannot have, or the tokenizer cannot tell the answers apart.
    """

    def __init__(
        self,
        model: SugarForConditionalGeneration,
        processor: SugarProcessor,
        *,
        template: RagTemplate | str = RELEVANCE,
        answers: tuple[Sequence[str], Sequence[str]] = ANSWERS,
        max_document_tokens: int | None = 2048,
        batch_size: int = 8,
        reuse: bool = True,
    ) -> None:
        if max_document_tokens is not None and max_document_tokens < 1:
            raise ValueError(f"max_document_tokens={max_document_tokens}: give 1 or more, or None.")
        self.model = model
        self.processor = processor
        self.template = RagTemplate(template) if isinstance(template, str) else template
        self.max_document_tokens = max_document_tokens
        self.batch_size = checked_size(batch_size)
        self._answer_ids = _first_tokens(processor, answers)
        self._wants_reuse = reuse and self.template.is_question_first
        self._is_exact: bool | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "SugarReranker":
        """Load model and processor; `device` and `dtype` are those of `SugarEmbedder.from_pretrained`."""
        loaded = SugarEmbedder.from_pretrained(name_or_path, device=device, dtype=dtype)
        return cls(loaded.model, loaded.processor, **options)

    @property
    def reuses(self) -> bool:
        """Whether the query is computed once for all documents."""
        if self._wants_reuse and self._is_exact is None:
            self._is_exact = check_reuse(self.model, self.processor).is_exact
        return self._wants_reuse and bool(self._is_exact)

    def score(self, query: Sample, documents: Sequence[Any]) -> np.ndarray:
        """Score documents for a query.

        Args:
            query: A sample of any form, or a chat that ends with the user's turn.
            documents: Anything that `as_document` takes.

        Returns:
            (len(documents),) float32 probabilities of "yes" against "no".

        Raises:
            ValueError: The query or a document cannot be read, or not even the first slice of one fits.
        """
        found = [as_document(document, number) for number, document in enumerate(documents)]
        hits = [Hit(document.id, 0.0, -1, document) for document in found]
        return self._score(Question.read(query, "query"), hits)

    def rerank(self, query: Sample, hits: Sequence[Hit], top_k: int | None = None) -> list[Hit]:
        """Order hits by their scores, best first; equal ones stay in the order in which they were found.

        Args:
            query: See [`score`].
            hits: What a search found.
            top_k: How many are kept; all when `None`.

        Returns:
            The hits with the scores of [`score`] in the place of their cosines.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: give 1 or more.")
        scores = self._score(Question.read(query, "query"), hits)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [replace(hits[place], score=float(scores[place])) for place in order.tolist()]

    @torch.no_grad()
    def _score(self, query: Question, hits: Sequence[Hit]) -> np.ndarray:
        if not hits:
            return np.zeros(0, np.float32)
        prompts = [self._prompt(query, self._fitting(hit)) for hit in hits]
        with evaluation_mode(self.model):
            if self.reuses and len(hits) > 1:
                return self._score_reusing(query, prompts)
            steps = range(0, len(prompts), self.batch_size)
            scores = [self._judge(self._prepared(prompts[start : start + self.batch_size])) for start in steps]
        return np.concatenate(scores)

    def _score_reusing(self, query: Question, prompts: Sequence[Any]) -> np.ndarray:
        start = self._prepared([self._prompt(query, None)])
        prefix, _ = encode_prefix(self.model, start, end_of_last_slice(start))
        scores = []
        for prompt in prompts:
            features = self._prepared([prompt])
            scores.append(self._judge(features, matching(prefix.copied(), features, self.model.config.image_token_id)))
        return np.concatenate(scores)

    def _judge(self, features: Features, prefix: CachedPrefix | None = None) -> np.ndarray:
        """Return the probabilities of yes of B prompts, (B,) float32."""
        options = generation_options(self.model, self.processor, {"max_new_tokens": 1})
        options |= {"do_sample": False, "num_beams": 1, "output_logits": True, "return_dict_in_generate": True}
        if prefix is None:
            output = self.model.generate(**features, **options)
        else:
            output = generate_after(self.model, prefix, features, **options)
        logits: Tensor = output.logits[0].float()
        yes, no = (logits[:, ids].logsumexp(dim=1) for ids in self._answer_ids)
        return (yes - no).sigmoid().cpu().numpy()

    def _fitting(self, hit: Hit) -> Parts:
        """Return the parts of a document that are judged."""
        [noted], documents = fit([hit], self.processor, self.max_document_tokens)
        if not documents:
            raise ValueError(
                f"document {hit.id!r}: its first slice has more than max_document_tokens={self.max_document_tokens}. "
                "Raise that number, or split the document."
            )
        if noted.used < noted.slices:
            warnings.warn(
                f"document {hit.id!r}: only its first {noted.used} of {noted.slices} slices are judged, as more do "
                f"not fit into max_document_tokens={self.max_document_tokens}.",
                stacklevel=5,
            )
        return documents[0]

    def _prompt(self, query: Question, document: Parts | None) -> Any:
        parts = query.parts if document is None else self.template.fill(query.parts, [document])
        return as_prompt(self.processor, parts, [dict(message) for message in query.history])

    def _prepared(self, prompts: Sequence[Any]) -> Features:
        return prepared(self.model, self.processor, list(prompts))


def _first_tokens(
    processor: SugarProcessor, answers: tuple[Sequence[str], Sequence[str]]
) -> tuple[list[int], list[int]]:
    """Find the tokens with which answers begin, with a space before them and without; those of both do not count."""

    def begin(words: Sequence[str]) -> set[int]:
        texts = [form for word in words for form in (word, f" {word}")]
        ids = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {row[0] for row in ids if row}

    yes, no = map(begin, answers)
    if not yes - no or not no - yes:
        raise ValueError(
            f"answers={answers!r}: with this tokenizer they do not begin with tokens of their own. Give other words."
        )
    return sorted(yes - no), sorted(no - yes)
