"""An alignment as plain text for a terminal."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image

WIDTH = 100
MOST_COLUMNS = 12
MOST_ROWS = 24

Path = Sequence[tuple[int, int]]


def render(
    query: Sequence[str | Image.Image],
    document: Sequence[str | Image.Image],
    tables: Sequence[tuple[str, np.ndarray, Path]],
) -> str:
    """Write the slices of both sides, then for each (title, cosines (m, n), path) a table with the path marked.

    Of more than 12 columns or 24 rows only the pairs on the path are written.
    """
    lines = ["query", *_listed(query), "document", *_listed(document)]
    for title, cosines, path in tables:
        m, n = cosines.shape
        lines += ["", title]
        if m > MOST_ROWS or n > MOST_COLUMNS:
            shown = path[:MOST_ROWS]
            lines += [f"  query {i + 1} - document {j + 1}: {cosines[i, j]:z.2f}" for i, j in shown]
            lines += [f"  and {len(path) - len(shown)} pairs more"] * (len(path) > len(shown))
            continue
        on_path = set(path)
        lines.append("      " + "".join(f"{j + 1:>6} " for j in range(n)).rstrip())
        for i in range(m):
            cells = "".join(f"{cosines[i, j]:z6.2f}{'*' if (i, j) in on_path else ' '}" for j in range(n))
            lines.append(f"  {i + 1:>4}{cells}".rstrip())
    if any(max(cosines.shape) > 1 for _, cosines, _ in tables):
        lines += ["", "rows: query, columns: document; * on the best alignment path"]
    return "\n".join(lines)


def shorten(text: str, width: int) -> str:
    """Bring a text to one line of at most `width` columns of a terminal, with … where something is cut off.

    Characters that are not printable, such as a terminal's control sequences in a document from elsewhere, become
    spaces. Wide (East Asian) characters take two columns.

    >>> shorten("a long\\nstory", 8)
    'a long …'
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if _columns(text) <= width:
        return text
    kept, used = "", 1
    for character in text:
        used += _columns(character)
        if used > width:
            break
        kept += character
    return kept + "…"


def _columns(text: str) -> int:
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def _listed(pieces: Sequence[str | Image.Image]) -> list[str]:
    lines = [
        f"  {number:>4}  "
        + (shorten(piece, WIDTH - 8) if isinstance(piece, str) else f"[image {piece.width} x {piece.height}]")
        for number, piece in enumerate(pieces[:MOST_ROWS], start=1)
    ]
    return lines + [f"  and {len(pieces) - MOST_ROWS} slices more"] * (len(pieces) > MOST_ROWS)
