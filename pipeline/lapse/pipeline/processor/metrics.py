"""What does a worker count, for Prometheus?

Counters are process-wide and without labels that a writer of records could multiply. What the engines count themselves
(clamped ages, unknown policies, what did not count) is read from them when somebody asks.
"""

from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from operator import attrgetter
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from lapse.pipeline.engine import ClockAlarm, Effects
from lapse.pipeline.engine.endings import Decided
from lapse.schemas import ConfigError

__all__ = ["EngineNumbers", "Metrics"]

_cause = attrgetter("cause")

# Decisions come within the grace and some milliseconds of being due; an outage holds them for some seconds.
_DELAY_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.275, 0.3, 0.35, 0.4, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CHECKPOINT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0)


class EngineNumbers(NamedTuple):
    """What one partition's engine can tell whoever asks."""

    live_sessions: int
    waiting: int
    clock_offset_ms: int
    counters: Mapping[str, int]


class Metrics:
    """One worker's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._records = Counter("lapse_records", "Input records applied", registry=own)
        self._batches = Counter("lapse_batches", "Input batches applied", registry=own)
        self._endings = Counter("lapse_endings", "Endings published", ["cause"], registry=own)
        self._delays = _Delays()
        self._warnings = Counter("lapse_warnings", "Warnings published", registry=own)
        self._violations = Counter("lapse_violations", "Violations published", registry=own)
        self._dead_letters = Counter("lapse_dead_letters", "Records refused", registry=own)
        self._forwards = Counter("lapse_forwards", "Records forwarded to the right partition", registry=own)
        self._copies = Counter("lapse_copies", "Revocations and policies copied into the log", registry=own)
        self._checkpoints = Histogram(
            "lapse_checkpoint_seconds", "From cut to committed", buckets=_CHECKPOINT_BUCKETS_S, registry=own
        )
        self._checkpoint_records = Counter(
            "lapse_checkpoint_records", "Records written to the state topic", registry=own
        )
        self._clock_steps = Counter(
            "lapse_clock_steps", "Steps of a broker's clock that were taken out of log time", ["kind"], registry=own
        )
        self._owned = Gauge("lapse_partitions_owned", "Partitions owned and restored", registry=own)

    def applied(self, records: int) -> None:
        """Count one applied batch."""
        self._records.inc(records)
        self._batches.inc()

    def published(self, effects: Effects) -> None:
        """Count a batch's effects."""
        if effects.endings:
            self._delays.add(effects.endings.decided)
            for cause, count in Tally(map(_cause, effects.endings.decided)).items():
                self._endings.labels(cause.value).inc(count)
        self._warnings.inc(len(effects.warnings))
        self._violations.inc(len(effects.violations))
        self._dead_letters.inc(len(effects.dead_letters))
        self._forwards.inc(len(effects.forwards))

    def refused(self, records: int) -> None:
        """Count unreadable revocations and policies."""
        self._dead_letters.inc(records)

    def copied(self, records: int) -> None:
        """Count copies into the log."""
        self._copies.inc(records)

    def checkpointed(self, seconds: float, records: int) -> None:
        """Count one checkpoint."""
        self._checkpoints.observe(seconds)
        self._checkpoint_records.inc(records)

    def clock_stepped(self, alarm: ClockAlarm) -> None:
        """Count a step of the broker's clock."""
        self._clock_steps.labels(alarm.kind).inc()

    def owned(self, partitions: int) -> None:
        """Say how many partitions are owned."""
        self._owned.set(partitions)

    def watch_engines(self, numbers: Callable[[], Mapping[int, EngineNumbers]]) -> None:
        """Let whoever scrapes see the engines' own numbers, by partition."""
        self.registry.register(_Engines(numbers))
        self.registry.register(self._delays)

    def serve(self, address: str, port: int) -> None:
        """Serve `/metrics` on this address and port, in a thread of its own.

        Raises:
            ConfigError: something else listens there, or the address is not this machine's.
        """
        try:
            start_http_server(port, addr=address, registry=self.registry)
        except OSError as refused:
            raise ConfigError(
                f"metrics_port is {port}, but {address}:{port} cannot be listened on ({refused.strerror}): name another"
            ) from None


class _Delays:
    """From due to decided, of every ending: a histogram that takes a whole batch, at 0.3 us an ending instead of 3."""

    def __init__(self) -> None:
        self._bounds_ms = [int(bound * 1000) for bound in _DELAY_BUCKETS_S]
        self._counts = [0] * (len(self._bounds_ms) + 1)
        self._sum_ms = 0

    def add(self, endings: Iterable[Decided]) -> None:
        for ending in endings:
            delay_ms = max(0, ending.decided_at - ending.due_at)
            self._counts[bisect_left(self._bounds_ms, delay_ms)] += 1
            self._sum_ms += delay_ms

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily("lapse_ending_decided_after_seconds", "From due to decided, log time")
        names = [*(str(bound) for bound in _DELAY_BUCKETS_S), "+Inf"]
        family.add_metric([], list(zip(names, accumulate(self._counts), strict=True)), self._sum_ms / 1000)
        yield family


class _Engines:
    """Reads the engines' numbers when asked."""

    def __init__(self, numbers: Callable[[], Mapping[int, EngineNumbers]]) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        owned = self._numbers()

        def gauge(name: str, what: str, of: Callable[[EngineNumbers], float]) -> Metric:
            family = GaugeMetricFamily(name, what, labels=["partition"])
            for partition, one in owned.items():
                family.add_metric([str(partition)], of(one))
            return family

        yield gauge("lapse_live_sessions", "Live sessions", lambda one: one.live_sessions)
        yield gauge("lapse_records_waiting", "Records that wait for the clock to decide", lambda one: one.waiting)
        yield gauge(
            "lapse_clock_offset_seconds",
            "What is added to append times, by steps taken out",
            lambda one: one.clock_offset_ms / 1000,
        )
        counted = CounterMetricFamily("lapse_engine", "What the engines have counted", labels=["what"])
        totals: Tally[str] = Tally()
        for one in owned.values():
            totals.update(one.counters)
        for what, count in sorted(totals.items()):
            counted.add_metric([what], count)
        yield counted
