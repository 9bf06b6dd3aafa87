"""A model in evaluation mode for the time of a block, also while other threads use it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

_LOCK = threading.Lock()
#: For each module that blocks hold in evaluation mode, how many do; the last one puts back training mode.
_HELD: "WeakKeyDictionary[nn.Module, int]" = WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, and every module back into the mode it had.

    A model that is in evaluation mode is not touched. Blocks of several threads may overlap: training mode comes back
    when the last of them ends.
    """
    with _LOCK:
        held = [module for module in model.modules() if module.training or module in _HELD]
        for module in held:
            _HELD[module] = _HELD.get(module, 0) + 1
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            for module in held:
                _HELD[module] -= 1
                if not _HELD[module]:
                    del _HELD[module]
                    module.training = True
