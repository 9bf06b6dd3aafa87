"""`sugar-hf report`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import say, show


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help="Folder that `sugar-hf evaluate` wrote.")],
    output: Annotated[
        Path | None, typer.Option(help="Write the tables to this Markdown file instead of the standard output.")
    ] = None,
    model_index: Annotated[
        Path | None, typer.Option(help="Write the metadata `model-index` of a model card to this YAML file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Whose results go into the metadata, if there are several.")
    ] = None,
    position_curve: Annotated[
        Path | None, typer.Option(help="Draw table 5, accuracy by position, to this file (.png or .svg).")
    ] = None,
) -> None:
    """Put results beside the tables of the paper.

    \b
      sugar-hf report results
      sugar-hf report results --output report.md --model-index index.yaml --model sugar
      sugar-hf report results --position-curve position.png
    """
    import yaml

    from sugar_hf.evaluation.benchmarks.report import as_markdown, draw_position_curve, read_results
    from sugar_hf.evaluation.benchmarks.report import model_index as make_index

    found = read_results(results)
    text = as_markdown(found)
    if output is None:
        show(text)
    else:
        output.write_text(text, encoding="utf-8")
        say(f"wrote {output}")
    if model_index is not None:
        model_index.write_text(yaml.safe_dump({"model-index": make_index(found, model)}, sort_keys=False))
        say(f"wrote {model_index}")
    if position_curve is not None:
        draw_position_curve(found, position_curve)
        say(f"wrote {position_curve}")
