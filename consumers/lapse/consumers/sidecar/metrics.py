"""What does a sidecar count, for Prometheus? Answers by cause; what guard and publisher know is asked when scraped.

No label is anything that a client chooses.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from lapse.consumers.activity import ActivityPublisher
from lapse.consumers.guard import Guard

__all__ = ["Metrics"]

# Most take some tens of microseconds, a new token a millisecond, new keys a fetch.
_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1, 1.0)


class Metrics:
    """One sidecar's numbers, in a registry of their own."""

    def __init__(self, guard: Guard, publisher: ActivityPublisher) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Known(guard, publisher))
        self.passed = Counter("lapse_sidecar_passed", "Requests that may pass", ["session"], registry=self._registry)
        self.refused = Counter("lapse_sidecar_refused", "Requests refused", ["cause"], registry=self._registry)
        self.untold = Counter(
            "lapse_sidecar_touches_without_subject",
            "Touches that could not be published, since nothing said whose the session is",
            registry=self._registry,
        )
        self.seconds = Histogram(
            "lapse_sidecar_check_seconds", "From question to answer", buckets=_BUCKETS_S, registry=self._registry
        )

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Known:
    """What guard and publisher say of themselves."""

    def __init__(self, guard: Guard, publisher: ActivityPublisher) -> None:
        self._guard = guard
        self._publisher = publisher

    def collect(self) -> Iterator[Metric]:
        guard, stats = self._guard, self._publisher.stats
        yield GaugeMetricFamily("lapse_guard_fresh", "Whether the guard is fresh", int(guard.fresh))
        yield GaugeMetricFamily("lapse_guard_stale_seconds", "Age of its knowledge", guard.stale_ms / 1000)
        yield GaugeMetricFamily("lapse_guard_entries", "Denials and cutoffs kept", guard.entries)
        yield CounterMetricFamily(
            "lapse_guard_allowed_while_stale", "Let pass for want of knowledge", guard.allowed_while_stale
        )
        yield CounterMetricFamily("lapse_activity_touches", "Touches noted", stats.touches)
        yield CounterMetricFamily("lapse_activity_records", "Records of activity written", stats.records)
        yield CounterMetricFamily("lapse_activity_dropped", "Activity dropped", stats.dropped + stats.malformed)
        yield GaugeMetricFamily("lapse_activity_waiting", "Sessions and events that wait for the broker", stats.waiting)
