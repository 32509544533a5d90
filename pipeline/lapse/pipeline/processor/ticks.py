"""When does a partition's owner append a tick, and what does the tick say?

A silent log has no time, so its owner lends it some: a `clock.tick` once a second, whether the partition is busy or
not, and one at once when something is due by the owner's own estimate of log time (log_time.py). The estimate is
what the tick will move log time to, so it normally comes back late enough; where it comes back too early all the same
(the broker's clock was set), what is left is waited for and a tick is sent again. While records wait for the clock to
decide (engine/waiting.py), something is due at once: ticks are what it decides by.

One tick is under way at a time, so that `prev_ms` and `ack_ms` always speak of the tick before: through an outage one
tick lies in the client, and what it proves afterwards (nothing) can be told from the `ack_ms` of the next.

The epoch tells owners apart and must rise with each: under one epoch two monotonic clocks would be taken for one. It is
one above the highest that the engine has applied, once the engine has read everything that stood in the log when this
owner fenced its predecessor, and above every epoch that was claimed: before its first tick an owner saves its epoch in
a transaction. So a predecessor that was frozen between its fence and its first tick has either claimed an epoch that
its successor reads, or its claim is refused and it never ticks. An owner that must tick before it has read all, because
a record to be forwarded waits for an estimate, takes a new epoch when it has caught up.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import orjson
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from lapse.pipeline.processor import clocks
from lapse.pipeline.processor.append_health import OVERDUE_MS, AppendHealth
from lapse.pipeline.processor.log_time import LogTime
from lapse.pipeline.processor.outlet import Outlet
from lapse.schemas import RuntimeFault, TopicNames, sign

__all__ = ["TICK_INTERVAL_MS", "TickSchedule", "Ticker"]

TICK_INTERVAL_MS: Final = 1_000

# Two ticks for something due are at least so far apart: where endings are due every millisecond, one tick settles those
# of 10 ms. 64 partitions at 100 ticks a second are 6,400 appends, a tenth of what a worker can send.
DUE_SPACING_MS: Final = 10

# A tick that stands in the log is read back within some milliseconds. Until it is, or this has passed (a rebalance, a
# large batch before it), another would settle nothing that it does not.
READ_BACK_MS: Final = 200


class TickSchedule:
    """Says how long to wait until the next tick. Pure: it is told every instant."""

    __slots__ = ("_due_tick_ms", "_offset", "_read_by_ms", "_regular_ms")

    def __init__(self, now_ms: float) -> None:
        self._regular_ms = now_ms
        self._due_tick_ms = now_ms - DUE_SPACING_MS
        self._offset = -1
        self._read_by_ms = 0.0

    def wait_ms(self, now_ms: float, *, due_at: int | None, log_now: float | None, applied: int) -> float:
        """Return how long to wait until the next tick; 0 or less: now.

        Args:
            now_ms: monotonic clock.
            due_at: log time at which the engine wants to be told that it is then, or None.
            log_now: the owner's estimate of log time now, or None before there is one.
            applied: the next offset the engine applies; every tick below it has been read back.
        """
        regular = self._regular_ms - now_ms
        if due_at is None or log_now is None:
            return regular
        due = max(due_at - log_now, self._due_tick_ms + DUE_SPACING_MS - now_ms)
        if applied <= self._offset:
            due = max(due, self._read_by_ms - now_ms)
        return min(regular, due)

    def late_ms(self, now_ms: float) -> float:
        """Return by how much the regular tick is late."""
        return now_ms - self._regular_ms

    def ticked(self, now_ms: float, offset: int) -> None:
        """Note that a tick stands in the log at this offset, acknowledged now."""
        self._offset = offset
        self._read_by_ms = now_ms + READ_BACK_MS
        self._due_tick_ms = now_ms
        if now_ms >= self._regular_ms:
            # From the schedule, so that ticks do not drift apart; after a pause from now, so that they do not pile up.
            missed = now_ms - self._regular_ms > TICK_INTERVAL_MS
            self._regular_ms = (now_ms if missed else self._regular_ms) + TICK_INTERVAL_MS


class Ticker:
    """Appends one partition's ticks; runs as that partition's task."""

    def __init__(
        self,
        *,
        topics: TopicNames,
        partition: int,
        owner: str,
        worker_key: bytes,
        outlet: Outlet,
        log_time: LogTime,
        health: AppendHealth,
        due_at: Callable[[], int | None],
        applied: Callable[[], int],
    ) -> None:
        """Args: due_at, applied: the engine's next due instant and next offset; the rest as in `Partition`."""
        self._topic = topics.activity
        self._partition = partition
        self._owner = owner
        self._key = worker_key
        self._outlet = outlet
        self._log_time = log_time
        self._health = health
        self._due_at = due_at
        self._applied = applied
        self._changed = asyncio.Event()
        self._epoch = 0
        self._prev_ms: int | None = None
        self._ack_ms: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch that it ticks under."""
        return self._epoch

    def take_epoch(self, epoch: int) -> None:
        """Tick under this epoch from now on; it speaks of no tick before."""
        self._epoch = epoch
        self._prev_ms = self._ack_ms = None

    def engine_moved(self) -> None:
        """Note that the engine has moved on: another instant may be due."""
        self._changed.set()

    async def run(self) -> None:
        """Tick, for ever.

        Raises:
            RuntimeFault: the producer has failed.
        """
        schedule = TickSchedule(clocks.mono_ms())
        while True:
            self._changed.clear()
            now_ms = clocks.mono_ms()
            log_now = self._log_time.at(now_ms) if self._log_time.known else None
            wait_ms = schedule.wait_ms(now_ms, due_at=self._due_at(), log_now=log_now, applied=self._applied())
            if wait_ms > 0:
                await self._sleep(wait_ms)
                continue
            if schedule.late_ms(now_ms) > OVERDUE_MS:
                self._health.stalled(now_ms)
            stands = await self._tick()
            schedule.ticked(clocks.mono_ms(), stands.offset)

    async def _sleep(self, wait_ms: float) -> None:
        try:
            async with asyncio.timeout(wait_ms / 1000):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _tick(self) -> RecordMetadata:
        # The monotonic clock is read before the send: an append is never before its mono_ms.
        sent_ms = clocks.mono_ms()
        record = self._record(sent_ms)
        record["mac"] = sign(record, topic=self._topic, partition=self._partition, key=self._key)
        try:
            stands = await (await self._outlet.send(self._topic, self._partition, orjson.dumps(record)))
        except KafkaError as broken:
            raise RuntimeFault(f"a tick to {self._topic}-{self._partition} failed: {broken!r}") from broken
        acked_ms = clocks.mono_ms()
        self._prev_ms, self._ack_ms = record["mono_ms"], int(acked_ms)
        # -1, and with it type 0, where the broker took a repetition for one and no longer knew when it was.
        if stands.timestamp_type == 1:
            self._log_time.observe(sent_ms=sent_ms, acked_ms=acked_ms, appended_at=stands.timestamp)
        return stands

    def _record(self, sent_ms: float) -> dict[str, Any]:
        return {
            "type": "clock.tick",
            "v": 1,
            "epoch": self._epoch,
            "owner": self._owner,
            "mono_ms": int(sent_ms),
            "wall_at": clocks.wall_at(),
            "prev_ms": self._prev_ms,
            "ack_ms": self._ack_ms,
            "up_ms": self._health.up_ms(sent_ms),
        }
