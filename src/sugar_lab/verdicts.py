"""What the outcomes say of the paper's claims.

A claim of a difference is confirmed if the difference is above 0, and refuted if it is below the smallest one worth
telling; a claim that something costs nothing is judged by what is allowed to be lost. Both take a p-value below 0.05
after Holm's correction over all questions that could be asked. All else cannot be told. A claim of several questions
is refuted by one that is, and confirmed if all are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .claims import CLAIMS, OF_ONE_MODEL, QUESTIONS, UNTRAINED_ROWS, Question
from .intervals import Estimate, Outcomes, Term, between, holm
from .measurements import Survey
from .outcomes import read_outcomes

CONFIRMED, REFUTED, OPEN = "confirmed", "refuted", "cannot be told here"
LEVEL = 0.05
Study = Outcomes | Survey


@dataclass(frozen=True)
class Finding:
    """What outcomes say of a question.

    Args:
        question: the question.
        outcome: `confirmed`, `refuted` or `cannot be told here`.
        why: how the outcome follows.
        effect: the difference, positive where the claim holds; `None` if it was not measured.
        p: after Holm's correction.
    """

    question: Question
    outcome: str
    why: str
    effect: Estimate | None = None
    p: float = 1.0

    @property
    def figures(self) -> str:
        """The difference with its interval, in words."""
        asked = self.question
        rival = f"{asked.factor:g} times `{asked.rival}`" if asked.factor != 1 else f"`{asked.rival}`"
        said = f"{asked.text}: `{asked.row}` against {rival}"
        if self.effect is None:
            return f"{said}: not measured."
        found, digits = self.effect, 3 if asked.unit else 1
        numbers = f"{found.value:+.{digits}f}{asked.unit}"
        if found.error is not None:
            numbers += f" [{found.low:+.{digits}f}, {found.high:+.{digits}f}], p {_p(self.p)}"
        return f"{said}: {numbers} ({_count(found.seeds, 'seed')}, {_count(found.items, 'item')})."


@dataclass(frozen=True)
class Verdict:
    """What the outcomes say of a claim.

    Args:
        claim: the claim.
        outcome: as of a finding.
        why: how it follows.
        findings: of the claim's questions, aims last.
    """

    claim: str
    outcome: str
    why: str
    findings: tuple[Finding, ...] = ()


def read_studies(paths: Sequence[Path]) -> dict[str, Outcomes]:
    """Read outcomes, by study; empty without files.

    Args:
        paths: files of outcomes.
    """
    if not paths:
        return {}
    table = read_outcomes(paths)
    return {name: study_of(table, name) for name in sorted(pc.unique(table["study"]).to_pylist())}


def study_of(table: pa.Table, name: str) -> Outcomes:
    """Return the outcomes of a study.

    Rows of `UNTRAINED_ROWS`, and all of a study `OF_ONE_MODEL`, count as such that no training changes.
    """
    rows = pc.unique(table.filter(pc.equal(table["study"], name))["row"]).to_pylist()
    return Outcomes(table, name, rows if name in OF_ONE_MODEL else UNTRAINED_ROWS)


def all_verdicts(
    studies: Mapping[str, Study], questions: Sequence[Question] = QUESTIONS, claims: Sequence[str] = CLAIMS
) -> list[Verdict]:
    """The claims in order.

    Args:
        studies: outcomes by study.
        questions: what is asked of them.
        claims: the claims, which the questions number from 1.
    """
    effects = [effect_of(studies, question) for question in questions]
    known = [place for place, effect in enumerate(effects) if effect is not None and effect.error is not None]
    adjusted = dict(zip(known, holm([_two_sided(effects[i], questions[i]) for i in known]), strict=True))
    findings = [
        judge(question, effect, adjusted.get(place, 1.0))
        for place, (question, effect) in enumerate(zip(questions, effects, strict=True))
    ]
    return [_verdict(number, claim, findings) for number, claim in enumerate(claims, start=1)]


def effect_of(studies: Mapping[str, Study], question: Question) -> Estimate | None:
    """The difference that a question asks for, turned so that it is positive where the claim holds."""
    if question.study not in studies:
        return None
    terms = between(question.row, question.rival, question.places, question.factor)
    if question.without:
        ours, theirs = question.without
        terms = [*terms, *between(theirs, ours, question.places)]
    sign = -1 if question.less else 1
    return studies[question.study].estimate(
        [Term(term.row, term.task, term.figure, sign * term.weight) for term in terms]
    )


def judge(question: Question, effect: Estimate | None, p: float) -> Finding:
    """The outcome of a question, from its difference and its p-value after correction."""
    if effect is None:
        return Finding(question, OPEN, "it was not measured")
    if effect.error is None:
        return Finding(question, OPEN, "a row has one seed", effect)
    low, high = _bars(question)
    if p < LEVEL:
        if effect.p_above(low) <= effect.p_below(high):
            return Finding(question, CONFIRMED, f"it lies above {low:g}", effect, p)
        why = "it lies below 0" if effect.high < 0 <= high else f"it lies below {high:g}"
        worth = ", the smallest difference worth telling" if effect.high >= 0 and high > 0 else ""
        return Finding(question, REFUTED, why + worth, effect, p)
    if effect.low <= low and effect.high >= high:
        bars = f"{low:g}" if low == high else f"both {low:g} and {high:g}, the smallest difference worth telling"
        return Finding(question, OPEN, f"its interval holds {bars}", effect, p)
    return Finding(question, OPEN, "its p-value is too high among so many questions", effect, p)


def _bars(question: Question) -> tuple[float, float]:
    """What the difference has to be above to confirm, and below to refute."""
    if question.allowed is not None:
        return -question.allowed, -question.allowed
    return 0.0, question.worth


def _two_sided(effect: Estimate | None, question: Question) -> float:
    if effect is None:
        return 1.0
    low, high = _bars(question)
    return min(1.0, 2 * min(effect.p_above(low), effect.p_below(high)))


def _verdict(number: int, claim: str, findings: Sequence[Finding]) -> Verdict:
    ours = [finding for finding in findings if finding.question.claim == number]
    counted = [finding for finding in ours if not finding.question.is_aim]
    parts = tuple(sorted(ours, key=lambda finding: finding.question.is_aim))
    if not counted:
        return Verdict(claim, OPEN, "Because nothing was asked.", parts)
    outcomes = [finding.outcome for finding in counted]
    outcome = next((kind for kind in (REFUTED, OPEN) if kind in outcomes), CONFIRMED)
    if len(counted) == 1:
        return Verdict(claim, outcome, f"Because {counted[0].why}.", parts)
    kinds = [kind for kind in (CONFIRMED, REFUTED, OPEN) if kind in outcomes]
    said = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in kinds)
    reasons = dict.fromkeys(finding.why for finding in counted if finding.outcome == outcome)
    return Verdict(claim, outcome, f"Of {len(counted)} questions {said}. Because {'; '.join(reasons)}.", parts)


def verdict_section(verdicts: Sequence[Verdict]) -> list[str]:
    """The verdicts as Markdown, without a heading."""
    lines = ["| claim | verdict |", "|---|---|"]
    lines += [f"| {place}. {each.claim} | **{each.outcome}** |" for place, each in enumerate(verdicts, start=1)]
    lines.append("")
    for place, each in enumerate(verdicts, start=1):
        lines.append(f"{place}. {each.claim} **{each.outcome}**. {each.why}")
        for finding in each.findings:
            aim = "Beside it, not counted: " if finding.question.is_aim else ""
            lines.append(f"    - {aim}{finding.figures} **{finding.outcome}**: {finding.why}.")
    return [*lines, ""]


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
