"""The commands, and how the program ends."""

import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer

from .ask_command import ask
from .embed_command import embed
from .evaluate_command import evaluate
from .explain_command import explain
from .export_command import export
from .index_command import index_app
from .mine_command import mine
from .options import TextCommand
from .output import visible
from .report_command import report
from .search_command import search
from .serve_command import serve
from .space_command import space

HELP = """Train Sugar models, index interleaved documents, search them, answer with what is found, serve, and measure.

\b
  sugar-hf index build photos.index ~/Photos
  sugar-hf search photos.index "a red boat by the sea"
  sugar-hf search photos.index "the same, at night:" --image boat.jpg
  sugar-hf ask photos.index "What is beside the red boat?"
  sugar-hf explain photos.index "a red boat by the sea" --plot why.png
  sugar-hf serve sugar --index photos.index
  sugar-hf mine pairs.jsonl --index corpus.index --output mined.jsonl
  sugar-hf train examples/recipes/llava15_7b.yaml
  sugar-hf evaluate --task vist --data ~/vist --model sugar

`sugar-hf COMMAND --help` shows more examples. Results go to the standard output, everything else to the standard error
output. The program ends with 0 if all went well, 1 after an error, 2 after a wrong command, 130 after Ctrl-C.
"""

READERS = {"build", "add", "embed"}  # commands with --on-error

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=True)


@dataclass
class Options:
    """What was said before the command."""

    debug: bool = False


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("sugar-hf"))
        raise typer.Exit


@app.callback(help=HELP)
def _options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    context.obj.debug = debug


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def train(context: typer.Context) -> None:
    """Fine-tune a vision-language model, with a recipe or options; `sugar-hf train --help` lists all of them.

    \b
      sugar-hf train recipe.yaml --output_dir sugar
    """
    from .train_command import main as run

    run(context.args, "sugar-hf train")


app.add_typer(index_app, name="index")
app.command(cls=TextCommand)(search)
app.command(cls=TextCommand)(ask)
app.command(cls=TextCommand)(explain)
app.command(cls=TextCommand)(embed)
app.command()(export)
app.command()(space)
app.command()(mine)
app.command()(evaluate)
app.command()(report)
app.command()(serve)


def _plain(message: Warning | str, *_: object, **__: object) -> str:
    return f"Warning: {visible(str(message))}\n"


def main(command: list[str] | None = None) -> NoReturn:
    """Run a command and end the process.

    Args:
        command: What stands after the program's name; this process's when `None`.
    """
    arguments = sys.argv[1:] if command is None else command
    options = Options()
    warnings.formatwarning = _plain
    try:
        app(arguments, prog_name="sugar-hf", obj=options)
    except Exception as error:  # the edge of the program: whatever it was becomes one line
        if options.debug:
            raise
        text = " ".join(str(error).split())
        if type(error).__name__ == "BadSampleError" and READERS & set(arguments):  # no import for a rare case
            text += ". With --on-error skip, such documents are left out and named."
        if isinstance(error, FileExistsError):
            text = text.replace("overwrite=True", "--overwrite")
        expected = isinstance(error, ValueError | OSError | RuntimeError | ImportError)
        name = "" if expected and text else f"{type(error).__name__}: "
        typer.echo(visible(f"Error: {name}{text}"), err=True)
        sys.exit(1)
    sys.exit(0)
