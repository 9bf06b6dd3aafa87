"""The mini model that ships, and its card: the lab's row `sugar-whitened` and its figures.

python -m sugar_lab.card --ship runs/lab-small/models/sugar-whitened-0   # the shipped model, and its card
python -m sugar_lab.card                                                 # the card alone
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES
from sugar_hf.model import SugarForConditionalGeneration, SugarProcessor
from sugar_hf.model.model_card import model_card
from sugar_hf.picturebook import checkpoint

from .budget import BUDGETS
from .intervals import over_seeds
from .lab_report import FOLDER
from .measurements import Cell, Results, place_of, read_results, seeds_text
from .model_rows import DEFAULT, RECIPE, ROWS
from .recipe.loop import save_half
from .row_training import BASE, OTHER_LEARNING_RATE, row_arguments
from .tables import markdown

ROW, BESIDE = DEFAULT, "lm-only"
SEED = 0  # of the model that ships
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
        ValueError: The row was not run.
    """
    metrics = figures(read_results(folder))
    if model is None:
        model = SugarForConditionalGeneration.from_pretrained(checkpoint("mini-sugar"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(model_card(model, NAME, metrics, DESCRIPTION, {"license": "apache-2.0"}), encoding="utf-8")
    return path


def ship(trained: str | Path, folder: str | Path | None = None) -> Path:
    """Write a trained model of the row in float16 as the one that ships.

    Args:
        trained: the model's folder.
        folder: where to; the package's own place if not given.

    Returns:
        The folder written.
    """
    folder = Path(folder or checkpoint("mini-sugar"))
    model = SugarForConditionalGeneration.from_pretrained(trained)
    model.config.vlm_config._name_or_path = BASE  # not the folder that it was on the machine that trained it
    save_half(model, folder)
    (folder / "model.safetensors").chmod(0o644)
    SugarProcessor.from_pretrained(trained).save_pretrained(folder)
    return folder


def figures(results: Results) -> str:
    """Return the numbers of the row in the paper's tables as Markdown, beside `lm-only` and chance.

    What it was trained on and how, and what it cannot do, follow.

    Raises:
        ValueError: There are none, or none of the seed that ships.
    """
    lines, counts, cells = [], [], []
    for name, table in TABLES.items():
        for column in table.columns:
            cell = None if column in table.aliases else results.find(place_of(name, column), ROW)
            if cell is None:
                continue
            if SEED not in cell.sample.values:
                raise ValueError(f"the row {ROW!r} has no figure of seed {SEED} in {cell.place}: run it first.")
            beside = results.find(cell.place, BESIDE)
            chance = "-" if cell.chance is None else f"{cell.chance:.1f}"
            title = f"{table.title.split(':')[0]}, {column}"
            this = f"{cell.sample.values[SEED]:.1f}"
            lines.append([title, this, str(cell.sample), str(beside.sample) if beside else "-", chance])
            counts.append(len(cell.sample.values))
            cells.append((title, cell))
    if not lines:
        raise ValueError(f"the row {ROW!r} has no figure of the paper's tables: run it first.")
    head = ["", "this model", "Sugar", "LM loss alone", "chance"]
    seeds = f"this model is that of seed {SEED}, of {seeds_text(counts)}"
    if max(counts) == 1:  # the model is all there is of its row
        seeds = f"this model is the only one of its row, seed {SEED}"
        head, *lines = ([*line[:2], *line[3:]] for line in (head, *lines))
    said = (
        f"Twins of the paper's experiments on the picturebook, budget `{results.budget}`, mean ± standard deviation "
        f"over seeds; {seeds}. They cannot be compared with the paper's.\n\n"
    )
    table_text = "\n".join(markdown(head, lines)).strip()
    return f"{said}{table_text}\n\n{_training(results.budget)}\n\n{_limits(cells)}"


def _training(name: str) -> str:
    budget = BUDGETS[name]
    settings = {**RECIPE, **ROWS[ROW].settings}
    told = ", ".join(
        f"`{key}={value:g}`" if isinstance(value, float) else f"`{key}={value}`"
        for key, value in sorted(settings.items())
    )
    steps = row_arguments(ROWS[ROW], SEED, budget, Path()).max_steps
    return (
        "## Training\n\n"
        f"{budget.rows} drawn rows of the picturebook, each seen once: documents, which are told and shown, and chats "
        f"(`sugar_lab.mix`, part `{ROWS[ROW].data}`); their teachers are `mini-clip`, `mini-dino` and `mini-bert`. "
        f"{steps} steps of {budget.batch_size} rows from `mini-vlm`, Muon for matrices and AdamW (learning rate "
        f"{OTHER_LEARNING_RATE:g}) for the rest, {told}, else the defaults of "
        f"`SugarTrainingArguments`; the vision tower is frozen. Seed {SEED}. "
        f"`python -m sugar_lab --budget {name} --only {ROW}` trains and measures it."
    )


def _limits(cells: Sequence[tuple[str, Cell]]) -> str:
    """The columns in which the interval over seeds does not lie above chance."""
    lost = [
        title
        for title, cell in cells
        if cell.chance is not None and over_seeds(cell.sample.values.values()).low <= cell.chance
    ]
    told = f" It cannot be told from guessing in: {'; '.join(lost)}." if lost else ""
    return (
        "## Limits\n\nIt knows the words and the drawings of the picturebook and nothing else; photographs and other "
        f"words mean nothing to it.{told}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the card from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sugar_lab.card", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where the result files are")
    parser.add_argument("path", nargs="?", type=Path, default=CARD, help="the card to write")
    parser.add_argument("--ship", type=Path, metavar="MODEL", help="replace the shipped model by this one first")
    chosen = parser.parse_args(arguments)
    if chosen.ship is not None:
        print(f"wrote {ship(chosen.ship)}")
    print(f"wrote {write_card(chosen.folder, chosen.path)}")


if __name__ == "__main__":
    main()
