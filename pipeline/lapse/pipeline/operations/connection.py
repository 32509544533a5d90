"""How do the operators' tools reach the broker, and what do they say when they cannot?

Each of these runs for a moment and is watched by a person or a script, so a broker that is not there is told at once
and in one line, instead of being retried: the workers and guards are the ones that wait for it.

No tool here lets Kafka make a topic by itself (a broker with `auto.create.topics.enable`, its default, does so when a
client asks for one it does not have, with the wrong timestamps and cleanup): `require_topics` looks before any client
names a topic.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaConnectionError, KafkaError, NodeNotReadyError, for_code
from aiokafka.structs import RecordMetadata

from lapse.pipeline.clients import abandon
from lapse.pipeline.settings import Settings
from lapse.schemas.errors import ConfigError, RuntimeFault

__all__ = [
    "REQUEST_TIMEOUT_MS",
    "administering",
    "append",
    "consuming",
    "describe_topics",
    "producing",
    "raise_for",
    "require_topics",
]

# A revocation is asked for in an incident. Kafka needs up to 9 s to notice that a leader died
# (broker.session.timeout.ms) and about one more to name another: what has not gone through after 15 s is told.
REQUEST_TIMEOUT_MS: Final = 15_000

_CLIENT: Final = "lapse-operator"


@contextlib.asynccontextmanager
async def _told(settings: Settings) -> AsyncIterator[None]:
    """Turn what the client raises into one line that says what to do."""
    try:
        yield
    except (KafkaConnectionError, NodeNotReadyError, TimeoutError) as broken:
        raise RuntimeFault(
            f"no Kafka broker answers at {settings.kafka}: start one with `lapse broker up`, or name yours with "
            "--kafka or LAPSE_KAFKA"
        ) from broken
    except KafkaError as broken:
        raise RuntimeFault(f"the broker at {settings.kafka} refused: {broken}") from broken


@contextlib.asynccontextmanager
async def administering(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Give a started admin client.

    Raises:
        RuntimeFault: no broker answers, or it refuses.
    """
    admin = AIOKafkaAdminClient(
        bootstrap_servers=settings.kafka, client_id=_CLIENT, request_timeout_ms=REQUEST_TIMEOUT_MS
    )
    async with _told(settings):
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()


@contextlib.asynccontextmanager
async def producing(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Give a started producer that repeats nothing and loses nothing acknowledged (idempotent, `acks=all`).

    Raises:
        RuntimeFault: no broker answers, or it refuses.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka,
        client_id=_CLIENT,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        enable_idempotence=True,
        acks="all",
    )
    async with _told(settings):
        try:
            await producer.start()
            yield producer
        finally:
            await abandon(producer)


async def append(
    producer: AIOKafkaProducer, topic: str, partition: int, value: bytes, key: bytes | None = None
) -> RecordMetadata:
    """Append one record and return where it stands.

    The deadline is ours: an idempotent producer would repeat the record for as long as its broker is away.

    Raises:
        TimeoutError: nothing was acknowledged in REQUEST_TIMEOUT_MS; the record may stand there, or come to.
        KafkaError: the broker refused.
    """
    deadline_s = REQUEST_TIMEOUT_MS / 1000
    try:
        async with asyncio.timeout(deadline_s):
            return await producer.send_and_wait(topic, value, key=key, partition=partition)
    except TimeoutError:
        raise TimeoutError(f"not acknowledged in {deadline_s:.0f} s") from None


@contextlib.asynccontextmanager
async def consuming(settings: Settings, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """Give a started consumer of no group, which begins where it is told, else at the start of a partition.

    `auto_offset_reset="earliest"` and no `seek_to_beginning`: under the client's default ("latest") that seek races
    with the client's own first reset, and about one start in ten lands at the end and reads nothing (measured).

    Raises:
        RuntimeFault: no broker answers, or it refuses.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka,
        client_id=_CLIENT,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=REQUEST_TIMEOUT_MS,
        **options,
    )
    async with _told(settings):
        try:
            await consumer.start()
            yield consumer
        finally:
            await abandon(consumer)


async def describe_topics(admin: AIOKafkaAdminClient) -> dict[str, dict[str, Any]]:
    """Return every topic that the broker has, by name, as its metadata tells it.

    All are asked for and none by name, since a request that names a missing topic may make it.
    """
    return {topic["topic"]: topic for topic in await admin.describe_topics() if not topic["error_code"]}


async def require_topics(settings: Settings, names: Iterable[str]) -> dict[str, int]:
    """Return the partition count of each of these topics.

    Raises:
        ConfigError: one of them does not exist.
        RuntimeFault: no broker answers.
    """
    async with administering(settings) as admin:
        found = await describe_topics(admin)
    missing = sorted(name for name in names if name not in found)
    if missing:
        raise ConfigError(
            f"the broker at {settings.kafka} has no topic {', '.join(missing)}: run `lapse topics apply`, or name the "
            f"prefix that is in use with --prefix or LAPSE_PREFIX (now {settings.prefix!r})"
        )
    return {name: len(found[name]["partitions"]) for name in names}


def raise_for(code: int, message: str | None, doing: str) -> None:
    """Raise what an error code of the broker means; 0 means none.

    Raises:
        RuntimeFault: the code is not 0.
    """
    if code:
        kind = for_code(code)
        raise RuntimeFault(
            f"{doing}: {message or kind.description or kind.__name__} (Kafka error {code}, {kind.__name__})"
        )
