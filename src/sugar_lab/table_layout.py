"""Which rows the lab's tables have, and what they are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

#: What each row is. A name with `*` stands for all that begin so; `|` parts names of the same thing.
ROWS: Mapping[str, str] = {
    "base": "the vision-language model that all rows start from, as it is; its embeddings are those of a fresh head",
    "lm-only|lm-only, no retrieval": "trained with the LM loss alone",
    "disc-only": "trained with the structure loss alone, on documents",
    "sugar-whitened": "the default: as `sugar`, and its head begins whitened by 512 samples",
    "sugar": "LM loss and soft targets at a temperature of 0.15, the loss of the default, from a random head",
    "mse": "LM loss and the squared error from `calibrated` labels; images by the mean of their tokens",
    "infonce": "LM loss and InfoNCE within the batch, as FROMAGe (g+d) has it",
    "kl": "LM loss and the Kullback-Leibler divergence of similarities from labels",
    "no-data-d": "without the interleaved (discriminative) data",
    "no-data-g": "without the instruction (generative) data",
    "gak": "labels by the paper's normalised alignment kernel",
    "aligned": "labels by the mean cosine along the soft alignment",
    "mean": "labels by the mean cosine of all pairs of slices: the paper's w/o GAK",
    "clip-only": "CLIP's distances for every pair: the paper's w/o triple kernel",
    "last-token": "an image's last token in place of the mean: the paper's w/o average pooling",
    "same-sample-one": "label 1 for any two prefixes of one sample, as in the paper",
    "centring": "labels with the mean cosine of unrelated pairs taken out, by block",
    "alpha-*": "another weight of the structure loss",
    "delta-*": "another bandwidth of the alignment kernel",
    "ends-*": "another number of slice ends (K) drawn from a sample",
    "batch-*": "another batch size",
    "lora": "low-rank adapters on the queries and values, as in the paper; all others train the whole language model",
    "mini-clip": "the small CLIP that is also a teacher, fixed",
    "lm-only + mini-clip*": "`lm-only` answers, `mini-clip` retrieves (by image, text, both or their average)",
    "infonce, no retrieval": "`infonce` answers from what it knows",
    "infonce + own*": "`infonce` answers and retrieves",
    "sugar-whitened, no retrieval": "`sugar-whitened` answers from what it knows",
    "sugar-whitened + own*": "`sugar-whitened` answers and retrieves",
    "sugar, no retrieval": "`sugar` answers from what it knows",
    "sugar + own*": "`sugar` answers and retrieves",
    "mse, no retrieval": "`mse` answers from what it knows",
    "mse + own*": "`mse` answers and retrieves",
}
#: The table of recall by the number of candidates; it is shown only if it was measured.
POOL = "pool"
#: Columns in which less is better.
LOWER_IS_BETTER = ("depth", "loss")

_LEARNERS = ("base", "lm-only", "disc-only", "infonce", "mse", "sugar", "sugar-whitened")
_RETRIEVERS = ("mini-clip", "base", "disc-only", "infonce", "mse", "sugar", "sugar-whitened")
SINGLE = "lm-only, no retrieval|lm-only"


@dataclass(frozen=True)
class Layout:
    """How one of our tables looks.

    Args:
        rows: the rows it should have, in order; patterns as in `ROWS`.
        title: heading, for tables that the paper lacks.
        note: what it shows.
        places: columns taken from other tables, as `table/column`.
        elsewhere: rows that another table shows with the same columns.
    """

    rows: tuple[str, ...]
    title: str = ""
    note: str = ""
    places: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()


GENERATION = ("table4b/SQA-I", "table4b/POPE", "table4b/KGQA")
RETRIEVAL = ("table4b/COCO", "table4b/VIST", "table4b/Winoground")

OWN: Mapping[str, Layout] = {
    "objectives": Layout(
        ("lm-only", "disc-only", "infonce", "kl", "mse", "sugar", "sugar-whitened"),
        "Objectives",
        "One data set, one number of steps, other losses.",
        GENERATION + RETRIEVAL,
    ),
    "kernels": Layout(
        ("mse", "aligned", "gak", "mean", "clip-only", "centring", "same-sample-one"),
        "Label kernels",
        "One objective, other labels.",
        GENERATION + RETRIEVAL,
    ),
    "order": Layout(
        (
            "mini-clip",
            "base",
            "disc-only",
            "infonce",
            "mse",
            "sugar",
            "sugar-whitened",
            "aligned",
            "gak",
            "mean",
            "centring",
        ),
        "Order",
        "Sequences that differ in nothing but their order.",
    ),
    POOL: Layout(
        ("mini-clip", "base", "infonce", "mse", "sugar", "sugar-whitened"),
        "Size of the pool",
        "Recall@1 by the number of candidates.",
    ),
    "sweeps": Layout(
        ("mse", "alpha-*", "delta-*", "ends-*", "batch-*", "lora"),
        "Sweeps",
        "The paper gives neither alpha nor delta nor K nor the size of a batch.",
        GENERATION + RETRIEVAL,
    ),
}

_ABLATION = ("mse", "no-data-d", "no-data-g", "mean", "clip-only", "last-token", "lm-only", "disc-only")
_BELOW = (*_ABLATION, *(row for layout in OWN.values() if layout.places for row in layout.rows))
_KNOWING = (
    SINGLE,
    "lm-only + mini-clip*",
    "infonce + own*",
    "mse, no retrieval",
    "mse + own*",
    "sugar, no retrieval",
    "sugar + own*",
    "sugar-whitened, no retrieval",
    "sugar-whitened + own*",
)

PAPER: Mapping[str, Layout] = {
    "table1": Layout(_LEARNERS, elsewhere=_BELOW),
    "table2": Layout(_LEARNERS, elsewhere=_BELOW),
    "table3a": Layout(_RETRIEVERS, elsewhere=_BELOW),
    "table3b": Layout(_RETRIEVERS, elsewhere=_BELOW),
    "table3c": Layout(_RETRIEVERS, elsewhere=_BELOW),
    "table4a": Layout(_KNOWING),
    "table4b": Layout(_ABLATION, elsewhere=_BELOW),
    "table5": Layout(_LEARNERS, elsewhere=_BELOW),
    "table6": Layout(("mini-clip", *_LEARNERS), elsewhere=_BELOW),
    "table7": Layout(_KNOWING),
}


def matches(pattern: str, row: str) -> bool:
    """Whether a row is one of those that a name of `ROWS`, or of a layout, stands for.

    >>> matches("alpha-*", "alpha-3"), matches("lm-only, no retrieval|lm-only", "lm-only"), matches("sugar", "sugar 2")
    (True, True, False)
    """
    return any(fnmatchcase(row, part) for part in pattern.split("|"))


def meaning(row: str) -> str:
    """What a row is; empty for one that is not known here."""
    return next((text for pattern, text in ROWS.items() if matches(pattern, row)), "")


def in_order(patterns: Iterable[str], rows: Iterable[str]) -> list[str]:
    """Rows in the order of the patterns, those of one pattern by number, then all others as they come."""
    rows, patterns = list(rows), list(patterns)

    def key(row: str) -> tuple[int, float, str]:
        place = next((i for i, pattern in enumerate(patterns) if matches(pattern, row)), len(patterns))
        return (place, _number(row), row) if place < len(patterns) else (place, rows.index(row), "")

    return sorted(rows, key=key)


def missing(patterns: Iterable[str], rows: Iterable[str]) -> list[str]:
    """The patterns that no row matches; of several names of one thing the first."""
    rows = list(rows)
    return [pattern.split("|")[0] for pattern in patterns if not any(matches(pattern, row) for row in rows)]


def _number(row: str) -> float:
    try:
        return float(row.rpartition("-")[2])
    except ValueError:
        return 0.0
