"""A batch of rows: model inputs, labels, slice map and teacher vectors."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import get_worker_info

from ..data import BadSampleError
from ..data.documents import read_row
from ..model import SugarProcessor
from ..structure import TEACHER_COLUMNS, SliceFeatures, TripleTeacher, features_from_columns
from ..structure.features import VECTOR_COLUMNS
from .structure_term import sample_key

BLANK = Image.new("RGB", (32, 32))
BLANK_TEXT = "."
BAD_SAMPLES = "bad_samples"


class SugarCollator:
    """Make the batch of a Sugar trainer from rows of the sample schema (`sugar_hf.data.FEATURES`).

    It also takes rows of the other forms that `sugar_hf.data.to_row` knows, such as those of TRL's vision trainers.

    Labels lie on the assistant's text, or on all text of a document without turns; never on image tokens. Teacher
    vectors come from the columns that `TripleTeacher.cache` stored with the data set, or else from `teacher` during
    training. With neither the batch has none, which suits generation-only training.

    The trainer draws the slice ends, from the step, the seed and the `sample_keys` of the batch (see
    [`draw_slice_ends`]): a draw by a worker process would not survive a resume.

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
        on_bad_sample: What happens to a sample that breaks the schema, has an image that cannot be decoded, or is
            refused by the processor, as one that is too long: `"error"`, or `"skip"` to leave it out of the batch,
            which lists it under `bad_samples`.
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
        on_bad_sample: str = "error",
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
        self.on_bad_sample = on_bad_sample
        self.fill_images = fill_images
        self._says_unlearnt = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: B rows of the sample schema, with the teacher columns or without.

        Returns:
            What the processor makes (`input_ids`, `attention_mask`, `slice_map`, `labels`, image inputs);
            `sample_ids`, the rows' ids; `sample_keys`, a number for each of them; `structure_features`, the fields of
            a `SliceFeatures` as a dict, which workers, pinned memory and device transfer can handle. With
            `on_bad_sample="skip"` also `bad_samples`, what is wrong with each row that was left out. A batch of which
            nothing is left has a blank sample, and no `sample_ids`.

        Raises:
            BadSampleError: A row breaks the schema, an image cannot be decoded, the processor refuses the sample, or
                the cached teacher vectors are not those of the row's slices. It names the sample and its source.

        Shape:
            - `input_ids`, `attention_mask`, `slice_map`, `labels`: `(B, L)`, or `(B + 1, L)` with a blank sample
            - `sample_keys`: `(B,)`
            - `structure_features`: `(B, S, d)`, `(B, S)` and `(B,)`
        """
        given = rows
        rows, samples, inputs, bad = self._processed(rows)
        batch: dict[str, Any] = dict(inputs)
        batch["sample_ids"] = [row["id"] for row in rows]
        batch["sample_keys"] = torch.tensor([sample_key(row["id"]) for row in rows], dtype=torch.int64)  # (B,)
        if self.on_bad_sample == "skip":
            batch[BAD_SAMPLES] = [str(error) for error in bad]
        if not rows:
            batch["labels"].fill_(-100)
            if (nothing := self._no_features(given)) is not None:
                batch["structure_features"] = vars(nothing)
            return batch
        self._say_unlearnt(batch["labels"], rows)
        columns = self._teacher_columns(rows, samples)
        if columns is not None:
            counts = batch["slice_map"][: len(rows)].amax(dim=1).tolist()
            columns = [self._cut(*each) for each in zip(columns, counts, rows, samples, strict=True)]
            batch["structure_features"] = vars(features_from_columns(columns))
        return batch

    def _processed(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[Any], Mapping[str, Any], list[BadSampleError]]:
        """Return the rows that can be used, their samples, the processor's batch, and the errors of all others.

        Raises:
            BadSampleError: A row cannot be used, and none is to be left out.
        """
        usable: list[tuple[Mapping[str, Any], Any]] = []
        bad: list[BadSampleError] = []
        for row in rows:
            try:
                usable.append(read_row(row))
            except BadSampleError as error:
                bad.append(error)
        self._stop_at(bad)
        try:
            inputs = self._run_processor([sample for _, sample in usable])
        except Exception:
            faults = [self._fault(*each) for each in usable]
            if not any(faults):  # only together can they not be processed: no sample is to blame
                raise
            bad += [fault for fault in faults if fault is not None]
            self._stop_at(bad)
            usable = [each for each, fault in zip(usable, faults, strict=True) if fault is None]
            inputs = self._run_processor([sample for _, sample in usable])
        return [row for row, _ in usable], [sample for _, sample in usable], inputs, bad

    def _run_processor(self, samples: Sequence[Any]) -> Mapping[str, Any]:
        """Run the processor on samples, with a blank one behind them where it is needed."""
        blank: list[Any] = []
        if self.fill_images and not any(map(_has_image, samples)):
            blank = [[BLANK]]
        elif not samples:
            blank = [[BLANK_TEXT]]
        return self.processor(
            [*samples, *blank],
            padding=self.padding,
            max_length=self.max_length,
            truncation=self.truncation,
            split_sentences=self.split_sentences,
            return_labels=True,
            control_tokens_in_answers=self.control_tokens_in_answers,
        )

    def _fault(self, row: Mapping[str, Any], sample: Any) -> BadSampleError | None:
        """Return why the processor cannot take a sample, or None if it can."""
        try:
            self._run_processor([sample])
        except MemoryError:
            raise
        except BadSampleError as error:
            return error.at(file=row["source"], sample=row["id"])
        except Exception as error:
            reason = f"the processor cannot take it: {type(error).__name__}: {error}".rstrip(".")
            fault = BadSampleError(reason, field="messages")
            fault.__cause__ = error
            return fault.at(file=row["source"], sample=row["id"])
        return None

    def _stop_at(self, bad: Sequence[BadSampleError]) -> None:
        if bad and self.on_bad_sample != "skip":
            raise bad[0]

    def _say_unlearnt(self, labels: torch.Tensor, rows: Sequence[Mapping[str, Any]]) -> None:
        """Warn of the first sample from which the language-model loss has nothing to learn."""
        if not self._says_unlearnt:
            return
        learnt = (labels[: len(rows), 1:] != -100).any(dim=1).tolist()
        if not all(learnt):
            self._says_unlearnt = False
            row = rows[learnt.index(False)]
            warnings.warn(
                f"Sample {row['id']!r} of {row['source']} has no text to learn: the language-model loss sees the "
                "assistant's turns, or the texts of a document without turns. Further such samples are not named.",
                stacklevel=3,
            )

    def _no_features(self, rows: Sequence[Mapping[str, Any]]) -> SliceFeatures | None:
        """Return the features of a batch of which no sample is left, as wide as others; None without teachers."""
        cached = next((row for row in rows if all(row.get(name) is not None for name in VECTOR_COLUMNS)), None)
        if cached is not None:
            widths = [len(cached[name][0]) for name in VECTOR_COLUMNS]
        elif self.teacher is not None:
            widths = list(self.teacher.widths)
        else:
            return None
        clip, dino, text = (torch.zeros(0, 1, width) for width in widths)
        is_image, lengths = torch.zeros(0, 1, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
        return SliceFeatures(clip, dino, text, is_image, lengths)

    def _teacher_columns(
        self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Any]
    ) -> Sequence[Mapping[str, Any]] | None:
        """Return the teacher columns of each row, cached or computed; None without columns and teachers."""
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
        """Return the teacher vectors of the first `count` slices, those that truncation has left."""
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


def _has_image(sample: Sequence[Any]) -> bool:
    """Tell whether a document or a chat, as `to_sample` makes it, has an image."""
    if sample and isinstance(sample[0], Mapping):
        return any(part["type"] == "image" for message in sample for part in message["content"])
    return any(isinstance(part, Image.Image) for part in sample)
