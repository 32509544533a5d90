"""Does a service with very many sessions come through an outage of the broker?

A broker of this test's own is killed, stays away, and is started again on the same data, under a real worker that is
started again whenever it ends. Meanwhile the service touches its sessions all the time, as its middleware does: with
what it knows of their starts. Afterwards the latest touch of every session stands in the log with the instant at which
it was made, no live session was ended although the outage was longer than the idle timeout, and the publisher has not
grown.

`FULL_SIZE=1` runs it at 5,000 touches a second of 100,000 sessions for 60 s; otherwise it is smaller and shorter. The
full size needs a core for the service: idle endings are held for gap_grace_ms (5 s) after the log's return, and what
was kept must be told by then. On a machine that is busy with other things run it with `chrt -r 1`.
"""

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord

from lapse.consumers import ActivityPublisher
from lapse.consumers.frameworks.gate import Gate
from lapse.consumers.frameworks.identity import Identity
from lapse.consumers.testing import MemoryFeed
from lapse.pipeline.broker import maven, record
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    PackedTouches,
    SessionEnded,
    SessionStarted,
    SessionTouched,
    TopicNames,
    parse_activity,
    parse_expiry,
    parse_packed_entry,
)

from tests.brokers import Broker
from tests.consumers.support import read_to_end
from tests.integration._estate import Estate, estate_on

pytestmark = [pytest.mark.broker, pytest.mark.slow]

FULL = os.environ.get("FULL_SIZE") == "1"
SESSIONS = 100_000 if FULL else 3_000
TOUCHES_PER_S = 5_000 if FULL else 500
AWAY_S = 60.0 if FULL else 12.0
# Every session is touched once in SESSIONS / TOUCHES_PER_S, 20 s or 6 s: the idle timeout is above, the outage longer.
IDLE_MS = 40_000 if FULL else 10_000
STEP_S = 0.05
# A track and its entries are about 570 bytes a session (coalescer.py); the rest is what the client and Python keep.
GROWTH_MAX_BYTES = SESSIONS * 1_500 + 60_000_000

BUSY = {"type": "policy", "name": "busy", "idle_ms": IDLE_MS, "absolute_ms": None}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[record.BrokerRecord]:
    """A broker of this test's own."""
    java = maven.find_java()
    assert java is not None, "a broker that may be killed needs Java here: a container's process is not ours"
    started = maven.start(tmp_path / "broker", java, lambda _: None)
    try:
        yield started
    finally:
        maven.stop(record.read(tmp_path / "broker") or started)


@pytest.fixture
def estate(own: record.BrokerRecord, tmp_path: Path) -> Iterator[Estate]:
    with estate_on(Broker(own.bootstrap, "maven"), tmp_path, BUSY) as made:
        yield made


class _People:
    """Sessions that are touched in turn, so that none is ever silent for long."""

    def __init__(self, publisher: ActivityPublisher) -> None:
        self._publisher = publisher
        self._gate = Gate(MemoryFeed().guard(), publisher)
        started_at = int(time.time() * 1000)
        identities = [Identity(f"s-{number}", f"u-{number}", started_at=started_at) for number in range(SESSIONS)]
        self._sessions = [self._gate.check(identity) for identity in identities]
        self._turn = 0
        self.touched_at: dict[str, float] = {}  # monotonic ms of the latest touch of each session
        self.slowest_s = 0.0

    async def log_in(self) -> None:
        for number, session in enumerate(self._sessions):
            self._publisher.started(session.reference, session.subject, policy="busy")
            self.touched_at[session.reference] = time.monotonic() * 1000
            while self._publisher.waiting > 10_000:  # noqa: ASYNC110  # it sets no event when it has written
                await asyncio.sleep(0.005)
            if number % 500 == 0:
                await asyncio.sleep(0)
        assert await self._publisher.flush(120.0)

    async def touch(self) -> None:
        """Touch at the rate, until cancelled."""
        began, done = time.monotonic(), 0
        while True:
            wanted = int((time.monotonic() - began) * TOUCHES_PER_S)
            for _ in range(wanted - done):
                session = self._sessions[self._turn % SESSIONS]
                self._turn += 1
                at = time.monotonic() * 1000
                before = time.thread_time()
                self._gate.touch(session)
                self.slowest_s = max(self.slowest_s, time.thread_time() - before)
                self.touched_at[session.reference] = at
            done = wanted
            await asyncio.sleep(STEP_S)


@contextlib.asynccontextmanager
async def _working(estate: Estate) -> AsyncIterator[None]:
    """Start the estate's worker again whenever it ends."""

    async def supervise() -> None:
        while True:
            if not estate.running:
                estate.start()
            await asyncio.sleep(0.5)

    supervising = asyncio.create_task(supervise())
    try:
        yield
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)


@contextlib.asynccontextmanager
async def _touching(people: _People) -> AsyncIterator[None]:
    touching = asyncio.create_task(people.touch())
    try:
        yield
        assert not touching.done(), touching
    finally:
        touching.cancel()
        await asyncio.gather(touching, return_exceptions=True)


async def test_the_latest_touch_of_every_session_arrives_and_no_live_session_is_ended(
    own: record.BrokerRecord, estate: Estate, tmp_path: Path
) -> None:
    java = maven.find_java()
    assert java is not None
    settings = estate.settings
    publisher = ActivityPublisher(settings.kafka, service="shop", prefix=settings.prefix, touch_interval_ms=2_000)
    async with _working(estate), publisher:
        people = _People(publisher)
        await people.log_in()
        async with _touching(people):
            await asyncio.sleep(1.0)
            before = _resident()
            await asyncio.to_thread(maven.stop, own)
            grown = []
            gone_at = time.monotonic()
            while time.monotonic() - gone_at < AWAY_S:
                await asyncio.sleep(0.5)
                grown.append(_resident() - before)
                assert publisher.waiting <= SESSIONS
            again = await asyncio.to_thread(maven.start, tmp_path / "broker", java, lambda _: None)
            assert again.bootstrap == own.bootstrap
            await asyncio.sleep(IDLE_MS / 1000)  # as long as it would take for those that were lost to end
        assert await publisher.flush(120.0)
        stats = publisher.stats
        activity = await read_to_end(settings, TopicNames(settings.prefix).activity)
        endings = await _endings(settings)
    assert (stats.dropped, stats.malformed) == (0, 0)
    assert people.slowest_s < 0.25  # never held up by the broker; a collection of garbage may be
    assert max(grown) < GROWTH_MAX_BYTES
    print(f"grown by {max(grown) / 1e6:.0f} MB, slowest call {people.slowest_s * 1000:.1f} ms")
    assert endings == [], f"{len(endings)} ended; after the outage, by seconds: {_after_the_gap(activity)}"
    told = _latest_instants(activity)
    assert told.keys() == people.touched_at.keys()
    wall = time.time() * 1000 - time.monotonic() * 1000
    late = {
        session: told[session] - (at + wall)
        for session, at in people.touched_at.items()
        if abs(told[session] - (at + wall)) > 3_500  # by the delay of a batch that arrived after all (pump.py)
    }
    assert not late, random.sample(sorted(late.items()), min(5, len(late)))


async def _endings(settings: Settings) -> list[SessionEnded]:
    stored = await read_to_end(settings, TopicNames(settings.prefix).expiries)
    parsed = [parse_expiry(one.value) for one in stored]
    return [expiry for expiry in parsed if isinstance(expiry, SessionEnded)]


def _after_the_gap(activity: list[ConsumerRecord]) -> dict[str, dict[str, int]]:
    """Return how many touches and ticks were appended in each half second after the outage, for a failure's message."""
    stamps = sorted(one.timestamp for one in activity)
    back_at = max(itertools.pairwise(stamps), key=lambda pair: pair[1] - pair[0])[1]
    counts: dict[str, dict[str, int]] = {}
    for one in activity:
        told = parse_activity(one.value)
        kind = "touches" if isinstance(told, PackedTouches | SessionTouched) else told.type
        if one.timestamp >= back_at:
            at = f"{(one.timestamp - back_at) // 500 / 2:g}"
            by_kind = counts.setdefault(at, {})
            by_kind[kind] = by_kind.get(kind, 0) + (len(told.touches) if isinstance(told, PackedTouches) else 1)
    return dict(sorted(counts.items(), key=lambda pair: float(pair[0])))


def _latest_instants(activity: list[ConsumerRecord]) -> dict[str, float]:
    """Return the latest instant that the log tells of each session, epoch ms of the broker's clock."""
    latest: dict[str, float] = {}
    for one in activity:
        told = parse_activity(one.value)
        if isinstance(told, PackedTouches):
            touches = [parse_packed_entry(entry, index) for index, entry in enumerate(told.touches)]
            ages = [(touch.session, touch.age_ms) for touch in touches]
        elif isinstance(told, SessionStarted | SessionTouched):
            ages = [(told.session, told.age_ms)]
        else:
            continue
        for session, age_ms in ages:
            latest[session] = max(latest.get(session, 0), one.timestamp - age_ms)
    return latest


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
