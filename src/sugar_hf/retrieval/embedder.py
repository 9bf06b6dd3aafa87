"""From samples and documents to embeddings, and what tells whether embeddings can be compared: settings and model."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import BadSampleError, Document
from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.adapters import adapters_are_on
from ..model.backbone_sugar import evaluation_mode
from ..model.checkpoint_sugar import PROMPTS_FILE, read_prompts
from ..model.embedding_sugar import Faults, drawn_picture, embed_features, embed_list, embed_samples
from ..model.samples_sugar import Sample, with_prompt

T = TypeVar("T")
SAMPLED = 64  # numbers looked at in each weight
# Distances of unit vectors, in float32 and in half precision. Equal weights differ by rounding only, through dozens of
# layers and on other hardware. Two models that were trained apart are about 1.4 apart.
TOLERANCE, HALF_TOLERANCE = 0.02, 0.2
# Adapters that were merged differ from themselves by less than from a base that they hardly changed.
MERGED_TOLERANCE, HALF_MERGED_TOLERANCE = 1e-3, 0.05
_SAMPLED_ALIKE = {"float32", "float64", "bfloat16"}  # rounded to bfloat16 these give the same numbers
_WRAPPINGS = ("base_model.model.", "base_layer.", "original_module.")
_ADAPTERS = ("lora_", "modules_to_save.")
_IGNORED_SETTINGS = {
    "auto_map",
    "data_format",
    "device",
    "disable_grouping",
    "image_processor_type",
    "input_data_format",
    "processor_class",
    "return_tensors",
}
_PROBE_TEXT = "The 2 quick  foxes, naïve & wise: 《狐》 <image> in the box.\nA line!"
#: Where documents are embedded: at their last slice, or at the end of each.
POSITIONS = ("last", "all")
#: Settings by which embeddings differ. Where a query is embedded does not depend on `positions`.
_COMPARED = ("dim", "retrieval_dim", "image_pooling", "text_pooling", "split_sentences")


@dataclass(frozen=True)
class EmbeddingSettings:
    """How embeddings are made, for an index to keep beside them.

    Args:
        dim: Width of the embeddings.
        retrieval_dim: Width of the model's embeddings.
        truncate_dim: Only this many leading dimensions are kept, normalised anew; all when `None`.
        positions: `"last"`: one embedding of a document, at its last slice; `"all"`: one at each slice end.
        image_pooling: The model's.
        text_pooling: The model's.
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
    text_pooling: str = "last"  # that of indexes of earlier versions, which have no such field
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
        """Read `to_dict` back."""
        if unknown := sorted(values.keys() - cls.__dataclass_fields__.keys()):
            raise ValueError(f"unknown embedding settings: {', '.join(unknown)}")
        if missing := sorted({"dim", "retrieval_dim"} - values.keys()):
            raise ValueError(f"embedding settings lack {', '.join(missing)}")
        for name, value in values.items():
            if not _is_setting(name, value):
                raise ValueError(f"the embedding setting {name} is {value!r:.40}")
        return cls(**values)

    def difference(self, other: "EmbeddingSettings") -> str | None:
        """Say why embeddings made with the other settings cannot be compared with these; `None` if they can."""
        found = [
            f"{name} is {vars(self)[name]!r} and {vars(other)[name]!r}"
            for name in _COMPARED
            if vars(self)[name] != vars(other)[name]
        ]
        return "; ".join(found) or None


def _is_setting(name: str, value: Any) -> bool:
    """Whether a field can have a value."""
    if name in ("dim", "retrieval_dim"):
        return type(value) is int and value > 0
    if name in ("truncate_dim", "max_length"):
        return value is None or (type(value) is int and value > 0)
    if name == "split_sentences":
        return isinstance(value, bool)
    return isinstance(value, str) or (name == "truncation" and isinstance(value, bool))


@dataclass(frozen=True)
class ModelFingerprint:
    """What tells a model's embeddings from another's.

    Args:
        parts: `"config"` (fields that shape an embedding), `"weights"` (digests of backbone, retrieval head and
            adapters, and the precision) and `"processor"` (digests of the tokenizer, the chat template and the image
            settings).
        probe: (3, retrieval_dim) embeddings of a text, a drawn picture, and both.
    """

    parts: dict[str, dict[str, Any]]
    probe: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, model: SugarForConditionalGeneration, processor: SugarProcessor) -> "ModelFingerprint":
        """Take the fingerprint of a model as it is now, adapters on or off. Costs one short forward pass."""
        vectors, tokens = _probe(model, processor)
        parts = {
            "config": _config_part(model),
            "weights": _weights_part(model),
            "processor": {**_processor_part(processor), "tokens of the probe": tokens},
        }
        return cls(parts, tuple(tuple(round(float(x), 6) for x in row) for row in vectors))

    @property
    def digest(self) -> str:
        """SHA-256 over all but the probe, whose last digits depend on the hardware."""
        return _digest(self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Return a form for JSON."""
        return {"parts": self.parts, "probe": [list(row) for row in self.probe]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelFingerprint":
        """Read `to_dict` back."""
        try:
            parts = {name: dict(part) for name, part in values["parts"].items()}
            probe = tuple(tuple(float(x) for x in row) for row in values["probe"])
            weights = parts["weights"]
            digests = [weights[key] for key in ("backbone", "retrieval head", "adapters")]
            is_good = {"config", "processor"} <= parts.keys() and all(isinstance(text, str) for text in digests)
            is_good = is_good and all(isinstance(text, str) for text in weights["precision"])
            is_good = is_good and bool(np.isfinite([x for row in probe for x in row]).all())
            is_good = is_good and len({len(row) for row in probe}) == 1
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"it is not the fingerprint of a model ({type(error).__name__}: {error})") from error
        if not is_good:
            raise ValueError("it is not the fingerprint of a model")
        return cls(parts, probe)

    def difference(self, other: "ModelFingerprint") -> str | None:
        """Say why embeddings of the other model cannot be compared with this one's.

        Equal weights in another precision pass, and so do adapters that were merged into the weights, if the
        embeddings of the probe are alike.

        Returns:
            What differs, in words, this model's value first; `None` if nothing does.
        """
        for name in ("config", "processor"):
            found = _compare(self.parts[name], other.parts[name])
            if found:
                return f"the {name} differs: {found}"
        distance = self.distance(other)
        ours, theirs = self.parts["weights"], other.parts["weights"]
        precisions = {*ours["precision"], *theirs["precision"]}
        was_merged = bool(ours["adapters"]) != bool(theirs["adapters"])
        tolerances = (MERGED_TOLERANCE, HALF_MERGED_TOLERANCE) if was_merged else (TOLERANCE, HALF_TOLERANCE)
        tolerance = tolerances[precisions != {"float32"}]
        changed = [key for key in ("backbone", "retrieval head", "adapters") if ours[key] != theirs[key]]
        apart = f"the probe's embeddings are {distance:.2g} apart, {tolerance:.2g} is allowed"
        if not changed:
            return None if distance <= tolerance else f"the weights seem equal, but {apart}"
        may_be_rounding = not precisions <= _SAMPLED_ALIKE
        if (may_be_rounding or was_merged) and distance <= tolerance:
            return None
        if was_merged:
            state = {True: "on", False: "off or missing"}
            return f"adapters are {state[bool(ours['adapters'])]} here and {state[bool(theirs['adapters'])]} there"
        return f"the weights of {' and '.join(changed)} differ ({apart})"

    def distance(self, other: "ModelFingerprint") -> float:
        """Return the largest distance between embeddings of the probe, 0 to 2; infinite if their widths differ."""
        ours, theirs = np.array(self.probe), np.array(other.probe)
        if ours.shape != theirs.shape:
            return float("inf")
        return float(np.linalg.norm(ours - theirs, axis=1).max())


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
        prompts: Instructions by name, for `prompt_name` of [`encode`].

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
        prompts: Mapping[str, str] | None = None,
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
        self.prompts = dict(prompts or {})
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
        """Load model, processor and the prompts that the checkpoint has for sentence-transformers.

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
        if options.get("prompts") is None:
            options["prompts"] = read_prompts(name_or_path)
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
            text_pooling=self.model.config.text_pooling,
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
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """Embed samples, each at its last slice.

        Args:
            samples: A list of samples of any form that the processor takes; a lone str, image or Path is refused.
            batch_size: Samples in one forward pass; the embedder's when `None`.
            show_progress: Show a bar if it takes long.
            names: What to call the samples in errors; "sample 0", ... when `None`.
            prompt: An instruction, such as what queries look for: the system message of each sample, as
                `instruction` is in training. It makes no slice.
            prompt_name: Instead: its name among the embedder's `prompts`.

        Returns:
            (len(samples), dim) float32 unit vectors.

        Raises:
            ValueError: A sample cannot be read or is too long, its embedding is no unit vector, or there is no prompt
                of this name.
        """
        found = self._encode(samples, "last", batch_size, show_progress, names, self.find_prompt(prompt, prompt_name))
        return np.concatenate(found) if found else np.zeros((0, self.dim), np.float32)

    def encode_slices(
        self,
        samples: Sequence[Sample],
        *,
        batch_size: int | None = None,
        show_progress: bool = True,
        names: Sequence[str] | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[np.ndarray]:
        """Embed samples at every slice end; arguments and errors are those of [`encode`].

        Returns:
            For each sample (S, dim) float32 unit vectors, one for each of its slices.
        """
        return self._encode(samples, "all", batch_size, show_progress, names, self.find_prompt(prompt, prompt_name))

    def find_prompt(self, prompt: str | None = None, name: str | None = None) -> str | None:
        """Return a prompt that is given as it is or by its name; `None` if neither is.

        Raises:
            ValueError: There is none of this name, or both are given.
        """
        if name is None:
            return prompt
        if prompt is not None:
            raise ValueError("give prompt or prompt_name, not both.")
        if name not in self.prompts:
            known = ", ".join(map(repr, sorted(self.prompts))) or "none"
            raise ValueError(
                f"prompt_name={name!r}: {self.name} has {known}. Give prompt=, or enter it in {PROMPTS_FILE}."
            )
        return self.prompts[name]

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
        """Return what the vectors depend on, for evaluators: checkpoint, its fingerprint, and the settings."""
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
        """Return what a reader of results should know: nothing, as a document that is too long is told of at once."""
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
        prompt: str | None,
    ) -> list[np.ndarray]:
        if isinstance(samples, str | bytes) or not isinstance(samples, Sequence):
            raise ValueError(f"samples must be a list of samples, got a {type(samples).__name__}. For one: [sample].")
        names = [f"sample {i}" for i in range(len(samples))] if names is None else names
        samples = [with_prompt(sample, prompt) for sample in samples]
        step = checked_size(self.batch_size if batch_size is None else batch_size)
        options = {"batch_size": step, "positions": positions, **self._options}
        with tqdm(total=len(samples), desc="Embedding", unit="samples", delay=2, disable=not show_progress) as bar:
            return embed_list(self.model, self.processor, samples, names, bar.update, **options)


# ---- Documents ----


def full_name(checkpoint: str) -> str:
    """Return a Hub name as it is, a folder as its absolute path."""
    return str(Path(checkpoint).absolute()) if Path(checkpoint).is_dir() else checkpoint


def short_name(checkpoint: str) -> str:
    """Return a Hub name as it is, a folder by its own name."""
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
        """Note what is wrong with documents, by number, and how many are done with."""
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


# ---- Origins ----


def origin_of(embedder: SugarEmbedder) -> tuple[EmbeddingSettings, dict[str, Any]]:
    """Return what an index keeps of an embedder: its settings, and the fingerprint of its model as a dict."""
    return embedder.settings, embedder.fingerprint.to_dict()


def check_origin(settings: Mapping[str, Any] | None, fingerprint: Mapping[str, Any] | None) -> None:
    """Refuse what an index kept if it cannot be read; `None` stands for vectors from elsewhere."""
    if settings is not None:
        EmbeddingSettings.from_dict(settings)
    if fingerprint is not None:
        ModelFingerprint.from_dict(fingerprint)


def why_another(
    embedder: SugarEmbedder,
    known: ModelFingerprint | None,
    dim: int,
    settings: Mapping[str, Any] | None,
    fingerprint: Mapping[str, Any] | None,
) -> tuple[str | None, ModelFingerprint]:
    """Say why an embedder's embeddings cannot be compared with those of an index; `None` if they can.

    Nothing is compared while the fingerprint of the model is the one that is `known` to be right. The fingerprint that
    it has now is returned, too.
    """
    now = embedder.fingerprint
    if now is known:
        return None, now
    if embedder.dim != dim:
        return (
            f"holds embeddings of {dim} dimensions, the embedder gives {embedder.dim}. Open it with the model and the "
            "truncate_dim that made it, or build it again."
        ), now
    if settings is None or fingerprint is None:
        return None, now  # who added vectors from elsewhere knows where they are from
    mine = EmbeddingSettings.from_dict(settings)
    difference = mine.difference(embedder.settings) or ModelFingerprint.from_dict(fingerprint).difference(now)
    return difference and (
        f"was made with another model or other settings (by {mine.model or 'a model without a name'}); the index's "
        f"value first: {difference}. Open it with the model that made it, or build it again."
    ), now


def are_equal(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> bool:
    """Whether two fingerprints, as dicts, are of models whose embeddings can be compared; `None` equals `None`."""
    if ours is None or theirs is None:
        return ours is theirs
    try:
        return ModelFingerprint.from_dict(ours).difference(ModelFingerprint.from_dict(theirs)) is None
    except ValueError:
        return False


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over the name, shape, data type and some numbers of every weight of any model."""
    digest = hashlib.sha256()
    for name, numbers, dtype in _sampled_weights(model):
        digest.update(f"{name} {dtype}\n".encode() + numbers)
    return digest.hexdigest()


def _compare(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Name what differs between two flat dicts, with values where they are short."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        ours_value, theirs_value = ours.get(key), theirs.get(key)
        if ours_value == theirs_value:
            continue
        shown = f"{ours_value!r} and {theirs_value!r}"
        is_digest = isinstance(ours_value, str) and len(ours_value) == 64
        found.append(key if is_digest or len(shown) > 120 else f"{key} ({shown})")
    return ", ".join(found)


def _config_part(model: SugarForConditionalGeneration) -> dict[str, Any]:
    config = model.config
    text = config.get_text_config()
    return {
        "backbone": config.vlm_config.model_type,
        "retrieval_dim": config.retrieval_dim,
        "retrieval_hidden_size": config.retrieval_hidden_size,
        "image_pooling": config.image_pooling,
        # indexes of earlier versions have no such field, and texts by their last token
        **({} if config.text_pooling == "last" else {"text_pooling": config.text_pooling}),
        "image_token_id": config.image_token_id,
        "hidden_size": text.hidden_size,
        "vocab_size": text.vocab_size,
        "num_hidden_layers": text.num_hidden_layers,
    }


def _weights_part(model: SugarForConditionalGeneration) -> dict[str, Any]:
    """Digests of some numbers of every weight, rounded to bfloat16; a model of billions takes about a second."""
    adapters_on = adapters_are_on(model)
    digests = {key: hashlib.sha256() for key in ("backbone", "retrieval head", "adapters")}
    precision = set()
    for name, values, dtype in _sampled_weights(model):
        for wrapping in _WRAPPINGS:
            name = name.replace(wrapping, "")
        if any(mark in name for mark in _ADAPTERS):
            key = "adapters"
        else:
            key = "retrieval head" if name.startswith("retrieval_head.") else "backbone"
            precision.add(dtype)
        digests[key].update(f"{name}\n".encode() + values)
    return {
        "backbone": digests["backbone"].hexdigest(),
        "retrieval head": digests["retrieval head"].hexdigest(),
        "adapters": digests["adapters"].hexdigest() if adapters_on else "",
        "precision": sorted(precision),
    }


@torch.no_grad()
def _sampled_weights(model: nn.Module) -> Iterator[tuple[str, bytes, str]]:
    """Yield name, sampled numbers and dtype of each weight; weights that are not in memory have no numbers."""
    parameters = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    picked: dict[torch.device, list[Tensor]] = {}
    for _, weight in parameters:
        if weight.device.type != "meta":
            picked.setdefault(weight.device, []).append(_pick(weight))
    fetched = {device: _fetch(parts) for device, parts in picked.items()}
    for name, weight in parameters:
        if weight.device.type == "meta":
            yield name, b"", "not in memory"
        else:
            numbers = next(fetched[weight.device])
            yield name, f"{tuple(weight.shape)}".encode() + numbers, str(weight.dtype).removeprefix("torch.")


def _fetch(parts: list[Tensor]) -> Iterator[bytes]:
    """Bring bfloat16 numbers to the CPU in one transfer, not one for each of hundreds of weights."""
    numbers = torch.cat(parts).cpu().view(torch.int16).numpy()
    bounds = np.cumsum([len(part) for part in parts])[:-1]
    return iter([piece.tobytes() for piece in np.split(numbers, bounds)])


def _pick(weight: Tensor) -> Tensor:
    flat = weight.reshape(-1)
    places = torch.linspace(0, max(flat.numel() - 1, 0), min(SAMPLED, flat.numel()), dtype=torch.float64).long()
    return flat[places.to(flat.device)].to(torch.bfloat16)


def _processor_part(processor: SugarProcessor) -> dict[str, Any]:
    tokenizer = processor.tokenizer
    vocabulary = sorted(tokenizer.get_vocab().items())
    added = sorted((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items())
    settings = json.loads(json.dumps(processor.image_processor.to_dict(), default=str))
    images = {f"image {key}": value for key, value in settings.items() if key not in _IGNORED_SETTINGS}
    return {
        "tokenizer": _digest([vocabulary, added, tokenizer(_PROBE_TEXT)["input_ids"]]),
        "chat template": _digest(processor.chat_template or ""),
        # what is None today may be a setting that an older library does not know
        **{key: value for key, value in images.items() if value is not None},
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@torch.no_grad()
def _probe(model: SugarForConditionalGeneration, processor: SugarProcessor) -> tuple[np.ndarray, list[int]]:
    """Embed the probe. Returns (3, d) float32 and the number of tokens of each of the three samples."""
    picture = drawn_picture(96, 64)
    features = processor([[_PROBE_TEXT], [picture], [picture, _PROBE_TEXT]], padding_side="left")
    tokens = features["attention_mask"].sum(dim=1).tolist()
    with evaluation_mode(model):
        return np.concatenate(embed_features(model, features)), tokens
