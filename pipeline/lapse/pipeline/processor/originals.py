"""Are revocations and policies still in the logs that the state has copies of?

An order that is not copied ends nobody's session, and a policy that is not adopted limits nobody: neither may get lost
without a word because a topic was deleted and made anew, or trimmed too early. So a restore asks:

- Revocations: with the position up to which they are copied the append time of the record before it is committed, and
  saved with the state, for a broker forgets positions with a deleted topic. The topic must not end below the position
  or begin above it, and must have that record there. Where the group has a position, it is that which counts: so an
  operator can set another.
- Policies: a policy's version is its record's offset, and the higher version of a name is in force. The topic must not
  end at or below a version that is in force, nor have an older or another record of a policy that is: that and what is
  set next would never be adopted.

As check_input does (reading.py), it looks several times: a leader that hung and wakes shows its log as it was.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

import orjson
from aiokafka import OffsetAndMetadata, TopicPartition

from lapse.pipeline.engine.policies import PolicyBook
from lapse.pipeline.processor.reading import READ_DEADLINE_S, another_log, consuming, read_to_end
from lapse.pipeline.processor.witnesses import PEEK_BYTES, Witness, first_records
from lapse.pipeline.settings import Settings
from lapse.schemas import BadRecord, RuntimeFault, TopicNames, parse_policy

__all__ = ["Copied", "check_originals", "not_the_log", "trimmed"]

_LOOKS: Final = 3
_LOOK_AGAIN_S: Final = 5.0


class Copied(NamedTuple):
    """Up to where a partition's revocations are copied.

    Attributes:
        offset: the next one to copy.
        append: the append time of the record before it; None where it is not known.
    """

    offset: int
    append: int | None = None

    @classmethod
    def committed(cls, position: OffsetAndMetadata | None) -> "Copied | None":
        """Return what was committed, if anything was."""
        if position is None:
            return None
        return cls(position.offset, int(position.metadata) if position.metadata.isdecimal() else None)

    @classmethod
    def decode(cls, saved: bytes | None) -> "Copied | None":
        """Return what was saved with the state, if anything was."""
        return None if saved is None else cls(*orjson.loads(saved))

    def encode(self) -> bytes:
        """Return what to save with the state."""
        return orjson.dumps(self[:])

    def to_commit(self) -> OffsetAndMetadata:
        """Return what to commit: the append time is the position's metadata."""
        return OffsetAndMetadata(self.offset, "" if self.append is None else str(self.append))


async def check_originals(
    settings: Settings, copied: Mapping[int, Copied | None], books: Mapping[int, PolicyBook]
) -> None:
    """Refuse to go on where orders or policies would be passed over without a word.

    Args:
        settings: the worker's.
        copied: by partition, up to where revocations are copied.
        books: by partition, the policies in force.

    Raises:
        RuntimeFault: the broker fails; a topic is another one, or was trimmed too early.
    """
    for _ in range(_LOOKS - 1):
        try:
            return await _look(settings, copied, books)
        except _OtherOriginals:
            await asyncio.sleep(_LOOK_AGAIN_S)
    return await _look(settings, copied, books)


def not_the_log(settings: Settings, tp: TopicPartition, offset: int, what: str) -> RuntimeFault:
    """Return the fault of a log that is not the one that was read up to this offset."""
    topics = TopicNames(settings.prefix)
    if tp.topic == topics.revocations:
        return _OtherOriginals(
            f"{tp.topic}-{tp.partition} is not the log that was copied up to offset {offset}: {what}. The topic was "
            "deleted and made anew, or its end was lost. Bring it back; or, to have all copied that it holds now, "
            f"{_begin_anew(settings, tp.topic)}. What was copied stays in force"
        )
    if tp.topic == topics.policies:
        return _OtherOriginals(
            f"{tp.topic} is not the log that policies were adopted from up to version {offset - 1}: {what}. The topic "
            "was deleted and made anew, or its end was lost. Bring it back; or set each policy again (`lapse policy "
            f"set`) until the version that it answers with is above {offset - 1}. Until then the old ones are in force"
        )
    return another_log(tp.topic, tp.partition, offset, what)


def trimmed(settings: Settings, tp: TopicPartition, begins: int, offset: int) -> RuntimeFault:
    """Return the fault of orders that are gone and were not copied."""
    return _OtherOriginals(
        f"{tp.topic}-{tp.partition} begins at offset {begins}, but was copied only up to offset {offset}: orders were "
        "deleted before they were copied. Raise the topic's retention and order again what is missing (`lapse "
        f"revoke`); to go on, {_begin_anew(settings, tp.topic)}"
    )


def _begin_anew(settings: Settings, topic: str) -> str:
    return (
        f"set the group's offsets of this topic to its start (kafka-consumer-groups.sh --reset-offsets --to-earliest "
        f"--execute --group {settings.group} --topic {topic})"
    )


async def _look(settings: Settings, copied: Mapping[int, Copied | None], books: Mapping[int, PolicyBook]) -> None:
    topics = TopicNames(settings.prefix)
    at = {TopicPartition(topics.revocations, number): one for number, one in copied.items() if one is not None}
    adopted = max((book.version for book in books.values() if book.version is not None), default=None)
    policies = TopicPartition(topics.policies, 0)
    tps = [*at, *([] if adopted is None else [policies])]
    if not tps:
        return
    name = f"{settings.group}-originals"
    async with consuming(settings.kafka, name, max_partition_fetch_bytes=PEEK_BYTES) as consumer:
        begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        for tp, one in at.items():
            if ends[tp] < one.offset:
                raise not_the_log(settings, tp, one.offset, f"it ends at offset {ends[tp]}")
            if begins[tp] > one.offset:
                raise trimmed(settings, tp, begins[tp], one.offset)
        last = {
            tp: Witness(one.offset - 1, one.append)
            for tp, one in at.items()
            if one.append is not None and begins[tp] < one.offset
        }
        found = await first_records(consumer, {tp: witness.offset for tp, witness in last.items()}, READ_DEADLINE_S)
    for tp, witness in last.items():
        if tp not in found:
            raise RuntimeFault(f"{name}: {tp.topic}-{tp.partition}: nothing could be read for {READ_DEADLINE_S:.0f} s")
        if what := witness.contradicted(found[tp], begins=begins[tp]):
            raise not_the_log(settings, tp, witness.offset + 1, what)
    if adopted is not None:
        if ends[policies] <= adopted:
            raise not_the_log(settings, policies, adopted + 1, f"it ends at offset {ends[policies]}")
        await _look_at_policies(settings, policies, books, adopted)


async def _look_at_policies(
    settings: Settings, tp: TopicPartition, books: Mapping[int, PolicyBook], adopted: int
) -> None:
    latest = {}
    async for _, records in read_to_end(settings.kafka, f"{settings.group}-originals", tp.topic, [0]):
        for record in records:
            try:
                policy = parse_policy(record.value)
            except BadRecord:
                continue  # the copier complains of it
            latest[policy.name] = (record.offset, policy)
    for offset, policy in latest.values():
        if any(book.passes_over(offset, policy) for book in books.values()):
            raise not_the_log(
                settings, tp, adopted + 1, f"its latest {policy.name!r}, of offset {offset}, is not the one in force"
            )


class _OtherOriginals(RuntimeFault):
    """The topic is not the one that was copied, or not the whole one, as far as one answer tells."""
