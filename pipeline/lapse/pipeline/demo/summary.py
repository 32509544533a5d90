"""How did it go? The demo's result, from the whole topics and the services' whole accounts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lapse.pipeline.demo.account import AccountReader
from lapse.pipeline.demo.measure import Measures, Percentiles
from lapse.pipeline.demo.people import CrowdCounts
from lapse.pipeline.demo.recompute import Finding, RawTopics, TopicRecord, Verdict, published, recompute
from lapse.pipeline.demo.services import ServiceName
from lapse.pipeline.demo.walk import Rules
from lapse.pipeline.operations.reading import read_to_end
from lapse.pipeline.settings import Settings
from lapse.schemas import BadRecord, Cause, GuardApplied, TopicNames, parse_enforcement

__all__ = ["Result", "summarize"]

_CAUSES = (Cause.IDLE, Cause.ABSOLUTE, Cause.REVOKED, Cause.CLOSED)


@dataclass(frozen=True, slots=True)
class Result:
    """What the demo found.

    Attributes:
        verdict: of the audit.
        crowd: what the people met with.
    """

    verdict: Verdict
    lateness: Percentiles
    propagation: Percentiles
    accepted_after_end: int
    crowd: CrowdCounts

    @property
    def is_right(self) -> bool:
        """Return whether nothing ended early, nothing was missed, and nothing was let pass after its end."""
        return not (self.verdict.early or self.verdict.missed or self.accepted_after_end)

    @property
    def findings(self) -> Iterable[tuple[str, Finding]]:
        """Return what is wrong, each with its kind."""
        yield from (("early", finding) for finding in self.verdict.early)
        yield from (("missed", finding) for finding in self.verdict.missed)

    def as_json(self) -> dict[str, Any]:
        """Return the object that `lapse demo --json` prints."""
        return {
            "sessions": self.verdict.sessions,
            "endings": {str(cause): self.verdict.endings.get(cause, 0) for cause in _CAUSES},
            "early": len(self.verdict.early),
            "missed": len(self.verdict.missed),
            "accepted_after_end": self.accepted_after_end,
            "lateness_ms": self.lateness._asdict(),
            "propagation_ms": self.propagation._asdict(),
            "refused": sum(self.crowd.refused.values()),
        }


async def summarize(
    settings: Settings, accounts: Mapping[ServiceName, AccountReader], counts: CrowdCounts, stopped_at: float
) -> Result:
    """Read everything again, from the start to the end, and return what came of it.

    Args:
        accounts: not read yet.
        stopped_at: when the services were told to stop, epoch ms: what they have not refused since is not theirs.

    Raises:
        RuntimeFault: the broker stopped answering.
    """
    names = TopicNames(settings.prefix)
    topics = RawTopics(
        activity=await _read(settings, names.activity),
        revocations=await _read(settings, names.revocations),
        policies=await _read(settings, names.policies),
        expiries=await _read(settings, names.expiries),
    )
    measures = Measures()
    for service, account in accounts.items():
        measures.account(service, account.read())
    measures.endings.update(
        (session, ending) for session, ending in published(topics.expiries).items() if ending.appended_at < stopped_at
    )
    for record in await _read(settings, names.enforcement):
        try:
            report = parse_enforcement(record.value)
        except BadRecord:
            continue
        if isinstance(report, GuardApplied):
            measures.applied_ms.append(report.after_ms)
    return Result(
        verdict=recompute(topics, rules_of(settings)),
        lateness=measures.lateness(),
        propagation=measures.propagation(stopped_at),
        accepted_after_end=measures.accepted_after_end(),
        crowd=counts,
    )


def rules_of(settings: Settings) -> Rules:
    """Return the part of the settings that the audit goes by."""
    return Rules(
        partitions=settings.partitions,
        grace_ms=settings.grace_ms,
        gap_ms=settings.gap_ms,
        gap_grace_ms=settings.gap_grace_ms,
        age_max_ms=settings.age_max_ms,
        ended_memory_ms=settings.ended_memory_ms,
        adopt_unknown=settings.unknown_sessions == "adopt",
    )


async def _read(settings: Settings, topic: str) -> list[TopicRecord]:
    records: list[TopicRecord] = [*await read_to_end(settings, topic)]
    return records
