"""`sugar-hf space`."""

from pathlib import Path
from typing import Annotated

import typer

from .output import say


def space(
    folder: Annotated[Path, typer.Argument(help="Where the files of the Space are written.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="Hub name of the model; a folder for trying it out here.", show_default=False)
    ],
    index: Annotated[
        str | None, typer.Option(help="Hub name of an index to search and answer from; a folder likewise.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page. Default: the model's name.")] = None,
    description: Annotated[str, typer.Option(help="A paragraph for the page.")] = "",
    example: Annotated[list[str] | None, typer.Option(help="A question to pick; may be given several times.")] = None,
    hardware: Annotated[str, typer.Option(help="What the Space asks for, such as cpu-basic.")] = "zero-a10g",
    package: Annotated[
        str | None, typer.Option(help="What pip installs for sugar-hf there. Default: this version.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many documents are found.")] = 6,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer.")] = 128,
    push: Annotated[
        str | None,
        typer.Option(metavar="USER/SPACE", help="Upload it as this Space, with the token of `hf auth login`."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new Space private.")] = False,
) -> None:
    """Write a Gradio Space: chat, search and answers on one page.

    \b
      sugar-hf space page --model you/sugar --index you/photos
      sugar-hf space page --model you/sugar --hardware cpu-basic --push you/sugar-page
      cd page && python app.py
    """
    from .space_files import GRADIO, push_space, write_space

    write_space(
        folder,
        model,
        index,
        title=title,
        description=description,
        examples=example or (),
        hardware=hardware,
        package=package,
        top_k=top_k,
        max_new_tokens=max_new_tokens,
    )
    say(f'written to {folder}; try it: pip install "gradio=={GRADIO}" and python {folder / "app.py"}')
    if push is not None:
        say(f"uploaded: {push_space(folder, push, private=private or None)}")
