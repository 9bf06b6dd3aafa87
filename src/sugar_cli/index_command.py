"""`sugar-hf index`: build, add, delete, info, compact, push."""

import json
from typing import Annotated, Any, Literal

import typer

from .loading import join_processes, load_embedder, parse_where, read_sources
from .options import (
    Embedding,
    IndexFolder,
    Json,
    PartDocuments,
    Reading,
    Running,
    Sources,
    TextCommand,
    Where,
    with_options,
)
from .output import emit, interruptible, name_skipped, say, show

_GO_ON = (
    "the index is as it was, and what was embedded is kept. The same command goes on from there; any other change of "
    "the index discards it"
)

index_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Make and change indexes of interleaved documents."
)


@index_app.command(cls=TextCommand)
@with_options
def build(
    index: IndexFolder,
    sources: Sources,
    vectors: Annotated[
        Literal["float32", "float16", "int8", "binary"], typer.Option(help="How vectors are kept.")
    ] = "float32",
    backend: Annotated[Literal["faiss", "milvus"], typer.Option(help="What searches.")] = "faiss",
    backend_options: Annotated[
        str | None, typer.Option(help='Options of the backend, as JSON: \'{"kind": "hnsw"}\'')
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there once this is whole.")] = False,
    *,
    embedding: Embedding,
    running: Running,
    reading: Reading,
    part_documents: PartDocuments = 1024,
    as_json: Json = False,
) -> None:
    """Embed documents and make an index of them. An interrupted build resumes.

    \b
      sugar-hf index build photos.index ~/Photos
      sugar-hf index build manual.index ~/Manuals --positions all
      sugar-hf index build stories.index stories.jsonl --positions all --vectors int8
      sugar-hf index build big.index data/*.parquet --backend-options '{"kind": "hnsw"}' --on-error skip
      torchrun --nproc_per_node 8 -m sugar_cli index build big.index data/*.parquet
    """
    options = _json_option(backend_options, "--backend-options")
    join_processes()
    skipped: list[Any] = []
    documents = read_sources(sources, skipped=skipped, **vars(reading))
    embedder = load_embedder(**vars(running), **embedding.settings)
    from sugar_hf.retrieval.index import SugarIndex

    with interruptible(_GO_ON):
        made = SugarIndex.build(
            index,
            documents,
            embedder,
            backend=backend,
            vectors=vectors,
            backend_options=options,
            overwrite=overwrite,
            on_error=reading.on_error,
            part_documents=part_documents,
        )
    name_skipped(skipped)
    _show({"documents": len(made), **made.info()}, as_json, f"{len(made)} documents in {index}")


@index_app.command(cls=TextCommand)
@with_options
def add(
    index: IndexFolder,
    sources: Sources,
    on_duplicate: Annotated[
        Literal["raise", "skip", "update"], typer.Option(help="What an id that is there already does.")
    ] = "raise",
    *,
    running: Running,
    reading: Reading,
    part_documents: PartDocuments = 1024,
    as_json: Json = False,
) -> None:
    """Add documents to an index, all or none. An interrupted call resumes when it is repeated.

    \b
      sugar-hf index add photos.index ~/Photos/new
      sugar-hf index add stories.index corrected.jsonl --on-duplicate update
    """
    join_processes()
    from sugar_hf.retrieval.index import SugarIndex

    opened = SugarIndex.load(index)
    skipped: list[Any] = []
    documents = read_sources(sources, skipped=skipped, **vars(reading))
    opened.embedder = load_embedder(**vars(running), settings=opened.info()["settings"])
    with interruptible(_GO_ON):
        report = opened.add(
            documents, on_error=reading.on_error, on_duplicate=on_duplicate, part_documents=part_documents
        )
    name_skipped(skipped)
    shown = {
        "added": report.added,
        "updated": report.updated,
        "duplicates": report.duplicates,
        "skipped": len(skipped) + len(report.skipped),
        "documents": len(opened),
        "seconds": round(report.seconds, 3),
    }
    changed = f", {report.updated} updated" if report.updated else ""
    _show(shown, as_json, f"{report.added} documents added{changed}; {index} now has {len(opened)}")


@index_app.command(cls=TextCommand)
def delete(
    index: IndexFolder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of documents.")] = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Delete documents by id, or all that a filter finds.

    \b
      sugar-hf index delete photos.index sea/b.png sea/c.png
      sugar-hf index delete stories.index --where '{"year": {"$lt": 1990}}'
    """
    if bool(ids) == (where is not None):
        raise typer.BadParameter("give ids, or a filter with --where", param_hint="ID")
    condition = parse_where(where)
    from sugar_hf.retrieval.index import SugarIndex

    opened = SugarIndex.load(index)
    with interruptible("the index is unchanged, or the deletion is complete"):
        deleted = opened.delete(ids) if ids else opened.delete(where=condition)
    _show({"deleted": deleted, "documents": len(opened)}, as_json, f"{deleted} documents deleted, {len(opened)} left")


@index_app.command()
def info(index: IndexFolder, as_json: Json = False) -> None:
    """Show what an index holds: documents, sizes, how it was made.

    \b
      sugar-hf index info photos.index
    """
    from sugar_hf.retrieval.index import SugarIndex

    found = SugarIndex.load(index, verify=False).info()
    if as_json:
        emit(found)
        return
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {each}" for name, each in value.items() if each not in (None, False))
        if value not in (None, ""):
            show(f"{key.replace('_', ' ')}: {value}")


@index_app.command()
def compact(index: IndexFolder, as_json: Json = False) -> None:
    """Give back the space of deleted documents; nothing is embedded again.

    \b
      sugar-hf index compact photos.index
    """
    from sugar_hf.retrieval.index import SugarIndex

    opened = SugarIndex.load(index)
    with interruptible("the index is as it was"):
        opened.compact()
    _show({"documents": len(opened)}, as_json, f"{index} has {len(opened)} documents and nothing else")


@index_app.command()
def push(
    index: IndexFolder,
    repo: Annotated[str, typer.Argument(help="Name on the Hub, user/index.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    as_json: Json = False,
) -> None:
    """Upload an index as a data set repository of the Hub.

    \b
      sugar-hf index push photos.index you/photos
    """
    from sugar_hf.retrieval.index import SugarIndex

    address = SugarIndex.load(index).push_to_hub(repo, private=private)
    _show({"repository": repo, "commit": str(address)}, as_json, f"uploaded to {repo}")


def _json_option(value: str | None, name: str) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        options = json.loads(value)
    except ValueError as error:
        raise typer.BadParameter(f"it is no JSON ({error})", param_hint=name) from error
    if not isinstance(options, dict):
        raise typer.BadParameter("write a JSON object", param_hint=name)
    return options


def _show(values: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        emit(values)
    else:
        say(text)
