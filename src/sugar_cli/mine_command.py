"""`sugar-hf mine`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .loading import load_teacher
from .options import Device, Dtype, ImageRoot, Json, Model, Prompt, PromptName
from .output import emit, interruptible, name_skipped, say
from .search_command import chosen_prompt, open_index


def mine(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            help="File of rows with query and positives: .jsonl, .json, .csv, .tsv or .parquet, also in the columns "
            "of sentence-transformers, FlagEmbedding and MMEB; or a saved data set.",
            show_default=False,
        ),
    ],
    index: Annotated[Path, typer.Option(help="Folder of the index in which negatives are found.", show_default=False)],
    output: Annotated[Path, typer.Option(help="The .jsonl file that is written.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Negatives of a query.")] = 5,
    ranks: Annotated[
        str, typer.Option(metavar="FIRST-LAST", help="Ranks that are looked at; positives and copies have none.")
    ] = "10-50",
    margin: Annotated[
        float | None, typer.Option(help="A negative scores at least this much less than each positive.")
    ] = None,
    relative_margin: Annotated[
        float | None, typer.Option(help="A negative scores at least this share less than each positive.")
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Least score of a negative.")] = None,
    max_score: Annotated[float | None, typer.Option(help="Largest score of a negative.")] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="mini|paper|CLIP,DINO,TEXT|ENCODER",
            help="Leave out what a teacher finds too much like the query or a positive: the package's small teachers, "
            "the paper's, three names or folders, or one model of sentence-transformers.",
        ),
    ] = None,
    teacher_threshold: Annotated[float, typer.Option(help="From which similarity on it does so.")] = 0.9,
    sampling: Annotated[Literal["top", "random"], typer.Option(help="Take the best that are left, or any.")] = "top",
    seed: Annotated[int, typer.Option(help="Of random sampling.")] = 0,
    scores: Annotated[
        Literal["index", "teacher"] | None,
        typer.Option(help="Write scores of positives and negatives: the model's, or the teacher's."),
    ] = None,
    prompt: Prompt = None,
    prompt_name: PromptName = None,
    image_root: ImageRoot = None,
    on_error: Annotated[
        Literal["raise", "skip"],
        typer.Option(help="What a row does that cannot be read or embedded; those are named."),
    ] = "raise",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")] = False,
    part_rows: Annotated[int, typer.Option(min=1, help="Rows between two points where a stopped run goes on.")] = 256,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Find hard negatives for pairs in an index, and write rows to train on.

    \b
      sugar-hf mine pairs.jsonl --index corpus.index --output mined.jsonl --ranks 10-50 --margin 0.05
      sugar-hf mine pairs.jsonl --index corpus.index --output mined.jsonl --teacher mini --sampling random --seed 3
      sugar-hf train --dataset mined.jsonl --output_dir sugar
    """
    from sugar_hf.retrieval.mining import MiningRules, mine_negatives

    span = re.fullmatch(r"(\d+)-(\d+)", ranks)
    if span is None:
        raise typer.BadParameter("give two ranks, such as 10-50", param_hint="--ranks")
    rules: dict[str, Any] = {
        "count": count,
        "ranks": (int(span[1]), int(span[2])),
        "margin": margin,
        "relative_margin": relative_margin,
        "min_score": min_score,
        "max_score": max_score,
        "teacher_threshold": teacher_threshold,
        "sampling": sampling,
        "seed": seed,
        "scores": scores,
    }
    MiningRules(**rules)  # before a model is loaded
    opened = open_index(index, model, device, dtype)
    with interruptible("the same command goes on where it was stopped"):
        report = mine_negatives(
            pairs,
            opened,
            output,
            prompt=chosen_prompt(opened, prompt, prompt_name),
            teacher=None if teacher is None else load_teacher(teacher, "--teacher", device),
            image_root=image_root,
            on_error=on_error,
            overwrite=overwrite,
            part_rows=part_rows,
            **rules,
        )
    name_skipped(report.skipped)
    if as_json:
        emit(report.counts())
    else:
        say(f"{output}: {report}")
