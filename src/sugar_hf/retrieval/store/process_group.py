"""The group of processes that write one index, as torchrun and accelerate start them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


class ProcessGroup:
    """This process among those that make the same call; without torch.distributed a group of one."""

    def __init__(self) -> None:
        is_group = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if is_group else 0
        self.count = dist.get_world_size() if is_group else 1
        self.is_first = self.rank == 0  # it opens and commits the write

    def together(self) -> AbstractContextManager[None]:
        """Wait at the end of a block for the others, and fail if one of them has failed in it.

        Raises:
            RuntimeError: Another process failed; says which, and with what.
        """
        return nullcontext() if self.count == 1 else self._together()

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}")
            raise
        failed = [(rank, text) for rank, text in enumerate(self._tell(None)) if text is not None]
        if failed:
            raise RuntimeError(f"process {failed[0][0]} failed: {failed[0][1]}")

    def from_first(self, value: T) -> T:
        """Return the first process's value in every process."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values[0]

    def _tell(self, text: str | None) -> list[str | None]:
        texts: list[str | None] = [text] * self.count
        dist.all_gather_object(texts, text)
        return texts
