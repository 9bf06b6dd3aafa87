"""`sugar-hf search`."""

import re
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
from .output import emit, say, show

if TYPE_CHECKING:
    from sugar_hf.data import Document
    from sugar_hf.retrieval.index import Hit, SugarIndex

PREVIEW = 100  # characters of a document that are shown


def open_index(index: Any, model: str | None, device: str | None, dtype: str | None) -> "SugarIndex":
    """Open an index with the model that made it, or the one that was asked for."""
    from sugar_hf.retrieval.index import SugarIndex

    opened = SugarIndex.load(index)
    opened.embedder = load_embedder(model, device, dtype, 8, settings=opened.info()["settings"])
    return opened


def search(
    index: IndexFolder,
    query: Query = None,
    image: QueryImage = None,
    query_file: QueryFile = None,
    top_k: TopK = 10,
    where: Where = None,
    mode: Mode = "vector",
    prompt: Prompt = None,
    prompt_name: PromptName = None,
    late_interaction: Annotated[
        int | None,
        typer.Option(min=1, help="Compare the slices of so many results, in an index with --positions all."),
    ] = None,
    rerank: Rerank = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Find the documents nearest to a query of texts and images, which together are one query, in the order given.

    \b
      sugar-hf search photos.index "a red cat" --top-k 5
      sugar-hf search photos.index --image cat.jpg "the same cat, asleep"
      sugar-hf search stories.index "a storm" --where '{"kind": "story", "year": {"$gte": 2000}}' --json
      sugar-hf search manual.index "error 0x80070057" --mode hybrid
      sugar-hf search photos.index "two cats, one asleep" --top-k 5 --rerank 20
      sugar-hf search photos.index "two cats" --prompt "Find the picture that the user asks for."
      sugar-hf search photos.index --query-file chat.json
      sugar-hf search photos.index --query-file queries.jsonl > results.jsonl
    """
    condition = parse_where(where)
    queries, is_stream = read_queries(query, query_file)
    if late_interaction is None:
        refuse_prompt(mode, prompt, prompt_name)
    if mode == "text" and late_interaction is None and rerank is None:
        from sugar_hf.retrieval.index import SugarIndex

        opened = SugarIndex.load(index)
    else:
        opened = open_index(index, model, device, dtype)
    options: dict[str, Any] = {"mode": mode, "where": condition, "late_interaction": late_interaction}
    options["prompt"] = chosen_prompt(opened, prompt, prompt_name)
    if rerank is not None:
        options |= reranking(opened.embedder, rerank)
    # what is judged takes a forward pass a document: each query is answered before the next one begins
    parts = [queries] if rerank is None else [[query] for query in queries]
    results = (hits for part in parts for hits in opened.search(part, top_k, **options))
    for number, hits in enumerate(results):
        found = [as_dict(hit, mode) for hit in hits]
        if is_stream:
            emit({"query": number, "results": found})
        elif as_json:
            emit(found)
        else:
            _print_hits(hits, set() if mode == "vector" else query_words(queries[0]))


def chosen_prompt(index: "SugarIndex", prompt: str | None, name: str | None) -> str | None:
    """The instruction of `--prompt` or `--prompt-name`."""
    if name is None:
        return prompt
    assert index.embedder is not None  # with words alone, `refuse_prompt` has refused it
    return index.embedder.find_prompt(prompt, name)


def refuse_prompt(mode: str, prompt: str | None, name: str | None) -> None:
    """Refuse an instruction where no query is embedded."""
    if mode == "text" and not (prompt is None and name is None):
        raise typer.BadParameter("with --mode text no query is embedded: leave it out", param_hint="--prompt")


def reranking(embedder: Any, count: int) -> dict[str, Any]:
    """The options of a search that its model reranks."""
    from sugar_hf.retrieval.reranker import SugarReranker

    return {"reranker": SugarReranker(embedder.model, embedder.processor), "rerank": count}


def as_dict(hit: "Hit", mode: str = "vector") -> dict[str, Any]:
    """A result for JSON: images are counted, not shown. Where words were searched, it has the score of each search."""
    scores = {"vector_score": hit.vector_score, "text_score": hit.text_score} if mode != "vector" else {}
    return {
        "id": hit.id,
        "score": round(hit.score, 6),
        **{name: None if score is None else round(score, 6) for name, score in scores.items()},
        "slice": hit.slice,
        "text": "\n".join(texts_of(hit.document)),
        "images": hit.document.size[0],
        "metadata": hit.metadata,
    }


def texts_of(document: "Document") -> list[str]:
    """The texts of a document, in order."""
    return [part["text"] for message in document.content.messages for part in message["content"] if part["text"]]


def query_words(query: Any) -> set[str]:
    """The words of a query that are searched for."""
    from sugar_hf.retrieval.store import words_of

    return set(words_of(query, "query"))


def snippet(text: str, words: set[str], width: int = PREVIEW) -> str:
    """Cut a text to its first piece that has the most different words of a query; its start if it has none."""
    from sugar_hf.retrieval.store.postings import split_words

    if len(text) <= width:
        return text
    room = width - 2  # beside a mark at each cut
    # scripts without spaces have no end of a word near
    units = [match.span() for match in re.finditer(r"\S{1,30}", text)] if words else []
    found = [(start, end, words.intersection(split_words(text[start:end]))) for start, end in units]
    matched = [each for each in found if each[2]]
    most, first, last = 0, 0, 0
    for number, (start, _, _) in enumerate(matched):
        inside = [each for each in matched[number : number + room] if each[1] <= start + room]
        count = len(set().union(*(each[2] for each in inside)))
        if count > most:
            most, first, last = count, start, inside[-1][1]
    if last < width:
        return text[: width - 1] + "…"
    begin = max(min(first - (room - (last - first)) // 2, len(text) - width + 1), 0)
    begin = next(start for start, _ in units if start >= begin)
    end = begin + room
    return "…" + (text[begin:] if end + 1 >= len(text) else text[begin:end].rstrip() + "…")


def _print_hits(hits: list["Hit"], words: set[str]) -> None:
    if not hits:
        say("nothing found")
    for number, hit in enumerate(hits, start=1):
        text = " ".join(" ".join(texts_of(hit.document)).split())
        images = hit.document.size[0]
        pictures = f"  [{images} image{'s' if images > 1 else ''}]" if images else ""
        place = f"  (up to slice {hit.slice + 1})" if hit.slice >= 0 else ""
        show(f"{number:2}. {hit.score:.4f}  {hit.id}{place}{pictures}  {snippet(text, words)}".rstrip())
