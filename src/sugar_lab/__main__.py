"""`python -m sugar_lab`: run the paper's experiments on the picturebook."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from .stages import Lab


def lab(
    budget: Annotated[
        Literal["full", "small", "evidence", "quick"],
        typer.Option(
            help="How much is trained and measured; evidence keeps each item's outcome, quick is to see that it runs."
        ),
    ] = "full",
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of models, data and results. Default: runs/lab, or runs/lab-small and so on."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW/TWIN", help="Measure this alone, as infonce/vqav2, infonce or */vqav2; repeatable."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, which share the cores.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Where the tables go. Default: docs/lab, or the work folder's for quick.")
    ] = None,
    base: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Another model that rows start from, as those without gist; repeatable."),
    ] = None,
    list_stages: Annotated[bool, typer.Option("--list", help="Name what would be measured, and end.")] = False,
) -> None:
    """Run the paper's experiments on the picturebook; an interrupted run resumes.

    \b
      python -m sugar_lab --budget quick
      python -m sugar_lab --workers 2
      python -m sugar_lab --only 'infonce/*' --only '*/vist'
      python -m sugar_lab --list
    """
    import transformers

    from .aggregate import KEPT, write_tables
    from .budget import BUDGETS
    from .evidence import MEASURED, evidence_rows, evidence_twins, write_evidence
    from .scheduler import run_stages
    from .stages import Lab, all_stages

    transformers.utils.logging.disable_progress_bar()
    folder = work or Path("runs", "lab" if budget == "full" else f"lab-{budget}")
    tables = output or (folder / "tables" if budget == "quick" else Path("docs", "lab"))
    place = Lab(BUDGETS[budget], folder, kept=tables / KEPT, bases=tuple(base or ()))
    if budget == "evidence":
        place = replace(place, rows=evidence_rows(), twins=evidence_twins, kept=tables / MEASURED)
    stages = all_stages(place, only or [])
    if list_stages:
        for stage in stages:
            typer.echo(stage.name)
        return
    failure: RuntimeError | None = None
    try:
        try:
            run_stages(place, stages, workers)
        except RuntimeError as error:  # what could be measured is written
            failure = error
        write = write_evidence if budget == "evidence" else write_tables
        for path in write(place, tables):
            typer.echo(f"  {path}", err=True)
        if any(tables.glob("table*.json")):
            _write_pages(place, tables, with_gallery=budget != "evidence")  # it is of the survey's model, which ships
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: repeat the command to resume", err=True)
        raise typer.Exit(130) from None
    if failure is not None:
        typer.echo(f"Error: {failure}", err=True)
        raise typer.Exit(1)


def _write_pages(place: "Lab", tables: Path, with_gallery: bool) -> None:
    """Write the report beside the tables, and the gallery if its model is there."""
    from sugar_hf.evaluation.benchmarks.runner import open_model

    from .lab_gallery import make_gallery
    from .lab_report import make_document
    from .model_rows import DEFAULT
    from .row_training import model_folder

    model = model_folder(place.rows[DEFAULT], 0, place.work) if DEFAULT in place.rows else None
    if with_gallery and model is not None and (model / "config.json").is_file():
        typer.echo(f"  {make_gallery(*open_model(str(model)), tables / 'gallery.html')}", err=True)
    typer.echo(f"  {make_document(tables, tables / 'report.md')}", err=True)


if __name__ == "__main__":
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(lab)
    app(prog_name="python -m sugar_lab")
