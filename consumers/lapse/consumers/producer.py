"""How do we write to Kafka so that a dead client is noticed and replaced?

aiokafka's idempotent producer keeps a batch for ever: its batches never expire, and an out-of-order sequence ends its
sender for good (aiokafka issues 1017 and 659). So each write has a deadline of ours, and whoever missed it gives the
producer up for a new one. What was in its queue is then sure not to be sent any more.

A client that names a missing topic makes it, where the broker has `auto.create.topics.enable` (its default): with one
partition, the senders' clocks and no cleanup of ours. So a new producer asks for all topics, and names none before.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError, UnknownTopicOrPartitionError

__all__ = ["BATCH_BYTES_MAX", "WRITE_ERRORS", "Producer", "refuse_missing"]

_log = logging.getLogger("lapse.consumers")

BATCH_BYTES_MAX: Final = 524_288
"""Bytes of one batch: half of a broker's default of 1 MiB for `message.max.bytes`, and 8 records of 64 KiB."""

_REQUEST_TIMEOUT_MS: Final = 5_000
_START_TIMEOUT_S: Final = 10.0
_STOP_TIMEOUT_S: Final = 5.0

WRITE_ERRORS: Final = (KafkaError, TimeoutError, OSError, AssertionError)
"""What a write can fail with. aiokafka says by AssertionError that it does not know a partition (yet)."""


class Producer:
    """One idempotent producer at a time, acks=all, made when it is needed and replaced when it is given up.

    Args:
        client: what aiokafka's clients take to reach the cluster: bootstrap_servers, security_protocol, ...
        name: the client id.
        topics: what it is for; there is no producer before all of them exist.
    """

    def __init__(self, client: Mapping[str, Any], name: str, topics: Collection[str]) -> None:
        self._client = dict(client)
        self._name = name
        self._topics = topics
        self._current: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._endings: set[asyncio.Task[None]] = set()
        self.replaced = 0

    async def ready(self) -> AIOKafkaProducer:
        """Return the producer, started.

        Raises:
            one of WRITE_ERRORS: no broker answers, or a topic is missing; try again later.
        """
        async with self._starting:
            if self._current is None:
                fresh = AIOKafkaProducer(
                    **self._client,
                    client_id=self._name,
                    acks="all",
                    enable_idempotence=True,
                    max_batch_size=BATCH_BYTES_MAX,
                    max_request_size=2 * BATCH_BYTES_MAX,
                    request_timeout_ms=_REQUEST_TIMEOUT_MS,
                )
                try:
                    async with asyncio.timeout(_START_TIMEOUT_S):
                        await fresh.start()
                        refuse_missing(self._topics, (await fresh.client.fetch_all_metadata()).topics())
                except BaseException:
                    await self._end(fresh)
                    raise
                self._current = fresh
            return self._current

    async def give_up(self, dead: AIOKafkaProducer) -> bool:
        """Abandon the producer with whatever it has not delivered; return whether it was still the current one."""
        if self._current is not dead:
            return False
        self._current = None
        self.replaced += 1
        await self._end(dead)
        return True

    async def close(self) -> None:
        """Abandon the current producer. Who wants what was sent to arrive has awaited it before."""
        current, self._current = self._current, None
        if current is not None:
            await self._end(current)
        await asyncio.gather(*self._endings, return_exceptions=True)

    async def _end(self, producer: AIOKafkaProducer) -> None:
        """End a producer in a task of its own: whoever waits may be cancelled, the producer must not be left half."""
        ending = asyncio.create_task(_abandon(producer))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        await asyncio.shield(ending)


def refuse_missing(needed: Collection[str], there: Collection[str]) -> None:
    """Raise UnknownTopicOrPartitionError, with what to do, if a needed topic is not among those that are there."""
    missing = sorted(set(needed) - set(there))
    if missing:
        raise UnknownTopicOrPartitionError(f"{', '.join(missing)} not found: run `lapse topics apply`")


async def _abandon(producer: AIOKafkaProducer) -> None:
    """End a producer whatever state it is in, without waiting for what it has in its queue.

    Its `stop()` alone would flush, and hang while brokers are away. Sockets first, so that nothing is written after
    this; then the sender, which would otherwise go on trying for ever; then the queue; private names of aiokafka, for
    which it has no public ones (the version is pinned below 0.15).
    """
    with contextlib.suppress(*WRITE_ERRORS):
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await producer.client.close()
            await producer._sender.close()
            producer._message_accumulator.fail_all(KafkaTimeoutError("given up"))
            await producer.stop()
            return
    producer._closed = True
    _log.warning("a Kafka producer did not stop within %g s and was left behind", _STOP_TIMEOUT_S)
