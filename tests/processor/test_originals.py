"""Goal: orders and policies are passed over by no worker without a word, whatever became of their topics.

Method: the copier is given what a client brings that has lost its place; records and books are compared. Topics that
are really made anew are in tests/integration/test_processor_originals.py.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, OffsetAndMetadata, TopicPartition
from aiokafka.structs import RecordMetadata

from lapse.pipeline.engine.policies import PolicyBook
from lapse.pipeline.processor.copies import Copier
from lapse.pipeline.processor.metrics import Metrics
from lapse.pipeline.processor.originals import Copied
from lapse.pipeline.processor.outlet import Outlet
from lapse.pipeline.processor.witnesses import Witness
from lapse.pipeline.settings import Settings
from lapse.schemas import Policy, Revocation, RuntimeFault, encode

KEY = "a key of this test, nothing to hide"
SETTINGS = Settings(kafka="127.0.0.1:1", partitions=2, worker="w-1", worker_key=KEY)
REVOCATIONS = TopicPartition("lapse.revocations", 1)
POLICIES = TopicPartition("lapse.policies", 0)


def record(tp: TopicPartition, offset: int, at: int = 1_000) -> ConsumerRecord:
    revocation = tp.topic == REVOCATIONS.topic
    value = Revocation(id=f"r-{offset}", everyone=True) if revocation else Policy(name="default", idle_ms=60_000)
    return ConsumerRecord(tp.topic, tp.partition, offset, at, 1, None, encode(value), None, 0, 0, ())


class Taking:
    """An outlet that takes everything, once it is let."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.given = asyncio.Event()
        self.stands: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()

    async def send(self, topic: str, partition: int, value: bytes, key: bytes | None) -> Any:
        self.values.append(value)
        self.given.set()
        return self.stands


class Begins:
    """A consumer whose log begins somewhere."""

    def __init__(self, at: int = 0) -> None:
        self._at = at

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, self._at)


def copier_of(outlet: Taking, copied: Copied | None) -> Copier:
    copier = Copier(SETTINGS, KEY.encode(), cast(Outlet, outlet), Metrics())
    copier.own(1, copied)
    return copier


async def brought(copier: Copier, tp: TopicPartition, *offsets: int, begins: int = 0) -> None:
    records = [record(tp, offset, 1_000 + offset) for offset in offsets]
    await copier._copy(cast(AIOKafkaConsumer, Begins(begins)), tp, records)


async def test_a_client_that_begins_anew_takes_no_position_back() -> None:
    """Else a topic that was made anew would be followed as if it were the old one."""
    outlet = Taking()
    outlet.stands.set_result(cast(RecordMetadata, None))
    copier = copier_of(outlet, Copied(5))
    await brought(copier, REVOCATIONS, 0, 1)
    assert copier.copied(1) == Copied(5)
    assert outlet.values == []
    await brought(copier, REVOCATIONS, 4, 5, 6)
    assert copier.copied(1) == Copied(7, 1_006)
    assert len(outlet.values) == 2
    await brought(copier, POLICIES, 0, 1)
    await brought(copier, POLICIES, 0)
    assert copier.positions() == {REVOCATIONS: 7, POLICIES: 2}


async def test_orders_that_are_gone_before_they_were_copied_halt_and_holes_of_transactions_do_not() -> None:
    outlet = Taking()
    outlet.stands.set_result(cast(RecordMetadata, None))
    copier = copier_of(outlet, Copied(5))
    await brought(copier, REVOCATIONS, 7, begins=5)
    assert copier.copied(1) == Copied(8, 1_007)
    with pytest.raises(RuntimeFault, match=r"revocations-1 begins at offset 11, .*only up to offset 8.*order again"):
        await brought(copier, REVOCATIONS, 11, begins=11)
    assert copier.copied(1) == Copied(8, 1_007)


async def test_the_copier_tells_the_watchdog_nothing_while_it_waits_for_acknowledgements() -> None:
    outlet = Taking()
    copier = copier_of(outlet, None)
    assert copier.positions() == {REVOCATIONS: 0, POLICIES: 0}
    copying = asyncio.create_task(brought(copier, REVOCATIONS, 0))
    await outlet.given.wait()
    assert copier.positions() == {REVOCATIONS: None, POLICIES: None}
    outlet.stands.set_result(cast(RecordMetadata, None))
    await copying
    assert copier.positions() == {REVOCATIONS: 1, POLICIES: 0}


@pytest.mark.parametrize("copied", [Copied(3, 1_800_000_000_000), Copied(0)])
def test_a_position_is_committed_with_what_stands_before_it(copied: Copied) -> None:
    assert Copied.committed(copied.to_commit()) == copied


def test_a_position_that_was_committed_without_more_is_taken() -> None:
    assert Copied.committed(OffsetAndMetadata(7, "")) == Copied(7)
    assert Copied.committed(None) is None


def test_what_a_witness_says() -> None:
    witness = Witness(7, 1_007)

    def says(offset: int | None, at: int = 0, **more: Any) -> bool:
        found = None if offset is None else record(REVOCATIONS, offset, at)
        return witness.contradicted(found, **{"begins": 0, **more}) is not None

    assert not says(7, 1_007)
    assert says(7, 2_000)
    assert says(7, 2_000, compacted=True)
    assert says(8, 1_008)
    assert not says(8, 1_008, compacted=True)
    assert not says(8, 1_008, begins=8)  # trimmed
    assert not says(0, 1)  # an old leader's log, or one that ends below: its end tells
    assert not says(None)


def test_a_book_knows_a_log_that_it_is_not_of() -> None:
    book = PolicyBook()
    assert PolicyBook().version is None
    strict, lax = Policy(name="default", idle_ms=60_000), Policy(name="default", idle_ms=90_000)
    assert not book.passes_over(0, strict)
    book.load([[4, strict.model_dump(mode="json")]])
    assert book.version == 4
    assert not book.passes_over(4, strict)
    assert not book.passes_over(5, lax)
    assert book.passes_over(4, lax)
    assert book.passes_over(3, strict)
    assert not book.passes_over(0, Policy(name="other", idle_ms=60_000))


def test_limits_that_a_former_release_did_not_know_make_no_other_policy() -> None:
    book = PolicyBook()
    book.load([[4, {"name": "default", "idle_ms": 60_000}]])
    assert not book.passes_over(4, Policy(name="default", idle_ms=60_000, absolute_ms=90_000))
