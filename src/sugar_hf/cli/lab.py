"""`sugar-hf lab`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .loading import quiet_libraries
from .output import interruptible, say, show

if TYPE_CHECKING:
    from ..lab.stages import Lab


def lab(
    budget: Annotated[
        Literal["full", "small", "quick"],
        typer.Option(help="How much is trained and measured; quick is to see that it runs."),
    ] = "full",
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of models, data and results. Default: runs/lab, or runs/lab-small and so on."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROW/TWIN", help="Measure this alone, as sugar/vqav2, sugar or */vqav2; repeatable."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, which share the cores.")] = 1,
    output: Annotated[
        Path | None, typer.Option(help="Where the tables go. Default: docs/lab, or the work folder's for quick.")
    ] = None,
    list_stages: Annotated[bool, typer.Option("--list", help="Name what would be measured, and end.")] = False,
) -> None:
    """Run the paper's experiments on the picturebook; a run that was stopped goes on where it was.

    \b
      sugar-hf lab --budget quick
      sugar-hf lab --workers 2
      sugar-hf lab --only 'sugar/*' --only '*/vist'
      sugar-hf lab --list
    """
    quiet_libraries()
    from ..lab.aggregate import KEPT, write_tables
    from ..lab.budget import BUDGETS
    from ..lab.running import run_stages
    from ..lab.stages import Lab, all_stages

    folder = work or Path("runs", "lab" if budget == "full" else f"lab-{budget}")
    tables = output or (folder / "tables" if budget == "quick" else Path("docs", "lab"))
    place = Lab(BUDGETS[budget], folder, kept=tables / KEPT)
    stages = all_stages(place, only or [])
    if list_stages:
        for stage in stages:
            show(stage.name)
        return
    failure: RuntimeError | None = None
    with interruptible("the same command goes on"):
        try:
            run_stages(place, stages, workers)
        except RuntimeError as error:  # what could be measured is written
            failure = error
        for path in write_tables(place, tables):
            say(f"  {path}")
        if any(tables.glob("table*.json")):
            _write_pages(place, tables)
    if failure is not None:
        raise failure


def _write_pages(place: "Lab", tables: Path) -> None:
    """The document beside the folder of the tables, and in it the gallery, if its model is there."""
    from ..evaluation.running import open_model
    from ..lab.gallery import make_gallery
    from ..lab.report import make_document
    from ..lab.training import model_folder

    model = model_folder(place.rows["sugar"], 0, place.work)
    if (model / "config.json").is_file():
        say(f"  {make_gallery(*open_model(str(model)), tables / 'gallery.html')}")
    say(f"  {make_document(tables, tables.with_suffix('.md'))}")
