"""Batches: rows to model inputs, labels, slice map and teacher vectors; rows of similar length put together.

A batch larger than memory is cut into mini-batches.
"""

import contextlib
import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states
from torch.utils.data import Sampler, get_worker_info
from tqdm.auto import tqdm
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..data import BadSampleError, Sample, read_pair
from ..data.documents import read_row
from ..data.pair_columns import TEXT_COLUMNS, has_pair_columns, is_pair_row
from ..model import SugarProcessor
from ..structure import TEACHER_COLUMNS, SliceFeatures, Teacher, features_from_columns
from ..structure.labels import VECTOR_COLUMNS
from .arguments import StructureArguments
from .pair_batches import MEMBERSHIP, ScoreScale, pair_fields, with_members

BLANK = Image.new("RGB", (32, 32))
BLANK_TEXT = "."
BAD_SAMPLES = "bad_samples"
PROBED_ROWS = 32
# Columns that hold what is said in a row, in the sample schema and in the forms of other tools.
TURNS = ("messages", "prompt", "completion", "conversations", "text", "caption")


def sample_key(sample_id: str) -> int:
    """Return a stable 63-bit number for a sample's id, which fits into a tensor.

    >>> sample_key("story-1") == sample_key("story-1")
    True
    """
    digest = hashlib.blake2b(sample_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class SugarCollator:
    """Make the batch of a Sugar trainer from rows of the sample schema (`sugar_hf.data.FEATURES`).

    It also takes rows of the other forms that `sugar_hf.data.to_row` knows, such as those of TRL's vision trainers.
    Pairs (see `sugar_hf.data.read_pair`) become several samples: the query, its positives and its negatives.

    Labels lie on the assistant's text, or on all text of a document without turns; never on image tokens. Teacher
    vectors come from the columns that a teacher's `cache` stored with the data set, or else from `teacher` during
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
        fill_images: Whether a batch without any image gets a blank one, as a last sample that has no
            label. Sharded weights need it: all processes have to run the vision tower, or none.
        pairs_lm_loss: Whether the language-model loss learns the texts of pairs, too, as those of documents and chats.
        score_mapping: How scores of pairs become labels: `"label"` takes them as they are, -1 to 1; `"logit"` takes
            the logistic function.
        score_range: Scores that stand for the labels 0 and 1, such as `[0, 5]`; None for none.
    """

    def __init__(
        self,
        processor: SugarProcessor,
        teacher: Teacher | None = None,
        *,
        max_length: int | None = None,
        truncation: bool | str = False,
        split_sentences: bool = False,
        padding: bool | str = True,
        control_tokens_in_answers: bool = True,
        on_bad_sample: str = "error",
        fill_images: bool = False,
        pairs_lm_loss: bool = False,
        score_mapping: str = "label",
        score_range: Sequence[float] | None = None,
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
        self.pairs_lm_loss = pairs_lm_loss
        self.score_scale = ScoreScale(score_mapping, score_range)
        self._says_unlearnt = True

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows.

        Args:
            rows: Rows of the sample schema or pairs, with the teacher columns or without; B samples.

        Returns:
            What the processor makes (`input_ids`, `attention_mask`, `slice_map`, `labels`, image inputs);
            `sample_ids`, the rows' ids; `sample_keys`, a number for each of them; `structure_features`, the fields of
            a `SliceFeatures` as a dict, which workers, pinned memory and device transfer can handle; `pair_labels`,
            those of a `PairLabels`, if the rows come from a table with pairs. With
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
        counts = batch["slice_map"][: len(rows)].abs().amax(dim=1)  # (B,)
        if any(map(has_pair_columns, given)) or any(MEMBERSHIP in row for row in given):
            batch["pair_labels"] = pair_fields(rows, counts, sample_key)
            if not self.pairs_lm_loss:
                in_pairs = [row[MEMBERSHIP].field is not None for row in rows]
                batch["labels"][: len(rows)][torch.tensor(in_pairs, dtype=torch.bool)] = -100
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
            columns = [self._cut(*each) for each in zip(columns, counts.tolist(), rows, samples, strict=True)]
            batch["structure_features"] = vars(features_from_columns(columns))
        return batch

    def without_labels(self) -> "SugarCollator":
        """Return this collator without a teacher and without warnings, for those who need the inputs alone."""
        plain = copy.copy(self)
        plain.teacher, plain._says_unlearnt = None, False
        return plain

    def members(self, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Put the samples of pairs in the place of their rows; a broken row stays, for the call to find."""
        return with_members(rows, self.score_scale, self.split_sentences, keep_bad=True)[0]

    def _processed(
        self, rows: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], list[Sample], Mapping[str, Any], list[BadSampleError]]:
        """Return the rows that can be used, their samples, the processor's batch, and the errors of all others.

        Raises:
            BadSampleError: A row cannot be used, and none is to be left out.
        """
        usable: list[tuple[Mapping[str, Any], Sample]] = []
        rows, bad = with_members(rows, self.score_scale, self.split_sentences)
        self._stop_at(bad)
        for row in rows:
            try:
                usable.append(read_row(row))
            except BadSampleError as error:
                bad.append(_named(error, row))
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

    def _run_processor(self, samples: Sequence[Sample]) -> Mapping[str, Any]:
        """Run the processor on samples, with a blank one behind them where it is needed."""
        blank: list[Sample] = []
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

    def _fault(self, row: Mapping[str, Any], sample: Sample) -> BadSampleError | None:
        """Return why the processor cannot take a sample, or None if it can."""
        try:
            self._run_processor([sample])
        except MemoryError:
            raise
        except BadSampleError as error:
            return _named(error.at(file=row["source"], sample=row["id"]), row)
        except Exception as error:
            reason = f"the processor cannot take it: {type(error).__name__}: {error}".rstrip(".")
            fault = BadSampleError(reason, field="messages")
            fault.__cause__ = error
            return _named(fault.at(file=row["source"], sample=row["id"]), row)
        return None

    def _stop_at(self, bad: Sequence[BadSampleError]) -> None:
        if bad and self.on_bad_sample != "skip":
            raise bad[0]

    def _say_unlearnt(self, labels: torch.Tensor, rows: Sequence[Mapping[str, Any]]) -> None:
        """Warn of the first sample from which the language-model loss has nothing to learn."""
        if not self._says_unlearnt:
            return
        learnt = (labels[: len(rows), 1:] != -100).any(dim=1).tolist()
        learnt = [each or self._is_of_pair(row) for each, row in zip(learnt, rows, strict=True)]
        if not all(learnt):
            self._says_unlearnt = False
            row = rows[learnt.index(False)]
            warnings.warn(
                f"Sample {row['id']!r} of {row['source']} has no text to learn: the language-model loss sees the "
                "assistant's turns, or the texts of a document without turns. Further such samples are not named.",
                stacklevel=3,
            )

    def _is_of_pair(self, row: Mapping[str, Any]) -> bool:
        return MEMBERSHIP in row and row[MEMBERSHIP].field is not None

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
        self, rows: Sequence[Mapping[str, Any]], samples: Sequence[Sample]
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

    def _embed(self, teacher: Teacher, samples: Sequence[Sample]) -> Sequence[Mapping[str, Any]]:
        if get_worker_info() is not None and teacher.device.type != "cpu":
            raise RuntimeError(
                f"The teachers are on {teacher.device}, which worker processes cannot use. Set "
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
                    mend="Cache the whole data set again with TripleTeacher.cache",
                    sample=row["id"],
                )

    def _cut(self, column: Mapping[str, Any], count: int, row: Mapping[str, Any], sample: Sample) -> dict[str, Any]:
        """Return the teacher vectors of the first `count` slices, those that truncation has left."""
        stored = len(column["teacher_is_image"])
        if stored != count:
            slices = len(self.processor.slices(sample, self.split_sentences))
            if stored != slices:
                raise BadSampleError(
                    f"it has {slices} slices, but teacher vectors of {stored}",
                    field="teacher_clip",
                    mend="The cache is stale: make it again with TripleTeacher.cache and the same split_sentences",
                    sample=row["id"],
                )
        return {name: column[name][:count] for name in TEACHER_COLUMNS if name != "teacher_fingerprint"}


def make_collator(
    processor: SugarProcessor | None, teacher: Teacher | None, args: StructureArguments
) -> SugarCollator:
    """Make the collator that the arguments describe."""
    if not isinstance(processor, SugarProcessor):
        raise TypeError(
            f"processing_class is a {type(processor).__name__}; give the model's SugarProcessor, for example "
            "SugarProcessor.from_pretrained(folder), or a data_collator."
        )
    return SugarCollator(
        processor,
        teacher,
        max_length=args.max_length,
        truncation=False if args.truncation == "error" else args.truncation,
        split_sentences=args.split_sentences,
        on_bad_sample=args.on_bad_sample,
        control_tokens_in_answers=args.control_tokens_in_answers,
        pairs_lm_loss=args.pairs_lm_loss,
        score_mapping=args.score_mapping,
        score_range=args.score_range,
    )


def _named(error: BadSampleError, row: Mapping[str, Any]) -> BadSampleError:
    """Name the row of a pair, and the place of the sample in it, instead of the sample."""
    member = row.get(MEMBERSHIP)
    if member is not None and member.field is not None:
        error.sample = member.row
        error.field = f"{member.field}.{error.field}" if error.field else member.field
    return error


def _has_image(sample: Any) -> bool:
    """Tell whether a document or a chat, as `to_sample` makes it, has an image."""
    if sample and isinstance(sample[0], Mapping):
        return any(part["type"] == "image" for message in sample for part in message["content"])
    return any(isinstance(part, Image.Image) for part in sample)


# ---- Similar lengths, and mini-batches ----


class LengthEstimate:
    """Estimate the tokens of a row without opening its images, linearly from its characters and images.

    It is fitted to rows whose tokens are counted. It need not be exact to put samples of similar length together.

    Args:
        per_message: Tokens of a message beside its text (roles, ends of turns).
        per_character: Tokens of a character of text.
        per_image: Tokens of an image.
    """

    def __init__(self, per_message: float, per_character: float, per_image: float) -> None:
        self.weights = np.array([per_message, per_character, per_image])

    @classmethod
    def fit(
        cls,
        rows: Dataset | Sequence[Mapping[str, Any]],
        count_tokens: Callable[[Mapping[str, Any]], int | None],
    ) -> "LengthEstimate":
        """Fit the estimate to evenly spaced rows.

        Args:
            rows: Rows of the sample schema, one or more.
            count_tokens: Gives the tokens of a row, None for one that cannot be used.

        Raises:
            ValueError: None of the probed rows can be used.
        """
        places = np.unique(np.linspace(0, len(rows) - 1, min(PROBED_ROWS, len(rows))).astype(int))
        counted = [(row, count_tokens(row)) for row in (rows[int(place)] for place in places)]
        probed = [(row, count) for row, count in counted if count is not None]
        if not probed:
            raise ValueError(f"None of {len(counted)} rows spread over the training set can be used.")
        sizes = np.array([_size(row) for row, _ in probed], dtype=float)
        tokens = np.array([count for _, count in probed], dtype=float)
        # a little ridge: rows that are all alike say nothing about one of the three
        gram = sizes.T @ sizes + 1e-3 * np.eye(3)
        return cls(*np.maximum(np.linalg.solve(gram, sizes.T @ tokens), 0.0).tolist())

    def __call__(self, row: Mapping[str, Any]) -> int:
        """Estimate the tokens of a row of the sample schema."""
        return max(1, round(float(self.weights @ _size(row))))

    def of_dataset(self, rows: Dataset | Sequence[Mapping[str, Any]]) -> list[int]:
        """Estimate the tokens of every row."""
        if isinstance(rows, Dataset):
            said = {*TURNS, *TEXT_COLUMNS, "instruction"}
            rows = rows.select_columns([name for name in rows.column_names if name in said])
        return [self(row) for row in tqdm(rows, desc="Estimating lengths", unit="row", disable=len(rows) < 10_000)]


class LengthSampler(Sampler[int]):
    """Order rows so that those of similar length stand together, in another order in each epoch.

    The order depends on the seed and the epoch alone, so that a resumed run keeps it.

    Args:
        lengths: Length of each row.
        batch_size: Number of rows that should be alike.
        seed: Seed of the order.
        epoch: Tells the epoch when the sampler is iterated over.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch())
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


def _size(row: Mapping[str, Any]) -> tuple[int, int, int]:
    """Count the messages, characters and images of a row of whatever form; a broken one is found elsewhere."""
    if is_pair_row(row):
        try:
            sizes = [_size(sample) for _, sample in read_pair(row).samples()]
        except BadSampleError:
            return 1, 1, 0
        messages, characters, images = map(sum, zip(*sizes, strict=True))
        return messages, characters, images
    turns: list[Any] = []
    for name in TURNS:
        value = row.get(name)
        turns += value if isinstance(value, list) else [] if value is None else [{"content": value}]
    characters = images = 0
    for turn in turns:
        content = (turn.get("content") or turn.get("value")) if isinstance(turn, Mapping) else turn
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, Mapping):
                images += part.get("type") == "image"
                part = part.get("text")
            characters += len(part) if isinstance(part, str) else 0
    listed = row.get("images")
    return len(turns), characters, max(images, len(listed) if isinstance(listed, list) else 0)


class MiniBatches:
    """Hold the mini-batches of a batch; no list, so that they stay on the CPU until the trainer asks for one.

    Args:
        batches: What the collator made of each.
    """

    def __init__(self, batches: list[dict[str, Any]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.batches)

    def pin_memory(self) -> "MiniBatches":
        """Pin the memory of all tensors; the data loader calls this for faster transfers."""
        return MiniBatches([_pinned(batch) for batch in self.batches])


def each_batch(batches: Sequence[Any]) -> Iterator[Any]:
    """Yield all batches, those of mini-batches one by one."""
    for batch in batches:
        yield from batch if isinstance(batch, MiniBatches) else [batch]


def _pinned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.pin_memory()
    return {key: _pinned(item) for key, item in value.items()} if isinstance(value, Mapping) else value


class MiniBatchCollator:
    """Collate the rows of a batch as mini-batches of similar length, the longest first.

    Args:
        collate: Collator of a mini-batch.
        length: Estimates the tokens of a row.
        size: The most samples of a mini-batch; None for no limit.
        tokens: The most tokens of a mini-batch, padding included; None for no limit. A sample that is longer by
            itself is a mini-batch of its own.
        members: Puts samples in the place of rows that are several; None for rows that are not.
    """

    def __init__(
        self,
        collate: Callable[[list[Mapping[str, Any]]], dict[str, Any]],
        length: LengthEstimate,
        size: int | None = None,
        tokens: int | None = None,
        members: Callable[[Sequence[Mapping[str, Any]]], list[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.collate, self.length, self.size, self.tokens = collate, length, size, tokens
        self.members = members or list

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> MiniBatches:
        """Collate rows; see [`SugarCollator`] for what each mini-batch holds and for the errors."""
        rows = self.members(rows)
        lengths = [self.length(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda row: -lengths[row])  # what does not fit fails at once
        groups: list[list[int]] = []
        for row in order:
            if groups and self._fits(len(groups[-1]) + 1, lengths[groups[-1][0]]):
                groups[-1].append(row)
            else:
                groups.append([row])
        batches = []
        for group in groups:
            batches += self._collated([rows[row] for row in group])
        return MiniBatches(_without_empty(batches))

    def _fits(self, samples: int, longest: int) -> bool:
        return (self.size is None or samples <= self.size) and (
            self.tokens is None or samples * longest <= self.tokens
        )

    def _collated(self, rows: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return one mini-batch, or more where the estimate was too low."""
        batch = self.collate(rows)
        if len(rows) == 1 or self.tokens is None or batch["input_ids"].numel() <= self.tokens:
            return [batch]
        middle = len(rows) // 2
        return self._collated(rows[:middle]) + self._collated(rows[middle:])


def _without_empty(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mini-batches that have a sample left, or one if none has; the first lists what was left out."""
    kept = [batch for batch in batches if batch.get("sample_ids", True)] or batches[:1]
    if len(kept) < len(batches):
        kept[0]["bad_samples"] = [text for batch in batches for text in batch["bad_samples"]]
        for batch in kept[1:]:
            batch["bad_samples"] = []
    return kept


class RandomState:
    """Keep the state of the random generators before a forward pass, so that a second one draws the same dropout.

    Args:
        inputs: A tensor on the device in use.
    """

    def __init__(self, inputs: Tensor) -> None:
        self._cpu = torch.get_rng_state()
        self._devices, self._states = get_device_states(inputs)

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Return to that state within a block; afterwards to the one before it."""
        with torch.random.fork_rng(devices=self._devices):
            torch.set_rng_state(self._cpu)
            set_device_states(self._devices, self._states)
            yield


@dataclass
class MiniBatch:
    """Tell which part of a batch is being computed, and what a first pass has found.

    Args:
        count: Number of mini-batches of the batch.
        random_state: State of the random generators in the first pass; None if there was none.
        gradient: (n, d) gradient of L_d with respect to the embeddings of its n slice ends; None without L_d.
        value: () L_d of the whole batch; None without L_d.
        scale_gradient: () gradient of it with respect to a learnt logit scale; None without one.
    """

    count: int = 1
    random_state: RandomState | None = None
    gradient: Tensor | None = None
    value: Tensor | None = None
    scale_gradient: Tensor | None = None
