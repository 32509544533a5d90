"""How does what nobody needs any more leave the topics, if no broker's clock may say when?

Kafka's own retention goes by the wall clock of the broker that leads a partition: one that was set eight days forward
deleted a week of input within three seconds (measured). So activity, revocations and expiries are kept by the broker
for ever (`retention.ms=-1`), and each partition's owner deletes what is old by log time, which survives such steps.

Append times cannot be asked for old offsets, since they are what may be wrong. So once an hour (MARK_INTERVAL_MS) the
owner notes log time and where the three topics then end: a *mark*. Whatever stands below it is older. When log time has
come `trimmed_after_ms` (catalogue) beyond a mark, the records below are deleted. Activity is moreover never deleted
beyond the last checkpoint of the moment of the mark: what is to be read again after a crash stays.

Marks are written with the checkpoints (key "t" of lapse.state: the engine knows nothing of it). One that is lost, like
an owner that cannot delete, costs disk until the next: never a record before its time.
"""

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import orjson
import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError

from lapse.pipeline.clients import servers
from lapse.pipeline.processor.reading import consuming
from lapse.pipeline.settings import Settings
from lapse.schemas import RuntimeFault, TopicSpec

__all__ = ["MARKS_KEY", "Mark", "Marks", "Trimmer"]

_log = structlog.get_logger("lapse.processor")

MARKS_KEY: Final = b"t"

# Records stay up to an hour longer than they must: 1/168 of the activity topic's disk.
MARK_INTERVAL_MS: Final = 3_600_000

# 720 marks for sessions of 30 days, 55 bytes each: 40 KB an hour in lapse.state. Beyond it, every second one goes.
_MARKS_MAX: Final = 1_000

_LOOK_INTERVAL_S: Final = 60.0
_DELETE_TIMEOUT_MS: Final = 30_000


class Mark(NamedTuple):
    """Where topics ended at an instant of log time: by topic, the offset below which all is older."""

    at: int
    ends: Mapping[str, int]


class Marks:
    """The marks of one partition, oldest first. Pure."""

    def __init__(self, kept_ms: Mapping[str, int], saved: bytes | None = None) -> None:
        """Args: kept_ms: by topic, for how long records are kept; saved: what `encode` gave."""
        self._kept_ms = kept_ms
        self._marks = [Mark(at, ends) for at, ends in orjson.loads(saved)] if saved is not None else []

    def wants_one(self, time: int) -> bool:
        """Return whether it is time for a mark, by log time."""
        return time > 0 and (not self._marks or time >= self._marks[-1].at + MARK_INTERVAL_MS)

    def note(self, mark: Mark) -> None:
        """Add a mark, and forget those that no topic needs any more."""
        self._marks.append(mark)
        oldest = mark.at - max(self._kept_ms.values())
        needed = max(bisect_right(self._marks, oldest, key=lambda one: one.at) - 1, 0)
        del self._marks[:needed]
        if len(self._marks) > _MARKS_MAX:
            del self._marks[1:-1:2]

    def cuts(self, time: int) -> dict[str, int]:
        """Return, by topic, below which offset records are old enough to go; only topics that have any."""
        cuts = {}
        for topic, kept in self._kept_ms.items():
            old = bisect_right(self._marks, time - kept, key=lambda one: one.at)
            if old and (end := self._marks[old - 1].ends.get(topic, 0)) > 0:
                cuts[topic] = end
        return cuts

    def encode(self) -> bytes:
        """Return the marks for a checkpoint."""
        return orjson.dumps([[mark.at, mark.ends] for mark in self._marks])


class Trimmer:
    """Trims one partition number of the topics; runs as the task of its owner."""

    def __init__(self, settings: Settings, number: int, specs: tuple[TopicSpec, ...], saved: bytes | None) -> None:
        """Args: specs: the catalogue; saved: the marks as of the last checkpoint."""
        self._settings = settings
        self._number = number
        kept = {spec.name: spec.trimmed_after_ms for spec in specs if spec.trimmed_after_ms is not None}
        self._topics = tuple(kept)
        self._marks = Marks(kept, saved)
        self._trimmed: dict[str, int] = {}
        self._changed = False

    def take_changed(self) -> list[tuple[bytes, bytes | None]]:
        """Return the record that a checkpoint has to hold besides the engine's, if there is news."""
        changed, self._changed = self._changed, False
        return [(MARKS_KEY, self._marks.encode())] if changed else []

    async def run(self, activity: str, time: Callable[[], int], saved: Callable[[], int]) -> None:
        """Trim, for ever.

        Args:
            activity: the activity topic, which is not trimmed beyond `saved`.
            time: log time.
            saved: the offset of the last checkpoint.
        """
        while True:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            try:
                await self.look(activity, time(), saved())
            except (KafkaError, RuntimeFault, TimeoutError) as broken:
                _log.warning("could not trim; trying again", partition=self._number, reason=repr(broken))

    async def look(self, activity: str, time: int, saved: int) -> None:
        """Note a mark if it is time for one, and delete what is old."""
        if self._marks.wants_one(time):
            ends = await self._ends()
            self._marks.note(Mark(time, {**ends, activity: min(ends[activity], saved)}))
            self._changed = True
        cuts = {topic: end for topic, end in self._marks.cuts(time).items() if end > self._trimmed.get(topic, 0)}
        if cuts:
            await self._delete(cuts)
            self._trimmed |= cuts
            _log.info("trimmed", partition=self._number, below=cuts)

    async def _ends(self) -> dict[str, int]:
        tps = [TopicPartition(topic, self._number) for topic in self._topics]
        async with consuming(self._settings.kafka, f"{self._settings.group}-trim") as consumer:
            ends = await consumer.end_offsets(tps)
        return {tp.topic: end for tp, end in ends.items()}

    async def _delete(self, cuts: Mapping[str, int]) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=servers(self._settings.kafka))
        try:
            await admin.start()
            await admin.delete_records(
                {
                    TopicPartition(topic, self._number): RecordsToDelete(before_offset=end)
                    for topic, end in cuts.items()
                },
                timeout_ms=_DELETE_TIMEOUT_MS,
            )
        finally:
            await admin.close()
