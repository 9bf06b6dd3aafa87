"""Samples that are scored together."""

from collections.abc import Hashable, Sequence


def whole_groups(keys: Sequence[Hashable], limit: int | None) -> list[int]:
    """Numbers of the samples of the first groups, as many groups as the first `limit` samples belong to.

    No group is cut: if its first sample is taken, all its samples are, wherever they stand.

    Args:
        keys: The group of each sample.
        limit: How many samples there should be, at least; `None` for all.

    Returns:
        The numbers, ascending.

    >>> whole_groups(["a", "b", "a", "b", "c"], 1), whole_groups(["a", "b", "a", "b", "c"], 2)
    ([0, 2], [0, 1, 2, 3])
    """
    taken = set(keys[:limit])
    return [number for number, key in enumerate(keys) if key in taken]
