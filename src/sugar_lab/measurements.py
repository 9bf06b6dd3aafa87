"""What the survey measured: reading the stored figures."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES

from .intervals import Estimate, Term, over_seeds

CURVES, LABELS = "curves.json", "labels.json"
ROUNDING = 0.06  # a figure may have been rounded to one decimal


@dataclass(frozen=True)
class Sample:
    """Values of one figure of one row, by seed.

    Args:
        row: the row's name.
        values: by seed.

    >>> sample = Sample("mse", {0: 70.0, 1: 72.0})
    >>> sample.mean, round(sample.spread, 2)
    (71.0, 1.41)
    """

    row: str
    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def spread(self) -> float:
        """Sample standard deviation over the seeds; 0 for one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        spread = f" ± {self.spread:.1f}" if len(self.values) > 1 else ""
        return f"{self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Cell:
    """One figure of one row.

    Args:
        table: which table it was written for.
        row: the row's name.
        metric: the column's name.
        sample: its values by seed.
        n: how many questions, queries or pairs it was measured on.
        command: what made it.
        versions: of the packages and the machine that made it.
        budget: `full` or `quick`.
        chance: what guessing gives.
    """

    table: str
    row: str
    metric: str
    sample: Sample
    n: int
    command: str
    versions: Mapping[str, str]
    budget: str
    chance: float | None

    @property
    def place(self) -> str:
        return place_of(self.table, self.metric)


def place_of(table: str, column: str) -> str:
    """`table/column`, where the paper's ablation repeats columns of other tables that of the other table."""
    aliases = TABLES[table].aliases if table in TABLES else {}
    return aliases.get(column, f"{table}/{column}")


@dataclass
class Results:
    """All figures, found by their places."""

    cells: Sequence[Cell]
    _by_place: dict[tuple[str, str], Cell] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._by_place = {(cell.place, cell.row): cell for cell in self.cells}

    @property
    def budget(self) -> str:
        return self.cells[0].budget

    def find(self, place: str, row: str) -> Cell | None:
        """The figure of a row at `table/column`."""
        return self._by_place.get((place, row))

    def rows(self, table: str) -> list[str]:
        """The rows that a table was measured for, in the order of the files."""
        return list(dict.fromkeys(cell.row for cell in self.cells if cell.table == table))

    def columns(self, table: str) -> list[str]:
        """The columns that a table was measured for, in the order of the files; numbers by their size."""
        found = list(dict.fromkeys(cell.metric for cell in self.cells if cell.table == table))
        return sorted(found, key=int) if all(name.isdecimal() for name in found) else found

    def average(self, row: str, places: Sequence[str]) -> Sample | None:
        """The mean of a row's figures at several places, seed by seed, over the seeds that all of them have.

        `None` if a figure was not measured, or the figures share no seed.
        """
        cells = [self.find(place, row) for place in places]
        samples = [cell.sample.values for cell in cells if cell is not None]
        if len(samples) < len(cells):
            return None
        seeds = sorted(set.intersection(*(set(sample) for sample in samples)))
        values = {seed: statistics.fmean(sample[seed] for sample in samples) for seed in seeds}
        return Sample(row, values) if values else None


class Survey:
    """The survey's figures as a study: one number of each seed, so that intervals are those over seeds.

    Args:
        results: the figures.
    """

    def __init__(self, results: Results) -> None:
        self.results = results

    def estimate(self, terms: Sequence[Term]) -> Estimate | None:
        """Return a weighted sum of figures, over the seeds that all rows have; see `Outcomes.estimate`.

        Args:
            terms: of which `task` is a place, `table/column`.
        """
        cells = [self.results.find(place_of(*term.task.split("/", 1)), term.row) for term in terms]
        found = [cell for cell in cells if cell is not None]
        if len(found) < len(cells) or not found:
            return None
        seeds = sorted(set.intersection(*(set(cell.sample.values) for cell in found)))
        if not seeds:
            return None
        pairs = list(zip(terms, found, strict=True))
        values = [sum(term.weight * cell.sample.values[seed] for term, cell in pairs) for seed in seeds]
        places = {cell.place: cell.n for cell in found}
        return replace(over_seeds(values), items=sum(places.values()))


def read_results(folder: str | Path) -> Results:
    """Read every result file of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A file is no list of results, a figure is at odds with itself, two files disagree about a figure,
            or budgets are mixed.
    """
    cells: dict[tuple[str, str], tuple[Cell, Path]] = {}
    for path in sorted(Path(folder).glob("*.json")):
        if path.name in (CURVES, LABELS):
            continue
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no JSON ({error}): run its experiment again.") from error
        if not isinstance(entries, list):
            raise ValueError(f"{path}: a list of results is expected. Move the file elsewhere.")
        for number, entry in enumerate(entries):
            cell = _cell(entry, f"{path}, entry {number}")
            known, where = cells.setdefault((cell.place, cell.row), (cell, path))
            if known.sample != cell.sample:
                raise ValueError(
                    f"{path} and {where} disagree about {cell.place} of {cell.row!r}: remove the one that is outdated."
                )
            if known.table != cell.table:  # the same figure written for both tables that show it
                cells[(f"{cell.table}/{cell.metric}", cell.row)] = (cell, path)
    if not cells:
        raise FileNotFoundError(f"no results in {folder}: `python -m sugar_lab` writes them.")
    found = [cell for cell, _ in cells.values()]
    budgets = sorted({cell.budget for cell in found})
    if len(budgets) > 1:
        raise ValueError(f"{folder} mixes the budgets {', '.join(budgets)}: keep each in a folder of its own.")
    return Results(found)


def read_extra(folder: str | Path, name: str) -> dict[str, Any]:
    """Read `curves.json` or `labels.json`; empty if it is not there.

    Raises:
        ValueError: It is no JSON object.
    """
    path = Path(folder) / name
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: an object by name is expected.")
    return found


def seeds_text(counts: Iterable[int]) -> str:
    """`3 seeds`, `1 seed`, or `1 to 3 seeds`."""
    least, most = min(counts := list(counts)), max(counts)
    return f"{least} to {most} seeds" if least < most else f"{most} seed{'' if most == 1 else 's'}"


def _cell(entry: Any, where: str) -> Cell:
    try:
        names = [str(entry[name]) for name in ("table", "row", "metric")]
        seeds, values = list(entry["seeds"]), [float(value) for value in entry["values"]]
        mean, spread, chance = float(entry["mean"]), float(entry["spread"]), entry.get("chance")
        n, command, versions, budget = (entry[name] for name in ("n", "command", "versions", "budget"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: no result of the lab ({error!r}).") from error
    where = f"{where} ({' / '.join(names)})"
    table, row, metric = names
    if not values or len(set(seeds)) != len(values) or len(seeds) != len(values):
        raise ValueError(f"{where}: {len(seeds)} seeds for {len(values)} values; each value needs a seed of its own.")
    sample = Sample(row, dict(zip(seeds, values, strict=True)))
    if not all(map(math.isfinite, values)) or max(abs(sample.mean - mean), abs(sample.spread - spread)) > ROUNDING:
        raise ValueError(f"{where}: mean {mean} and spread {spread} are not those of the values {values}.")
    return Cell(
        *(table, row, metric),
        sample,
        int(n),
        str(command),
        {str(key): str(value) for key, value in versions.items()},
        str(budget),
        None if chance is None else float(chance),
    )
