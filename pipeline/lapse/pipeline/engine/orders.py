"""What do operators' orders do to the sessions that are there, and to those that come late?

    revocation    live sessions of the target that started at or before its instant, at once. For what comes late, one
                  of a subject, a tenant or everyone is kept as a cutoff (cutoffs.py), one of an unknown session as a
                  barred slot (table.py)
    policy        from its copy on: what is due of live sessions whose limits it changes is derived anew

Source: DESIGN.md sections 2 and 3.
"""

from __future__ import annotations

from heapq import heappush

from lapse.pipeline.engine.cutoffs import scope_of
from lapse.pipeline.engine.settling import Settling
from lapse.pipeline.engine.table import BARRED
from lapse.schemas import Cause, Policy, Revocation

__all__ = ["Orders"]


class Orders(Settling):
    """The sessions of one partition, as far as time and orders end them. Instants are epoch ms of the log's scale."""

    def revoke(self, revocation: Revocation, ordered_at: int, covers_at: int, stamp: int, offset: int) -> None:
        """Apply a revocation: end what it covers, and keep it for what comes late.

        Args:
            revocation: its target decides whom it covers.
            ordered_at: sessions that started after it are not meant.
            covers_at: >= ordered_at: those that are live now end if they started by then.
            stamp, offset: of the copy.
        """
        table = self.table
        at = min(ordered_at, stamp)
        if revocation.session is not None:
            slot = table.slot_of.get(revocation.session)
            if slot is None:
                self._bar(revocation.session, revocation, at)
            elif table.is_live(slot):
                self.effects.endings.append(self._end(slot, Cause.REVOKED, at, stamp, offset, revocation=revocation.id))
            elif table.state[slot] == BARRED and (at, revocation.id) < (table.last_seen_at[slot], table.barred[slot]):
                table.free(slot)
                self._bar(revocation.session, revocation, at)
            return
        self.cutoffs.add(revocation.id, scope_of(revocation.subject, revocation.tenant), at)
        kept = self.cutoffs.get(revocation.id)
        at = at if kept is None else kept[0]
        endings = [
            self._end(slot, Cause.REVOKED, at, stamp, offset, revocation=revocation.id)
            for slot in self._covered(revocation)
            if table.started_at[slot] <= (covers_at if covers_at > ordered_at else at)
        ]
        endings.sort(key=lambda ending: ending.session)
        self.effects.endings.extend(endings)

    def _bar(self, session: str, revocation: Revocation, at: int) -> None:
        slot = self.table.add(session, revocation.subject or "", revocation.tenant, BARRED, 0, at)
        self.table.barred[slot] = revocation.id
        heappush(self._forgets, (at + self.settings.session_life_max_ms, slot))

    def _covered(self, revocation: Revocation) -> list[int]:
        table, tenant = self.table, revocation.tenant
        if revocation.subject is not None:
            return table.by_subject.of(revocation.subject, tenant)
        if tenant is not None:
            return [slot for slot in table.live_slots() if table.tenants[slot] == tenant]
        return table.live_slots()

    def adopt_policy(self, version: int, policy: Policy, stamp: int) -> None:
        """Put a policy in force, by a copy of this stamp, and derive the due instants of live sessions anew."""
        if not self.book.adopt(version, policy):
            self.counters["policies_stale"] += 1
            return
        table = self.table
        changed = table.classes.derive()
        if not changed:
            return
        limits = table.classes.limits
        self.shortened.note(stamp, [(was.absolute_ms, limits[number].absolute_ms) for number, was in changed.items()])
        for slot in table.live_slots():
            if table.class_of[slot] in changed:
                table.derive(slot)
                self._moved(slot)

    def _begun(
        self, slot: int, started_at: int | None, stamp: int, offset: int, order: tuple[int, str] | None = None
    ) -> None:
        """Hold a session's start (None: not known) against the revocations; arm it, or end it."""
        table = self.table
        order = order or self.cutoffs.covering(table.subjects[slot], table.tenants[slot], started_at)
        if order is None:
            self._moved(slot)
            return
        at, revocation = order
        self.effects.endings.append(self._end(slot, Cause.REVOKED, at, stamp, offset, revocation=revocation))
