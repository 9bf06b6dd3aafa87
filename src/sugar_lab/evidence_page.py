"""The tables and pictures of docs/evidence.md, made from the outcomes of single items.

    python -m sugar_lab.evidence_page

Each stands between two remarks of the page, of which the first says what it holds:

    <!-- evidence: table study=heads-test rows="infonce,kl 0.3" tasks="gimp/*" figures=R@1,R@5 -->
    <!-- evidence: end -->

`table` has a figure of each row, `differences` how far each row lies above the one named by `against`, with Holm's
correction over all of its cells, and `plot` draws these differences into a file named by `file`. With `mean=yes` the
last column is the mean of all.
"""

import argparse
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa

from sugar_hf._files import atomic_write

from .intervals import Estimate, Outcomes, Term, holm
from .outcomes import read_outcomes
from .tables import markdown
from .verdicts import study_of

PAGE = Path("docs/evidence.md")
BLOCK = re.compile(r"(<!-- evidence: (?P<what>.+?) -->\n)(?P<body>.*?)(<!-- evidence: end -->)", re.DOTALL)
KINDS = ("table", "differences", "plot")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Block:
    """What stands between two remarks.

    Args:
        kind: one of `KINDS`.
        study: whose outcomes.
        rows: names of rows, in this order; patterns may stand for several.
        tasks: names of tasks, in this order; patterns may stand for several.
        figures: of `intervals.FIGURES`.
        against: the row that others are compared with.
        mean: whether the mean over all tasks is the last column.
        file: where a plot goes, beside the page.
    """

    kind: str
    study: str
    rows: tuple[str, ...] = ("*",)
    tasks: tuple[str, ...] = ("*",)
    figures: tuple[str, ...] = ("R@1",)
    against: str = ""
    mean: bool = False
    file: str = ""

    @classmethod
    def read(cls, text: str) -> "Block":
        """Read the text of a remark.

        Raises:
            ValueError: it is none, naming what is wrong.
        """
        kind, *rest = shlex.split(text)
        given = dict(part.split("=", 1) for part in rest)
        unknown = given.keys() - cls.__dataclass_fields__.keys()
        if kind not in KINDS or unknown or "study" not in given:
            raise ValueError(f"evidence: {text}: a kind ({', '.join(KINDS)}), then study=... and other fields.")
        if kind != "table" and "against" not in given:
            raise ValueError(f"evidence: {text}: against=ROW is missing.")
        values: dict[str, Any] = dict(given)
        values |= {name: tuple(given[name].split(",")) for name in ("rows", "tasks", "figures") if name in given}
        return cls(kind, **values | {"mean": given.get("mean") == "yes"})


def written(text: str, outcomes: pa.Table, folder: Path) -> str:
    """Return the page with all blocks made anew; plots are written to its folder.

    Args:
        text: the page.
        outcomes: of all studies.
        folder: of the page.

    Raises:
        ValueError: a block asks for what is not there.
    """
    studies: dict[str, Outcomes] = {}

    def fill(found: re.Match[str]) -> str:
        block = Block.read(found["what"])
        if block.study not in studies:
            studies[block.study] = study_of(outcomes, block.study)
        study = studies[block.study]
        return "\n".join([found[1], *_lines(block, study, folder), found[4]])

    return BLOCK.sub(fill, text)


def _lines(block: Block, study: Outcomes, folder: Path) -> Sequence[str]:
    tasks = _chosen(block.tasks, study.tasks(), f"study {block.study}: task")
    rows = _chosen(
        block.rows, sorted({row for task in tasks for row in study.rows(task)}), f"study {block.study}: row"
    )
    columns = [(task, figure) for task in tasks for figure in block.figures]
    digits = 3 if block.figures == ("loss",) else 1
    if block.kind == "table":
        table = []
        for row in rows:
            found = [study.figure(row, *column) for column in columns]
            if block.mean:
                found.append(study.estimate([Term(row, *column, 1 / len(columns)) for column in columns]))
            table.append([f"`{row}`", *("-" if each is None else each.said(digits) for each in found)])
        return markdown(["", *_names(columns), *(["mean"] if block.mean else [])], table)
    rows = [row for row in rows if row != block.against]
    gaps = {
        (row, place): study.difference(row, block.against, [column])
        for row in rows
        for place, column in enumerate(columns)
    }
    if block.mean:
        gaps |= {(row, len(columns)): study.difference(row, block.against, columns) for row in rows}
    names = [*_names(columns), *(["mean"] if block.mean else [])]
    told = [key for key, gap in gaps.items() if gap is not None and gap.error is not None]
    adjusted = dict(zip(told, holm([gaps[key].p() for key in told]), strict=True))
    if block.kind == "plot":
        _draw(block, rows, names, gaps, folder / block.file)
        return [f"![Differences from {block.against}]({block.file})", ""]
    texts = {key: "-" if gap is None else gap.said(digits, "+") for key, gap in gaps.items()}
    texts |= {key: f"**{texts[key]}**" for key, p in adjusted.items() if p <= SIGNIFICANT}
    table = [[f"`{row}`", *(texts[row, place] for place in range(len(names)))] for row in rows]
    return markdown([f"less `{block.against}`", *names], table)


def _chosen(patterns: Iterable[str], names: Sequence[str], what: str) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in patterns:
        fits = [name for name in names if fnmatchcase(name, pattern)]
        if not fits:
            raise ValueError(f"{what} {pattern!r} has no outcomes; there are {', '.join(names)}.")
        chosen |= dict.fromkeys(fits)
    return list(chosen)


def _names(columns: Sequence[tuple[str, str]]) -> list[str]:
    """Heads of columns, without what all of them share."""
    figures = {figure for _, figure in columns}
    return [task if len(figures) == 1 else f"{task} {figure}" for task, figure in columns]


def _draw(
    block: Block,
    rows: Sequence[str],
    names: Sequence[str],
    found: Mapping[tuple[str, int], Estimate | None],
    path: Path,
) -> None:
    """Draw the differences with their intervals, a panel for each column."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 + 2.1 * len(names), 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for place, (axis, name) in enumerate(zip(axes, names, strict=True)):
        axis.axvline(0, color="0.6", linewidth=1)
        for height, row in enumerate(rows):
            estimate = found[row, place]
            if estimate is None:
                continue
            if estimate.error is not None:
                axis.plot([estimate.low, estimate.high], [height, height], color="tab:blue", linewidth=1.5)
            axis.plot([estimate.value], [height], "o", color="tab:blue", markersize=4)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(range(len(rows)), rows)
    axes[0].invert_yaxis()
    figure.supxlabel(f"points above {block.against}, 95 % interval", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "evidence"}):  # the same figure gives the same file
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Make the page's tables and plots anew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument(
        "--outcomes", type=Path, help="folder of Parquet files; `evidence` beside the page if not given"
    )
    given = parser.parse_args()
    folder = given.outcomes or given.page.with_suffix("")
    table = read_outcomes(sorted(folder.glob("*.parquet")))
    atomic_write(given.page, written(given.page.read_text(encoding="utf-8"), table, given.page.parent))


if __name__ == "__main__":
    main()
