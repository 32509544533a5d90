"""What does time do to the oracle's sessions? Holds, limits that run out, warnings, and what is forgotten."""

from __future__ import annotations

from lapse.pipeline.engine import EngineSettings
from lapse.schemas import Cause, ClockTick, Evidence, Policy, SessionEnded, SessionExpiring, ending_id

from tests.engine.oracle_facts import BUILT_IN, NEVER, Cutoff, Ended, Hold, Limits, Live, OracleEffects, limits_of

__all__ = ["OracleTime"]

DAY_MS = 86_400_000


class OracleTime:
    """The sessions of one partition, and what time does to them.

    Attributes:
        stamp: the latest stamp, 0 before the first record.
        live: the sessions that have not ended, by reference.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.stamp = 0
        self.epoch = -1
        self.live: dict[str, Live] = {}
        self.ended: dict[str, Ended] = {}
        self.cutoffs: dict[str, Cutoff] = {}
        self.revoked_unseen: dict[str, tuple[int, str]] = {}  # session -> (at, revocation id)
        self.policies: dict[str, tuple[Policy, int | None]] = {"default": (BUILT_IN, None)}
        self.shortened = (-1, 0)  # when an absolute limit was last shortened for somebody, and the longest that was
        self.hold: Hold | None = None
        self.lifted: Hold | None = None  # the hold that the present record lifted
        self._seen_any = False
        self._effects = OracleEffects()

    def limits(self, session: Live) -> Limits:
        """Return the limits in force for a session."""
        return limits_of(self.policies, session)

    def dues(self, session: Live) -> tuple[int, int]:
        """Return (idle due, absolute due) of a live session, NEVER where there is no limit."""
        limits = self.limits(session)
        idle = NEVER if limits.idle_ms is None else session.last_seen_at + limits.idle_ms
        absolute = NEVER if limits.absolute_ms is None else session.started_at + limits.absolute_ms
        return idle, absolute

    def next_due_at(self) -> int | None:
        """Return the log time at which the next session is to be settled or warned, None if there is none."""
        instants = []
        for session in self.live.values():
            idle, absolute = self.dues(session)
            release = idle + self.settings.grace_ms
            if self.hold is not None and self.hold.phase != "off":
                release = NEVER if self.hold.until is None else max(release, self.hold.until)
            instants.append(min(release, absolute))
            due = min(idle, absolute)
            before = self.limits(session).warn_before_ms
            if before is not None and session.warned_due != due and self.stamp < due < NEVER:
                instants.append(due - before)
        earliest = min(instants, default=NEVER)
        return None if earliest >= NEVER else earliest

    # The hold.

    def _hold_at(self, s: int, previous: int) -> None:
        self.lifted = None
        hold = self.hold
        if self._seen_any and s - previous > self.settings.gap_ms:
            self.hold = Hold(jump_at=s, before_at=previous)
        elif hold is not None and (hold.phase == "off" or (hold.until is not None and s >= hold.until)):
            self.lifted, self.hold = hold, None
        if self.hold is not None:
            self.hold.seen_at = s

    def _tick(self, tick: ClockTick, s: int) -> None:
        if tick.epoch < self.epoch:
            return
        self.epoch = tick.epoch
        self._effects.ticked = True
        if self.hold is not None:
            self.hold.take(tick, s, self.settings.gap_grace_ms)

    # What is over.

    def _settle(self, s: int, offset: int) -> None:
        self._forget(s)
        over = []
        for session in self.live.values():
            ending = self._over(session, s)
            if ending is not None:
                over.append((ending[1], session.session, ending))
        for _, name, (cause, due_at, held) in sorted(over):
            self._end(self.live[name], cause, due_at, s, offset, held=held)
        for session in self.live.values():
            self._warn(session, s)

    def _over(self, session: Live, s: int) -> tuple[Cause, int, bool] | None:
        idle, absolute = self.dues(session)
        releasable = idle + self.settings.grace_ms
        if self.hold is not None:
            return (Cause.ABSOLUTE, absolute, releasable < absolute) if s >= absolute else None
        if s < min(releasable, absolute):
            return None
        held = self.lifted is not None and releasable <= self.lifted.seen_at  # a record of the hold would have ended it
        if held and self.lifted is not None and self.lifted.phase != "off":
            assert self.lifted.until is not None
            if absolute <= self.lifted.until:
                return Cause.ABSOLUTE, absolute, True
        return (Cause.ABSOLUTE, absolute, held) if absolute <= idle else (Cause.IDLE, idle, held)

    def _warn(self, session: Live, s: int) -> None:
        idle, absolute = self.dues(session)
        due = min(idle, absolute)
        before = self.limits(session).warn_before_ms
        if before is None or due <= s or s < due - before or session.warned_due == due:
            return
        session.warned_due = due
        self._effects.warnings.append(
            SessionExpiring(
                session=session.session,
                subject=session.subject,
                tenant=session.tenant,
                cause=Cause.ABSOLUTE if absolute <= idle else Cause.IDLE,
                due_at=due,
                in_ms=due - s,
            )
        )

    def _leave_windows(self, s: int) -> None:
        for session in self.live.values():
            before = self.limits(session).warn_before_ms
            if before is None or s < min(self.dues(session)) - before:
                session.warned_due = None

    def _forget(self, s: int) -> None:
        life = self.settings.session_life_max_ms
        self.ended = {n: e for n, e in self.ended.items() if s < e.decided_at + self.settings.ended_memory_ms}
        self.cutoffs = {i: c for i, c in self.cutoffs.items() if s < c.at + life}
        self.revoked_unseen = {n: order for n, order in self.revoked_unseen.items() if s < order[0] + life}

    def _end(
        self,
        session: Live,
        cause: Cause,
        due_at: int,
        s: int,
        offset: int,
        *,
        held: bool = False,
        revocation: str | None = None,
    ) -> None:
        limits = self.limits(session)
        lives = [life for life in (limits.token_life_ms, session.token_life_ms) if life is not None]
        deny_until = s + min(max(lives, default=DAY_MS), self.settings.session_life_max_ms)
        if limits.absolute_ms is not None:
            shortened_at, longest = self.shortened
            known = max(limits.absolute_ms, longest) if session.started_at <= shortened_at else limits.absolute_ms
            unlimited = known == NEVER
            by_limit = session.started_at + (limits.absolute_ms if unlimited else known) + self.settings.age_max_ms
            deny_until = max(by_limit, deny_until) if unlimited or by_limit <= s else by_limit
        self._effects.endings.append(
            SessionEnded(
                id=ending_id(session.session),
                session=session.session,
                subject=session.subject,
                tenant=session.tenant,
                cause=cause,
                started_at=session.started_at,
                last_seen_at=session.last_seen_at,
                due_at=due_at,
                decided_at=s,
                idle_ms=limits.idle_ms,
                absolute_ms=limits.absolute_ms,
                policy=limits.policy,
                policy_version=limits.version,
                revocation=revocation,
                held=held,
                evidence=Evidence(partition=self.settings.partition, offset=offset),
                deny_until=deny_until,
            )
        )
        del self.live[session.session]
        self.ended[session.session] = Ended(decided_at=s)
