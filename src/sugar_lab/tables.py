"""The lab's tables as Markdown, the paper's rows above ours."""

from collections.abc import Iterable, Sequence

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES, PaperTable

from .measurements import Cell, Results, place_of
from .table_layout import LOWER_IS_BETTER, OWN, PAPER, POOL, Layout, in_order, matches, missing

NOT_RUN = "not run"


def paper_section(results: Results, name: str) -> list[str]:
    """A table of the paper with our rows below, and what was not run."""
    table = TABLES[name]
    places = [place_of(name, column) for column in table.columns]
    further = [column for column in results.columns(name) if column not in table.columns]
    columns = [*table.columns, *further]
    places += [f"{name}/{column}" for column in further]
    lines = [f"### {table.title}", "", *_table(results, name, columns, places, PAPER[name], table)]
    return [*lines, table.note, ""] if table.note else lines


def own_section(results: Results, name: str) -> list[str]:
    """A table that the paper lacks: columns of other tables, then its own."""
    layout = OWN.get(name, Layout((), title=name.capitalize()))
    found = results.columns(name)
    columns = [place.split("/")[1] for place in layout.places] + found
    places = [place_of(*place.split("/", 1)) for place in layout.places] + [f"{name}/{column}" for column in found]
    lines = [f"### {layout.title}", ""]
    lines += [layout.note, ""] if layout.note else []
    return lines + _table(results, name, columns, places, layout)


def own_tables(results: Results) -> list[str]:
    """Names of the tables that the paper lacks: those of `OWN`, then all others that there are figures for."""
    found = dict.fromkeys(cell.table for cell in results.cells if cell.table not in TABLES)
    return list(dict.fromkeys([*(name for name in OWN if name != POOL or name in found), *found]))


def _table(
    results: Results,
    name: str,
    columns: Sequence[str],
    places: Sequence[str],
    layout: Layout,
    table: PaperTable | None = None,
) -> list[str]:
    everything = dict.fromkeys(cell.row for cell in results.cells)
    chosen = [
        row
        for row in everything
        if any(results.find(place, row) for place in places)
        and (
            any(matches(pattern, row) for pattern in layout.rows)
            or (row in results.rows(name) and not any(matches(pattern, row) for pattern in layout.elsewhere))
        )
    ]
    aside = [row for row in results.rows(name) if row not in chosen]
    rows = in_order(layout.rows, chosen)
    lines = []
    if table is not None:
        for row, printed in table.rows.items():
            lines.append([f"{row} (paper)", *(_number(printed.get(column)) for column in columns)])
    cells = [[results.find(place, row) for place in places] for row in rows]
    best = [_best([line[i] for line in cells], column) for i, column in enumerate(columns)]
    for row, line in zip(rows, cells, strict=True):
        lines.append([f"`{row}`", *(_text(cell, top) for cell, top in zip(line, best, strict=True))])
    found = [[cell for line in cells if (cell := line[i])] for i in range(len(columns))]
    if any(cell.chance is not None for column in found for cell in column):
        lines.append(
            ["chance", *(_said(f"{c.chance:.1f}" for c in column if c.chance is not None) for column in found)]
        )
    if rows:
        lines.append(["measured on", *(_said(str(cell.n) for cell in column) for column in found)])
    text = markdown(["", *columns], lines) if columns else ["None of its figures was measured.", ""]
    absent = missing(layout.rows, rows)
    if absent:
        text += [f"Not run: {', '.join(f'`{row}`' for row in absent)}.", ""]
    if aside:
        named = ", ".join(f"`{row}`" for row in aside)
        text += [f"Measured as well, and compared in table 4b or the tables that the paper lacks: {named}.", ""]
    empty = [column for column, cells_ in zip(columns, found, strict=True) if rows and not cells_]
    if empty:
        text += [f"Columns that no row was measured on: {', '.join(empty)}.", ""]
    return text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> list[str]:
    """A table, and the empty line after it; numbers stand on the right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{('---:|' if numbers else '---|') * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows), ""]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _said(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts)) or "-"


def _best(cells: Sequence[Cell | None], column: str) -> float | None:
    """The best mean as it is printed, if there is anything to be better than."""
    means = [round(cell.sample.mean, 1) for cell in cells if cell is not None]
    if len(means) < 2:
        return None
    return min(means) if any(word in column for word in LOWER_IS_BETTER) else max(means)


def _text(cell: Cell | None, best: float | None) -> str:
    if cell is None:
        return NOT_RUN
    text = str(cell.sample)
    return f"**{text}**" if round(cell.sample.mean, 1) == best else text
