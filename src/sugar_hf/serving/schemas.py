"""Requests, and responses by the types of the `openai` package."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from openai.types import CreateEmbeddingResponse, Embedding
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

MOST_HITS = 100
MOST_STOPS = 4
#: What clients send along though it asks for nothing: null, or one of these values. Others are refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
}

Text = Annotated[str, StringConstraints(min_length=1)]
Mode = Literal["vector", "text", "hybrid"]


class _Request(BaseModel):
    """What all requests share: no unknown fields, no NaN, no text in the place of a number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str | None = Field(None, description="The name of the model; `GET /v1/models` gives it.")
    user: str | None = Field(None, description="Not looked at.")

    @model_validator(mode="before")
    @classmethod
    def _without_neutral(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {
            name: value for name, value in values.items() if name in cls.model_fields or not _is_neutral(name, value)
        }


def _is_neutral(name: str, value: Any) -> bool:
    same = any(value == one and type(value) is type(one) for one in NEUTRAL.get(name, ()))
    return name in NEUTRAL and (value is None or same)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Part):
    """A text in a message or an input."""

    type: Literal["text"]
    text: Text


class ImageAddress(_Part):
    """Where an image is."""

    url: Text = Field(description="`data:image/...;base64,...`, or with `--allow-urls` an http(s) address.")
    detail: Literal["auto"] | None = None


class ImagePart(_Part):
    """An image in a message or an input."""

    type: Literal["image_url"]
    image_url: ImageAddress


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Part):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1)]


class TextAndImage(_Part):
    """A text, an image, or an image with the text behind it."""

    text: Text | None = None
    image: Text | None = Field(None, description="As `url` of an image part.")


Interleaved = Annotated[list[Text | Part], Field(min_length=1)]
Item = Text | TextAndImage | Interleaved
Chat = Annotated[list[Message], Field(min_length=1)]


class EmbeddingRequest(_Request):
    """What is to be embedded. `input` or `messages`."""

    input: Text | TextAndImage | Annotated[list[Item], Field(min_length=1)] | None = Field(
        None,
        description="An input, or a list of inputs. An interleaved one is a list of texts and parts in it.",
    )
    messages: Chat | Annotated[list[Chat], Field(min_length=1)] | None = Field(None, description="A chat, or several.")
    dimensions: int | None = Field(None, ge=1, description="Width of the vectors; the server says which it has.")
    encoding_format: Literal["float", "base64"] | None = "float"
    positions: Literal["last", "all"] | None = Field(
        "last", description="A vector for each input, or for each slice end."
    )


class RerankRequest(_Request):
    """A query, and documents that are put into order."""

    query: Item
    documents: Annotated[list[Item], Field(min_length=1)]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class SearchRequest(_Request):
    """A query of the index. `query` or `messages`."""

    query: Item | None = None
    messages: Chat | None = None
    top_k: int = Field(10, ge=1, le=MOST_HITS)
    where: dict[str, Any] | None = Field(None, description="A filter on metadata.")
    mode: Mode = Field("vector", description="By embeddings, by words, or by both, fused by reciprocal rank.")
    prompt: Text | None = Field(None, description="An instruction for the embedding of the query.")
    rerank: int | None = Field(
        None, ge=1, le=MOST_HITS, description="How many of what is found the model judges; `top_k` of them are kept."
    )


class _Generation(_Request):
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, description="Below 0.01 the likeliest token is taken.")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = False


class StreamOptions(_Part):
    """What else a stream has."""

    include_usage: bool | None = False


class ChatRequest(_Generation):
    """A chat that ends with the user's turn."""

    messages: Chat
    n: Literal[1] | None = 1
    stream_options: StreamOptions | None = None


class AnswerRequest(_Generation):
    """A question to the documents of the index. `query` or `messages`."""

    query: Item | None = None
    messages: Chat | None = None
    top_k: int | None = Field(None, ge=1, le=MOST_HITS)
    min_score: float | None = Field(None, ge=-1, le=1)
    mode: Mode = Field("vector", description="As of a search.")
    prompt: Text | None = Field(None, description="As of a search.")
    where: dict[str, Any] | None = Field(None, description="A filter on metadata.")


class ExplainRequest(_Request):
    """A query, and the document to be compared with it. `query` or `messages`."""

    query: Item | None = None
    messages: Chat | None = None
    id: Text
    slice: int = Field(-1, ge=-1, description="Of the hit: the slice up to which the document is looked at.")


# ---- Responses ----


class ErrorBody(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """An error."""

    error: ErrorBody


class SliceEmbedding(Embedding):
    """A vector: numbers, or the base64 of little-endian float32. With positions "all", of which sample and slice."""

    embedding: list[float] | str  # type: ignore[assignment]
    sample: int | None = None
    slice: int | None = None


class EmbeddingResponse(CreateEmbeddingResponse):
    """Vectors."""

    data: list[SliceEmbedding]  # type: ignore[assignment]


class Ranked(BaseModel):
    """A document and its cosine with the query."""

    index: int
    relevance_score: float
    document: Any = None


class TotalTokens(BaseModel):
    """How much was read."""

    total_tokens: int


class RerankResponse(BaseModel):
    """Documents, best first."""

    id: str
    model: str
    results: list[Ranked]
    usage: TotalTokens


class ShownPart(BaseModel):
    """A text of a document, or the number of an image, which `GET /v1/images` shows."""

    type: Literal["text", "image"]
    text: str | None = None
    number: int | None = None


class Found(BaseModel):
    """A document that was found."""

    id: str
    score: float
    slice: int = Field(description="The slice, from 0, at whose end it matched; -1: the last.")
    metadata: dict[str, Any]
    parts: list[ShownPart]
    used: int | None = Field(None, description="How many of its slices are in the prompt of the answer.")


class SearchResponse(BaseModel):
    """Documents, best first."""

    object: Literal["list"]
    model: str
    data: list[Found]
    usage: TotalTokens


class AnswerUsage(BaseModel):
    """How much was read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class AnswerResponse(BaseModel):
    """An answer and what it was made from."""

    id: str
    object: Literal["answer"]
    created: int
    model: str
    answer: str
    finish_reason: Literal["stop", "length"]
    documents: list[Found]
    note: str | None = Field(description="Why the answer was made without documents.")
    usage: AnswerUsage


class AlignmentResponse(BaseModel):
    """Slices of a query and a document: their cosines, and how they align."""

    similarity: list[list[float]]
    visits: list[list[float]]
    path: list[list[int]]
    sigma: float


class ExplainResponse(BaseModel):
    """Why a document was found."""

    query: list[dict[str, Any]]
    document: list[dict[str, Any]]
    score: float
    embeddings: str
    model: AlignmentResponse


class ModelEntry(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    max_input_tokens: int
    documents: int | None = Field(description="How many documents the index has; null without one.")


class ModelList(BaseModel):
    """The models that are served: one."""

    object: Literal["list"]
    data: list[ModelEntry]


class Status(BaseModel):
    """How the server is."""

    status: str
