"""Counters for Prometheus, at /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The counters of one server."""

    def __init__(self, levels: Callable[[], dict[str, tuple[str, float]]], edits: Callable[[], dict[str, int]]) -> None:
        """levels: by name, what it means and its value now. edits: the number of edits that have each status."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "megedit_requests", "HTTP requests answered", ["method", "route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "megedit_request_seconds", "Time of a request", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.first_token = Histogram(
            "megedit_first_token_seconds", "Time to the first text", buckets=SECONDS, registry=self.registry
        )
        self.answers = Counter(
            "megedit_answers", "Answers, by whether an edit was used", ["edited"], registry=self.registry
        )
        self.tokens = Counter("megedit_tokens", "Tokens read and generated", ["kind"], registry=self.registry)
        self._levels, self._edits = levels, edits
        self.registry.register(self)  # whose `collect` it asks for

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The levels, read when they are asked for."""
        for name, (meaning, value) in self._levels().items():
            yield GaugeMetricFamily(f"megedit_{name}", meaning, value=value)
        family = GaugeMetricFamily("megedit_edits", "Edits of the adapter", labels=["status"])
        for status, count in self._edits().items():
            family.add_metric([status], count)
        yield family

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)
