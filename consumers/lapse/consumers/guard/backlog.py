"""How does a guard get a backlog from aiokafka faster than its consumer hands one out?

Two of its habits make a guard's start longer, and neither has a setting:

    each record is made into a ConsumerRecord of eleven fields   a guard needs the three that the client's own has
    nothing is fetched until all that was fetched is consumed    so the guard waits for the broker, then the broker
                                                                 for the guard

The first is changed for good, the second while there is a backlog. Of a tail that has caught up, a fetch asks for all
partitions at once: one that is left out waits for its next record until the fetch of the others is answered. For the
same reason a partition whose backlog is read rests until all are: a fetch that finds nothing there would hold up one
for the others.

What is fetched ahead is at most `max_partition_fetch_bytes` of each partition: no partition is asked for while records
of it wait. All this is set by private names of aiokafka (the version is pinned below 0.15). Where they are others, the
records come as ever, and only slower.
"""

from collections.abc import Iterator
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException

__all__ = ["begin_backlog", "end_backlog"]

_READ_UNCOMMITTED: Final = 0
_AHEAD_S: Final = 0.0
"""For how long what was fetched of some partitions keeps the others from being asked for."""


def begin_backlog(consumer: AIOKafkaConsumer) -> float | None:
    """Make a consumer that has fetched nothing yet fetch ahead; return what `end_backlog` needs."""
    fetcher = getattr(consumer, "_fetcher", None)
    if fetcher is None or getattr(fetcher, "_records", None) != {}:
        return None
    fetcher._records = _Fetched()
    usual: float | None = getattr(fetcher, "_prefetch_backoff", None)
    if usual is not None:
        fetcher._prefetch_backoff = _AHEAD_S
    return usual


def end_backlog(consumer: AIOKafkaConsumer, usual: float | None) -> None:
    """Make the consumer fetch as it did before, of all partitions."""
    if usual is not None:
        consumer._fetcher._prefetch_backoff = usual
    consumer.resume(*consumer.paused())


class _Fetched(dict[TopicPartition, Any]):
    """What aiokafka's fetcher has fetched, by partition; here it gets what hands the records out as they are."""

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        records = getattr(result, "_partition_records", None)
        if records is not None and getattr(records, "_isolation_level", None) == _READ_UNCOMMITTED:
            result._partition_records = _Records(partition, records)
        super().__setitem__(partition, result)


class _Records:
    """The records of a partition in one answer; stands in for aiokafka's PartitionRecords.

    Attributes:
        next_fetch_offset: what the consumer's position will be: past the record that was handed out last, and past a
            batch whose last records compaction has removed.
    """

    def __init__(self, partition: TopicPartition, records: Any) -> None:
        self.next_fetch_offset: int = records.next_fetch_offset
        self._records = self._unpack(partition, records._records, records._check_crcs)

    def __iter__(self) -> Iterator[Any]:
        return self._records

    def _unpack(self, partition: TopicPartition, batches: Any, check_crcs: bool) -> Iterator[Any]:
        while batches.has_next():
            batch = batches.next_batch()
            if check_crcs and not batch.validate_crc():
                raise CorruptRecordException(f"Invalid CRC - {partition}")
            if not batch.is_control_batch:
                for record in batch:
                    offset = record.offset
                    if offset >= self.next_fetch_offset:  # a batch is sent whole, also when its middle was asked for
                        self.next_fetch_offset = offset + 1
                        yield record
            self.next_fetch_offset = batch.next_offset
