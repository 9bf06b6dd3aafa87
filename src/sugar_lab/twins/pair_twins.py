"""Twins of Winoground (table 3c) and of MMVP-VLM (table 6): two texts and two pictures."""

from collections.abc import Sequence

from sugar_hf.evaluation.benchmarks.tasks.image_pairs import TASKS as TASKS_OF_PAPER
from sugar_hf.evaluation.benchmarks.tasks.image_pairs import mmvp_examples, score_mmvp
from sugar_hf.evaluation.examples import Lazy
from sugar_hf.evaluation.generation_evaluator import GenerationEvaluator
from sugar_hf.evaluation.metrics.pair_metrics import pair_accuracy, winoground_scores
from sugar_hf.evaluation.ranking_evaluator import Pair, PairsEvaluator
from sugar_hf.picturebook import render

from ..budget import Budget
from ..exercises.contrasts import DIFFERENCES, REORDERINGS, Contrast, draw_contrast, draw_contrasts, draw_reordering
from .twin import Twin

SPLIT = "test"
LEAST = 4  # pairs of each kind of difference
SEED = 0


def build_winoground(budget: Budget) -> PairsEvaluator:
    """As many pairs of each reordering; if their number does not divide, the first ones have one more."""
    sizes = [(budget.pairs + i) // len(REORDERINGS) for i in reversed(range(len(REORDERINGS)))]
    drawn = [
        contrast
        for kind, size in zip(REORDERINGS, sizes, strict=True)
        for contrast in draw_contrasts(draw_reordering, kind, SPLIT, size)
    ]
    return PairsEvaluator(
        "winoground",
        _pairs(drawn, "{}."),
        lambda scores, groups: winoground_scores(scores),
        primary_metric="image",
        settings={"split": SPLIT},
    )


def build_mmvp(budget: Budget) -> GenerationEvaluator:
    """Each picture of a pair, with both statements to choose from."""
    return GenerationEvaluator(
        "mmvp",
        mmvp_examples(_pairs(_differences(budget), "{}"), SEED),
        score_mmvp,
        primary_metric="mean accuracy",
        max_new_tokens=8,
        seed=SEED,
        settings={"split": SPLIT},
    )


def build_mmvp_embed(budget: Budget) -> PairsEvaluator:
    """The same pairs by similarity. MMVP's `a photo of ...` is here the picturebook's `a picture of ...`."""
    return PairsEvaluator(
        "mmvp-embed",
        _pairs(_differences(budget), "a picture of {}."),
        pair_accuracy,
        primary_metric="accuracy",
        settings={"split": SPLIT},
    )


def _differences(budget: Budget) -> list[Contrast]:
    size = max(LEAST, budget.pairs // len(DIFFERENCES))
    return [contrast for kind in DIFFERENCES for contrast in draw_contrasts(draw_contrast, kind, SPLIT, size)]


def _pairs(drawn: Sequence[Contrast], form: str) -> Lazy[Pair]:
    def build(i: int) -> Pair:
        (one, two), (first, second) = drawn[i].scenes, drawn[i].texts
        texts = form.format(first), form.format(second)
        return Pair(f"{drawn[i].kind} {i}", texts, (render(one), render(two)), drawn[i].kind)

    return Lazy(len(drawn), build)


TWINS = {
    twin.name: twin
    for twin in (
        Twin(
            "winoground",
            "Winoground",
            "embed",
            build_winoground,
            "image",
            paper=TASKS_OF_PAPER["winoground"].paper,
            chance={"text": 25.0, "image": 25.0, "group": 100 / 6},
            card="Two things, one small and one large. The texts have the same words: the names of the things, their "
            "sizes or their places are exchanged.",
        ),
        Twin(
            "mmvp",
            "MMVP-VLM",
            "generate",
            build_mmvp,
            "mean accuracy",
            paper=TASKS_OF_PAPER["mmvp"].paper,
            chance={"mean accuracy": 50.0, "accuracy": 50.0, "pair accuracy": 25.0},
            card=f"Two pictures that differ in one respect alone: {', '.join(DIFFERENCES)}. Each is asked with both "
            "statements, in the paper's words.",
        ),
        Twin(
            "mmvp-embed",
            "MMVP-VLM by embeddings",
            "embed",
            build_mmvp_embed,
            "accuracy",
            paper=TASKS_OF_PAPER["mmvp-embed"].paper,
            chance={"accuracy": 25.0},
            card="The pairs of `mmvp`; each statement has to prefer its own picture.",
        ),
    )
}
