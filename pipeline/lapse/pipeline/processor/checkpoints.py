"""How does one partition's state become durable, so that only its owner can make it so?

One transactional producer a partition, under the transactional id `<group>-<partition>`. Whoever starts it fences its
predecessor: the broker aborts what that one had open and refuses whatever it sends from then on. Generations of the
consumer group would not do: they fence commits of offsets alone, and an unfenced owner that woke from a long stop wrote
its old state over the new owner's (measured: 340 of 27,645 endings lost; fenced: none).

One transaction holds the changed state, the marker (last), and the positions in the input topics: activity, which must
equal the marker's, and revocations up to which copies stand in the log. So after any crash all of it is from one cut.

After any error the producer is not used again: the engine's dirty marks are gone with the cut, so what was cut can only
be had by restoring. `Fenced` means that another owner is at work; everything else is a `RuntimeFault`.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from aiokafka import AIOKafkaProducer, OffsetAndMetadata, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from lapse.pipeline.clients import abandon, servers
from lapse.pipeline.engine import Checkpoint
from lapse.pipeline.processor import failpoints
from lapse.pipeline.processor.originals import Copied
from lapse.schemas import LapseError, RuntimeFault, TopicNames

__all__ = ["CHECKPOINT_DEADLINE_S", "COPIED_KEY", "EPOCH_KEY", "Fenced", "StateWriter", "transactional_id"]

# A transaction coordinator that is killed is replaced within 9 s (broker.session.timeout.ms) and loads its log;
# commits came through after 11.8 s without an error (measured), and Kafka's own tests allow 18 s and 5. Beyond that
# an outage is sat out as long as the outlets do (outlet.DELIVERY_DEADLINE_S).
CHECKPOINT_DEADLINE_S: Final = 120.0
# The coordinator aborts a transaction that is open for longer, and with it fences this producer: later than the above.
_TRANSACTION_TIMEOUT_MS: Final = 180_000
_REQUEST_TIMEOUT_MS: Final = 30_000
_START_DEADLINE_S: Final = 60.0

# lapse.state takes batches of 8 MiB; 768 KiB hold some 180 records of 64 sessions. Ten such are a whole partition of
# 125,000 sessions, so a checkpoint takes a handful of requests.
_BATCH_BYTES: Final = 768 * 1024
# A record larger than a batch travels alone: 64 sessions with 64 KiB of attributes each.
_REQUEST_BYTES_MAX: Final = 8 * 1024 * 1024

EPOCH_KEY: Final = b"e"
"""Under it `lapse.state` has the epoch that the partition's owner ticks under, in decimal (ticks.py)."""

COPIED_KEY: Final = b"o"
"""Under it `lapse.state` has up to where revocations are copied: a broker forgets positions with a deleted topic."""


class Fenced(LapseError):
    """Another owner of the partition has begun: this one writes nothing more."""


def transactional_id(group: str, partition: int) -> str:
    """Return the id that all owners of the partition share, and by which each fences the one before."""
    return f"{group}-{partition}"


class StateWriter:
    """Writes one partition's checkpoints, until another owner starts one for the same partition."""

    def __init__(
        self,
        bootstrap: str,
        topics: TopicNames,
        group: str,
        partition: int,
        reach: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Connect nothing yet. `reach` is told of the failpoint within a checkpoint (failpoints.py)."""
        self._topics = topics
        self._group = group
        self._partition = partition
        self._name = transactional_id(group, partition)
        self._failed: Fenced | RuntimeFault | None = None
        self._reach = reach
        self._copied: Copied | None = None  # what was last written of it
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers(bootstrap),
            client_id=self._name,
            transactional_id=self._name,
            transaction_timeout_ms=_TRANSACTION_TIMEOUT_MS,
            request_timeout_ms=_REQUEST_TIMEOUT_MS,
            max_batch_size=_BATCH_BYTES,
            max_request_size=_REQUEST_BYTES_MAX,
        )

    async def fence(self) -> None:
        """Start the producer: from here on no earlier owner writes, and nothing of theirs is left open.

        Raises:
            RuntimeFault: the broker does not answer in time.
        """
        try:
            async with asyncio.timeout(_START_DEADLINE_S):
                await self._producer.start()
        except (KafkaError, TimeoutError) as broken:
            await abandon(self._producer)
            raise RuntimeFault(f"{self._name}: cannot start its transactional producer: {broken!r}") from broken

    async def write(self, checkpoint: Checkpoint, revocations: Copied | None, deadline_s: float) -> None:
        """Make the checkpoint durable, with the position in revocations up to which copies stand in the log.

        Raises:
            Fenced: another owner has begun; nothing of this checkpoint is there.
            RuntimeFault: it did not come through in time; whether it is there is not known.
        """
        if self._failed is not None:
            raise self._failed
        try:
            async with asyncio.timeout(deadline_s):
                await self._transaction(checkpoint, revocations)
        except (ProducerFenced, InvalidProducerEpoch) as fenced:
            self._failed = Fenced(f"{self._name} is fenced: another worker owns the partition")
            raise self._failed from fenced
        except (KafkaError, TimeoutError) as broken:
            self._failed = RuntimeFault(f"{self._name}: a checkpoint at offset {checkpoint.offset} failed: {broken!r}")
            raise self._failed from broken

    async def stop(self) -> None:
        """Disconnect. An open transaction is left to the successor, whose start aborts it."""
        await abandon(self._producer)

    async def _transaction(self, checkpoint: Checkpoint, revocations: Copied | None) -> None:
        producer = self._producer
        await producer.begin_transaction()
        sent: list[asyncio.Future[object]] = []
        batch = producer.create_batch()
        records = checkpoint.records
        if revocations is not None and revocations != self._copied:
            records = [(COPIED_KEY, revocations.encode()), *records]
            self._copied = revocations
        for key, value in records:
            if batch.append(key=key, value=value, timestamp=None) is None:
                sent.append(await producer.send_batch(batch, self._topics.state, partition=self._partition))
                batch = producer.create_batch()
                if (
                    batch.append(key=key, value=value, timestamp=None) is None
                ):  # pragma: no cover - the first always fits
                    raise RuntimeFault(f"{self._name}: a state record of {len(value or b'')} bytes fits no batch")
        if batch.record_count():
            sent.append(await producer.send_batch(batch, self._topics.state, partition=self._partition))
        await asyncio.gather(*sent)
        self._reach(failpoints.MID_CHECKPOINT)
        offsets: dict[TopicPartition, int | OffsetAndMetadata] = {
            TopicPartition(self._topics.activity, self._partition): checkpoint.offset
        }
        if revocations is not None:
            offsets[TopicPartition(self._topics.revocations, self._partition)] = revocations.to_commit()
        await producer.send_offsets_to_transaction(offsets, self._group)
        await producer.commit_transaction()
