"""What the figures say of the defaults of `SugarTrainingArguments`, setting by setting."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sugar_hf.structure import StructureLossConfig
from sugar_hf.training import SugarTrainingArguments
from sugar_hf.training.arguments import usual_alpha

from .intervals import Estimate, over_seeds
from .measurements import Results, Sample, place_of
from .model_rows import RECIPE, ROWS
from .table_layout import GENERATION, RETRIEVAL
from .tables import markdown

OURS = "mse"
#: Settings, and the rows that have other values of them than `OURS`; `None` in a model's configuration means `mean`.
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "objective": ("infonce", "kl"),
    "label_kernel": ("aligned", "gak", "mean"),
    "teachers": ("clip-only",),
    "image_pooling": ("last-token",),
    "same_sample": ("same-sample-one",),
    "centring": ("centring",),
    "alpha": ("alpha-1", "alpha-100"),
    "delta": ("delta-0.1", "delta-1"),
    "positions_per_sample": ("ends-1", "ends-all"),
}
_UNSET = {"image_pooling": "mean"}


@dataclass(frozen=True)
class Choice:
    """A value of a setting, and how a row with it did.

    Args:
        value: as an argument.
        row: the row that has it.
        retrieval: mean of the ablation's columns of retrieval; `None` if the row was not run.
        generation: mean of its columns of generation.
    """

    value: Any
    row: str
    retrieval: Sample | None
    generation: Sample | None


def choices(results: Results, setting: str) -> list[Choice]:
    """All values of a setting that the lab has, that of `mse` first."""
    found = []
    for row in (OURS, *SETTINGS[setting]):
        value = {**_defaults(), **RECIPE, **ROWS[row].settings}[setting]
        averages = [
            results.average(row, [place_of(*place.split("/", 1)) for place in places])
            for places in (RETRIEVAL, GENERATION)
        ]
        found.append(Choice(_UNSET.get(setting) if value is None else value, row, *averages))
    return found


def defaults_section(results: Results) -> list[str]:
    """The section of the document."""
    lines, reasons = [], []
    for setting in SETTINGS:
        found = choices(results, setting)
        default = _defaults()[setting]
        default = _UNSET.get(setting) if default is None else default
        for choice in found:
            marked = f"**`{_said(choice.value)}`**" if choice.value == default else f"`{_said(choice.value)}`"
            figures = [str(sample) if sample else "not run" for sample in (choice.retrieval, choice.generation)]
            lines.append([f"`{setting}`", marked, f"`{choice.row}`", *figures])
        reasons.append(f"- `{setting}={_said(default)}`: {_reason(found, default)}")
    head = ["setting", "value", "row", "retrieval", "generation"]
    return [
        "## The defaults",
        "",
        "What `SugarTrainingArguments` takes unless told otherwise is bold. Retrieval is the mean of the ablation's "
        "columns of retrieval, generation that of its columns of generation. Each row changes one thing of `mse`, "
        "whose own `alpha` is meant.",
        "",
        *markdown(head, lines),
        *reasons,
        "",
    ]


def _defaults() -> dict[str, Any]:
    """The defaults; of `alpha` that of the objective of `OURS`."""
    found = {field.name: field.default for field in fields(SugarTrainingArguments)}
    return found | {"alpha": usual_alpha(StructureLossConfig(objective=OURS))}


def _said(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _reason(found: list[Choice], default: Any) -> str:
    """How the default stands among the values, in words that follow from the figures."""
    ours = next((choice for choice in found if choice.value == default), None)
    if ours is None or ours.retrieval is None:
        return "no row that was run has it."
    measured = [choice for choice in found if choice.retrieval is not None]
    others = [choice for choice in measured if choice is not ours]
    if not others:
        return "no other value was run."
    best = max(measured, key=lambda choice: choice.retrieval.mean if choice.retrieval else 0.0)
    text = "the best retrieval" if best is ours else f"`{_said(best.value)}` has the best retrieval"
    gaps = {choice.value: _gap(ours, choice) for choice in others}
    worse = _named(value for value, gap in gaps.items() if gap.low > 0)
    better = _named(value for value, gap in gaps.items() if gap.high < 0)
    single = _named(value for value, gap in gaps.items() if gap.error is None)
    unsure = _named(value for value, gap in gaps.items() if gap.error is not None and gap.low <= 0 <= gap.high)
    parts = [f"{told} {_is(told)} {word}" for told, word in ((worse, "worse"), (better, "better")) if told]
    parts += [f"{unsure} cannot be told from it"] if unsure else []
    parts += [f"{single} {'have' if ' and ' in single else 'has'} one seed"] if single else []
    return f"{text}; {'; '.join(parts)}."


def _named(values: Iterable[Any]) -> str:
    return " and ".join(f"`{_said(value)}`" for value in values)


def _is(told: str) -> str:
    return "are" if " and " in told else "is"


def _gap(ours: Choice, other: Choice) -> Estimate:
    """How much better the default retrieves, over the seeds that both have; see `over_seeds`."""
    first, second = (choice.retrieval.values if choice.retrieval else {} for choice in (ours, other))
    return over_seeds(first[seed] - second[seed] for seed in sorted(first.keys() & second.keys()))
