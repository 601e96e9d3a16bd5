"""Figures of a server for Prometheus. They are all kept in the HTTP process: the decoder reports its steps to it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from thriftune.inference.serving.asking import Report

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
# The model of a request that names none of those served: what clients write is no label. No adapter has this name.
UNKNOWN = "(unknown)"


class Metrics:
    """Counters, gauges and histograms of one server."""

    def __init__(self, registry: "CollectorRegistry", waiting: Callable[[], int]) -> None:
        """Register them.

        Args:
            registry: Where they are collected.
            waiting: Gives the number of accepted answers that are not finished.
        """
        from prometheus_client import Counter, Gauge, Histogram

        self.registry = registry
        self._requests = Counter(
            "thriftune_requests", "Requests by model and HTTP status.", ["model", "status"], registry=registry
        )
        self._read = Counter("thriftune_prompt_tokens", "Tokens of questions.", ["model"], registry=registry)
        self._written = Counter("thriftune_completion_tokens", "Tokens of answers.", ["model"], registry=registry)
        self._seconds = Histogram(
            "thriftune_request_seconds", "Seconds of a request.", ["model"], buckets=_SECONDS, registry=registry
        )
        self._first = Histogram(
            "thriftune_first_piece_seconds", "Seconds until an answer's first piece.", ["model"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._rows = Histogram(
            "thriftune_batch_rows", "Answers that a decoding step worked on.", buckets=_ROWS, registry=registry
        )
        self._queue = Gauge("thriftune_queue", "Accepted answers that wait for a place in a batch.", registry=registry)
        accepted = Gauge("thriftune_accepted", "Accepted answers that are not finished.", registry=registry)
        accepted.set_function(waiting)

    def finished(self, model: str, status: int, seconds: float, tokens: tuple[int, int]) -> None:
        """Count a request.

        Args:
            model: A served name, or `UNKNOWN`.
            status: HTTP status; of a stream that broke off, what it would have been.
            seconds: How long it took.
            tokens: Tokens of its question and of its answers.
        """
        self._requests.labels(model, str(status)).inc()
        self._seconds.labels(model).observe(seconds)
        self._read.labels(model).inc(tokens[0])
        self._written.labels(model).inc(tokens[1])

    def first_piece(self, model: str, seconds: float) -> None:
        """Note when an answer began.

        Args:
            model: The served name.
            seconds: Since its request.
        """
        self._first.labels(model).observe(seconds)

    def stepped(self, report: Report) -> None:
        """Note a step of the decoder.

        Args:
            report: What it reported.
        """
        self._queue.set(report.waiting)
        if report.rows:
            self._rows.observe(report.rows)

    def page(self) -> bytes:
        """All of them in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
