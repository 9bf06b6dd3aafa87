"""The table of docs/backbones.md: a row for every type, from the steps beside this file."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import transformers
from filelock import FileLock

DOCUMENT = Path(__file__).parents[2] / "docs" / "backbones.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
MEND = "write it anew: .venv-torchvision/bin/python -m pytest tests/families -m families --update-backbones"
HEAD = ("model type", "class", "with Sugar", "prefix embeddings", "LoRA layers", "forms of samples", "note")
#: What may stand under "with Sugar".
STATES = ("works", "refused", "not tried")


@dataclass(frozen=True)
class Row:
    """What came out for a type.

    Attributes:
        state: One of `STATES`.
        prefixes: `exact`, or why not.
        lora: Layers of the language model that the default LoRA reaches, "n of m".
        forms: The forms of samples that the processor takes, or why it is not tried.
        note: Why a type is refused or not tried, or what is to be known.
    """

    model_type: str
    backbone: str = ""
    state: str = "works"
    prefixes: str = ""
    lora: str = ""
    forms: str = ""
    note: str = ""

    def line(self) -> str:
        """The row in Markdown."""
        cells = (f"`{self.model_type}`", f"`{self.backbone}`" if self.backbone else "", self.state)
        texts = (
            text.replace("|", "\\|").replace("\n", " ") for text in (self.prefixes, self.lora, self.forms, self.note)
        )
        return f"| {' | '.join((*cells, *texts))} |"


@dataclass(frozen=True)
class Table:
    """The table as it is written: rows by type, and the transformers that it was made with."""

    version: str
    rows: dict[str, Row]

    def text(self) -> str:
        """The table in Markdown, with its counts."""
        counts = {state: sum(row.state == state for row in self.rows.values()) for state in STATES}
        lines = [
            f"With transformers {self.version}, of {len(self.rows)} types {counts['works']} work, "
            f"{counts['refused']} are refused, {counts['not tried']} are not tried:\n",
            f"| {' | '.join(HEAD)} |",
            "|---" * len(HEAD) + "|",
            *(self.rows[name].line() for name in sorted(self.rows)),
        ]
        return "\n".join(lines) + "\n"


def read_table() -> Table:
    """Read the table of the document."""
    text = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    version = text.partition("With transformers ")[2].partition(",")[0]
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip().replace("\\|", "|") for cell in line.strip()[1:-1].replace("\\|", "\0").split("|")]
            cells = [cell.replace("\0", "|") for cell in cells]
            name, backbone = cells[0].strip("`"), cells[1].strip("`")
            rows[name] = Row(name, backbone, *cells[2:])
    return Table(version, rows)


def write_row(row: Row) -> None:
    """Put a row into the document's table, which is of the running transformers from then on."""
    with FileLock(Path(tempfile.gettempdir()) / "sugar-backbones.lock"):  # tests may run in several processes
        rows = {**read_table().rows, row.model_type: row}
        text = DOCUMENT.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        new = before + BEGIN + Table(transformers.__version__, rows).text() + END + rest.partition(END)[2]
        DOCUMENT.write_text(new, encoding="utf-8")
