"""Does a partition stand still while its log goes on, or is its log another one?

Consumers are known to stop without a word: after a broker's restart, after a week (aiokafka 1154, 1037, 625). Nothing
fails then, and so nothing would be done about it. The watchdog asks the broker itself, through a client of its own,
where each log that the worker follows ends (activity, and what the copier reads), and knows up to where it was read.
If there was something to read, and for STALL_S nothing has been, the process ends for its supervisor: a start from the
last checkpoint is the tested path, a repair in place would not be. A broker that does not answer is an outage and no
stall: counting begins anew. Markers of transactions are nothing to read.

A log that ends below what has been read is another log: its topic was deleted and made anew. One that has grown beyond
that already is told by a record near the position, the witness, which was there some looks before and is another now.
Either is a fault, once several answers in a row have said so: a leader that hung and wakes tells where the log ended
when it fell asleep, until it hears that it was replaced (seen).
"""

import asyncio
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from lapse.pipeline.clients import abandon, servers
from lapse.pipeline.processor.reading import holds_records
from lapse.pipeline.processor.witnesses import PEEK_BYTES, Witness, first_records
from lapse.schemas import RuntimeFault

__all__ = ["STALL_S", "StallDetector", "watch"]

# A worker that lives applies its own tick every second. Ten batches of 20,000 are applied in that time, a leader's
# election (18 s) is over; and it stays below the 60 s in which everything must have converged.
STALL_S: Final = 30.0
_INTERVAL_S: Final = 5.0
# Answers in a row that say so make it another log. The first may have been asked while the broker still hung.
_ANOTHER_LOG_ANSWERS: Final = 3
# In some looks only: of each partition a batch or two is fetched.
_WITNESS_LOOKS: Final = 3
_PEEK_S: Final = 3.0
_HOLDS_DEADLINE_S: Final = 20.0
_REQUEST_TIMEOUT_MS: Final = 10_000


class StallDetector:
    """Decides, from what is told about one partition, whether it stands still."""

    def __init__(self, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._offset = -1
        self._since: float | None = None

    def told(self, now: float, *, offset: int, end: int | None) -> bool:
        """Return whether the partition has stood still for too long.

        Args:
            now: seconds of a clock that never steps.
            offset: the next offset to read.
            end: where its log ended when it was asked; None: there was no answer.
        """
        if end is None or end <= offset or offset != self._offset:
            self._offset = offset
            self._since = now if end is not None and end > offset else None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._stall_s


class _Log:
    """What is known of one partition of a topic that is followed."""

    def __init__(self, stall_s: float) -> None:
        self.stall = StallDetector(stall_s)
        self.doubts = 0  # answers in a row that spoke against its being the same log
        self.why = ""
        self.witness: Witness | None = None
        self.markers_to = 0  # up to here there are only markers of transactions beyond the position

    def doubt(self, why: str | None) -> None:
        """Count an answer: what speaks against its being the same log, or None."""
        self.doubts, self.why = (self.doubts + 1, why) if why else (0, "")


async def watch(
    bootstrap: str,
    name: str,
    positions: Callable[[], Mapping[TopicPartition, int | None]],
    another: Callable[[TopicPartition, int, str], RuntimeFault],
    *,
    compacted: Collection[str] = (),
    stall_s: float = STALL_S,
    interval_s: float = _INTERVAL_S,
) -> None:
    """Watch what the worker follows, for ever.

    Args:
        bootstrap: servers, host:port, comma separated.
        name: the client id.
        positions: gives the next offset to read of each log that is followed; None: just now nothing is to be read.
        another: makes the fault of a log that is another one, of its partition, the position and what speaks for it.
        compacted: topics of which records go while later ones stay.
        stall_s: how long one may stand still.
        interval_s: how often the broker is asked.

    Raises:
        RuntimeFault: a log goes on and is not read, or is another one.
    """
    loop = asyncio.get_running_loop()
    logs: dict[TopicPartition, _Log] = {}
    consumer: AIOKafkaConsumer | None = None
    looks = 0
    try:
        while True:
            await asyncio.sleep(interval_s)
            # Up to where it was read is noted before the broker is asked: what comes meanwhile is not held against it.
            told = dict(positions())
            logs = {tp: logs.get(tp) or _Log(stall_s) for tp in told}
            followed = {tp: offset for tp, offset in told.items() if offset is not None}
            for tp in told.keys() - followed.keys():
                logs[tp].stall.told(loop.time(), offset=-1, end=None)
            if not followed:
                continue
            looks += 1
            ends: dict[TopicPartition, int] = {}
            doubts: dict[TopicPartition, str] = {}
            try:
                if consumer is None:
                    consumer = await _client(bootstrap, name)
                ends = await consumer.end_offsets(list(followed))
                if looks % _WITNESS_LOOKS == 0 or any(log.doubts for log in logs.values()):
                    doubts = await _hear_witnesses(consumer, logs, followed, ends, compacted)
            except KafkaError:
                # It may be this client that hangs: the next question is another one's.
                if consumer is not None:
                    await abandon(consumer)
                consumer = None
            for tp, offset in followed.items():
                log, end = logs[tp], ends.get(tp)
                if end is not None:
                    log.doubt(doubts.get(tp) or (f"it ends at offset {end}" if end < offset else None))
                if log.doubts == _ANOTHER_LOG_ANSWERS:
                    raise another(tp, offset, log.why)
                if log.stall.told(loop.time(), offset=max(offset, log.markers_to), end=end) and end is not None:
                    if await _holds_records(bootstrap, name, tp, offset, end):
                        raise RuntimeFault(
                            f"{tp.topic}-{tp.partition} goes on (to offset {end}), but nothing from offset {offset} on "
                            f"has been read for {stall_s:.0f} s: the consumer stands still. Start the worker again"
                        )
                    log.markers_to = end
    finally:
        if consumer is not None:
            await abandon(consumer)


async def _hear_witnesses(
    consumer: AIOKafkaConsumer,
    logs: Mapping[TopicPartition, _Log],
    followed: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    compacted: Collection[str],
) -> dict[TopicPartition, str]:
    """Return what the witnesses say against their logs; where they say nothing, take new ones, near the positions."""
    known = {tp: witness for tp in followed if (witness := logs[tp].witness) is not None}
    found = await first_records(consumer, {tp: one.offset for tp, one in known.items()}, _PEEK_S)
    begins = await consumer.beginning_offsets(list(followed))
    doubts: dict[TopicPartition, str] = {}
    for tp, witness in known.items():
        what = witness.contradicted(found.get(tp), begins=begins[tp], compacted=tp.topic in compacted)
        if what is not None:
            doubts[tp] = what
    # Only of what was read: a record beyond the position may be of a log that is another one already.
    wanted = {tp: offset - 1 for tp, offset in followed.items() if tp not in doubts and 0 < offset <= ends[tp]}
    for tp, record in (await first_records(consumer, wanted, _PEEK_S)).items():
        if record.offset <= wanted[tp]:
            logs[tp].witness = Witness(record.offset, record.timestamp)
    return doubts


async def _holds_records(bootstrap: str, name: str, tp: TopicPartition, start: int, stop: int) -> bool:
    try:
        async with asyncio.timeout(_HOLDS_DEADLINE_S):
            return await holds_records(bootstrap, name, tp, start, stop)
    except (RuntimeFault, TimeoutError):
        return True  # there is something to read as far as anybody knows


async def _client(bootstrap: str, name: str) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers(bootstrap),
        client_id=name,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=PEEK_BYTES,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )
    try:
        await consumer.start()
    except BaseException:
        with suppress(KafkaError):
            await abandon(consumer)
        raise
    return consumer
