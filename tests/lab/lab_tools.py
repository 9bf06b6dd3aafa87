"""Invented figures of the lab, and a manual."""

import json
import shutil
import statistics
from pathlib import Path

from PIL import Image


def entry(table, row, metric, *values, seeds=None, n=300, chance=None, budget="full", **more):
    """A result as the lab's runner stores it."""
    return {
        "table": table,
        "row": row,
        "metric": metric,
        "mean": statistics.fmean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
        "seeds": list(range(len(values))) if seeds is None else seeds,
        "values": list(values),
        "n": n,
        "command": f"python -m sugar_lab --budget {budget} --only {row}/{table}",
        "versions": {"torch": "2.9", "machine": "2 cores"},
        "budget": budget,
        "chance": chance,
        **more,
    }


def write(folder, entries, name="results.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(entries))
    return folder


def write_picture(path: Path, number: int, size: int = 48) -> None:
    """Write a picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (number * 37 % 256, number * 91 % 256, number % 256)).save(path)


def _page(number: int) -> str:
    name = f"Tool number {number}"
    return f"""<html><head><title>3.{number}. {name}</title></head><body>
<div class="navheader"><p>Prev Next, which leads elsewhere and is no text of the manual</p></div>
<h2 id="tool-{number}">3.{number}. {name}</h2>
<p>The first paragraph about tool {number} says that it paints {number} times.</p>
<p class="title">Figure 3.{number}. Options of tool {number}</p>
<img src="images/{number}.png" alt="">
<p>Behind the picture stands how many of the {number} sliders tool {number} has.</p>
<p><img src="images/icon.png" alt=""></p>
<h3 id="more-{number}">3.{number}.1. Activating it</h3>
<p>This sentence is the same on every page, so that no query may ask for it.</p>
<p>This sentence of page {number} tells where its menu {number} is, but not why.</p>
</body></html>"""


def write_manual(folder: Path) -> Path:
    """Write a manual of 60 pages, as that of GIMP is made."""
    for number in range(60):
        (folder / f"tool-{number}.html").write_text(_page(number), encoding="utf-8")
        write_picture(folder / "images" / f"{number}.png", number)
    write_picture(folder / "images" / "icon.png", 1, size=16)
    (folder / "index.html").write_text("<h1>Index</h1><p>Everything that there is, in one long list.</p>")
    shutil.copy(folder / "tool-1.html", folder / "tool-one-again.html")
    return folder
