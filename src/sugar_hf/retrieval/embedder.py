"""From samples and documents to embeddings, in batches of similar length."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import BatchFeature

from ..data import BadSampleError
from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.adapters_sugar import adapters_are_on
from ..model.prefixes_sugar import evaluation_mode
from ..model.samples_sugar import longest_first, sample_size
from .documents import Document
from .fingerprint import ModelFingerprint

POSITIONS = ("last", "all")
UNIT_TOLERANCE = 1e-3
#: Settings by which embeddings differ. Where a query is embedded does not depend on `positions`.
_COMPARED = ("dim", "retrieval_dim", "image_pooling", "split_sentences")


@dataclass(frozen=True)
class EmbeddingSettings:
    """How embeddings are made, for an index to keep beside them.

    Args:
        dim: Width of the embeddings.
        retrieval_dim: Width of the model's embeddings.
        truncate_dim: Only this many leading dimensions are kept, normalised anew; all when `None`.
        positions: `"last"`: one embedding of a document, at its last slice; `"all"`: one at each slice end.
        image_pooling: The model's.
        split_sentences: Whether each sentence is a slice.
        max_length: The most tokens of a document.
        truncation: What becomes of a longer one: `False`: an error, `"slice"`: its last slices are dropped.
        model: Where the model came from; information only.
        dtype: The model's data type; information only.
    """

    dim: int
    retrieval_dim: int
    truncate_dim: int | None = None
    positions: str = "last"
    image_pooling: str = "mean"
    split_sentences: bool = False
    max_length: int | None = None
    truncation: bool | str = False
    model: str = ""
    dtype: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EmbeddingSettings":
        """Read `to_dict` back.

        Raises:
            ValueError: A field is missing or unknown.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown embedding settings: {', '.join(unknown)}")
        if missing := sorted({"dim", "retrieval_dim"} - values.keys()):
            raise ValueError(f"embedding settings lack {', '.join(missing)}")
        return cls(**values)

    def difference(self, other: "EmbeddingSettings") -> str | None:
        """Say why embeddings made with the other settings cannot be compared with these; `None` if they can."""
        found = [
            f"{name} is {vars(self)[name]!r} and {vars(other)[name]!r}"
            for name in _COMPARED
            if vars(self)[name] != vars(other)[name]
        ]
        return "; ".join(found) or None


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
            device = torch.accelerator.current_accelerator() or "cpu"
        processor = SugarProcessor.from_pretrained(name_or_path)
        return cls(model.to(device), processor, **options)

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.truncate_dim or self.model.config.retrieval_dim

    @property
    def settings(self) -> EmbeddingSettings:
        """How embeddings are made."""
        return EmbeddingSettings(
            dim=self.dim,
            retrieval_dim=self.model.config.retrieval_dim,
            truncate_dim=self.truncate_dim,
            positions=self.positions,
            image_pooling=self.model.config.image_pooling,
            split_sentences=self.split_sentences,
            max_length=self.max_length,
            truncation=self.truncation,
            model=str(self.model.config.name_or_path),
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
        if errors and on_error == "raise":
            raise errors[min(errors)]
        order = [i for i in longest_first(sizes) if i not in errors]
        if progress is not None and errors:
            progress.update(len(errors))
        with evaluation_mode(self.model):
            for start in range(0, len(order), self.batch_size):
                places = order[start : start + self.batch_size]
                for i, found in self._embed_or_fail([(i, documents[i]) for i in places]):
                    if isinstance(found, np.ndarray):
                        results[i] = found
                        continue
                    if on_error == "raise":
                        raise found
                    errors[i] = found
                if progress is not None:
                    progress.update(len(places))
        if skipped is not None:
            skipped.extend(errors[i] for i in sorted(errors))
        return [results.get(i) for i in range(len(documents))]

    def _embed_or_fail(self, batch: list[tuple[int, Document]]) -> Iterator[tuple[int, np.ndarray | BadSampleError]]:
        """Embed a batch; if anything in it is faulty, its documents one by one, so that the fault has a name."""
        loaded = []
        for i, document in batch:
            try:
                loaded.append((i, document, document.load()))
            except BadSampleError as error:
                yield i, error
        if not loaded:
            return
        try:
            vectors = self._embed([sample for _, _, sample in loaded], ["" for _ in loaded], self.positions)
            _check_vectors(vectors, ["" for _ in loaded])
        except ValueError as error:
            if len(loaded) > 1:
                for i, document, _ in loaded:
                    yield from self._embed_or_fail([(i, document)])
                return
            i, document, _ = loaded[0]
            yield i, BadSampleError(str(error).lstrip(" ,:"), field="document", sample=document.id)
            return
        for (i, _, _), found in zip(loaded, vectors, strict=True):
            yield i, found

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
        order = longest_first([sample_size(*row) for row in zip(samples, names, strict=True)])
        step = batch_size or self.batch_size
        found: dict[int, np.ndarray] = {}
        bar = tqdm(total=len(order), desc="Embedding", unit="samples", delay=2, disable=not show_progress)
        with evaluation_mode(self.model), bar:
            for start in range(0, len(order), step):
                places = order[start : start + step]
                called = [names[i] for i in places]
                vectors = self._embed([samples[i] for i in places], called, positions)
                _check_vectors(vectors, called)
                found.update(zip(places, vectors, strict=True))
                bar.update(len(places))
        return [found[i] for i in range(len(order))]

    @torch.inference_mode()
    def _embed(self, samples: list[Any], names: Sequence[str], positions: str) -> list[np.ndarray]:
        """Run one batch. Returns (1, dim) or (S, dim) for each sample."""
        features = self.processor(
            samples,
            padding_side="left",
            names=names,
            split_sentences=self.split_sentences,
            max_length=self.max_length,
            truncation=self.truncation,
        )
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


def _check_vectors(vectors: list[np.ndarray], names: Sequence[str]) -> None:
    for name, found in zip(names, vectors, strict=True):
        norms = np.linalg.norm(found, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= UNIT_TOLERANCE))  # NaN is not within anything
        if len(wrong):
            raise ValueError(
                f"{name}: the model gives no unit vector at slice {wrong[0]} (its length is {norms[wrong[0]]}). "
                "Check the model's weights and its dtype; float16 may overflow where bfloat16 does not."
            )


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a weight is changed or replaced, or adapters are switched; costs no look at the weights."""
    versions = tuple(
        (parameter.data_ptr(), -1 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    )
    return adapters_are_on(model), versions
