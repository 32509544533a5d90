"""How does an operator end sessions now, and where must the order be written?

The narrowest field names the target, the wider ones place it:

| target | written to | ends |
| --- | --- | --- |
| a session, with its subject | the partition of the subject, once | this login |
| a session, its subject unknown | every partition, with one id | this login, wherever it is |
| a subject | the partition of the subject, once | its logins until now |
| a tenant | every partition, with one id | the logins of all its subjects until now |
| everyone | every partition, with one id | every login until now |

The partition is computed here and named to the broker, not left to the client's partitioner, so that the order is where
the subject's sessions are whatever that default becomes. Several appends are not one: if some fail, the order holds in
the partitions that have it, and is said to be incomplete; writing it again is harmless.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from lapse.pipeline.operations.connection import append, producing, require_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import Revocation, TopicNames, encode, partition_of, subject_key
from lapse.schemas.errors import RuntimeFault

__all__ = ["Ordered", "new_revocation_id", "placement", "revoke"]

# Crockford's base 32: no I, L, O, U; digits before letters, so that ids sort as their times do.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Ordered:
    """A revocation that the log has.

    Attributes:
        revocation: as it was written.
        offsets: partition -> offset in the revocations topic, every one acknowledged.
        ordered_at: the latest append time, epoch ms of the broker's clock; None where the topic does not keep it.
    """

    revocation: Revocation
    offsets: dict[int, int]
    ordered_at: int | None


def new_revocation_id(now_ms: int | None = None) -> str:
    """Return a new ULID: 26 characters of base 32, 48 bits of time (epoch ms) before 80 random ones.

    The time only makes ids sort and read well; nothing is decided by it.

    Source: https://github.com/ulid/spec
    """
    at = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    number = (at << 80) | int.from_bytes(os.urandom(10))
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def placement(revocation: Revocation, partitions: int) -> tuple[bytes | None, tuple[int, ...]]:
    """Return the record's key and the partitions that it is to be written to, of the so many there are."""
    if revocation.subject is None:
        return None, tuple(range(partitions))
    return (
        subject_key(revocation.subject, revocation.tenant),
        (partition_of(revocation.subject, revocation.tenant, partitions),),
    )


async def revoke(settings: Settings, revocation: Revocation) -> Ordered:
    """Write a revocation and return once the log has it, in every partition it belongs to.

    Raises:
        ConfigError: there is no revocations topic.
        RuntimeFault: no broker answers, or some of the partitions did not take it; the message says how many did.
    """
    topic = TopicNames(settings.prefix).revocations
    partitions = (await require_topics(settings, [topic]))[topic]
    key, targets = placement(revocation, partitions)
    value = encode(revocation)
    async with producing(settings) as producer:
        taken = await asyncio.gather(
            *(_append(producer, topic, partition, key, value) for partition in targets), return_exceptions=True
        )
    return _all_taken(revocation, targets, taken)


async def _append(
    producer: AIOKafkaProducer, topic: str, partition: int, key: bytes | None, value: bytes
) -> tuple[int, int | None]:
    written = await append(producer, topic, partition, value, key)
    # timestamp_type 1 is LogAppendTime: only then is it the broker's time and not this machine's.
    return written.offset, written.timestamp if written.timestamp_type == 1 else None


def _all_taken(
    revocation: Revocation, targets: Iterable[int], taken: Iterable[tuple[int, int | None] | BaseException]
) -> Ordered:
    offsets: dict[int, int] = {}
    times: list[int] = []
    failed: list[BaseException] = []
    for partition, outcome in zip(targets, taken, strict=True):
        if isinstance(outcome, BaseException):
            failed.append(outcome)
            continue
        offsets[partition] = outcome[0]
        if outcome[1] is not None:
            times.append(outcome[1])
    for error in failed:
        if not isinstance(error, KafkaError | TimeoutError):
            raise error
    if failed:
        raise RuntimeFault(
            f"revocation {revocation.id} was acknowledged by {len(offsets)} of {len(offsets) + len(failed)} partitions "
            f"({type(failed[0]).__name__}: {failed[0]}); it holds there and may hold elsewhere: give the order again"
        )
    return Ordered(revocation, offsets, max(times, default=None))
