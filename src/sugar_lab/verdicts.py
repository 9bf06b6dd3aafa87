"""The paper's claims, and what the lab's figures say of them.

A difference counts only if it is larger than twice its standard error, with at least two seeds on both sides (a
checkpoint that no run trains has no seeds and needs none). The variance of a row's seeds is taken to be at least the
median of all rows' variances: two or three of them may agree by chance, as where a figure counts few items. A claim of
several parts is refuted by one part that is; it is confirmed if all parts are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES

from .measurements import Gap, Results, Sample, compare, place_of
from .table_layout import GENERATION, RETRIEVAL, SINGLE, matches

CONFIRMED, REFUTED, NOISE, UNKNOWN = "confirmed", "refuted", "inside the noise", "not measured"
#: Columns of table 1 that are no percentages.
OTHER_SCALES = ("MME-P", "MME-C")
COST = 0.5  # points that joint training may cost
TIMES_INFONCE, TIMES_CLIP = 1.5, 2.0
VIST = "table3b/5c+4i+dagger R@1"
WINOGROUND = "table3c/group"
KNOWLEDGE = ("table4a/VizWiz", "table4a/SQA-I", "table7/FVQA", "table7/WebQA")
LEVELS = ("table7/WebQA",)  # the paper does not ask it without retrieval: there may be no gain to compare


@dataclass(frozen=True)
class Verdict:
    """What the figures say of a claim.

    Args:
        claim: the claim, or a part of one.
        outcome: `confirmed`, `refuted`, `inside the noise` or `not measured`.
        figures: the figures, in words.
        why: how the outcome follows from them.
        parts: those of a claim of several.
    """

    claim: str
    outcome: str
    figures: str
    why: str
    parts: tuple["Verdict", ...] = ()


def all_verdicts(results: Results) -> list[Verdict]:
    """The eight claims in order."""
    return [claim(results) for claim in CLAIMS]


def costs_nothing(results: Results) -> Verdict:
    """Claim 1, over the columns of table 1 in percent that both rows have."""
    claim = "Joint training costs no quality of generation."
    columns = [column for column in TABLES["table1"].columns if column not in OTHER_SCALES]
    places = [place_of("table1", column) for column in columns]
    both = [place for place in places if all(results.find(place, row) for row in ("sugar", "lm-only"))]
    if not both:
        return Verdict(claim, UNKNOWN, "", "`sugar` and `lm-only` have no column of table 1 in common.")
    about = f"mean of {len(both)} of {len(places)} columns of table 1"
    left_out = [column for column, place in zip(columns, places, strict=True) if place not in both]
    found = _above(
        results.average("sugar", both), results.average("lm-only", both), claim, about, margin=COST, reached=True
    )
    why = found.why + f" Allowed: {COST} points. {' and '.join(OTHER_SCALES)}, which are no percentages, are left out."
    return Verdict(claim, found.outcome, found.figures, why + (f" Not run: {', '.join(left_out)}." * bool(left_out)))


def hallucinates_less(results: Results) -> Verdict:
    """Claim 2, by the F1 of the POPE twin."""
    return _better(results, ("table1/POPE",), "sugar", "lm-only", "It lowers hallucination.", "POPE")


def flattens_positions(results: Results) -> Verdict:
    """Claim 3, by the depth of table 5: the mean of both ends minus the mean of the middle."""
    claim = "It flattens the curve of positions."
    columns = TABLES["table5"].columns
    ends = (columns[0], columns[-1])
    weights = {f"table5/{c}": 1 / 2 if c in ends else -1 / (len(columns) - 2) for c in columns}
    places = list(weights)
    ours, theirs = (results.combine(row, weights) for row in ("sugar", "lm-only"))
    level = results.average("sugar", places)
    if ours is None or theirs is None or level is None:
        return Verdict(claim, UNKNOWN, "", "`sugar` or `lm-only` lacks a place of table 5.")
    # an arch is no flatter than a U of the same depth
    ours = replace(ours, values={seed: math.copysign(1, ours.mean) * value for seed, value in ours.values.items()})
    found = _above(theirs, ours, claim, "depth of the curve of table 5")
    if compare(theirs, ours).noise is None:
        return found
    if judge(compare(theirs, _fixed(0.0)))[0] != CONFIRMED:
        return Verdict(claim, NOISE, found.figures, "The curve of `lm-only` has no depth that could be lowered.")
    chance = next((cell.chance for place in places if (cell := results.find(place, "sugar"))), None)
    if chance is not None and judge(compare(level, _fixed(chance)))[0] != CONFIRMED:
        why = f"`sugar` is at chance ({level} against {chance:.1f}), and a curve at chance is flat by itself."
        return Verdict(claim, NOISE, found.figures, why)
    return found


def wins_retrieval(results: Results) -> Verdict:
    """Claim 4, by any difference. By how much the lab was meant to win, twice or so, is told beside it."""
    claim = "It beats LM + InfoNCE and mini CLIP on interleaved and on fine-grained retrieval."
    parts, aims = [], []
    for rival, factor in (("infonce", TIMES_INFONCE), ("mini-clip", TIMES_CLIP)):
        name = "VIST twin, 5c+4i, dagger, R@1:"
        parts.append(_better(results, (VIST,), "sugar", rival, f"{name} more than `{rival}`", "R@1"))
        name = f"Aim, not counted: {name} at least {factor:g} times `{rival}`"
        aims.append(_better(results, (VIST,), "sugar", rival, name, "R@1", factor=factor, reached=True))
        name = f"Winoground twin, group: more than `{rival}`"
        parts.append(_better(results, (WINOGROUND,), "sugar", rival, name, "group"))
    found = _joined(claim, parts)
    return replace(found, parts=(*found.parts, *aims))


def parts_matter(results: Results) -> Verdict:
    """Claim 5, by the mean of the ablation's three columns of retrieval."""
    rows = {"mean": "GAK", "clip-only": "the triple kernel", "last-token": "average pooling"}
    parts = [
        _better(results, RETRIEVAL, "sugar", row, f"{part} matters", "mean of COCO, VIST, Winoground")
        for row, part in rows.items()
    ]
    return _joined("GAK, the triple kernel and average pooling each matter.", parts)


def own_retrieval_helps(results: Results) -> Verdict:
    """Claim 6: what retrieval adds to a model's answers, by the same model and by mini CLIP; of views the best."""
    parts = [part for place in KNOWLEDGE for part in _help_of_retrieval(results, place)]
    return _joined("Retrieval by the same model helps knowledge questions more than a separate retriever.", parts)


def data_help(results: Results) -> Verdict:
    """Claim 7: discriminative data by the ablation's columns of generation, generative data by those of retrieval."""
    parts = [
        _better(results, GENERATION, "sugar", "no-data-d", "data_d helps generation", "mean of SQA-I, POPE, KGQA"),
        _better(results, RETRIEVAL, "sugar", "no-data-g", "data_g helps retrieval", "mean of COCO, VIST, Winoground"),
    ]
    return _joined("Discriminative and generative data help each other.", parts)


def kernels_win(results: Results) -> Verdict:
    """Claim 8: one of the two kernels (`sugar` is the one with calibrated labels) beats both of the others."""
    claim = "Calibrated or aligned labels beat those of gak and mean."
    tries = []
    for row, name in (("sugar", "calibrated"), ("aligned", "aligned")):
        against = [
            _better(results, RETRIEVAL, row, rival, f"{name} beats {rival}", "mean of COCO, VIST, Winoground")
            for rival in ("gak", "mean")
        ]
        tries.append(_joined(f"{name} beats both", against))
    outcomes = [found.outcome for found in tries]
    # one is enough, so that refuting takes both
    outcome = next((kind for kind in (CONFIRMED, UNKNOWN, NOISE) if kind in outcomes), REFUTED)
    parts = tuple(part for found in tries for part in found.parts)
    why = "One of the two is enough: " + "; ".join(f"{found.claim}: {found.outcome}" for found in tries) + "."
    return Verdict(claim, outcome, " ".join(found.figures for found in tries if found.figures), why, parts)


CLAIMS: Sequence[Callable[[Results], Verdict]] = (
    costs_nothing,
    hallucinates_less,
    flattens_positions,
    wins_retrieval,
    parts_matter,
    own_retrieval_helps,
    data_help,
    kernels_win,
)


def judge(gap: Gap, reached: bool = False) -> tuple[str, str]:
    """The outcome of a claim that a gap is above 0, and the reason.

    Args:
        gap: how far the claim's side lies above the bar.
        reached: the claim is also met where the bar is reached exactly and no seed disagrees.
    """
    if gap.noise is None:
        return NOISE, "A side has a single seed, so that its spread is not known."
    if gap.counts or (reached and gap.size == gap.noise == 0):
        above = gap.size >= 0
        return (
            CONFIRMED if above else REFUTED
        ), f"It lies {'above' if above else 'below'} the bar by more than the noise."
    return NOISE, "It lies no further from the bar than the noise reaches, which is twice the standard error."


def _better(
    results: Results,
    places: Sequence[str],
    row: str,
    rival: str,
    claim: str,
    about: str,
    factor: float = 1.0,
    reached: bool = False,
) -> Verdict:
    places = [place_of(*place.split("/", 1)) for place in places]
    first, second = results.average(row, places), results.average(rival, places)
    absent = [f"`{name}`" for name, found in ((row, first), (rival, second)) if found is None]
    if absent:
        why = f"{' and '.join(absent)} {'has' if len(absent) == 1 else 'have'} no {about}."
        return Verdict(claim, UNKNOWN, "", why)
    return _above(first, second, claim, about, factor, reached=reached)


def _above(
    first: Sample | None,
    second: Sample | None,
    claim: str,
    about: str,
    factor: float = 1.0,
    margin: float = 0.0,
    reached: bool = False,
) -> Verdict:
    if first is None or second is None:
        return Verdict(claim, UNKNOWN, "", "The rows share no seed over all columns.")
    gap = compare(first, second, factor, margin)
    outcome, why = judge(gap, reached)
    noise = "unknown" if gap.noise is None else f"{gap.noise:.2f}"
    times = f"{factor:g} x " if factor != 1 else ""
    figures = (
        f"{about}: {_told(first)} against {times}{_told(second)}, gap {gap.size - margin:+.2f}, twice its standard "
        f"error {noise}."
    )
    return Verdict(claim, outcome, figures, why)


def _help_of_retrieval(results: Results, place: str) -> list[Verdict]:
    name = place.replace("table", "table ").replace("/", ", ")
    own, separate = _best(results, place, "sugar + own*"), _best(results, place, "lm-only + mini-clip*")
    ours, theirs = _best(results, place, "sugar, no retrieval|sugar"), _best(results, place, SINGLE)
    if own is None or separate is None:
        return [Verdict(name, UNKNOWN, "", "a row with retrieval was not run.")]
    if ours is None or theirs is None:
        if place in LEVELS:
            return [_above(own, separate, f"{name} (levels)", "score")]
        return [Verdict(name, UNKNOWN, "", "a row without retrieval was not run.")]
    more = _above(_gain(own, ours), _gain(separate, theirs), f"{name}: helps more", "gain by retrieval")
    return [_above(own, ours, f"{name}: helps at all", "score"), more]


def _told(sample: Sample) -> str:
    count = len(sample.values)
    if count > 1:
        return f"`{sample.row}` {sample.mean:.2f} ± {sample.spread:.2f} ({count} seeds)"
    return f"`{sample.row}` {sample.mean:.2f}" + " (1 seed)" * (not sample.fixed)


def _fixed(value: float) -> Sample:
    return Sample("", {0: value}, fixed=True)


def _best(results: Results, place: str, pattern: str) -> Sample | None:
    table = place.split("/")[0]
    cells = [results.find(place, row) for row in results.rows(table) if matches(pattern, row)]
    return max((cell.sample for cell in cells if cell), key=lambda sample: sample.mean, default=None)


def _gain(with_it: Sample, without: Sample) -> Sample | None:
    gains = {seed: value - without.values[seed] for seed, value in with_it.values.items() if seed in without.values}
    return Sample(with_it.row, gains, floor=with_it.floor + without.floor) if gains else None


def _joined(claim: str, parts: Sequence[Verdict]) -> Verdict:
    outcomes = [part.outcome for part in parts]
    outcome = next((kind for kind in (REFUTED, UNKNOWN, NOISE) if kind in outcomes), CONFIRMED)
    figures = " ".join(f"{part.claim}: {part.figures}" for part in parts if part.figures)
    kinds = [kind for kind in (CONFIRMED, REFUTED, NOISE, UNKNOWN) if kind in outcomes]
    counted = f"Of {len(parts)} parts " + ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds)
    return Verdict(claim, outcome, figures, f"{counted}.", tuple(parts))
