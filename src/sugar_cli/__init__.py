"""The command line `sugar-hf`: embed, index, search, train, export.

What needs torch is imported inside the commands, so that help does not wait for it.
"""

from .app import main

__all__ = ["main"]
