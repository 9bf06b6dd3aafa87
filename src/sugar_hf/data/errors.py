"""What a reader says about a row it cannot use."""

from __future__ import annotations


class BadSampleError(ValueError):
    """A sample that cannot be used, with the place, the field and the mend.

    The parser that finds the fault knows the field; the reader above it knows the file and the line and adds them
    with :meth:`at`, so that both can be tested alone.

    Attributes:
        reason: What is wrong, in words.
        field: The field at fault, such as `conversations[1].value`; None if it is the row as a whole.
        mend: What to do about it; None if the reason says it already.
        file: The file the row came from.
        line: 1-based line on which the row starts; None in containers without lines (Parquet, folders).
        row: 0-based number of the row in the file.
        sample: The sample's `id`, where it is known.
    """

    def __init__(
        self,
        reason: str,
        *,
        field: str | None = None,
        mend: str | None = None,
        file: str | None = None,
        line: int | None = None,
        row: int | None = None,
        sample: str | None = None,
    ):
        self.reason = reason
        self.field = field
        self.mend = mend
        self.file = file
        self.line = line
        self.row = row
        self.sample = sample
        super().__init__(reason)

    def at(
        self, *, file: str | None = None, line: int | None = None, row: int | None = None, sample: str | None = None
    ) -> BadSampleError:
        """Add the place, keep what is already known, and return the error itself."""
        self.file = self.file or file
        self.line = line if self.line is None else self.line
        self.row = row if self.row is None else self.row
        self.sample = self.sample or sample
        return self

    @property
    def place(self) -> str:
        """Where it is, as `file:line (row n, sample 'id')` with the parts that are known."""
        name = self.file or ""
        if self.file and self.line is not None:
            name = f"{self.file}:{self.line}"
        parts = [] if self.row is None else [f"row {self.row}"]
        if self.sample:
            parts.append(f"sample {self.sample!r}")
        inner = ", ".join(parts)
        return f"{name} ({inner})" if name and inner else name or inner

    def __str__(self) -> str:
        text = ": ".join(part for part in (self.place, self.field, self.reason) if part)
        return f"{text}. {self.mend}" if self.mend else text

    def __reduce__(self) -> tuple:
        # The default would rebuild the error from the reason alone when a DataLoader worker hands it to its parent.
        return (_rebuild, (self.__dict__.copy(),))


def _rebuild(state: dict) -> BadSampleError:
    return BadSampleError(**state)


class SkippedRowsWarning(UserWarning):
    """Says how many rows a reader left out under `on_error="skip"`, and names the first few."""
