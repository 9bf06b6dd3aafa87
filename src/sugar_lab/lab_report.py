"""The lab's document, made of the stored result files, and of notes beside them: `python -m sugar_lab.lab_report`."""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES

from .claims import SURVEY
from .defaults import defaults_section
from .design import OUT as DESIGN
from .evidence import OUTCOMES, STUDY
from .evidence_tables import evidence_section
from .measurements import Results, Survey, read_results, seeds_text
from .plots import draw_all
from .table_layout import ROWS, in_order, meaning, missing
from .tables import markdown, own_section, own_tables, paper_section
from .twins import Twin, all_twins
from .verdicts import all_verdicts, read_studies, verdict_section

FOLDER, OUT = Path("docs/lab"), Path("docs/lab/report.md")
FURTHER = Path("docs/evidence")
GALLERY, NOTES = "gallery.html", "notes.md"

INTRODUCTION = """# Report of the lab

The experiments of the paper ([arXiv 2411.00304](https://arxiv.org/abs/2411.00304)) on the picturebook, our drawn
world: 300 drawn things on a grid of nine places, over coloured grounds, in pictures of 96 pixels. Each benchmark has a
synthetic counterpart there, its twin, which the benchmark's own metric scores. Rows are small models that start from
one checkpoint. Combinations of things are held out.

**This world is tiny, and so are the models that learn it.** The paper's numbers, printed above ours, are those of
models of seven billion weights on photographs. That a number of ours is higher or lower than one of the paper means
nothing. What can be compared is how rows differ. The verdicts, too, are about the lab: a claim that is refuted here
may hold at scale, and one that is confirmed here may not.
"""
QUICK = "**The budget is `quick`: it shows that everything runs. None of these numbers means anything.**"
READING = """A cell is the mean over seeds ± their sample standard deviation; without ± it has one seed. The best of
our rows is bold. These tables are a survey: they show many settings, and decide nothing. Rows that were not run, and
columns that were not measured, are named.
"""
DECIDING = """Fewer rows, larger sets and shorter trainings, all from one start and with the same seeds: eight for the
default and what it is compared with most, three for the others that decide, one for the rest. The outcome
of each item is stored (`outcomes.parquet`, and `evidence.jsonl` with what made it). Differences are taken item by item
and seed by seed, and both are counted as drawn at random. [The design](design.md) says how many items and seeds tell
the differences that are worth telling.
"""


def make_document(
    results_folder: str | Path = FOLDER,
    out: str | Path = OUT,
    twins: Mapping[str, Twin] | None = None,
    further: Path | None = FURTHER,
) -> Path:
    """Write the document, and its pictures into the folder of the results.

    The same results give the same files.

    Args:
        results_folder: where the result files are, and `gallery.html` and `notes.md` if there are.
        out: the Markdown file.
        twins: whose cards to print; those of the lab if not given.
        further: folder of outcomes of other studies, which the verdicts look at, too.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: There are no results.
        ValueError: A result file is at odds with itself or with another one, or budgets are mixed.
        ImportError: matplotlib is not installed.
    """
    folder, out = Path(results_folder), Path(out)
    results = read_results(folder)
    pictures = {}
    for name, (path, text) in draw_all(results, folder).items():
        pictures[name] = [f"![{text}]({_link(path, out)})", ""]
    parts = [INTRODUCTION, *_decided(results, folder, further), *_notes(folder), *_introduction(results)]
    parts += defaults_section(results)
    parts += ["## The paper's tables", ""]
    for name in TABLES:
        parts += paper_section(results, name)
        parts += pictures.get({"table4b": "ablation", "table5": "positions"}.get(name, ""), [])
    parts += ["## Tables that the paper lacks", ""]
    for name in own_tables(results):
        parts += own_section(results, name)
        parts += pictures.get(name, [])  # the table `pool` has a picture of its own
    parts += ["## Training", ""]
    parts += pictures.get("curves", ["The training curves were not stored.", ""])
    parts += ["### What the labels are", ""]
    parts += pictures.get("labels", ["Histograms of the labels were not stored.", ""])
    parts += _gallery(folder, out) + _cards(all_twins() if twins is None else twins) + _commands(results)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(parts).rstrip() + "\n", encoding="utf-8")
    return out


def _introduction(results: Results) -> list[str]:
    versions: dict[str, list[str]] = {}
    for cell in results.cells:
        for key, value in cell.versions.items():
            known = versions.setdefault(key, [])
            known += [value] if value not in known else []
    counts = [len(cell.sample.values) for cell in results.cells]
    rows = dict.fromkeys(cell.row for cell in results.cells)
    made_with = "; ".join(f"{key} {' and '.join(sorted(values))}" for key, values in sorted(versions.items()))
    was_run = [
        "## The survey",
        "",
        f"Budget `{results.budget}`; {len(rows)} rows with {seeds_text(counts)}; {len(results.cells)} numbers. "
        f"Made with: {made_with or 'not recorded'}.",
        "",
        "```bash",
        *dict.fromkeys(cell.command.partition(" --only ")[0] for cell in results.cells),
        "```",
        "",
    ]
    if results.budget == "quick":
        was_run += [QUICK, ""]
    was_run.append(READING)
    by_meaning: dict[str, list[str]] = {}
    for row in in_order(ROWS, rows):
        by_meaning.setdefault(meaning(row) or "a further row", []).append(f"`{row}`")
    was_run += markdown(
        ["rows", "what they are"], [[", ".join(names), text] for text, names in by_meaning.items()], numbers=False
    )
    absent = missing(ROWS, rows)
    was_run += [f"Rows that were not run at all: {', '.join(f'`{row}`' for row in absent)}.", ""] if absent else []
    return was_run


def _decided(results: Results, folder: Path, further: Path | None) -> list[str]:
    """The verdicts on the claims, and the tables with intervals."""
    files = [folder / OUTCOMES] if (folder / OUTCOMES).is_file() else []
    files += sorted(further.glob("*.parquet")) if further is not None else []
    studies = read_studies(files)
    lines = ["## The paper's claims", "", *verdict_section(all_verdicts({**studies, SURVEY: Survey(results)}))]
    if STUDY not in studies:
        return lines
    command = ["```bash", "python -m sugar_lab --budget evidence", "```", ""]
    design = "" if (folder / DESIGN).is_file() else "The design was not written.\n"
    return [*lines, "## What decides", "", DECIDING + design, *command, *evidence_section(studies[STUDY])]


def _notes(folder: Path) -> list[str]:
    """Return the notes that people wrote beside the results; the rest of the report is made of the results."""
    notes = folder / NOTES
    return ["## What follows", "", notes.read_text(encoding="utf-8").strip(), ""] if notes.is_file() else []


def _gallery(folder: Path, out: Path) -> list[str]:
    text = (
        "The six kinds of example of the paper's page: detailed semantics, knowledge of the world, fine-grained "
        "discrimination, composition of concepts, retrieval and dialog, retrieval at different places. They are the "
        "first ones of a fixed seed, failures included; pink is retrieved, blue is generated."
    )
    page = folder / GALLERY
    where = f"[The page]({_link(page, out)})." if page.is_file() else "It was not made."
    return ["## Gallery", "", f"{text} {where}", ""]


def _cards(twins: Mapping[str, Twin]) -> list[str]:
    lines = ["## The data sets", ""]
    for twin in twins.values():
        chance = ", ".join(f"{name} {value:.1f}" for name, value in twin.chance.items())
        told = f"Figure: {twin.primary_metric}." + (f" Chance: {chance}." if chance else "")
        lines += [f"### {twin.title}", "", f"`{twin.name}`. {twin.card} {told}".replace("  ", " "), ""]
    return lines if twins else [*lines, "There are none.", ""]


def _commands(results: Results) -> list[str]:
    commands = dict.fromkeys(cell.command for cell in results.cells)
    head = ["## Commands", "", "<details><summary>What made each number</summary>", ""]
    return [*head, "```bash", *commands, "```", "", "</details>", ""]


def _link(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out.parent)).as_posix()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the document from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sugar_lab.lab_report", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where the result files are")
    parser.add_argument("out", nargs="?", type=Path, default=OUT, help="the Markdown file to write")
    chosen = parser.parse_args(arguments)
    print(f"wrote {make_document(chosen.folder, chosen.out)}")


if __name__ == "__main__":
    main()
