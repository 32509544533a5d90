"""How does a record reach the partition that its subject belongs to?

A service with another partitioner, or none, puts records where they do not belong. The engine hands them out
(`Effects.forwards`); this appends them to the right partition, in order, with their ages grown by the time that has
passed since they were stamped here and with the workers' signature. What time has passed is told by the owner's
estimate of log time (log_time.py); so nothing is forwarded before the first acknowledgement has given one. An age that
grew too little would only let the session live longer, one that grew by a wrong wall clock could end it.

The order matters: the target counts each origin once, by the highest (offset, index) it has seen of it. After a crash
all since the last checkpoint is forwarded again, in order, and what was counted is dropped there.

A checkpoint waits for what is forwarded before it, as for every effect.
"""

import asyncio
from functools import partial
from typing import Any, Final

import orjson
from aiokafka.structs import RecordMetadata

from lapse.pipeline.engine import Forward
from lapse.pipeline.processor import clocks
from lapse.pipeline.processor.log_time import LogTime
from lapse.pipeline.processor.outlet import Outlet
from lapse.schemas import INT64_MAX, TopicNames, sign, subject_key

__all__ = ["Forwarder", "grown"]

# Ages of a record: how long ago, by its writer, at its stamp. `pause_ms`, `session_age_ms` and `hold_ms` are lengths.
_AGES: Final = ("age_ms", "since_ms")

# What may wait for the first estimate: a few batches, some megabytes. Then applying waits as well.
_WAITING_MAX: Final = 100_000


def grown(record: dict[str, Any], by_ms: int) -> dict[str, Any]:
    """Return the record with its ages grown by the time since its stamp; never made younger."""
    by_ms = max(0, by_ms)
    ages = {name: min(record[name] + by_ms, INT64_MAX) for name in _AGES if record.get(name) is not None}
    return {**record, **ages}


class Forwarder:
    """Forwards what one partition holds for others; runs as that partition's task."""

    def __init__(self, topics: TopicNames, outlet: Outlet, log_time: LogTime, worker_key: bytes) -> None:
        self._topic = topics.activity
        self._outlet = outlet
        self._log_time = log_time
        self._key = worker_key
        self._waiting: asyncio.Queue[tuple[Forward, asyncio.Future[RecordMetadata]]] = asyncio.Queue(_WAITING_MAX)

    @property
    def waiting(self) -> bool:
        """Whether something waits, so that an estimate of log time is wanted at once."""
        return not self._waiting.empty()

    async def forward(self, one: Forward) -> "asyncio.Future[RecordMetadata]":
        """Take a record over; return what its acknowledgement will complete."""
        stands: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        await self._waiting.put((one, stands))
        return stands

    async def run(self) -> None:
        """Forward, for ever.

        Raises:
            RuntimeFault: the producer has failed.
        """
        await self._log_time.wait_known()  # before any is taken out: `waiting` is what asks for the tick that tells it
        while True:
            one, stands = await self._waiting.get()
            sent = await self._send(one)
            sent.add_done_callback(partial(_pass_on, stands))

    async def _send(self, one: Forward) -> "asyncio.Future[RecordMetadata]":
        passed = self._log_time.surely_at(clocks.mono_ms(), clocks.wall_at()) - one.stamp
        record = grown(one.record, int(passed))
        record["mac"] = sign(record, topic=self._topic, partition=one.partition, key=self._key)
        key = subject_key(record["subject"], record.get("tenant"))
        return await self._outlet.send(self._topic, one.partition, orjson.dumps(record), key)


def _pass_on(to: "asyncio.Future[RecordMetadata]", done: "asyncio.Future[RecordMetadata]") -> None:
    if to.done():
        return
    if done.cancelled():
        to.cancel()
    elif (error := done.exception()) is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
