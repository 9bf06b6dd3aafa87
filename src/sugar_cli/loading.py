"""From what stands on the command line to models, documents and queries."""

import atexit
import json
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import typer

from .options import IMAGE_MARK
from .output import be_silent, say

if TYPE_CHECKING:
    from sugar_hf.data import Document
    from sugar_hf.data.formats import ImageSource
    from sugar_hf.retrieval.embedder import SugarEmbedder
    from sugar_hf.structure import Teacher

PICTUREBOOK = "picturebook:"


def quiet_libraries() -> None:
    """Keep the progress of loading weights to ourselves; warnings and errors stay."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def join_processes() -> None:
    """Join the group of processes that torchrun or accelerate has started this one for; the first speaks for all."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")  # they tell each other a few words, no tensors
        atexit.register(distributed.destroy_process_group)
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    if distributed.get_rank():
        be_silent()


def find_model(model: str | None, recorded: str | None = None) -> str:
    """The model to use: the given one, else the index's, else ./sugar, else the mini model; says which.

    Raises:
        ValueError: There is none of them.
    """
    if model is not None:
        return model
    if recorded:
        if Path(recorded).is_absolute() and not Path(recorded).is_dir():
            raise ValueError(f"the index was made with {recorded}, which is not there: say where it is with --model")
        say(f"model: {recorded} (recorded in the index)")
        return recorded
    from sugar_hf.model import DefaultModel

    name, _ = DefaultModel()["model"]
    say(f"model: {name} (no --model given)")
    return name


def load_embedder(
    model: str | None,
    device: str | None,
    dtype: str | None,
    batch_size: int,
    settings: Mapping[str, Any] | None = None,
    **options: Any,
) -> "SugarEmbedder":
    """Load the model and embed as an index does, or as the options say.

    Args:
        model: Folder or Hub name, if one was given.
        device: See `SugarEmbedder.from_pretrained`.
        dtype: See `SugarEmbedder.from_pretrained`.
        batch_size: Documents in one forward pass.
        settings: The embedding settings of an index.
        **options: Those of `SugarEmbedder`, if there is no index yet.
    """
    quiet_libraries()
    from sugar_hf.retrieval.embedder import SugarEmbedder

    settings = settings or {}
    kept = ("positions", "truncate_dim", "split_sentences", "max_length", "truncation")
    options = {**{name: settings[name] for name in kept if name in settings}, **options}
    name = find_model(model, settings.get("model"))
    return SugarEmbedder.from_pretrained(name, device=device, dtype=dtype, batch_size=batch_size, **options)


def load_teacher(named: str, option: str, device: str | None) -> "Teacher":
    """Load `mini`, `paper`, three names (CLIP,DINO,TEXT), or one model of sentence-transformers.

    Raises:
        typer.BadParameter: It is none of these.
    """
    from sugar_hf.structure import EncoderTeacher, TripleTeacher

    options: dict[str, Any] = {"show_progress": False, "device": device or "cpu"}
    if named == "paper":
        return TripleTeacher.from_pretrained(**options)
    if named == "mini":
        from sugar_hf.picturebook import mini_teachers

        names = [mini_teachers()[role] for role in ("clip", "dino", "text")]
    else:
        names = [name.strip() for name in named.split(",")]
    if len(names) not in (1, 3) or not all(names):
        said = "give mini, paper, or three names: CLIP,DINO,TEXT; or that of one model of sentence-transformers"
        raise typer.BadParameter(said, param_hint=option)
    if len(names) == 1:
        return EncoderTeacher.from_pretrained(names[0], **options)
    clip, dino, text = names
    return TripleTeacher.from_pretrained(clip=clip, dino=dino, text=text, **options)


def read_sources(
    sources: list[str],
    *,
    text_field: str | None,
    id_field: str | None,
    image_root: Path | None,
    captions: bool,
    on_error: str,
    skipped: list[Any],
    columns: list[str] | None = None,
    drop_columns: list[str] | None = None,
    drop_broken_images: bool = False,
    section_length: int = 4000,
    page_pixels: int = 1_000_000,
) -> Iterator["Document"]:
    """The documents of all sources, in order.

    Raises:
        FileNotFoundError: One of them does not exist, before any is read.
        ValueError: One of them cannot be read.
    """
    from sugar_hf.data import read_documents

    opened = [
        _picturebook(source)
        if source.startswith(PICTUREBOOK)
        else read_documents(
            source,
            text_field=text_field,
            id_field=id_field,
            image_root=image_root,
            captions=captions,
            columns=columns or None,
            drop_columns=drop_columns or None,
            drop_broken_images=drop_broken_images,
            section_length=section_length,
            page_pixels=page_pixels,
            on_error=on_error,
            skipped=skipped,
        )
        for source in sources
    ]
    return chain.from_iterable(opened)


def _picturebook(source: str) -> Iterator["Document"]:
    """`picturebook:test/story?size=100&seed=1`, the kind and the options may be left out."""
    from sugar_hf import picturebook
    from sugar_hf.data import as_document

    place, _, query = source.removeprefix(PICTUREBOOK).partition("?")
    split, _, kind = place.partition("/")
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        options: dict[str, Any] = {key: int(value) for key, value in pairs}
    except ValueError as error:
        raise ValueError(f"{source}: {error}. Write picturebook:test/story?size=100&seed=1") from error
    if unknown := options.keys() - {"size", "seed"}:
        raise ValueError(f"{source}: no option {', '.join(sorted(unknown))}; there are size and seed")
    rows = picturebook.load(split, kind=kind or None, **options)
    return (as_document(row, number) for number, row in enumerate(rows))


def parse_where(where: str | None) -> dict[str, Any] | None:
    """The filter of `--where`."""
    if where is None:
        return None
    try:
        value = json.loads(where)
    except ValueError as error:
        raise typer.BadParameter(f"it is no JSON ({error})", param_hint="--where") from error
    if not isinstance(value, dict):
        raise typer.BadParameter('write a JSON object, such as {"kind": "story"}', param_hint="--where")
    return value


def read_queries(parts: list[str] | None, file: Path | None) -> tuple[list[Any], bool]:
    """The queries, and whether they are a stream (`.jsonl`).

    Raises:
        ValueError: The file is no JSON, or a query in it cannot be read.
        typer.BadParameter: There is no query, or one in both ways.
    """
    if (file is None) == (not parts):
        said = "give the query as texts and --image, or with --query-file" if file is None else "give one or the other"
        raise typer.BadParameter(said, param_hint="QUERY")
    if file is None:
        sample = [Path(part.removeprefix(IMAGE_MARK)) if part.startswith(IMAGE_MARK) else part for part in parts or []]
        for image in sample:
            if isinstance(image, Path) and not image.is_file():
                raise FileNotFoundError(f"no image {str(image)!r}")
        return [sample], False
    from sugar_hf.data import BadSampleError
    from sugar_hf.data.containers import decode_text
    from sugar_hf.data.formats import ImageSource

    try:
        text = decode_text(file.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error}): it has to be JSON in UTF-8") from error
    is_stream = file.suffix == ".jsonl"
    # not splitlines, which also splits at characters that may stand in a string of JSON
    lines = [line for line in text.split("\n") if line.strip()] if is_stream else [text]
    if not lines:
        raise ValueError(f"{file} is empty: write one query a line")
    images = ImageSource(str(file.absolute().parent), validate=False)
    queries = []
    for number, line in enumerate(lines):
        where = f"query {number}" if is_stream else "query"
        try:
            queries.append(_as_query(_parsed(line, file, where), file, where, images))
        except BadSampleError as error:
            error.at(file=str(file))
            raise
    return queries, is_stream


def _parsed(line: str, file: Path, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        lines = len(line.splitlines())
        hint = " Write one query a line in a .jsonl file, and one in a .json file." if lines > 1 else ""
        raise ValueError(f"{file}: {where} is no JSON ({error}).{hint} A chat is saved with json.dumps.") from error


def _as_query(value: Any, file: Path, where: str, images: "ImageSource") -> Any:
    """The sample of a query file: a text, a list of parts, a chat, or what a pipeline or another tool saved of one."""
    from sugar_hf.data.readers import resolve_images

    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) and "generated_text" in value[0]:
        value = value[0]["generated_text"]  # what `sugar-chat` returns
    for key in ("query", "messages"):
        if isinstance(value, dict) and key in value:
            value = value[key]
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, str | dict) for part in parts):
        raise ValueError(
            f'{file}: {where}: expected a text, a list of texts and {{"image": "file"}}, or chat messages, '
            f"got {value!r:.80}"
        )
    if any("role" in part for part in parts if isinstance(part, dict)):
        for number, message in enumerate(parts):
            if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
                raise ValueError(f'{file}: {where}: message {number} is no {{"role", "content"}}: {message!r:.80}')
    return resolve_images(parts, where, images)
