"""The rows of the lab's tables: how each model is trained, and what it is measured on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sugar_hf.evaluation.benchmarks.paper_tables import TABLES

from .twins import Twin

CLIP = "mini-clip"
BASE = "base"
#: How the SHA-256 of a mini VLM begins that no probe has asked for what a sequence is about (no part `gist`).
NO_GIST = "387e35b51c2bde07"
#: What all rows start from; the paper gives neither alpha nor the size of a batch. What is named here does not follow
#: the defaults of `SugarTrainingArguments`.
RECIPE: Mapping[str, Any] = {
    "alpha": 10.0,
    "learning_rate": 3e-3,
    "objective": "mse",
    "temperature": 0.07,
    "text_pooling": "last",
}
#: What `sugar` is trained with: the objective that won in `evidence.py`, at the alpha that keeps most of the answers.
#: They are the defaults of `SugarTrainingArguments`, by which fresh heads begin whitened besides.
SUGAR: Mapping[str, Any] = {"objective": "kl", "alpha": 0.45, "temperature": 0.15}
WHITENED: Mapping[str, Any] = {"head_whitening_samples": 512}
#: The row with all defaults, which the shipped mini Sugar is of.
DEFAULT = "sugar-whitened"
#: What gives labels by another kernel than `calibrated`. Their bandwidths do not mean the same; 0.7 is that of
#: `StructureLossConfig.paper`.
KERNELS: Mapping[str, Mapping[str, Any]] = {
    "aligned": {"label_kernel": "aligned"},
    "mean": {"label_kernel": "mean"},
    "gak": {"label_kernel": "gak", "delta": 0.7},
}
#: Places of the paper's ablation, as twins name them.
_ABLATION = frozenset(TABLES["table4b"].aliases.values())


@dataclass(frozen=True)
class Row:
    """A row of the tables.

    Args:
        name: What it is called, on the command line and in results; `table_layout.ROWS` tells what it is.
        settings: Its `SugarTrainingArguments`, where they are not those of `RECIPE`.
        data: What it is trained on: `all`, or the `generative` or the `discriminative` half of it alone.
        seeds: How many of the budget's seeds it has, from the first on; those that a claim rests on have several.
        learns_text: Whether the language-model loss is part of its loss.
        measured: On `all` twins, on those of the paper's `ablation`, or (`labels`) on these and those that the paper
            lacks, which are about what labels know.
        lora: Whether low-rank adapters are trained, as in the paper, in place of the language model itself.
        head_alone: Whether the retrieval head alone is trained.
        base: How the SHA-256 of the weights that it starts from begins; those of the shipped mini VLM if empty.
        is_trained: Whether the lab trains it; what it does not has one seed, 0.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: str = "all"
    seeds: int = 1
    learns_text: bool = True
    measured: str = "ablation"
    is_trained: bool = True
    lora: bool = False
    head_alone: bool = False
    base: str = ""

    @property
    def retrieves(self) -> bool:
        """Whether its embeddings are measured: it is fixed, or has been trained with a structure loss."""
        return not self.is_trained or bool({**RECIPE, **self.settings}["alpha"])

    @property
    def generates(self) -> bool:
        """Whether it answers questions. So does one whose language-model loss was left out, however badly."""
        return self.name != CLIP

    def is_measured_on(self, twin: Twin) -> bool:
        """Whether the row's tables have the twin's figures."""
        if self.measured == "all" or (self.measured == "labels" and not twin.paper):
            return True
        return not _ABLATION.isdisjoint(twin.paper.values())

    def facts(self) -> dict[str, Any]:
        """What its training depends on, as JSON values."""
        found = asdict(self)
        return {
            "settings": {**RECIPE, **self.settings},
            **{key: found[key] for key in ("data", "learns_text", "lora")},
            **({"head_alone": True} if self.head_alone else {}),
        }


_ROWS = (
    Row(BASE, measured="all", is_trained=False),
    Row(CLIP, measured="all", is_trained=False),
    Row("lm-only", {"alpha": 0.0}, seeds=3, measured="all"),
    Row("disc-only", data="discriminative", seeds=3, learns_text=False, measured="all"),
    Row(DEFAULT, {**SUGAR, **WHITENED}, seeds=3, measured="all"),
    Row("sugar", SUGAR, seeds=3, measured="all"),
    Row("mse", seeds=3, measured="all"),
    Row("infonce", {"objective": "infonce", "alpha": 0.3}, seeds=3, measured="all"),
    Row("kl", {"objective": "kl", "alpha": 0.3}, seeds=3),
    Row("no-data-d", data="generative", seeds=3),
    Row("no-data-g", data="discriminative", seeds=3),
    Row("mean", KERNELS["mean"], seeds=3, measured="labels"),
    Row("clip-only", {"teachers": "clip"}, seeds=3),
    Row("last-token", {"image_pooling": "last"}, seeds=3),
    Row("gak", KERNELS["gak"], seeds=3, measured="labels"),
    Row("aligned", KERNELS["aligned"], seeds=3, measured="labels"),
    Row("same-sample-one", {"same_sample": "one"}),
    Row("centring", {"centring": True}, measured="labels"),
    Row("alpha-1", {"alpha": 1.0}),
    Row("alpha-100", {"alpha": 100.0}),
    Row("delta-0.1", {"delta": 0.1}),
    Row("delta-1", {"delta": 1.0}),
    Row("ends-1", {"positions_per_sample": 1}),
    Row("ends-all", {"positions_per_sample": 0}),
    Row("batch-24", {"per_device_train_batch_size": 24}),
    Row("batch-96", {"per_device_train_batch_size": 96}),
    Row("lora", lora=True),
)
ROWS: dict[str, Row] = {row.name: row for row in _ROWS}
