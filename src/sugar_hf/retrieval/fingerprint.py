"""How embeddings were made: the settings, and the fingerprint of the model. Both say what differs from others."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..model import SugarForConditionalGeneration, SugarProcessor
from ..model.adapters import adapters_are_on
from ..model.backbone_sugar import evaluation_mode
from ..model.embedding_sugar import drawn_picture, embed_features

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
            ValueError: A field is missing, unknown or of another type.
        """
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"unknown embedding settings: {', '.join(unknown)}")
        if missing := sorted({"dim", "retrieval_dim"} - values.keys()):
            raise ValueError(f"embedding settings lack {', '.join(missing)}")
        made = cls(**values)
        for name, value in vars(made).items():
            if not _is_setting(name, value):
                raise ValueError(f"the embedding setting {name} is {value!r:.40}")
        return made

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


def check_origin(settings: Mapping[str, Any] | None, fingerprint: Mapping[str, Any] | None) -> None:
    """Refuse what cannot be read as `EmbeddingSettings` and `ModelFingerprint`; `None` is known nowhere.

    Raises:
        ValueError: It cannot be read.
    """
    if settings is not None:
        EmbeddingSettings.from_dict(settings)
    if fingerprint is not None:
        ModelFingerprint.from_dict(fingerprint)


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
        """Read `to_dict` back.

        Raises:
            ValueError: Something is missing, or of another type.
        """
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
            raise ValueError(f"it is no fingerprint of a model ({type(error).__name__}: {error})") from error
        if not is_good:
            raise ValueError("it is no fingerprint of a model")
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
        """The largest distance between embeddings of the probe, 0 to 2; infinite if their widths differ."""
        ours, theirs = np.array(self.probe), np.array(other.probe)
        if ours.shape != theirs.shape:
            return float("inf")
        return float(np.linalg.norm(ours - theirs, axis=1).max())


def are_equal(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> bool:
    """Whether two fingerprints, as dicts, are of models whose embeddings can be compared; `None` equals `None`."""
    if ours is None or theirs is None:
        return ours is theirs
    try:
        return ModelFingerprint.from_dict(ours).difference(ModelFingerprint.from_dict(theirs)) is None
    except ValueError:
        return False


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over the name, shape, data type and some numbers of every weight of any model."""
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
