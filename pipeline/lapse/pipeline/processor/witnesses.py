"""Does a log still hold the record that was read there?

Offsets alone cannot tell a topic that was made anew from the one before, once it is as long. Offset and append time of
one record can: a *witness*. It is gone rightly only where its topic was trimmed, or is compacted.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

__all__ = ["PEEK_BYTES", "Witness", "first_records"]

PEEK_BYTES: Final = 4_096
"""What a consumer that only looks should fetch of a partition; a broker gives the first batch in any case."""
_POLL_MS: Final = 500


class Witness(NamedTuple):
    """A record that was read: its offset, and its append time in epoch ms of the broker's clock."""

    offset: int
    append: int

    def contradicted(self, found: ConsumerRecord | None, *, begins: int, compacted: bool = False) -> str | None:
        """Return what speaks against this being the same log, or None.

        Args:
            found: the first record at or above the witness's offset; None: none came.
            begins: the first offset that the log has, asked afterwards.
            compacted: whether records go while later ones stay.
        """
        if found is None or found.offset < self.offset or begins > self.offset:
            return None
        if (found.offset, found.timestamp) == self or (compacted and found.offset > self.offset):
            return None
        return f"offset {found.offset} is of {found.timestamp}, offset {self.offset} was of {self.append}"


async def first_records(
    consumer: AIOKafkaConsumer, starts: Mapping[TopicPartition, int], within_s: float
) -> dict[TopicPartition, ConsumerRecord]:
    """Return of each partition the first record at or above an offset, where one comes in time.

    Args:
        consumer: of no group, with `auto_offset_reset` "earliest"; it is assigned these partitions.
        starts: by partition, the offset.
        within_s: how long to wait.

    Raises:
        KafkaError: the broker fails.
    """
    found: dict[TopicPartition, ConsumerRecord] = {}
    if not starts:
        return found
    consumer.assign(list(starts))
    for tp, offset in starts.items():
        consumer.seek(tp, offset)
    loop = asyncio.get_running_loop()
    until = loop.time() + within_s
    while (left := [tp for tp in starts if tp not in found]) and loop.time() < until:
        batches = await consumer.getmany(*left, timeout_ms=_POLL_MS, max_records=len(left))
        found |= {tp: records[0] for tp, records in batches.items() if records}
    return found
