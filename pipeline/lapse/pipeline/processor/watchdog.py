"""Does a partition stand still while its log goes on?

Consumers are known to stop without a word: after a broker's restart, after a week (aiokafka 1154, 1037, 625). Nothing
fails then, and so nothing would be done about it. The watchdog asks the broker itself, through a client of its own,
where each owned partition's log ends, and knows where its engine stands. If there was something to apply, and for
STALL_S nothing has been, the process ends for its supervisor: a start from the last checkpoint is the tested path, a
repair in place would not be. A broker that does not answer is an outage and no stall: counting begins anew.

A log that ends below what has been applied is another log: its topic was deleted and made anew. That is a fault, once
several answers in a row have said so: a leader that hung and wakes tells where the log ended when it fell asleep, until
it hears that it was replaced (seen).
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from lapse.pipeline.clients import abandon, servers
from lapse.pipeline.processor.reading import another_log
from lapse.schemas import RuntimeFault

__all__ = ["STALL_S", "StallDetector", "watch"]

# A worker that lives applies its own tick every second. Ten batches of 20,000 are applied in that time, a leader's
# election (18 s) is over; and it stays below the 60 s in which everything must have converged.
STALL_S: Final = 30.0
_INTERVAL_S: Final = 5.0
# Answers in a row that say so make it another log. The first may have been asked while the broker still hung.
_ANOTHER_LOG_ANSWERS: Final = 3
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
            offset: the next offset to apply.
            end: where its log ended when it was asked; None: there was no answer.
        """
        if end is None or end <= offset or offset != self._offset:
            self._offset = offset
            self._since = now if end is not None and end > offset else None
            return False
        if self._since is None:
            self._since = now
        return now - self._since >= self._stall_s


async def watch(
    bootstrap: str,
    name: str,
    topic: str,
    offsets: Callable[[], Mapping[int, int]],
    *,
    stall_s: float = STALL_S,
    interval_s: float = _INTERVAL_S,
) -> None:
    """Watch the owned partitions, for ever.

    Args:
        bootstrap: servers, host:port, comma separated.
        name: the client id.
        topic: of the activity.
        offsets: gives the next offset to apply of each owned and restored partition.
        stall_s: how long one may stand still.
        interval_s: how often the broker is asked.

    Raises:
        RuntimeFault: a partition stands still, or its log is another one.
    """
    loop = asyncio.get_running_loop()
    detectors: dict[int, StallDetector] = {}
    behind: dict[int, int] = {}
    consumer: AIOKafkaConsumer | None = None
    try:
        while True:
            await asyncio.sleep(interval_s)
            # Where the engines stand is read before the broker is asked: what comes meanwhile is not held against them.
            owned = dict(offsets())
            detectors = {number: detectors.get(number) or StallDetector(stall_s) for number in owned}
            behind = {number: behind.get(number, 0) for number in owned}
            if not owned:
                continue
            ends: dict[int, int] = {}
            try:
                if consumer is None:
                    consumer = await _client(bootstrap, name)
                found = await consumer.end_offsets([TopicPartition(topic, number) for number in owned])
                ends = {tp.partition: end for tp, end in found.items()}
            except KafkaError:
                # It may be this client that hangs: the next question is another one's.
                if consumer is not None:
                    await abandon(consumer)
                consumer = None
            for number, offset in owned.items():
                end = ends.get(number)
                if end is not None:
                    behind[number] = behind[number] + 1 if end < offset else 0
                    if behind[number] == _ANOTHER_LOG_ANSWERS:
                        raise another_log(topic, number, offset, f"it ends at offset {end}")
                if detectors[number].told(loop.time(), offset=offset, end=end):
                    raise RuntimeFault(
                        f"{topic}-{number} goes on (to offset {end}), but nothing beyond offset {offset} has been "
                        f"applied for {stall_s:.0f} s: the consumer stands still. Start the worker again"
                    )
    finally:
        if consumer is not None:
            await abandon(consumer)


async def _client(bootstrap: str, name: str) -> AIOKafkaConsumer:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers(bootstrap),
        client_id=name,
        group_id=None,
        enable_auto_commit=False,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )
    try:
        await consumer.start()
    except BaseException:
        with suppress(KafkaError):
            await abandon(consumer)
        raise
    return consumer
