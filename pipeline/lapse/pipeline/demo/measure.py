"""How late are endings, how fast are they refused, and was anything let pass after them?

Measured where it happens: the append times of the log, the guards' own reports, and the accounts of the services, all
of one machine's clock.

    lateness       an ending's append minus its due instant, of idle and absolute ones (250 ms of it is grace)
    propagation    from the append of an ending to the instant at which a service's guard refuses the session; from the
                   append of a revocation to its being applied, as each guard reports it. An ending that a service has
                   not refused counts with the time it has been in the log.
    after the end  what a service let pass later than AFTER_END_MS after the ending's append
"""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from lapse.pipeline.demo.account import Entry
from lapse.pipeline.demo.recompute import Published
from lapse.pipeline.demo.services import SERVICES, ServiceName
from lapse.schemas import Cause

__all__ = ["AFTER_END_MS", "Measures", "Percentiles", "percentiles"]

AFTER_END_MS: Final = 1_000
"""A request that was under way when the ending was appended is finished long before that."""

_BY_TIME: Final = (Cause.IDLE, Cause.ABSOLUTE)


class Percentiles(NamedTuple):
    """ms; None: nothing was measured."""

    p50: float | None
    p99: float | None


def percentiles(values: Iterable[float]) -> Percentiles:
    """Return the 50th and the 99th percentile: the value at or below which so many of all lie (nearest rank)."""
    ordered = sorted(values)
    if not ordered:
        return Percentiles(None, None)

    def rank(percent: int) -> float:
        return round(ordered[max(0, -(-len(ordered) * percent // 100) - 1)], 1)

    return Percentiles(rank(50), rank(99))


@dataclass(slots=True)
class Measures:
    """What is measured from; filled by whoever reads the topics and the accounts.

    Attributes:
        endings: by session.
        applied_ms: how long after its append each revocation was applied, one value a guard.
        refuses_at: from when each service refused each session, epoch ms.
        passed: what the services let pass, epoch ms, by session.
    """

    endings: dict[str, Published] = field(default_factory=dict)
    applied_ms: MutableSequence[float] = field(default_factory=list)
    refuses_at: dict[ServiceName, dict[str, float]] = field(default_factory=lambda: {name: {} for name in SERVICES})
    passed: dict[str, list[float]] = field(default_factory=dict)

    def account(self, service: ServiceName, entries: Iterable[Entry]) -> None:
        """Take in entries of a service's account."""
        refuses_at = self.refuses_at[service]
        for at, what, session in entries:
            if what == "refuses":
                refuses_at.setdefault(session, at)
            else:
                self.passed.setdefault(session, []).append(at)

    def lateness(self) -> Percentiles:
        """Return how long after their due instants the endings by time stood in the log."""
        return percentiles(
            ending.appended_at - ending.ended.due_at
            for ending in self.endings.values()
            if ending.ended.cause in _BY_TIME
        )

    def propagation(self, until: float) -> Percentiles:
        """Return how long it took from an append to the refusal in a service; `until`: now, or when it was stopped."""
        return percentiles([*self.applied_ms, *self._refusals(until)])

    def accepted_after_end(self) -> int:
        """Return how much was let pass more than AFTER_END_MS after the append of the session's ending."""
        return sum(
            at > ending.appended_at + AFTER_END_MS
            for session, ending in self.endings.items()
            for at in self.passed.get(session, ())
        )

    def _refusals(self, until: float) -> Iterable[float]:
        for refuses_at in self.refuses_at.values():
            for session, (ended, appended_at) in self.endings.items():
                at = refuses_at.get(session)
                if at is None:
                    if until - appended_at > AFTER_END_MS:
                        yield until - appended_at
                elif at >= appended_at or ended.revocation is None:
                    # Append times are whole milliseconds, rounded down: what looks negative by less is none.
                    yield max(0.0, at - appended_at)
                # Else the guard had it from the revocation itself, whose own report says how fast that was.
