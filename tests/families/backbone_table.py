"""The table of docs/backbones.md, made of the outcomes of the tests beside this file."""

from pathlib import Path

import pytest
import transformers
from builders import cached_sugar

DOCUMENT = Path(__file__).parents[2] / "docs" / "backbones.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"

#: For each (family, column) the answers of the tests that decide on it.
OUTCOMES = pytest.StashKey[dict[tuple[str, str], list[str]]]()

COLUMNS = {
    "outputs": "logits, loss, generation",
    "slices": "slice map",
    "folder": "save and load",
    "hub": "Hub export",
    "adapters": "LoRA",
    "checkpointing": "gradient checkpointing",
    "training": "training",
    "prefixes": "exact prefix embeddings",
}


def cells(outcomes: dict[tuple[str, str], list[str]]) -> dict[tuple[str, str], str]:
    """Bring the answers for each cell to one: `yes`, or the first that is not."""
    return {key: next((answer for answer in answers if answer != "yes"), "yes") for key, answers in outcomes.items()}


def render(found: dict[tuple[str, str], str]) -> str:
    """Write the table. Every family must have a cell in every column."""
    families = sorted({family for family, _ in found})
    missing = [key for family in families for key in COLUMNS if (family, key) not in found]
    if missing:
        raise ValueError(f"no outcome for {', '.join(missing)}: run the whole file.")
    lines = [
        f"With transformers {transformers.__version__}:\n",
        "| model type | class | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for family in families:
        backbone = type(cached_sugar(family)[0].vlm).__name__
        row = [f"`{family}`", f"`{backbone}`", *(found[family, key] for key in COLUMNS)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def parse(text: str) -> dict[tuple[str, str], str]:
    """Read the cells of a document that holds such a table."""
    table = text.partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| \n").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {(row[0].strip("`"), key): cell for row in rows for key, cell in zip(COLUMNS, row[2:], strict=True)}


def replace(text: str, table: str) -> str:
    """Put a table in the place of the one that a document has."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table + END + rest.partition(END)[2]
