"""`sugar-hf export`."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from .loading import quiet_libraries
from .output import say, show


def export(
    model: Annotated[str, typer.Argument(help="Folder or Hub name of a Sugar model.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder for the Hub.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="Name on the Hub, user/model. Default: the folder's.")] = None,
    description: Annotated[str, typer.Option(help="A paragraph for the card.")] = "",
    figures: Annotated[
        Path | None,
        typer.Option(help="Figures for the card: a .json of names and numbers, what demo.py --json wrote, or a .md."),
    ] = None,
    model_license: Annotated[str, typer.Option("--license", help="Licence of the weights.")] = "apache-2.0",
    base_model: Annotated[str | None, typer.Option(help="Model it was made from.")] = None,
    card: Annotated[Path | None, typer.Option(help="Also copy the card to this file.")] = None,
    layout: Annotated[
        Literal["hub", "native"],
        typer.Option(help="hub: a Sugar model with its code. native: for engines that know nothing of Sugar."),
    ] = "hub",
) -> None:
    """Write a folder that can be uploaded to the Hub and works there without this package, with a model card.

    With --layout native, transformers, sentence-transformers and vLLM read it without any code of its own.

    \b
      sugar-hf export sugar --output export --name you/sugar-mini --figures demo.json
      hf upload you/sugar-mini export
      sugar-hf export sugar --output served --layout native
    """
    if layout == "native":
        _export_native(model, output, name)
        return
    metrics = None if figures is None else read_figures(figures)
    quiet_libraries()
    from transformers import AutoModel, AutoProcessor

    from sugar_hf.model import export_for_hub

    card_data = {"license": model_license}
    if base_model is not None:
        card_data["base_model"] = base_model
    folder = export_for_hub(
        AutoModel.from_pretrained(model),
        AutoProcessor.from_pretrained(model),
        output,
        metrics=metrics,
        description=description,
        name=name,
        card_data=card_data,
    )
    if card is not None:
        card.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "README.md", card)
    say(f"written to {folder}; upload it with: hf upload {name or 'USER/MODEL'} {folder}")


def _export_native(model: str, output: Path, name: str | None) -> None:
    quiet_libraries()
    from transformers import AutoModel, AutoProcessor

    from sugar_hf.model import export_for_serving

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report below says the same
        report = export_for_serving(
            AutoModel.from_pretrained(model), AutoProcessor.from_pretrained(model), output, name=name
        )
    for form, reason in report.forms.items():
        show(f"{'not exact' if reason else 'exact':10} {form}{': ' if reason else ''}{reason}")
    say(f"written to {output}; {output / 'README.md'} has the commands of other engines")


def read_figures(file: Path) -> dict[str, float | str] | str:
    """Results for a card: Markdown as it is, a table of names and numbers, or that of `examples/demo.py --json`."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    try:
        figures = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is neither Markdown (.md) nor JSON ({error})") from error
    if not isinstance(figures, dict):
        raise ValueError(f"{file}: write a JSON object of names and numbers")
    if {"settings", "before", "after"} <= figures.keys():
        return _demo_table(figures)
    wrong = [key for key, value in figures.items() if not isinstance(value, str | int | float)]
    if wrong:
        raise ValueError(f"{file}: {', '.join(wrong)} is no number or text")
    return figures


def _demo_table(figures: dict) -> str:
    settings = figures["settings"]
    lines = [
        f"After {settings['steps']} steps of `examples/demo.py` (seed {settings['seed']}), on held-out combinations,",
        f"pools of {settings['pool']} candidates, in %:",
        "",
        "| | before | after |",
        "|---|---|---|",
    ]
    for name, value in figures["after"].items():
        if "recall" in name or "accuracy" in name:
            lines.append(f"| {name} | {figures['before'][name]:.1f} | {value:.1f} |")
    return "\n".join(lines)
