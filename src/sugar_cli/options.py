"""Options that several commands share, and the order of a query's parts."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.", show_default=False)]
Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE...",
        help="Folders of PDF, HTML, Markdown, images and texts, or one such file; .jsonl, .json, .csv, .tsv or "
        ".parquet files, webdataset .tar shards, saved data sets, or the drawn world: "
        "picturebook:test/story?size=100",
        show_default=False,
    ),
]
Query = Annotated[
    list[str] | None, typer.Argument(metavar="[TEXT | --image FILE]...", help="The query, in reading order.")
]
QueryImage = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="An image of the query, in its place among the texts."),
]
QueryFile = Annotated[
    Path | None,
    typer.Option(
        help="Read the query from a file instead: .json with chat messages or a list of texts and "
        '{"image": "file"}; .jsonl with one such query a line, each answered by a line of JSON.',
    ),
]
Model = Annotated[
    str | None,
    typer.Option(help="Folder or Hub name of the model. Default: the index's, else ./sugar, else the mini model."),
]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0. Default: the accelerator, if there is one.")]
Dtype = Annotated[str | None, typer.Option(help="Data type of the weights, such as bfloat16.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Documents in one forward pass.")]
PartDocuments = Annotated[
    int, typer.Option(min=1, help="Documents between two points from which a stopped run goes on.")
]
TopK = Annotated[int, typer.Option(min=1, help="How many results.")]
Rerank = Annotated[
    int | None,
    typer.Option(min=1, help="Let the model judge this many of what was found, and take the best by its judgement."),
]
Mode = Annotated[
    Literal["vector", "text", "hybrid"],
    typer.Option(help="Compare embeddings, or words (without a model), or both."),
]
Prompt = Annotated[
    str | None,
    typer.Option(help="An instruction for the embeddings of queries, such as one that the model was trained with."),
]
PromptName = Annotated[
    str | None,
    typer.Option(help="Instead: its name among the prompts that the model has for sentence-transformers."),
]
Where = Annotated[
    str | None,
    typer.Option(help='Only documents with this metadata, as JSON: \'{"kind": "story", "year": {"$gte": 2000}}\''),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to the standard output.")]
OnError = Annotated[
    Literal["raise", "skip"], typer.Option(help="What a broken document does; those that are skipped are named.")
]
Positions = Annotated[
    Literal["last", "all"], typer.Option(help="Embed whole documents, at their last slice, or at each slice.")
]
TruncateDim = Annotated[int | None, typer.Option(min=1, help="Keep this many leading dimensions.")]
SplitSentences = Annotated[bool, typer.Option("--split-sentences", help="Make one slice of each sentence.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="The most tokens of a document.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Drop the last slices of longer documents; else an error.")]
TextField = Annotated[str | None, typer.Option(help="Column of the text. Default: text, caption or txt.")]
IdField = Annotated[str | None, typer.Option(help="Column of the id. Default: id, key or file_name.")]
ImageRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that image names in rows and pages may not leave. Default: the file's."),
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--column", help="Read this column of rows and no other; may be given several times."),
]
DropColumns = Annotated[
    list[str] | None,
    typer.Option("--drop-column", help="Leave this column of rows alone; may be given several times."),
]
DropBrokenImages = Annotated[
    bool,
    typer.Option("--drop-broken-images", help="Leave broken images out of web documents and pages, which stay."),
]
Captions = Annotated[
    bool,
    typer.Option(
        help="Whether a text file beside an image of the same name is its caption, or a document; and whether COCO's "
        "captions are texts of their image, or its metadata."
    ),
]
SectionLength = Annotated[
    int, typer.Option(help="Characters of a section or page; what is longer becomes several documents.")
]
PagePixels = Annotated[int, typer.Option(help="Pixels of the picture of a page of a PDF, about.")]


@dataclass(frozen=True)
class Reading:
    """Options of reading documents, those of `read_sources`."""

    text_field: TextField = None
    id_field: IdField = None
    image_root: ImageRoot = None
    captions: Captions = True
    columns: Columns = None
    drop_columns: DropColumns = None
    drop_broken_images: DropBrokenImages = False
    section_length: SectionLength = 4000
    page_pixels: PagePixels = 1_000_000
    on_error: OnError = "raise"


@dataclass(frozen=True)
class Running:
    """Options of running a model, those of `load_embedder`."""

    model: Model = None
    device: Device = None
    dtype: Dtype = None
    batch_size: BatchSize = 8


@dataclass(frozen=True)
class Embedding:
    """Options of new embeddings."""

    positions: Positions = "last"
    truncate_dim: TruncateDim = None
    split_sentences: SplitSentences = False
    max_length: MaxLength = None
    truncate: Truncate = False

    @property
    def settings(self) -> dict[str, Any]:
        """Return them as the options of `SugarEmbedder`."""
        settings = dict(vars(self))
        settings["truncation"] = "slice" if settings.pop("truncate") else False
        return settings


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, for each parameter of one of the classes above, the options of that class."""
    signature = inspect.signature(command, eval_str=True)
    hints: dict[str, Any] = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{option.name: values.pop(option.name) for option in fields(group)})
        command(**values)

    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        options = [*inspect.signature(groups[name], eval_str=True).parameters.values()] if name in groups else []
        parameters += options or [parameter]
    named = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = signature.replace(parameters=named)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


IMAGE_OPTION = "--image"
IMAGE_MARK = "\0image:"  # no argument of a program can hold a NUL


_OPTION = re.compile(r"--?[A-Za-z][A-Za-z0-9_-]*(=.*)?", re.DOTALL)


class TextCommand(TyperCommand):
    """A command whose arguments may begin with a dash, as "-5 degrees" does, and stay in order with `--image` files.

    What looks like an option, one word of letters, is one, so that a mistyped one is not taken for a text; behind `--`
    nothing is.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put options first, and texts and the files of `--image` behind a `--`."""
        options: dict[str, Any] = {}
        for option in self.get_params(ctx):
            options |= dict.fromkeys((*option.opts, *option.secondary_opts), option)
        first: list[str] = []
        texts: list[str] = []
        left = list(args)
        while left:
            item = left.pop(0)
            name, equals, value = item.partition("=")
            if item == "--":
                texts += left
                break
            if name == "--image" and IMAGE_OPTION in options and (equals or left):
                texts.append(IMAGE_MARK + (value if equals else left.pop(0)))
            elif name.startswith("-") and name in options:
                first.append(item)
                if left and not equals and not options[name].is_flag:
                    first.append(left.pop(0))
            elif _OPTION.fullmatch(item):
                first.append(item)
            else:
                texts.append(item)
        return super().parse_args(ctx, [*first, "--", *texts])
