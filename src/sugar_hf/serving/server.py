"""The routes."""

import asyncio
import base64
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from openai.types.chat import ChatCompletion
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..data import Document
from ..data.schema import load_image
from ..model.embedding_sugar import check_unit
from ..model.samples_sugar import Sample, with_prompt
from ..retrieval.filters import Filter
from ..retrieval.index import Hit
from ..retrieval.rag import RagHit
from . import schemas
from .api_errors import ApiError, invalid, of_validation
from .contents import Contents
from .embedding_worker import Embedded, QueueFullError, SampleFault
from .engine import Engine, Generated, Wanted
from .gate import Gate, Traffic
from .generation_worker import GenerationCancelled, Watch
from .routes_page import POLICY, routes_page
from .server_metrics import CONTENT_TYPE
from .streams import ClientGone, Pieces, stream, until_left, whole

PAGE = Path(__file__).with_name("page") / "index.html"
THUMBNAIL = 256
_LOG = logging.getLogger(__name__)
MANY_NUMBERS = 20_000  # in a response: more are written by another thread
MANY_SAMPLES = 16  # that are not embedded for nobody; to look whether the client is there takes longer than a few
MANY_CHARACTERS = 100_000  # in a request: more are read by another thread
_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": schemas.ErrorResponse, "description": "The request cannot be served; `param` names the field."},
    "5XX": {"model": schemas.ErrorResponse, "description": "The server cannot serve it now."},
}


def create_app(engine: Engine, *, api_key: str | None = None, hosts: Collection[str] | None = None) -> FastAPI:
    """Make the app that serves a model.

    ```python
    app = create_app(Engine(SugarEmbedder.from_pretrained("sugar")))
    ```

    Args:
        engine: The model, and its index; stopped when the app ends.
        api_key: What requests have to send as `Authorization: Bearer KEY`; nothing when `None`.
        hosts: The names under which it may be asked; any when `None`.
    """
    traffic = Traffic()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        refreshing = asyncio.ensure_future(_refresh(engine))
        yield
        refreshing.cancel()
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="Sugar",
        version=version("sugar-hf"),
        description=f"One model that chats, embeds, searches and answers: {engine.name}.",
        docs_url=None,  # it loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.traffic = traffic
    app.state.engine = engine
    _handle_errors(app)
    _Routes(engine, traffic).add_to(app)
    app.add_middleware(
        Gate,
        traffic=traffic,
        metrics=engine.metrics,
        paths=frozenset(app.openapi()["paths"]) | {"/", "/docs", "/metrics", "/openapi.json"},
        api_key=api_key,
        body_bytes=engine.limits.body_bytes,
        most_requests=engine.options.most_requests,
        hosts=None if hosts is None else frozenset(hosts),
    )
    return app


async def _refresh(engine: Engine) -> None:
    """Look now and then for a new snapshot of the index."""
    while engine.index is not None:
        await asyncio.sleep(engine.options.refresh_seconds)
        try:
            await asyncio.to_thread(engine.index.follow)
        except Exception:  # the next look may find it whole
            _LOG.exception("the index could not be looked at")


def _handle_errors(app: FastAPI) -> None:
    async def api_error(request: Request, error: Any) -> Response:
        return error.response

    async def validation(request: Request, error: Any) -> Response:
        return of_validation(error.errors(), error.body).response

    async def http(request: Request, error: Any) -> Response:
        return ApiError(error.status_code, str(error.detail), headers=error.headers).response

    async def sample_fault(request: Request, error: Any) -> Response:
        return invalid(str(error), error.name).response

    async def queue_full(request: Request, error: Any) -> Response:
        after = {"Retry-After": str(error.seconds)}
        return ApiError(429, f"{error}.", code="queue_full", headers=after).response

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=499)

    async def memory(request: Request, error: Any) -> Response:
        return ApiError(503, "the accelerator has no memory left for this request.", code="out_of_memory").response

    async def failure(request: Request, error: Any) -> Response:
        return ApiError(500, "the server failed; its log says why.").response

    for kind, handler in (
        (ApiError, api_error),
        (RequestValidationError, validation),
        (HTTPException, http),
        (SampleFault, sample_fault),
        (QueueFullError, queue_full),
        (ClientGone, gone),
        (GenerationCancelled, gone),
        (torch.OutOfMemoryError, memory),
        (Exception, failure),
    ):
        app.add_exception_handler(kind, handler)


class _Routes:
    """What is served.

    Args:
        engine: The model.
        traffic: What goes on.
    """

    def __init__(self, engine: Engine, traffic: Traffic) -> None:
        self.engine, self.traffic = engine, traffic
        self.created = int(time.time())
        self.page, self.policy = _page()

    def add_to(self, app: FastAPI) -> None:
        """Enter all routes."""
        for path, call, response in (
            ("/v1/chat/completions", self.chat, ChatCompletion),
            ("/v1/embeddings", self.embeddings, schemas.EmbeddingResponse),
            ("/v1/rerank", self.rerank, schemas.RerankResponse),
            ("/v1/search", self.search, schemas.SearchResponse),
            ("/v1/answer", self.answer, schemas.AnswerResponse),
            ("/v1/explain", self.explain, schemas.ExplainResponse),
        ):
            self._add(app, path, call, {200: {"model": response}}, ["POST"])
        image: dict[Any, Any] = {200: {"content": {"image/jpeg": {}}}}
        self._add(app, "/v1/images", self.image, image, ["GET"])
        self._add(app, "/v1/models", self.models, {200: {"model": schemas.ModelList}}, ["GET"])
        self._add(app, "/health", self.health, {200: {"model": schemas.Status}}, ["GET"])
        self._add(app, "/ready", self.ready, {200: {"model": schemas.Status}}, ["GET"])
        app.add_api_route("/metrics", self.metrics, methods=["GET"], include_in_schema=False)
        app.add_api_route("/", self.index, methods=["GET"], include_in_schema=False)
        app.add_api_route("/docs", self.docs, methods=["GET"], include_in_schema=False)

    def _add(self, app: FastAPI, path: str, call: Any, responses: dict[Any, Any], methods: list[str]) -> None:
        app.add_api_route(path, call, methods=methods, responses={**responses, **_ERRORS}, response_class=Response)

    # ---- Embeddings ----

    async def embeddings(self, request: Request, body: schemas.EmbeddingRequest) -> Response:
        """Embed texts, images and interleaved inputs."""
        self._check_model(body)
        width = self._width(body.dimensions)
        samples, names = await self._inputs(body)
        found = await self._embed(request, samples, names)
        count = sum(len(each.vectors) for each in found) if body.positions == "all" else len(found)
        write = partial(_embedding_response, found, body, width, self.engine.name)
        content = await asyncio.to_thread(write) if count * self.engine.embedder.dim > MANY_NUMBERS else write()
        return Response(content, media_type="application/json")

    async def rerank(self, request: Request, body: schemas.RerankRequest) -> Response:
        """Put documents into the order of their cosines with a query."""
        self._check_model(body)

        def read() -> list[Sample]:
            contents = self._contents()
            return [contents.sample(body.query, "query"), *contents.samples(body.documents, "documents")]

        samples = await _read(read, [body.query, *body.documents])
        names = ["query", *(f"documents[{number}]" for number in range(len(body.documents)))]
        found = await self._embed(request, samples, names)
        query, *documents = (each.vectors[-1] for each in found)
        scores = np.stack(documents) @ query
        order = np.argsort(-scores, kind="stable")[: body.top_n]
        results = []
        for place in order.tolist():
            result: dict[str, Any] = {"index": place, "relevance_score": float(scores[place])}
            if body.return_documents:
                document = body.documents[place]
                result["document"] = {"text": document} if isinstance(document, str) else _as_given(document)
            results.append(result)
        tokens = sum(each.tokens for each in found)
        usage = {"total_tokens": tokens}
        return _json({"id": _name("rerank"), "model": self.engine.name, "results": results, "usage": usage})

    # ---- The index ----

    async def search(self, request: Request, body: schemas.SearchRequest) -> Response:
        """Find documents of the index."""
        self._check_model(body)
        index = self.engine.opened_index()
        condition = _condition(body.where)
        count = body.top_k if body.rerank is None else body.rerank
        if count < body.top_k:
            raise invalid(f"rerank: {count} is less than top_k={body.top_k}.", "rerank")
        query, name = await self._query(body)
        [found] = await self._embed(request, [with_prompt(query, body.prompt)], [name])  # says if it is too long

        def look() -> list[Hit]:
            given: dict[str, Any] = {"vectors": found.vectors[-1:], "names": [name]}
            try:
                return index.search({"query": query}, count, mode=body.mode, where=condition, **given)
            except ValueError as error:  # it has no words
                raise invalid(str(error), name) from error

        hits = await asyncio.to_thread(look)
        if body.rerank is not None:
            watch = self.engine.watch((), None)
            try:
                hits = await whole(request, partial(self.engine.rerank, query, hits, body.top_k, watch), watch)
            except ValueError as error:  # a document that is too long to be judged
                raise invalid(str(error), "rerank") from error
        data = await asyncio.to_thread(lambda: [_found(hit) for hit in hits])
        usage = {"total_tokens": found.tokens}
        return _json({"object": "list", "model": self.engine.name, "data": data, "usage": usage})

    async def explain(self, request: Request, body: schemas.ExplainRequest) -> Response:
        """Compare a query with a document, slice by slice."""
        self._check_model(body)
        self.engine.opened_index()
        query, name = await self._query(body)
        await self._embed(request, [query], [name])  # says if it is too long
        try:
            explaining = await asyncio.to_thread(self.engine.explain, query, body.id, body.slice)
        except KeyError as error:
            raise ApiError(404, f"there is no document of the id {body.id!r}.", "id", "no_document") from error
        shown = (await until_left(request, asyncio.wrap_future(explaining))).to_dict()
        kept = ("query", "document", "score", "embeddings", "model")
        return _json({name: shown[name] for name in kept})

    async def image(self, id: str, number: int = 0) -> Response:
        """Show an image of a document, made small."""
        index = self.engine.opened_index()

        def draw() -> bytes:
            try:
                images = index.get(id).content.images
            except KeyError as error:
                raise ApiError(404, f"there is no document of the id {id!r}.", "id", "no_document") from error
            if not 0 <= number < len(images):
                raise ApiError(404, f"the document has {len(images)} images.", "number", "no_image")
            drawn = load_image(images[number])
            drawn.thumbnail((THUMBNAIL, THUMBNAIL))
            file = BytesIO()
            drawn.save(file, "JPEG", quality=85)
            return file.getvalue()

        return Response(await asyncio.to_thread(draw), media_type="image/jpeg")

    async def answer(self, request: Request, body: schemas.AnswerRequest) -> Response:
        """Answer a question with documents of the index. With `stream`, the documents come first."""
        self._check_model(body)
        self.engine.opened_index()
        _condition(body.where)
        question, param = await self._query(body)
        _check_turns(body.messages)
        names = ("top_k", "min_score", "mode", "prompt", "where")
        search = {name: vars(body)[name] for name in names}
        pieces = Pieces() if body.stream else None
        watch = self._watch(body, pieces)
        told = None if pieces is None else lambda hits, note: pieces.put((hits, note))
        begin = await asyncio.to_thread(self.engine.answer, question, param, _wanted(body), watch, search, told)
        head = {"id": _name("answer"), "created": int(time.time()), "model": self.engine.name}
        if pieces is None:
            found = await whole(request, begin, watch)
            assert found.answer is not None
            documents = [_found(hit) for hit in found.answer.hits]
            said = {"answer": watch.text, "finish_reason": watch.finish_reason, "note": found.answer.note}
            usage = _usage(found, watch)
            return _json({**head, "object": "answer", **said, "documents": documents, "usage": usage})

        def write(piece: Any) -> Iterator[Any]:
            if isinstance(piece, str):
                yield {**head, "object": "answer.chunk", "delta": piece}
            else:
                hits, note = piece
                yield {**head, "object": "answer.chunk", "documents": [_found(hit) for hit in hits], "note": note}

        def last(found: Generated) -> Iterator[Any]:
            usage = _usage(found, watch)
            yield {**head, "object": "answer.chunk", "finish_reason": watch.finish_reason, "usage": usage}

        return await stream(request, begin, watch, pieces, write, last)

    # ---- Chat ----

    async def chat(self, request: Request, body: schemas.ChatRequest) -> Response:
        """Answer a chat."""
        self._check_model(body)
        _check_turns(body.messages)
        if body.stream_options is not None and not body.stream:
            raise invalid("stream_options: it goes with stream=true.", "stream_options")
        messages = await _read(lambda: self._contents().sample(body.messages, "messages"), [body.messages])
        pieces = Pieces() if body.stream else None
        watch = self._watch(body, pieces)
        begin = await asyncio.to_thread(self.engine.chat, messages, _wanted(body), watch)
        head = {"id": _name("chatcmpl"), "created": int(time.time()), "model": self.engine.name}
        if pieces is None:
            found = await whole(request, begin, watch)
            message = {"role": "assistant", "content": watch.text, "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": watch.finish_reason, "logprobs": None}
            return _json({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(found, watch)})
        with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        pieces.put(None)

        def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
            choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
            usage = {"usage": None} if with_usage else {}
            return {**head, "object": "chat.completion.chunk", "choices": [choice], **usage}

        def write(piece: Any) -> Iterator[Any]:
            yield chunk({"role": "assistant", "content": ""} if piece is None else {"content": piece})

        def last(found: Generated) -> Iterator[Any]:
            yield chunk({}, watch.finish_reason)
            if with_usage:
                yield {**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(found, watch)}

        return await stream(request, begin, watch, pieces, write, last)

    # ---- How it is ----

    async def models(self) -> Response:
        """Name the model."""
        index = self.engine.index
        entry = {
            "id": self.engine.name,
            "object": "model",
            "created": self.created,
            "owned_by": "sugar-hf",
            "dimensions": self.engine.embedder.dim,
            "max_input_tokens": self.engine.input_tokens,
            "documents": None if index is None else len(index),
        }
        return _json({"object": "list", "data": [entry]})

    async def health(self) -> Response:
        """Say whether the process works; if not, start it anew."""
        if not self.engine.is_alive:
            raise ApiError(500, "a thread has ended.")
        return _json({"status": "ok"})

    async def ready(self) -> Response:
        """Say whether it takes requests."""
        if self.traffic.is_draining or not self.engine.is_alive:
            raise ApiError(503, "the server is about to end.", code="shutting_down")
        if self.engine.index is not None:
            self.engine.index.check()
        return _json({"status": "ready"})

    async def metrics(self) -> Response:
        """Write the figures for Prometheus."""
        return Response(self.engine.metrics.text(), media_type=CONTENT_TYPE)

    async def index(self) -> Response:
        """Show the search page."""
        headers = {"Content-Security-Policy": self.policy, "Cache-Control": "no-cache"}
        return Response(self.page, media_type="text/html; charset=utf-8", headers=headers)

    async def docs(self, request: Request) -> Response:
        """Show the routes."""
        text = routes_page(request.app.openapi())
        return Response(text, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": POLICY})

    # ---- What several have ----

    def _check_model(self, body: Any) -> None:
        if body.model is not None and body.model != self.engine.name:
            message = f"model: there is no {body.model!r} here, but {self.engine.name!r}."
            raise ApiError(404, message, "model", "model_not_found")

    def _contents(self) -> Contents:
        return Contents(self.engine.limits, self.engine.embedder.split_sentences)

    def _width(self, dimensions: int | None) -> int | None:
        """To how many dimensions vectors are cut; `None` for not at all."""
        own = self.engine.embedder.dim
        if dimensions is None or dimensions == own:
            return None
        if dimensions not in self.engine.options.dimensions:
            known = ", ".join(map(str, sorted({own, *self.engine.options.dimensions})))
            raise invalid(f"dimensions: this server gives vectors of {known}.", "dimensions")
        return dimensions

    async def _inputs(self, body: schemas.EmbeddingRequest) -> tuple[list[Sample], list[str]]:
        param = "input" if body.messages is None else "messages"
        given: Any = body.input if body.messages is None else body.messages
        if (body.input is None) == (body.messages is None):
            raise invalid("give input or messages, one of both.", param)
        is_one = not isinstance(given, list) or isinstance(given[0], schemas.Message)
        items = [given] if is_one else given
        contents = self._contents()
        read = (lambda: [contents.sample(given, param)]) if is_one else (lambda: contents.samples(given, param))
        samples = await _read(read, items)
        return samples, [param] if is_one else [f"{param}[{number}]" for number in range(len(items))]

    async def _query(self, body: Any) -> tuple[Sample, str]:
        """The query of a request, and what it is called there."""
        if (body.query is None) == (body.messages is None):
            raise invalid("give query or messages, one of both.", "query")
        given, param = (body.query, "query") if body.messages is None else (body.messages, "messages")
        return await _read(lambda: self._contents().sample(given, param), [given]), param

    async def _embed(self, request: Request, samples: list[Sample], names: list[str]) -> list[Embedded]:
        found = asyncio.wrap_future(self.engine.embed(samples, names))
        return await found if len(samples) < MANY_SAMPLES else await until_left(request, found)

    def _watch(self, body: Any, pieces: Pieces | None) -> Watch:
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        return self.engine.watch(stops, None if pieces is None else pieces.put)


async def _read(read: Any, items: Sequence[Any]) -> Any:
    """Read inputs: short texts at once, all else in another thread."""
    is_short = all(isinstance(item, str) for item in items) and sum(map(len, items)) < MANY_CHARACTERS
    return read() if is_short else await asyncio.to_thread(read)


def _check_turns(messages: list[schemas.Message] | None) -> None:
    if messages is not None and messages[-1].role != "user":
        raise invalid("messages: the last turn has to be the user's.", f"messages[{len(messages) - 1}].role")


def _condition(where: dict[str, Any] | None) -> Filter | None:
    try:
        return Filter.parse(where)
    except (ValueError, RecursionError) as error:
        raise invalid(str(error), "where") from error


def _wanted(body: Any) -> Wanted:
    given = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(given) > 1:
        raise invalid("max_tokens: max_completion_tokens says otherwise. Give one of them.", "max_tokens")
    return Wanted(next(iter(given), None), body.temperature, body.top_p, body.seed)


def _usage(found: Generated, watch: Watch) -> dict[str, int]:
    prompt, made = found.prompt_tokens, watch.tokens
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _embedding_response(found: list[Embedded], body: schemas.EmbeddingRequest, width: int | None, model: str) -> bytes:
    """Write vectors as numbers or base64."""
    data: list[dict[str, Any]] = []
    for sample, each in enumerate(found):
        vectors = each.vectors if body.positions == "all" else each.vectors[-1:]
        if width is not None:
            vectors = vectors[:, :width] / np.linalg.norm(vectors[:, :width], axis=1, keepdims=True)
            check_unit(vectors)  # orjson writes null for NaN
        for number, vector in enumerate(np.ascontiguousarray(vectors, np.float32)):
            if body.encoding_format == "base64":
                written: Any = base64.b64encode(vector.astype("<f4").tobytes()).decode()
            else:
                written = vector
            place = {"sample": sample, "slice": number} if body.positions == "all" else {}
            data.append({"object": "embedding", "index": len(data), "embedding": written, **place})
    tokens = sum(each.tokens for each in found)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    response = {"object": "list", "model": model, "data": data, "usage": usage}
    # the digits that float32 has, in a tenth of the time
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


def _found(hit: Hit) -> dict[str, Any]:
    """A document that was found, fit for JSON; of its images the numbers."""
    used = {"used": hit.used} if isinstance(hit, RagHit) else {}
    shown = {"metadata": hit.metadata, "parts": _shown(hit.document)}
    return {"id": hit.id, "score": hit.score, "slice": hit.slice, **shown, **used}


def _shown(document: Document) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = []
    images = 0
    for message in document.content.messages:
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image", "number": images})
                images += 1
            else:
                parts.append({"type": "text", "text": part["text"]})
    return parts


def _as_given(item: Any) -> Any:
    """What a request held, as JSON."""
    if isinstance(item, list):
        return [_as_given(part) for part in item]
    return item if isinstance(item, str) else item.model_dump(exclude_none=True)


def _json(value: Any) -> Response:
    return Response(json.dumps(value, allow_nan=False), media_type="application/json")


def _name(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"


def _page() -> tuple[str, str]:
    """The page, and the policy under which nothing but its own script and style is run."""
    text = PAGE.read_text(encoding="utf-8")
    hashes = {}
    for tag in ("script", "style"):
        inside = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        hashes[tag] = base64.b64encode(sha256(inside.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy
