"""`sugar-hf ask`."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .loading import load_embedder, parse_where, read_queries
from .options import (
    Device,
    Dtype,
    IndexFolder,
    Json,
    Mode,
    Model,
    Prompt,
    PromptName,
    Query,
    QueryFile,
    QueryImage,
    Rerank,
    TopK,
    Where,
)
from .output import emit, interruptible, say, show
from .search_command import refuse_prompt, reranking

if TYPE_CHECKING:
    from sugar_hf.retrieval.rag import RagAnswer, RagTemplate

TEMPLATES = ("documents-first", "question-first", "citing")


def ask(
    index: IndexFolder,
    query: Query = None,
    image: QueryImage = None,
    query_file: QueryFile = None,
    top_k: TopK = 5,
    min_score: Annotated[float | None, typer.Option(help="Leave out documents below this cosine.")] = None,
    max_context_tokens: Annotated[
        int, typer.Option(min=1, help="The most tokens of documents in the prompt, images included.")
    ] = 2048,
    template: Annotated[
        str,
        typer.Option(
            help="Words of the prompt: documents-first (the paper's), question-first (what the search computes of the "
            "question is used for the answer), citing (documents have numbers, which the answer names), or a text of "
            "your own with {documents} and {question}.",
        ),
    ] = "documents-first",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 128,
    where: Where = None,
    mode: Mode = "vector",
    prompt: Prompt = None,
    prompt_name: PromptName = None,
    rerank: Rerank = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Answer a question of texts and images with the documents that are found for it.

    \b
      sugar-hf ask facts.index --image tower.jpg "When was it built?"
      sugar-hf ask facts.index "Who wrote it?" --top-k 3 --min-score 0.3 --json
      sugar-hf ask facts.index --query-file questions.jsonl --template question-first > answers.jsonl
      sugar-hf ask facts.index "Who wrote it?" --template citing --rerank 20
      sugar-hf ask manual.index "What does error 0x80070057 mean?" --mode hybrid
      sugar-hf ask facts.index "Who?" --template "Facts: {documents} Question: {question}"
    """
    condition = parse_where(where)
    chosen = template_of(template)
    refuse_prompt(mode, prompt, prompt_name)
    questions, is_stream = read_queries(query, query_file)
    from sugar_hf.retrieval.index import SugarIndex
    from sugar_hf.retrieval.rag import SugarRag

    opened = SugarIndex.load(index)
    loaded = load_embedder(model, device, dtype, 8, settings=opened.info()["settings"])
    options: dict[str, Any] = {"min_score": min_score, "max_context_tokens": max_context_tokens, "template": chosen}
    options |= {"mode": mode, "prompt": loaded.find_prompt(prompt, prompt_name)}
    if rerank is not None:
        options |= reranking(loaded, rerank)
    rag = SugarRag(loaded.model, loaded.processor, opened, top_k=top_k, **options)
    shows_words = not (is_stream or as_json) and sys.stdout.isatty()
    with interruptible("the answers so far are whole"):
        for number, question in enumerate(questions):
            streamer = _streamer(rag) if shows_words else None
            answer = rag.answer({"query": question}, where=condition, max_new_tokens=max_new_tokens, streamer=streamer)
            if is_stream:
                emit({"query": number, **answer.to_dict()})
            elif as_json:
                emit(answer.to_dict())
            else:
                if not shows_words:
                    show(answer.text)
                _say_sources(answer)


def template_of(words: str) -> "RagTemplate":
    """The template of `--template`, by its name or its text."""
    if words not in TEMPLATES and not {"{documents}", "{question}"} <= {*_places(words)}:
        raise typer.BadParameter(
            f"{words!r}: give {', '.join(TEMPLATES)}, or a text with {{documents}} and {{question}}",
            param_hint="--template",
        )
    from sugar_hf.retrieval.rag import CITING, KNOWLEDGE_VQA, QUESTION_FIRST, RagTemplate

    named = dict(zip(TEMPLATES, (KNOWLEDGE_VQA, QUESTION_FIRST, CITING), strict=True))
    return named[words] if words in named else RagTemplate(words)


def _places(template: str) -> list[str]:
    return [place for place in ("{documents}", "{question}") if place in template]


def _streamer(rag: Any) -> Any:
    from transformers import TextStreamer

    class Shown(TextStreamer):
        """Shows words as they come."""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            show(text, end="\n" if stream_end else "")

    return Shown(rag.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _say_sources(answer: "RagAnswer") -> None:
    if answer.note:
        say(answer.note)
    for number, hit in enumerate(answer.hits, start=1):
        place = f", matched up to slice {hit.slice + 1}" if hit.slice >= 0 else ""
        used = f"{hit.used} slice{'s' if hit.used != 1 else ''} in the prompt" if hit.used else "did not fit"
        cited = ", cited" if hit.id in {each.id for each in answer.cited} else ""
        say(f"{number:2}. {hit.score:.4f}  {hit.id}  ({used}{place}{cited})")
    if answer.unknown_citations:
        marks = ", ".join(f"[{number}]" for number in answer.unknown_citations)
        say(f"the answer cites {marks}, which no document in the prompt has")
