"""What does the oracle remember, and what does it say? Its plain records, and the choice of limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lapse.schemas import (
    ClockTick,
    PackedTouch,
    Policy,
    Revocation,
    SessionElevated,
    SessionEnded,
    SessionExpiring,
    SessionStarted,
    SessionTouched,
    Violation,
)

__all__ = [
    "BUILT_IN",
    "NEVER",
    "Cutoff",
    "Ended",
    "ForwardSeen",
    "Hold",
    "LetterSeen",
    "Limits",
    "Live",
    "OracleEffects",
    "Policies",
    "Touch",
    "limits_of",
    "scope_of",
    "touch_of",
    "touch_of_entry",
]

NEVER = 1 << 200  # later than any instant a record can name
ACKNOWLEDGED_WITHIN_MS = 1000

Policies = Mapping[str, tuple[Policy, int | None]]
"""By name: the policy in force, and its version (None: built in)."""


@dataclass(frozen=True, slots=True)
class LetterSeen:
    """Which record, or entry of a packed one, goes to the dead letters; the reason's wording is the engine's."""

    offset: int
    entry: int | None


@dataclass(frozen=True, slots=True)
class ForwardSeen:
    """One activity to be appended to another partition, before its ages are grown."""

    partition: int
    kind: str
    session: str
    subject: str
    tenant: str | None
    age_ms: int
    forwarded: tuple[int, int, int | None, int]
    stamp: int


@dataclass(slots=True)
class OracleEffects:
    """What one record caused."""

    endings: list[SessionEnded] = field(default_factory=list)
    warnings: list[SessionExpiring] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    dead_letters: list[LetterSeen] = field(default_factory=list)
    forwards: list[ForwardSeen] = field(default_factory=list)
    ticked: bool = False

    def extend(self, other: OracleEffects) -> None:
        """Append what a later record caused."""
        self.endings += other.endings
        self.warnings += other.warnings
        self.violations += other.violations
        self.dead_letters += other.dead_letters
        self.forwards += other.forwards
        self.ticked = self.ticked or other.ticked


@dataclass(slots=True)
class Live:
    """A session that has not ended."""

    session: str
    subject: str
    tenant: str | None
    service: str
    started_at: int
    last_seen_at: int
    adopted: bool
    policy: str | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    token_life_ms: int | None = None
    warned_due: int | None = None


@dataclass(slots=True)
class Ended:
    """A session that has ended and is still remembered."""

    decided_at: int
    accepted_by: set[str] = field(default_factory=set)  # services that a violation was told of


@dataclass(slots=True)
class Cutoff:
    """A revocation of a subject, a tenant or everyone, kept for what arrives late."""

    id: str
    at: int
    covers: Callable[[str, str | None], bool]


@dataclass(slots=True)
class Hold:
    """A time in which idle endings wait, since the log may have been away."""

    jump_at: int
    before_at: int
    phase: str = "await tick"  # then "await ack", then "outage" or "off"
    until: int | None = None
    epoch: int = -1
    mono_ms: int = 0
    seen_at: int = 0  # the latest stamp inside the hold

    def take(self, tick: ClockTick, s: int, gap_grace_ms: int) -> None:
        """Take in a tick of the present owner, or of a new one."""
        if self.phase == "await tick":
            self.until = self.jump_at + gap_grace_ms
            self.epoch, self.mono_ms = tick.epoch, tick.mono_ms
            self.phase = "await ack" if s - tick.up_ms <= self.before_at else "outage"
        elif self.phase == "await ack":
            acknowledged = (
                tick.epoch == self.epoch
                and tick.prev_ms == self.mono_ms
                and tick.ack_ms is not None
                and 0 <= tick.ack_ms - self.mono_ms <= ACKNOWLEDGED_WITHIN_MS
            )
            self.phase = "off" if acknowledged else "outage"


@dataclass(frozen=True, slots=True)
class Limits:
    """The strictest value of each limit over the policies of one session; None is no limit."""

    idle_ms: int | None
    absolute_ms: int | None
    warn_before_ms: int | None
    hold_max_ms: int | None
    token_life_ms: int | None
    policy: str
    version: int | None


@dataclass(frozen=True, slots=True)
class Touch:
    """An activity that may move last_seen: a touch, a start, an elevation."""

    kind: str
    session: str
    subject: str
    tenant: str | None
    service: str
    age_ms: int
    since_ms: int | None = None
    pause_ms: int | None = None
    hold_ms: int | None = None
    session_age_ms: int | None = None
    start: SessionStarted | None = None


BUILT_IN = Policy(
    name="default",
    idle_ms=1_800_000,
    absolute_ms=28_800_000,
    warn_before_ms=None,
    hold_max_ms=3_600_000,
    token_life_ms=None,
    match=None,
)


def touch_of(activity: SessionStarted | SessionTouched | SessionElevated) -> Touch:
    """Return what a start, a touch or an elevation may move last_seen by."""
    touched = activity if isinstance(activity, SessionTouched) else None
    return Touch(
        kind=activity.type,
        session=activity.session,
        subject=activity.subject,
        tenant=activity.tenant,
        service=activity.service,
        age_ms=activity.age_ms,
        since_ms=touched.since_ms if touched else None,
        pause_ms=touched.pause_ms if touched else None,
        hold_ms=touched.hold_ms if touched else None,
        session_age_ms=None if isinstance(activity, SessionStarted) else activity.session_age_ms,
        start=activity if isinstance(activity, SessionStarted) else None,
    )


def touch_of_entry(entry: PackedTouch, service: str) -> Touch:
    """Return the touch that an entry of a packed record is."""
    return Touch(
        kind="session.touched",
        session=entry.session,
        subject=entry.subject,
        tenant=entry.tenant,
        service=service,
        age_ms=entry.age_ms,
        since_ms=entry.since_ms,
        pause_ms=entry.pause_ms,
    )


def limits_of(policies: Policies, session: Live) -> Limits:
    """Return the strictest value of each limit over the policies that hold for a session now."""
    matching = sorted(name for name, (policy, _) in policies.items() if _matches(policy, session))
    if session.policy is not None:
        base = session.policy if session.policy in policies else "default"
    else:
        base = matching[0] if matching else "default"
    chosen = [policies[name][0] for name in {base, *matching}]

    def strictest(limit: str) -> int | None:
        return min((v for p in chosen if (v := getattr(p, limit)) is not None), default=None)

    return Limits(
        idle_ms=strictest("idle_ms"),
        absolute_ms=strictest("absolute_ms"),
        warn_before_ms=strictest("warn_before_ms"),
        hold_max_ms=strictest("hold_max_ms"),
        token_life_ms=strictest("token_life_ms"),
        policy=base,
        version=policies[base][1],
    )


def scope_of(order: Revocation) -> Callable[[str, str | None], bool]:
    """Return whom an order without a session covers: a function of subject and tenant."""
    if order.subject is not None:
        return lambda subject, tenant: (tenant, subject) == (order.tenant, order.subject)
    if order.tenant is not None:
        return lambda subject, tenant: tenant == order.tenant
    return lambda subject, tenant: True


def _matches(policy: Policy, session: Live) -> bool:
    match = policy.match
    if match is None or (match.tenant is None and match.service is None and not match.attributes):
        return False
    if match.tenant is not None and session.tenant not in match.tenant:
        return False
    if match.service is not None and session.service not in match.service:
        return False
    return all(session.attributes.get(key) in values for key, values in (match.attributes or {}).items())
