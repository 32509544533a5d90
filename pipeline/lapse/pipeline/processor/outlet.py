"""How does a worker append outside of transactions, so that nothing is lost, repeated or reordered unnoticed?

An outlet is one idempotent producer with `acks=all`. aiokafka never gives up on an idempotent batch: through an outage
it waits and repeats it, in order. That is wanted, up to a point; the outlet brings the missing deadline: what is not
acknowledged DELIVERY_DEADLINE_S after it was sent is a `RuntimeFault`, and the worker starts again from its last
checkpoint. So is every error: an idempotent producer that lost one batch refuses all that follow it (their sequence
numbers no longer fit), so nothing can ever stand in the log before what it depends on.

aiokafka sends one request a node at a time, so a worker has two outlets: `control` (ticks and copies, where
milliseconds count) does not wait behind `effects` (endings, which come by the thousand).
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import RecordMetadata

from lapse.pipeline.clients import abandon
from lapse.pipeline.processor import clocks
from lapse.pipeline.processor.append_health import AppendHealth
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
            bootstrap_servers=[server.strip() for server in bootstrap.split(",")],
            client_id=name,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            max_batch_size=_BATCH_BYTES,
        )
        # What is under way, oldest first. Bounded by what aiokafka takes before send() waits: a batch a partition.
        self._open: deque[tuple[float, asyncio.Future[RecordMetadata]]] = deque()
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
        self._open.append((started, sent))
        if append is not None:
            sent.add_done_callback(partial(self._tell_health, append))
        return sent

    async def _patiently(
        self, where: str, hand_over: "Callable[[], Awaitable[asyncio.Future[RecordMetadata]]]", started: float
    ) -> "asyncio.Future[RecordMetadata]":
        while True:
            try:
                return await hand_over()
            except KafkaTimeoutError as waited:
                if clocks.mono_ms() - started > DELIVERY_DEADLINE_S * 1000:
                    raise RuntimeFault(f"{self._name}: {where} took nothing in {DELIVERY_DEADLINE_S} s") from waited
            except KafkaError as broken:
                raise RuntimeFault(f"{self._name}: cannot append to {where}: {broken!r}") from broken

    def _tell_health(self, append: int, sent: "asyncio.Future[RecordMetadata]") -> None:
        if self._health is None:
            return
        if sent.cancelled() or sent.exception() is not None:
            self._health.failed(append)
        else:
            self._health.acknowledged(append, clocks.mono_ms())

    def _settle(self) -> BaseException | None:
        """Forget what is done, from the oldest on; return the first error among it."""
        error: BaseException | None = None
        while self._open and self._open[0][1].done():
            _, sent = self._open.popleft()
            if not sent.cancelled():
                error = error or sent.exception()
        return error

    async def _watch_deadlines(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            error = self._settle()
            if error is not None:
                self._fault(RuntimeFault(f"{self._name}: an append failed: {error!r}"))
                return
            if self._open and clocks.mono_ms() - self._open[0][0] > DELIVERY_DEADLINE_S * 1000:
                self._fault(RuntimeFault(f"{self._name}: an append is not acknowledged after {DELIVERY_DEADLINE_S} s"))
                return


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
