"""How do operators learn what a guard does?

Once a second the guard's status goes to lapse.enforcement, the last one saying that it stops, and at once every
revocation it has applied; what it could not read goes to lapse.dead-letters. Reports are best effort: they wait while
the broker is away, the oldest are given up first, and nothing the guard decides hangs on them. Each acknowledged status
also says what the broker's clock is.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from lapse.consumers.guard.intake import Intake
from lapse.consumers.producer import WRITE_ERRORS, Producer
from lapse.schemas import GuardApplied, GuardStatus, TopicNames, encode

__all__ = ["LAST_REPORT_TIMEOUT_S", "Reporter", "percentile"]

_log = logging.getLogger("lapse.consumers")

REPORT_INTERVAL_S: Final = 1.0
LAST_REPORT_TIMEOUT_S: Final = 1.0
"""What a stop spends on saying so: an acknowledgement takes milliseconds, and who is cut off is not to hold a shutdown.
"""
_WRITE_TIMEOUT_S: Final = 5.0
_LOOK_INTERVAL_S: Final = 0.05
"""How often the queue of applied revocations is looked at: a report comes at most so much later, and applying a
revocation costs no wake-up."""


class Reporter:
    """Writes the reports of one guard.

    Args:
        status: makes the status of now.
        clock: monotonic ms.
    """

    def __init__(
        self,
        producer: Producer,
        topics: TopicNames,
        intake: Intake,
        status: Callable[[], GuardStatus],
        clock: Callable[[], float],
    ) -> None:
        self._producer = producer
        self._topics = topics
        self._intake = intake
        self._status = status
        self._clock = clock
        self._failing = False

    async def run(self) -> None:
        """Report until cancelled."""
        status_at = 0.0
        while True:
            due = self._clock() >= status_at
            try:
                if due:
                    status_at = self._clock() + REPORT_INTERVAL_S * 1000
                    await self.report_status()
                await self._report_applied()
                await self._report_dead_letters()
                self._failing = False
            except WRITE_ERRORS as error:
                if not self._failing:
                    _log.warning("the guard's reports cannot be written and wait: %s %s", type(error).__name__, error)
                self._failing = True
                await asyncio.sleep(REPORT_INTERVAL_S)
            except Exception:  # a fault of ours: reports that ended for good would look like a guard that does not run
                if not self._failing:
                    _log.exception("the guard's reports failed and go on")
                self._failing = True
                await asyncio.sleep(REPORT_INTERVAL_S)
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def report_status(self, *, stopping: bool = False) -> None:
        """Write the status of now.

        Args:
            stopping: it is the last one.

        Raises:
            one of WRITE_ERRORS.
        """
        told = {"clock_offset_ms": self._clock_offset_ms(), "stopping": stopping}
        status = self._status().model_copy(update=told)
        await self._write(
            self._topics.enforcement, f"{status.service}/{status.instance}", encode(status), measure_clock=True
        )

    def _clock_offset_ms(self) -> float | None:
        """Return the broker's clock minus this machine's; the wall clock is read for operators to see, nothing else."""
        broker_now = self._intake.broker_clock.since(0, self._clock())
        return round(broker_now - time.time() * 1000, 1) if broker_now else None

    async def _report_applied(self) -> None:
        applied = self._intake.applied
        if not applied:
            return
        status = self._status()
        while applied:
            first = applied[0]
            report = GuardApplied(
                service=status.service,
                instance=status.instance,
                revocation=first.revocation,
                after_ms=first.after_ms,
                closed=first.closed,
            )
            key = f"{status.service}/{status.instance}/{first.revocation}"
            await self._write(self._topics.enforcement, key, encode(report))
            if applied and applied[0] is first:
                applied.popleft()

    async def _report_dead_letters(self) -> None:
        letters = self._intake.dead_letters
        while letters:
            first = letters[0]
            key = f"{first.topic}/{first.partition}/{first.offset}"
            await self._write(self._topics.dead_letters, key, encode(first))
            if letters and letters[0] is first:
                letters.popleft()

    async def _write(self, topic: str, key: str, value: bytes, *, measure_clock: bool = False) -> None:
        client = await self._producer.ready()
        try:
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                sent_at = self._clock()
                written = await client.send_and_wait(topic, value, key=key.encode())
        except WRITE_ERRORS:
            await self._producer.give_up(client)
            raise
        if measure_clock and written.timestamp_type == 1:
            self._intake.broker_clock.acknowledged(written.timestamp, sent_at, self._clock())


def percentile(ordered: list[float], share: float) -> float:
    """Return the value at or below which the share of the ordered values lies (nearest rank); not empty."""
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[int(rank) - 1]
