"""Does a guard know what its topics say, from the first check and live?

A real guard over a real broker; the processor's and the operators' records are written raw.
"""

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewPartitions
from aiokafka.errors import KafkaError

from lapse.consumers import Cause, Ended, Guard, session_reference
from lapse.consumers.guard import backlog, feed
from lapse.pipeline.operations.connection import administering
from lapse.pipeline.operations.topics import apply_topics
from lapse.pipeline.settings import Settings
from lapse.schemas import (
    GuardApplied,
    GuardStatus,
    Revocation,
    TopicNames,
    encode,
    parse_dead_letter,
    parse_enforcement,
    partition_of,
)

from tests.consumers.support import ended, free_port, read_all, until, writing


def _guard(settings: Settings, **options: object) -> Guard:
    return Guard(settings.kafka, service="shop", prefix=settings.prefix, **options)  # type: ignore[arg-type]


async def test_it_is_right_from_the_first_check(settings: Settings) -> None:
    ended = [session_reference(f"s-{n}") for n in range(300)]
    async with writing(settings) as writer:
        for n, session in enumerate(ended):
            await writer.end(session, f"u-{n}")
        revoked = session_reference("revoked")
        await writer.revoke(Revocation(id="r-1", session=revoked, subject="u"))
        async with _guard(settings) as guard:
            assert guard.fresh
            assert {guard.check(session).cause for session in ended} == {Cause.IDLE}
            assert guard.check(revoked).revocation == "r-1"
            assert guard.check(session_reference("live")).allowed
            assert guard.entries == 301


async def test_it_fetches_ahead_until_it_has_caught_up_and_then_as_aiokafka_does(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    during: list[float] = []
    resting: list[int] = []
    clients: list[Any] = []

    def ends(client: Any, usual: float | None) -> None:
        clients.append(client)
        during.append(client._fetcher._prefetch_backoff)
        resting.append(len(client.paused()))
        backlog.end_backlog(client, usual)

    monkeypatch.setattr(feed, "end_backlog", ends)
    async with writing(settings) as writer:
        await writer.end(session_reference("one"), "u-1")
        async with _guard(settings) as guard:
            assert guard.fresh
            assert during == [0.0, 0.0]
            assert resting == [settings.partitions] * 2
            assert [client._fetcher._prefetch_backoff for client in clients] == [0.1, 0.1]
            assert [client.paused() for client in clients] == [set(), set()]


async def test_endings_and_revocations_arrive_live_and_hooks_are_called_once(settings: Settings) -> None:
    session, other = session_reference("one"), session_reference("two")
    heard: list[Ended] = []
    async with writing(settings) as writer, _guard(settings) as guard:
        guard.on_ended(heard.append)
        await writer.end(session, "u-1", due_at=5_000)
        await until(lambda: not guard.check(session).allowed)
        assert guard.check(session).due_at == 5_000
        await writer.revoke(Revocation(id="r-1", session=other, subject="u-2"))
        await until(lambda: not guard.check(other).allowed)
        await writer.end(other, "u-2", cause=Cause.REVOKED)
        await until(lambda: guard.check(other).ending is not None)
        assert [(ended.session, ended.cause) for ended in heard] == [(session, Cause.IDLE), (other, Cause.REVOKED)]


async def test_a_subjects_revocation_is_one_hop_and_later_logins_pass(settings: Settings) -> None:
    old, new, unknown = (session_reference(name) for name in ("old", "new", "unknown"))
    async with writing(settings) as writer, _guard(settings) as guard:
        at = await writer.revoke(Revocation(id="r-1", subject="u-1", tenant="acme"))
        await until(lambda: not guard.check(old, subject="u-1", tenant="acme", started_at=at).allowed)
        assert guard.check(new, subject="u-1", tenant="acme", started_at=at + 1).allowed
        assert guard.check(old, subject="u-1", started_at=at).allowed  # without a tenant it is another subject
        assert guard.check(unknown, subject="u-1", tenant="acme").allowed  # until the processor ends it


async def test_revocations_go_on_working_when_no_processor_runs(settings: Settings) -> None:
    session = session_reference("one")
    async with writing(settings) as writer:
        writer.beats = False
        async with _guard(settings, stale_after_ms=3_000, ready_timeout_s=5.0) as guard:
            assert not guard.fresh
            assert guard.check(session).stale
            await writer.revoke(Revocation(id="r-1", session=session, subject="u"))
            await until(lambda: not guard.check(session).allowed)


async def test_what_it_cannot_read_makes_it_stale_and_is_dead_lettered(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    async with writing(settings) as writer, _guard(settings, on_stale="deny") as guard:
        assert guard.check(session_reference("live")).allowed
        value = b'{"type":"revocation","v":99,"id":"r-1","subject":"u"}'
        offset = await writer.put(topics.revocations, 2, value)
        await until(lambda: guard.check(session_reference("live")).stale)
        assert "newer" in (guard.why_stale or "")
        (letter,) = await read_all(settings, topics.dead_letters, 1)
        found = parse_dead_letter(letter.value)
        assert (found.topic, found.partition, found.offset) == (topics.revocations, 2, offset)


async def test_operators_see_what_it_has_applied(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    closed: list[Ended] = []
    session = session_reference("one")
    async with writing(settings) as writer, _guard(settings, instance="i-1") as guard:
        guard.on_ended(closed.append, session)
        await writer.revoke(Revocation(id="r-1", session=session, subject="u"))
        await until(lambda: not guard.check(session).allowed)
        reports: list[GuardStatus | GuardApplied] = []
        async with asyncio.timeout(10):
            while not _applied(reports) or _latest(reports).refused == 0:
                reports = [parse_enforcement(r.value) for r in await read_all(settings, topics.enforcement, 2)]
    (applied,) = _applied(reports)
    assert (applied.revocation, applied.closed, applied.instance) == ("r-1", 1, "i-1")
    assert applied.after_ms < 1_000
    status = _latest(reports)
    assert status.entries == 1
    assert status.checks >= 1
    assert len(status.applied["expiries"]) == settings.partitions
    assert max(status.applied["revocations"]) == 0


def _applied(reports: list[GuardStatus | GuardApplied]) -> list[GuardApplied]:
    return [report for report in reports if isinstance(report, GuardApplied)]


def _latest(reports: list[GuardStatus | GuardApplied]) -> GuardStatus:
    return max((report for report in reports if isinstance(report, GuardStatus)), key=lambda report: report.checks)


async def test_silence_makes_it_stale_at_the_bound_and_a_watermark_fresh_again(settings: Settings) -> None:
    session = session_reference("live")
    async with writing(settings) as writer, _guard(settings, stale_after_ms=3_000, on_stale="deny") as guard:
        assert guard.check(session).allowed
        writer.beats = False
        last_at = time.monotonic()
        await until(lambda: not guard.check(session).allowed)
        # What it knew last was up to a second old then: the feed proves once a second that it has all revocations.
        assert 1.5 <= time.monotonic() - last_at <= 3.5
        assert guard.stale_ms >= 3_000
        writer.beats = True
        await until(lambda: guard.check(session).allowed)


async def test_a_recreated_topic_makes_it_stale_and_it_reads_it_anew_by_itself(settings: Settings) -> None:
    topics = TopicNames(settings.prefix)
    before, after = session_reference("before"), session_reference("after")
    async with writing(settings) as writer, _guard(settings, on_stale="deny") as guard:
        for n in range(20):
            await writer.revoke(Revocation(id=f"r-{n}", session=before, subject=f"u-{n}"))
        await until(lambda: not guard.check(before).allowed)
        async with administering(settings) as admin:
            await admin.delete_topics([topics.revocations])
        await until_applied(settings)
        await until(lambda: not guard.fresh, timeout_s=20)
        await writer.revoke(Revocation(id="r-after", session=after, subject="u-1"))
        await until(lambda: guard.check(after).revocation == "r-after", timeout_s=20)
        await until(lambda: guard.fresh, timeout_s=20)
        assert guard.check(before).cause == Cause.REVOKED
        assert guard.check(session_reference("live")).allowed


async def test_a_topic_recreated_and_filled_past_what_was_read_between_two_looks_is_noticed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "PROOF_INTERVAL_S", 4.0)
    before = session_reference("before")
    async with writing(settings) as writer, _guard(settings, stale_after_ms=60_000) as guard:
        for n in range(3):
            await writer.revoke(Revocation(id=f"r-{n}", session=before, subject="u-1"))
        await until(lambda: not guard.check(before).allowed)
        await asyncio.sleep(9.0)  # two looks: the landmark is known
        others = [session_reference(f"after-{n}") for n in range(20)]
        # In another thread, and this one held meanwhile: at its next look the guard finds more than it had read.
        recreating = threading.Thread(target=asyncio.run, args=(_recreate(settings, others),))
        recreating.start()
        recreating.join()
        await asyncio.sleep(1.0)
        assert guard.check(others[0]).allowed  # it has read on in the middle of another log
        await until(lambda: not any(guard.check(session).allowed for session in others), timeout_s=30)
        assert guard.check(before).cause == Cause.REVOKED


async def test_what_is_written_to_added_partitions_is_known_within_seconds(settings: Settings) -> None:
    topics, added = TopicNames(settings.prefix), settings.partitions
    revoked, over = session_reference("revoked"), session_reference("over")
    values = {
        topics.revocations: encode(Revocation(id="r-1", session=revoked, subject="u-1")),
        topics.expiries: encode(ended(over, partition=added)),
    }
    async with writing(settings), _guard(settings) as guard:
        assert guard.check(revoked).allowed
        async with administering(settings) as admin:
            await admin.create_partitions({topic: NewPartitions(total_count=added + 1) for topic in values})
        async with AIOKafkaProducer(bootstrap_servers=settings.kafka) as producer:
            for topic, value in values.items():
                await _write_as_soon_as_it_serves(producer, topic, added, value)
        await until(lambda: guard.check(revoked).revocation == "r-1", timeout_s=20)
        await until(lambda: guard.check(over).cause == Cause.IDLE, timeout_s=20)


async def _write_as_soon_as_it_serves(producer: AIOKafkaProducer, topic: str, partition: int, value: bytes) -> None:
    """Write to a partition that was added a moment ago: the broker may not serve it yet."""
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(KafkaError):
                await producer.send_and_wait(topic, value, key=b"key", partition=partition)
                return


async def _recreate(settings: Settings, sessions: list[str]) -> None:
    """Make the topic of revocations anew, with these."""
    topic = TopicNames(settings.prefix).revocations
    async with administering(settings) as admin:
        await admin.delete_topics([topic])
    await until_applied(settings)
    partition = partition_of("u-1", None, settings.partitions)
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka) as producer:
        for n, session in enumerate(sessions):
            order = Revocation(id=f"r-after-{n}", session=session, subject="u-1")
            await producer.send_and_wait(topic, encode(order), partition=partition)


async def until_applied(settings: Settings) -> None:
    """Make the missing topic again, as soon as the broker has done with the old one."""
    async with asyncio.timeout(20):
        while not await apply_topics(settings):
            pass


async def test_a_guard_without_a_broker_starts_stale_and_follows_on_stale() -> None:
    where = f"127.0.0.1:{free_port()}"
    async with Guard(where, service="shop", on_stale="deny", ready_timeout_s=0.3) as guard:
        assert not guard.check(session_reference("live")).allowed
        assert guard.check(session_reference("live"), on_stale="allow").allowed
        assert guard.allowed_while_stale == 1
    with pytest.raises(ValueError, match="reference"):
        guard.check("a raw session id")
