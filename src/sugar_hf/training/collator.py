"""From rows of the sample schema to one batch: model inputs, labels, slice map and teacher vectors."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import get_worker_info

from sugar_hf.data import BadSampleError, to_sample
from sugar_hf.model import SugarProcessor
from sugar_hf.structure import TEACHER_COLUMNS, TripleTeacher, features_from_columns

from .ends import sample_key

BLANK = Image.new("RGB", (32, 32))


class SugarCollator:
    """Makes the batch of a Sugar trainer from rows of the sample schema (`sugar_hf.data.FEATURES`).

    Labels lie on the assistant's text, or on all text of a document without turns; never on image tokens. Teacher
    vectors come from the columns that `TripleTeacher.cache` stored with the data set, or, without these, from
    `teacher` while training goes on. With neither the batch has none, which suits generation-only training.

    Which slice ends are trained is not decided here but by the trainer, from the step, the seed and the `sample_keys`
    of the batch (see [`draw_slice_ends`]): a draw by a worker process would not survive a resume.

    Args:
        processor: The model's processor.
        teacher: Computes teacher vectors of rows that have no cached ones.
        max_length: Longest sequence in tokens; None for no limit.
        truncation: `False`: a longer sample is an error. `"slice"`: it loses its last slices, with a warning.
        split_sentences: Whether each sentence of a text segment is a slice of its own. Cached teacher vectors must
            have been made with the same setting.
        padding: As of the processor; `True` or `"longest"`, or `"max_length"`.
        control_tokens_in_answers: Whether control tokens in the assistant's texts are learnt as such, rather than
            letter by letter; see [`SugarProcessor.__call__`]. They are by default: what is learnt is your own data.
        fill_images: Whether a batch without any image gets a blank one, as a sample behind the others that has no
            label. Sharded weights need it: all processes have to run the vision tower, or none.
    """

    def __init__(
        self,
        processor: SugarProcessor,
        teacher: TripleTeacher | None = None,
        *,
        max_length: int | None = None,
        truncation: bool | str = False,
        split_sentences: bool = False,
        padding: bool | str = True,
        control_tokens_in_answers: bool = True,
        fill_images: bool = False,
    ):
        self.processor = processor
        self.teacher = copy.copy(teacher)
        if self.teacher is not None:
            self.teacher.show_progress = False  # a bar for every batch would bury the trainer's own
        self.max_length = max_length
        self.truncation = truncation
        self.split_sentences = split_sentences
        self.padding = padding
        self.control_tokens_in_answers = control_tokens_in_answers
        self.fill_images = fill_images

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collates rows.

        Args:
            rows: B rows of the sample schema, with the teacher columns or without.

        Returns:
            What the processor makes (`input_ids`, `attention_mask`, `slice_map`, `labels`, image inputs), and
            `sample_ids`, the rows' ids, `sample_keys`, a number for each of them, and `structure_features`, the fields
            of a `SliceFeatures` as a dict (only tensors, and strings for the ids, which workers, pinned memory and
            device transfer all know how to handle).

        Raises:
            BadSampleError: A row breaks the schema, an image cannot be decoded, or the cached teacher vectors are not
                those of the row's slices. It names the sample.

        Shape:
            - `input_ids`, `attention_mask`, `slice_map`, `labels`: `(B, L)`, or `(B + 1, L)` with a blank image
            - `sample_keys`: `(B,)`
            - `structure_features`: `(B, S, d)`, `(B, S)` and `(B,)`
        """
        samples = [to_sample(row) for row in rows]
        blank = [[BLANK]] if self.fill_images and not any(row["images"] for row in rows) else []
        try:
            inputs = self.processor(
                samples + blank,
                padding=self.padding,
                max_length=self.max_length,
                truncation=self.truncation,
                split_sentences=self.split_sentences,
                return_labels=True,
                control_tokens_in_answers=self.control_tokens_in_answers,
            )
        except ValueError as error:
            names = ", ".join(f"sample {i} is {row['id']!r} of {row['source']}" for i, row in enumerate(rows))
            error.add_note(f"In this batch {names}.")
            raise
        batch: dict[str, Any] = dict(inputs)
        batch["sample_ids"] = [row["id"] for row in rows]
        batch["sample_keys"] = torch.tensor([sample_key(row["id"]) for row in rows])  # (B,)
        columns = self._teacher_columns(rows, samples)
        if columns is not None:
            counts = batch["slice_map"][: len(rows)].amax(dim=1).tolist()
            columns = [self._cut(*each) for each in zip(columns, counts, rows, samples, strict=True)]
            batch["structure_features"] = vars(features_from_columns(columns))
        return batch

    def _teacher_columns(
        self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Any]
    ) -> Sequence[Mapping[str, Any]] | None:
        """The teacher columns of each row, cached or computed; None if there are neither columns nor teachers."""
        cached = [all(row.get(name) is not None for name in TEACHER_COLUMNS) for row in rows]
        if all(cached):
            self._check_fingerprints(rows)
            return rows
        if self.teacher is not None:
            return self._embed(self.teacher, samples)
        if any(cached):
            raise BadSampleError(
                "the row has no teacher vectors, though others of its batch do",
                field="teacher_clip",
                mend="Cache the whole data set with TripleTeacher.cache, or give the collator a teacher",
                sample=rows[cached.index(False)]["id"],
            )
        return None

    def _embed(self, teacher: TripleTeacher, samples: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
        if get_worker_info() is not None and teacher.clip.device.type != "cpu":
            raise RuntimeError(
                f"The teachers are on {teacher.clip.device}, which worker processes cannot use. Set "
                "dataloader_num_workers=0, or store the teacher vectors with TripleTeacher.cache before training."
            )
        return teacher.embed([self.processor.slices(sample, self.split_sentences) for sample in samples])

    def _check_fingerprints(self, rows: Sequence[Mapping[str, Any]]) -> None:
        wanted = rows[0]["teacher_fingerprint"] if self.teacher is None else self.teacher.fingerprint
        for row in rows:
            if row["teacher_fingerprint"] != wanted:
                raise BadSampleError(
                    f"its teacher vectors are of the teachers {row['teacher_fingerprint']}, not of {wanted}",
                    field="teacher_fingerprint",
                    mend="Cache the whole data set anew with TripleTeacher.cache",
                    sample=row["id"],
                )

    def _cut(self, column: Mapping[str, Any], count: int, row: Mapping[str, Any], sample: Any) -> dict[str, Any]:
        """The teacher vectors of the first `count` slices, those that truncation has left."""
        stored = len(column["teacher_is_image"])
        if stored != count:
            slices = len(self.processor.slices(sample, self.split_sentences))
            if stored != slices:
                raise BadSampleError(
                    f"it has {slices} slices, but teacher vectors of {stored}",
                    field="teacher_clip",
                    mend="The cache is stale: make it anew with TripleTeacher.cache and the same split_sentences",
                    sample=row["id"],
                )
        return {name: column[name][:count] for name in TEACHER_COLUMNS if name != "teacher_fingerprint"}
