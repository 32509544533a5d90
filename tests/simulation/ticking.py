"""When does a modelled owner tick, and what does it say? As processor/ticks.py, by its own schedule.

One tick is under way at a time. Under the epoch above the highest that was read, once all is read that stood in the log
when the predecessor was fenced, and above what was claimed before; earlier where a record to be forwarded waits for an
estimate. An epoch is claimed in a transaction before the first tick under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from lapse.pipeline.processor.append_health import OVERDUE_MS
from lapse.pipeline.processor.ticks import TickSchedule
from lapse.schemas import sign

from tests.engine.records import KEY, TOPIC

if TYPE_CHECKING:
    from tests.simulation.outlets import Sent
    from tests.simulation.owner import Owner

__all__ = ["Ticking"]


class Ticking:
    """The ticks of one ownership."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.epoch = -1
        self._ticks = self._early = self._for_good = self._in_flight = False
        self._schedule: Any = None
        self._prev_ms: int | None = None
        self._ack_ms: int | None = None
        self._look_at = -1.0

    def begin_early(self) -> None:
        """Tick before all is read."""
        if not self._early and not self._for_good:
            self._early = True
            self._begin()

    def begin_for_good(self) -> None:
        """Tick from now on: all is read that a predecessor may have ticked."""
        if not self._for_good:
            self._for_good = True
            self._begin()

    def _begin(self) -> None:
        self._owner.claim(self._claimed)

    def _claimed(self, epoch: int) -> None:
        self._ticks = True
        self.epoch = epoch
        self._prev_ms = self._ack_ms = None
        self._schedule = TickSchedule(self._owner.process.mono())
        self.look()

    def look(self) -> None:
        """Tick, if it is time; else look again when it will be."""
        owner = self._owner
        if not self._ticks or self._in_flight or owner.over:
            return
        process, engine = owner.process, owner.engine
        mono = process.mono()
        log_now = owner.log_time.at(mono) if owner.log_time.known else None
        wait = self._schedule.wait_ms(mono, due_at=engine.next_due_at(), log_now=log_now, applied=engine.next_offset)
        if wait > 0:
            at = owner.world.now + wait
            if not owner.world.now < self._look_at <= at:
                self._look_at = at
                process.later(wait, self.look)
            return
        if self._schedule.late_ms(mono) > OVERDUE_MS:
            process.health.stalled(mono)
        self._tick(mono)

    def _tick(self, mono: float) -> None:
        owner, process = self._owner, self._owner.process
        record: dict[str, Any] = {
            "type": "clock.tick",
            "v": 1,
            "epoch": self.epoch,
            "owner": process.name,
            "mono_ms": int(mono),
            "wall_at": process.wall_at(),
            "prev_ms": self._prev_ms,
            "ack_ms": self._ack_ms,
            "up_ms": process.health.up_ms(mono),
        }
        record["mac"] = sign(record, topic=TOPIC, partition=owner.number, key=KEY)
        append, epoch = process.health.sent(mono), self.epoch
        self._in_flight = True

        def stands(sent: Sent) -> None:
            process.reach("ticked", owner.number, lambda: self._acked(sent, append, epoch, mono))

        process.control.send("activity", owner.number, [(None, orjson.dumps(record))], stands)

    def _acked(self, sent: Sent, append: int, epoch: int, sent_ms: float) -> None:
        owner, process = self._owner, self._owner.process
        mono = process.mono()
        process.health.acknowledged(append, mono)
        self._in_flight = False
        assert sent.stored is not None
        owner.log_time.observe(sent_ms=sent_ms, acked_ms=mono, appended_at=sent.stored.timestamp)
        if owner.over:
            return
        if epoch == self.epoch:
            self._prev_ms, self._ack_ms = int(sent_ms), int(mono)
            self._schedule.ticked(mono, sent.stored.offset)
        owner.flush_forwards()
        self.look()
