"""Differences between rows with their intervals, from the outcomes of single items.

Both the seeds and the items are samples of what could have been drawn. All rows share them, so differences are taken
item by item and seed by seed. What is left of a difference is split into what seeds, items and the rest bring (a
model of random effects, by moments). An interval is that of Student's t, with Satterthwaite's degrees of freedom: with
three seeds and much that seeds bring, it is as wide as three numbers allow. A bootstrap of both is narrower there than
three seeds can justify, and wider where the rest is large, as it counts the rest three times (Owen 2007).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.stats import t as student

LEVEL = 0.95
#: The seed of rows that no training changes.
UNTRAINED = -1
#: Figures of an item in percent, from its rank.
FROM_RANK = ("R@1", "R@5", "R@10", "MRR")
FIGURES = (*FROM_RANK, "hit", "score", "loss")


def figure_of(values: np.ndarray, figure: str) -> np.ndarray:
    """What each item counts in a figure: in percent, but for `loss` and `score`, which stay as they are.

    Args:
        values: ranks from 1 for `R@k` and `MRR`, else hits, scores or losses.
        figure: one of `FIGURES`.

    >>> ranks = np.array([1.0, 2.0, np.inf])
    >>> figure_of(ranks, "R@1").tolist(), figure_of(ranks, "MRR").tolist()
    ([100.0, 0.0, 0.0], [100.0, 50.0, 0.0])
    """
    if figure == "MRR":
        return 100 / values
    if figure.startswith("R@"):
        return 100.0 * (values <= int(figure[2:]))
    return 100.0 * values if figure == "hit" else values


@dataclass(frozen=True)
class Grid:
    """The outcomes of a row on a task.

    Args:
        seeds: sorted; `UNTRAINED` alone for a row that no training changes.
        items: sorted.
        values: by seed and item (S, I).
    """

    seeds: tuple[int, ...]
    items: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Term:
    """A row's figure on a task, times a number.

    Args:
        row: the row's name.
        task: the task's name.
        figure: one of `FIGURES`.
        weight: what it is multiplied by.
    """

    row: str
    task: str
    figure: str
    weight: float = 1.0


@dataclass(frozen=True)
class Estimate:
    """A number, and how well it is known.

    Args:
        value: the number.
        error: its standard error; `None` where a trained row has one seed, so that it cannot be known.
        freedom: degrees of freedom of the error.
        seeds: how many.
        items: how many, of all tasks together.
    """

    value: float
    error: float | None
    freedom: float
    seeds: int
    items: int

    @property
    def low(self) -> float:
        return self.value - self._reach()

    @property
    def high(self) -> float:
        return self.value + self._reach()

    def p_above(self, bar: float) -> float:
        """How likely a number at least so high is where the truth is the bar."""
        if self.error is None:
            return 1.0
        if not self.error:
            return float(self.value <= bar)
        return float(student.sf((self.value - bar) / self.error, self.freedom))

    def p_below(self, bar: float) -> float:
        """How likely a number at least so low is where the truth is the bar."""
        if self.error is None:
            return 1.0
        return float(self.value >= bar) if not self.error else 1.0 - self.p_above(bar)

    def p(self, bar: float = 0.0) -> float:
        """Two-sided p-value against a bar."""
        return min(1.0, 2 * min(self.p_above(bar), self.p_below(bar)))

    def _reach(self) -> float:
        if self.error is None:
            return math.inf
        return float(student.ppf((1 + LEVEL) / 2, self.freedom) * self.error) if self.error else 0.0

    def said(self, digits: int = 1, sign: str = "") -> str:
        """Say the number with its interval, as tables do.

        Args:
            digits: behind the point.
            sign: `+` for differences, so that positive ones have a sign, too.

        >>> Estimate(2.0, None, 1.0, 1, 9).said(sign="+")
        '+2.0 (1 seed)'
        """
        value, low, high = (f"{number:{sign}.{digits}f}" for number in (self.value, self.low, self.high))
        return f"{value} (1 seed)" if self.error is None else f"{value} [{low}, {high}]"


class Outcomes:
    """The outcomes of files, by row and task.

    Args:
        table: from `read_outcomes`.
        study: which study; all must be of one if not given.
        untrained: rows that no training changes, whatever their one seed is called.

    Raises:
        ValueError: there are several studies, or none of that name.
    """

    def __init__(self, table: pa.Table, study: str | None = None, untrained: Collection[str] = ()) -> None:
        studies = sorted(pc.unique(table["study"]).to_pylist())
        if study is None and len(studies) > 1:
            raise ValueError(f"outcomes of {len(studies)} studies ({', '.join(studies)}): name one.")
        if study is not None and study not in studies:
            raise ValueError(f"no outcomes of the study {study!r}; there are {', '.join(studies)}.")
        self.study = study or studies[0]
        table = table.filter(pc.equal(table["study"], self.study))
        self._grids: dict[tuple[str, str, str], Grid] = {}
        codes, names = {}, {}
        for name in ("row", "task", "metric", "item"):
            encoded = table[name].combine_chunks().dictionary_encode()
            codes[name], names[name] = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
        seeds, values = table["seed"].to_numpy(), table["value"].to_numpy().astype(float)
        by_name = np.argsort(np.argsort(names["item"]))  # items in the order of their names
        order = np.lexsort((by_name[codes["item"]], seeds, codes["metric"], codes["task"], codes["row"]))
        keys = np.stack([codes[name][order] for name in ("row", "task", "metric")])
        starts = np.flatnonzero(np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(0)])
        for start, numbers in zip(starts, np.split(order, starts[1:]), strict=True):
            row, task, metric = (
                names[name][code] for name, code in zip(("row", "task", "metric"), keys[:, start], strict=True)
            )
            where = f"{self.study}: {row} on {task}"
            grid = _grid(seeds[numbers], codes["item"][numbers], names["item"], values[numbers], where)
            single = row in untrained and len(grid.seeds) == 1
            self._grids[row, task, metric] = replace(grid, seeds=(UNTRAINED,)) if single else grid

    def rows(self, task: str) -> list[str]:
        """The rows that were measured on a task."""
        return sorted({row for row, name, _ in self._grids if name == task})

    def tasks(self) -> list[str]:
        """All tasks."""
        return sorted({task for _, task, _ in self._grids})

    def grid(self, row: str, task: str, figure: str) -> Grid | None:
        """What each item counts in a figure, by seed; `None` if the row has no such outcomes.

        Raises:
            ValueError: there is no such figure.
        """
        if figure not in FIGURES:
            raise ValueError(f"figure {figure!r} is none of {', '.join(FIGURES)}.")
        found = self._grids.get((row, task, "rank" if figure in FROM_RANK else figure))
        return None if found is None else Grid(found.seeds, found.items, figure_of(found.values, figure))

    def estimate(self, terms: Sequence[Term]) -> Estimate | None:
        """Return a weighted sum of figures, over the seeds that all trained rows have.

        Args:
            terms: such as a row's figure less that of another one.

        Returns:
            `None` if a row has no such outcomes, or the rows share no seed.

        Raises:
            ValueError: rows of a task were measured on different items.
        """
        parts, fixed = self.parts(terms)
        return mean_of(parts, fixed) if parts else None

    def parts(self, terms: Sequence[Term]) -> tuple[list[np.ndarray], bool]:
        """Return the weighted sums behind `estimate`: by task an array of seeds and items (S, I).

        And whether no training changes any of them. Empty where `estimate` gives `None`.
        """
        grids = [self.grid(term.row, term.task, term.figure) for term in terms]
        found = [grid for grid in grids if grid is not None]
        if len(found) < len(grids) or not found:
            return [], False
        trained = [set(grid.seeds) for grid in found if grid.seeds != (UNTRAINED,)]
        seeds = sorted(set.intersection(*trained)) if trained else [UNTRAINED]
        if not seeds:
            return [], False
        sums: dict[str, np.ndarray] = {}
        items: dict[str, tuple[str, ...]] = {}
        for term, grid in zip(terms, found, strict=True):
            if items.setdefault(term.task, grid.items) != grid.items:
                raise ValueError(f"{self.study}, {term.task}: {term.row} was measured on other items than its rivals.")
            chosen = [grid.seeds.index(seed) for seed in seeds] if grid.seeds != (UNTRAINED,) else [0] * len(seeds)
            sums[term.task] = sums.get(term.task, 0.0) + term.weight * grid.values[chosen]
        return list(sums.values()), not trained

    def difference(self, row: str, rival: str, places: Iterable[tuple[str, str]], factor: float = 1.0) -> Any:
        """Return how far a row lies above `factor` times another one, in the mean of `(task, figure)` places.

        `None` as in `estimate`.
        """
        return self.estimate(between(row, rival, list(places), factor))

    def figure(self, row: str, task: str, figure: str) -> Estimate | None:
        """A single cell."""
        return self.estimate([Term(row, task, figure)])


def between(row: str, rival: str, places: Sequence[tuple[str, str]], factor: float = 1.0) -> list[Term]:
    """The terms of a row less `factor` times another one, in the mean of `(task, figure)` places."""
    ours = [Term(row, *place, 1 / len(places)) for place in places]
    return [*ours, *(Term(rival, *place, -factor / len(places)) for place in places)]


def mean_of(parts: Sequence[np.ndarray], fixed: bool = False) -> Estimate:
    """Return the sum of the means of one or more sets of items, each (S, I), which share their seeds.

    Args:
        parts: numbers by seed and item.
        fixed: no seed could change them, so that items alone vary.
    """
    seeds, items = len(parts[0]), sum(part.shape[1] for part in parts)
    value = float(sum(part.mean() for part in parts))
    by_items = [_variance(part.mean(0)) / part.shape[1] for part in parts]
    freedom = [max(part.shape[1] - 1, 1) for part in parts]
    if seeds == 1:
        error = math.sqrt(sum(by_items)) if fixed else None
        return Estimate(value, error, _freedom(by_items, freedom), seeds, items)
    if fixed:
        raise ValueError("numbers that no seed changes have one seed.")
    rest = []
    for part in parts:
        left = part - part.mean(1, keepdims=True) - part.mean(0) + part.mean()
        rest.append(float((left**2).sum()) / ((seeds - 1) * max(part.shape[1] - 1, 1)) / part.size)
    by_seeds = _variance(sum(part.mean(1) for part in parts)) / seeds
    variance = sum(by_items) + max(by_seeds - sum(rest), 0.0)
    known = _freedom(
        [by_seeds, *by_items, *rest], [seeds - 1, *freedom, *((seeds - 1) * each for each in freedom)], variance
    )
    return Estimate(value, math.sqrt(variance), known, seeds, items)


def over_seeds(values: Iterable[float]) -> Estimate:
    """Return the mean of one number of each seed, with Student's interval."""
    return mean_of([np.array(list(values), float)[:, None]])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values of a family by Holm's step-down procedure.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def _grid(seeds: np.ndarray, items: np.ndarray, names: Sequence[str], values: np.ndarray, where: str) -> Grid:
    """The outcomes of a row on a task, sorted by seed, then by item."""
    found, count = np.unique(seeds), len(np.unique(items))
    if len(values) != len(found) * count or (items.reshape(len(found), -1) != items[:count]).any():
        raise ValueError(f"{where}: {len(values)} outcomes, not {count} for each of the seeds {found.tolist()}.")
    if UNTRAINED in found and len(found) > 1:
        raise ValueError(f"{where}: seed {UNTRAINED} is for what no training changes, and it has others, too.")
    return Grid(tuple(found.tolist()), tuple(names[item] for item in items[:count]), values.reshape(len(found), count))


def _variance(values: Any) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0


def _freedom(variances: Sequence[float], freedom: Sequence[float], of: float | None = None) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances."""
    spread = sum(variance**2 / each for variance, each in zip(variances, freedom, strict=True))
    total = sum(variances) if of is None else of
    return max(1.0, total**2 / spread) if spread else math.inf
