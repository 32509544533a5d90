"""How are records read back, outside of the group: state at a restore, and input that Faust has not brought?

All of it is read by consumers of no group that are told where to begin. `auto_offset_reset` is "earliest" and nothing
seeks to a beginning: under the client's default ("latest") such a seek races with the client's own first reset, and in
3 of 30 starts landed at the end, so that the state came back empty, without a word (measured).
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, ConsumerRecord, OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from lapse.pipeline.clients import abandon, servers
from lapse.schemas import RuntimeFault

__all__ = [
    "READ_DEADLINE_S",
    "another_log",
    "check_input",
    "committed_offsets",
    "consuming",
    "holds_records",
    "read_range",
    "read_to_end",
]

# 1,000,000 sessions with their history are read in 1 to 2 s (measured); a hundred times that is not slow, it hangs.
READ_DEADLINE_S: Final = 180.0
_FETCH_BYTES: Final = 8 * 1024 * 1024
_PEEK_BYTES: Final = 4_096
_POLL_MS: Final = 500
_RETRY_S: Final = 0.2
# As the watchdog's (watchdog.py): what is no other log but an old leader's is right within ten seconds.
_LOOKS: Final = 3
_LOOK_AGAIN_S: Final = 5.0


InputState = tuple[int, tuple[int, int] | None]
"""See `check_input`."""


@asynccontextmanager
async def consuming(bootstrap: str, name: str, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """Give a started consumer of no group.

    Raises:
        RuntimeFault: the broker fails while it is in use.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers(bootstrap),
        client_id=name,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        **{"max_partition_fetch_bytes": _FETCH_BYTES, **options},
    )
    try:
        await consumer.start()
        yield consumer
    except KafkaError as broken:
        raise RuntimeFault(f"{name}: reading failed: {broken!r}") from broken
    finally:
        await abandon(consumer)


async def read_to_end(
    bootstrap: str, name: str, topic: str, partitions: Iterable[int]
) -> AsyncIterator[tuple[int, list[ConsumerRecord]]]:
    """Yield (partition, records) of the committed records that the partitions hold now, each partition in log order.

    Raises:
        RuntimeFault: the broker fails, or nothing comes for READ_DEADLINE_S.
    """
    tps = [TopicPartition(topic, partition) for partition in partitions]
    async with consuming(bootstrap, name, isolation_level="read_committed") as consumer:
        consumer.assign(tps)
        ends = await consumer.end_offsets(tps)
        left = {tp for tp in tps if ends[tp] > 0}
        patience = _Patience(f"{name}: {topic}")
        while left:
            batches = await consumer.getmany(*left, timeout_ms=_POLL_MS)
            for tp, records in batches.items():
                yield tp.partition, records
            done = {tp for tp in left if await patience.position(consumer, tp) >= ends[tp]}
            patience.check(progress=bool(batches or done))
            left -= done


async def read_range(
    bootstrap: str,
    name: str,
    tp: TopicPartition,
    start: int,
    stop: int,
    *,
    deleted_is_fault: bool = True,
) -> list[ConsumerRecord]:
    """Return the partition's records with start <= offset < stop. Markers of transactions leave holes in the offsets.

    Args:
        deleted_is_fault: whether `start` must still be there; else reading begins with what is.

    Raises:
        RuntimeFault: the broker fails, or the log no longer holds `start`.
    """
    found: list[ConsumerRecord] = []
    async with consuming(bootstrap, name) as consumer:
        consumer.assign([tp])
        begins = (await consumer.beginning_offsets([tp]))[tp]
        if begins > start and deleted_is_fault:
            raise _deleted(tp, begins, start)
        consumer.seek(tp, max(begins, start))
        patience = _Patience(f"{name}: {tp.topic}-{tp.partition}")
        while await patience.position(consumer, tp) < stop:
            records = (await consumer.getmany(tp, timeout_ms=_POLL_MS)).get(tp, [])
            found += [record for record in records if record.offset < stop]
            patience.check(progress=bool(records))
    return found


async def check_input(bootstrap: str, name: str, topic: str, states: Mapping[int, InputState]) -> None:
    """Refuse to go on with a log that is not the one, or not the whole one, that the states are of.

    A topic that was deleted and made anew begins at 0 again, and its records are taken for the old ones' successors. It
    is told by the last applied record: at that offset there is none, or one of another append time. It is looked at
    several times, by clients that ask anew who leads: a leader that hung and wakes shows its log as it was.

    Args:
        bootstrap: servers, host:port, comma separated.
        name: the client id.
        topic: of the activity.
        states: by partition: the next offset to apply; offset and append time of the last record that was applied, or
            None. Between the two there may be holes, where transactions ended.

    Raises:
        RuntimeFault: the broker fails; records beyond the state were deleted; the topic was made anew.
    """
    for _ in range(_LOOKS - 1):
        try:
            return await _look_at_input(bootstrap, name, topic, states)
        except _AnotherLog:
            await asyncio.sleep(_LOOK_AGAIN_S)
    return await _look_at_input(bootstrap, name, topic, states)


async def _look_at_input(bootstrap: str, name: str, topic: str, states: Mapping[int, InputState]) -> None:
    tps = {TopicPartition(topic, number): state for number, state in states.items()}
    if not tps:
        return
    async with consuming(bootstrap, name, max_partition_fetch_bytes=_PEEK_BYTES) as consumer:
        consumer.assign(list(tps))
        begins = await consumer.beginning_offsets(list(tps))
        ends = await consumer.end_offsets(list(tps))
        waiting: dict[TopicPartition, tuple[int, int]] = {}
        for tp, (offset, applied) in tps.items():
            if ends[tp] < offset:
                raise another_log(topic, tp.partition, offset, f"it ends at offset {ends[tp]}")
            if begins[tp] > offset:
                raise _deleted(tp, begins[tp], offset)
            if applied is not None and begins[tp] <= applied[0]:
                consumer.seek(tp, applied[0])
                waiting[tp] = applied
        patience = _Patience(f"{name}: {topic}")
        while waiting:
            batches = await consumer.getmany(*waiting, timeout_ms=_POLL_MS, max_records=len(waiting))
            for tp, records in batches.items():
                last, append = waiting.pop(tp)
                if (records[0].offset, records[0].timestamp) != (last, append):
                    raise another_log(
                        topic,
                        tp.partition,
                        tps[tp][0],
                        f"offset {records[0].offset} is of {records[0].timestamp}, "
                        f"the state's last record, {last}, at {append}",
                    )
            patience.check(progress=bool(batches))


async def holds_records(bootstrap: str, name: str, tp: TopicPartition, start: int, stop: int) -> bool:
    """Return whether there is any record with start <= offset < stop, or there are only markers of transactions.

    Raises:
        RuntimeFault: the broker fails.
    """
    async with consuming(bootstrap, name, max_partition_fetch_bytes=_PEEK_BYTES) as consumer:
        consumer.assign([tp])
        begins = (await consumer.beginning_offsets([tp]))[tp]
        consumer.seek(tp, max(begins, start))
        patience = _Patience(f"{name}: {tp.topic}-{tp.partition}")
        while await patience.position(consumer, tp) < stop:
            records = (await consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=1)).get(tp, [])
            if records:
                return bool(records[0].offset < stop)
            patience.check(progress=False)
    return False


async def committed_offsets(
    bootstrap: str, group: str, tps: list[TopicPartition]
) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return the group's committed positions, without those that it has none for.

    Raises:
        RuntimeFault: the broker fails.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=servers(bootstrap))
    try:
        await admin.start()
        async with asyncio.timeout(READ_DEADLINE_S):
            while True:
                try:
                    found = await admin.list_consumer_group_offsets(group, partitions=tps)
                    break
                except KafkaError as moving:
                    # A coordinator that has just come, or is gone and not replaced yet.
                    if not moving.retriable:
                        raise
                    await asyncio.sleep(_RETRY_S)
    except (KafkaError, TimeoutError) as broken:
        raise RuntimeFault(f"cannot read the committed offsets of group {group}: {broken!r}") from broken
    finally:
        await admin.close()
    return {tp: position for tp, position in found.items() if position.offset >= 0}


def another_log(topic: str, partition: int, offset: int, what: str) -> RuntimeFault:
    """Return the fault of a log that the state is not of."""
    return _AnotherLog(
        f"{topic}-{partition} is not the log that the state at offset {offset} is of: {what}. The topic was deleted "
        "and made anew, or its end was lost. Bring it back; or, to begin anew, delete the state topic and the group's "
        "offsets and run `lapse topics apply`: sessions that are live now are then adopted at their next touch"
    )


def _deleted(tp: TopicPartition, begins: int, start: int) -> RuntimeFault:
    return RuntimeFault(
        f"{tp.topic}-{tp.partition} begins at offset {begins}, but the state is of offset {start}: the log was "
        "deleted before it was applied, and with it activity. Raise the topic's retention; to go on without "
        "what is lost, delete the state topic and the group's offsets"
    )


class _AnotherLog(RuntimeFault):
    """The log is not the one that the state is of, as far as one answer tells."""


class _Patience:
    """Ends a reading that makes no progress."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._deadline = asyncio.get_running_loop().time() + READ_DEADLINE_S

    def check(self, *, progress: bool) -> None:
        now = asyncio.get_running_loop().time()
        if progress:
            self._deadline = now + READ_DEADLINE_S
        elif now > self._deadline:
            raise self._fault()

    async def position(self, consumer: AIOKafkaConsumer, tp: TopicPartition) -> int:
        """Return the consumer's position, which the client itself would wait for without end."""
        try:
            async with asyncio.timeout_at(self._deadline):
                position: int = await consumer.position(tp)
                return position
        except TimeoutError:
            raise self._fault() from None

    def _fault(self) -> RuntimeFault:
        return RuntimeFault(f"{self._what}: nothing could be read for {READ_DEADLINE_S:.0f} s")
