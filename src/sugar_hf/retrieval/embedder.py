"""From samples and documents to embeddings, in batches of similar length."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..data import BadSampleError
from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.adapters import adapters_are_on
from ..model.backbone_sugar import evaluation_mode
from ..model.samples_sugar import longest_first, sample_size
from .documents import Document
from .fingerprint import ModelFingerprint
from .settings import EmbeddingSettings

__all__ = ["EmbeddingSettings", "SugarEmbedder"]

POSITIONS = ("last", "all")
UNIT_TOLERANCE = 1e-3
WINDOW = 16  # batches of texts that are tokenised at once, and put into an order by their tokens


class SugarEmbedder:
    """Embeds samples and documents with a Sugar model.

    ```python
    embedder = SugarEmbedder.from_pretrained("sugar")
    embedder.encode(["a red cat", [Path("cat.jpg"), "a cat"]])  # (2, dim) float32 unit vectors
    ```

    Args:
        model: A Sugar model, or a `peft.PeftModel` around one; left as it is.
        processor: Its processor.
        batch_size: Samples in one forward pass.
        positions: Where documents are embedded: at the `"last"` slice, or at `"all"` slice ends.
        truncate_dim: Keep this many leading dimensions and normalise anew.
        split_sentences: Make one slice of each sentence instead of each text.
        max_length: The most tokens of a sample, image tokens included.
        truncation: What becomes of longer ones: `False` raises, `"slice"` drops slices from the end and warns.

    Raises:
        ValueError: An option has a value that it cannot have.
    """

    def __init__(
        self,
        model: Any,
        processor: SugarProcessor,
        *,
        batch_size: int = 8,
        positions: str = "last",
        truncate_dim: int | None = None,
        split_sentences: bool = False,
        max_length: int | None = None,
        truncation: bool | str = False,
    ) -> None:
        width = model.config.retrieval_dim
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: give 1 or more.")
        if positions not in POSITIONS:
            raise ValueError(f"positions={positions!r}: give one of {', '.join(POSITIONS)}.")
        if truncate_dim is not None and not 1 <= truncate_dim <= width:
            raise ValueError(f"truncate_dim={truncate_dim}: give 1 to {width}, the width of the model's embeddings.")
        if truncation not in (False, "slice"):
            raise ValueError(f"truncation={truncation!r}: give False or 'slice'.")
        if truncation and max_length is None:
            raise ValueError("truncation='slice' needs max_length, the most tokens of a sample.")
        self.model = model
        self.processor = processor
        self.batch_size = batch_size
        self.positions = positions
        self.truncate_dim = truncate_dim
        self.split_sentences = split_sentences
        self.max_length = max_length
        self.truncation = truncation
        self._fingerprint: tuple[tuple[Any, ...], ModelFingerprint] | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "SugarEmbedder":
        """Load model and processor.

        Args:
            name_or_path: Hub name or folder of a Sugar checkpoint, or of adapters on one.
            device: Where it runs; the accelerator if there is one.
            dtype: Data type of the weights; the checkpoint's when `None`.
            **options: Those of [`SugarEmbedder`].
        """
        model = SugarForConditionalGeneration.from_pretrained(name_or_path, dtype="auto" if dtype is None else dtype)
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        processor = SugarProcessor.from_pretrained(name_or_path)
        return cls(model.to(device), processor, **options)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.truncate_dim or self.model.config.retrieval_dim

    @property
    def settings(self) -> EmbeddingSettings:
        """How embeddings are made."""
        name = str(self.model.config.name_or_path)
        return EmbeddingSettings(
            dim=self.dim,
            retrieval_dim=self.model.config.retrieval_dim,
            truncate_dim=self.truncate_dim,
            positions=self.positions,
            image_pooling=self.model.config.image_pooling,
            split_sentences=self.split_sentences,
            max_length=self.max_length,
            truncation=self.truncation,
            model=str(Path(name).absolute()) if Path(name).is_dir() else name,  # found from any folder
            dtype=str(self.model.dtype).removeprefix("torch."),
        )

    @property
    def fingerprint(self) -> ModelFingerprint:
        """The model's fingerprint as it is now; taken anew only if weights changed or adapters were switched."""
        state = _state(self.model)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, ModelFingerprint.of(self.model, self.processor))
        return self._fingerprint[1]

    def encode(
        self,
        samples: Sequence[Any],
        *,
        batch_size: int | None = None,
        show_progress: bool = True,
        names: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Embed samples, each at its last slice.

        Args:
            samples: A list of samples of any form that the processor takes; a lone str, image or Path is refused.
            batch_size: Samples in one forward pass; the embedder's when `None`.
            show_progress: Show a bar if it takes long.
            names: What to call the samples in errors; "sample 0", ... when `None`.

        Returns:
            (len(samples), dim) float32 unit vectors.

        Raises:
            ValueError: A sample cannot be read or is too long, or its embedding is no unit vector.
        """
        found = self._encode(samples, "last", batch_size, show_progress, names)
        return np.concatenate(found) if found else np.zeros((0, self.dim), np.float32)

    def encode_slices(
        self,
        samples: Sequence[Any],
        *,
        batch_size: int | None = None,
        show_progress: bool = True,
        names: Sequence[str] | None = None,
    ) -> list[np.ndarray]:
        """Embed samples at every slice end; arguments and errors are those of [`encode`].

        Returns:
            For each sample (S, dim) float32 unit vectors, one for each of its slices.
        """
        return self._encode(samples, "all", batch_size, show_progress, names)

    def embed_documents(
        self,
        documents: Sequence[Document],
        *,
        on_error: str = "raise",
        skipped: list[BadSampleError] | None = None,
        progress: tqdm | None = None,
    ) -> list[np.ndarray | None]:
        """Embed documents. Similar lengths share a batch, and the images of one batch only are in memory.

        Args:
            documents: Some documents.
            on_error: `"raise"` at the first that cannot be embedded, or `"skip"` those.
            skipped: A list to which the error of each skipped document is appended, in the order of the documents.
            progress: A bar that is moved by the number of documents.

        Returns:
            For each document (1, dim), or (S, dim) with positions `"all"`, float32 unit vectors; `None` if skipped.

        Raises:
            BadSampleError: A document cannot be embedded; the error names it, the field, and what to do.
            ValueError: `on_error` is neither of the two.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}")
        results: dict[int, np.ndarray] = {}
        errors: dict[int, BadSampleError] = {}
        sizes: list[tuple[int, int]] = []
        for i, document in enumerate(documents):
            try:
                sizes.append(document.size)
            except BadSampleError as error:
                errors[i] = error
                sizes.append((0, 0))
        order = [i for i in longest_first(sizes) if i not in errors]
        windows = [[(i, documents[i]) for i in places] for places in _windows(order, sizes, self.batch_size)]
        _report(errors, on_error, progress, len(errors))
        with evaluation_mode(self.model):
            for all_places, features, faults in self._ahead(self._prepare, windows):
                errors.update(faults)
                _report(faults, on_error, progress, len(faults))
                for places, batch in _batches(all_places, features, self.batch_size):
                    faults = {}
                    for i, found in zip(places, self._run(batch, self.positions), strict=True):
                        if fault := _vector_fault(found):
                            faults[i] = BadSampleError(fault, field="document", sample=documents[i].id)
                        else:
                            results[i] = found
                    errors.update(faults)
                    _report(faults, on_error, progress, len(places))
        if skipped is not None:
            skipped.extend(errors[i] for i in sorted(errors))
        return [results.get(i) for i in range(len(documents))]

    def _prepare(
        self, batch: list[tuple[int, Document]]
    ) -> tuple[list[int], BatchFeature | None, dict[int, BadSampleError]]:
        """Decode and process some documents. Returns the sound ones, their inputs, and what is wrong with others."""
        faults: dict[int, BadSampleError] = {}
        samples: dict[int, Any] = {}
        for i, document in batch:
            try:
                samples[i] = document.load()
            except BadSampleError as error:
                faults[i] = error
        names = dict(batch)
        while samples:
            try:
                return list(samples), self._process(list(samples.values()), [""] * len(samples)), faults
            except ValueError as problem:  # of which document? Each alone will tell
                found = len(faults)
                for i in list(samples) if len(samples) > 1 else []:
                    try:
                        self._process([samples[i]], [""])
                    except ValueError as error:
                        faults[i] = _named(error, names[i])
                        del samples[i]
                if len(faults) == found:  # it is not of one document alone
                    faults.update({i: _named(problem, names[i]) for i in samples})
                    break
        return [], None, faults

    def _encode(
        self,
        samples: Sequence[Any],
        positions: str,
        batch_size: int | None,
        show_progress: bool,
        names: Sequence[str] | None,
    ) -> list[np.ndarray]:
        if isinstance(samples, str) or not isinstance(samples, Sequence):
            raise ValueError(f"samples must be a list of samples, got a {type(samples).__name__}. For one: [sample].")
        names = [f"sample {i}" for i in range(len(samples))] if names is None else names
        sizes = [sample_size(*row) for row in zip(samples, names, strict=True)]
        order, step = longest_first(sizes), batch_size or self.batch_size
        windows = _windows(order, sizes, step)
        found: dict[int, np.ndarray] = {}

        def prepare(places: list[int]) -> BatchFeature:
            return self._process([samples[i] for i in places], [names[i] for i in places])

        bar = tqdm(total=len(order), desc="Embedding", unit="samples", delay=2, disable=not show_progress)
        with evaluation_mode(self.model), bar:
            for window, features in zip(windows, self._ahead(prepare, windows), strict=True):
                for places, batch in _batches(window, features, step):
                    for i, rows in zip(places, self._run(batch, positions), strict=True):
                        if fault := _vector_fault(rows):
                            raise ValueError(f"{names[i]}: {fault}")
                        found[i] = rows
                    bar.update(len(places))
        return [found[i] for i in range(len(order))]

    def _ahead(self, prepare: Callable[[Any], Any], batches: list[Any]) -> Iterator[Any]:
        """Prepare each batch while an accelerator computes the one before it; a CPU does one thing at a time."""
        if self.model.device.type == "cpu":
            yield from map(prepare, batches)
            return
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(prepare, batch) for batch in batches[:1]]
            for number in range(len(batches)):
                prepared = waiting.pop().result()
                waiting += [pool.submit(prepare, batch) for batch in batches[number + 1 : number + 2]]
                yield prepared

    def _process(self, samples: list[Any], names: Sequence[str]) -> BatchFeature:
        return self.processor(
            samples,
            padding_side="left",
            names=names,
            split_sentences=self.split_sentences,
            max_length=self.max_length,
            truncation=self.truncation,
        )

    @torch.inference_mode()
    def _run(self, features: BatchFeature, positions: str) -> list[np.ndarray]:
        """Run one batch. Returns (1, dim) or (S, dim) for each sample."""
        inputs = BatchFeature(dict(features)).to(self.model.device, dtype=self.model.dtype)
        embeds, mask = self.model.get_retrieval_embeddings(**inputs)  # (B, S, d), (B, S)
        counts = mask.sum(dim=1)
        if positions == "last":
            rows = torch.arange(len(embeds), device=embeds.device)
            embeds, counts = embeds[rows, counts - 1].unsqueeze(1), torch.ones_like(counts)
        embeds = self._truncated(embeds)
        # one transfer a batch: the counts ride along as a last column, small enough for float32 to be exact
        column = counts.to(embeds.dtype).view(-1, 1, 1).expand(-1, embeds.shape[1], 1)
        moved = torch.cat([embeds, column], dim=-1).cpu().numpy()
        return [row[: int(row[0, -1]), :-1].copy() for row in moved]

    def _truncated(self, embeds: Tensor) -> Tensor:
        embeds = embeds.float()
        if self.truncate_dim is None:
            return embeds
        return nn.functional.normalize(embeds[..., : self.truncate_dim], dim=-1)


def _windows(order: list[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Cut ordered places into what is processed at once: a batch of samples with images, or several without any."""
    with_images = [i for i in order if sizes[i][0]]
    bare = [i for i in order if not sizes[i][0]]
    return [*_cut(with_images, batch_size), *_cut(bare, WINDOW * batch_size)]


def _batches(
    places: list[int], features: BatchFeature | None, batch_size: int
) -> Iterator[tuple[list[int], BatchFeature]]:
    """Cut what was processed at once, padded on the left, into batches of similar numbers of tokens."""
    if features is None:
        return
    if len(places) <= batch_size:
        yield places, features
        return
    lengths = features["attention_mask"].sum(dim=1)
    for rows in _cut(lengths.argsort(descending=True, stable=True).tolist(), batch_size):
        longest = int(lengths[rows[0]])
        batch = {name: value[rows, -longest:].contiguous() for name, value in features.items()}
        yield [places[row] for row in rows], BatchFeature(batch)


def _cut(places: list[int], size: int) -> list[list[int]]:
    return [places[start : start + size] for start in range(0, len(places), size)]


def _report(faults: dict[int, BadSampleError], on_error: str, progress: tqdm | None, done: int) -> None:
    if faults and on_error == "raise":
        raise faults[min(faults)]
    if progress is not None and done:
        progress.update(done)


def _named(error: ValueError, document: Document) -> BadSampleError:
    """What the processor says of a sample without a name, as the error of a document."""
    return BadSampleError(str(error).lstrip(" ,:"), field="document", sample=document.id)


def _vector_fault(rows: np.ndarray) -> str | None:
    norms = np.linalg.norm(rows, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_TOLERANCE))  # NaN is not within anything
    if not len(wrong):
        return None
    return (
        f"the model gives no unit vector at slice {wrong[0]} (its length is {norms[wrong[0]]}). Check the model's "
        "weights and its dtype; float16 may overflow where bfloat16 does not"
    )


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a weight is changed or replaced, or adapters are switched; costs no look at the weights."""
    versions = tuple(
        (parameter.data_ptr(), -1 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    )
    return adapters_are_on(model), versions
