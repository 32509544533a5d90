"""How do revocations and policies get into the log that decides?

Each worker reads `lapse.revocations` of the partitions it owns and the one partition of `lapse.policies`, and appends a
copy of each record to the activity partitions it is for, signed with the workers' key:

- a revocation goes to the activity partition of the same number as `revocation.ordered`, with the original's append
  time as `at`; one that stands in the wrong partition for its subject goes straight to the right one. Where it has no
  subject, whoever wrote it has put it into every partition.
- a policy goes to every owned partition as `policy.adopted`; its version is its offset in `lapse.policies`. A new owner
  copies all that stand there, then follows.

Copies are idempotent, by id and by version, so a position moves only after the copy stands in the log, and what is
copied twice changes nothing. The position in revocations is committed with the partition's checkpoint; policies have
none. A topic that was made anew or trimmed is refused (originals.py).

What cannot be read goes to the dead letters. An unreadable policy is read anew by each start; only the owner of
partition 0 complains of it.
"""

import asyncio
from typing import Final, NamedTuple

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from lapse.pipeline.processor.metrics import Metrics
from lapse.pipeline.processor.originals import Copied, trimmed
from lapse.pipeline.processor.outlet import Outlet, acknowledged
from lapse.pipeline.processor.publishing import dead_letter_key
from lapse.pipeline.processor.reading import consuming
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    BadRecord,
    DeadLetter,
    PolicyAdopted,
    Revocation,
    RevocationOrdered,
    TopicNames,
    encode,
    encode_signed,
    parse_policy,
    parse_revocation,
    partition_of,
)

__all__ = ["Copier"]

# Records copied before their acknowledgements are awaited: 500 copies of some 400 bytes fit one request.
_COPY_BATCH: Final = 500
# How soon a new assignment is noticed where nothing comes; a copy follows within a second.
_POLL_MS: Final = 200


_log = structlog.get_logger("lapse.processor")


class _Copy(NamedTuple):
    """One record to append."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes


class Copier:
    """Copies for all partitions of a worker; runs as one task."""

    def __init__(
        self,
        settings: Settings,
        worker_key: bytes,
        outlet: Outlet,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._topics = TopicNames(settings.prefix)
        self._key = worker_key
        self._outlet = outlet
        self._metrics = metrics
        # By owned partition, up to where revocations stand copied in the log. None: unknown.
        self._copied: dict[int, Copied | None] = {}
        self._policies_tp = TopicPartition(self._topics.policies, 0)
        # The latest of each name. Policies are few: names of classes of sessions.
        self._policies: dict[str, PolicyAdopted] = {}
        self._policies_next = 0
        self._fresh: set[int] = set()
        self._changed = asyncio.Event()
        self._appending = False

    def own(self, partition: int, revocations: Copied | None) -> None:
        """Begin to copy for a partition, revocations from this position on (None: from the start)."""
        self._copied[partition] = revocations
        self._fresh.add(partition)
        self._changed.set()

    def disown(self, partition: int) -> None:
        """Copy for it no more."""
        self._copied.pop(partition, None)
        self._fresh.discard(partition)
        self._changed.set()

    def copied(self, partition: int) -> Copied | None:
        """Return the position in revocations below which all copies stand in the log; None where there is none yet."""
        return self._copied.get(partition)

    def positions(self) -> dict[TopicPartition, int | None]:
        """Return the next offset to read of each log that is followed, for the watchdog.

        None while copies wait for their acknowledgements: nothing is read meanwhile, and the outlet has a deadline.
        """
        if not self._copied:
            return {}
        read = {TopicPartition(self._topics.revocations, number): at for number, at in self._copied.items()}
        followed = {self._policies_tp: self._policies_next} | {tp: at.offset if at else 0 for tp, at in read.items()}
        return {tp: None if self._appending else offset for tp, offset in followed.items()}

    async def run(self) -> None:
        """Copy, for ever.

        Raises:
            RuntimeFault: the broker fails.
        """
        name = f"{self._settings.group}-copies"
        while True:
            while not self._copied:
                self._changed.clear()
                await self._changed.wait()
            async with consuming(self._settings.kafka, name, fetch_max_wait_ms=_POLL_MS) as consumer:
                self._changed.set()
                while self._copied:
                    if self._changed.is_set():
                        self._changed.clear()
                        self._assign(consumer)
                        await self._introduce()
                    batches = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_COPY_BATCH)
                    for tp, records in batches.items():
                        await self._copy(consumer, tp, records)

    def _assign(self, consumer: AIOKafkaConsumer) -> None:
        revocations = {TopicPartition(self._topics.revocations, number): at for number, at in self._copied.items()}
        consumer.assign([*revocations, self._policies_tp])
        consumer.seek(self._policies_tp, self._policies_next)
        for tp, position in revocations.items():
            if position is not None:
                consumer.seek(tp, position.offset)

    async def _introduce(self) -> None:
        """Copy the policies read so far to the partitions that are new here."""
        fresh, self._fresh = self._fresh, set()
        known = sorted(self._policies.values(), key=lambda one: one.version)
        await self._append([self._control(number, one) for one in known for number in sorted(fresh)])

    async def _copy(self, consumer: AIOKafkaConsumer, tp: TopicPartition, records: list[ConsumerRecord]) -> None:
        records = await self._as_they_follow(consumer, tp, records)
        if not records:
            return
        if tp == self._policies_tp:
            await self._append([copy for record in records for copy in self._copies_of_policy(record)])
            self._policies_next = records[-1].offset + 1
        elif tp.partition in self._copied:
            await self._append([self._copy_of_revocation(record) for record in records])
            if tp.partition in self._copied:
                self._copied[tp.partition] = Copied(records[-1].offset + 1, records[-1].timestamp)

    async def _as_they_follow(
        self, consumer: AIOKafkaConsumer, tp: TopicPartition, records: list[ConsumerRecord]
    ) -> list[ConsumerRecord]:
        """Return those that follow what is copied.

        A client that finds no such offset in its log begins at the start of it, without a word. Either the log is
        another one, then the watchdog says so unless the position goes back; or an old leader's, then all is copied.

        Raises:
            RuntimeFault: orders in between are gone.
        """
        copied = self._copied.get(tp.partition)
        following = self._policies_next if tp == self._policies_tp else copied.offset if copied else 0
        if tp != self._policies_tp and copied is not None and records[0].offset > following:
            # Markers of transactions leave holes as well.
            begins = (await consumer.beginning_offsets([tp]))[tp]
            if begins > following:
                raise trimmed(self._settings, tp, begins, following)
        return [record for record in records if record.offset >= following]

    def _copy_of_revocation(self, record: ConsumerRecord) -> _Copy:
        try:
            revocation = parse_revocation(record.value)
            ordered = RevocationOrdered(at=record.timestamp, revocation=revocation)
            return self._control(self._place(revocation, record.partition), ordered)
        except BadRecord as bad:
            return self._refused(record.partition, record, bad)

    def _copies_of_policy(self, record: ConsumerRecord) -> list[_Copy]:
        try:
            adopted = PolicyAdopted(version=record.offset, policy=parse_policy(record.value))
            copies = [self._control(number, adopted) for number in sorted(self._copied)]
        except BadRecord as bad:
            return [self._refused(0, record, bad)] if 0 in self._copied else []
        self._policies[adopted.policy.name] = adopted
        return copies

    def _place(self, revocation: Revocation, found_in: int) -> int:
        if revocation.subject is None:
            return found_in
        return partition_of(revocation.subject, revocation.tenant, self._settings.partitions)

    def _control(self, partition: int, record: RevocationOrdered | PolicyAdopted) -> _Copy:
        """Return the copy, signed for its partition.

        Raises:
            BadRecord: with what the copy adds it would be too large to be read.
        """
        topic = self._topics.activity
        self._metrics.copied(1)
        return _Copy(topic, partition, None, encode_signed(record, topic=topic, partition=partition, key=self._key))

    def _refused(self, partition: int, record: ConsumerRecord, bad: BadRecord) -> _Copy:
        letter = DeadLetter.of(record.topic, record.partition, record.offset, record.value, bad.reason)
        self._metrics.refused(1)
        _log.warning("refused", topic=record.topic, partition=record.partition, offset=record.offset, reason=bad.reason)
        return _Copy(self._topics.dead_letters, partition, dead_letter_key(letter), encode(letter))

    async def _append(self, copies: list[_Copy]) -> None:
        """Append these copies and wait until they stand in the log."""
        self._appending = True
        try:
            await acknowledged(
                [await self._outlet.send(one.topic, one.partition, one.value, one.key) for one in copies]
            )
        finally:
            self._appending = False
