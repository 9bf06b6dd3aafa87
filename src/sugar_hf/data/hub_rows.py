"""Rows of data sets on the Hub, named by an address and read as a stream."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from datasets import IterableDatasetDict, load_dataset

from .containers import ColumnChoice, RawRow

_ADDRESS = re.compile(r"hf:/+datasets/(?P<repo>[^/?@]+(?:/[^/?@]+)?)(?:@(?P<revision>[^/?]+))?/?(?:\?(?P<query>.*))?")
_OPTIONS = ("config", "split", "revision")
_FORM = "Write hf://datasets/user/name?split=train, with &config= and &revision= where they are needed"


def hub_rows(path: Path, choice: ColumnChoice) -> Iterator[RawRow]:
    """Read the rows of a data set on the Hub as they are stored. Only what is read is downloaded.

    Args:
        path: Its address, `hf://datasets/user/name?split=train`, with `config` and `revision` beside `split`.
        choice: The columns that are read.

    Raises:
        ValueError: The address is malformed, or names none of several splits.
        FileNotFoundError: The data set cannot be reached.
    """
    repo, options = _parts(path)
    address = f"hf://datasets/{repo}"
    try:
        dataset: Any = load_dataset(
            repo,
            options.get("config"),
            split=options.get("split"),
            revision=options.get("revision"),
            streaming=True,
        )
        if isinstance(dataset, IterableDatasetDict):
            if len(dataset) != 1:
                raise ValueError(f"{address} has the splits {', '.join(dataset)}. Name one: {address}?split=...")
            [dataset] = dataset.values()
        # images keep their bytes
        rows = dataset.decode(False) if dataset.features is not None else dataset
        for number, row in enumerate(rows):
            yield RawRow(address, number, None, choice.of_row(row))
    except OSError as error:  # what the Hub and the network say are such
        mend = "Check the name, the network, HF_HUB_OFFLINE and, for private data, `hf auth login`"
        raise FileNotFoundError(f"cannot read {address} ({error}). {mend}") from error


def _parts(path: Path) -> tuple[str, dict[str, str]]:
    """The name of a data set, and what else its address says."""
    found = _ADDRESS.fullmatch(path.as_posix())
    if found is None:
        raise ValueError(f"{path.as_posix()!r} is no address of a data set. {_FORM}")
    options = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    if unknown := set(options) - set(_OPTIONS):
        raise ValueError(f"{path.as_posix()!r}: no option {min(unknown)}; there are {', '.join(_OPTIONS)}. {_FORM}")
    if found["revision"]:
        options["revision"] = found["revision"]
    return found["repo"], options
