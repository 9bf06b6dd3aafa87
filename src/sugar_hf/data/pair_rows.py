"""Pairs: a query, samples that answer it and samples that do not, with scores and an instruction.

Each of them is an interleaved sample of any accepted form.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Features, List, Value

from ..model.samples_sugar import is_chat, is_image_struct
from .documents import Content, _is_in_schema, is_part, row_id, row_sample, sample_digest, to_sample
from .errors import BadSampleError
from .formats import GivenImages, Images
from .pair_columns import MMEB_COLUMNS, find_columns, is_mmeb, is_pair_row
from .schema import DOCUMENT_ROLE, FEATURES, check_text, is_empty, kind, looks_like_media, refuse_unused, validate_row

_SAMPLE = {"messages": FEATURES["messages"], "images": FEATURES["images"]}
#: Columns of stored pairs.
PAIR_FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "query": _SAMPLE,
        "positives": List(_SAMPLE),
        "negatives": List(_SAMPLE),
        "scores": List(Value("float64")),
        "instruction": Value("string"),
    }
)
# How MMEB's texts say where the image belongs.
_MMEB_IMAGE = re.compile(r"<\|image_\d+\|>")
#: A sample in the common schema: `messages` and `images`.
SchemaSample = dict[str, Any]


@dataclass(frozen=True)
class PairRow:
    """A query and what answers it, in the common schema.

    Attributes:
        id: The row's name.
        source: Where it comes from.
        query: The query, without the instruction.
        positives: What answers it.
        negatives: What does not.
        scores: One number for each positive, then for each negative; None if none were given.
        instruction: What to look for, for the query's prompt.
    """

    id: str
    source: str
    query: SchemaSample
    positives: list[SchemaSample]
    negatives: list[SchemaSample]
    scores: list[float] | None = None
    instruction: str | None = None

    def samples(self) -> Iterator[tuple[str, SchemaSample]]:
        """Yield field and sample of the query with its instruction, then of the positives, then of the negatives."""
        yield "query", prompted(self.query, self.instruction)
        for name, samples in (("positives", self.positives), ("negatives", self.negatives)):
            for i, sample in enumerate(samples):
                yield f"{name}[{i}]", sample

    def to_row(self) -> dict[str, Any]:
        """Return the stored form, a row of `PAIR_FEATURES`."""
        return dict(vars(self))


def prompted(sample: SchemaSample, instruction: str | None) -> SchemaSample:
    """Put an instruction in front of a sample, as a system message; see `with_prompt` of `samples_sugar`."""
    if not instruction:
        return sample
    messages = sample["messages"]
    if messages[0]["role"] == DOCUMENT_ROLE:
        messages = [{"role": "user", "content": messages[0]["content"]}]
    system = {"role": "system", "content": [{"type": "text", "text": instruction}]}
    return {"messages": [system, *messages], "images": sample["images"]}


def to_samples(row: Mapping[str, Any]) -> list[list[Any]]:
    """Turn a row into the samples that it is trained as, with decoded images in their places.

    Args:
        row: A pair, in the stored form or the columns of another tool; or a row of one sample.

    Returns:
        For a pair the query with its instruction, the positives and the negatives, each as the processor takes it;
        for any other row one sample, that of [`to_sample`].

    Raises:
        BadSampleError: The row is broken or an image cannot be decoded; it names sample and field.
    """
    if not is_pair_row(row):
        return [to_sample(row)]
    pair = read_pair(row)
    samples = []
    for field, sample in pair.samples():
        try:
            samples.append(Content(sample["messages"], sample["images"]).load())
        except BadSampleError as error:
            error.field = f"{field}.{error.field}" if error.field else field
            raise error.at(file=pair.source, sample=pair.id) from error.__cause__
    return samples


def read_pair(
    row: Mapping[str, Any],
    images: Images | None = None,
    *,
    name: str | None = None,
    source: str = "row",
    asked: bool = False,
) -> PairRow:
    """Read a pair from a row in any of the names that tools have for it.

    | tool | columns |
    |---|---|
    | ours | `query`, `positives`, `negatives`, `scores`, `instruction` |
    | sentence-transformers | `anchor` or `query`, `positive`, `negative`, `negative_1`, ...; `score` or `label` |
    | sentence-transformers | `sentence1`, `sentence2` and `score` or `label` |
    | FlagEmbedding | `query`, `pos`, `neg`, `pos_scores`, `neg_scores`, `prompt` |
    | MMEB | `qry`, `qry_image_path`, `pos_text`, `pos_image_path`, `neg_text`, `neg_image_path` |

    A str is a text. `{"image": "a.jpg"}` is an image, a list is a sample of several parts, `positives`, `negatives`,
    `pos` and `neg` are lists of samples. In cells of a table a list may be written in JSON.

    Args:
        row: The row.
        images: Takes its images; as they are given when None.
        name: The id if the row has none; made of the content when None.
        source: The source if the row has none.
        asked: Whether the format was asked for: then `prompt` and `completion`, `query` and `response`, and `question`
            and `answer` are a pair, too.

    Raises:
        BadSampleError: There is no query or no positive, scores are no finite numbers or not as many as samples, or
            one sample stands on two sides. It names sample and field.
    """
    images = GivenImages() if images is None else images
    named = row_id(row, name or "")
    given = row.get("source")
    source = given if isinstance(given, str) and given else source
    try:
        if is_mmeb(row):
            query, positives, negatives = _of_mmeb(row, images)
            scores, instruction = None, None
            refuse_unused(row, set(MMEB_COLUMNS), [row[key] for key in MMEB_COLUMNS[1::2] if row.get(key)])
        else:
            columns = find_columns(row, asked)
            query = _sample(row[columns.query], columns.query, images)
            positives = _samples(row, columns.positive, columns.positives, images)
            negatives = _samples(row, columns.negative, columns.negatives, images)
            scores = _scores(row, columns.scores, len(positives), len(negatives))
            instruction = None if columns.instruction is None else check_text(row[columns.instruction], "instruction")
            refuse_unused(row, columns.used)
        if not positives:
            raise BadSampleError(
                "the query has no positive, so there is nothing that it should find",
                field="positives",
                mend="Give one or more under `positives` or `positive`, or leave the row out",
            )
        digests = _check_sides(query, positives, negatives)
    except BadSampleError as error:
        raise error.at(sample=named or None) from error.__cause__
    return PairRow(named or f"pair-{digests[:16]}", source, query, positives, negatives, scores, instruction)


# ---- Samples ----


def _samples(row: Mapping[str, Any], single: tuple[str, ...], several: str | None, images: Images) -> list[Any]:
    if several is None:
        return [_sample(row[key], key, images) for key in single]
    return [_sample(each, f"{several}[{i}]", images) for i, each in enumerate(_list(row[several], several))]


def _list(value: Any, field: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):  # a cell of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadSampleError(f"invalid JSON ({error})", field=field) from error
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        mend = "Write [...] around it"
        raise BadSampleError(f"expected a list of samples, got {kind(value)}", field=field, mend=mend)
    return list(value)


def _sample(value: Any, field: str, images: Images) -> SchemaSample:
    """Bring a sample of any accepted form to the common schema.

    Raises:
        BadSampleError: It is empty or malformed, or an image cannot be taken; it names the field.
    """
    try:
        if isinstance(value, Mapping) and _is_in_schema(value):
            sample = {"messages": list(value["messages"]), "images": list(value["images"])}
            validate_row({"id": "", "source": "", **sample})
            sources = sample["images"]
        else:
            content = Content.of(_typed(value))
            sample, sources = {"messages": content.messages}, content.images
        taken = []
        for i, image in enumerate(sources):
            given = os.fspath(image) if isinstance(image, Path) else image
            taken.append(images.take(given, f"images[{i}]" if len(sources) > 1 else "image"))
        return {**sample, "images": taken}
    except BadSampleError as error:
        is_whole = isinstance(value, str) or error.field in (None, "document")
        error.field = field if is_whole else f"{field}.{error.field}"
        raise error


def _typed(value: Any) -> Any:
    """Return a sample whose parts say their type; a row becomes the sample that it stands for."""
    if isinstance(value, str):
        if looks_like_media(value) and not re.search(r"\s", value.strip()):
            mend = 'Write {"image": ...}, or {"text": ...} if it is a text'
            raise BadSampleError(f"the text {value[:80]!r} looks like the name of an image", mend=mend)
        return value
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        if is_chat(value):
            return [{**each, "content": _parts(each.get("content"))} for each in value]
        return [_part(each) for each in value]
    if isinstance(value, Mapping) and not (is_image_struct(value) or is_part(value)):
        found = _part(value)
        if found is not value:
            return found
        if is_empty(value):
            raise BadSampleError("it has neither text nor image", mend="Fill it in or leave it out")
        said, _ = row_sample(value, GivenImages())
        return said if isinstance(said, str) else _typed(said)
    return value


def _parts(content: Any) -> Any:
    return [_part(each) for each in content] if isinstance(content, list | tuple) else content


def _part(part: Any) -> Any:
    """Say the type of a part that has a text or an image alone."""
    if isinstance(part, Mapping) and "type" not in part and not is_image_struct(part):
        full = {key: value for key, value in part.items() if not is_empty(value)}
        for key in ("image", "path", "base64"):
            if full.keys() == {key} and isinstance(full[key], str | bytes | Path):
                return {"type": "image", key: full[key]}
        if full.keys() == {"image"} and not isinstance(full["image"], list | tuple):
            return full["image"]
        if full.keys() == {"text"}:
            return {"type": "text", "text": full["text"]}
    return part


def _of_mmeb(row: Mapping[str, Any], images: Images) -> tuple[SchemaSample, list[Any], list[Any]]:
    query = _mmeb_sides(row, "qry", "qry_image_path", images)
    if len(query) != 1:
        raise BadSampleError(
            f"expected one query, got {len(query)}", field="qry", mend="Give a text, an image or both"
        )
    positives = _mmeb_sides(row, "pos_text", "pos_image_path", images)
    return query[0], positives, _mmeb_sides(row, "neg_text", "neg_image_path", images)


def _mmeb_sides(row: Mapping[str, Any], text: str, image: str, images: Images) -> list[SchemaSample]:
    """Return the samples of one side; texts and images may be lists that go together."""
    texts, paths = (
        list(value) if isinstance(value := row.get(key), list | tuple) else [value] for key in (text, image)
    )
    if is_empty(texts):
        texts = [None] * len(paths)
    if is_empty(paths):
        paths = [None] * len(texts)
    if len(texts) != len(paths):
        mend = "Give one image for each text, empty where there is none"
        raise BadSampleError(f"{len(paths)} images beside {len(texts)} texts", field=image, mend=mend)
    found = []
    for number, (said, path) in enumerate(zip(texts, paths, strict=True)):
        at = f"[{number}]" if len(texts) > 1 else ""
        if is_empty(said) and is_empty(path):
            continue
        pieces = _MMEB_IMAGE.split(said) if isinstance(said, str) else [said]
        if len(pieces) - 1 > (not is_empty(path)):
            raise BadSampleError("it has a mark for an image that is not given", field=f"{text}{at}", mend="Give it")
        shown: list[Any] = [] if is_empty(path) else [_part({"image": path}) if isinstance(path, str) else path]
        parts = [*pieces[:1], *shown, *pieces[1:]] if len(pieces) > 1 else [*shown, *pieces]
        kept = [part for part in parts if not is_empty(part)]
        found.append(_sample(kept, f"{text}{at}" if is_empty(path) else f"{image}{at}", images))
    return found


# ---- Scores and sides ----


def _scores(row: Mapping[str, Any], keys: tuple[str, ...], positives: int, negatives: int) -> list[float] | None:
    if not keys:
        return None
    counts = {"pos_scores": positives, "neg_scores": negatives}
    scores: list[float] = []
    for key in keys:
        value = row[key]
        value = _list(value, key) if isinstance(value, str | list | tuple | np.ndarray) else [value]
        count = counts.get(key, positives + negatives)
        if len(value) != count:
            what = {"pos_scores": "positives", "neg_scores": "negatives"}.get(key, "positives and negatives")
            mend = f"Give one score for each of the {what}, in their order, or none"
            raise BadSampleError(f"{len(value)} scores for {count} {what}", field=key, mend=mend)
        for i, score in enumerate(value):
            at = key if count == 1 and len(keys) == 1 else f"{key}[{i}]"
            if isinstance(score, bool) or not isinstance(score, int | float | np.number) or not math.isfinite(score):
                raise BadSampleError(f"expected a finite number, got {score!r:.40}", field=at, mend="Give a number")
            scores.append(float(score))
    if (keys == ("pos_scores",) and negatives) or keys == ("neg_scores",):
        mend = "Give both, or none"
        raise BadSampleError("only some of the samples have scores", field=keys[0], mend=mend)
    return scores


def _check_sides(query: SchemaSample, positives: list[SchemaSample], negatives: list[SchemaSample]) -> str:
    """Refuse a sample that stands on two sides; return the digest of all."""
    places: dict[str, str] = {sample_digest(query): "query"}
    for name, samples in (("positives", positives), ("negatives", negatives)):
        for i, sample in enumerate(samples):
            here, digest = f"{name}[{i}]", sample_digest(sample)
            there = places.setdefault(digest, here)
            if there != here and there.partition("[")[0] != name:
                side = {"query": "the query itself"}.get(there, f"also {there}")
                mend = "Leave it out, or mend the row"
                raise BadSampleError(f"it is {side}", field=here, mend=mend)
    return sample_digest({"messages": sorted(places.items()), "images": []})
