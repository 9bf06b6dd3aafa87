"""From samples and documents to embeddings, in batches of similar length."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from ..data import BadSampleError, Document
from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.adapters import adapters_are_on
from ..model.embedding_sugar import Faults, embed_list, embed_samples
from ..model.samples_sugar import Sample
from .fingerprint import EmbeddingSettings, ModelFingerprint

__all__ = ["EmbeddingSettings", "SugarEmbedder"]

POSITIONS = ("last", "all")
T = TypeVar("T")


class SugarEmbedder:
    """Embed samples and documents with a Sugar model. Evaluators take it as an `Encoder`.

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
        checked_size(batch_size)
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
        self.checkpoint = str(model.config.name_or_path)
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
        embedder = cls(model.to(device), processor, **options)
        embedder.checkpoint = str(name_or_path)  # for adapters, the model says where its base lies
        return embedder

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return self.truncate_dim or self.model.config.retrieval_dim

    @property
    def name(self) -> str:
        """The checkpoint's name, for results."""
        return short_name(self.checkpoint)

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
        samples: Sequence[Sample],
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
        samples: Sequence[Sample],
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
        batch_size: int | None = None,
        skipped: list[BadSampleError] | None = None,
        progress: tqdm | None = None,
    ) -> list[np.ndarray | None]:
        """Embed documents. Similar lengths share a batch, and the images of one batch only are in memory.

        Args:
            documents: Some documents; one that is there several times is processed once.
            batch_size: Documents in one forward pass; the embedder's when `None`.
            skipped: A list to which the error of each document that cannot be embedded is appended, in the order of
                the documents. When `None`, the first one raises.
            progress: A bar that is moved by the number of documents.

        Returns:
            For each document (1, dim), or (S, dim) with positions `"all"`, float32 unit vectors; `None` if skipped.

        Raises:
            BadSampleError: A document cannot be embedded; the error names it, the field, and what to do.
            ValueError: `batch_size` is less than 1.
        """
        run = DocumentRun(documents, skipped, progress)
        sizes = run.each(lambda document: document.size)
        found = embed_samples(
            self.model,
            self.processor,
            lambda number: run.documents[number].load(),
            sizes,
            lambda number: "",
            run.report,
            batch_size=checked_size(self.batch_size if batch_size is None else batch_size),
            positions=self.positions,
            **self._options,
        )
        return run.finish(found)

    def describe(self) -> dict[str, Any]:
        """What the vectors depend on, for the JSON of evaluators: checkpoint, its fingerprint, and the settings."""
        settings = self.settings.to_dict()
        del settings["model"]
        return {
            "encoder": type(self).__name__,
            "checkpoint": full_name(self.checkpoint),
            "weights": self.fingerprint.digest,
            "mode": "last slice" if self.positions == "last" else "all slices",
            **settings,
        }

    def notes(self) -> dict[str, Any]:
        """What a reader of results should know: nothing, for a document that is too long is an error or warned of."""
        return {}

    @property
    def _options(self) -> dict[str, Any]:
        names = ("truncate_dim", "split_sentences", "max_length", "truncation")
        return {name: vars(self)[name] for name in names}

    def _encode(
        self,
        samples: Sequence[Sample],
        positions: str,
        batch_size: int | None,
        show_progress: bool,
        names: Sequence[str] | None,
    ) -> list[np.ndarray]:
        if isinstance(samples, str | bytes) or not isinstance(samples, Sequence):
            raise ValueError(f"samples must be a list of samples, got a {type(samples).__name__}. For one: [sample].")
        names = [f"sample {i}" for i in range(len(samples))] if names is None else names
        step = checked_size(self.batch_size if batch_size is None else batch_size)
        options = {"batch_size": step, "positions": positions, **self._options}
        with tqdm(total=len(samples), desc="Embedding", unit="samples", delay=2, disable=not show_progress) as bar:
            return embed_list(self.model, self.processor, samples, names, bar.update, **options)


def full_name(checkpoint: str) -> str:
    """A Hub name as it is, a folder as its absolute path."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def short_name(checkpoint: str) -> str:
    """A Hub name as it is, a folder by its own name."""
    return Path(checkpoint).absolute().name if Path(checkpoint).is_dir() else checkpoint


def checked_size(batch_size: int) -> int:
    """Return a batch size, or raise a ValueError if a batch would be empty."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give 1 or more.")
    return batch_size


def distinct(documents: Sequence[Document]) -> tuple[list[Document], list[int]]:
    """Return the documents without repetitions of the same object, and the place of each in that list."""
    unique = {id(document): document for document in documents}
    numbers = {key: number for number, key in enumerate(unique)}
    return list(unique.values()), [numbers[id(document)] for document in documents]


class DocumentRun:
    """What becomes of documents that are embedded: errors that name them, and each object once.

    Args:
        documents: Some documents.
        skipped: A list for the errors, in the order of the documents; the first one raises when `None`.
        progress: A bar that is moved by the number of documents.

    Attributes:
        documents: The documents without repetitions of the same object.
    """

    def __init__(
        self, documents: Sequence[Document], skipped: list[BadSampleError] | None, progress: tqdm | None
    ) -> None:
        self.documents, self._places = distinct(documents)
        self._skipped, self._progress = skipped, progress
        self._errors: dict[int, BadSampleError] = {}

    def each(self, measure: Callable[[Document], T]) -> dict[int, T]:
        """Measure the documents, by number; those that are malformed are reported and left out."""
        measured: dict[int, T] = {}
        for number, document in enumerate(self.documents):
            try:
                measured[number] = measure(document)
            except BadSampleError as error:
                self.report({number: error}, 1)
        return measured

    def report(self, faults: Faults, count: int) -> None:
        """Note what is wrong with documents, by number, and how many are done with.

        Raises:
            BadSampleError: Errors are not to be skipped.
        """
        for number, fault in sorted(faults.items()):
            error, name = fault, self.documents[number].id
            if not isinstance(error, BadSampleError):  # what the processor says of a sample without a name
                error = BadSampleError(str(fault).lstrip(" ,:"), field="document", sample=name)
            if self._skipped is None:
                raise error from fault.__cause__
            self._errors[number] = error
        if self._progress is not None and count:
            self._progress.update(count)

    def finish(self, found: Mapping[int, np.ndarray]) -> list[np.ndarray | None]:
        """Return the vectors of all documents, `None` for those that were skipped."""
        if self._progress is not None and len(self._places) > len(self.documents):
            self._progress.update(len(self._places) - len(self.documents))
        if self._skipped is not None:
            self._skipped.extend(self._errors[number] for number in sorted(self._errors))
        return [found.get(number) for number in self._places]


def _state(model: nn.Module) -> tuple[Any, ...]:
    """Changes whenever a weight is changed or replaced, or adapters are switched; costs no look at the weights."""
    versions = tuple(
        (parameter.data_ptr(), -1 if parameter.is_inference() else parameter._version)
        for parameter in model.parameters()
    )
    return adapters_are_on(model), versions
