"""May this session go on? The guard over the in-memory feed, which is the same core that a broker feeds."""

import asyncio
import logging

import pytest

from lapse.consumers import Cause, ConfigError, Ended, Guard, session_reference
from lapse.consumers.guard import ALLOWED
from lapse.consumers.testing import MemoryFeed

from tests.consumers.support import free_port, until

SESSION = session_reference("cookie")
OTHER = session_reference("other")
LATER, MEANWHILE = session_reference("later"), session_reference("meanwhile")


def test_an_allowed_session_costs_no_object() -> None:
    guard = MemoryFeed().guard()
    assert guard.check(SESSION) is guard.check(OTHER, subject="u", tenant="t", started_at=1)
    assert guard.check(SESSION) is ALLOWED


def test_an_ended_session_is_refused_with_its_cause_until_deny_until() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    ended = feed.end(SESSION, cause="absolute", deny_until=feed.clock.now_at + 600_000)
    decision = guard.check(SESSION)
    assert not decision
    assert (decision.cause, decision.due_at, decision.ending) == (Cause.ABSOLUTE, ended.due_at, ended.id)
    feed.advance(599_999)
    assert not guard.check(SESSION)
    feed.advance(60_001)
    assert guard.check(SESSION)
    assert guard.entries == 0


def test_revocations_of_session_subject_tenant_and_everyone_act_at_once() -> None:
    feed = MemoryFeed(partitions=3)
    guard = feed.guard()
    before = feed.clock.now_at
    assert guard.check(OTHER, subject="u-1", tenant="acme", started_at=before)
    feed.revoke(session=SESSION, subject="u-9")
    assert guard.check(SESSION).cause == Cause.REVOKED
    feed.revoke(subject="u-1", tenant="acme", id="r-subject")
    assert guard.check(OTHER, subject="u-1", tenant="acme", started_at=before).revocation == "r-subject"
    assert guard.check(OTHER, subject="u-2", tenant="acme", started_at=before)
    feed.advance(1)
    feed.revoke(tenant="acme", id="r-tenant")
    assert guard.check(OTHER, subject="u-2", tenant="acme", started_at=before).revocation == "r-tenant"
    assert guard.check(OTHER, subject="u-2", started_at=before)
    feed.revoke(everyone=True, id="r-everyone")
    assert guard.check(OTHER, subject="u-2", started_at=before).revocation == "r-everyone"
    assert guard.check(OTHER, subject="u-1", tenant="acme", started_at=feed.clock.now_at + 1)


def test_without_a_start_a_cutoff_waits_for_the_processors_ending() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    feed.revoke(subject="u-1")
    assert guard.check(SESSION, subject="u-1")
    feed.end(SESSION, subject="u-1", cause="revoked")
    assert not guard.check(SESSION, subject="u-1")


@pytest.mark.parametrize("on_stale", ["allow", "deny"])
def test_a_stale_guard_does_as_it_is_told_and_counts(on_stale: str) -> None:
    feed = MemoryFeed()
    guard = feed.guard(on_stale=on_stale)
    feed.end(OTHER)
    feed.processor_runs = False
    feed.advance(9_999)
    assert not guard.check(SESSION).stale
    feed.advance(1)
    decision = guard.check(SESSION)
    assert decision.stale
    assert decision.allowed == (on_stale == "allow")
    assert guard.check(SESSION, on_stale="deny").allowed is False
    assert guard.check(SESSION, on_stale="allow").allowed is True
    assert guard.check(OTHER, on_stale="allow").cause == Cause.IDLE  # what it knows stays true
    assert guard.allowed_while_stale == (2 if on_stale == "allow" else 1)
    assert guard.why_stale is not None
    feed.processor_runs = True
    feed.advance(1)
    assert guard.check(SESSION) is ALLOWED


def test_a_broker_that_is_away_makes_it_stale_and_what_happened_meanwhile_comes_afterwards() -> None:
    feed = MemoryFeed()
    guard = feed.guard(on_stale="deny")
    feed.broker_runs = False
    feed.revoke(session=SESSION, subject="u")
    feed.advance(10_000)
    assert guard.check(SESSION).stale
    feed.broker_runs = True
    feed.advance(1)
    assert guard.check(SESSION).cause == Cause.REVOKED
    assert guard.check(OTHER) is ALLOWED


@pytest.mark.parametrize(
    "value",
    [
        b'{"type":"revocation","v":2,"id":"r","subject":"u"}',
        b'{"type":"revocation.of.another.kind","id":"r"}',
        b"not JSON",
        b"\xff",
        None,
    ],
)
def test_a_revocation_it_cannot_read_makes_it_stale_and_is_never_skipped(
    value: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    feed = MemoryFeed()
    guard = feed.guard(on_stale="deny")
    with caplog.at_level(logging.ERROR, "lapse.consumers"):
        feed.put("revocations", 0, value)
    assert "cannot be read" in caplog.text
    feed.advance(60_000)
    assert guard.check(SESSION).stale
    assert guard.status().stale_ms >= 10_000
    feed.revoke(session=SESSION)  # what comes after it is applied all the same
    assert guard.check(SESSION).cause == Cause.REVOKED


def test_a_tombstone_means_nothing() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    feed.end(SESSION)
    feed.put("expiries", 0, None)
    assert not guard.check(SESSION)
    assert guard.check(OTHER) is ALLOWED


def test_a_raw_session_id_is_refused_loudly_and_not_repeated() -> None:
    guard = MemoryFeed().guard()
    with pytest.raises(ValueError, match="reference") as caught:
        guard.check("the-secret-cookie-of-somebody-else")
    assert "secret" not in str(caught.value)


def test_a_hook_of_all_sessions_is_called_once_per_ending_and_not_for_history() -> None:
    feed = MemoryFeed()
    feed.end(OTHER)
    guard = feed.guard()
    heard: list[Ended] = []
    guard.on_ended(heard.append)
    feed.revoke(session=SESSION, subject="u", id="r-1")
    feed.end(SESSION, subject="u", cause="revoked")
    feed.end(SESSION, subject="u", cause="revoked")
    assert [(ended.session, ended.cause, ended.revocation) for ended in heard] == [(SESSION, Cause.REVOKED, "r-1")]


def test_a_hook_of_a_session_hears_cutoffs_if_its_start_is_known_and_is_called_once() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    now = feed.clock.now_at
    heard: list[tuple[str, Ended]] = []
    guard.on_ended(lambda e: heard.append(("known", e)), SESSION, subject="u", tenant="acme", started_at=now)
    guard.on_ended(lambda e: heard.append(("later", e)), OTHER, subject="u", tenant="acme", started_at=now + 1)
    guard.on_ended(lambda e: heard.append(("unknown", e)), SESSION, subject="u", tenant="acme")
    feed.revoke(tenant="acme")
    assert [name for name, _ in heard] == ["known"]
    feed.end(SESSION, subject="u", tenant="acme", cause="revoked")
    assert [name for name, _ in heard] == ["known", "unknown"]
    feed.end(OTHER, subject="u", tenant="acme")
    assert [name for name, _ in heard] == ["known", "unknown", "later"]


def test_a_hook_of_a_session_that_is_refused_already_is_called_at_once() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    feed.end(SESSION)
    heard: list[Ended] = []
    guard.on_ended(heard.append, SESSION)
    assert [ended.cause for ended in heard] == [Cause.IDLE]


def test_a_cancelled_hook_is_not_called_and_leaves_nothing_behind() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    heard: list[Ended] = []
    hook = guard.on_ended(heard.append, SESSION, subject="u", started_at=1)
    hook.cancel()
    hook.cancel()
    feed.end(SESSION)
    feed.revoke(subject="u")
    assert heard == []
    assert not guard._hooks


async def test_a_hook_may_be_asynchronous_and_one_that_raises_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    done = asyncio.Event()

    async def close(_: Ended) -> None:
        done.set()

    def broken(_: Ended) -> None:
        raise RuntimeError("the user's own")

    guard.on_ended(broken, SESSION)
    guard.on_ended(close, SESSION)
    feed.end(SESSION)
    async with asyncio.timeout(5):
        await done.wait()
    assert not guard.check(SESSION)
    assert "the user's own" in caplog.text


def test_every_revocation_is_reported_once_with_what_it_closed() -> None:
    feed = MemoryFeed(partitions=3)
    feed.revoke(everyone=True, id="r-history")
    guard = feed.guard()
    feed.end(SESSION)
    feed.advance(1)
    guard.on_ended(lambda _: None, OTHER, subject="u", started_at=feed.clock.now_at)
    feed.revoke(session=SESSION, subject="u", id="r-late")  # of a session that has ended already
    feed.revoke(everyone=True, id="r-everyone")  # written to all three partitions
    assert [(applied.revocation, applied.closed) for applied in guard.intake.applied] == [
        ("r-late", 0),
        ("r-everyone", 1),
    ]


def test_a_topic_that_is_read_anew_brings_news_and_takes_no_denial_back() -> None:
    feed = MemoryFeed()
    feed.end(SESSION)
    guard = feed.guard(on_stale="deny")
    heard: list[str] = []
    guard.on_ended(lambda ended: heard.append(ended.session))
    guard.intake.lose("expiries", "it was recreated")
    assert guard.check(OTHER).stale
    assert guard.check(SESSION).cause == Cause.IDLE
    recreated = MemoryFeed(feed.clock)
    recreated.end(OTHER)
    asyncio.run(recreated.start(guard.intake))
    assert heard == [OTHER]
    assert guard.check(SESSION).cause == Cause.IDLE
    recreated.advance(1_000)
    assert guard.fresh


def test_what_is_read_again_after_a_lost_connection_is_not_told_again() -> None:
    feed = MemoryFeed()
    feed.revoke(session=SESSION, subject="u", id="r-history")
    feed.end(OTHER, deny_until=feed.clock.now_at + 60_000)
    feed.advance(3_600_000)
    guard = feed.guard()  # it has forgotten OTHER, whose denial is over
    heard: list[Ended] = []
    guard.on_ended(heard.append)
    feed.revoke(subject="u", id="r-news")
    feed.end(LATER)
    for source in ("revocations", "expiries"):
        guard.intake.lose(source, "the broker was restarted")
    feed.broker_runs = False
    feed.end(MEANWHILE)
    feed.broker_runs = True
    (reader,) = feed._readers
    reader.positions = dict.fromkeys(reader.positions, 0)
    feed._begin(reader)
    feed.advance(1_000)
    assert [ended.session for ended in heard] == [LATER, MEANWHILE]
    assert [applied.revocation for applied in guard.intake.applied] == ["r-news"]
    assert len(guard.intake.propagations_ms) == 3
    assert guard.fresh


def test_its_status_says_what_it_did() -> None:
    feed = MemoryFeed()
    guard = feed.guard(service="shop", instance="i-1", on_stale="deny")
    feed.end(SESSION)
    feed.revoke(subject="u")
    guard.check(SESSION)
    guard.check(OTHER)
    status = guard.status()
    assert (status.service, status.instance) == ("shop", "i-1")
    assert (status.checks, status.refused, status.entries, status.allowed_while_stale) == (2, 1, 2, 0)
    assert status.applied == {"expiries": [1], "revocations": [0]}
    assert status.stale_ms == 0
    assert status.propagation_ms is not None


async def test_of_two_guards_of_one_feed_one_may_stop() -> None:
    feed = MemoryFeed()
    async with feed.guard() as first, feed.guard() as second:
        await first.stop()
        feed.end(SESSION)
        assert first.check(SESSION)
        assert not second.check(SESSION)


async def test_a_start_that_is_cancelled_leaves_no_task_behind() -> None:
    guard = Guard(f"127.0.0.1:{free_port()}", service="shop")
    before = asyncio.all_tasks()
    starting = asyncio.create_task(guard.start())
    await until(lambda: len(asyncio.all_tasks() - before) > 1)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert not {task for task in asyncio.all_tasks() - before if task.get_name().startswith("lapse-")}


def test_a_word_that_is_neither_allow_nor_deny_denies() -> None:
    feed = MemoryFeed()
    guard = feed.guard()
    feed.processor_runs = False
    feed.advance(10_000)
    assert guard.check(SESSION)
    assert not guard.check(SESSION, on_stale="Deny")  # type: ignore[arg-type]  # what is tested


async def test_it_starts_and_stops_around_an_application() -> None:
    feed = MemoryFeed()
    async with feed.guard() as guard:
        assert guard.fresh


@pytest.mark.parametrize(
    "options",
    [
        {"stale_after_ms": 2_999},
        {"stale_after_ms": 3_600_001},
        {"on_stale": "perhaps"},
        {"session_life_max_ms": 0},
        {"instance": ""},
        {"instance": "i" * 257},
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        Guard("localhost:1", service="shop", **options)  # type: ignore[arg-type]
