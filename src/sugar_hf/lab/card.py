"""The card of the mini model, from the lab's figures of the row `sugar`: `python -m sugar_hf.lab.card`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.paper import TABLES
from ..model import SugarForConditionalGeneration
from ..model.hub import model_card
from ..picturebook import checkpoint
from .report import FOLDER
from .results import Results, place_of, read_results, seeds_text
from .tables import markdown

ROW, BESIDE = "sugar", "lm-only"
CARD = Path("model_cards/mini-sugar.md")
NAME = "sugar-mini"
DESCRIPTION = (
    "The mini model that ships with sugar-hf, trained on the picturebook, a drawn world. It is for trying things out: "
    "it knows 300 drawn things and nothing else."
)


def write_card(
    folder: str | Path = FOLDER, path: str | Path = CARD, model: SugarForConditionalGeneration | None = None
) -> Path:
    """Write the card.

    Args:
        folder: where the result files are.
        path: the card.
        model: whose sizes the card tells; the shipped mini model if not given.

    Returns:
        The file written.

    Raises:
        FileNotFoundError: There are no results.
        ValueError: The row `sugar` was not run.
    """
    metrics = figures(read_results(folder))
    if model is None:
        model = SugarForConditionalGeneration.from_pretrained(checkpoint("mini-sugar"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(model_card(model, NAME, metrics, DESCRIPTION, {"license": "apache-2.0"}), encoding="utf-8")
    return path


def figures(results: Results) -> str:
    """The figures of the row `sugar` in the paper's tables as Markdown, beside `lm-only` and chance.

    Raises:
        ValueError: There are none.
    """
    lines, counts = [], []
    for name, table in TABLES.items():
        for column in table.columns:
            cell = None if column in table.aliases else results.find(place_of(name, column), ROW)
            if cell is None:
                continue
            beside = results.find(cell.place, BESIDE)
            chance = "-" if cell.chance is None else f"{cell.chance:.1f}"
            title = f"{table.title.split(':')[0]}, {column}"
            lines.append([title, str(cell.sample), str(beside.sample) if beside else "-", chance])
            counts.append(len(cell.sample.values))
    if not lines:
        raise ValueError(f"the row {ROW!r} has no figure of the paper's tables: run it first.")
    said = (
        f"Twins of the paper's experiments on the picturebook, budget `{results.budget}`, {seeds_text(counts)}, mean "
        "± standard deviation; they cannot be compared with the paper's figures.\n\n"
    )
    return said + "\n".join(markdown(["", "Sugar", "LM loss alone", "chance"], lines)).strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the card from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sugar_hf.lab.card", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where the result files are")
    parser.add_argument("path", nargs="?", type=Path, default=CARD, help="the card to write")
    chosen = parser.parse_args(arguments)
    print(f"wrote {write_card(chosen.folder, chosen.path)}")


if __name__ == "__main__":
    main()
