"""What each item of a test came out as, in Parquet files: intervals and verdicts are worked out from these."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sugar_hf._files import atomic_path

SCHEMA = pa.schema(
    [
        pa.field("study", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
        pa.field("seed", pa.int16(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("item", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("value", pa.float32(), nullable=False),
    ]
)
#: What tells an outcome from all others.
KEY = SCHEMA.names[:-1]
METRICS = ("rank", "hit", "loss", "score")


class Outcome(NamedTuple):
    """What one item came out as.

    Args:
        study: the run that it belongs to, such as `lab`.
        row: how the model was trained, such as `infonce`.
        seed: of the training; -1 for what no training changes.
        task: what was asked, such as `coco t2i`.
        item: the query or question. The same item has the same name in all rows and seeds.
        metric: `rank` of the best relevant candidate, from 1, infinite if none is found; `hit`, 0 or 1; `loss` of the
            language model; or another `score`.
        value: the number.
    """

    study: str
    row: str
    seed: int
    task: str
    item: str
    metric: str
    value: float


def write_outcomes(path: str | Path, outcomes: Iterable[Outcome | tuple[str, str, int, str, str, str, float]]) -> Path:
    """Write outcomes as a Parquet file; the same ones give the same bytes, in whatever order they come.

    Args:
        path: the file, which is replaced.
        outcomes: of any studies and rows, each item once.

    Returns:
        The file.

    Raises:
        ValueError: There are none, one is there twice, or a value is none that its metric can have.
    """
    columns = list(zip(*outcomes, strict=True)) or [()] * len(SCHEMA)
    try:
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise ValueError(f"{path}: an outcome is {', '.join(Outcome._fields)}, in this order ({error}).") from error
    table = _checked(pa.table(arrays, schema=SCHEMA), str(path))
    path = Path(path)
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", use_dictionary=True, row_group_size=1 << 20)
    return path


def read_outcomes(paths: str | Path | Iterable[str | Path]) -> pa.Table:
    """Read outcomes of one or more files, sorted.

    Args:
        paths: the files, or one.

    Returns:
        A table of `SCHEMA`.

    Raises:
        ValueError: A file is no file of outcomes, an outcome is there twice, or a value is none that its metric can
            have.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    tables = []
    for path in paths:
        try:
            found = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no Parquet file ({error}): run its experiment again.") from error
        if found.schema.names != SCHEMA.names:
            raise ValueError(f"{path} has the columns {', '.join(found.schema.names)}, not {', '.join(SCHEMA.names)}.")
        tables.append(_checked(found.cast(SCHEMA), str(path)))
    if not tables:
        raise ValueError("no file of outcomes was given.")
    return tables[0] if len(tables) == 1 else _checked(pa.concat_tables(tables), " + ".join(map(str, paths)))


def _checked(table: pa.Table, where: str) -> pa.Table:
    """Return the sorted table.

    Raises:
        ValueError: as `read_outcomes`.
    """
    if not table.num_rows:
        raise ValueError(f"{where}: there are no outcomes.")
    for name in SCHEMA.names:
        if table[name].null_count:
            raise ValueError(f"{where}: an outcome has no {name}.")
    table = table.sort_by([(name, "ascending") for name in KEY]).combine_chunks()
    values = table["value"].to_numpy()
    metrics = pc.unique(table["metric"]).to_pylist()
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise ValueError(f"{where}: metric {unknown[0]!r} is none of {', '.join(METRICS)}.")
    fits = np.isfinite(values)
    for metric, good in (
        ("rank", (values >= 1) & (values == np.floor(values))),
        ("hit", (values == 0) | (values == 1)),
        ("loss", fits & (values >= 0)),
    ):
        ours = pc.equal(table["metric"], metric).to_numpy()
        fits = np.where(ours, good, fits)
    _refuse(
        table,
        ~fits,
        where,
        "a rank is whole and at least 1, a hit 0 or 1, a loss at least 0; all but ranks are finite",
    )
    if table.num_rows > 1:
        same = np.ones(table.num_rows - 1, bool)
        for name in KEY:
            same &= np.asarray(pc.equal(table[name][1:], table[name][:-1]))
        _refuse(table, np.r_[False, same], where, "this is there twice: name each item once")
    return table


def _refuse(table: pa.Table, wrong: np.ndarray, where: str, why: str) -> None:
    numbers: Sequence[int] = np.flatnonzero(wrong).tolist()
    if numbers:
        row = table.slice(numbers[0], 1).to_pylist()[0]
        told = ", ".join(f"{name} {row[name]!r}" for name in SCHEMA.names)
        more = f" So are {len(numbers) - 1} more." if len(numbers) > 1 else ""
        raise ValueError(f"{where}: {told}: {why}.{more}")
