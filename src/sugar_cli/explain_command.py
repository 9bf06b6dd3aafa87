"""`sugar-hf explain`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from .loading import load_teacher, parse_where, read_queries
from .options import Device, Dtype, IndexFolder, Json, Model, Query, QueryFile, QueryImage, Where
from .output import emit, say, show
from .search_command import open_index

PLOTS = (".png", ".svg")


def explain(
    index: IndexFolder,
    query: Query = None,
    image: QueryImage = None,
    query_file: QueryFile = None,
    document: Annotated[
        str | None, typer.Option("--id", help="Id of the document. Default: the one that a search finds.")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Which of the documents that a search finds; 1 is the best.")] = 1,
    where: Where = None,
    embeddings: Annotated[
        Literal["slice", "prefix"],
        typer.Option(help="Compare each slice alone, or each with all that comes before it, as a search does."),
    ] = "slice",
    plot: Annotated[Path | None, typer.Option(help="Draw the alignment: a .png or .svg file.")] = None,
    teachers: Annotated[
        str | None,
        typer.Option(
            metavar="mini|paper|CLIP,DINO,TEXT|ENCODER",
            help="Show how the teachers of training align the slices, too: the package's small ones, the paper's from "
            "the Hub, three names or folders, or one model of sentence-transformers for all slices.",
        ),
    ] = None,
    plot_teachers: Annotated[Path | None, typer.Option(help="Draw the teachers' alignment.")] = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Show why a document was found: its slices and the query's compared one by one, and how they align.

    \b
      sugar-hf explain photos.index "a red cat"
      sugar-hf explain stories.index "a storm" --image boat.jpg --rank 2 --plot alignment.png
      sugar-hf explain stories.index --query-file story.json --id 17 --embeddings prefix --json
      sugar-hf explain stories.index "a storm" --teachers mini --plot-teachers labels.svg
    """
    condition = parse_where(where)
    for option, file in (("--plot", plot), ("--plot-teachers", plot_teachers)):
        if file is not None and file.suffix.lower() not in PLOTS:
            raise typer.BadParameter(f"{file}: a picture is written as {' or '.join(PLOTS)}", param_hint=option)
    if plot_teachers is not None and teachers is None:
        raise typer.BadParameter("say which teachers with --teachers", param_hint="--plot-teachers")
    queries, is_stream = read_queries(query, query_file)
    if is_stream:
        raise typer.BadParameter("one query at a time: give a .json file", param_hint="--query-file")
    opened = open_index(index, model, device, dtype)
    if document is None:
        hits = opened.search(queries, rank, where=condition)[0]
        if len(hits) < rank:
            raise ValueError(f"the search found {len(hits)} documents, there is none of rank {rank}")
        hit, name = hits[rank - 1], hits[rank - 1].id
    else:
        hit = name = document
    teacher = None if teachers is None else load_teacher(teachers, "--teachers", device)
    found = opened.explain({"query": queries[0]}, hit, embeddings=embeddings, teacher=teacher)
    if as_json:
        emit({"id": name, **found.to_dict()})
    else:
        show(f"document {name}\n{found}")
    for file, which in ((plot, "model"), (plot_teachers, "teacher")):
        if file is not None:
            from sugar_hf.retrieval.plotting import plot_alignment

            plot_alignment(found, file, which=which)
            say(f"drawn: {file}")
