"""Figures for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The figures of one server.

    Attributes:
        requests: By route, method and status.
        seconds: From a request to the end of its response, by route.
        in_progress: Requests that have no whole response yet.
        waiting: Inputs, or generations, that wait, by queue.
        batch: Inputs in one batch that is embedded.
        together: Generations that run together.
        tokens: By kind: `embedded`, `prompt`, `generated`.
        refused: What a full queue has turned away, by queue.
        cancelled: Generations whose client has left.
        refreshes: Looks at the index on disk that found a new one, or failed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("sugar_requests", "Requests.", ["route", "method", "status"], **made)
        self.seconds = Histogram("sugar_request_seconds", "Time of a request.", ["route"], buckets=_SECONDS, **made)
        self.in_progress = Gauge("sugar_requests_in_progress", "Requests without a whole response.", **made)
        self.waiting = Gauge("sugar_queue_length", "What waits.", ["queue"], **made)
        self.batch = Histogram("sugar_batch_inputs", "Inputs in a batch that is embedded.", buckets=_COUNTS, **made)
        self.together = Histogram("sugar_generations_together", "Generations in a batch.", buckets=_COUNTS, **made)
        self.tokens = Counter("sugar_tokens", "Tokens.", ["kind"], **made)
        self.refused = Counter("sugar_refused", "Requests that a full queue turned away.", ["queue"], **made)
        self.cancelled = Counter("sugar_generations_cancelled", "Generations whose client left.", **made)
        self.refreshes = Counter("sugar_index_refreshes", "New snapshots of the index.", ["outcome"], **made)

    def text(self) -> bytes:
        """Write all figures as Prometheus reads them."""
        return generate_latest(self.registry)
