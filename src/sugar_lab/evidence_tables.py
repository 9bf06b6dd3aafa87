"""Tables of outcomes with intervals: what the rows reach, and how far they lie from each other."""

from collections.abc import Mapping, Sequence

from .claims import ANSWER_PLACES, RETRIEVAL, Places
from .evidence import MOVED, evidence_rows
from .intervals import Estimate, Outcomes, Term
from .table_layout import matches, meaning
from .tables import markdown

#: Columns of the tables: a title and the places whose mean it is.
RETRIEVAL_COLUMNS: Sequence[tuple[str, Places]] = (
    ("mean of four", RETRIEVAL),
    ("COCO T2I", RETRIEVAL[:1]),
    ("COCO I2T", RETRIEVAL[1:2]),
    ("VIST 5c dagger", RETRIEVAL[2:3]),
    ("VIST 5c+4i dagger", RETRIEVAL[3:]),
    ("VIST 5c+4i", (("vist 5c+4i", "R@1"),)),
    ("Winoground group", (("winoground group", "hit"),)),
)
ANSWER_COLUMNS: Sequence[tuple[str, Places]] = (
    ("mean of five", ANSWER_PLACES),
    *((task, ((task, figure),)) for task, figure in ANSWER_PLACES),
    ("false", (("llava-w false", "score"),)),
    ("loss", (("answer-loss", "loss"),)),
)
#: What rows are that the survey lacks; patterns as in `table_layout.ROWS`.
ROWS: Mapping[str, str] = {
    "no-gist": "as `base`, but no probe has asked it for what a sequence is about (the recipe's part `gist`)",
    "no-gist-*": "as the row of that name, from `no-gist`",
    "infonce": "LM loss and InfoNCE within the batch, temperature 0.07",
    "infonce-0.2": "LM loss and InfoNCE, another temperature",
    "kl": "LM loss and soft targets (labels through a softmax), temperature 0.07",
    "kl-a0.1": "`kl` with a third of its weight",
    "sugar": "the loss of the default: `kl` at temperature 0.15, with a third of the weight of `kl-0.15`",
    "sugar-whitened-lora": "as `sugar-whitened`, with low-rank adapters in place of the whole language model",
    "sugar-whitened-head": "as `sugar-whitened`, but the head alone is trained",
    "sugar-whitened-mse": "as `sugar-whitened`, and a squared error of weight 1 besides (`mse_weight`)",
    "sugar-whitened-lifted": "as `sugar-whitened`, a tenth of each target for known positives (`positive_share`)",
    "sugar-whitened-*": "as `sugar-whitened`, with labels by that kernel in place of `calibrated`",
    "infonce-0.2-whitened": "as `infonce-0.2`, and its head begins whitened by 512 samples",
    "kl-0.15|kl-0.3": "`kl` at another temperature, with a weight that gives the same gradient at the start",
    "kl-*-text-mean": "the same, a text by the mean of its tokens rather than by its last token",
    "kl-*-pairs": "the same, every sixth row a known pair whose negative has the same words in another order",
}
DIGITS = 3  # of losses
#: Rows that the others are compared with.
RIVALS = ("infonce", "infonce-0.2", "mse")


def evidence_section(outcomes: Outcomes) -> list[str]:
    """The tables, without a heading."""
    measured = {row for task in outcomes.tasks() for row in outcomes.rows(task)}
    rows = [row for row in evidence_rows() if row in measured]
    lines = ["| row | what it is |", "|---|---|", *(f"| `{row}` | {_meaning(row)} |" for row in rows), ""]
    lines += ["Recall@1 in percent; pairs in percent. Brackets hold the 95 % interval over seeds and items.", ""]
    lines += _table(outcomes, rows, RETRIEVAL_COLUMNS)
    lines += [
        "Answers in percent. `false` is the share of what descriptions state that is not so, and `loss` that of "
        "held-out answers in nats for each token; of both less is better.",
        "",
        *_table(outcomes, rows, ANSWER_COLUMNS),
        "Differences of the mean of four recalls, item by item and seed by seed:",
        "",
        *_differences(outcomes, rows),
    ]
    for reason, twins in MOVED.items():
        lines += [f"Not measured here, because {reason}: {', '.join(f'`{twin}`' for twin in twins)}.", ""]
    return lines


def _table(outcomes: Outcomes, rows: Sequence[str], columns: Sequence[tuple[str, Places]]) -> list[str]:
    cells = []
    for row in rows:
        found = [outcomes.estimate([Term(row, *place, 1 / len(places)) for place in places]) for _, places in columns]
        if any(found):
            texts = [
                _said(cell, DIGITS if title == "loss" else 1) for cell, (title, _) in zip(found, columns, strict=True)
            ]
            cells.append([f"`{row}`", *texts])
    return markdown(["", *(title for title, _ in columns)], cells)


def _differences(outcomes: Outcomes, rows: Sequence[str]) -> list[str]:
    cells = []
    for row in rows:
        found = [outcomes.difference(row, rival, RETRIEVAL) if row != rival else None for rival in RIVALS]
        if any(found):
            cells.append([f"`{row}`", *(_said(cell) for cell in found)])
    return markdown(["", *(f"less `{rival}`" for rival in RIVALS)], cells)


def _said(cell: Estimate | None, digits: int = 1) -> str:
    return "-" if cell is None else cell.said(digits)


def _meaning(row: str) -> str:
    return next((text for pattern, text in ROWS.items() if matches(pattern, row)), meaning(row))
