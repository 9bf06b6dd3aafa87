"""From the folders and files that people have to documents, one at a time."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk

from ..data import BadSampleError
from ..data.containers import RawRow, iter_rows, read_caption
from ..data.formats import PAIR_IMAGE_KEYS, PAIR_TEXT_KEYS, PARSERS, ImageSource, detect
from ..data.images import IMAGE_SUFFIXES
from .documents import Document, as_document

TEXT_SUFFIXES = (".txt", ".md")
DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_CAPTION_SUFFIXES = (".txt", ".json")
_METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_ID_KEYS = ("id", "key", "file_name")
_MAYBE_IMAGES = ("file_name", "filepath", "path")  # names of files that need not be images
_WEB_FORMATS = {"llava": {"conversations", "image"}, "mmc4": {"text_list", "image_info"}, "obelics": {"texts"}}


def read_documents(
    path: str | Path,
    *,
    text_field: str | None = None,
    id_field: str | None = None,
    image_root: str | Path | None = None,
    captions: bool = True,
    on_error: str = "raise",
    skipped: list[BadSampleError] | None = None,
) -> Iterator[Document]:
    """Read documents from whatever a user has. Nothing is decoded, downloaded or held in memory on the way.

    | path | a document |
    |---|---|
    | folder of images and texts | each image, with its caption in `x.txt` or `x.json`; each other `.txt`, `.md` |
    | folder with `metadata.jsonl`, `.csv` or `.parquet` (ImageFolder) | each row of that file |
    | folder that `Dataset.save_to_disk` wrote | each row |
    | `.jsonl`, `.json`, `.csv`, `.parquet` | each row: LLaVA, MMC4, OBELICS, chat, or what `as_document` takes |
    | one image or text file | that file |

    Rows may name images under any of the names that `sugar_hf.data` knows (`image`, `file_name`, ...), one or several;
    images come first, then the text (`text` or `caption`). In `{"document": [...]}` a string is a text, and
    `{"image": "a.jpg"}` an image. What else a row has of scalars and lists of strings becomes metadata.

    Args:
        path: A folder or file.
        text_field: The column that holds the text, if it is not `text`, `caption` or `txt`.
        id_field: The column that holds the id, if it is not `id`, `key` or `file_name`. Rows without one are called
            by file and number, files by their path below the folder.
        image_root: Where image names in rows start, and which they may not leave; the file's own folder when `None`.
        captions: In a folder of images, whether text files beside images are their captions, or documents.
        on_error: `"raise"` at the first broken row, or `"skip"` those.
        skipped: A list to which the error of each skipped row is appended.

    Returns:
        An iterator over documents, always in the same order.

    Raises:
        FileNotFoundError: There is no such path.
        ValueError: It is of a kind that cannot be read, or an option is wrong.
        BadSampleError: A row is broken; the error names file, line and field.
    """
    file = Path(path)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
    if not file.exists():
        raise FileNotFoundError(f"no file or folder {str(file)!r}")
    left_out: list[BadSampleError] = [] if skipped is None else skipped
    if file.is_dir():
        if (file / "dataset_dict.json").is_file():
            raise ValueError(f"{str(file)!r} holds several splits: pass the folder of one of them")
        if (file / "state.json").is_file():
            dataset = load_from_disk(file)
            return _guarded(_rows_of(dataset, file), on_error, left_out, text_field, id_field, None)
        found = [file / name for name in _METADATA_FILES if (file / name).is_file()]
        if len(found) > 1:
            raise ValueError(f"{str(file)!r} has {' and '.join(each.name for each in found)}: pass the one to read")
        if not found:
            return _files(file, captions, on_error, left_out)
        file = found[0]
    suffix = file.suffix.lower()
    if suffix in TEXT_SUFFIXES or suffix in IMAGE_SUFFIXES:
        return _each([(file.name, [file])], on_error, left_out)
    if suffix not in DATA_SUFFIXES:
        known = ", ".join((*DATA_SUFFIXES, *TEXT_SUFFIXES, *IMAGE_SUFFIXES))
        raise ValueError(f"{str(file)!r} is none of the files that are read: {known}")
    images = ImageSource(os.path.abspath(image_root or file.parent), validate=False)
    return _guarded(iter_rows(file, show_progress=False), on_error, left_out, text_field, id_field, images)


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
        raise ValueError(f"{str(folder)!r} has no image or text file. Images: {', '.join(IMAGE_SUFFIXES)}")
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
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        mend = "Convert the file to UTF-8"
        raise BadSampleError(f"{file.name} is not UTF-8 ({error})", field="text", mend=mend) from error
    except OSError as error:
        raise BadSampleError(f"cannot read {file.name} ({error})", field="text") from error


# ---- Rows ----


def _rows_of(dataset: Dataset, folder: Path) -> Iterator[RawRow]:
    for number, row in enumerate(dataset):
        yield RawRow(str(folder), number, None, row)


def _guarded(
    rows: Iterator[RawRow],
    on_error: str,
    left_out: list[BadSampleError],
    text_field: str | None,
    id_field: str | None,
    images: ImageSource | None,
) -> Iterator[Document]:
    for raw in rows:
        try:
            if raw.error is not None:
                raise raw.error
            if not isinstance(raw.value, Mapping):
                raise BadSampleError(f"expected an object with keys, got {type(raw.value).__name__}")
            yield _document(raw, text_field, id_field, images)
        except BadSampleError as error:
            error.at(file=raw.file, line=raw.line, row=raw.row)
            if on_error == "raise":
                raise
            left_out.append(error)


def _document(raw: RawRow, text_field: str | None, id_field: str | None, images: ImageSource | None) -> Document:
    """The document of one row. `images` resolves names of files; rows of a data set on disk name none."""
    row = dict(raw.value)
    name = _identifier(raw, id_field)
    kind = detect(row)
    if text_field is not None:
        if row.get(text_field) is None:
            raise BadSampleError(f"the row has no such column; it has {', '.join(map(str, row))}", field=text_field)
        for key in (*PAIR_TEXT_KEYS, "messages"):
            if key in row and key != text_field:
                row[f"{key} column"] = row.pop(key)  # metadata now
        row["text"] = row.pop(text_field)
        kind = None
    if images is None:
        return as_document({**row, "id": name}, raw.row)
    if kind in _WEB_FORMATS:
        messages, stored = PARSERS[kind](row, images)
        own = {*_WEB_FORMATS[kind], "images", "metadata", "id"}
        row = {key: value for key, value in row.items() if key not in own and _is_scalar(value)}
        return as_document({**row, "id": name, "messages": messages, "images": stored}, raw.row)
    if kind == "chat":
        row["messages"], row["images"] = PARSERS[kind](row, images)
        return as_document({**row, "id": name}, raw.row)
    for key in ("document", "sample"):
        if row.get(key) is not None:
            row[key] = resolve_images(row[key], key, images)
            return as_document({**row, "id": name}, raw.row)
    return as_document({**_flat(row, images), "id": name}, raw.row)


def _flat(row: dict[str, Any], images: ImageSource) -> dict[str, Any]:
    """A row with images and a text under any of their names, under the names that `as_document` knows."""
    found: list[dict[str, Any]] = []
    for key in ("images", *PAIR_IMAGE_KEYS):
        value = row.get(key)
        is_other = key in _MAYBE_IMAGES and not str(value).lower().endswith(IMAGE_SUFFIXES)
        if value is None or value == "" or is_other or (found and key in _MAYBE_IMAGES):
            continue
        listed = isinstance(value, list)
        for i, image in enumerate(value if listed else [value]):
            found.append(images.take(image, f"{key}[{i}]" if listed else key))
        del row[key]
    text = next((key for key in PAIR_TEXT_KEYS if row.get(key) is not None and row[key] != ""), None)
    if text is None and not found:
        mend = "Give `text`, `image`, `document` or `messages`, or name the text's column with text_field"
        if row.get("url") is not None:
            mend = "Only a URL is given, which is not fetched: download the image first. " + mend
        raise BadSampleError("the row has neither text nor image", mend=mend)
    row["text"], row["images"] = None if text is None else row.pop(text), found or None
    return row


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


def _identifier(raw: RawRow, id_field: str | None) -> str:
    if id_field is not None and raw.value.get(id_field) is None:
        raise BadSampleError(f"the row has no id there; it has {', '.join(map(str, raw.value))}", field=id_field)
    for key in _ID_KEYS if id_field is None else (id_field,):
        value = raw.value.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise BadSampleError(f"expected a string or a whole number, got {type(value).__name__}", field=key)
        return str(value)
    return f"{Path(raw.file).stem}-{raw.row}"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)
