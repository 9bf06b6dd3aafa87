"""From the folders and files that people have to documents, one at a time."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset

from ..data import BadSampleError
from ..data.columns import ColumnChoice
from ..data.containers import (
    DATA_SUFFIXES,
    RawRow,
    arrow_batches,
    data_suffix,
    decode_text,
    hub_hint,
    is_saved,
    iter_rows,
    read_caption,
    rows_of_batches,
    shards_of,
    unread_file,
)
from ..data.formats import ImageSource
from ..data.images import IMAGE_SUFFIXES
from .documents import Document, as_document, row_document

TEXT_SUFFIXES = (".txt", ".md")
_CAPTION_SUFFIXES = (".txt", ".json")
_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


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
    on_error: str = "raise",
    skipped: list[BadSampleError] | None = None,
) -> Iterator[Document]:
    """Read documents from whatever a user has. Nothing is decoded, downloaded or held in memory on the way.

    | path | a document |
    |---|---|
    | folder of images and texts | each image, with its caption in `x.txt` or `x.json`; each other `.txt`, `.md` |
    | folder with `metadata.jsonl`, `.csv` or `.parquet` (ImageFolder) | each row of that file |
    | folder that `Dataset.save_to_disk` wrote | each row |
    | `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet` | each row; all but Parquet also with `.gz`, `.bz2`, `.xz` behind |
    | webdataset `.tar`, or a folder of them | each row |
    | one image or text file | that file |

    Rows are read as [`as_document`] reads them from a data set or a program: LLaVA, ShareGPT, TRL, MMC4, OBELICS;
    images under any of their names (`image`, `images`, `file_name`, ...) and then the text (`text`, `caption` or
    `txt`); other columns become metadata. Cells of CSV get the type of their column: numbers, truth values or texts;
    empty ones are absent. In `{"document": [...]}` a string is a text, and `{"image": "a.jpg"}` an image.

    Args:
        path: A folder or file.
        text_field: The column that holds the text, if it is not `text`, `caption` or `txt`.
        id_field: The column that holds the id, if it is not `id`, `key` or `file_name`. Rows without one are called
            by file and number, files by their path below the folder.
        image_root: Where image names in rows start, and which they may not leave; the folder in which the file (or the
            saved data set) lies when `None`.
        captions: In a folder of images, whether text files beside images are their captions, or documents.
        columns: Read these columns of rows alone.
        drop_columns: Read all columns but these.
        drop_broken_images: Leave a broken image, or a place with neither text nor image, out of a web document (MMC4,
            OBELICS) instead of the whole document.
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
    file = Path(path)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    choice = ColumnChoice.of(columns, drop_columns)
    if not file.exists():
        raise FileNotFoundError(f"no file or folder {str(file)!r}{hub_hint(file)}")
    left_out: list[BadSampleError] = [] if skipped is None else skipped
    if file.is_dir() and not is_saved(file):
        found = [file / name for name in _METADATA_FILES if (file / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{str(file)!r} has {' and '.join(each.name for each in found)}: pass the one to read")
        if not found and not shards_of(file):
            return _files(file, captions, on_error, left_out)
        file = found[0] if found else file
    suffix = file.suffix.lower()
    if suffix in TEXT_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return _each([(file.name, [file])], on_error, left_out)
    if not file.is_dir() and data_suffix(file) not in DATA_SUFFIXES:
        raise unread_file(file)
    images = ImageSource(
        os.path.abspath(image_root or file.parent), validate=False, drop_broken=drop_broken_images, front=False
    )
    texts = frozenset(name for name in (text_field, id_field) if name is not None)
    rows = iter_rows(file, show_progress=False, choice=choice, texts=texts)
    return _guarded(rows, on_error, left_out, text_field, id_field, images, choice)


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


# ---- Files ----


def _files(folder: Path, captions: bool, on_error: str, left_out: list[BadSampleError]) -> Iterator[Document]:
    images: list[Path] = []
    others: set[Path] = set()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            # Shards of webdataset tools leave counts beside the data.
            if not name.startswith(".") and not name.endswith("_stats.json"):
                file = Path(parent, name)
                images.append(file) if file.suffix.lower() in IMAGE_SUFFIXES else others.add(file)
    entries = [[image] for image in images]
    for entry in entries if captions else []:
        beside = [entry[0].with_suffix(suffix) for suffix in _CAPTION_SUFFIXES]
        entry += [file for file in beside if file in others][:1]
    others -= {file for entry in entries for file in entry[1:]}
    entries += [[file] for file in others if file.suffix.lower() in TEXT_SUFFIXES]
    alone = Counter(file.suffix or "no suffix" for file in others if file.suffix.lower() not in TEXT_SUFFIXES)
    if alone:
        counts = ", ".join(f"{suffix}: {count}" for suffix, count in sorted(alone.items()))
        warnings.warn(f"{folder}: files that are neither images nor texts are left alone ({counts})", stacklevel=3)
    if not entries:
        mend = "Pass one of the data files. " if any(data_suffix(file) in DATA_SUFFIXES for file in others) else ""
        raise ValueError(f"{str(folder)!r} has no image or text file. {mend}Images: {', '.join(IMAGE_SUFFIXES)}")
    return _each(sorted((entry[0].relative_to(folder).as_posix(), entry) for entry in entries), on_error, left_out)


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


# ---- Rows ----


def _guarded(
    rows: Iterator[RawRow],
    on_error: str,
    left_out: list[BadSampleError],
    text_field: str | None,
    id_field: str | None,
    images: ImageSource,
    choice: ColumnChoice,
) -> Iterator[Document]:
    for raw in rows:
        images.dropped.clear()
        try:
            document = _document(raw, text_field, id_field, images)
        except BadSampleError as fault:
            error = fault
        except RecursionError:
            error = BadSampleError("the row is nested too deeply")
        else:
            left_out.extend(each.at(file=raw.file, line=raw.line, row=raw.row) for each in images.dropped)
            yield document
            continue
        error.at(file=raw.file, line=raw.line, row=raw.row)
        if on_error == "raise":
            raise error
        left_out.append(error)
    choice.check()


def _document(raw: RawRow, text_field: str | None, id_field: str | None, images: ImageSource) -> Document:
    if raw.error is not None:
        raise raw.error
    if not isinstance(raw.value, Mapping):
        raise BadSampleError(f"expected an object with keys, got {type(raw.value).__name__}")
    row = {
        key: resolve_images(value, key, images) if key in ("document", "sample") and value is not None else value
        for key, value in raw.value.items()
    }
    document = row_document(row, f"{Path(raw.file).stem}-{raw.row}", images, text_field, id_field)
    return as_document(document, raw.row)


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
