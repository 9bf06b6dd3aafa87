"""Means over a logging window, kept on the device until they are logged."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class WindowMeans:
    """Weighted means of named values since the last [`pop`].

    >>> means = WindowMeans()
    >>> means.add({"loss": torch.tensor(1.0)}, weight=1.0)
    >>> means.add({"loss": torch.tensor(4.0), "rare": torch.tensor(2.0)}, weight=2.0)
    >>> means.pop()
    {'loss': 3.0, 'rare': 2.0}
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self.mark()

    def add(self, values: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        """Adds one observation of each value; tensors are not synchronised."""
        for name, value in values.items():
            value = torch.as_tensor(value).detach() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def pop(self) -> dict[str, float]:
        """Returns the means and starts a new window."""
        means = {name: (total / self._weights[name]).item() for name, total in self._sums.items()}
        self._sums, self._weights = {}, {}
        self.mark()
        return means

    def mark(self) -> None:
        """Remembers what has been added so far, for [`rollback`]."""
        self._marked = dict(self._sums), dict(self._weights)

    def rollback(self) -> None:
        """Forgets what has been added since the last [`mark`]."""
        self._sums, self._weights = dict(self._marked[0]), dict(self._marked[1])
