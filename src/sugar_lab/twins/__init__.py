"""The lab's twins of the paper's experiments, by name."""

from importlib import import_module

from .twin import Twin

_MODULES = ("comprehension", "demon", "retrieval", "pair", "knowledge")


def all_twins() -> dict[str, Twin]:
    """Every twin by its name, in the order of the paper's tables."""
    found: dict[str, Twin] = {}
    for module in _MODULES:
        found |= import_module(f".{module}_twins", __name__).TWINS
    return found


__all__ = ["Twin", "all_twins"]
