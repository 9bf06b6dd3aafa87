"""What a task is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..sources import Source


class Evaluator(Protocol):
    """Holds data and is called on a model."""

    name: str
    primary_metric: str | None

    def __call__(
        self, model: Any, processor: Any = None, *, output: Any = None, batch_size: int = 8
    ) -> dict[str, Any]:
        """Measure a model; see `GenerationEvaluator`."""


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        name: What it is called on the command line.
        title: What it is called in tables.
        kind: What it needs of a model: `generate`, `embed`, or `both`.
        load: Makes the evaluator of a source.
        primary_metric: The figure of the paper's tables; one of those in the evaluator's result.
        hub_id: Its name on the Hub, if it is there.
        split: The split that is used if none is named.
        options: Further options, with what they mean.
        paper: Cells of the paper's tables: from a metric of the result to `table/row name/column`.
        folder: The task whose data it shares; its own if empty.
    """

    name: str
    title: str
    kind: str
    load: Callable[[Source], Evaluator]
    primary_metric: str
    hub_id: str | None = None
    split: str = "test"
    options: Mapping[str, str] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""
