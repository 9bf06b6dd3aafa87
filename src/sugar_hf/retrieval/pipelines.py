"""Pipelines `sugar-rag` and `sugar-chat`."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..model import RetrievalIndex, register_pipelines
from ..model.pipeline_sugar import DEFAULT_BATCH_SIZE, SugarPipeline, split_inputs
from .chat import SugarChat
from .index import SugarIndex
from .rag import RagAnswer, SugarRag

_RAG_OPTIONS = (
    "template",
    "top_k",
    "min_score",
    "mode",
    "prompt",
    "max_context_tokens",
    "reuse",
    "query_form",
    "cached_prompts",
    "reranker",
    "rerank",
)
_CHAT_OPTIONS = (*_RAG_OPTIONS, "router", "query")
Index = SugarIndex | RetrievalIndex | str | Path | Iterable[Any]


class _IndexPipeline(SugarPipeline):
    """What both pipelines share: an index, which they are made with."""

    _options: tuple[str, ...]

    def __init__(self, *args: Any, index: Index | None = None, **kwargs: Any) -> None:
        if index is None:
            raise ValueError("index is missing: pass index=, a SugarIndex, its folder, or a list of documents.")
        options = {name: kwargs.pop(name) for name in self._options if name in kwargs}
        super().__init__(*args, **kwargs)
        self._open(index, options)

    @abstractmethod
    def _open(self, index: Index, options: dict[str, Any]) -> None:
        """Make what the pipeline asks."""

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        return {}, kwargs, {}


class SugarRagPipeline(_IndexPipeline):
    """Answer questions with the documents that are found for them.

    ```python
    ask = pipeline("sugar-rag", model="sugar", index="facts.index")
    ask({"query": [photo, "When was this built?"]})
    # {"answer": "In 1889.", "documents": [{"id": "17", "score": 0.71, "slice": -1, "used": 2, ...}], "note": None}
    ```

    Made with the options of [`SugarRag`], `index` first of all.
    """

    _options = _RAG_OPTIONS

    def _open(self, index: Index, options: dict[str, Any]) -> None:
        self.rag = SugarRag(self.model, self.processor, index, **options)

    def __call__(
        self,
        questions: Any,
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        mode: str | None = None,
        where: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Answer.

        Args:
            questions: One question (str, `{"query": interleaved list}`) or chat that ends with the user's turn, or a
                list of those, interleaved questions as lists.
            top_k: How many documents are looked for; the pipeline's when `None`.
            min_score: Leave out documents below this cosine; the pipeline's when `None`.
            mode: `"vector"`, `"text"` or `"hybrid"`; the pipeline's when `None`.
            where: A filter on metadata.
            batch_size: Questions in one call of `generate`; one after the other when 1, which is the default for one
                question and where keys and values are reused; else 8.
            **generate_kwargs: Passed to `generate` (`max_new_tokens`, `streamer`, ...).

        Returns:
            For one question `{"answer", "documents", "note", "prompt_tokens", "reused_tokens"}`, each document with
            `id`, `score`, `slice` (where it matched), `used` (slices in the prompt), `metadata` and `document`; for a
            list of questions a list of those.

        Raises:
            ValueError: A question cannot be read.
        """
        samples, is_single = split_inputs(questions)
        search = {"top_k": top_k, "min_score": min_score, "mode": mode, "where": where}
        options = {**search, **self._forward_params, **generate_kwargs}
        step = batch_size or self._batch_size or (1 if is_single or self.rag.reuses else DEFAULT_BATCH_SIZE)
        answers: list[dict[str, Any]] = []
        for start in range(0, len(samples), step):
            inputs = {"questions": samples[start : start + step], "first": start}
            answers += self.postprocess(self.forward(inputs, **options))
        return answers[0] if is_single else answers

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        questions, first = model_inputs["questions"], model_inputs["first"]
        names = [f"question {first + i}" for i in range(len(questions))]
        asked = [{"query": question} for question in questions]
        return {"answers": self.rag.answer(asked, batch_size=len(asked), names=names, **options)}

    def postprocess(self, model_outputs: dict[str, list[RagAnswer]]) -> list[dict[str, Any]]:
        """Turn answers into dicts."""
        made = []
        for answer in model_outputs["answers"]:
            values = answer.to_dict()
            for entry, hit in zip(values["documents"], answer.hits, strict=True):
                entry["document"] = hit.document.load()
            made.append(values)
        return made


class SugarChatPipeline(_IndexPipeline):
    """Go on with conversations whose turns retrieve or generate.

    ```python
    chat = pipeline("sugar-chat", model="sugar", index="photos.index")
    talk = chat([{"role": "user", "content": "Show me a boat."}])[0]["generated_text"]
    talk = chat([*talk, {"role": "user", "content": "What colour is it?"}])[0]["generated_text"]
    ```

    Made with the options of [`SugarChat`], `index` first of all.
    """

    _options = _CHAT_OPTIONS

    def _open(self, index: Index, options: dict[str, Any]) -> None:
        self.chat = SugarChat(self.model, self.processor, index, **options)

    def __call__(
        self,
        chats: Any,
        *,
        top_k: int | None = None,
        where: Mapping[str, Any] | None = None,
        **generate_kwargs: Any,
    ) -> Any:
        """Reply.

        Args:
            chats: One chat that ends with the user's turn, or a list of chats.
            top_k: How many documents a turn retrieves; the pipeline's when `None`.
            where: A filter on metadata.
            **generate_kwargs: Passed to `generate`.

        Returns:
            For one chat `[{"generated_text": the chat with the reply}]`, as `text-generation` gives it; for a list of
            chats a list of that. See [`SugarChat`] for the reply.

        Raises:
            ValueError: A chat cannot be read.
        """
        samples, is_single = split_inputs(chats)
        options = {"top_k": top_k, "where": where, **self._forward_params, **generate_kwargs}
        found = [self.postprocess(self.forward({"chat": chat}, **options)) for chat in samples]
        return found[0] if is_single else found

    def _forward(self, model_inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        return {"chat": self.chat(model_inputs["chat"], **options)}

    def postprocess(self, model_outputs: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the conversation as pipelines for chats do."""
        return [{"generated_text": model_outputs["chat"]}]


register_pipelines({"sugar-rag": SugarRagPipeline, "sugar-chat": SugarChatPipeline})
