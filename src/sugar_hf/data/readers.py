"""Data files of every known format to one `datasets.Dataset` in the common schema, or to documents one at a time.

Images stay paths (or the bytes that the file itself holds) and are decoded when a sample is used. Nothing is cached
between calls: a data set on disk may change under the same name, and a reader that remembers the old one is worse
than a slow one. `Dataset.save_to_disk` keeps the result.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from datasets import Dataset, Features, IterableDataset
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from .coco import CocoForm
from .containers import (
    DATA_SUFFIXES,
    ColumnChoice,
    RawRow,
    arrow_batches,
    data_suffix,
    decode_text,
    hub_hint,
    is_hub,
    is_saved,
    iter_rows,
    read_caption,
    rows_of_batches,
    shards_of,
    unread_file,
)
from .documents import Document, as_document, row_document, row_id
from .errors import BadSampleError, SkippedRowsWarning
from .formats import PARSERS, ImageSource, detect
from .hub_rows import hub_rows
from .pages import PAGE_PIXELS, PAGE_SUFFIXES, SECTION_LENGTH, PageOptions, read_page_file
from .pair_columns import TEXT_COLUMNS, is_pair_row
from .pair_rows import PAIR_FEATURES, read_pair
from .schema import FEATURES, IMAGE_SUFFIXES, kind, validate_row
from .sections import Notes

T = TypeVar("T")
Format = Literal["auto", "llava", "mmc4", "obelics", "pairs", "chat", "documents", "retrieval"]
RETRIEVAL = "retrieval"

TEXT_SUFFIXES = (".txt",)
_CAPTION_SUFFIXES = (".txt", ".json")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_NAMED = 5  # how many skipped rows the warning names
_PROBED = 100  # how many rows are looked at to tell the format


class ReadOptions(TypedDict, total=False):
    """What all readers take besides the path; `load_dataset_file` says what each does."""

    image_root: str | Path | None
    on_error: Literal["raise", "skip"]
    validate_images: bool
    allow_outside_root: bool
    drop_broken_images: bool
    columns: Sequence[str] | None
    drop_columns: Sequence[str] | None
    section_length: int
    page_pixels: int
    skipped: list[BadSampleError] | None
    show_progress: bool


def load_dataset_file(
    path: str | Path,
    format: Format = "auto",
    *,
    image_root: str | Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    validate_images: bool = True,
    allow_outside_root: bool = False,
    drop_broken_images: bool = False,
    columns: Sequence[str] | None = None,
    drop_columns: Sequence[str] | None = None,
    section_length: int = SECTION_LENGTH,
    page_pixels: int = PAGE_PIXELS,
    skipped: list[BadSampleError] | None = None,
    show_progress: bool = True,
) -> Dataset:
    """Read a data file, or a folder of images with captions, into the common schema.

    | format | file | a row |
    |---|---|---|
    | `llava` | JSON array or lines | `conversations`, `image` or `images` (a name, a list, or left out) |
    | `mmc4` | JSON lines | `text_list`, `image_info` with `image_name` and `matched_text_index` |
    | `obelics` | JSON lines or Parquet | `texts` and `images` with None where the other has an entry |
    | `pairs` | JSON lines, CSV, Parquet | an image (`image`, `file_name`, ...) and a caption (`text` or `caption`) |
    | `pairs` | folder | ImageFolder with `metadata.csv` or `.jsonl`, or `x.jpg` beside `x.txt` or `x.json` |
    | `pairs` | webdataset `.tar`, or a folder of them | an image and a caption |
    | `pairs` | `captions_*.json` of COCO | an image and its captions; `image_root` is the folder of the images |
    | `chat` | JSON lines | `messages` with `role` and `content`, and `images`; the forms of TRL and ms-swift |
    | `documents` | PDF, HTML, Markdown, or a folder of them | a page or section: its texts and pictures in order |
    | `retrieval` | JSON lines, CSV, Parquet | a query, what answers it and what does not; see [`read_pair`] |
    | `retrieval` | `captions_*.json` of COCO | a caption, and the image that it looks for |

    Each kind of row may come in each container: `.json`, `.jsonl`, `.csv`, `.tsv`, `.parquet` (all but Parquet also
    with `.gz`, `.bz2` or `.xz` behind), webdataset shards, the folder that `Dataset.save_to_disk` wrote, or a data set
    of the Hub, `hf://datasets/user/name?split=train`. Empty cells are no images. A row with pictures, films or sounds
    that nothing uses is broken. `documents` makes a row of each document that [`read_documents`] finds, whatever the
    file.

    Args:
        path: The file or folder.
        format: One of the table, or `auto`: found by the file's suffix, or the keys of the first row that parses. A
            folder with PDF, HTML or Markdown, and without a caption beside an image, is one of `documents`.
        image_root: Where relative image names start. Default: the folder of the data file. Every image must lie in it.
        on_error: `raise` at the first broken row, or `skip` broken rows, count them in a warning and list them in
            `skipped`. A file that is damaged as a whole raises in both cases.
        validate_images: Decode every image completely now, each file once: some 5 ms for a photograph of 640 x 480.
            Without it only names and files are checked (some 10,000 rows a second), and a damaged image is an error
            of `to_sample` when its turn comes.
        allow_outside_root: Accept image paths outside `image_root`; only for data files that you trust.
        drop_broken_images: In `mmc4` and `obelics`, leave out a broken image, or a place with neither text nor image,
            instead of its whole document. In HTML and Markdown its `alt` text stands in its place. Web documents lose
            links all the time. Each place left out is counted and listed like a skipped row.
        columns: Read these columns alone.
        drop_columns: Read all columns but these.
        section_length: See [`read_documents`].
        page_pixels: See [`read_documents`].
        skipped: A list to which the error of every row or image left out is appended.
        show_progress: Show a progress bar where reading takes longer than two seconds.

    Returns:
        A data set with `FEATURES`, or with `PAIR_FEATURES` for `retrieval`. `source` of a row is `file:line#row`, or
        `file#row` where there are no lines.

    Raises:
        BadSampleError: A row is broken (see `on_error`), or the file as a whole is.
        FileNotFoundError: There is no such path.
        ValueError: The format is unknown or cannot be found, or no row is usable.
    """
    if format not in ("auto", "documents", RETRIEVAL, *PARSERS):
        raise ValueError(f"unknown format {format!r}: use auto, {', '.join(PARSERS)}, documents, {RETRIEVAL}")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    file = _data_file(Path(path)) or Path(path)
    is_folder = file.is_dir() and not is_saved(file)
    root = Path(image_root) if image_root is not None else file if is_folder else file.parent
    images = ImageSource(os.path.abspath(root), allow_outside_root, validate_images, drop_broken_images)
    choice = ColumnChoice.of(columns, drop_columns)
    options = PageOptions(section_length, page_pixels)
    left_out: list[BadSampleError] = []
    if format == "documents" or (format == "auto" and _has_pages(file)):
        documents = _read_documents(file, images, choice, options, on_error, left_out)
        dataset = _write(_document_rows(documents, file, images, on_error, left_out, show_progress))
    else:
        name = _detect(file, choice) if format == "auto" else format
        is_retrieval, asked = name == RETRIEVAL, format == RETRIEVAL
        texts = TEXT_COLUMNS if is_retrieval else frozenset()
        raws = _raws(file, show_progress, choice, texts, "pairs" if is_retrieval else "texts")
        parse = (
            partial(_as_pair, images=images, asked=asked)
            if is_retrieval
            else partial(_as_row, name=name, images=images)
        )
        rows = _read(raws, parse, images, on_error, left_out, choice)
        dataset = _write(rows, PAIR_FEATURES if is_retrieval else FEATURES)
    if skipped is not None:
        skipped.extend(left_out)
    if dataset is None:
        raise ValueError(f"{str(file)!r} has no usable row ({len(left_out)} broken). {_first(left_out)}".rstrip())
    if left_out:
        warnings.warn(
            f"{str(file)!r}: {len(left_out)} broken rows or images left out, {len(dataset)} rows kept. "
            + _first(left_out),
            SkippedRowsWarning,
            stacklevel=2,
        )
    return dataset


def read_llava(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Read LLaVA instruction data; see `formats.parse_llava` and `load_dataset_file`."""
    return load_dataset_file(path, "llava", **options)


def read_mmc4(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Read an MMC4 shard; see `formats.parse_mmc4` and `load_dataset_file`."""
    return load_dataset_file(path, "mmc4", **options)


def read_obelics(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Read OBELICS documents; see `formats.parse_obelics` and `load_dataset_file`."""
    return load_dataset_file(path, "obelics", **options)


def read_pairs(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Read image-caption pairs from a file or a folder; see `formats.parse_pair` and `load_dataset_file`."""
    return load_dataset_file(path, "pairs", **options)


def read_chat(path: str | Path, **options: Unpack[ReadOptions]) -> Dataset:
    """Read chat messages; see `formats.parse_chat` and `load_dataset_file`."""
    return load_dataset_file(path, "chat", **options)


def read_documents(
    path: str | Path,
    *,
    text_field: str | None = None,
    id_field: str | None = None,
    image_root: str | Path | None = None,
    captions: bool = True,
    columns: Sequence[str] | None = None,
    drop_columns: Sequence[str] | None = None,
    drop_broken_images: bool = False,
    section_length: int = SECTION_LENGTH,
    page_pixels: int = PAGE_PIXELS,
    on_error: str = "raise",
    skipped: list[BadSampleError] | None = None,
) -> Iterator[Document]:
    """Read documents from whatever a user has. Nothing is decoded, downloaded or held in memory on the way.

    | path | a document |
    |---|---|
    | `.pdf` | each page: its picture, then its text |
    | `.html`, `.htm`, `.xhtml`, `.md`, `.markdown` | each section, with its pictures in their places |
    | folder of these, images and texts | what is in them; each image, with its caption in `x.txt` or `x.json`; each
      other `.txt` |
    | folder with `metadata.jsonl`, `.csv` or `.parquet` (ImageFolder) | each row of that file |
    | folder that `Dataset.save_to_disk` wrote | each row |
    | `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` | each row; all but Parquet also with `.gz`, `.bz2`, `.xz` behind |
    | webdataset `.tar`, or a folder of them | each row |
    | `captions_*.json` of COCO | each image, once, with its captions; `image_root` is the folder of the images |
    | `hf://datasets/user/name?split=train` | each row of that data set on the Hub |
    | one image or text file | that file |

    Rows are read as [`as_document`] reads them from a data set or a program: LLaVA, ShareGPT, TRL, MMC4, OBELICS;
    images under any of their names (`image`, `images`, `file_name`, ...) and then the text (`text`, `caption` or
    `txt`); other columns become metadata. Cells of CSV get the type of their column: numbers, truth values or texts;
    empty ones are absent. In `{"document": [...]}` a string is a text, and `{"image": "a.jpg"}` an image.

    [`read_page_file`] says what becomes of pages and sections, which need `pip install 'sugar-hf[documents]'`. In a
    folder they come first; an image that one of them shows, and that has no caption, is no document of its own.

    Args:
        path: A folder or file.
        text_field: The column that holds the text, if it is not `text`, `caption` or `txt`.
        id_field: The column that holds the id, if it is not `id`, `key` or `file_name`. Rows without one are called
            by file and number, files by their path below the folder.
        image_root: Where image names in rows start, and which they may not leave, nor those in pages; the folder, or
            that in which the file (or the saved data set) lies, when `None`.
        captions: In a folder of images, whether text files beside images are their captions, or documents. Of COCO,
            whether captions are texts of the document, or its metadata, under `captions`.
        columns: Read these columns of rows alone.
        drop_columns: Read all columns but these.
        drop_broken_images: Leave a broken image, or a place with neither text nor image, out of a web document (MMC4,
            OBELICS) instead of the whole document. In HTML and Markdown its `alt` text stands in its place. Every
            image is decoded for it.
        section_length: Characters of a section or page, a picture counting for 1,000 of them. What is longer becomes
            several documents, cut between paragraphs. Some four characters are a token of English.
        page_pixels: Pixels of the picture of a page of a PDF, about.
        on_error: `"raise"` at the first broken row, or `"skip"` those.
        skipped: A list to which the error of each skipped row, and of each place left out, is appended.

    Returns:
        An iterator over documents, always in the same order.

    Raises:
        FileNotFoundError: There is no such path.
        ValueError: It is of a kind that cannot be read, or an option is wrong; or, at the end, no row had a column
            that an option names.
        BadSampleError: A row is broken; the error names file, line and field.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    file = Path(path)
    is_folder = file.is_dir() and not is_saved(file) and not shards_of(file)
    root = image_root or (file if is_folder else file.parent)
    # only what was decoded is known not to be broken
    images = ImageSource(os.path.abspath(root), validate=drop_broken_images, drop_broken=drop_broken_images)
    choice, options = ColumnChoice.of(columns, drop_columns), PageOptions(section_length, page_pixels)
    left_out: list[BadSampleError] = [] if skipped is None else skipped
    return _read_documents(file, images, choice, options, on_error, left_out, text_field, id_field, captions)


def _read_documents(
    file: Path,
    images: ImageSource,
    choice: ColumnChoice,
    options: PageOptions,
    on_error: str,
    left_out: list[BadSampleError],
    text_field: str | None = None,
    id_field: str | None = None,
    captions: bool = True,
) -> Iterator[Document]:
    if not is_hub(file) and not file.exists():
        raise FileNotFoundError(f"no file or folder {str(file)!r}{hub_hint(file)}")
    if file.is_dir() and not is_saved(file):
        metadata = _data_file(file)
        shards = shards_of(file) if metadata is None else []
        if metadata is None and not shards:
            return _files(file, captions, images, options, on_error, left_out)
        if shards:
            _warn_alone(file, "files beside the shards", [each for each in _walk(file) if each not in shards])
        file = metadata or file
    suffix = file.suffix.lower()
    if suffix in PAGE_SUFFIXES:
        return _pages([(file.name, file)], file, images, options, on_error, left_out)
    if suffix in TEXT_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return _each([(file.name, [file])], on_error, left_out)
    if not file.is_dir() and not is_hub(file) and data_suffix(file) not in DATA_SUFFIXES:
        raise unread_file(file)
    texts = frozenset(name for name in (text_field, id_field) if name is not None)
    raws = _raws(file, False, choice, texts, "texts" if captions else "metadata")
    parse = partial(_as_document, text_field=text_field, id_field=id_field, images=images)
    return _read(raws, parse, images, on_error, left_out, choice)


def stored_rows(documents: Iterable[Any], choice: ColumnChoice | None = None) -> Iterable[Any]:
    """The rows of a data set as they are stored, so that images keep their bytes; anything else as it is.

    A data set with a format or transform of the user's own is left to it.
    """
    if isinstance(documents, IterableDataset):
        return documents.decode(False) if documents.features is not None else documents
    if not isinstance(documents, Dataset) or documents.format["type"] is not None:
        return documents
    return _Stored(documents, choice or ColumnChoice())


class _Stored:
    """A data set, row by row as it is stored; a row that cannot be read is its error."""

    def __init__(self, dataset: Dataset, choice: ColumnChoice) -> None:
        self._dataset, self._choice = dataset, choice

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> Iterator[Any]:
        for raw in rows_of_batches(arrow_batches(self._dataset, self._choice), ""):
            yield raw.value if raw.error is None else raw.error


# ---- Rows ----


def _data_file(path: Path) -> Path | None:
    """The metadata file of an ImageFolder; `None` if the path is none."""
    files = [path / name for name in _METADATA if (path / name).is_file()]
    if len(files) > 1:
        raise ValueError(f"{str(path)!r} has {' and '.join(file.name for file in files)}: pass the one to read")
    return files[0] if files else None


def _raws(
    file: Path,
    show_progress: bool,
    choice: ColumnChoice,
    texts: frozenset[str] = frozenset(),
    coco: CocoForm = "texts",
) -> Iterator[RawRow]:
    if is_hub(file):
        return hub_rows(file, choice)
    return iter_rows(file, show_progress, choice=choice, texts=texts, coco=coco)


def _detect(file: Path, choice: ColumnChoice) -> str:
    fault: BadSampleError | None = None
    for number, raw in enumerate(_raws(file, False, choice)):
        name = RETRIEVAL if is_pair_row(raw.value) else detect(raw.value)
        if raw.error is not None and fault is None:
            fault = _locate(raw.error, raw)
        if name is not None:
            return name
        if number >= _PROBED:
            break
    if file.is_dir():
        return "pairs"
    if fault is not None:
        raise fault
    raise ValueError(
        f"cannot tell the format of {str(file)!r} from its keys: pass format=, one of {', '.join(PARSERS)}, "
        f"{RETRIEVAL}"
    )


def _read(
    raws: Iterator[RawRow],
    parse: Callable[[RawRow], T],
    images: ImageSource,
    on_error: str,
    left_out: list[BadSampleError],
    choice: ColumnChoice,
) -> Iterator[T]:
    """The one loop over the rows of a file: what is read of them, and what becomes of those that are broken."""
    for raw in raws:
        images.dropped.clear()
        try:
            if raw.error is not None:
                raise raw.error
            if not isinstance(raw.value, Mapping):
                raise BadSampleError(f"expected an object with keys, got {kind(raw.value)}")
            row = parse(raw)
        except (BadSampleError, RecursionError) as fault:
            error = fault if isinstance(fault, BadSampleError) else BadSampleError("the row is nested too deeply")
            if on_error == "raise":
                raise _locate(error, raw) from fault.__cause__
            left_out.append(_locate(error, raw))
            continue
        left_out.extend(_locate(error, raw) for error in images.dropped)
        yield row
    choice.check()


def _as_row(raw: RawRow, name: str, images: ImageSource) -> dict[str, Any]:
    messages, stored = PARSERS[name](raw.value, images)
    row = {"id": row_id(raw.value, _default_id(raw)), "source": _place(raw), "messages": messages, "images": stored}
    validate_row(row)
    _check_names({f"images[{i}]": image for i, image in enumerate(stored)}, _place(raw))
    return row


def _as_pair(raw: RawRow, images: ImageSource, asked: bool) -> dict[str, Any]:
    # of a row that was stored before, the place is where it stands now
    pair = read_pair({**raw.value, "source": None}, images, name=_default_id(raw), source=_place(raw), asked=asked)
    places = {
        f"{field}.images[{i}]": image for field, each in pair.samples() for i, image in enumerate(each["images"])
    }
    _check_names(places, _place(raw))
    return pair.to_row()


def _check_names(images: Mapping[str, dict[str, Any]], place: str) -> None:
    """Refuse names of files that are no UTF-8: they come as half surrogate pairs, which Arrow cannot hold."""
    for field, text in {**{name: image["path"] or "" for name, image in images.items()}, "source": place}.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BadSampleError(f"{text!r} is not valid Unicode", field=field, mend="Rename the file") from error


def _as_document(raw: RawRow, text_field: str | None, id_field: str | None, images: ImageSource) -> Document:
    row = {
        key: resolve_images(value, key, images) if key in ("document", "sample") and value is not None else value
        for key, value in raw.value.items()
    }
    return as_document(row_document(row, _default_id(raw), images, text_field, id_field), raw.row)


def _place(raw: RawRow) -> str:
    return f"{raw.file}#{raw.row}" if raw.line is None else f"{raw.file}:{raw.line}#{raw.row}"


def _default_id(raw: RawRow) -> str:
    return f"{Path(raw.file).stem}-{raw.row}"


def _locate(error: BadSampleError, raw: RawRow) -> BadSampleError:
    named = raw.value.get("id") if isinstance(raw.value, dict) else None
    # `validate_row` takes `source` for the file, which already has the line.
    error.file = raw.file
    return error.at(line=raw.line, row=raw.row, sample=None if named is None else str(named))


def resolve_images(sample: Any, where: str, images: ImageSource) -> Any:
    """Resolve the image names of a sample out of a JSON file; strings stay texts.

    Args:
        sample: A text, a part, a list of those, or chat messages.
        where: What to call it in errors.
        images: Where image names start.

    Raises:
        BadSampleError: An image is missing, a URL, or lies outside the image root.
    """
    if isinstance(sample, list):
        return [resolve_images(item, f"{where}[{i}]", images) for i, item in enumerate(sample)]
    if not isinstance(sample, dict):
        return sample
    if "role" in sample:
        return {**sample, "content": resolve_images(sample.get("content"), f"{where}.content", images)}
    if sample.get("type") == "text" or (set(sample) == {"text"}):
        return sample["text"] if isinstance(sample.get("text"), str) else sample
    for key in ("image", "path"):
        if sample.get(key) is not None:
            return {"type": "image", "image": _as_given(images.take(sample[key], f"{where}.{key}"))}
    return sample


def _as_given(stored: dict[str, Any]) -> Path | bytes:
    return Path(stored["path"]) if stored["bytes"] is None else stored["bytes"]


# ---- Files ----


def _files(
    folder: Path,
    captions: bool,
    images: ImageSource,
    options: PageOptions,
    on_error: str,
    left_out: list[BadSampleError],
) -> Iterator[Document]:
    entries: list[list[Path]] = []
    pages: list[Path] = []
    others: set[Path] = set()
    for file in _walk(folder):
        if file.is_dir():
            others.add(file)
        elif file.suffix.lower() in IMAGE_SUFFIXES:
            entries.append([file])
        elif file.suffix.lower() in PAGE_SUFFIXES:
            pages.append(file)
        else:
            others.add(file)
    for entry in entries if captions else []:
        beside = [entry[0].with_suffix(suffix) for suffix in _CAPTION_SUFFIXES]
        entry += [file for file in beside if file in others][:1]
    others -= {file for entry in entries for file in entry[1:]}
    entries += [[file] for file in others if file.suffix.lower() in TEXT_SUFFIXES and not file.is_dir()]
    alone = [file for file in others if file.is_dir() or file.suffix.lower() not in TEXT_SUFFIXES]
    _warn_alone(folder, "files that are neither images, pages nor texts", alone)
    if not entries and not pages:
        mend = "Pass one of the data files. " if any(data_suffix(file) in DATA_SUFFIXES for file in others) else ""
        raise ValueError(f"{str(folder)!r} has no image, page or text file. {mend}Images: {', '.join(IMAGE_SUFFIXES)}")
    return _pages_and_others(
        _pages(
            sorted((file.relative_to(folder).as_posix(), file) for file in pages),
            folder,
            images,
            options,
            on_error,
            left_out,
        ),
        sorted((entry[0].relative_to(folder).as_posix(), entry) for entry in entries),
        on_error,
        left_out,
    )


def _warn_alone(folder: Path, what: str, files: list[Path]) -> None:
    if files:
        kinds = Counter("linked folder" if file.is_dir() else file.suffix or "no suffix" for file in files)
        counts = ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))
        warnings.warn(f"{folder}: {what} are left alone ({counts})", stacklevel=5)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, and links to folders, which are not followed."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names += [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in names:
            # Shards of webdataset tools leave counts beside the data.
            if not name.startswith(".") and not name.endswith("_stats.json"):
                yield Path(parent, name)


def _has_pages(path: Path) -> bool:
    """Whether a path is read as pages and sections, if nothing is said: a folder of captioned images is not."""
    if not path.is_dir():
        return path.suffix.lower() in PAGE_SUFFIXES
    if is_saved(path) or shards_of(path):
        return False
    files = set(_walk(path))
    captioned = (
        file.with_suffix(suffix) in files
        for file in files
        if file.suffix.lower() in IMAGE_SUFFIXES
        for suffix in _CAPTION_SUFFIXES
    )
    return any(file.suffix.lower() in PAGE_SUFFIXES for file in files) and not any(captioned)


def _pages(
    files: list[tuple[str, Path]],
    path: Path,
    images: ImageSource,
    options: PageOptions,
    on_error: str,
    left_out: list[BadSampleError],
) -> Iterator[Document]:
    return _page_stream(files, path, images, options.checked(), on_error, left_out)


def _page_stream(
    files: list[tuple[str, Path]],
    path: Path,
    images: ImageSource,
    options: PageOptions,
    on_error: str,
    left_out: list[BadSampleError],
) -> Iterator[Document]:
    notes = Notes()
    for name, file in files:
        for found in read_page_file(file, name, images, options, notes):
            if isinstance(found, Document):
                yield found
            elif on_error == "raise":
                raise found
            else:
                left_out.append(found)
        left_out.extend(error.at(file=str(file)) for error in images.dropped)
        images.dropped.clear()
    notes.warn(path)


def _pages_and_others(
    pages: Iterator[Document], entries: list[tuple[str, list[Path]]], on_error: str, left_out: list[BadSampleError]
) -> Iterator[Document]:
    shown: set[str] = set()
    for document in pages:
        shown.update(str(source) for source in document.content.images if isinstance(source, Path))
        yield document
    left = [(name, files) for name, files in entries if len(files) > 1 or os.path.abspath(files[0]) not in shown]
    yield from _each(left, on_error, left_out)


def _document_rows(
    documents: Iterator[Document],
    file: Path,
    images: ImageSource,
    on_error: str,
    left_out: list[BadSampleError],
    show_progress: bool,
) -> Iterator[dict[str, Any]]:
    bar = tqdm(documents, desc=f"reading {file.name}", unit=" documents", delay=2.0, disable=not show_progress)
    for document in bar:
        try:
            stored = [
                {"bytes": source, "path": None}
                if isinstance(source, bytes)
                else images.take(os.path.abspath(source), f"images[{i}]")
                for i, source in enumerate(document.content.images)
            ]
            source = str(file.parent / document.id) if file.is_file() else str(file / document.id)
            row = {"id": document.id, "source": source, "messages": document.content.messages, "images": stored}
            validate_row(row)
        except BadSampleError as error:
            error.at(file=str(file), sample=document.id)
            if on_error == "raise":
                raise
            left_out.append(error)
            continue
        yield row


def _each(entries: list[tuple[str, list[Path]]], on_error: str, left_out: list[BadSampleError]) -> Iterator[Document]:
    for number, (name, files) in enumerate(entries):
        try:
            sample = [file if file.suffix.lower() in IMAGE_SUFFIXES else _text(file) for file in files]
            yield as_document(Document(name, sample), number)
        except BadSampleError as error:
            error.at(file=str(files[0]))
            if on_error == "raise":
                raise
            left_out.append(error)


def _text(file: Path) -> str:
    if file.suffix.lower() == ".json":
        return read_caption({".json": str(file)})
    try:
        return decode_text(file.read_bytes())
    except UnicodeDecodeError as error:
        mend = "Convert the file to UTF-8"
        raise BadSampleError(f"{file.name} is not UTF-8 ({error})", field="text", mend=mend) from error
    except OSError as error:
        raise BadSampleError(f"cannot read {file.name} ({error})", field="text") from error


# ---- Data sets ----


def _first(errors: list[BadSampleError]) -> str:
    if not errors:
        return ""
    shown = "; ".join(str(error) for error in errors[:_NAMED])
    return f"The first: {shown}" if len(errors) > 1 else shown


@cache
def _scratch() -> str:
    """The folder of all Arrow files of this process, removed when it ends."""
    folder, owner = tempfile.mkdtemp(prefix="sugar_hf_data_"), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child that exits must leave its parent's files alone
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _write(rows: Iterator[dict[str, Any]], features: Features = FEATURES) -> Dataset | None:
    """Write rows to an Arrow file and open it memory-mapped; None if there are no rows.

    `Dataset.from_generator` would wrap a row's error in its own, and would answer a later call from its cache although
    the data file has changed.
    """
    handle, path = tempfile.mkstemp(suffix=".arrow", dir=_scratch())
    os.close(handle)
    count = 0
    try:
        with ArrowWriter(features=features, path=path, writer_batch_size=256) as writer:
            for row in rows:
                writer.write(features.encode_example(row))
                count += 1
            if count:
                writer.finalize()
    except BaseException:
        os.remove(path)
        raise
    if not count:
        os.remove(path)
        return None
    return Dataset.from_file(path)
