"""Retrieval-augmented generation: one model embeds the question, and answers from it and the documents found."""

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig

from ..data.documents import Document, as_document
from ..model import CandidateIndex, RetrievalIndex, SugarForConditionalGeneration, SugarProcessor
from ..model.backbone_sugar import evaluation_mode
from ..model.embedding_sugar import SEES_AHEAD, PrefixCheck, drawn_picture, rounding
from ..model.pipeline_sugar import DEFAULT_BATCH_SIZE, generation_options, sequences_of
from ..model.samples_sugar import Sample, first_slices, is_chat, parse_sample
from .embedder import SugarEmbedder
from .hits import check_mode
from .index import Hit, Reranker, SugarIndex, candidate_count
from .prefix_cache import (
    CachedPrefix,
    Features,
    PromptCache,
    encode_prefix,
    end_of_last_slice,
    first_tokens,
    generate_after,
    matching,
    remaining_images,
    shared_length,
    why_not_beginning,
)
from .store import words_of

Parts = list[str | Image.Image]
_PLACE = re.compile(r"\{(documents|question)\}")


# ---- Questions, and the words around them ----


@dataclass(frozen=True)
class RagTemplate:
    """The words around a question and what was found for it.

    Args:
        text: Has `{documents}` and `{question}`, each once; their order is that of the prompt. With the question
            first, what the model computes of it for the search is used again for the answer.
        without: The prompt if nothing was found; has `{question}`.
        is_numbered: Put `[1]`, `[2]`, ... before the documents, so that an answer can cite them.

    Raises:
        ValueError: A place is missing, comes twice, or is another one.
    """

    text: str
    without: str = "{question}"
    is_numbered: bool = False

    def __post_init__(self) -> None:
        for name, text, places in (
            ("text", self.text, ["documents", "question"]),
            ("without", self.without, ["question"]),
        ):
            if sorted(_PLACE.findall(text)) != places:
                wanted = " and ".join(f"{{{place}}}" for place in places)
                raise ValueError(f"template, {name}: needs {wanted}, once each and no other, got {text!r}.")

    @property
    def is_question_first(self) -> bool:
        """Whether the prompt begins with the question itself."""
        return self.text.lstrip().startswith("{question}")

    def fill(self, question: Parts, documents: Sequence[Parts]) -> Parts:
        """Return the parts of the prompt in order."""
        if self.is_numbered:
            documents = [_numbered(parts, number) for number, parts in enumerate(documents, 1)]
        found: dict[str, Parts] = {"question": question, "documents": [part for parts in documents for part in parts]}
        filled: Parts = []
        for number, piece in enumerate(_PLACE.split(self.text if documents else self.without)):
            if number % 2:  # the name of a place
                filled += found[piece]
            elif piece.strip():
                filled.append(piece.strip())
        return filled


#: The paper's prompt for knowledge VQA.
KNOWLEDGE_VQA = RagTemplate(
    "Please answer the questions based on the pictures. If the reference information is useful, please use it. "
    "Otherwise, please ignore the reference information. Reference information: {documents} {question}"
)
#: The same with the question first.
QUESTION_FIRST = RagTemplate(
    "{question} Please answer the question. If the reference information is useful, please use it. Otherwise, please "
    "ignore the reference information. Reference information: {documents}"
)
#: With numbered documents, which the answer cites.
CITING = RagTemplate(
    "Please answer the question with the numbered reference information. After each statement, name the reference it "
    "rests on by its number, such as [1]. Reference information: {documents} {question}",
    is_numbered=True,
)


def _numbered(parts: Parts, number: int) -> Parts:
    """Put the number of a document before its first part."""
    first, *rest = parts
    return [f"[{number}] {first}", *rest] if isinstance(first, str) else [f"[{number}]", first, *rest]


@dataclass(frozen=True)
class RagHit(Hit):
    """A document that was found for a question.

    Args:
        used: How many of its slices are in the prompt, from its first; 0 if it was left out.
        slices: How many it has.
    """

    used: int = 0
    slices: int = 0


@dataclass(frozen=True)
class Question:
    """A question, and the conversation that it belongs to.

    Args:
        parts: Texts and images of the user's last turn.
        history: The turns before it.
        name: What errors call it.
    """

    parts: Parts
    history: tuple[Mapping[str, Any], ...] = ()
    name: str = "question"

    @classmethod
    def read(cls, sample: Sample | Mapping[str, Any], name: str = "question") -> "Question":
        """Read a sample of any form, or a chat that ends with the user's turn.

        Raises:
            ValueError: It is empty or malformed, or the chat ends otherwise.
        """
        if isinstance(sample, Mapping) and "query" in sample:
            sample = sample["query"]
        messages = parse_sample(sample, name)
        role = messages[-1].role  # of a chat only
        if role not in (None, "user"):
            raise ValueError(f"{name}: the chat ends with the turn of {role}. End it with the user's.")
        parts: Parts = [part.load() if part.is_image else part.text for part in messages[-1].parts]
        return cls(parts, tuple(sample[:-1]) if is_chat(sample) else (), name)

    @property
    def sample(self) -> Sample:
        """The question as one sample."""
        return [*self.history, {"role": "user", "content": self.parts}] if self.history else self.parts


def split_questions(questions: Any) -> tuple[list[Any], bool]:
    """Tell one question from several.

    A list is several questions, but for a chat, and for a flat list of texts and images, which is one question.

    Returns:
        The questions, and whether there was one.
    """
    is_several = isinstance(questions, list | tuple) and len(questions) > 0 and not is_chat(questions)
    if not is_several or {_kind(item) for item in questions} == {"text", "image"}:
        return [questions], True
    return list(questions), False


def _kind(item: Any) -> str:
    """Whether an item of a list is a question of its own, or a text or image, which may be a part of one."""
    if isinstance(item, list | tuple) or (isinstance(item, Mapping) and "query" in item):
        return "question"
    return "text" if isinstance(item, str) or (isinstance(item, Mapping) and item.get("type") == "text") else "image"


# ---- Prompts ----


def fit(
    hits: Sequence[Hit], processor: SugarProcessor, most_tokens: int | None, split_sentences: bool = False
) -> tuple[list[RagHit], list[Parts]]:
    """Take documents in the order of their scores until a budget of tokens is used up, never cut inside a slice.

    Of a document that does not fit as a whole the first slices that do are taken, and what comes after it is tried as
    well: a short one may fit.

    Args:
        hits: What was found, best first.
        processor: Counts the tokens, those of images included, of each document alone.
        most_tokens: The budget; `None` for no limit.
        split_sentences: Whether a sentence is a slice, or a text.

    Returns:
        All hits with the number of slices that are used, and the parts of those that are.
    """
    noted: list[RagHit] = []
    taken: list[Parts] = []
    left = most_tokens
    for hit in hits:
        sample = hit.document.load()
        messages = parse_sample(sample, f"document {hit.id!r}", split_sentences)
        used = total = sum(part.slice_count for message in messages for part in message.parts)
        if left is not None:
            if messages[0].role is not None:  # what its roles add is not part of the context
                sample = [part for message in sample for part in message["content"]]
            ends = _slice_ends(sample, processor, split_sentences)
            used = sum(end <= left for end in ends)
            left -= ends[used - 1] if used else 0
        if used < total:
            messages = first_slices(messages, used)
        if used:
            parts = [part for message in messages for part in message.parts]
            taken.append([part.load() if part.is_image else part.text for part in parts])
        noted.append(RagHit(**vars(hit), used=used, slices=total))
    return noted, taken


def _slice_ends(sample: Sample, processor: SugarProcessor, split_sentences: bool) -> list[int]:
    """Count the tokens of a sample up to the end of each of its slices."""
    found = processor([sample], split_sentences=split_sentences)["slice_map"][0].abs()
    marked = found.nonzero()[:, 0]
    return [int(marked[found[marked] == number].max()) + 1 for number in range(1, int(found.max()) + 1)]


def prepared(
    model: SugarForConditionalGeneration, processor: SugarProcessor, prompts: list[Any], **options: Any
) -> Features:
    """Process prompts for generation, padded on the left, on the model's device."""
    options = {"padding_side": "left", "add_generation_prompt": True, **options}
    return dict(processor(prompts, **options).to(model.device, dtype=model.dtype))


def as_prompt(processor: SugarProcessor, parts: list[Any], history: list[dict[str, Any]] | None = None) -> Any:
    """Make a sample of the user's turn: a chat, or the bare parts where the model has no chat template."""
    if processor.chat_template is None:
        return parts
    return [*(history or []), {"role": "user", "content": parts}]


QUERY_FORMS = ("prompt", "sample")
#: Is told of the hits for a question and why there are none.
OnFound = Callable[[tuple[RagHit, ...], str | None], None]
_CITATION = re.compile(r"\[(\d{1,9}(?:\s*,\s*\d{1,9})*)\]")


@dataclass(frozen=True)
class QuestionSearch:
    """How documents are found for questions.

    Args:
        top_k: How many.
        min_score: Leave out documents below this cosine.
        mode: That of [`SugarIndex.search`].
        prompt: An instruction for the embeddings of questions.
        where: A filter on metadata.
    """

    top_k: int = 5
    min_score: float | None = None
    mode: str = "vector"
    prompt: str | None = None
    where: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: give 1 or more.")
        if self.mode == "text" and self.min_score is not None:
            raise ValueError(f"min_score={self.min_score} is a bound on the cosine, and mode='text' computes none.")

    def check(self, question: Question) -> None:
        """Refuse a question that cannot be searched for.

        Raises:
            ValueError: Words are to be searched, and it has none.
        """
        if self.mode == "text" and not words_of(question.parts, question.name):
            raise ValueError(f"{question.name} has no words to search for. Use mode='vector' or 'hybrid'.")


# ---- Answers ----


@dataclass(frozen=True)
class RagAnswer:
    """An answer, and what it was made from.

    Args:
        text: The answer.
        hits: What was found, best first, with the number of slices of each that are in the prompt.
        note: Why the answer was made without documents; `None` if it was made with some.
        prompt: The parts of the user's turn, in order.
        cited: The hits whose numbers the answer names, in the order of their first mention; empty unless the template
            numbers documents.
        unknown_citations: Numbers in the answer that no document in the prompt has.
        prompt_tokens: Tokens of the prompt.
        reused_tokens: How many of them were not computed for the answer, as they had been before.
    """

    text: str
    hits: tuple[RagHit, ...]
    note: str | None
    prompt: tuple[Any, ...]
    prompt_tokens: int
    reused_tokens: int = 0
    cited: tuple[RagHit, ...] = ()
    unknown_citations: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, fit for JSON; of documents their ids and metadata."""
        keys = ("id", "score", "slice", "used", "metadata")
        return {
            "answer": self.text,
            "documents": [{key: getattr(hit, key) for key in keys} for hit in self.hits],
            "note": self.note,
            "prompt_tokens": self.prompt_tokens,
            "reused_tokens": self.reused_tokens,
            "cited": [hit.id for hit in self.cited],
            "unknown_citations": list(self.unknown_citations),
        }


class SugarRag:
    """Retrieve with a model and let it answer with what it found.

    ```python
    rag = SugarRag.from_pretrained("sugar", "facts.index")
    rag.answer([photo, "When was this built?"]).text
    ```

    With a template that begins with the question (`QUESTION_FIRST`), one forward pass over the question gives its
    embedding and the keys and values from which the answer goes on. Whether that is exact is found out by a check of
    the model at the first question; where it is not, the prompt is computed as a whole, with the same answers.

    Args:
        model: A Sugar model; put into evaluation mode.
        processor: Its processor.
        index: A `SugarIndex` or its folder, an iterable of documents, which are embedded now, or anything with
            `search_embeddings` and `documents`.
        template: Words of the prompt: a `RagTemplate` or its text with `{documents}` and `{question}`. By default the
            paper's for knowledge VQA, which has the documents first.
        top_k: How many documents are looked for.
        min_score: Leave out documents below this cosine.
        mode: How they are found, see [`SugarIndex.search`]: `"vector"`, or with a `SugarIndex` `"text"` or `"hybrid"`.
        prompt: An instruction for the embeddings of questions, see [`SugarEmbedder.encode`]. Then they are taken as
            with `query_form="sample"`.
        max_context_tokens: The most tokens of documents in a prompt, images included; `None` for no limit. They are
            taken in the order of their scores, and of one that does not fit its first slices.
        reuse: Use what was computed for the question again, where that is exact.
        query_form: Where the question's embedding is taken: `"prompt"`, at its last slice in the prompt, which reuse
            needs, or `"sample"`, as the index's documents are, without the words of the chat template. The two differ
            a little, and so may what they find. By default `"prompt"` if keys and values are reused, else `"sample"`.
        cached_prompts: With the documents first: of how many prompts the keys and values up to the question are kept,
            for questions for which the same documents are found in the same order.
        reranker: Puts what was found in another order, such as a `SugarReranker`. `min_score` is of the cosines.
        rerank: How many documents the reranker sees; 20, or `top_k`, when `None`.

    Raises:
        IndexMismatchError: The index was made with another model.
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        model: SugarForConditionalGeneration,
        processor: SugarProcessor,
        index: SugarIndex | RetrievalIndex | str | Path | Iterable[Any],
        *,
        template: RagTemplate | str = KNOWLEDGE_VQA,
        top_k: int = 5,
        min_score: float | None = None,
        mode: str = "vector",
        prompt: str | None = None,
        max_context_tokens: int | None = 2048,
        reuse: bool = True,
        query_form: str | None = None,
        cached_prompts: int = 0,
        reranker: Reranker | None = None,
        rerank: int | None = None,
    ) -> None:
        if query_form not in (None, *QUERY_FORMS):
            raise ValueError(f"query_form={query_form!r}: give one of {', '.join(QUERY_FORMS)}, or None.")
        for name, value, least in (
            ("max_context_tokens", max_context_tokens, 1),
            ("cached_prompts", cached_prompts, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: give {least} or more.")
        candidate_count(top_k, reranker, rerank)
        self._query_form = query_form
        self.model = model.eval()
        self.processor = processor
        self.reranker = reranker
        self.rerank = rerank
        self.template = RagTemplate(template) if isinstance(template, str) else template
        self.max_context_tokens = max_context_tokens
        self.embedder, self.index = _opened(self.model, processor, index)
        self.defaults = QuestionSearch(top_k, min_score, mode, prompt)
        self.search()
        self._wants_reuse = reuse
        self._is_exact: bool | None = None  # whether reuse is, once it is known
        self._cache = PromptCache(model, cached_prompts) if cached_prompts else None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        index: SugarIndex | RetrievalIndex | str | Path | Iterable[Any],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "SugarRag":
        """Load model and processor; `device` and `dtype` are those of `SugarEmbedder.from_pretrained`."""
        loaded = SugarEmbedder.from_pretrained(name_or_path, device=device, dtype=dtype)
        return cls(loaded.model, loaded.processor, index, **options)

    @property
    def reuses(self) -> bool:
        """Whether a part of a question's prompt is computed once for search and answer, or for several questions."""
        if not self._wants_reuse or not (self.template.is_question_first or self._cache is not None):
            return False
        if self._is_exact is None:
            check = check_reuse(self.model, self.processor)
            self._is_exact = check.is_exact
            if not check.is_exact:
                warnings.warn(str(check), stacklevel=4)
        return self._is_exact

    def search(self, **options: Any) -> QuestionSearch:
        """Return how documents are found: as the constructor was told, but for options that are given and not `None`.

        Raises:
            ValueError: Options have values that they cannot have, or do not go together.
        """
        search = replace(self.defaults, **{name: value for name, value in options.items() if value is not None})
        if not isinstance(self.index, SugarIndex) and search.mode != "vector":
            raise ValueError(f"mode={search.mode!r} needs a SugarIndex, {type(self.index).__name__} has no words.")
        if search.prompt and self._query_form == "prompt":
            raise ValueError("prompt= goes with query_form='sample': in the prompt of an answer it has no place.")
        return search

    def find(self, query: Sample, *, top_k: int | None = None, where: Mapping[str, Any] | None = None) -> list[Hit]:
        """Search with a sample as the index's documents are embedded, and leave out what is below `min_score`."""
        search = self.search(top_k=top_k, where=where)
        embedding = None
        if search.mode != "text":
            options: dict[str, Any] = {"show_progress": False, "names": ["query"], "prompt": search.prompt}
            embedding = self.embedder.encode([query], **options)
        return self._ranked(query, query, "query", embedding, search)[1]

    @torch.no_grad()
    def generate(self, sample: Sample, *, skip_special_tokens: bool = True, **generate_kwargs: Any) -> str:
        """Answer one question without searching. Arguments are those of [`answer`]."""
        asked = Question.read(sample)
        features = self._prepared([self._as_prompt(asked.parts, asked)])
        options = generation_options(self.model, self.processor, generate_kwargs)
        output = sequences_of(self.model.generate(**features, **options))
        [text] = self._decoded(output[:1, features["input_ids"].shape[1] :], skip_special_tokens)
        return text

    @torch.no_grad()
    def answer(
        self,
        questions: Any,
        *,
        top_k: int | None = None,
        min_score: float | None = None,
        mode: str | None = None,
        prompt: str | None = None,
        where: Mapping[str, Any] | None = None,
        batch_size: int | None = None,
        names: Sequence[str] | None = None,
        on_found: OnFound | None = None,
        skip_special_tokens: bool = True,
        **generate_kwargs: Any,
    ) -> Any:
        """Answer one question, or a list of questions.

        Args:
            questions: One question: a text, an image, an interleaved list of both, or a chat that ends with the user's
                turn. Or a list of questions, interleaved ones as lists.
            top_k: As for the constructor, here for these questions.
            min_score: Likewise.
            mode: Likewise.
            prompt: Likewise.
            where: A filter on the documents' metadata, which needs a `SugarIndex`.
            batch_size: Questions in one call of `generate`, which reuse nothing; 1 where keys and values are reused,
                else 8, when `None`.
            names: What to call the questions in errors; "question 0", ... when `None`.
            on_found: Is told, for each question, of the hits and the note of its answer before that is generated.
            skip_special_tokens: Leave special tokens out of the answers.
            **generate_kwargs: Passed to `generate` (`max_new_tokens`, `do_sample`, `streamer`, ...).

        Returns:
            For one question a [`RagAnswer`], for a list of questions a list of those.

        Raises:
            ValueError: A question cannot be read, or has no words where words alone are searched; the error names it.
        """
        samples, is_single = split_questions(questions)
        if names is None:
            names = ["question"] if is_single else [f"question {i}" for i in range(len(samples))]
        asked = [Question.read(*row) for row in zip(samples, names, strict=True)]
        search = self.search(top_k=top_k, min_score=min_score, mode=mode, prompt=prompt, where=where)
        for question in asked:
            search.check(question)
        step = batch_size or (1 if is_single or self.reuses else DEFAULT_BATCH_SIZE)
        options = generation_options(self.model, self.processor, generate_kwargs)
        answers: list[RagAnswer] = []
        for start in range(0, len(asked), step):
            batch = asked[start : start + step]
            if step == 1:
                answers.append(self._answer_one(batch[0], search, on_found, options, skip_special_tokens))
            else:
                answers += self._answer_batch(batch, search, on_found, options, skip_special_tokens)
        return answers[0] if is_single else answers

    def _answer_one(
        self,
        question: Question,
        search: QuestionSearch,
        on_found: OnFound | None,
        options: dict[str, Any],
        skip_special_tokens: bool,
    ) -> RagAnswer:
        """Answer a question, with what is computed already where that is exact."""
        may_reuse = self.reuses and _is_single(self.model.generation_config, options)
        prefix: CachedPrefix | None = None
        embedding: np.ndarray | None
        if self._form(search) == "prompt":
            prefix, embedding = self._embed_in_prompt(question)
        else:
            embedding = self._embed_alone([question], search)
        hits, documents, note = self._find(question, embedding, search, on_found)
        prompt = self.template.fill(question.parts, documents)
        features = self._prepared([self._as_prompt(prompt, question)])
        beginning = self._beginning(prefix, features, question, documents) if may_reuse else None
        del prefix  # if it is not used again, its keys and values need not stay while the answer is generated
        reused = 0 if beginning is None else beginning.length
        if beginning is None:
            output = self.model.generate(**features, **options)
        else:
            output = generate_after(self.model, beginning, features, **options)
        length = features["input_ids"].shape[1]
        [text] = self._decoded(sequences_of(output)[:1, length:], skip_special_tokens)
        return RagAnswer(text, tuple(hits), note, tuple(prompt), length, reused, *self._cited(text, hits))

    def _answer_batch(
        self,
        batch: Sequence[Question],
        search: QuestionSearch,
        on_found: OnFound | None,
        options: dict[str, Any],
        skip_special_tokens: bool,
    ) -> list[RagAnswer]:
        """Answer several questions with one call of `generate`."""
        embeddings: Sequence[np.ndarray | None] = [None] * len(batch)
        if self._form(search) == "prompt":
            embeddings = [self._embed_in_prompt(question)[1] for question in batch]
        elif (found := self._embed_alone(batch, search)) is not None:
            embeddings = [row[None] for row in found]
        results = [
            self._find(question, embedding, search, on_found)
            for question, embedding in zip(batch, embeddings, strict=True)
        ]
        prompts = [
            self.template.fill(question.parts, documents)
            for question, (_, documents, _) in zip(batch, results, strict=True)
        ]
        features = self._prepared([self._as_prompt(*row) for row in zip(prompts, batch, strict=True)])
        output = sequences_of(self.model.generate(**features, **options))
        sequences = output[:: len(output) // len(batch), features["input_ids"].shape[1] :]
        texts = self._decoded(sequences, skip_special_tokens)
        tokens = features["attention_mask"].sum(1).tolist()
        return [
            RagAnswer(text, tuple(hits), note, tuple(prompt), count, 0, *self._cited(text, hits))
            for text, (hits, _, note), prompt, count in zip(texts, results, prompts, tokens, strict=True)
        ]

    def _cited(self, text: str, hits: Sequence[RagHit]) -> tuple[tuple[RagHit, ...], tuple[int, ...]]:
        """Find the hits that an answer cites, and the numbers in it that no document has."""
        if not self.template.is_numbered:
            return (), ()
        shown = [hit for hit in hits if hit.used]  # numbered in this order, from 1
        numbers = dict.fromkeys(int(number) for marks in _CITATION.findall(text) for number in marks.split(","))
        known = [number for number in numbers if 1 <= number <= len(shown)]
        return tuple(shown[number - 1] for number in known), tuple(n for n in numbers if n not in known)

    # ---- Search ----

    def _find(
        self, question: Question, embedding: np.ndarray | None, search: QuestionSearch, on_found: OnFound | None
    ) -> tuple[list[RagHit], list[Parts], str | None]:
        """Search, and take what fits. Returns the hits, their parts, and why there are none."""
        hits, kept = self._ranked(question.sample, question.parts, question.name, embedding, search)
        noted, documents = fit(kept, self.processor, self.max_context_tokens, self.embedder.split_sentences)
        note = None
        if not hits:
            note = "nothing was found: answered without documents."
        elif not kept:
            best = max(hit.vector_score or 0.0 for hit in hits)
            note = f"the best score is {best:.3f}, below min_score={search.min_score}: answered without documents."
        elif not documents:
            note = f"no first slice fits into {self.max_context_tokens} tokens: answered without documents."
        if on_found is not None:
            on_found(tuple(noted), note)
        return noted, documents, note

    def _ranked(
        self, query: Sample, words: Sample, name: str, embedding: np.ndarray | None, search: QuestionSearch
    ) -> tuple[Sequence[Hit], list[Hit]]:
        """Search in one stage or two. Returns what was found first, and what is kept of it in the final order."""
        rerank = None if self.rerank is None else max(self.rerank, search.top_k)
        hits = self._search(words, name, embedding, candidate_count(search.top_k, self.reranker, rerank), search)
        least = search.min_score
        kept = [hit for hit in hits if least is None or (hit.vector_score is not None and hit.vector_score >= least)]
        return hits, kept if self.reranker is None else self.reranker.rerank(query, kept, search.top_k)

    def _search(
        self, words: Sample, name: str, embedding: np.ndarray | None, count: int, search: QuestionSearch
    ) -> Sequence[Hit]:
        if isinstance(self.index, SugarIndex):
            options: dict[str, Any] = {"mode": search.mode, "where": search.where}
            return self.index.search({"query": words}, count, vectors=embedding, names=[name], **options)
        if search.where is not None:
            raise ValueError(f"where= needs a SugarIndex, {type(self.index).__name__} knows no metadata.")
        assert embedding is not None  # of another index, only vectors are searched
        hits = []
        for score, place in zip(*(each[0] for each in self.index.search_embeddings(embedding, count)), strict=True):
            if place >= 0:
                document = as_document(self.index.documents[int(place)], int(place))
                hits.append(Hit(document.id, float(score), -1, document, None, float(score)))
        return hits

    # ---- Embed the question ----

    def _form(self, search: QuestionSearch) -> str:
        if search.prompt:
            return "sample"
        if self._query_form is not None:
            return self._query_form
        return "prompt" if self.template.is_question_first and self.reuses else "sample"

    def _embed_in_prompt(self, question: Question) -> tuple[CachedPrefix, np.ndarray]:
        """Run the question as the beginning of its prompt; (1, dim) at its last slice."""
        features = self._prepared([self._as_prompt(question.parts, question)])
        prefix, embeddings = encode_prefix(self.model, features, end_of_last_slice(features))
        found = embeddings[-1:, : self.embedder.dim].cpu().numpy()
        return prefix, found / np.linalg.norm(found, axis=1, keepdims=True)

    def _embed_alone(self, questions: Sequence[Question], search: QuestionSearch) -> np.ndarray | None:
        """Embed questions as samples, (q, dim); `None` where words alone are searched."""
        if search.mode == "text":
            return None
        options: dict[str, Any] = {"show_progress": False, "prompt": search.prompt}
        options["names"] = [question.name for question in questions]
        return self.embedder.encode([question.parts for question in questions], **options)

    # ---- Generate ----

    def _beginning(
        self, prefix: CachedPrefix | None, features: Features, question: Question, documents: Sequence[Parts]
    ) -> CachedPrefix | None:
        """What of a prompt is computed already; with documents first, what is worth being kept is computed now."""
        image_token_id = self.model.config.image_token_id
        if prefix is not None and (found := matching(prefix, features, image_token_id)) is not None:
            return found
        if self._cache is None or self.template.is_question_first or not documents:
            return None
        if (found := self._cache.find(features)) is not None:
            return found
        start = self._prepared([self._as_prompt(self.template.fill([], documents), question)])
        start = first_tokens(start, end_of_last_slice(start))
        length = shared_length(start, features, image_token_id)
        if not length or remaining_images(start, features) is None:
            return None
        computed, _ = encode_prefix(self.model, start, length)
        self._cache.put(computed.copied())
        return computed

    def _as_prompt(self, parts: Parts, question: Question) -> Any:
        return as_prompt(self.processor, parts, [dict(message) for message in question.history])

    def _prepared(self, prompts: list[Any]) -> Features:
        return prepared(self.model, self.processor, prompts)

    def _decoded(self, sequences: torch.Tensor, skip_special_tokens: bool) -> list[str]:
        texts = self.processor.batch_decode(sequences, skip_special_tokens=skip_special_tokens)
        return [text.strip() for text in texts]


def _is_single(config: GenerationConfig, options: Mapping[str, Any]) -> bool:
    """Whether one sequence is generated; several would need as many copies of what is reused."""
    config = options.get("generation_config") or config
    return all((options.get(name, getattr(config, name)) or 1) == 1 for name in ("num_beams", "num_return_sequences"))


def _opened(
    model: SugarForConditionalGeneration, processor: SugarProcessor, index: Any
) -> tuple[SugarEmbedder, SugarIndex | RetrievalIndex]:
    """Open what is to be searched, and embed as it was embedded."""
    if isinstance(index, str | Path):
        index = SugarIndex.load(index)
    if isinstance(index, SugarIndex):
        return index.embedder_with(model, processor), index
    embedder = SugarEmbedder(model, processor)
    if isinstance(index, RetrievalIndex):
        return embedder, index
    documents: list[Document] = [as_document(item, number) for number, item in enumerate(index)]
    if not documents:
        raise ValueError("the index is an empty list: give it documents, or a SugarIndex.")
    vectors = [rows[-1] for rows in embedder.embed_documents(documents) if rows is not None]
    return embedder, CandidateIndex(documents, np.stack(vectors))


# ---- Whether reuse is exact ----


class ReuseCheck(PrefixCheck):
    """What [`check_reuse`] found.

    Args:
        deviation: The largest distance between logits with and without reuse, relative to their size.
        reasons: Why nothing is reused; empty if all is well.
    """

    def __str__(self) -> str:
        if self.is_exact:
            return "What is computed for the beginning of a prompt can be used for the whole of it."
        return (
            f"With this model, nothing of a prompt is reused: {'; '.join(self.reasons)}. Every prompt is computed as "
            "a whole, with the same answers."
        )


@torch.no_grad()
def check_reuse(model: SugarForConditionalGeneration, processor: SugarProcessor) -> ReuseCheck:
    """Find out whether the keys and values of a prompt's beginning are those it has in the whole.

    No list of models is consulted: a drawn prompt with images at its beginning, and more of them after it if the
    model can be given these alone, is continued in both ways, and the logits of two tokens are compared. What depends
    on the single prompt is looked at again for each.

    Args:
        model: A Sugar model, on any device and in any dtype; left as it is.
        processor: Its processor.
    """
    wide, tall = drawn_picture(96, 48), drawn_picture(48, 64)
    start = [wide, tall, "What is drawn here?"]
    follow_ups = (["Look at this, too:", tall, "A drawn picture."], ["This may help: a drawn picture."])
    found: dict[str, None] = {}  # in order, each once
    with evaluation_mode(model):
        for more in follow_ups:
            begin, whole = (
                prepared(model, processor, [as_prompt(processor, parts)]) for parts in (start, start + more)
            )
            prefix, _ = encode_prefix(model, begin, end_of_last_slice(begin))
            obstacle = why_not_beginning(prefix, whole, model.config.image_token_id)
            if obstacle is None:
                deviation = _deviation(model, prefix, whole)
                if deviation <= rounding(model):
                    return ReuseCheck(deviation, ())
                return ReuseCheck(deviation, (f"{SEES_AHEAD} (logits differ by {deviation:.2g})",))
            found[obstacle] = None
    return ReuseCheck(0.0, tuple(found))


def _deviation(model: SugarForConditionalGeneration, prefix: CachedPrefix, whole: Features) -> float:
    """Compare the logits of two tokens generated with and without a prefix."""
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "num_beams": 1, "num_return_sequences": 1}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    reused = generate_after(model, prefix, whole, **options)
    plain = model.generate(**whole, **options)
    pairs = list(zip(reused.logits, plain.logits, strict=False))
    if not torch.equal(reused.sequences, plain.sequences):  # then the second tokens have different beginnings
        pairs = pairs[:1]
    return max(_distance(*pair) for pair in pairs)


def _distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the distance of two rows of logits, relative to how much the scores differ among themselves."""
    difference, scale = ours.float() - theirs.float(), theirs.float() - theirs.float().mean()
    return float(difference.norm() / scale.norm())
