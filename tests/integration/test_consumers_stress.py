"""Does a guard know what the topics say, whatever happens to it? A real broker under load, and cut connections.

The oracle is plain set semantics over the topics, read raw when the test is over: a session is refused if any ending or
revocation names it, or a cutoff covers its start. Meanwhile an observer asks again and again about what was refused
once: no denial is ever taken back.

`FULL_SIZE=1` lets a guard be away for 1,000,000 endings, and revocations pour in for a minute.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from lapse.consumers import Guard, session_reference
from lapse.pipeline.broker import maven, record
from lapse.pipeline.settings import Settings
from lapse.schemas import Revocation, TopicNames, encode, partition_of

from tests.consumers.proxy import proxying
from tests.consumers.support import Writer, free_port, read_to_end, until, writing

pytestmark = pytest.mark.slow

FULL = os.environ.get("FULL_SIZE") == "1"
AWAY_ENDINGS = 1_000_000 if FULL else 30_000
REVOCATIONS_PER_S = 5_000
POURING_S = 60.0 if FULL else 6.0
LIVE = session_reference("live")


def _guard(settings: Settings, **options: object) -> Guard:
    given: dict[str, object] = {"service": "shop", "prefix": settings.prefix, "ready_timeout_s": 60.0, **options}
    return Guard(settings.kafka, **given)  # type: ignore[arg-type]


async def _oracle(settings: Settings) -> tuple[set[str], list[tuple[str | None, str | None, int]]]:
    """Return the sessions that the topics name, and the cutoffs (tenant, subject, at), by going through all records."""
    topics = TopicNames(settings.prefix)
    sessions: set[str] = set()
    cutoffs: list[tuple[str | None, str | None, int]] = []
    for topic in (topics.expiries, topics.revocations):
        for stored in await read_to_end(settings, topic, 300.0):
            value = orjson.loads(stored.value)
            if value["type"] == "session.ended" or value.get("session") is not None:
                sessions.add(value["session"])
            elif value["type"] == "revocation":
                cutoffs.append((value.get("tenant"), value.get("subject"), stored.timestamp))
    return sessions, cutoffs


class _Observer:
    """Asks again and again about sessions that were refused once."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self.refused: dict[str, None] = {}
        self.taken_back: list[str] = []

    def look(self, sessions: list[str]) -> None:
        for session in sessions:
            if not self._guard.check(session, on_stale="allow").allowed:
                self.refused[session] = None

    async def run(self) -> None:
        while True:
            for number, session in enumerate(list(self.refused)):
                if self._guard.check(session, on_stale="allow").allowed:
                    self.taken_back.append(session)
                if number % 500 == 0:
                    await asyncio.sleep(0)
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _observing(guard: Guard) -> AsyncIterator[_Observer]:
    observer = _Observer(guard)
    running = asyncio.create_task(observer.run())
    try:
        yield observer
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not observer.taken_back


async def _agrees(guard: Guard, settings: Settings) -> int:
    """Assert that the guard refuses what the oracle refuses, and nothing else; return how many sessions that are."""
    sessions, cutoffs = await _oracle(settings)
    assert set(guard._denials.sessions) == sessions
    for number, session in enumerate(sessions):
        assert not guard.check(session)
        if number % 1_000 == 0:
            await asyncio.sleep(0)  # the guard goes on reading
    for tenant, subject, at in cutoffs:
        assert not guard.check(LIVE, subject=subject, tenant=tenant, started_at=at)
        later = max(stamp for whose, who, stamp in cutoffs if (whose, who) == (tenant, subject)) + 1
        assert guard.check(LIVE, subject=subject, tenant=tenant, started_at=later).allowed
    assert guard.check(LIVE).allowed
    return len(sessions)


async def _pour(writer: Writer, name: str, seconds: float) -> None:
    """Write revocations at the rate: of sessions, and one in twenty of a subject."""
    began, done = time.monotonic(), 0
    partitions = writer.settings.partitions
    while (passed := time.monotonic() - began) < seconds:
        for number in range(done, int(passed * REVOCATIONS_PER_S)):
            subject = f"{name}-{number % 500}"
            session = None if number % 20 == 0 else session_reference(f"{name}-{number}")
            order = Revocation(id=f"{name}-{number}", session=session, subject=subject)
            partition = partition_of(subject, None, partitions)
            await writer.producer.send(writer.topics.revocations, encode(order), partition=partition)
        done = int(passed * REVOCATIONS_PER_S)
        await asyncio.sleep(0.01)
    await writer.producer.flush()


async def test_a_start_while_revocations_pour_in_misses_none(settings: Settings) -> None:
    async with writing(settings) as writer:
        await _pour(writer, "before", 1.0)
        pouring = asyncio.create_task(_pour(writer, "meanwhile", POURING_S))
        await asyncio.sleep(0.5)
        async with _guard(settings) as guard, _observing(guard) as observer:
            assert guard.fresh, guard.why_stale  # although they go on pouring in
            at_start = guard.entries
            known = guard._denials.sessions
            observer.look(known[:: max(1, len(known) // 500)])
            await pouring
            await _caught_up(guard, settings)
            seen = await _agrees(guard, settings)
    assert at_start > REVOCATIONS_PER_S // 4
    assert seen > at_start


async def _caught_up(guard: Guard, settings: Settings) -> None:
    """Return when the guard has applied what stands in the topics now."""
    topics = TopicNames(settings.prefix)
    counts = [len(await read_to_end(settings, topics.revocations, 300.0))]
    await until(lambda: sum(guard.intake.positions["revocations"]) >= counts[0], 300.0)
    await until(lambda: guard.fresh, 60.0)


async def _write_endings(producer: AIOKafkaProducer, writer: Writer, first: int, count: int) -> None:
    partitions = writer.settings.partitions
    value = orjson.loads(encode(await writer.end(session_reference(f"away-{first}"), "u")))
    batches = [producer.create_batch() for _ in range(partitions)]
    topic = writer.topics.expiries
    sent = []
    for number in range(first, first + count):
        session, subject = session_reference(f"away-{number}"), f"u-{number}"
        partition = partition_of(subject, None, partitions)
        key, ending = session.encode(), orjson.dumps(value | {"session": session, "subject": subject})
        if batches[partition].append(key=key, value=ending, timestamp=None) is None:
            sent.append(await producer.send_batch(batches[partition], topic, partition=partition))
            batches[partition] = producer.create_batch()
            batches[partition].append(key=key, value=ending, timestamp=None)
    for partition, batch in enumerate(batches):
        sent.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*sent)


@pytest.fixture
def behind_proxy(tmp_path: Path) -> Iterator[tuple[Settings, int, int]]:
    """Settings that reach a broker directly, its port, and the port that it tells clients of another listener."""
    java = maven.find_java()
    assert java is not None, "a broker with a listener of this test's own needs Java here"
    inside, outside, told, controller = (free_port() for _ in range(4))
    home = tmp_path / "broker" / "kafka"
    home.mkdir(parents=True)
    # The ports of a last start are taken again: so those that it is started with are these.
    listeners = f"listeners=PLAINTEXT://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller}\n"
    (home / "server.properties").write_text(listeners)
    started = maven.start(
        tmp_path / "broker",
        java,
        lambda _: None,
        overrides={
            "listeners": f"PLAINTEXT://127.0.0.1:{inside},OUTSIDE://127.0.0.1:{outside},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{inside},OUTSIDE://127.0.0.1:{told}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,OUTSIDE:PLAINTEXT,CONTROLLER:PLAINTEXT",
        },
    )  # fmt: skip
    settings = Settings(
        kafka=f"127.0.0.1:{inside}", prefix="t.", partitions=4, replication=1, worker="w", directory=tmp_path / ".lapse"
    )
    try:
        yield settings, outside, told
    finally:
        maven.stop(record.read(tmp_path / "broker") or started)


async def test_a_guard_that_was_cut_off_for_very_many_endings_learns_them_all(
    behind_proxy: tuple[Settings, int, int],
) -> None:
    settings, outside, told = behind_proxy
    through = settings.model_copy(update={"kafka": f"127.0.0.1:{told}"})
    async with writing(settings) as writer, proxying(outside, told) as proxy:
        await _write_endings(writer.producer, writer, 0, 1_000)
        async with (
            _guard(through, stale_after_ms=3_000, on_stale="deny", report=False) as guard,
            _observing(guard) as observer,
        ):
            assert guard.fresh, guard.why_stale
            observer.look([session_reference(f"away-{number}") for number in range(0, 1_000, 5)])
            assert len(observer.refused) == 200
            proxy.answers = False  # requests still arrive: connections look alive to both ends
            cut_at = time.monotonic()
            await _write_endings(writer.producer, writer, 1_000, AWAY_ENDINGS)
            await until(lambda: not guard.fresh, 15.0)
            assert time.monotonic() - cut_at > 1.5
            assert guard.check(LIVE).stale
            last = session_reference(f"away-{AWAY_ENDINGS + 999}")
            assert guard.check(last).stale  # refused only because it is stale
            proxy.heal()
            await until(lambda: guard.fresh, 300.0)
            assert not guard.check(last).stale  # fresh means that it has all of them
            assert await _agrees(guard, settings) == AWAY_ENDINGS + 1_000


@pytest.mark.parametrize("way", ["answers", "requests"])
async def test_a_connection_cut_one_way_makes_it_stale_exactly_while_it_lasts(
    way: str, behind_proxy: tuple[Settings, int, int]
) -> None:
    settings, outside, told = behind_proxy
    through = settings.model_copy(update={"kafka": f"127.0.0.1:{told}"})
    async with writing(settings) as writer, proxying(outside, told) as proxy:
        await _write_endings(writer.producer, writer, 0, 100)
        async with (
            _guard(through, stale_after_ms=3_000, report=False) as guard,
            _observing(guard) as observer,
        ):
            observer.look([session_reference(f"away-{number}") for number in range(100)])
            began = time.monotonic()
            while time.monotonic() - began < 4.0:  # longer than stale_after: never stale while it hears
                assert guard.fresh, guard.why_stale
                await asyncio.sleep(0.01)
            setattr(proxy, way, False)
            cut_at = time.monotonic()
            await asyncio.sleep(0.5)  # a fetch that had reached the broker is answered before that is over
            behind = session_reference("behind the cut")
            await writer.revoke(Revocation(id="r-1", session=behind, subject="u"))
            await until(lambda: not guard.fresh, 10.0)
            # What it knew was up to a second old, and is known to be old from then on.
            assert 1.5 < time.monotonic() - cut_at < 4.0
            while time.monotonic() - cut_at < 8.0:
                assert not guard.fresh
                assert guard.check(behind).stale
                await asyncio.sleep(0.01)
            proxy.heal()
            with contextlib.suppress(TimeoutError):
                await until(lambda: guard.fresh, 60.0)
            assert guard.why_stale is None
            assert not guard.check(behind)
            assert not guard.check(behind).stale
            await _agrees(guard, settings)


async def test_a_service_whose_loop_stood_still_is_stale_until_it_has_read_on(settings: Settings) -> None:
    session = session_reference("meanwhile")
    async with writing(settings) as writer, _guard(settings, stale_after_ms=3_000, on_stale="deny") as guard:
        assert guard.check(LIVE).allowed
        await writer.revoke(Revocation(id="r-0", session=session_reference("before"), subject="u"))
        time.sleep(3.5)  # noqa: ASYNC251  # what is tested: the service's own code holds the loop
        assert guard.check(LIVE).stale
        assert guard.stale_ms >= 3_000
        await writer.revoke(Revocation(id="r-1", session=session, subject="u"))
        await until(lambda: guard.fresh, 30.0)
        assert not guard.check(session).stale
        assert not guard.check(session)
