"""How does what is ready get into the log?

Per partition at most one batch is in flight; what comes meanwhile waits in the outbox and joins, so the batches grow
with the load. A batch that is not acknowledged within the delivery timeout is lost: its producer is given up, its
content goes back to where it was, and is written anew, with ages taken anew. A batch that did arrive after all is
harmless, for every activity counts by the maximum or once; if the broker wrote it late, its instants look younger by
that delay at most.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Final

from aiokafka import AIOKafkaProducer

from lapse.consumers.activity.coalescer import Coalescer
from lapse.consumers.activity.outbox import Load, Outbox
from lapse.consumers.producer import WRITE_ERRORS, Producer

__all__ = ["Pump"]

_log = logging.getLogger("lapse.consumers")

_BACKOFF_S: Final = (0.05, 1.0)
"""Pause after a failed write: doubled up to the second, with jitter, so that an estate does not return as one. What was
kept must be told within the rules' gap_grace_ms (5 s) of the log's return; this leaves 4 s, at the measured 130,000
touches a second on a core of its own enough for all that a coalescer keeps (SESSIONS_MAX)."""


class Pump:
    """Writes one outbox to a topic.

    Args:
        clock: monotonic ms.
        complain: logs a message and a detail, now and then.

    Attributes:
        records: records that stand in the log.
        failures: producers that were given up, and attempts to connect that failed.
    """

    def __init__(
        self,
        producer: Producer,
        topic: str,
        outbox: Outbox,
        coalescer: Coalescer,
        *,
        delivery_timeout_s: float,
        clock: Callable[[], float],
        complain: Callable[[str, str], None],
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._outbox = outbox
        self._coalescer = coalescer
        self._delivery_timeout_s = delivery_timeout_s
        self._clock = clock
        self._complain = complain
        self._flights: dict[int, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._backoff_s = 0.0
        self._running: asyncio.Task[None] | None = None
        self.records = 0
        self.failures = 0

    def start(self) -> None:
        self._running = asyncio.create_task(self._run(), name="lapse-activity")

    async def stop(self) -> None:
        """Write no more. What is in flight may arrive or not."""
        tasks = [task for task in (self._running, *self._flights.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._producer.close()

    def wake(self) -> None:
        """Look at the outbox: something may be ready."""
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._rest()
            try:
                await self._launch()
            except WRITE_ERRORS as error:
                self._fail(error)
            except Exception as error:  # a fault of ours: what is noted waits, and activity goes on being told
                _log.exception("the activity pump failed and goes on")
                self._fail(error)

    async def _launch(self) -> None:
        """Connect if need be, place what is ready, and start a flight for each partition that has none."""
        client = await self._producer.ready()
        async with asyncio.timeout(self._delivery_timeout_s):
            partitions = len(await client.partitions_for(self._topic))
        for partition in self._outbox.place(partitions):
            if partition not in self._flights:
                flight = self._fly(partition, client)
                self._flights[partition] = asyncio.create_task(flight, name=f"lapse-activity-{partition}")

    async def _rest(self) -> None:
        """Return when something may be ready, and not before a pause after a failure is over."""
        if self._backoff_s:
            await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.0))
        cooled_at = self._coalescer.next_at()
        timeout = None if cooled_at is None else max(0.0, cooled_at - self._clock()) / 1000
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()

    async def _fly(self, partition: int, client: AIOKafkaProducer) -> None:
        """Write one batch of the partition, and note what became of it."""
        load: Load | None = None
        try:
            async with asyncio.timeout(self._delivery_timeout_s):
                batch = client.create_batch()
                load = self._outbox.load(partition, batch)
                if load.records:
                    delivered = await client.send_batch(batch, self._topic, partition=partition)
                    await delivered
            self._outbox.landed(load)
            self.records += load.records
            self._backoff_s = 0.0
            load = None
        except WRITE_ERRORS as error:
            # The batches of all partitions fail with their producer: that is one failure to back off from.
            if await self._producer.give_up(client):
                self._fail(error)
        finally:
            if load is not None:
                self._outbox.lost(load)
            del self._flights[partition]
            self._wake.set()

    def _fail(self, error: Exception) -> None:
        self._backoff_s = min(max(2 * self._backoff_s, _BACKOFF_S[0]), _BACKOFF_S[1])
        self.failures += 1
        self._complain("activity cannot be written and waits", f"{type(error).__name__} {error}")
        self._wake.set()
