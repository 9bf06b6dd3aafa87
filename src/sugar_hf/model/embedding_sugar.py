"""From samples to embeddings: the one batched loop, and whether one pass embeds all prefixes of a sample."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature

from .backbone_sugar import evaluation_mode
from .modeling_sugar import SugarForConditionalGeneration
from .processing_sugar import SugarProcessor
from .samples_sugar import Item, Sample, sample_sizes

UNIT_TOLERANCE = 1e-3
WINDOW = 16  # batches of texts that are tokenised together, and sorted by their tokens
# Distances of unit vectors, or of logits relative to their size, that rounding alone may make after dozens of layers.
TOLERANCE = 1e-3
HALF_TOLERANCE = 0.1
SEES_AHEAD = "tokens see what comes after them"

T = TypeVar("T")
#: Vectors, or what is wrong with them, by the number of the sample.
Vectors = dict[int, np.ndarray]
Faults = Mapping[int, ValueError]


# --- the loop


def first_not_unit(vectors: np.ndarray) -> int | None:
    """Return the number of the first of some vectors (n, d) that is not of length 1; `None` if all are.

    >>> first_not_unit(np.array([[0.6, 0.8], [1.0, 1.0], [np.nan, 0.0]]))
    1
    """
    wrong = np.flatnonzero(~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= UNIT_TOLERANCE))  # NaN is within nothing
    return int(wrong[0]) if len(wrong) else None


def check_unit(vectors: np.ndarray, what: str = "slice") -> None:
    """Refuse vectors (n, d) of a model that are not of length 1.

    Raises:
        ValueError: If one is not, or has NaN; the message says which.
    """
    if (wrong := first_not_unit(vectors)) is not None:
        length = np.linalg.norm(vectors[wrong])
        raise ValueError(
            f"the model gives no unit vector at {what} {wrong} (its length is {length}). Check its weights and "
            "its dtype; float16 may overflow where bfloat16 does not"
        )


def embed_in_batches(
    windows: Sequence[list[int]],
    prepare: Callable[[list[int]], tuple[T, Faults]],
    run: Callable[[list[int], T], Iterable[tuple[list[int], Sequence[np.ndarray]]]],
    report: Callable[[Faults, int], object],
    ahead: bool,
) -> Vectors:
    """Embed samples, whatever the model: the one loop behind pipelines, embedders and evaluators.

    Args:
        windows: Numbers of the samples that are prepared together.
        prepare: From the numbers of a window to what the model takes of those samples, and what is wrong with others.
        run: Yields numbers and vectors (V, d) batch by batch, for the numbers of a window that are sound.
        report: Told of faults, and how many samples are done with. It raises where a fault stops the run.
        ahead: Prepare each window while an accelerator computes the one before it.

    Returns:
        Vectors (V, d) by number, all of length 1; those with faults are left out.
    """
    vectors: Vectors = {}
    for window, (inputs, faults) in zip(windows, _prepared(prepare, windows, ahead), strict=True):
        report(faults, len(faults))
        sound = [number for number in window if number not in faults]
        for numbers, batch in run(sound, inputs) if sound else ():
            wrong: dict[int, ValueError] = {}
            for number, rows in zip(numbers, batch, strict=True):
                try:
                    check_unit(rows)
                    vectors[number] = rows
                except ValueError as error:
                    wrong[number] = error
            report(wrong, len(numbers))
    return vectors


def _prepared(prepare: Callable[[list[int]], T], windows: Sequence[list[int]], ahead: bool) -> Iterator[T]:
    if not ahead:  # a CPU does one thing at a time
        yield from map(prepare, windows)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(prepare, window) for window in windows[:1]]
        for number in range(len(windows)):
            prepared = waiting.pop().result()
            waiting += [pool.submit(prepare, window) for window in windows[number + 1 : number + 2]]
            yield prepared


def embed_samples(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    load: Callable[[int], Sample],
    sizes: Mapping[int, tuple[int, int]],
    names: Callable[[int], str],
    report: Callable[[Faults, int], object],
    *,
    batch_size: int,
    positions: str = "last",
    truncate_dim: int | None = None,
    **options: Any,
) -> Vectors:
    """Embed samples with Sugar. Similar lengths share a batch, and the images of one batch only are in memory.

    Args:
        model: The model; left as it is.
        processor: Its processor.
        load: Gives the sample of a number.
        sizes: For each number, from `sample_sizes`.
        names: What to call the sample of a number in errors.
        report: See [`embed_in_batches`].
        batch_size: Samples in one forward pass.
        positions: Embed a sample at its `"last"` slice, or at `"all"` slice ends.
        truncate_dim: Keep this many leading dimensions and normalise again.
        **options: Of the processor.

    Returns:
        See [`embed_in_batches`].
    """

    def process(samples: Mapping[int, Sample]) -> BatchFeature:
        return processor([*samples.values()], padding_side="left", names=[*map(names, samples)], **options)

    def prepare(window: list[int]) -> tuple[BatchFeature | None, Faults]:
        faults: dict[int, ValueError] = {}
        samples: dict[int, Sample] = {}
        for number in window:
            try:
                samples[number] = load(number)
            except ValueError as error:
                faults[number] = error
        while samples:
            try:
                return process(samples), faults
            except ValueError as problem:  # of which sample? Each alone will tell
                alone: dict[int, ValueError] = {}
                for number, sample in samples.items() if len(samples) > 1 else ():
                    try:
                        process({number: sample})
                    except ValueError as error:
                        alone[number] = error
                faults |= alone or dict.fromkeys(samples, problem)
                samples = {number: sample for number, sample in samples.items() if number not in faults}
        return None, faults

    def run(numbers: list[int], features: BatchFeature | None) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        for part, batch in _batches(numbers, features, batch_size) if features is not None else ():
            yield part, embed_features(model, batch, positions, truncate_dim)

    # similar lengths share a batch, and the largest comes first, so that memory runs out early or never
    order = sorted(sizes, key=sizes.__getitem__, reverse=True)
    with_images = [number for number in order if sizes[number][0]]
    bare = [number for number in order if not sizes[number][0]]
    windows = [*_cut(with_images, batch_size), *_cut(bare, WINDOW * batch_size)]
    with evaluation_mode(model):
        return embed_in_batches(windows, prepare, run, report, ahead=model.device.type != "cpu")


@torch.inference_mode()
def embed_features(
    model: SugarForConditionalGeneration,
    features: BatchFeature,
    positions: str = "last",
    truncate_dim: int | None = None,
) -> list[np.ndarray]:
    """Embed one batch, what the processor has made of it. Returns float32 (1, d) or (S, d) for each sample."""
    inputs = BatchFeature(dict(features)).to(model.device, dtype=model.dtype)
    embeds, mask = model.get_retrieval_embeddings(**inputs)  # (B, S, d), (B, S)
    counts = mask.sum(dim=1)
    if positions == "last":
        rows = torch.arange(len(embeds), device=embeds.device)
        embeds, counts = embeds[rows, counts - 1].unsqueeze(1), torch.ones_like(counts)
    embeds = embeds.float()
    if truncate_dim is not None:
        embeds = nn.functional.normalize(embeds[..., :truncate_dim], dim=-1)
    # one transfer a batch: the counts ride along as a last column, small enough for float32 to be exact
    column = counts.to(embeds.dtype).view(-1, 1, 1).expand(-1, embeds.shape[1], 1)
    moved = torch.cat([embeds, column], dim=-1).cpu().numpy()
    return [row[: int(row[0, -1]), :-1].copy() for row in moved]


def embed_list(
    model: SugarForConditionalGeneration,
    processor: SugarProcessor,
    samples: Sequence[Sample],
    names: Sequence[str],
    progress: Callable[[int], object],
    **options: Any,
) -> list[np.ndarray]:
    """Embed a list of samples; the first that cannot be embedded stops it. Options are those of [`embed_samples`].

    Raises:
        ValueError: A sample cannot be read or is too long, or its embedding is no unit vector; it is named.
    """

    def report(faults: Faults, count: int) -> None:
        for number in sorted(faults):
            error = faults[number]
            raise (
                error if names[number] in str(error) else ValueError(f"{names[number]}: {error}")
            ) from error.__cause__
        progress(count)

    sizes = dict(enumerate(sample_sizes(samples, names)))
    found = embed_samples(model, processor, samples.__getitem__, sizes, names.__getitem__, report, **options)
    return [found[number] for number in range(len(samples))]


def _batches(numbers: list[int], features: BatchFeature, batch_size: int) -> Iterator[tuple[list[int], BatchFeature]]:
    """Cut what was processed at once, padded on the left, into batches of similar numbers of tokens."""
    if len(numbers) <= batch_size:
        yield numbers, features
        return
    lengths = features["attention_mask"].sum(dim=1)
    for rows in _cut(lengths.argsort(descending=True, stable=True).tolist(), batch_size):
        longest = int(lengths[rows[0]])
        batch = {name: value[rows, -longest:].contiguous() for name, value in features.items()}
        yield [numbers[row] for row in rows], BatchFeature(batch)


def _cut(numbers: list[int], size: int) -> list[list[int]]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


# --- prefixes


@dataclass(frozen=True)
class PrefixCheck:
    """What [`check_prefix_embeddings`] found.

    Args:
        deviation: The largest distance between the embedding of a slice inside the sample and that of the same slice
            in the prefix alone. Between unit vectors: 0 to 2.
        reasons: Why they differ; empty if they do not.
    """

    deviation: float
    reasons: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """Whether embeddings of prefixes are the same inside a longer sample."""
        return not self.reasons

    def __str__(self) -> str:
        if self.is_exact:
            return "Embeddings at slice ends inside a sample are those of its prefixes alone."
        return (
            "With this model, the embedding of a slice end inside a longer sample is not that of the sample which "
            f"ends there: {'; '.join(self.reasons)} (distance up to {self.deviation:.2g}, of at most 2). For the "
            "embedding of a prefix, pass it as a sample of its own: [sample[:1], sample[:2], ...]."
        )


@torch.no_grad()
def check_prefix_embeddings(model: SugarForConditionalGeneration, processor: SugarProcessor) -> PrefixCheck:
    """Find out whether one forward pass gives the embeddings of all prefixes of a sample.

    That holds if the model sees nothing of what follows a slice and the processor writes a prefix the
    same whatever follows. No list of models is consulted: a drawn sample of three images and two texts, without
    roles, is embedded whole and as each of its prefixes, in five forward passes, and the inputs are compared too.

    Args:
        model: A Sugar model, on any device and in any dtype; left as it is.
        processor: Its processor.

    Returns:
        The largest deviation and its reasons.
    """
    wide, tall = drawn_picture(96, 48), drawn_picture(48, 64)
    sample: list[Item] = [wide, tall, "A drawn picture.", wide, "Another text."]
    with evaluation_mode(model):
        whole = processor([sample])
        embeds = _embed(model, whole)
        reasons: dict[str, None] = {}  # in order, each once
        largest = 0.0
        for end in range(1, len(sample)):
            prefix = processor([sample[:end]])
            deviation = float((_embed(model, prefix) - embeds[:end]).norm(dim=-1).max())
            largest = max(largest, deviation)
            written = _written_otherwise(prefix, whole, end)
            if written:
                reasons[written] = None
            elif deviation > rounding(model):
                reasons[SEES_AHEAD] = None
    return PrefixCheck(largest, tuple(reasons))


def rounding(model: SugarForConditionalGeneration) -> float:
    """Return the deviation that rounding alone may make in the model's data type."""
    return TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE


def _embed(model: SugarForConditionalGeneration, features: BatchFeature) -> Tensor:
    """Embed the slices of one sample. (S, d)."""
    inputs = BatchFeature(dict(features)).to(model.device, dtype=model.dtype)
    return model.get_retrieval_embeddings(**inputs)[0][0]


def _written_otherwise(prefix: BatchFeature, whole: BatchFeature, end: int) -> str | None:
    """Say how the tokens of a prefix, up to its last slice, differ from those it has in the whole sample."""
    ours, theirs = (_tokens(features, end) for features in (prefix, whole))
    if np.array_equal(ours, theirs):
        return None
    counts = [[int((row[1] == number).sum()) for number in range(1, end + 1)] for row in (ours, theirs)]
    for alone, inside in zip(*counts, strict=True):
        if alone != inside:
            return f"the processor gives an image {alone} tokens in one sample and {inside} in a longer one"
    return "the processor writes a prefix of a sample otherwise when more follows"


def _tokens(features: BatchFeature, end: int) -> np.ndarray:
    """Return ids and slice numbers of one sample up to the end of a slice. (2, L)."""
    real = features["attention_mask"][0].bool()
    rows = torch.stack([features["input_ids"][0][real], features["slice_map"][0][real].abs()]).numpy()
    return rows[:, : np.flatnonzero(rows[1] == end)[-1] + 1]


def drawn_picture(width: int, height: int) -> Image.Image:
    """Draw a picture: two colour ramps."""
    columns, rows = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([columns, rows, 255 - columns], axis=-1).astype(np.uint8))
