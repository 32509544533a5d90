"""A client of the log that knows the published documents and nothing else of ours: confluent-kafka, plain dicts,
JSON Schema. What it writes to the topics is checked against the schemas before, what it reads afterwards.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from jsonschema import Draft202012Validator

__all__ = ["PATIENCE_S", "RawReader", "RawWriter", "Stored", "published"]

SCHEMAS = Path(__file__).parents[2] / "schemas" / "json"

# How long a condition is awaited: far more than anything takes on a busy machine, so that only a fault runs into it.
PATIENCE_S = 60.0

# A topic that has just been made has no leader yet.
_NOT_YET = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)

JSON = dict[str, Any]


@functools.cache
def published(topic: str) -> Draft202012Validator:
    """Return the published schema of a topic's values, such as `lapse.expiries`."""
    return Draft202012Validator(json.loads((SCHEMAS / f"{topic}.json").read_text()))


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it stands in the log; `stamp` is its append time."""

    partition: int
    offset: int
    stamp: int
    key: bytes | None
    value: bytes | None

    @property
    def json(self) -> JSON:
        assert self.value is not None
        found = json.loads(self.value)
        assert isinstance(found, dict)
        return found


def _stored(message: Message) -> Stored:
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    return Stored(partition, offset, message.timestamp()[1], message.key(), message.value())


class RawWriter:
    """Appends records and waits until they stand in the log.

    Its partitioner is murmur2_random, as the documents ask of librdkafka's clients; `config` may say otherwise.
    """

    def __init__(self, bootstrap: str, prefix: str = "lapse.", **config: Any) -> None:
        self._prefix = prefix
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                "log_level": 0,
                "message.max.bytes": 4_000_000,
                **{name.replace("_", "."): value for name, value in config.items()},
            }
        )

    def append(
        self,
        topic: str,
        value: bytes | None,
        key: bytes | None = None,
        partition: int | None = None,
    ) -> Stored:
        """Append any bytes to `<prefix><topic>`."""
        return self.append_all(topic, [(value, key, partition)])[0]

    def append_all(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None, int | None]]) -> list[Stored]:
        """Append (value, key, partition or None) in one go."""
        delivered: dict[int, Stored] = {}
        errors: list[object] = []

        def note(number: int, error: object, message: Message) -> None:
            if error is not None:
                errors.append(error)
            else:
                delivered[number] = _stored(message)

        count = 0
        for number, (value, key, partition) in enumerate(records):
            self._producer.produce(
                f"{self._prefix}{topic}",
                value,
                key,
                -1 if partition is None else partition,
                on_delivery=functools.partial(note, number),
            )
            count += 1
        assert self._producer.flush(PATIENCE_S) == 0
        assert not errors, errors
        return [delivered[number] for number in range(count)]

    def activity(self, record: JSON, *, keyed: bool = True, partition: int | None = None) -> Stored:
        """Append one activity record, under the key of its subject."""
        return self.activities([record], keyed=keyed, partition=partition)[0]

    def activities(self, records: Iterable[JSON], *, keyed: bool = True, partition: int | None = None) -> list[Stored]:
        """Append activity records in one go."""
        wanted = []
        for record in records:
            published("lapse.activity").validate(record)
            wanted.append((json.dumps(record).encode(), _key_of(record) if keyed else None, partition))
        return self.append_all("activity", wanted)

    def transaction(self, records: Iterable[JSON]) -> list[Stored]:
        """Append activity records in one transaction, by a writer that has a `transactional_id`."""
        self._producer.init_transactions(PATIENCE_S)
        self._producer.begin_transaction()
        stored = self.activities(records)
        self._producer.commit_transaction(PATIENCE_S)
        return stored

    def revoke(self, order: JSON, *, partition: int | None = None) -> Stored:
        """Append a revocation that has a subject."""
        published("lapse.revocations").validate(order)
        return self.append("revocations", json.dumps(order).encode(), _key_of(order), partition)

    def revoke_everywhere(self, order: JSON, partitions: int) -> list[Stored]:
        """Append a revocation that has no subject: to every partition, with one id and no key."""
        published("lapse.revocations").validate(order)
        value = json.dumps(order).encode()
        return self.append_all("revocations", [(value, None, number) for number in range(partitions)])

    def policy(self, policy: JSON) -> Stored:
        """Append a policy."""
        published("lapse.policies").validate(policy)
        return self.append("policies", json.dumps(policy).encode(), policy["name"].encode())


def _key_of(record: Mapping[str, Any]) -> bytes:
    tenant, subject = record.get("tenant"), record["subject"]
    return (subject if tenant is None else f"{tenant}/{subject}").encode()


class RawReader:
    """Reads a topic from its beginning on, further with each `until`; checks values against the published schema."""

    def __init__(self, bootstrap: str, prefix: str, topic: str, alive: Callable[[], None] = lambda: None) -> None:
        """Args: alive: raises where it is in vain to wait for more."""
        self._alive = alive
        self.name = f"{prefix}{topic}"
        self.records: list[Stored] = []
        self._reached: dict[int, int] = {}
        # Of activity and revocations anything may be there: tests put it there.
        self._schema = None if topic in ("activity", "revocations", "policies") else published(f"lapse.{topic}")
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"{self.name}-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "log_level": 0,
                "fetch.wait.max.ms": 50,
                "fetch.message.max.bytes": 4_000_000,
            }
        )
        partitions = self._consumer.list_topics(self.name, timeout=PATIENCE_S).topics[self.name].partitions
        self._partitions = [TopicPartition(self.name, number, OFFSET_BEGINNING) for number in partitions]
        self._consumer.assign(self._partitions)

    def close(self) -> None:
        self._consumer.close()

    def until(self, enough: Callable[[list[Stored]], bool], what: str) -> list[Stored]:
        """Read on until there is enough; return all that has been read.

        Raises:
            AssertionError: it did not come in time.
        """
        deadline = time.monotonic() + PATIENCE_S
        while not enough(self.records):
            assert time.monotonic() < deadline, f"{self.name}: not in {PATIENCE_S} s: {what}"
            self._alive()
            self._more()
        return self.records

    def to_end(self) -> list[Stored]:
        """Read all that stands there now; return all that has been read."""
        ends = {tp.partition: self._end_of(tp) for tp in self._partitions}
        return self.until(lambda _: all(self._reached.get(of, 0) >= end for of, end in ends.items()), "the end")

    def _end_of(self, tp: TopicPartition) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return self._consumer.get_watermark_offsets(tp, PATIENCE_S)[1]
            except KafkaException as fault:
                if fault.args[0].code() not in _NOT_YET or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _more(self) -> None:
        for message in self._consumer.consume(500, 0.05):
            error = message.error()
            if error is not None:
                # The end of a partition may lie behind markers of transactions, which are no records.
                assert error.code() == KafkaError._PARTITION_EOF, error
                self._note(message, 0)
                continue
            self._note(message, 1)
            record = _stored(message)
            if self._schema is not None:
                self._schema.validate(record.json)
            self.records.append(record)

    def _note(self, message: Message, beyond: int) -> None:
        partition, offset = message.partition(), message.offset()
        assert partition is not None
        assert offset is not None
        self._reached[partition] = offset + beyond
