"""How many items and seeds tell the smallest differences worth telling: `python -m sugar_lab.design`.

A difference between two rows varies by what the seed brings, by what the item brings, and by the rest. The three come
from outcomes where the rows have any, else from the survey's figures of single seeds, of these or of similar rows. An
item is then taken to be as uncertain as two answers that have nothing in common. Studies are drawn from the three and
judged as `intervals` does. The share of them that tells the difference is the power.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from sugar_hf._files import atomic_write

from .aggregate import KEPT
from .claims import CLAIMS, QUESTIONS, Question
from .evidence import OUTCOMES, STUDY, WINNER
from .intervals import Outcomes, between
from .outcomes import read_outcomes
from .tables import markdown
from .twins import all_twins

FOLDER = Path("docs/lab")
OUT = "design.md"
POWER, DRAWS = 0.8, 4000
#: Holm's first step asks this of the smallest p-value of as many claims.
ALPHA = 0.05 / len(CLAIMS)
SEEDS = (3, 5, 8)
ITEMS = (100, 200, 400, 1000, 2000, 4000, 10000)
#: Rows of the survey whose spread stands for that of rows that it lacks.
STAND_INS: Mapping[str, str] = {WINNER: "kl"}


@dataclass(frozen=True)
class Spread:
    """What a difference varies by, in the unit of its figure.

    Args:
        seed: standard deviation over seeds.
        item: over items; of several tasks the root of the sum of squares.
        rest: of what is left.
        source: where it comes from.
    """

    seed: float
    item: float
    rest: float
    source: str


def power(spread: Spread, difference: float, seeds: int, items: int, alpha: float = ALPHA) -> float:
    """Share of studies that tell a difference, by simulation; the same each time.

    Args:
        spread: what it varies by.
        difference: the true one.
        seeds: how many, at least 2.
        items: how many of each task, at least 2.
        alpha: level of a two-sided test.

    >>> power(Spread(0.0, 30.0, 30.0, ""), 0.0, 3, 1000, alpha=0.05) < 0.07
    True
    """
    rng = np.random.default_rng(0)
    cells, free = seeds * items, (seeds - 1) * (items - 1)
    by_seed = spread.seed**2 / seeds + spread.rest**2 / cells
    by_item = spread.item**2 / items + spread.rest**2 / cells
    rest = spread.rest**2 / cells
    # in a balanced study of normal numbers, mean and mean squares are independent
    mean = difference + rng.normal(0, np.sqrt(by_seed + by_item - rest), DRAWS)
    drawn = [
        variance * rng.chisquare(freedom, DRAWS) / freedom
        for variance, freedom in ((by_seed, seeds - 1), (by_item, items - 1), (rest, free))
    ]
    total = drawn[1] + np.maximum(drawn[0] - drawn[2], 0)
    spreads = drawn[0] ** 2 / (seeds - 1) + drawn[1] ** 2 / (items - 1) + drawn[2] ** 2 / free
    freedom = np.maximum(total**2 / np.maximum(spreads, 1e-300), 1)
    reach = student.ppf(1 - alpha / 2, freedom) * np.sqrt(total)
    return float((np.abs(mean) > reach).mean())


def least_items(spread: Spread, difference: float, seeds: int) -> int | None:
    """The smallest of `ITEMS` that tells a difference with `POWER`; `None` if no number of items does."""
    return next((items for items in ITEMS if power(spread, difference, seeds, items) >= POWER), None)


def spread_of(parts: Sequence[np.ndarray]) -> Spread | None:
    """What a difference varies by, from its values by seed and item (S, I) of one or more tasks.

    Returns:
        `None` with one seed.
    """
    seeds = len(parts[0])
    if seeds < 2:
        return None
    item, rest, shared = 0.0, 0.0, 0.0
    for part in parts:
        left = part - part.mean(1, keepdims=True) - part.mean(0) + part.mean()
        own = float((left**2).sum()) / ((seeds - 1) * (part.shape[1] - 1))
        rest += own
        item += max(float(part.mean(0).var(ddof=1)) - own / seeds, 0.0)
        shared += own / part.shape[1]
    total = sum(part.mean(1) for part in parts)
    seed = max(float(np.var(total, ddof=1)) - shared, 0.0)
    return Spread(seed**0.5, item**0.5, rest**0.5, f"outcomes, {seeds} seeds")


def survey_spread(lines: Sequence[Mapping[str, Any]], question: Question) -> Spread | None:
    """What a difference varies by, from the figures of single seeds; `None` if a row lacks one."""
    twins = all_twins()
    row, rival = (STAND_INS.get(name, name) for name in (question.row, question.rival))
    values: dict[str, dict[int, float]] = {row: {}, rival: {}}
    variance = shared = 0.0
    for task, figure in question.places:
        name, _, rest = task.partition(" ")
        if name not in twins:
            return None
        twin = twins[name]
        wanted = f"{rest} recall@{figure[2:]}" if figure.startswith("R@") else rest or twin.primary_metric
        for each in (row, rival):
            found = {
                line["seed"]: (line["figures"][wanted], line["n"])
                for line in lines
                if line["twin"] == name and line["row"] == each and wanted in line["figures"]
            }
            if not found:
                return None
            if set(found) == {0}:  # no training changes it
                found = dict.fromkeys(range(3), found[0])
            for seed, (value, _) in found.items():
                values[each][seed] = values[each].get(seed, 0.0) + value / len(question.places)
            share = float(np.mean([value for value, _ in found.values()])) / 100
            one = 100**2 * share * (1 - share) / len(question.places) ** 2
            variance += one
            shared += one / next(iter(found.values()))[1]
    gaps = [values[row][seed] - question.factor * values[rival][seed] for seed in values[row] if seed in values[rival]]
    if len(gaps) < 2:
        return None
    seed = max(float(np.var(gaps, ddof=1)) - shared, 0.0)
    return Spread(seed**0.5, 0.0, variance**0.5, f"survey, `{row}` and `{rival}`, {len(gaps)} seeds")


def design_document(lines: Sequence[Mapping[str, Any]], outcomes: Outcomes | None) -> str:
    """The page: for each question the smallest difference worth telling, and what tells it."""
    rows, known = [], 0
    for question in QUESTIONS:
        if question.study != STUDY or question.is_aim:
            continue
        parts = outcomes.parts(between(question.row, question.rival, question.places)) if outcomes else ([], False)
        spread = spread_of(parts[0]) if parts[0] else None
        spread = spread or survey_spread(lines, question)
        text = f"{question.claim}. {question.text}: `{question.row}` against `{question.rival}`"
        if spread is None:
            rows.append([text, f"{question.worth:g}", "not known", *["-"] * (len(SEEDS) + 2)])
            continue
        known += 1
        needed = [least_items(spread, question.worth, seeds) for seeds in SEEDS]
        told = f"{spread.seed:.2f} / {spread.item:.1f} / {spread.rest:.1f}"
        taken = "-"
        if parts[0] and len(parts[0][0]) > 1:
            seeds, items = len(parts[0][0]), min(part.shape[1] for part in parts[0])
            taken = f"{seeds} x {items}: {100 * power(spread, question.worth, seeds, items):.0f} %"
        cells = [str(number) if number else f"> {ITEMS[-1]}" for number in needed]
        rows.append([text, f"{question.worth:g}", told, *cells, taken, spread.source])
    head = ["claim", "worth telling", "varies by seed / item / rest"]
    head += [f"items, {seeds} seeds" for seeds in SEEDS] + ["taken: seeds x items, power", "spread from"]
    lines_ = [
        "# Design of the lab's comparisons",
        "",
        "How many items of each task tell the smallest difference worth telling in four of five studies, with "
        f"{', '.join(map(str, SEEDS[:-1]))} and {SEEDS[-1]} seeds. The level is {ALPHA:.4g}, which Holm's correction "
        f"asks of the first of {len(CLAIMS)} claims. Differences are in points of percent, losses in nats for each "
        "token. `python -m sugar_lab.design` writes this page.",
        "",
        *markdown(head, rows, numbers=False),
        f"`> {ITEMS[-1]}`: more items than that, if any number; more seeds tell it sooner.",
    ]
    return "\n".join(lines_) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page from the command line, and print it."""
    parser = argparse.ArgumentParser(prog="python -m sugar_lab.design", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="where measurements and outcomes are")
    parser.add_argument("--before", action="store_true", help="look at the survey alone, as before the run")
    chosen = parser.parse_args(arguments)
    measured, outcomes = chosen.folder / KEPT, chosen.folder / OUTCOMES
    lines = (
        [json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()] if measured.is_file() else []
    )
    found = Outcomes(read_outcomes(outcomes)) if outcomes.is_file() and not chosen.before else None
    page = design_document(lines, found)
    atomic_write(chosen.folder / OUT, page)
    print(page)


if __name__ == "__main__":
    main()
