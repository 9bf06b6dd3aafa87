"""Errors of an index that cannot be opened, searched or written."""


class DamagedIndexError(ValueError):
    """A file of an index is missing, truncated, changed, or of a format that cannot be read. The error names it."""


class IndexMismatchError(ValueError):
    """An index and a model, or an index and vectors, do not belong together. The error says what differs."""


class DuplicateIdError(ValueError):
    """Documents have ids that are there already, or twice in one call. The error names the first few."""


class LockedIndexError(RuntimeError):
    """Another process is writing the index. The error names it."""


class MissingFileError(DamagedIndexError):
    """A file of an index is not there; a reader then looks whether a newer state has replaced the one it knew."""
