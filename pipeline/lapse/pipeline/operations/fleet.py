"""Which services enforce endings, and which do not?

Pure: reports, revocations and end offsets are passed in as they are read, instants are epoch ms of the broker's clock.

Theory of operation. A guard reports its status once a second, and each revocation it has applied at once. An instance
is what reports under one service and instance. What stands out, and when:

| finding | when |
| --- | --- |
| `unguarded` | a service publishes activity, and no guard of its name reported in the window, or all have stopped |
| `silent` | an instance's last report is SILENT_AFTER_MS old or older: it was killed, is cut off, or hangs |
| `stale` | its last status says that its knowledge is as old as its own limit, or older (none named: STALE_AFTER_MS) |
| `behind` | its status is more than a second younger than the end of a topic that it says it has not reached |
| `allowed_while_stale` | it let sessions pass while stale, within the window |
| `revocation_missing` | a revocation is APPLY_WITHIN_MS old or older, and nothing says that the instance has it |

That an instance has a revocation is said by its `guard.applied`, or by offsets of its status at or past one of the
places where the revocation stands: a guard that started later, or whose report was lost, knows it from there.

A running instance becomes a stopped one by a last status that says so, and a running one again by any later status.
Nothing that a stopped one lacks stands out, and it leaves the list LEAVING_MS after its stop; one that let sessions
pass while stale answers for that to the window's end. It guards nothing: where all instances of a service have stopped,
activity that is appended LEAVING_MS after the last stop, or later, is unguarded.

`behind` is judged without any clock: the ends of the topics are taken, a second later the end of the enforcement topic,
and only a status at or past that end is held against them (`expect`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from lapse.schemas import GuardApplied, GuardStatus

__all__ = [
    "APPLY_WITHIN_MS",
    "LEAVING_MS",
    "REVOCATIONS_MAX",
    "SILENT_AFTER_MS",
    "STALE_AFTER_MS",
    "Enforcement",
    "Finding",
    "Fleet",
    "Kind",
    "Row",
]

SILENT_AFTER_MS: Final = 5_000
"""Five missed reports. A write that fails is repeated after a second, one that hangs is given up after five."""

STALE_AFTER_MS: Final = 10_000
"""What is called stale where a report names no limit: an applier's, and that of a guard of an older SDK."""

LEAVING_MS: Final = 15_000
"""A publisher's stop may take 5 s, a guard's about as long, and a process stops them in either order."""

APPLY_WITHIN_MS: Final = 3_000
"""A revocation takes milliseconds; the status that shows its offset comes up to a second later, a repeated one two."""

REVOCATIONS_MAX: Final = 1_000
"""The newest revocations that are held against every instance; of each instance as many reports are kept."""

Kind = Literal["unguarded", "silent", "stale", "behind", "allowed_while_stale", "revocation_missing"]
State = Literal["applied", "known", "stopped", "missing", "unguarded"]
Topic = Literal["expiries", "revocations"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What stands out: the kind, how much of it (ms, records, sessions, revocations), and a sentence for people."""

    kind: Kind
    amount: int | None
    about: str


@dataclass(frozen=True, slots=True)
class Row:
    """A service's instance, or a service without one.

    Attributes:
        instance: None: no guard of the service has reported.
        status: its last; None: only applied revocations have been read of it.
        silent_ms: since its last report.
        stopped: that report said that it stops.
        behind: records it had not applied when it last could be judged; None: it could not yet.
        allowed_while_stale: sessions let pass while stale, within the window.
    """

    service: str
    instance: str | None
    status: GuardStatus | None
    silent_ms: int | None
    stopped: bool
    behind: int | None
    allowed_while_stale: int
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Enforcement:
    """Whether an instance has applied one revocation.

    Attributes:
        state: `applied` (it reported so), `known` (its offsets are past it), `missing`, `stopped` (without it, after
            the revocation's append), or `unguarded`.
        after_ms: since the revocation's append; None unless `applied`.
        closed: what it closed; None unless `applied`.
        silent_ms: since its last report; None where there is no instance.
    """

    service: str
    instance: str | None
    state: State
    after_ms: float | None
    closed: int | None
    silent_ms: int | None


@dataclass(slots=True)
class _Order:
    """A revocation: when it was first appended, and where it stands (partition -> offset)."""

    at: int
    places: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Instance:
    """What has been read of one instance."""

    reported_at: int
    status: GuardStatus | None = None
    applied: dict[str, GuardApplied] = field(default_factory=dict)
    allowed_base: int = 0
    allowed: int = 0
    behind: int | None = None
    judged: bool = False  # against the ends that are in force

    @property
    def stopped(self) -> bool:
        return self.status is not None and self.status.stopping


class Fleet:
    """Everything that was reported in a window; see the module.

    Args:
        only: the one revocation that is asked about; None: the newest ones.
    """

    def __init__(self, only: str | None = None) -> None:
        self._only = only
        self._instances: dict[tuple[str, str], _Instance] = {}
        self._orders: dict[str, _Order] = {}
        self._publishing: dict[str, int] = {}
        self._ends: Mapping[Topic, Sequence[int]] | None = None
        self._marks: Sequence[int] = ()

    # What is read

    def status(self, status: GuardStatus, at: int, place: tuple[int, int]) -> None:
        """Take a status that was appended at `at`, at (partition, offset) of the enforcement topic."""
        instance = self._instance(status.service, status.instance, at)
        if instance.status is None:
            instance.allowed_base = status.allowed_while_stale
        elif status.allowed_while_stale < instance.allowed_base + instance.allowed:
            instance.allowed_base = -instance.allowed  # it was started anew under its name, and counts from 0
        instance.status = status
        instance.allowed = status.allowed_while_stale - instance.allowed_base
        partition, offset = place
        if self._ends is not None and partition < len(self._marks) and offset >= self._marks[partition]:
            instance.behind = _behind(status, self._ends)
            instance.judged = True

    def applied(self, report: GuardApplied, at: int) -> None:
        """Take the report of an applied revocation."""
        instance = self._instance(report.service, report.instance, at)
        if self._only in (None, report.revocation):
            instance.applied.setdefault(report.revocation, report)
            if len(instance.applied) > REVOCATIONS_MAX:
                del instance.applied[next(iter(instance.applied))]

    def revocation(self, identifier: str, at: int, place: tuple[int, int]) -> None:
        """Take a revocation that was appended at `at`, at (partition, offset); it may stand in several partitions."""
        if self._only not in (None, identifier):
            return
        order = self._orders.setdefault(identifier, _Order(at))
        order.at = min(order.at, at)
        order.places[place[0]] = min(place[1], order.places.get(place[0], place[1]))
        if len(self._orders) > REVOCATIONS_MAX:
            del self._orders[min(self._orders, key=lambda known: self._orders[known].at)]

    def activity(self, service: str, at: int) -> None:
        """Note that a service publishes activity."""
        self._publishing[service] = max(at, self._publishing.get(service, at))

    def expect(self, ends: Mapping[Topic, Sequence[int]], marks: Sequence[int]) -> None:
        """Hold every status from now on against these ends, by partition.

        Args:
            ends: of expiries and revocations: the offsets after the last records, taken before `marks`.
            marks: the ends of the enforcement topic: a status at or past them is younger than `ends`.
        """
        self._ends = ends
        self._marks = marks
        for instance in self._instances.values():
            instance.judged = False

    # What it comes to

    def is_judged(self, now: int) -> bool:
        """Return whether every instance that still reports has been held against the ends that are in force."""
        return all(
            instance.judged or instance.stopped
            for instance in self._instances.values()
            if now - instance.reported_at < SILENT_AFTER_MS
        )

    def rows(self, now: int, within_ms: int) -> list[Row]:
        """Return every instance of the window and every unguarded service, by name; `now` by the broker's clock."""
        since = now - within_ms
        seen = {key: one for key, one in self._instances.items() if one.reported_at >= since}
        rows = [self._row(service, name, instance, now) for (service, name), instance in seen.items()]
        rows = [row for row in rows if not row.stopped or row.findings or (row.silent_ms or 0) < LEAVING_MS]
        rows += [
            Row(service, None, None, None, False, None, 0, (_unguarded(now - at, stopped),))
            for service, at, stopped in self._unguarded(since)
        ]
        return sorted(rows, key=lambda row: (row.service, row.instance or ""))

    def enforcement(self, now: int) -> list[Enforcement]:
        """Return who has applied the one revocation that is asked about, fastest first, and who has not, by name."""
        only = self._only or ""
        order = self._orders.get(only)
        found = []
        for (service, name), instance in self._instances.items():
            report = instance.applied.get(only)
            silent = max(0, now - instance.reported_at)
            if report is not None:
                found.append(Enforcement(service, name, "applied", report.after_ms, report.closed, silent))
            elif order is None or not _reads_revocations(instance):
                continue
            elif not instance.stopped:
                state: State = "known" if _covers(instance, order) else "missing"
                found.append(Enforcement(service, name, state, None, None, silent))
            elif instance.reported_at >= order.at:
                state = "known" if _covers(instance, order) else "stopped"
                found.append(Enforcement(service, name, state, None, None, silent))
        found += [
            Enforcement(service, None, "unguarded", None, None, None) for service, _, _ in self._unguarded(since=0)
        ]
        ranks = get_args(State)
        return sorted(
            found, key=lambda one: (ranks.index(one.state), one.after_ms or 0, one.service, one.instance or "")
        )

    def ordered_at(self, identifier: str) -> int | None:
        """Return when a revocation was appended, or None if it has not been read."""
        order = self._orders.get(identifier)
        return None if order is None else order.at

    def _unguarded(self, since: int) -> list[tuple[str, int, bool]]:
        """Return the services that published since then without a guard: when last, and whether they had one."""
        running = set()
        stopped_at: dict[str, int] = {}
        for (service, _), instance in self._instances.items():
            if instance.stopped:
                stopped_at[service] = max(instance.reported_at, stopped_at.get(service, instance.reported_at))
            elif instance.reported_at >= since:
                running.add(service)
        return [
            (service, at, service in stopped_at)
            for service, at in self._publishing.items()
            if at >= since
            and service not in running
            and (service not in stopped_at or at - stopped_at[service] >= LEAVING_MS)
        ]

    def _instance(self, service: str, name: str, at: int) -> _Instance:
        instance = self._instances.setdefault((service, name), _Instance(at))
        instance.reported_at = max(instance.reported_at, at)
        return instance

    def _row(self, service: str, name: str, instance: _Instance, now: int) -> Row:
        silent_ms = max(0, now - instance.reported_at)
        stopped = instance.stopped
        behind = None if stopped else instance.behind
        findings = [] if stopped else self._lacking(instance, silent_ms, now)
        if instance.allowed:
            about = f"let {instance.allowed} checks pass while stale"
            findings.append(Finding("allowed_while_stale", instance.allowed, about))
        return Row(service, name, instance.status, silent_ms, stopped, behind, instance.allowed, tuple(findings))

    def _lacking(self, instance: _Instance, silent_ms: int, now: int) -> list[Finding]:
        """Return what a running instance lacks."""
        findings = []
        if silent_ms >= SILENT_AFTER_MS:
            findings.append(Finding("silent", silent_ms, f"silent for {_seconds(silent_ms)}"))
        if instance.status is not None and instance.status.stale_ms >= _stale_after_ms(instance.status):
            findings.append(Finding("stale", instance.status.stale_ms, _stale(instance.status)))
        if instance.behind:
            findings.append(Finding("behind", instance.behind, f"{instance.behind} records behind"))
        missing = self._missing(instance, now)
        if missing:
            one = "revocation" if len(missing) == 1 else "revocations"
            about = f"has not applied {len(missing)} {one}: {', '.join(missing[:3])}{', ...' if missing[3:] else ''}"
            findings.append(Finding("revocation_missing", len(missing), about))
        return findings

    def _missing(self, instance: _Instance, now: int) -> list[str]:
        if not _reads_revocations(instance):
            return []
        return [
            identifier
            for identifier, order in self._orders.items()
            if now - order.at >= APPLY_WITHIN_MS and identifier not in instance.applied and not _covers(instance, order)
        ]


def _reads_revocations(instance: _Instance) -> bool:
    """Return whether it follows revocations at all: an applier goes by endings alone."""
    return instance.status is None or "revocations" in instance.status.applied


def _covers(instance: _Instance, order: _Order) -> bool:
    """Return whether the instance has read one of the places of a revocation; each names the whole of it."""
    if instance.status is None:
        return False
    offsets = instance.status.applied.get("revocations", [])
    return any(partition < len(offsets) and offsets[partition] >= offset for partition, offset in order.places.items())


def _behind(status: GuardStatus, ends: Mapping[Topic, Sequence[int]]) -> int:
    """Return how many offsets of all partitions a status has not reached; a partition it does not name counts whole."""
    missing = 0
    for topic, of_partitions in ends.items():
        if topic not in status.applied:
            continue
        applied = status.applied[topic]
        for partition, end in enumerate(of_partitions):
            reached = applied[partition] if partition < len(applied) else -1
            missing += max(0, end - 1 - reached)
    return missing


def _stale_after_ms(status: GuardStatus) -> int:
    return STALE_AFTER_MS if status.stale_after_ms is None else status.stale_after_ms


def _stale(status: GuardStatus) -> str:
    does = "" if status.on_stale is None else f", on_stale={status.on_stale}"
    return f"knowledge is {_seconds(status.stale_ms)} old (limit {_seconds(_stale_after_ms(status))}{does})"


def _unguarded(ago_ms: int, stopped: bool) -> Finding:
    lacks = "its guards have all stopped" if stopped else "has no guard"
    return Finding("unguarded", None, f"published activity {_seconds(max(0, ago_ms))} ago and {lacks}")


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s" if ms < 60_000 else f"{ms // 60_000} min {ms // 1000 % 60} s"
