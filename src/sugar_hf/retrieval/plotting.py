"""Draws an explanation: the slices along both axes, the soft alignment, and the path through it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .explain import Alignment, Explanation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_alignment"]

SUFFIXES = (".png", ".svg")
MOST_SLICES = 64
BLUE = "#1f5fd0"
# Inches.
CELL = (1.25, 0.85)
MARGIN = (2.5, 1.2)  # for the slices on the left and on the top
THUMBNAIL = 0.72
EDGE = 0.15
FONT_POINTS = 8
# Characters in a line and lines of a text.
LEFT_TEXT = (30, 4)
TOP_TEXT = (15, 6)
MISSING = "\u25a1"  # a white square: a character that no font of this machine has


def plot_alignment(
    explanation: Explanation,
    path: str | Path | None = None,
    *,
    which: str = "model",
    title: str | None = None,
    dpi: int = 100,
) -> Figure:
    """Draw how two samples align.

    Rows are the slices of the query, columns those of the document. A cell is the darker the more often the soft
    alignment visits its pair, and has the pair's cosine written in it. Blue dashed lines connect the slices that the
    best path matches, arrows follow the path.

    Characters that the fonts of this machine lack are drawn as white squares. Scripts whose letters join or run from
    right to left are drawn as well as matplotlib can.

    Args:
        explanation: From [`explain`].
        path: File to write, a `.png` or `.svg`; none when `None`.
        which: `"model"` or `"teacher"`: whose alignment.
        title: Heading; the score, or the label, when `None`.
        dpi: Pixels an inch of a PNG.

    Returns:
        The figure. A notebook shows it.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: There is no alignment of teachers, the file has another suffix, or a side has more than
            64 slices.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot_alignment needs matplotlib: pip install "sugar-hf[demo]"') from error
    if path is not None and Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture is written as {' or '.join(SUFFIXES)}.")
    alignment = _chosen(explanation, which)
    m, n = alignment.similarity.shape
    if max(m, n) > MOST_SLICES:
        raise ValueError(
            f"{m} against {n} slices: at most {MOST_SLICES} a side can be drawn. Explain a part: sample[:20]."
        )
    if title is None:
        if which == "teacher":
            title = f"label {explanation.label:.2f}; alignment by the teachers' slice vectors"
        else:
            title = f"score {explanation.score:.2f}; alignment by the model's {explanation.embeddings} embeddings"

    lines = textwrap.wrap(_printable(title), max(24, int(15 * (MARGIN[0] + n * CELL[0]) / 1.6)))
    head = 0.22 * len(lines) + EDGE
    size = (MARGIN[0] + n * CELL[0] + EDGE, head + MARGIN[1] + m * CELL[1] + EDGE)
    texts = [*lines, *(piece for piece in (*explanation.query, *explanation.document) if isinstance(piece, str))]
    families, missing = _fonts(texts)
    gaps = {ord(character): MISSING for character in missing}
    # the same explanation gives the same file
    with rc_context({"font.family": families, "font.size": FONT_POINTS, "svg.hashsalt": "sugar"}):
        figure = Figure(figsize=size, dpi=dpi)
        axes = figure.add_axes(
            (
                MARGIN[0] / size[0],
                EDGE / size[1],
                n * CELL[0] / size[0],
                m * CELL[1] / size[1],
            )
        )
        _draw_cells(axes, alignment)
        _draw_path(axes, alignment)
        for i, piece in enumerate(explanation.query):
            _draw_slice(axes, piece, (-0.5, i), (-1, 0), LEFT_TEXT, gaps)
        for j, piece in enumerate(explanation.document):
            _draw_slice(axes, piece, (j, -0.5), (0, 1), TOP_TEXT, gaps)
        heading = "\n".join(lines).translate(gaps)
        figure.text(EDGE / size[0], 1 - EDGE / size[1], heading, va="top", fontsize=10, parse_math=False)
        if path is not None:
            metadata = {"Date": None} if Path(path).suffix.lower() == ".svg" else {}
            figure.savefig(path, metadata=metadata)
    return figure


def _chosen(explanation: Explanation, which: str) -> Alignment:
    if which == "model":
        return explanation.model
    if which != "teacher":
        raise ValueError(f"which={which!r}: give 'model' or 'teacher'.")
    if explanation.teacher is None:
        raise ValueError("the explanation knows no teachers. Make it with explain(..., teacher=TripleTeacher...).")
    return explanation.teacher


def _draw_cells(axes: Axes, alignment: Alignment) -> None:
    m, n = alignment.similarity.shape
    axes.imshow(alignment.visits, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")  # light enough to read on
    axes.set_xticks(np.arange(n + 1) - 0.5, [""] * (n + 1))
    axes.set_yticks(np.arange(m + 1) - 0.5, [""] * (m + 1))
    axes.grid(color="white", linewidth=1.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for i in range(m):
        for j in range(n):
            value = f"{alignment.similarity[i, j]:z.2f}".replace("-", "\u2212")
            # the one corner that neither the path nor a dashed line crosses, beside the upper right one
            axes.text(j - 0.45, i + 0.42, value, ha="left", va="bottom", color="#333333")


def _draw_path(axes: Axes, alignment: Alignment) -> None:
    """Connect the slices that the path matches, and follow the path with arrows."""
    dashed: dict[str, Any] = {"color": BLUE, "linewidth": 1.1, "linestyle": (0, (4, 3)), "zorder": 3}
    last_in_row = dict(alignment.path)
    last_in_column = {j: i for i, j in alignment.path}
    for i, j in last_in_row.items():
        axes.plot([-0.5, j], [i, i], **dashed)
    for j, i in last_in_column.items():
        axes.plot([j, j], [-0.5, i], **dashed)
    for (i, j), (k, l) in zip(alignment.path, alignment.path[1:], strict=False):  # noqa: E741
        arrow = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.8, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", xy=(l, k), xytext=(j, i), arrowprops=arrow, zorder=4)
    rows, columns = zip(*alignment.path, strict=True)
    axes.scatter(columns, rows, s=34, color=BLUE, zorder=5)
    m, n = alignment.similarity.shape
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(m - 0.5, -0.5)


def _draw_slice(
    axes: Axes,
    piece: str | Image.Image,
    place: tuple[float, float],
    away: tuple[int, int],
    room: tuple[int, int],
    gaps: dict[int, str],
) -> None:
    """Put a slice beside the cells, `away` (left or up) from a place on their edge."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    gap = 5  # points
    offset = (away[0] * gap, away[1] * gap)
    alignment = (1.0, 0.5) if away[0] else (0.5, 0.0)
    if isinstance(piece, str):
        axes.annotate(
            _wrapped(piece, *room).translate(gaps),
            place,
            xytext=offset,
            textcoords="offset points",
            ha="right" if away[0] else "center",
            va="center" if away[0] else "bottom",
            annotation_clip=False,
            parse_math=False,
        )
        return
    scale = 2  # for screens of more pixels, and for print
    pixels = round(THUMBNAIL * 72 * scale)
    small = piece.copy()
    small.thumbnail((pixels, pixels), Image.Resampling.LANCZOS)
    zoom = THUMBNAIL * 72 / max(small.size)  # 72 points an inch; small pictures are enlarged
    box = AnnotationBbox(
        OffsetImage(np.asarray(small), zoom=zoom, dpi_cor=True),
        place,
        xybox=offset,
        boxcoords="offset points",
        box_alignment=alignment,
        bboxprops={"edgecolor": "#bbbbbb", "linewidth": 0.6, "boxstyle": "square"},
        pad=0.1,
        annotation_clip=False,
    )
    axes.add_artist(box)


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _wrapped(text: str, width: int, lines: int) -> str:
    """Wrap a text and cut it with … after some lines. Wide (East Asian) characters count twice."""
    from unicodedata import east_asian_width

    text = _printable(text)
    if sum(east_asian_width(c) in "WF" for c in text) * 2 > len(text):
        width //= 2
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" …"))


def _fonts(texts: Iterable[str]) -> tuple[list[str], Sequence[str]]:
    """Find fonts of this machine for all characters: names, the usual one first, and the characters without any."""
    from matplotlib import font_manager

    def has(file: str) -> set[int]:
        try:
            return set(font_manager.get_font(file).get_charmap())
        except (OSError, RuntimeError):  # a font of bitmaps, or a damaged one
            return set()

    families = ["DejaVu Sans"]  # comes with matplotlib
    missing = {ord(c) for text in texts for c in _printable(text)} - {ord(" ")}
    missing -= has(font_manager.findfont("DejaVu Sans"))
    entries = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and font.weight == 400]
    for entry in sorted(entries, key=lambda font: (font.name, font.fname)) if missing else []:
        # "Last Resort" has a box for every character and would hide the fonts that come after it
        if entry.name not in families and "Last Resort" not in entry.name and (found := missing & has(entry.fname)):
            families.append(entry.name)
            missing -= found
    return families, [chr(character) for character in sorted(missing)]
