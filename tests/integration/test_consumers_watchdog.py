"""Goal: a guard whose client hangs is seen as stale, says so, helps itself, and never lets in again whom it refused.

Method: a real guard on a real broker, one of whose consumers comes back from no read any more, as aiokafka's did in the
hangs it is known for; one also keeps swallowing its cancellation. The watchdog's looks are made short.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest
from aiokafka import AIOKafkaConsumer

from lapse.consumers import Cause, Ended, Guard, session_reference
from lapse.consumers.guard import feed
from lapse.pipeline.operations.fleet import Fleet
from lapse.pipeline.settings import Settings
from lapse.schemas import Revocation

from tests.consumers.support import until, writing

LOOK_INTERVAL_S = 0.5
"""2.5 s without a turn, instead of 25 s."""

STALE_AFTER_MS = 3_000
LIVE = session_reference("live")


class _Hanging(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka has no types
    """A consumer that can be made to hang."""

    made: list[_Hanging]
    released: asyncio.Event
    swallows = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.hangs = False
        self.made.append(self)

    async def getmany(self, *partitions: Any, **options: Any) -> Any:
        while self.hangs and not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                if not self.swallows:
                    raise
        return await super().getmany(*partitions, **options)

    def follows(self, topic: str) -> bool:
        return any(partition.topic == topic for partition in self.assignment())


@pytest.fixture(params=[False, True], ids=["hangs", "swallows its cancellation"])
def consumers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[_Hanging]:
    """The consumers that guards have made."""
    made: list[_Hanging] = []
    kind = type("_OfThisTest", (_Hanging,), {"made": made, "released": asyncio.Event(), "swallows": request.param})
    monkeypatch.setattr(feed, "AIOKafkaConsumer", kind)
    monkeypatch.setattr(feed, "_LOOK_INTERVAL_S", LOOK_INTERVAL_S)
    monkeypatch.setattr(feed, "_STOP_TIMEOUT_S", LOOK_INTERVAL_S)
    return made


@contextlib.asynccontextmanager
async def hanging(consumers: list[_Hanging], topic: str) -> AsyncIterator[None]:
    """Let the newest consumer of a topic hang."""
    consumer = next(one for one in reversed(consumers) if one.follows(topic))
    consumer.hangs = True
    try:
        yield
    finally:
        consumer.released.set()


def stands_out(guard: Guard) -> list[str]:
    """Return what `lapse fleet` says of the guard's status."""
    fleet = Fleet()
    fleet.status(guard.status(), 0, (0, 0))
    (row,) = fleet.rows(0, 1)
    return [finding.kind for finding in row.findings]


@pytest.mark.parametrize("source", ["expiries", "revocations"])
async def test_a_hanging_client_is_seen_replaced_and_changes_no_refusal(
    settings: Settings, consumers: list[_Hanging], source: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended, revoked, meanwhile = (session_reference(name) for name in ("ended", "revoked", "meanwhile"))
    heard: list[Ended] = []
    async with (
        writing(settings) as writer,
        Guard(settings.kafka, service="shop", prefix=settings.prefix, stale_after_ms=STALE_AFTER_MS) as guard,
    ):
        await until(lambda: guard.fresh, 60)
        guard.on_ended(heard.append)
        await writer.end(ended, "u-1")
        await writer.revoke(Revocation(id="r-1", session=revoked, subject="u-2"))
        await until(lambda: not guard.check(ended) and not guard.check(revoked))
        made = len(consumers)

        def refuses() -> bool:
            return guard.check(ended).cause == Cause.IDLE and guard.check(revoked).revocation == "r-1"

        topic = f"{settings.prefix}{source}"
        with caplog.at_level(logging.WARNING, "lapse.consumers"):
            async with hanging(consumers, topic):
                await (
                    writer.end(meanwhile, "u-3")
                    if source == "expiries"
                    else writer.revoke(Revocation(id="r-2", session=meanwhile, subject="u-3"))
                )
                taken_back = asyncio.create_task(_until_not(refuses))
                await until(lambda: not guard.fresh, 60)
                assert guard.check(LIVE).stale
                assert stands_out(guard) == ["stale"]
                await until(lambda: not guard.check(meanwhile) and guard.fresh, 60)
        assert {record.levelname for record in caplog.records if "its client hangs" in record.message} == {"WARNING"}
        assert topic in caplog.text
        assert len(consumers) > made
        assert stands_out(guard) == []
        assert guard.check(LIVE).allowed
        assert not guard.check(LIVE).stale
        assert refuses()
        assert not taken_back.done()
        taken_back.cancel()
        assert sorted(one.session for one in heard) == sorted([ended, revoked, meanwhile])


async def _until_not(condition: Callable[[], bool]) -> None:
    """Return when the condition does not hold, looking at each of the loop's turns or so."""
    while condition():  # noqa: ASYNC110  # what is awaited sets no event
        await asyncio.sleep(0.001)


class _Slow(AIOKafkaConsumer):  # type: ignore[misc]  # aiokafka has no types
    """A consumer whose answers about end offsets can be kept back."""

    made: ClassVar[list[_Slow]]
    told: asyncio.Event

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.answers = 0
        self.made.append(self)

    async def end_offsets(self, partitions: Any) -> Any:
        ends = await super().end_offsets(partitions)
        self.answers += 1
        await self.told.wait()
        return ends


async def test_an_answer_that_is_older_than_what_was_read_since_is_no_recreated_topic(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = asyncio.Event()
    told.set()
    monkeypatch.setattr(_Slow, "told", told, raising=False)
    monkeypatch.setattr(_Slow, "made", [], raising=False)
    monkeypatch.setattr(feed, "AIOKafkaConsumer", _Slow)
    names = [session_reference(f"ended-{number}") for number in range(3)]
    async with (
        writing(settings) as writer,
        Guard(settings.kafka, service="shop", prefix=settings.prefix) as guard,
    ):
        await until(lambda: guard.fresh, 60)
        consumers = [one for one in _Slow.made if one.answers]
        told.clear()
        so_far = {one: one.answers for one in consumers}
        await until(lambda: all(one.answers > so_far[one] for one in consumers), 60)
        for name in names:
            await writer.end(name, "u-1")
        await until(lambda: not any(map(guard.check, names)), 60)
        told.set()
        # Whoever had given its consumer up would ask by another one.
        await until(lambda: all(one.answers > so_far[one] + 1 for one in consumers), 60)
    assert "ends at" not in caplog.text


def test_a_start_and_a_stop_that_take_their_time_are_no_hang() -> None:
    assert feed._LOOK_INTERVAL_S * feed._SILENT_LOOKS_MAX > feed._START_TIMEOUT_S + feed._STOP_TIMEOUT_S
