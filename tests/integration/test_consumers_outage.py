"""What do publisher and guard do while the broker is away, and afterwards?

A broker of this test's own is stopped in its tracks (SIGSTOP: connections stay, nothing answers) and goes on.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lapse.consumers import ActivityPublisher, Guard, session_reference
from lapse.pipeline.broker import maven
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    PackedTouches,
    Revocation,
    SessionTouched,
    TopicNames,
    parse_activity,
    parse_packed_entry,
)

from tests.consumers.support import read_all, until, writing

pytestmark = [pytest.mark.broker, pytest.mark.slow]

AWAY_S = 8.0
SESSIONS = {session_reference(f"s-{n}"): f"u-{n}" for n in range(200)}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Settings, int]]:
    """Settings for a broker of this test's own, and the broker's process id."""
    java = maven.find_java()
    assert java is not None, "a broker that may be stopped needs Java here: a container's process is not ours"
    started = maven.start(tmp_path / "broker", java, lambda _: None)
    assert started.pid is not None
    settings = Settings(
        kafka=started.bootstrap, prefix="t.", partitions=4, replication=1, worker="w", directory=tmp_path / ".lapse"
    )
    try:
        yield settings, started.pid
    finally:
        os.kill(started.pid, signal.SIGCONT)
        maven.stop(started)


async def test_nothing_is_lost_and_the_guard_is_stale_exactly_while_the_broker_is_away(
    own: tuple[Settings, int],
) -> None:
    settings, pid = own
    revoked = session_reference("revoked")
    async with (
        writing(settings) as writer,
        Guard(settings.kafka, service="shop", prefix="t.", stale_after_ms=3_000, on_stale="deny") as guard,
        ActivityPublisher(
            settings.kafka, service="shop", prefix="t.", touch_interval_ms=1_000, delivery_timeout_ms=1_000
        ) as publisher,
    ):
        await writer.revoke(Revocation(id="r-1", session=revoked, subject="u"))
        await until(lambda: not guard.check(revoked).allowed)
        await until(lambda: not guard.check(session_reference("live")).stale)
        os.kill(pid, signal.SIGSTOP)
        gone_at = time.monotonic()
        latest: dict[str, float] = {}
        slowest = 0.0
        while time.monotonic() - gone_at < AWAY_S:
            for session, subject in SESSIONS.items():
                began = time.monotonic()
                publisher.touched(session, subject)
                latest[session] = began
                slowest = max(slowest, time.monotonic() - began)
            guard.check(revoked)
            await asyncio.sleep(0.25)
        assert guard.check(session_reference("live")).stale
        assert guard.check(revoked).cause == "revoked"
        assert publisher.waiting == len(SESSIONS)
        os.kill(pid, signal.SIGCONT)
        back_at = time.monotonic()
        await until(lambda: publisher.waiting == 0, timeout_s=30)
        await until(lambda: guard.fresh, timeout_s=30)
        recovered_s = time.monotonic() - back_at
        stats = publisher.stats
        records = await read_all(settings, TopicNames("t.").activity, stats.records)
    assert slowest < 0.25  # not once held up by the broker
    assert recovered_s < 20
    told: dict[str, SessionTouched] = {}
    stamps: dict[str, int] = {}
    for record in records:
        for touch in _touches(record.value):
            told[touch.session], stamps[touch.session] = touch, record.timestamp
    assert set(told) == set(SESSIONS)
    wall = time.time() * 1000 - time.monotonic() * 1000
    for session, touch in told.items():
        # The last touch stands in the log with the instant at which it happened, and says what it stands for.
        assert abs(stamps[session] - touch.age_ms - (latest[session] * 1000 + wall)) < 1_500
        assert (touch.since_ms or 0) - touch.age_ms > (AWAY_S - 3) * 1000
        assert (touch.pause_ms or 0) < 2_000


def _touches(value: bytes) -> list[SessionTouched]:
    record = parse_activity(value)
    if isinstance(record, SessionTouched):
        return [record]
    assert isinstance(record, PackedTouches)
    entries = [parse_packed_entry(entry, index) for index, entry in enumerate(record.touches)]
    return [SessionTouched(service=record.service, **entry._asdict()) for entry in entries]
