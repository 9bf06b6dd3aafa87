"""One pass of the frozen model, kept on disk: pooled states of each slice in both poolings, and teacher vectors."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers import BatchFeature

from sugar_hf._files import atomic_path
from sugar_hf.data import Document
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.backbone_sugar import evaluation_mode
from sugar_hf.model.modeling_sugar import pool_slices
from sugar_hf.structure import SliceFeatures
from sugar_hf.structure.slice_teacher import Slice, Teacher

from ..stage_files import claim

POOLINGS = ("last", "mean")
COLUMNS = ("teacher_clip", "teacher_dino", "teacher_text", "teacher_is_image")
PART = 96  # samples of a file
SLICE_PART = 1024  # slices of a file
BATCH_TOKENS = 4096  # padding included
ROOM = 16  # tokens that the processor writes around a text

Stored = dict[str, np.ndarray]


def sample_digest(document: Document) -> str:
    """Return what tells a sample from others, whatever it is called: roles, texts and the bytes of its images."""
    return Document("sample", document.sample).digest


def slice_digest(part: Slice) -> str:
    """Return what tells a slice from others."""
    if isinstance(part, str):
        return hashlib.sha256(f"text {part}".encode()).hexdigest()
    return hashlib.sha256(f"image {part.size} ".encode() + part.tobytes()).hexdigest()


@dataclass
class FrozenStates:
    """Pooled states of the slices of samples, one sample after the other.

    Args:
        rows: Number of a sample by its digest.
        offsets: Where the slices of each sample begin, and the end. (samples + 1,).
        states: (slices, hidden) float16 by pooling of texts.
    """

    rows: dict[str, int]
    offsets: np.ndarray
    states: Stored
    _digests: dict[int, str] = field(default_factory=dict, repr=False)

    def numbers(self, documents: Sequence[Document]) -> np.ndarray:
        """Return the numbers of the samples of documents, which have to stay the same objects.

        Raises:
            ValueError: One was not embedded.
        """
        for document in documents:
            if id(document) not in self._digests:
                self._digests[id(document)] = sample_digest(document)
            if self._digests[id(document)] not in self.rows:
                raise ValueError(f"{document.id} has no states: run the stage `states` with its task among --tasks.")
        return np.array([self.rows[self._digests[id(document)]] for document in documents])

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Return how many slices samples have."""
        return self.offsets[numbers + 1] - self.offsets[numbers]

    def at(self, numbers: np.ndarray, ends: np.ndarray, pooling: str) -> torch.Tensor:
        """Return the states (n, hidden) float32 at slice ends, counted from 0, of samples."""
        return torch.from_numpy(self.states[pooling][self.offsets[numbers] + ends].astype(np.float32))

    def last(self, numbers: np.ndarray, pooling: str) -> torch.Tensor:
        """Return the states (n, hidden) float32 at the last slices of samples."""
        return self.at(numbers, self.lengths(numbers) - 1, pooling)


@dataclass
class TeacherVectors:
    """Teacher vectors of samples, each slice kept once.

    Args:
        columns: (slices, width) teacher columns, and `teacher_is_image` (slices,).
        samples: For each sample the numbers of its slices.
    """

    columns: Stored
    samples: list[np.ndarray]

    def columns_of(self, number: int, slices: int | None = None) -> Stored:
        """Return the teacher columns of a sample, of its first slices alone if a number is given."""
        return {name: column[self.samples[number][:slices]] for name, column in self.columns.items()}

    def features(self, numbers: Sequence[int], slices: int | None = None) -> SliceFeatures:
        """Return the teachers' side of some samples, padded."""
        return SliceFeatures.pad([self.columns_of(number, slices) for number in numbers])


def make_states(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    documents: Sequence[Document],
    folder: Path,
    facts: Mapping[str, Any],
    max_length: int = 2048,
) -> None:
    """Embed what of some documents is not there yet.

    A call that was stopped goes on with the first part that is not there. Several calls with different documents may
    run at once.

    Args:
        model: Gives the states; its retrieval head is not used.
        processor: The model's.
        documents: The documents; of equal samples one is embedded.
        folder: Where the parts lie.
        facts: What the states depend on beside the documents, such as digests of the weights.
        max_length: The most tokens of a sample; later slices are left out.

    Raises:
        ValueError: The folder has states of other facts.
    """
    claim(folder, {**facts, "max_length": max_length, "dtype": str(model.vlm.dtype)})
    wanted = {sample_digest(document): document for document in reversed(documents)}
    order = sorted(_missing(folder, wanted), key=lambda key: wanted[key].size)

    def embed(keys: Sequence[str]) -> Stored:
        return _embed(model, processor, [wanted[key] for key in keys], max_length)

    with evaluation_mode(model):
        _add_parts(folder, order, PART, embed, "Frozen states")


def read_states(folder: Path) -> FrozenStates:
    """Read all parts of a folder.

    Raises:
        ValueError: There are none.
    """
    keys, whole = _read_parts(folder)
    offsets = np.concatenate([[0], np.cumsum(whole.pop("lengths"))])
    states = {pooling: whole[f"state_{pooling}"] for pooling in POOLINGS}
    return FrozenStates({key: number for number, key in enumerate(keys)}, offsets, states)


def make_vectors(
    teacher: Teacher, processor: SugarProcessor, documents: Sequence[Document], folder: Path
) -> TeacherVectors:
    """Embed the slices of some documents with the teacher, those that are not there yet, and return all vectors.

    Args:
        teacher: The teacher.
        processor: Says what the slices of a sample are.
        documents: The documents.
        folder: Where the parts lie.

    Raises:
        ValueError: The folder has vectors of another teacher.
    """
    claim(folder, {"teacher": teacher.fingerprint})
    wanted: dict[str, Slice] = {}
    samples = []
    for document in documents:
        parts = processor.slices(document.load())
        samples.append([slice_digest(part) for part in parts])
        wanted |= zip(samples[-1], parts, strict=True)
    order = sorted(_missing(folder, wanted), key=lambda key: len(str(wanted[key])))

    def embed(keys: Sequence[str]) -> Stored:
        rows = teacher.embed([[wanted[key]] for key in keys])
        return {name: np.concatenate([row[name] for row in rows]) for name in COLUMNS}

    _add_parts(folder, order, SLICE_PART, embed, "Teacher vectors")
    keys, columns = _read_parts(folder)
    number = {key: place for place, key in enumerate(keys)}
    return TeacherVectors(columns, [np.array([number[key] for key in sample]) for sample in samples])


def _missing(folder: Path, wanted: Mapping[str, Any]) -> list[str]:
    there = {key for path in _parts(folder) for key in _keys(path)}
    return [key for key in wanted if key not in there]


def _add_parts(
    folder: Path, order: Sequence[str], size: int, embed: Callable[[Sequence[str]], Stored], title: str
) -> None:
    with tqdm(total=len(order), desc=title) as bar:
        for start in range(0, len(order), size):
            keys = order[start : start + size]
            with atomic_path(folder / f"part-{keys[0][:16]}.safetensors") as temporary:
                save_file(embed(keys), temporary, metadata={"keys": json.dumps(keys)})
            bar.update(len(keys))


def _read_parts(folder: Path) -> tuple[list[str], Stored]:
    keys: list[str] = []
    columns: dict[str, list[np.ndarray]] = {}
    for path in _parts(folder):
        keys += _keys(path)
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                columns.setdefault(name, []).append(file.get_tensor(name))
    if not keys:
        raise ValueError(f"{folder} is empty: run the stage `states` first.")
    return keys, {name: np.concatenate(parts) for name, parts in columns.items()}


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.safetensors"))


def _keys(path: Path) -> list[str]:
    with safe_open(path, framework="numpy") as file:
        return json.loads(file.metadata()["keys"])


@torch.inference_mode()
def _embed(
    model: SugarForConditionalGeneration, processor: SugarProcessor, documents: Sequence[Document], max_length: int
) -> Stored:
    """Return the states of all slices of some documents, and how many slices each has."""
    found: dict[str, list[np.ndarray]] = {f"state_{pooling}": [] for pooling in POOLINGS}
    lengths: list[int] = []
    for part in _batches(documents):
        names = [document.id for document in part]
        samples = [cut_first(processor, document, max_length - ROOM) for document in part]
        batch = processor(samples, max_length=max_length, truncation="slice", names=names)
        inputs = BatchFeature(dict(batch)).to(model.device, dtype=model.vlm.dtype)
        hidden = model(**inputs, skip_logits=True).last_hidden_state
        for pooling in POOLINGS:
            pooled, mask = pool_slices(hidden, batch["slice_map"].to(hidden.device), "mean", pooling)
            states = pooled[mask].cpu().numpy().astype(np.float16)  # in the order of samples and slices
            if not np.isfinite(states).all():
                raise ValueError(f"{names[0]} to {names[-1]}: a state is not finite in float16. Check the weights.")
            found[f"state_{pooling}"].append(states)
        lengths += mask.sum(1).tolist()
    return {name: np.concatenate(parts) for name, parts in found.items()} | {"lengths": np.array(lengths)}


def cut_first(processor: SugarProcessor, document: Document, length: int) -> Any:
    """Return a sample whose first slice, if it is a text, has that many tokens at the most."""
    sample = document.load()
    first = sample[0] if isinstance(sample, list) else None
    if not isinstance(first, str) or len(first) <= length:  # a token has a character at least
        return sample
    tokens = processor.tokenizer(first, truncation=True, max_length=length, return_offsets_mapping=True)
    end = tokens["offset_mapping"][-1][1]
    if len(tokens["input_ids"]) < length:
        return sample
    warnings.warn(f"{document.id}: its first text is cut to {length} tokens", stacklevel=2)
    return [first[:end], *sample[1:]]


def _batches(documents: Sequence[Document]) -> Iterator[list[Document]]:
    """Cut documents, which come by size, into batches of similar numbers of tokens; guessed from characters."""
    part: list[Document] = []
    longest = 0
    for document in documents:
        images, characters = document.size
        length = 25 * images + characters // 3 + 8
        if part and max(longest, length) * (len(part) + 1) > BATCH_TOKENS:
            yield part
            part, longest = [], 0
        part, longest = [*part, document], max(longest, length)
    yield part
