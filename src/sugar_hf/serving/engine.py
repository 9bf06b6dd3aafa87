"""The model that is served: it embeds and generates for many requests together."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from ..model.adapters import adapter_off, adapter_on
from ..model.pipeline_sugar import DEFAULT_NEW_TOKENS, generation_options
from ..model.samples_sugar import Sample
from ..retrieval.embedder import SugarEmbedder, short_name
from ..retrieval.explain import Explanation
from ..retrieval.index import Hit, SugarIndex
from ..retrieval.rag import KNOWLEDGE_VQA, Question, RagAnswer, RagHit, RagTemplate, SugarRag, prepared
from ..retrieval.reranker import SugarReranker
from .api_errors import ApiError, invalid
from .contents import Limits
from .embedding_worker import BatchedEmbedder, Embedded, EmbeddingWorker
from .generation_worker import GenerationWorker, Rows, Task, Watch
from .served_index import ServedIndex
from .server_metrics import Metrics

GENERATORS = ("model", "base")
CONTEXT = "max_position_embeddings"
DEFAULT_INPUT_TOKENS = 8192
COLDEST = 0.01  # below it, what is divided by the temperature may overflow, and the likeliest token is drawn anyway


@dataclass(frozen=True)
class ServingOptions:
    """How a model is served.

    Args:
        name: What requests call the model; its folder's or Hub name when `None`.
        limits: How much a request may hold.
        dimensions: Widths of vectors that requests may ask for, besides the model's own. A model has to be trained
            for them (`matryoshka_dims`).
        generate_with: Answers come from the `"model"`, or from its `"base"`, with its adapters off. Embeddings are
            always the model's.
        batch_tokens: Of one batch of inputs that are embedded: its inputs times the tokens of the longest.
        batch_wait: How many seconds a batch waits for as many requests as the last one had.
        most_requests: How many requests may be in progress.
        most_inputs_waiting: How many inputs may wait to be embedded.
        most_generations_waiting: How many generations may wait.
        most_generations_together: How many answers to chats are generated together. Those with a temperature are not,
            as what is drawn would depend on the others.
        template: Words of the prompt of an answer from documents.
        top_k: How many documents an answer looks for.
        min_score: An answer leaves out documents below this cosine.
        rerank: Of how many documents that an answer finds the model judges which it takes; none when `None`.
        max_context_tokens: The most tokens of documents in the prompt of an answer; never more than half of what the
            model can take.
        refresh_seconds: How often to look whether the index on disk has changed.
    """

    name: str | None = None
    limits: Limits = field(default_factory=Limits)
    dimensions: tuple[int, ...] = ()
    generate_with: Literal["model", "base"] = "model"
    batch_tokens: int = 16_384
    batch_wait: float = 0.002
    most_requests: int = 256
    most_inputs_waiting: int = 4096
    most_generations_waiting: int = 32
    most_generations_together: int = 8
    template: RagTemplate = KNOWLEDGE_VQA
    top_k: int = 5
    min_score: float | None = None
    rerank: int | None = None
    max_context_tokens: int = 2048
    refresh_seconds: float = 2.0


@dataclass(frozen=True)
class Wanted:
    """What a request wants of a generation.

    Args:
        new_tokens: The most tokens.
        temperature: Below 0.01 for the likeliest tokens; what the model's configuration says when `None`.
        top_p: The share of the likeliest tokens that are drawn from.
        seed: Of what is drawn.
    """

    new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Generated:
    """What a generation gave.

    Args:
        prompt_tokens: Tokens of the prompt.
        answer: With documents: what it was made from.
    """

    prompt_tokens: int
    answer: RagAnswer | None = None


@dataclass(frozen=True)
class _Chat:
    """A chat that waits for its answer: as it was given, as the model takes it, and how to generate."""

    messages: Sample
    features: dict[str, Any]
    options: dict[str, Any]
    wanted: Wanted


class Engine:
    """Owns a model, and an index of documents.

    Args:
        embedder: The model, its processor, and how inputs are embedded: as the index does, if there is one.
        index: What is searched; only read.
        options: See [`ServingOptions`].

    Raises:
        ValueError: An option has a value that it cannot have.
        IndexMismatchError: The index was made with another model.
    """

    def __init__(
        self, embedder: SugarEmbedder, index: SugarIndex | None = None, options: ServingOptions | None = None
    ) -> None:
        self.options = options = options or ServingOptions()
        self.limits = options.limits
        if options.generate_with not in GENERATORS:
            raise ValueError(f"generate_with={options.generate_with!r}: give one of {', '.join(GENERATORS)}.")
        counts = ("batch_tokens", "most_requests", "most_inputs_waiting", "most_generations_waiting", "top_k")
        for name in (*counts, "max_context_tokens", "most_generations_together"):
            if vars(options)[name] < 1:
                raise ValueError(f"{name}={vars(options)[name]}: give 1 or more.")
        if wrong := [size for size in options.dimensions if not 1 <= size <= embedder.dim]:
            raise ValueError(f"dimensions: {wrong[0]} is none of 1 to {embedder.dim}, the width of the vectors.")
        self.embedder = embedder
        self.model, self.processor = embedder.model.eval(), embedder.processor
        self.name = options.name or short_name(embedder.checkpoint)
        self.metrics = Metrics()
        self.index = None if index is None else ServedIndex(index, embedder, self.metrics)
        text_config = self.model.config.get_text_config().to_dict()
        self.context: int | None = text_config.get(CONTEXT)
        self.input_tokens = options.limits.input_tokens or self.context or DEFAULT_INPUT_TOKENS
        on, off = self._adapters()
        self._embedding = EmbeddingWorker(
            embedder,
            max_length=self.input_tokens,
            batch_tokens=options.batch_tokens,
            batch_wait=options.batch_wait,
            most_waiting=options.most_inputs_waiting,
            metrics=self.metrics,
            adapters=on,
        )
        self._generation = GenerationWorker(
            most_together=options.most_generations_together,
            most_waiting=options.most_generations_waiting,
            metrics=self.metrics,
            adapters=off,
        )
        self._rag = None
        if self.index is not None:
            self.index.embedder = BatchedEmbedder(self._embedding)
            self._rag = self._make_rag(self.index)

    def _adapters(self) -> tuple[Callable[[], AbstractContextManager[Any]], Callable[[], AbstractContextManager[Any]]]:
        """What the thread that embeds, and the one that generates, compute with."""
        if self.options.generate_with == "model":
            return nullcontext, nullcontext
        with adapter_off(self.model):  # says now if it has no adapters, or cannot do without them
            pass
        return lambda: adapter_on(self.model), lambda: adapter_off(self.model)

    def _make_rag(self, index: SugarIndex) -> SugarRag:
        options = self.options
        # what the base computes of a question is not what the index is searched with
        form: dict[str, Any] = {"reuse": False, "query_form": "sample"} if options.generate_with == "base" else {}
        most = options.max_context_tokens
        rag = SugarRag(
            self.model,
            self.processor,
            index,
            template=options.template,
            top_k=options.top_k,
            min_score=options.min_score,
            max_context_tokens=most if self.context is None else min(most, self.context // 2),
            reranker=None if options.rerank is None else self._reranker,
            rerank=options.rerank,
            **form,
        )
        rag.embedder = BatchedEmbedder(self._embedding)
        self._template_tokens = len(self.processor([options.template.text])["input_ids"][0])
        return rag

    @property
    def is_alive(self) -> bool:
        """Whether both threads work."""
        return self._embedding.is_alive and self._generation.is_alive

    def stop(self) -> None:
        """End the threads."""
        self._generation.stop()
        self._embedding.stop()

    # ---- Embed and search ----

    def embed(self, samples: Sequence[Sample], names: Sequence[str]) -> "Future[list[Embedded]]":
        """Embed inputs; see [`EmbeddingWorker.embed`]."""
        return self._embedding.embed(samples, names)

    def opened_index(self) -> ServedIndex:
        """Return the index.

        Raises:
            ApiError: There is none, or it cannot be used any more.
        """
        if self.index is None:
            raise ApiError(404, "this server has no index: start it with --index FOLDER.", code="no_index")
        self.index.check()
        return self.index

    def explain(self, query: Sample, name: str, piece: int) -> "Future[Explanation]":
        """Compare a query with a document; `piece` is the `slice` of a hit.

        Raises:
            KeyError: There is no document of this id.
        """
        index = self.opened_index()
        hit = Hit(name, 0.0, piece, index.get(name))
        return self._embedding.call(lambda: index.explain({"query": query}, hit))

    # ---- Generate ----

    @cached_property
    def _reranker(self) -> SugarReranker:
        return SugarReranker(self.model, self.processor)

    def rerank(self, query: Sample, hits: Sequence[Hit], top_k: int, watch: Watch) -> "Future[list[Hit]]":
        """Let the model judge hits, when its turn has come.

        Raises:
            QueueFullError: Too many generations are waiting.
        """

        def run(tasks: Sequence[Task]) -> None:
            tasks[0].end(self._reranker.rerank(query, hits, top_k))

        return self._generation.submit(Task(run, watch))

    def watch(self, stops: Sequence[str], emit: Callable[[str], None] | None) -> Watch:
        """Make what watches a generation."""
        ends = self.model.generation_config.eos_token_id
        tokenizer = self.processor.tokenizer
        return Watch(
            lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
            [ends] if isinstance(ends, int) else ends or [],
            stops,
            emit,
        )

    def chat(self, messages: Sample, wanted: Wanted, watch: Watch) -> "Callable[[], Future[Generated]]":
        """Prepare the answer to a chat, and return what begins it.

        Raises:
            ApiError: The chat cannot be answered, or is too long.
        """
        features = self._prompt(messages, "messages")
        options = self._options(wanted, features["input_ids"].shape[1], watch)
        alike = None if self._draws(options) else "chat"
        task = Task(self._answer_chats, watch, alike, _Chat(messages, features, options, wanted))
        return lambda: self._generation.submit(task)

    @torch.no_grad()
    def _answer_chats(self, tasks: Sequence[Task]) -> None:
        chats: list[_Chat] = [task.request for task in tasks]
        features = chats[0].features
        if len(chats) > 1:
            features = prepared(self.model, self.processor, [chat.messages for chat in chats])

        def end(row: int) -> None:
            tokens = chats[row].features["input_ids"].shape[1]
            if not tasks[row].future.done():
                self._count(tokens, tasks[row].watch)
                tasks[row].end(Generated(tokens))

        options = {
            **chats[0].options,
            "max_new_tokens": max(chat.options["max_new_tokens"] for chat in chats),
            "stopping_criteria": [Rows([task.watch for task in tasks], end)],
        }
        self._seed(options, chats[0].wanted)
        self.model.generate(**features, **options)
        for row in range(len(tasks)):  # where the model's own configuration has ended them
            end(row)

    def answer(
        self,
        question: Sample,
        param: str,
        wanted: Wanted,
        watch: Watch,
        search: Mapping[str, Any],
        on_found: Callable[[tuple[RagHit, ...], str | None], None] | None = None,
    ) -> "Callable[[], Future[Generated]]":
        """Prepare the answer to a question with documents, and return what begins it.

        Args:
            question: The question.
            param: What requests call it.
            wanted: What is wanted of the answer.
            watch: Watches the generation.
            search: `top_k`, `min_score`, `mode`, `prompt` and `where` of `SugarRag.answer`.
            on_found: Is told of the documents, before anything is generated.

        Raises:
            ApiError: It cannot be answered, or is too long.
        """
        self.opened_index()
        rag = self._rag
        assert rag is not None
        tokens = self._prompt(question, param)["input_ids"].shape[1]
        try:
            chosen = rag.search(**search)
        except ValueError as error:
            raise invalid(str(error), "mode") from error
        try:
            chosen.check(Question.read({"query": question}, param))
        except ValueError as error:
            raise invalid(str(error), param) from error
        options = self._options(wanted, tokens + (rag.max_context_tokens or 0) + self._template_tokens, watch)

        def run(tasks: Sequence[Task]) -> None:
            self._seed(options, wanted)
            # documents and drawing both have a `top_k`
            given: dict[str, Any] = {"names": [param], "on_found": on_found, "generate_kwargs": options}
            found = rag.answer({"query": question}, **search, **given)
            self._count(found.prompt_tokens, watch)
            tasks[0].end(Generated(found.prompt_tokens, found))

        return lambda: self._generation.submit(Task(run, watch))

    def _prompt(self, sample: Any, param: str) -> dict[str, Any]:
        try:
            is_chat = isinstance(sample, list) and isinstance(sample[0], dict)
            if not is_chat and self.processor.chat_template is not None:
                sample = [{"role": "user", "content": sample if isinstance(sample, list) else [sample]}]
            limits: dict[str, Any] = {"max_length": self.input_tokens, "names": [param]}
            return prepared(self.model, self.processor, [sample], **limits)
        except ValueError as error:
            raise invalid(str(error), param) from error

    def _options(self, wanted: Wanted, prompt_tokens: int, watch: Watch) -> dict[str, Any]:
        config, limits = self.model.generation_config, self.limits
        if wanted.new_tokens is not None and wanted.new_tokens > limits.new_tokens:
            raise invalid(
                f"max_tokens: {wanted.new_tokens}, and {limits.new_tokens} are allowed.",
                "max_tokens",
                "too_many_tokens",
            )
        new_tokens = wanted.new_tokens or min(config.max_new_tokens or DEFAULT_NEW_TOKENS, limits.new_tokens)
        if self.context is not None:
            room = self.context - prompt_tokens
            if room < (wanted.new_tokens or 1):
                message = (
                    f"max_tokens: the prompt may have {prompt_tokens} tokens, and with {wanted.new_tokens or 1} more "
                    f"it does not fit into the {self.context} of the model."
                )
                raise invalid(message, "max_tokens", "context_length_exceeded")
            new_tokens = min(new_tokens, room)
        watch.most = new_tokens
        options: dict[str, Any] = {
            "max_new_tokens": new_tokens,
            "num_beams": 1,
            "num_return_sequences": 1,
            "stopping_criteria": [watch],
        }
        if wanted.temperature is not None and wanted.temperature < COLDEST:
            options["do_sample"] = False
        elif wanted.temperature is not None or wanted.top_p is not None:
            options |= {"do_sample": True, "top_k": config.top_k or 0}
            options |= {} if wanted.temperature is None else {"temperature": float(wanted.temperature)}
            options |= {} if wanted.top_p is None else {"top_p": float(wanted.top_p)}
        return generation_options(self.model, self.processor, options)

    def _draws(self, options: Mapping[str, Any]) -> bool:
        """Whether tokens are drawn, or the likeliest are taken."""
        return bool(options.get("do_sample", self.model.generation_config.do_sample))

    def _seed(self, options: Mapping[str, Any], wanted: Wanted) -> None:
        """Set what is drawn: nothing else here draws, and what draws is generated alone."""
        if self._draws(options):
            if wanted.seed is None:
                torch.seed()
            else:
                torch.manual_seed(wanted.seed)

    def _count(self, prompt_tokens: int, watch: Watch) -> None:
        self.metrics.tokens.labels("prompt").inc(prompt_tokens)
        self.metrics.tokens.labels("generated").inc(watch.tokens)


def open_engine(
    embedder: SugarEmbedder, index: str | Path | None = None, options: ServingOptions | None = None
) -> Engine:
    """Open an index, and serve it with the model that made it; see [`Engine`]."""
    return Engine(embedder, None if index is None else SugarIndex.load(index), options)
