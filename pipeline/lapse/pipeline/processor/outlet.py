"""How does a worker append outside of transactions, so that nothing is lost, repeated or reordered unnoticed?

An outlet is one idempotent producer with `acks=all`. aiokafka never gives up on an idempotent batch: through an outage
it waits and repeats it, in order. That is wanted, up to a point; the outlet brings the missing deadline: what is not
acknowledged DELIVERY_DEADLINE_S after it was sent is a `RuntimeFault`, and the worker starts again from its last
checkpoint. So is every error: an idempotent producer that lost one batch refuses all that follow it (their sequence
numbers no longer fit), so nothing can ever stand in the log before what it depends on. That appends are overdue
(OVERDUE_MS) is logged once, and so is that they go through again.

aiokafka sends one request a node at a time, so a worker has two outlets: `control` (ticks and copies, where
milliseconds count) does not wait behind `effects` (endings, which come by the thousand).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import RecordMetadata

from lapse.pipeline.clients import abandon, servers
from lapse.pipeline.processor import clocks
from lapse.pipeline.processor.append_health import OVERDUE_MS, AppendHealth
from lapse.schemas.errors import RuntimeFault

__all__ = ["DELIVERY_DEADLINE_S", "Outlet", "acknowledged"]

# Longer than the outages that a worker should sit out (a broker away 70 s, a leader election 18 s), for a restart
# costs a restore; short enough that a producer that will never come back is replaced.
DELIVERY_DEADLINE_S: Final = 120.0
_REQUEST_TIMEOUT_MS: Final = 30_000

# The broker's message.max.bytes (1,048,588 by default) bounds a batch; a dead letter of 4096 bytes base64 is the
# largest record, 6 KiB. 512 KiB hold about 1,100 endings. A partition has one batch under way, so a burst of 12,500 in
# each is a dozen round trips.
_BATCH_BYTES: Final = 512 * 1024

_LOOK_INTERVAL_S: Final = 0.5

_WHAT_TO_DO: Final = (
    "See whether the partition has a leader and min.insync.replicas replicas in sync, and start the worker again: it "
    "publishes anew what its last checkpoint does not hold"
)

_log = structlog.get_logger("lapse.processor")


class Outlet:
    """One idempotent producer of a worker."""

    def __init__(
        self,
        bootstrap: str,
        name: str,
        fault: Callable[[BaseException], None],
        health: AppendHealth | None = None,
    ) -> None:
        """Connect nothing yet.

        Args:
            bootstrap: servers, host:port, comma separated.
            name: the client id.
            fault: told, once, of the error that ends this outlet.
            health: told of every append's way, however its sender fares.
        """
        self._name = name
        self._health = health
        self._fault = fault
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers(bootstrap),
            client_id=name,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            max_batch_size=_BATCH_BYTES,
        )
        # What is under way, since when and to where, oldest first. Bounded by what aiokafka takes before send() waits:
        # a batch a partition.
        self._open: deque[tuple[float, str, asyncio.Future[RecordMetadata]]] = deque()
        self._overdue = False
        self._ended = False
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            RuntimeFault: no broker answers.
        """
        try:
            await self._producer.start()
        except KafkaError as broken:
            await abandon(self._producer)
            raise RuntimeFault(f"{self._name}: cannot reach the broker: {broken!r}") from broken
        self._watch = asyncio.create_task(self._watch_deadlines(), name=f"{self._name}-deadlines")

    async def stop(self) -> None:
        """Send what is under way, wait for it a while, and disconnect."""
        self._ended = True
        if self._watch is not None:
            self._watch.cancel()
        await abandon(self._producer)
        self._settle()

    async def send(
        self, topic: str, partition: int, value: bytes, key: bytes | None = None
    ) -> "asyncio.Future[RecordMetadata]":
        """Hand over one record; return what its acknowledgement will complete. Waits while a full batch drains.

        Raises:
            RuntimeFault: the producer has failed.
        """
        return await self._hand_over(
            f"{topic}-{partition}", lambda: self._producer.send(topic, value, key, partition=partition)
        )

    async def send_many(
        self, topic: str, partition: int, records: Sequence[tuple[bytes, bytes]]
    ) -> "list[asyncio.Future[RecordMetadata]]":
        """Hand over these (key, value) in order; return what their acknowledgements will complete.

        In batches: a record costs 2 us instead of 7 (measured), for a burst of endings the difference is lateness.

        Raises:
            RuntimeFault: the producer has failed.
        """
        if len(records) == 1:
            return [await self.send(topic, partition, records[0][1], records[0][0])]
        sent = []
        batch = self._producer.create_batch()
        for key, value in records:
            if batch.append(key=key, value=value, timestamp=None) is None:
                sent.append(await self._send_batch(topic, partition, batch))
                batch = self._producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        if batch.record_count():
            sent.append(await self._send_batch(topic, partition, batch))
        return sent

    async def _send_batch(self, topic: str, partition: int, batch: Any) -> "asyncio.Future[RecordMetadata]":
        return await self._hand_over(
            f"{topic}-{partition}", lambda: self._producer.send_batch(batch, topic, partition=partition)
        )

    async def _hand_over(
        self, where: str, hand_over: "Callable[[], Awaitable[asyncio.Future[RecordMetadata]]]"
    ) -> "asyncio.Future[RecordMetadata]":
        started = clocks.mono_ms()
        append = None if self._health is None else self._health.sent(started)
        try:
            sent = await self._patiently(where, hand_over, started)
        except BaseException:
            if self._health is not None and append is not None:
                self._health.failed(append)
            raise
        self._open.append((started, where, sent))
        sent.add_done_callback(partial(self._done, where, append))
        return sent

    async def _patiently(
        self, where: str, hand_over: "Callable[[], Awaitable[asyncio.Future[RecordMetadata]]]", started: float
    ) -> "asyncio.Future[RecordMetadata]":
        while True:
            try:
                return await hand_over()
            except KafkaTimeoutError as waited:
                if clocks.mono_ms() - started > DELIVERY_DEADLINE_S * 1000:
                    raise RuntimeFault(
                        f"{self._name}: {where} took nothing in {DELIVERY_DEADLINE_S:.0f} s. {_WHAT_TO_DO}"
                    ) from waited
            except KafkaError as broken:
                raise RuntimeFault(f"{self._name}: cannot append to {where}: {broken!r}. {_WHAT_TO_DO}") from broken

    def _done(self, where: str, append: int | None, sent: "asyncio.Future[RecordMetadata]") -> None:
        """Take note of an append's end; before whoever awaits it, for it is this that knows the place."""
        error = None if sent.cancelled() else sent.exception()
        if self._health is not None and append is not None:
            if sent.cancelled() or error is not None:
                self._health.failed(append)
            else:
                self._health.acknowledged(append, clocks.mono_ms())
        if error is not None:
            self._end(f"an append to {where} failed: {error!r}. {_WHAT_TO_DO}")

    def _end(self, why: str) -> None:
        if not self._ended:
            self._ended = True
            self._fault(RuntimeFault(f"{self._name}: {why}"))

    def _settle(self) -> None:
        """Forget what is done, from the oldest on."""
        while self._open and self._open[0][2].done():
            self._open.popleft()

    async def _watch_deadlines(self) -> None:
        while not self._ended:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            self._look()

    def _look(self) -> None:
        """Tell of appends that are overdue, and that they are no more; end the outlet where one takes too long."""
        self._settle()
        since_ms, where, _ = self._open[0] if self._open else (clocks.mono_ms(), "", None)
        waited_ms = clocks.mono_ms() - since_ms
        if waited_ms > DELIVERY_DEADLINE_S * 1000:
            self._end(f"an append to {where} is not acknowledged after {DELIVERY_DEADLINE_S:.0f} s. {_WHAT_TO_DO}")
        elif not self._overdue and waited_ms > OVERDUE_MS:
            self._overdue = True
            _log.warning(
                "appends are not acknowledged; waiting for the broker",
                outlet=self._name,
                where=where,
                waited_ms=int(waited_ms),
                ends_after_s=DELIVERY_DEADLINE_S,
            )
        elif self._overdue and waited_ms <= OVERDUE_MS:
            self._overdue = False
            _log.info("appends are acknowledged again", outlet=self._name)


async def acknowledged(sent: "Sequence[asyncio.Future[RecordMetadata]]") -> None:
    """Wait until all of it stands in the log.

    Raises:
        RuntimeFault: one of them will not.
    """
    for future in sent:
        try:
            await future
        except KafkaError as broken:
            raise RuntimeFault(f"an append failed: {broken!r}") from broken
