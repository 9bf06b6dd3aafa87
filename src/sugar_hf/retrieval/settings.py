"""How the embeddings of an index were made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

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
