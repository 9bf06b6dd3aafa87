"""The lab's pictures: SVG files, the same for the same figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES

from .measurements import CURVES, LABELS, Cell, Results, read_extra
from .table_layout import PAPER, POOL, in_order

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows that have a colour of their own in every picture; the colours are Okabe and Ito's, which the colour-blind can
#: tell apart.
COLOURS = {
    "mse": "#0072b2",
    "lm-only": "#d55e00",
    "infonce": "#009e73",
    "disc-only": "#cc79a7",
    "mini-clip": "#e69f00",
    "base": "#000000",
    "kl": "#f0e442",
}
LIGHT, GREY = "#56b4e9", "0.75"
SUBPLOT = (2.6, 2.2)  # inches


def draw_all(results: Results, folder: str | Path) -> dict[str, tuple[Path, str]]:
    """Draw what there are figures for.

    Args:
        results: the figures of the tables; those of a table `pool` have sizes of the pool as their columns.
        folder: where the curves and histograms are, and where the pictures go.

    Returns:
        By name (`labels`, `curves`, `positions`, `ablation`, `pool`) the file and a text that tells what it shows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise ImportError('the pictures need matplotlib: pip install "sugar-hf[demo]"') from error
    folder = Path(folder)
    curves, labels = read_extra(folder, CURVES), read_extra(folder, LABELS)
    painters: dict[str, Callable[[], tuple[Figure, str] | None]] = {
        "labels": lambda: draw_labels(labels),
        "curves": lambda: draw_curves(curves),
        "positions": lambda: draw_positions(results),
        "ablation": lambda: draw_ablation(results),
        "pool": lambda: draw_pool(results),
    }
    found = {}
    # a salt and no date: the same figures give the same file
    with rc_context({"svg.hashsalt": "sugar", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        for name, painter in painters.items():
            drawn = painter()
            if drawn is None:
                continue
            path = folder / f"{name}.svg"
            drawn[0].savefig(path, metadata={"Date": None})
            found[name] = (path, drawn[1])
    return found


def draw_labels(labels: Mapping[str, Mapping[str, Sequence[float]]]) -> tuple[Figure, str] | None:
    """Histograms of the labels' values, one for each kernel.

    Raises:
        ValueError: a histogram has not one edge more than it has counts, or is empty.
    """
    if not labels:
        return None
    figure, grid = _grid(len(labels))
    means = []
    for axes, (name, found) in zip(grid, labels.items(), strict=True):
        edges, counts = [float(edge) for edge in found["bins"]], [float(count) for count in found["counts"]]
        if len(edges) != len(counts) + 1 or not sum(counts):
            raise ValueError(f"{LABELS}, {name!r}: {len(edges)} edges do not fit {len(counts)} counts, or all are 0.")
        shares = [100 * count / sum(counts) for count in counts]
        axes.stairs(shares, edges, fill=True, color=LIGHT)
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        mean = sum(share * middle for share, middle in zip(shares, middles, strict=True)) / 100
        axes.axvline(mean, color="black", linewidth=0.8, linestyle="--")
        axes.set_title(name)
        axes.set_xlabel("label")
        axes.set_ylabel("pairs (%)")
        means.append(f"{name} {mean:.2f}")
    return figure, f"Histograms of the labels of pairs by label kernel; mean label: {', '.join(means)}."


def draw_curves(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> tuple[Figure, str] | None:
    """The two losses by step, one line for each row and seed; rows without a colour of their own are grey."""
    if not curves:
        return None
    figure, grid = _grid(2, width=1.6)
    names = in_order(COLOURS, dict.fromkeys(key.rpartition("-")[0] for key in curves))
    colours = {name: COLOURS.get(name, GREY) for name in names}
    for axes, loss, title in zip(
        grid, ("lm_loss", "structure_loss"), ("LM loss", "structure loss (objectives differ in scale)"), strict=True
    ):
        for key, points in sorted(curves.items(), key=lambda item: item[0].rpartition("-")[0] in COLOURS):
            name = key.rpartition("-")[0]
            shown = [(point["step"], point[loss]) for point in points if point.get(loss) is not None]
            if shown:
                axes.plot(*zip(*shown, strict=True), color=colours[name], linewidth=1)
        axes.set_title(title)
        axes.set_xlabel("step")
    for name in names:
        if name in COLOURS:
            grid[1].plot([], [], color=colours[name], label=name)
    if GREY in colours.values():
        grid[1].plot([], [], color=GREY, label="other rows")
    grid[1].set_yscale("log")
    grid[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    last = [
        f"{name} {points[-1]['lm_loss']:.2f}"
        for name in names
        if (points := curves[min(key for key in curves if key.rpartition("-")[0] == name)])
        and points[-1].get("lm_loss") is not None
    ]
    return figure, f"Training curves: LM loss and structure loss by step; last LM loss: {', '.join(last)}."


def draw_positions(results: Results) -> tuple[Figure, str] | None:
    """Table 5: accuracy by the place of the relevant pair, the paper's curves dashed."""
    table = TABLES["table5"]
    rows = [
        row
        for row in in_order(PAPER["table5"].rows, results.rows("table5"))
        if all(results.find(f"table5/{column}", row) for column in table.columns)
    ]
    if not rows:
        return None
    figure, (axes,) = _grid(1, width=2.2, height=1.4)
    for style, (name, printed) in zip(("--", ":"), table.rows.items(), strict=True):
        axes.plot(table.columns, [printed[c] for c in table.columns], style, color="0.5", label=f"{name} (paper)")
    told = []
    for row in rows:
        cells = [_cell(results, f"table5/{column}", row) for column in table.columns]
        means, spreads = [cell.sample.mean for cell in cells], [cell.sample.spread for cell in cells]
        axes.errorbar(
            table.columns, means, spreads, color=_colour(row), marker="o", markersize=3, capsize=2, label=row
        )
        told.append(f"{row} {', '.join(f'{mean:.1f}' for mean in means)}")
    chance = _cell(results, "table5/1", rows[0]).chance
    if chance is not None:
        axes.axhline(chance, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlabel("place of the relevant pair among six")
    axes.set_ylabel("accuracy, yes or no (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, f"Accuracy at places 1 to 6 of the relevant pair: {'; '.join(told)}."


def draw_ablation(results: Results) -> tuple[Figure, str] | None:
    """The ablation: a panel for each column, a bar for each row, with its spread over seeds."""
    columns = TABLES["table4b"].columns
    rows = [row for row in PAPER["table4b"].rows if any(results.find(_ablation(c), row) for c in columns)]
    if not rows:
        return None
    figure, grid = _grid(len(columns), height=0.9)
    told = []
    for axes, column in zip(grid, columns, strict=True):
        cells = [(row, cell) for row in rows if (cell := results.find(_ablation(column), row))]
        names = [row for row, _ in cells]
        means = [cell.sample.mean for _, cell in cells]
        colours = [COLOURS["mse"] if name == "mse" else LIGHT for name in names]
        axes.barh(names, means, xerr=[cell.sample.spread for _, cell in cells], color=colours, capsize=2)
        axes.invert_yaxis()
        axes.set_title(column)
        told.append(f"{column}: {', '.join(f'{name} {mean:.1f}' for name, mean in zip(names, means, strict=True))}")
    return figure, f"Bars of the ablation, in percent. {'; '.join(told)}."


def draw_pool(results: Results) -> tuple[Figure, str] | None:
    """Recall by the number of candidates, on a logarithmic axis; dashed is chance.

    Raises:
        ValueError: a column of the table `pool` is no number.
    """
    rows = in_order(PAPER["table3a"].rows, results.rows(POOL))
    if not rows:
        return None
    try:
        sizes = sorted(results.columns(POOL), key=int)
    except ValueError as error:
        raise ValueError(f"the columns of the table {POOL!r} are sizes of the pool, as numbers ({error}).") from error
    figure, (axes,) = _grid(1, width=2.2, height=1.4)
    told = []
    for row in rows:
        points = [(int(size), cell.sample) for size in sizes if (cell := results.find(f"{POOL}/{size}", row))]
        axes.errorbar(
            [size for size, _ in points],
            [sample.mean for _, sample in points],
            [sample.spread for _, sample in points],
            color=_colour(row),
            marker="o",
            markersize=3,
            capsize=2,
            label=row,
        )
        told.append(f"{row} {', '.join(f'{sample.mean:.1f} of {size}' for size, sample in points)}")
    whole = [int(size) for size in sizes]
    axes.plot(whole, [100 / size for size in whole], "--", color=GREY, label="chance")
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("candidates")
    axes.set_ylabel("recall@1 (%)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, f"Recall@1 in percent by the number of candidates: {'; '.join(told)}."


def _grid(count: int, width: float = 1.0, height: float = 1.0) -> tuple[Figure, list[Any]]:
    """A figure with `count` subplots, at most three beside each other; sizes in those of a subplot."""
    from matplotlib.figure import Figure

    across = min(count, 3)
    down = math.ceil(count / across)
    figure = Figure(figsize=(across * width * SUBPLOT[0], down * height * SUBPLOT[1]), layout="constrained")
    return figure, [figure.add_subplot(down, across, place + 1) for place in range(count)]


def _colour(row: str) -> str:
    return COLOURS.get(row, LIGHT)


def _ablation(column: str) -> str:
    return TABLES["table4b"].aliases[column]


def _cell(results: Results, place: str, row: str) -> Cell:
    cell = results.find(place, row)
    assert cell is not None  # its row was chosen for having it
    return cell
