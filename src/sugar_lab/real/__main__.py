"""`python -m sugar_lab.real`: what the structure loss is worth on real documents, stage by stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

STAGES = (
    *("models", "states", "heads", "widened", "labels", "hybrid"),
    *("joint", "longer", "longest", "answers", "curve", "asked"),
)
WITH_GPU = ("longest", "asked")


def real(
    work: Annotated[Path, typer.Option(help="Folder of packages, models, states and results.")] = Path("runs/real"),
    packages: Annotated[
        list[Path] | None, typer.Option(help="Folder with packages; what is in none is downloaded. Repeatable.")
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            help=f"One of {', '.join(STAGES)}; repeatable. Default: all, in this order, but {', '.join(WITH_GPU)}, "
            "which want a GPU."
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="ROW", help="Train this row alone in `joint`; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of heads; models have three at the most.")] = 5,
    tasks: Annotated[list[str] | None, typer.Option(help="Measure these alone, as 'gimp/*'; repeatable.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Where the outcomes go. Default: `outcomes` in the work folder.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="A model of the Hub, such as HuggingFaceTB/SmolVLM-256M-Instruct.")
    ] = None,
    clip: Annotated[str | None, typer.Option(help="A CLIP of the Hub, for three teachers of the Hub.")] = None,
    dino: Annotated[str | None, typer.Option(help="Their encoder of images.")] = None,
    text: Annotated[str | None, typer.Option(help="Their encoder of texts, such as BAAI/bge-base-en-v1.5.")] = None,
    dtype: Annotated[
        Literal["bfloat16", "float32"],
        typer.Option(help="Of the frozen model. CPUs without AMX are faster in float32."),
    ] = "bfloat16",
    part: Annotated[str, typer.Option(help="i/n: embed the i-th of n parts of the samples, counted from 0.")] = "0/1",
) -> None:
    """Run the study; each stage keeps what it has made, and an interrupted one resumes.

    \b
      python -m sugar_lab.real
      python -m sugar_lab.real --packages ~/packages --stage models --stage states
      python -m sugar_lab.real --stage joint --only kl
    """
    import torch
    import transformers

    from .run_stage import do_stage
    from .study import Study

    chosen = list(stage or (name for name in STAGES if name not in WITH_GPU))
    if unknown := [name for name in chosen if name not in STAGES]:
        raise typer.BadParameter(f"unknown stage {unknown[0]!r}: choose from {', '.join(STAGES)}.")
    transformers.utils.logging.disable_progress_bar()
    study = Study(work, packages or [], backbone, clip, dino, text, tasks or ("*",), getattr(torch, dtype))
    number, parts = (int(each) for each in part.split("/"))
    options: dict[str, Any] = {
        "only": only or [],
        "seeds": range(seeds),
        "output": output or work / "outcomes",
        "part": number,
        "parts": parts,
    }
    for name in chosen:
        begun = time.monotonic()
        do_stage(study, name, **options)
        typer.echo(f"{name}: {time.monotonic() - begun:.0f} s", err=True)


if __name__ == "__main__":
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(real)
    app(prog_name="python -m sugar_lab.real")
