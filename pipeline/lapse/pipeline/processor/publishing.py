"""How do one partition's effects reach their topics, in what order, and when do they stand there?

This is step 2 of the order of effects (core.py). Endings and watermarks go to the same partition number of
`lapse.expiries`, warnings likewise, keyed by session reference; endings of one batch before its warnings, and all of
them before the watermark that vouches for them. One idempotent producer keeps that order in the log; sends come from
the partition's own task alone, under its lock.

The first endings of a burst go out before anything else is done (turns.py); the rest follows in slices, those of all
partitions side by side.

A watermark goes out at most once a second (WATERMARK_INTERVAL_MS): ticks come once a second, so also in silence.

What was handed over and is not yet known to stand in the log is kept in `unacknowledged`; a checkpoint takes it over
and waits for it (step 3), so that no state is saved that has forgotten an ending which is not out.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from aiokafka.structs import RecordMetadata

from lapse.pipeline.engine import Effects
from lapse.pipeline.processor import clocks
from lapse.pipeline.processor.metrics import Metrics
from lapse.pipeline.processor.outlet import Outlet
from lapse.pipeline.processor.turns import HEAD_START_S
from lapse.schemas import DeadLetter, SessionEnded, TopicNames, Watermark, encode

__all__ = ["WATERMARK_INTERVAL_MS", "WATERMARK_KEY", "Publisher", "dead_letter_key"]

WATERMARK_KEY: Final = b"watermark"
WATERMARK_INTERVAL_MS: Final = 1_000

# What stands in the log is dropped when so many have gathered, so that the list stays short where endings come one by
# one for the length of an interval (a burst of them is a few batches).
_PRUNE_AT: Final = 4_096

# Endings that are written at a time: those of a full slice are one batch (outlet._BATCH_BYTES), some 5 ms of the loop.
_FIRST_SLICE: Final = 200
_SLICE: Final = 1_000

# Dead letters that are written at a time: of 6 KB each at most, so 1.2 MB.
_LETTERS_SLICE: Final = 200


def dead_letter_key(letter: DeadLetter) -> bytes:
    """Return where the refused record stands: the key of its dead letter."""
    return f"{letter.topic}/{letter.partition}/{letter.offset}".encode()


class Publisher:
    """Publishes what one partition's engine brought about."""

    def __init__(self, topics: TopicNames, partition: int, outlet: Outlet, metrics: Metrics) -> None:
        self._topics = topics
        self._partition = partition
        self._outlet = outlet
        self._metrics = metrics
        self._unacknowledged: list[asyncio.Future[RecordMetadata]] = []
        self._as_of = -1
        self._next_watermark_ms = clocks.mono_ms()

    async def publish(self, effects: Effects, first_out: Callable[[], None] = lambda: None) -> None:
        """Hand over a batch's endings, warnings, violations and dead letters, in this order.

        Args:
            effects: of the batch.
            first_out: called when its first endings are out, or have had HEAD_START_S for it.

        Raises:
            RuntimeFault: the producer has failed.
        """
        topics = self._topics
        # In slices: the first of a burst go out while the others are still being written.
        begin = 0
        if len(effects.endings) > _FIRST_SLICE:
            begin = _FIRST_SLICE
            await self._append_first(effects.endings[:begin], first_out)
        first_out()
        while endings := effects.endings[begin : begin + _SLICE]:
            await self._append_endings(endings)
            await asyncio.sleep(0)
            begin += _SLICE
        await self._append(topics.warnings, [(one.session.encode(), encode(one)) for one in effects.warnings])
        await self._append(topics.violations, [(one.session.encode(), encode(one)) for one in effects.violations])
        for begin in range(0, len(effects.dead_letters), _LETTERS_SLICE):
            letters = effects.dead_letters[begin : begin + _LETTERS_SLICE]
            await self._append(topics.dead_letters, [(dead_letter_key(one), encode(one)) for one in letters])
        self._metrics.published(effects)

    async def watermark(self, as_of: int, offset_ms: int) -> None:
        """Vouch, if it is time and there is news, for all endings decided before `as_of`: they have been published.

        Args:
            as_of: log time.
            offset_ms: of log time to append times, by which guards tell how late this watermark is.
        """
        now_ms = clocks.mono_ms()
        if now_ms < self._next_watermark_ms or as_of <= self._as_of:
            return
        # Ticks come a little more or less than a second apart: from the schedule, not from the last one, or every
        # second watermark would fall out. After a pause the schedule starts anew.
        behind = now_ms - self._next_watermark_ms > WATERMARK_INTERVAL_MS
        self._next_watermark_ms = (now_ms if behind else self._next_watermark_ms) + WATERMARK_INTERVAL_MS
        self._as_of = as_of
        watermark = Watermark(as_of=as_of, offset_ms=offset_ms)
        await self._append(self._topics.expiries, [(WATERMARK_KEY, encode(watermark))])

    def depends_on(self, sent: "asyncio.Future[RecordMetadata]") -> None:
        """Let the next checkpoint wait for this append too."""
        self._unacknowledged.append(sent)

    def take_unacknowledged(self) -> "list[asyncio.Future[RecordMetadata]]":
        """Return what is not yet known to stand in the log; whoever takes it waits for it."""
        taken = self._unacknowledged
        self._unacknowledged = []
        return taken

    async def _append_first(self, endings: Sequence[SessionEnded], first_out: Callable[[], None]) -> None:
        enough = asyncio.get_running_loop().call_later(HEAD_START_S, first_out)
        try:
            await asyncio.wait(await self._append_endings(endings), timeout=HEAD_START_S)
        finally:
            enough.cancel()

    async def _append_endings(self, endings: Sequence[SessionEnded]) -> "list[asyncio.Future[RecordMetadata]]":
        return await self._append(self._topics.expiries, [(one.session.encode(), encode(one)) for one in endings])

    async def _append(self, topic: str, records: list[tuple[bytes, bytes]]) -> "list[asyncio.Future[RecordMetadata]]":
        if not records:
            return []
        if len(self._unacknowledged) >= _PRUNE_AT:
            self._unacknowledged = [sent for sent in self._unacknowledged if not _stands(sent)]
        sent = await self._outlet.send_many(topic, self._partition, records)
        self._unacknowledged += sent
        return sent


def _stands(sent: "asyncio.Future[RecordMetadata]") -> bool:
    return sent.done() and not sent.cancelled() and sent.exception() is None
